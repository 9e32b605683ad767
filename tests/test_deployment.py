"""Behind nginx, with the very configuration that the README shows."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import ROOT, SEEN_WITHIN, HaltServer, StartHalt
from tests.fake_openai import FakeOpenAI

NAME = "chat.example.org"


class Proxy:
    """A running nginx."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port = port
        self._context = context
        self._opened: list[http.client.HTTPSConnection] = []

    def connect(self) -> http.client.HTTPSConnection:
        """A connection through it, as a client that knows it by its public name makes one."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sock = self._context.wrap_socket(raw, server_hostname=NAME)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        """Close what was connected."""
        for connection in self._opened:
            connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def nginx(tmp_path: Path, start_halt: StartHalt, fake: FakeOpenAI) -> Iterator[Proxy]:
    """nginx with the README's server block, changed only in port, address and certificate paths."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.skip("nginx is not installed (apt install nginx)")
    halt: HaltServer = start_halt(fake, HALT_HOSTS=NAME)
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "cert.pem", append=True)
    block = re.search(r"```nginx\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "the README shows no nginx configuration"
    port = free_port()
    server = block[1]
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("http://127.0.0.1:8000", halt.url),
        ("/etc/ssl/chat.example.org.pem", str(tmp_path / "cert.pem")),
        ("/etc/ssl/chat.example.org.key", str(tmp_path / "key.pem")),
    ):
        assert old in server
        server = server.replace(old, new)
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{server}\n}}"
    )
    process = subprocess.Popen(
        [binary, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"],
        stderr=subprocess.PIPE,
        text=True,
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        _wait_listening(port, process)
        proxy = Proxy(port, context)
        yield proxy
        proxy.close()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _wait_listening(port: int, process: subprocess.Popen[str]) -> None:
    patience = threading.Event()
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                pytest.fail(f"nginx did not start: {process.communicate()[1]}")
            patience.wait(0.05)
    pytest.fail("nginx does not listen")


def _start(proxy: Proxy, model: str, stream_id: str) -> http.client.HTTPResponse:
    connection = proxy.connect()
    body = {"id": stream_id, "model": model, "messages": [{"role": "user", "content": "x"}]}
    headers = {"Host": NAME, "Origin": f"https://{NAME}"}
    connection.request("POST", "/chat/stream", json.dumps(body), headers)
    return connection.getresponse()


def test_events_leave_at_once(nginx: Proxy, fake: FakeOpenAI) -> None:
    """The proxy gathers nothing: tokens are there while the model is still writing."""
    response = _start(nginx, "stall?n=3", "behind-nginx-1")
    assert response.status == 200
    seen = b""
    while b'"content":"' not in seen:
        seen += response.readline()
    response.close()
    assert not fake.wait_request(lambda r: r.scenario == "stall").finished.is_set()


def test_stop_reaches_the_model_through_the_proxy(nginx: Proxy, fake: FakeOpenAI) -> None:
    """Stop works while the model is silent, and its receipt is true."""
    response = _start(nginx, "silent_first_token", "behind-nginx-2")
    record = fake.wait_request(lambda r: r.scenario == "silent_first_token")
    stopper = nginx.connect()
    stopper.request("POST", "/stop/behind-nginx-2", headers={"Host": NAME})
    receipt = json.loads(stopper.getresponse().read())
    assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
    assert record.closed.wait(SEEN_WITHIN)
    assert b'"type":"cancelled"' in response.read()


def test_origin_is_compared_with_the_public_name(nginx: Proxy) -> None:
    """The page's own origin may post, another site's may not."""
    for origin, status in ((f"https://{NAME}", 202), ("https://evil.example", 403)):
        connection = nginx.connect()
        headers = {"Host": NAME, "Origin": origin}
        connection.request("POST", "/stop/no-such-stream", headers=headers)
        response = connection.getresponse()
        assert response.status == status, response.read()
        response.read()
