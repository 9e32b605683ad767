"""Halt behind each proxy that the docs name, with the unchanged recipes in `deploy/`."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.doctor_command import doctor_of_proxy
from tests.support.export_files import export_file, exported_conversation
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    ROOT,
    HaltServer,
    StartHalt,
    new_id,
    request_record,
    settings,
)
from tests.support.http_client import READ_TIMEOUT
from tests.support.reverse_proxies import NAME, RECIPES, Proxy, ProxyClient, proxied
from tests.support.websocket_client import WebSocket

pytestmark = pytest.mark.slow

STARTS_PER_ADDRESS = 15  # the limit; the doctor needs 3 for each proxy, all from one address
PACED = "count?rate=60&n=30"  # slow enough for the doctor to see whether the proxy buffers it
#: These proxies close the connection to Halt as soon as a client leaves. Apache notices it at its
#: next write to the client: a comment of Halt in a stream, otherwise the answer.
CLOSES_AT_ONCE = ("nginx", "caddy", "haproxy")


@pytest.fixture(scope="module")
def halt_behind(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt for all the proxies. Its heartbeat is so slow that no test can depend on it."""
    server = HaltServer(
        settings(
            shared_fake,
            HALT_MODEL=PACED,
            HALT_HOSTS=NAME,
            HALT_TRUSTED_PROXIES=1,
            HALT_RATE_ADDRESS=f"{STARTS_PER_ADDRESS}/hour",
            HALT_HEARTBEAT=300,
        )
    )
    yield server
    server.close()


@pytest.fixture(scope="module", params=RECIPES)
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    halt_behind: HaltServer,
) -> Iterator[Proxy]:
    """The proxy with its recipe."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    with proxied(kind, f"{halt_behind.host}:{halt_behind.port}", folder) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> ProxyClient:
    """A user agent with an address of its own."""
    return proxy.client()


def test_deployment_document_shows_the_tested_recipes() -> None:
    """The nginx recipe in docs/deployment.md is the tested one, and the others are named."""
    document = (ROOT / "docs" / "deployment.md").read_text()
    block = re.search(r"```nginx\n(.*?)```", document, re.S)
    assert block
    assert block[1] == (ROOT / "deploy" / "nginx.conf").read_text()
    for file, _ in RECIPES.values():
        assert f"deploy/{file}" in document


def test_proxy_serves_page_files_and_secure_cookie(client: ProxyClient) -> None:
    """Page and static files are served, and the session's cookie is Secure."""
    page = client.get("/")
    assert page.status == 200
    style_link = re.search(rb'rel="stylesheet" href="([^"]+)"', page.body)
    assert style_link
    assert (
        client.get(urljoin("/", style_link[1].decode()))
        .headers["content-type"]
        .startswith("text/css")
    )
    assert page.headers["set-cookie"].startswith("__Host-halt_session_")
    assert "; Secure" in page.headers["set-cookie"]
    assert "; HttpOnly" in page.headers["set-cookie"]


