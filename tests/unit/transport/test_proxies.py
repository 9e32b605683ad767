"""Proxies from the environment: which requests use them, and how they fail.

The proxy of these tests forwards every request to one server, so that its names need not exist.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import httpx2
import pytest

from halt.core.connection import UpstreamConnection
from halt.providers.errors import to_upstream_error
from halt.testing.fake_openai import FakeOpenAI
from halt.transport.pool import Transport
from halt.transport.proxies import bypasses_proxy, proxy_for
from tests.support.ports import free_port
from tests.support.raw_server import Handler, Peer, RawServer, answering
from tests.support.transport_calls import body_of, fetch, get, read_all
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

NAME = "model.invalid"  # a name that no resolver knows


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies of this machine's environment."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture
def tls_fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(tls=True) as server:
        yield server


MakeTransport = Callable[[], Transport]


@pytest.fixture
def make_transport(tls_fake: FakeOpenAI) -> Iterator[MakeTransport]:
    """Makes transports with the current proxies, which trust the fake's CA for any name."""
    context = ssl.create_default_context(cafile=tls_fake.ca_pem_path)
    context.check_hostname = False
    with contextlib.ExitStack() as transports:
        yield lambda: transports.enter_context(contextlib.closing(Transport(WAIT_TIMEOUT, context)))


def proxy(port: int, heads: list[bytes]) -> Handler:
    """CONNECT opens a tunnel to this port; a request with a full address is forwarded to it."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def handle(peer: Peer) -> None:
        head = peer.request()
        heads.append(head)
        with socket.create_connection(("127.0.0.1", port)) as onward:
            if head.startswith(b"CONNECT "):
                peer.send(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            else:
                onward.sendall(head.replace(b"http://" + NAME.encode(), b"", 1))
            back = threading.Thread(target=pump, args=(onward, peer.sock), daemon=True)
            back.start()
            pump(peer.sock, onward)
            back.join(WAIT_TIMEOUT)

    return handle


def test_https_uses_a_tunnel_of_the_proxy(
    make_transport: MakeTransport, tls_fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For https the proxy of HTTPS_PROXY gets CONNECT with the name; TLS runs in the tunnel, which
    is reused.
    """
    heads: list[bytes] = []
    with RawServer(proxy(tls_fake.port, heads)) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        transport = make_transport()
        for _ in range(2):
            assert b"echo" in fetch(transport, f"https://{NAME}/v1/models")
        transport.close()
    assert [head.split(b"\r\n")[0] for head in heads] == [b"CONNECT model.invalid:443 HTTP/1.1"]
    assert b"Host: model.invalid:443" in heads[0]
    assert [record.connection for record in tls_fake.requests] == [1, 1]


@pytest.mark.parametrize("spelling", ["127.0.0.1:{}", "http://127.0.0.1:{}/"])
def test_proxy_setting_may_omit_the_scheme(
    make_transport: MakeTransport,
    tls_fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    spelling: str,
) -> None:
    """A proxy may be set in lower case, as a bare HOST:PORT, and with a path."""
    with RawServer(proxy(tls_fake.port, [])) as server:
        monkeypatch.setenv("https_proxy", spelling.format(server.port))
        transport = make_transport()
        assert b"echo" in fetch(transport, f"https://{NAME}/v1/models")
        transport.close()


