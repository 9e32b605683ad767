"""Several tabs of one session behind nginx with TLS, over HTTP/2 and over HTTP/1.1."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import trustme
from playwright.sync_api import Request

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.support.halt_server import RECORD_TIMEOUT, START_TIMEOUT, HaltServer, StartHalt
from tests.support.ports import free_port

pytestmark = pytest.mark.slow

TABS = 7
LIVE_OVER_HTTP_1 = 4
#: Silent after 200 tokens until it is released, and then endless.
ENDLESS = "count?n=1000000&gap_ms=5&hold=200"

CONFIGURATION = """
daemon off; pid {folder}/pid; error_log stderr; events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl{http2};
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
    }}
  }}
}}
"""


class Proxy:
    """nginx with TLS before a server. A `Chat` can use it as its server: it has a `url`."""

    def __init__(self, folder: Path, server: HaltServer, protocol: str) -> None:
        binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if binary is None:
            pytest.skip("nginx is not installed (apt install nginx)")
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        port = free_port()
        configuration = CONFIGURATION.format(
            folder=folder,
            port=port,
            http2=" http2" if protocol == "h2" else "",
            upstream=server.url,
        )
        (folder / "nginx.conf").write_text(configuration)
        self.url = f"https://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [binary, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
        )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    pytest.fail(f"nginx did not start: {(folder / 'error.log').read_text()}")
                time.sleep(0.02)

    def close(self) -> None:
        """End nginx and its connections."""
        self.process.terminate()
        self.process.wait(RECORD_TIMEOUT)


class Tab:
    """A tab of the session, and its requests whose responses are page streams."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.requests: list[Request] = []
        chat.page.on("request", self._request)

    def _request(self, request: Request) -> None:
        if "/page?" in request.url or request.url.endswith("/messages"):
            self.requests.append(request)

    @property
    def is_live(self) -> bool:
        """Whether its first stream has not ended: no request resumes after a last event."""
        return not any("last-event-id" in request.headers for request in self.requests)


@pytest.fixture
def proxy(request: pytest.FixtureRequest, tmp_path: Path, halt: HaltServer) -> Iterator[Proxy]:
    """nginx with the protocol of the test's parameter."""
    proxy = Proxy(tmp_path, halt, request.param)
    yield proxy
    proxy.close()


@pytest.fixture
def tabs(proxy: Proxy, open_chat: OpenChat, shared_fake: FakeOpenAI) -> list[Tab]:
    """Tabs of one session, each with a running answer."""
    server = cast("HaltServer", proxy)
    first = open_chat(server, shared_fake)
    other_chats = [open_chat(server, shared_fake, same=first) for _ in range(TABS - 1)]
    tabs = [Tab(chat) for chat in (first, *other_chats)]
    for tab in tabs:
        tab.chat.ask(ENDLESS)
    return tabs


def stop_many(tabs: list[Tab]) -> None:
    """Stop the answer of each tab, and see its upstream closed."""
    for tab in tabs:
        tab.chat.stop.click()
        tab.chat.wait_state("stopped")
        assert tab.chat.record().closed.wait(RECORD_TIMEOUT)


@pytest.mark.parametrize("proxy", ["h2"], indirect=True)
def test_every_tab_streams_live_over_http_2(tabs: list[Tab]) -> None:
    """Seven tabs of a session hold a stream each, also after a reload, and Stop works in each."""
    for tab in tabs:
        tab.chat.wait_text("197 198 199")
    tabs[0].chat.reload()  # htmx alone requests the stream then
    tabs[0].chat.wait_text("197 198 199")
    for tab in tabs:
        tab.chat.release()
        tab.chat.wait_text("400 401 402")
    assert [tab.is_live for tab in tabs] == [True] * TABS
    for tab in tabs:
        assert {request.headers["halt-protocol"] for request in tab.requests} == {"h2"}
    stop_many(tabs)


def test_browser_keeps_the_cookie_of_this_host(
    start_halt: StartHalt, shared_fake: FakeOpenAI, open_chat: OpenChat, tmp_path: Path
) -> None:
    """Over HTTPS the browser accepts the cookie with `__Host-`, and shows the chat after a reload."""
    halt = start_halt(shared_fake, HALT_TRUSTED_PROXIES=1)
    proxy = Proxy(tmp_path, halt, "h2")
    try:
        chat = open_chat(cast("HaltServer", proxy), shared_fake)
        chat.ask("count?n=5")
        chat.wait_state("done")
        chat.reload()
        chat.wait_text("0 1 2 3 4")
        (name,) = [
            cookie["name"]
            for cookie in chat.page.context.cookies()
            if "halt_session" in cookie["name"]
        ]
        assert name.startswith("__Host-halt_session_")
    finally:
        proxy.close()


@pytest.mark.parametrize("proxy", ["http/1.1"], indirect=True)
def test_four_tabs_stream_live_over_http_1(tabs: list[Tab]) -> None:
    """Four tabs hold a stream, the others reconnect for new text, and Stop works in each."""
    for tab in tabs:
        tab.chat.wait_text("197 198 199")
    for tab in tabs:  # a tab without a stream of its own needs another request for this text
        tab.chat.release()
        tab.chat.wait_text("400 401 402")
    assert [tab.is_live for tab in tabs].count(True) == LIVE_OVER_HTTP_1
    for tab in tabs:
        assert all(request.headers["halt-protocol"] == "http/1.1" for request in tab.requests)
    stop_many(tabs)