def test_plain_http_is_redirected_to_https(proxy: Proxy) -> None:
    """An http address redirects to https."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.http_port, timeout=READ_TIMEOUT)
    connection.request("GET", "/", headers={"Host": NAME})
    response = connection.getresponse()
    connection.close()
    assert response.status in {301, 308}
    assert str(response.headers["Location"]).startswith(f"https://{NAME}")


def test_proxy_passes_events_at_once(client: ProxyClient, shared_fake: FakeOpenAI) -> None:
    """Each event is passed on while the model is silent, also to a browser that accepts gzip."""
    prompt = new_id()
    client.headers["Accept-Encoding"] = "gzip, deflate, br"
    with client.chat("stall?n=3", prompt) as events:
        events.until_text("0 1 2 ")
        assert "content-encoding" not in events.headers
        assert not request_record(shared_fake, prompt).finished.is_set()
        client.stop(events.id)
        events.to_end()


def test_proxy_passes_plain_text_at_once(client: ProxyClient, shared_fake: FakeOpenAI) -> None:
    """Plain text, which is no event stream, is passed on at once too."""
    prompt = new_id()
    connection = client.connect()
    body = {"prompt": prompt, "model": "stall?n=3"}
    client.send(connection, "POST", "/chat", body, {"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    text = b""
    while b"2 " not in text:
        text += response.read1()
    assert not request_record(shared_fake, prompt).finished.is_set()
    client.stop(response.headers["X-Stream-Id"])
    response.read()
    connection.close()


def test_stop_through_the_proxy_closes_the_upstream(
    client: ProxyClient, shared_fake: FakeOpenAI
) -> None:
    """A Stop through the proxy closes the upstream while the model is silent."""
    prompt = new_id()
    with client.chat("silent_first_token", prompt) as events:
        record = request_record(shared_fake, prompt)
        receipt = client.stop(events.id).json
        assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
        assert record.closed.wait(RECORD_TIMEOUT)
        assert events.to_end().terminal["type"] == "cancelled"


def test_websocket_through_the_proxy_streams_and_stops(client: ProxyClient, proxy: Proxy) -> None:
    """A WebSocket gets events while the model is silent, and its Stop works."""
    with websocket_of(proxy, client, origin=f"https://{NAME}:{proxy.port}") as ws:
        stream_id = ws.start("stall?n=3")
        ws.until_text(stream_id, "0 1 2 ")
        assert ws.stop(stream_id)["upstream"] == "closed"
        assert ws.to_end(stream_id)["type"] == "cancelled"


@contextlib.contextmanager
def websocket_of(proxy: Proxy, client: ProxyClient, **more: Any) -> Iterator[WebSocket]:
    """A WebSocket through the proxy, from this client's address."""
    with client.plain_socket() as connected, WebSocket(proxy, connected=connected, **more) as ws:
        yield ws


def test_origin_check_uses_the_public_name(client: ProxyClient, proxy: Proxy) -> None:
    """Behind a proxy the page's own origin may post, another site's may not."""
    own_origin = f"https://{NAME}:{proxy.port}"
    assert client.post("/stop/no-such-stream", Origin=own_origin).status == 202
    assert client.post("/stop/no-such-stream", Origin="https://evil.example").status == 403


# --- bodies ---------------------------------------------------------------------------------------


def test_import_of_five_megabytes_passes_the_proxy(client: ProxyClient) -> None:
    """An import of 5 MB passes, more than a message may have and than some proxies' default."""
    file = export_file(exported_conversation(*["x" * 100_000] * 50, title="Large"))
    assert len(file) > 5_000_000
    answer = client.request("POST", "/import", form_file(file), FORM_FILE)
    assert (answer.status, b"1 chat was imported" in answer.body) == (200, True), answer


FORM_FILE = {"Content-Type": "multipart/form-data; boundary=x"}


def form_file(content: bytes) -> bytes:
    """A form with a file in it."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


@pytest.mark.parametrize(
    ("path", "size", "words"),
    [
        ("/import", 70_000_000, "The file is larger than 67,108,864 bytes (HALT_MAX_IMPORT_BYTES)"),
        ("/chat/stream", 5_000_000, "The body is larger than 4194304 bytes"),
    ],
)
def test_too_large_body_gets_the_error_of_halt(
    client: ProxyClient, path: str, size: int, words: str
) -> None:
    """A too large body gets Halt's own error, though the client sends as much as it can."""
    connection = client.connect()
    body = memoryview(form_file(b" " * size))
    connection.putrequest("POST", path)
    for name, value in {**FORM_FILE, "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    with contextlib.suppress(OSError):  # the answer may come before the end of the body
        for at in range(0, len(body), 1_000_000):
            connection.send(body[at : at + 1_000_000])
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["code"]) == (413, "too_large")
    assert words in error["message"]


# --- the client's address -------------------------------------------------------------------------