def test_plain_http_uses_http_proxy(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models without TLS are reached through HTTP_PROXY."""
    heads: list[bytes] = []
    with FakeOpenAI() as fake, RawServer(proxy(fake.port, heads)) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
        transport = make_transport()
        assert b"echo" in fetch(transport, f"http://{NAME}/v1/models")
        transport.close()
        assert len(heads) == 1
        assert len(fake.requests) == 1


def test_proxy_credentials_are_sent_to_the_proxy(
    make_transport: MakeTransport, tls_fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User and password of the proxy's address are sent to it, percent-decoded."""
    heads: list[bytes] = []
    with RawServer(proxy(tls_fake.port, heads)) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:p%40ss@127.0.0.1:{server.port}")
        transport = make_transport()
        fetch(transport, f"https://{NAME}/v1/models")
        transport.close()
    credentials = base64.b64encode(b"anna:p@ss")
    assert b"Proxy-Authorization: Basic " + credentials in heads[0]


@pytest.mark.parametrize("entries", [NAME, f"other.example, {NAME}", ".invalid", "invalid", "*"])
def test_no_proxy_host_or_domain_is_reached_directly(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    """A host in NO_PROXY, or under a domain in it, is reached directly."""
    with RawServer(answering()) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv("NO_PROXY", entries)
        transport = make_transport()
        with pytest.raises(httpx2.ConnectError) as caught:
            get(transport, f"https://{NAME}/v1/models")
        assert isinstance(caught.value.__cause__, socket.gaierror)
        assert server.accepted == 0


def test_proxies_are_read_when_the_transport_is_made(
    make_transport: MakeTransport, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is read when the transport is made, and not at each request."""
    transport = make_transport()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(httpx2.ConnectError) as caught:
        get(transport, f"http://{NAME}/v1/models")
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_loopback_is_reached_without_a_proxy(
    make_transport: MakeTransport, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on localhost is reached directly, without NO_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    transport = make_transport()
    fetch(transport, f"{fake.base_url}/models")
    fetch(transport, f"http://localhost:{fake.port}/v1/models")


def test_proxy_of_a_tunnel_sees_no_key(
    make_transport: MakeTransport, tls_fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy of a tunnel sees a name and a port; key and prompt are inside TLS."""
    heads: list[bytes] = []
    with RawServer(proxy(tls_fake.port, heads)) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        transport = make_transport()
        content = json.dumps({"model": "echo", "messages": [], "stream": True}).encode()
        url, headers = f"https://{NAME}/v1/chat/completions", {"Authorization": "Bearer hush"}
        request = httpx2.Request("POST", url, headers=headers, content=content)
        body = body_of(transport.handle_request(request))
        assert b"[DONE]" in read_all(body)
        body.close()
        transport.close()
    assert b"hush" not in heads[0]
    assert tls_fake.requests[0].headers["authorization"] == "Bearer hush"


@pytest.mark.parametrize("status", [b"403 Forbidden", b"407 Proxy Authentication Required"])
def test_proxy_that_refuses_the_tunnel_is_a_connect_error(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch, status: bytes
) -> None:
    """A refused tunnel is a connect error with the proxy's status, and the socket is closed."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        peer.wait_client_left()

    connection = UpstreamConnection()
    with RawServer(handle) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        transport = make_transport()
        with pytest.raises(httpx2.ConnectError, match=status[:3].decode()):
            get(transport, f"https://{NAME}/v1/models", connection)
        assert connection.wait_closed(0) == "closed"
        server.wait_over(1)


def test_silent_proxy_ends_with_the_connect_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A silent proxy ends with the connect timeout."""
    with RawServer(answering()) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        with pytest.raises(httpx2.ConnectTimeout):
            get(Transport(0.1), f"https://{NAME}/v1/models")
        server.wait_over(1)


def test_interrupt_ends_the_wait_for_a_silent_proxy(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Stop ends the wait for a tunnel, and the connection is closed."""
    requested = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        requested.set()
        peer.wait_client_left()

    connection = UpstreamConnection()
    with RawServer(handle) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        transport = make_transport()
        blocked = BackgroundCall(lambda: get(transport, f"https://{NAME}/v1/models", connection))
        assert requested.wait(WAIT_TIMEOUT)
        connection.interrupt()
        assert isinstance(blocked.end(), httpx2.TransportError)
        assert connection.wait_closed(0) == "closed"


def test_socks_proxy_is_a_connect_error_with_its_name(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SOCKS proxy is refused by name, as an error of connecting."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    transport = make_transport()
    with pytest.raises(httpx2.ConnectError, match="socks5"):
        get(transport, f"https://{NAME}/v1/models")


def test_error_of_the_proxy_is_reported_as_the_proxys(
    make_transport: MakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's fault is reported as the proxy's, not as the model server's."""
    port = free_port()
    for proxy, reason in ((f"http://127.0.0.1:{port}", "refused"), ("socks5://[::1]:9", "socks5")):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        transport = make_transport()
        with pytest.raises(httpx2.ConnectError) as caught:
            get(transport, f"https://{NAME}/v1/models")
        error = to_upstream_error(caught.value, ())
        assert error.code == "upstream_unreachable"
        assert "proxy" in error.message
        assert reason in error.message


@pytest.mark.parametrize(
    ("entries", "host", "port", "is_bypassed"),
    [
        ("192.168.0.0/16", "192.168.1.10", 11434, True),
        ("192.168.0.0/16", "192.169.1.10", 11434, False),
        ("192.168.1.7/16", "192.168.9.9", 80, True),  # with bits set below the mask
        ("10.0.0.0/8,172.16.0.0/12", "172.31.255.1", 80, True),
        ("10.0.0.0/8 172.16.0.0/12", "172.32.0.1", 80, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("[fd00::]/8", "fd12::1", 80, True),
        ("192.168.1.10", "192.168.1.10", 80, True),
        ("192.168.1.10:8080", "192.168.1.10", 8080, True),
        ("192.168.1.10:8080", "192.168.1.10", 80, False),
        ("[fd00::1]:8080", "fd00::1", 8080, True),
        ("fd00::1", "fd00::1", 80, True),
        ("192.168.0.0/16", "::ffff:192.168.1.1", 80, True),
        ("192.168.0.0/16", "name.example", 80, False),  # names are not looked up
        ("example.org", "example.org", 443, True),
        ("example.org", "api.example.org", 443, True),
        (".example.org", "api.example.org", 443, True),
        ("*.example.org", "api.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("Example.ORG", "API.example.org.", 443, True),
        ("example.org", "notexample.org", 443, False),
        ("example.org:8080", "example.org", 8080, True),
        ("example.org:8080", "example.org", 443, False),
        ("*.example.org:8080", "api.example.org", 8080, True),
        ("a, b ,example.org", "example.org", 443, True),
        ("*", "anything.example", 443, True),
        ("*:8080", "anything.example", 443, False),
        ("", "example.org", 443, False),
        (",,", "example.org", 443, False),
        (".", "example.org", 443, False),
        ("300.1.1.0/24", "example.org", 443, False),
    ],
)
def test_bypasses_proxy_matches_hosts_domains_ranges_and_ports(
    entries: str, host: str, port: int, is_bypassed: bool
) -> None:
    """Entries of NO_PROXY match as in other programs, ports included."""
    assert bypasses_proxy(entries, host, port) is is_bypassed


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://192.168.1.10:11434/v1", None),
        ("http://10.0.0.1/v1", "http://proxy.example:8080"),
        ("https://api.example.org/v1", "http://secure.example:3129"),
        ("https://inside.example.org/v1", None),
        ("http://127.0.0.2:1/v1", None),
        ("http://localhost/v1", None),
        ("http://[::1]:8080/v1", None),
    ],
)
def test_proxy_for_returns_the_proxy_without_credentials(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None
) -> None:
    """The proxy of an address is returned without its user name and password."""
    monkeypatch.setenv("HTTP_PROXY", "http://anna:secret@proxy.example:8080/")
    monkeypatch.setenv("HTTPS_PROXY", "secure.example:3129")
    monkeypatch.setenv("NO_PROXY", "192.168.0.0/16, inside.example.org")
    assert proxy_for(url) == proxy