def test_forged_forwarded_address_changes_no_limit(client: ProxyClient) -> None:
    """X-Forwarded-For from the client does not change the address that is limited."""
    statuses = []
    for n in range(STARTS_PER_ADDRESS + 2):
        client.headers["X-Forwarded-For"] = f"203.0.113.{n}"
        with client.chat("count?n=1") as events:
            statuses.append(events.status)
            if events.status == 200:
                events.to_end()
    assert statuses == [200] * STARTS_PER_ADDRESS + [429] * 2


def test_forged_forwarded_address_on_a_websocket_changes_no_limit(
    client: ProxyClient, proxy: Proxy
) -> None:
    """Sockets with different forged addresses count as one address."""
    started = 0
    for n in range(STARTS_PER_ADDRESS + 2):
        with websocket_of(proxy, client, X_Forwarded_For=f"203.0.113.{n}") as ws:
            ws.send(type="start", messages=[{"role": "user", "content": "x"}], model="count?n=1")
            started += ws.next()["type"] == "started"
    assert started == STARTS_PER_ADDRESS


# --- a client that leaves -------------------------------------------------------------------------


def read_and_leave(client: ProxyClient, model: str, prompt: str) -> None:
    """Read an answer up to "2" and close the connection."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    with client.stream("POST", "/v1/chat/completions", body) as answer:
        text = ""
        while "2 " not in text:
            chunk = answer.next()
            assert chunk is not None
            text += chunk.json["choices"][0]["delta"].get("content", "")


@pytest.mark.parametrize("proxy", CLOSES_AT_ONCE, indirect=True)
def test_client_gone_during_silence_stops_the_model(
    client: ProxyClient, shared_fake: FakeOpenAI
) -> None:
    """The model is stopped when the client leaves, though Halt writes nothing."""
    prompt = new_id()
    read_and_leave(client, "stall?n=3", prompt)
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


def test_apache_client_gone_is_noticed_by_a_comment(
    start_halt: StartHalt, tmp_path: Path, shared_fake: FakeOpenAI
) -> None:
    """Behind Apache the comments of HALT_HEARTBEAT find a client that has left in silence."""
    halt = start_halt(shared_fake, HALT_HOSTS=NAME, HALT_TRUSTED_PROXIES=1, HALT_HEARTBEAT=0.2)
    with proxied("apache", f"{halt.host}:{halt.port}", tmp_path) as apache:
        prompt = new_id()
        read_and_leave(apache.client(), "stall?n=3", prompt)
        assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


@pytest.mark.parametrize("proxy", CLOSES_AT_ONCE, indirect=True)
def test_client_gone_before_the_first_token_stops_the_model(
    client: ProxyClient, shared_fake: FakeOpenAI
) -> None:
    """A client that leaves before the response has begun stops the model."""
    prompt = new_id()
    body = {"messages": [{"role": "user", "content": prompt}], "model": "silent_headers"}
    connection = client.connect()
    client.send(connection, "POST", "/v1/chat/completions", body)
    record = request_record(shared_fake, prompt)
    connection.close()
    assert record.closed.wait(RECORD_TIMEOUT)


def test_client_gone_during_the_answer_stops_the_model(
    client: ProxyClient, shared_fake: FakeOpenAI
) -> None:
    """A client that leaves while the model writes stops the model."""
    prompt = new_id()
    read_and_leave(client, "count?n=100000&rate=20", prompt)
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


# --- the doctor -----------------------------------------------------------------------------------


def test_doctor_finds_no_fault_in_a_recipe(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's findings are all ok through each recipe."""
    lookup = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **more: Any) -> Any:
        return lookup("127.0.0.1" if host == NAME else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)  # the name is not in the DNS
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    report = doctor_of_proxy(f"https://{NAME}:{proxy.port}")
    assert set(report.statuses().values()) == {"ok"}, report.text
    finding_names = {"client address", "uploads", "websocket", "cookies", "buffering", "departure"}
    assert finding_names <= set(report.statuses())
