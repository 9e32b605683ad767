"""An interrupt reaches a request in every phase, and never another request's connection.

Each phase brings a request to the point at which it blocks; then the request is interrupted.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from halt.core.connection import UpstreamConnection
from halt.errors import Interrupted
from halt.testing.fake_openai import FakeOpenAI
from halt.transport.pool import Transport
from tests.support.races import together
from tests.support.raw_server import CHUNKED, HELLO, Peer, RawServer, answering
from tests.support.transport_calls import body_of, fetch, get, read_all
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

LONG = 60.0  # seconds to connect: none of these tests waits for it
SYN_SENT = 2  # TCP_INFO's first byte while a connection is being made
REPEATS = 100


class WatchedConnection(UpstreamConnection):
    """A connection that tells when a socket is attached to it."""

    def __init__(self) -> None:
        super().__init__()
        self.attached = threading.Event()
        self.sockets: list[socket.socket] = []

    def attach(self, sock: socket.socket, *, connected: bool = True) -> None:
        super().attach(sock, connected=connected)
        self.sockets.append(sock)
        self.attached.set()


class HastyConnection(UpstreamConnection):
    """A connection that is interrupted when its n-th socket is attached, before its use."""

    def __init__(self, after: int = 1) -> None:
        super().__init__()
        self._after = after

    def attach(self, sock: socket.socket, *, connected: bool = True) -> None:
        super().attach(sock, connected=connected)
        self._after -= 1
        if not self._after:
            self.interrupt()


@pytest.fixture(scope="session")
def context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


@pytest.fixture
def transport(context: ssl.SSLContext) -> Iterator[Transport]:
    made = Transport(LONG, context)
    yield made
    made.close()


# --- every phase ----------------------------------------------------------------------------------

#: Brings a request on this connection to where it blocks; the call that blocks, in the background.
Phase = Callable[[Transport, WatchedConnection, contextlib.ExitStack], BackgroundCall]


def connecting(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    url = stack.enter_context(FakeOpenAI.unaccepting())
    blocked = BackgroundCall(lambda: get(transport, url, connection))
    assert connection.attached.wait(WAIT_TIMEOUT)
    sock = connection.sockets[0]
    if hasattr(socket, "TCP_INFO"):  # Linux; elsewhere the interrupt may come a little earlier
        wait_until(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) & 0xFF == SYN_SENT)
    return blocked


def greeting(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """The TLS handshake, with a server that takes our hello and says nothing."""
    heard = threading.Event()

    def handle(peer: Peer) -> None:
        peer.sock.recv(1)
        heard.set()
        peer.see_leave()

    server = stack.enter_context(RawServer(handle))
    blocked = BackgroundCall(
        lambda: get(transport, server.url.replace("http:", "https:"), connection)
    )
    assert heard.wait(WAIT_TIMEOUT)
    return blocked


def asking(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """Waiting for headers."""
    heard = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        heard.set()
        peer.see_leave()

    server = stack.enter_context(RawServer(handle))
    blocked = BackgroundCall(lambda: get(transport, server.url, connection))
    assert heard.wait(WAIT_TIMEOUT)
    return blocked


def between_bytes(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """In the middle of a chunk."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"ff\r\nsome")
        peer.see_leave()

    server = stack.enter_context(RawServer(handle))
    body = body_of(get(transport, server.url, connection))
    stack.callback(body.close)
    assert body.read() == b"some"

    def read() -> None:
        try:
            read_all(body)
        finally:
            body.close()

    return BackgroundCall(read)


PHASES = [connecting, greeting, asking, between_bytes]


def receipt(phase: Phase) -> str:
    """What is said of the connection that an interrupt in this phase ends."""
    return "none" if phase is connecting else "closed"


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_wakes_whoever_blocks(transport: Transport, phase: Phase) -> None:
    """In every phase the blocked thread comes back at once, with an error, and all is closed."""
    with contextlib.ExitStack() as stack:
        connection = WatchedConnection()
        blocked = phase(transport, connection, stack)
        assert connection.wait_closed(0) == "closing"
        connection.interrupt()
        assert isinstance(blocked.end(), (httpx2.TransportError, Interrupted))
        assert connection.wait_closed(0) == receipt(phase)
        assert connection.interrupted
        assert [sock.fileno() for sock in connection.sockets] == [-1] * len(connection.sockets)


@pytest.mark.parametrize("phase", PHASES)
def test_interrupting_again_is_harmless(transport: Transport, phase: Phase) -> None:
    """Law: any number of interrupts at any time do what one does."""
    with contextlib.ExitStack() as stack:
        connection = WatchedConnection()
        blocked = phase(transport, connection, stack)
        together(*[connection.interrupt] * 3)
        blocked.end()
        connection.interrupt()
        assert connection.wait_closed(0) == receipt(phase)


# --- before and after -----------------------------------------------------------------------------


def test_nothing_is_sent_after_an_interrupt(transport: Transport, fake: FakeOpenAI) -> None:
    """A Stop that comes first is kept: no connection is made for the run, no request is sent."""
    connection = UpstreamConnection()
    connection.interrupt()
    with pytest.raises(Interrupted):
        get(transport, f"{fake.base_url}/models", connection)
    assert (fake.requests, fake.open_connections) == ([], 0)
    assert connection.wait_closed(0) == "none"


def test_nothing_is_sent_on_a_kept_connection_either(
    transport: Transport, fake: FakeOpenAI
) -> None:
    """The same where a connection is there already."""
    url = f"{fake.base_url}/models"
    fetch(transport, url)
    connection = UpstreamConnection()
    connection.interrupt()
    with pytest.raises(Interrupted):
        get(transport, url, connection)
    assert len(fake.requests) == 1


def test_a_stop_as_the_socket_is_made_is_heard(transport: Transport) -> None:
    """An interrupt between the making of a socket and its connecting ends that connecting too."""
    with FakeOpenAI.unaccepting() as url:
        blocked = BackgroundCall(lambda: get(transport, url, HastyConnection()))
        blocked.join(WAIT_TIMEOUT)
        assert not blocked.is_alive(), "it connects for as long as it may"
    assert isinstance(blocked.fault, (httpx2.TransportError, Interrupted))


def test_a_stop_as_tls_begins_is_heard() -> None:
    """An interrupt just as TLS takes over the socket: nothing blocks, the receipt says closed."""
    connection = UpstreamConnection()

    class Context(ssl.SSLContext):
        def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
            wrapped = super().wrap_socket(*args, **options)
            connection.interrupt()
            return wrapped

    transport = Transport(LONG, Context(ssl.PROTOCOL_TLS_CLIENT))
    with RawServer(answering()) as server:
        blocked = BackgroundCall(
            lambda: get(transport, server.url.replace("http:", "https:"), connection)
        )
        assert isinstance(blocked.end(), (httpx2.TransportError, Interrupted))
        server.wait_over(1)
    assert connection.wait_closed(0) == "closed"


def test_an_interrupt_after_the_end_is_harmless_to_others(transport: Transport) -> None:
    """A connection that was given back serves another run; the old handle cannot reach it."""
    go_on = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()
        peer.send(CHUNKED, b"5\r\nhello\r\n")
        go_on.wait(WAIT_TIMEOUT)
        peer.send(b"6\r\n world\r\n0\r\n\r\n")
        peer.see_leave()

    with RawServer(handle) as server:
        old = UpstreamConnection()
        assert fetch(transport, server.url, old) == b"hello"
        assert old.wait_closed(0) == "none"
        body = body_of(get(transport, server.url))
        assert body.read() == b"hello"
        old.interrupt()
        go_on.set()
        assert read_all(body) == b" world"
        body.close()
        assert server.accepted == 1


def test_the_end_against_an_interrupt(transport: Transport) -> None:
    """Law: an interrupt at the moment of the end closes the connection or misses it; never both.

    Whichever it was, the next run gets a connection that works.
    """
    with RawServer(answering(*[HELLO] * (2 * REPEATS))) as server:
        for _ in range(REPEATS):
            connection = UpstreamConnection()
            body = body_of(get(transport, server.url, connection))
            assert body.read() == b"hello"
            together(body.close, connection.interrupt)
            assert connection.wait_closed(0) in {"closed", "none"}
            assert fetch(transport, server.url) == b"hello"


def test_a_replaced_connection_is_interrupted_too(transport: Transport) -> None:
    """When a kept connection was stale, the line is found on the one that took its place."""
    heard = threading.Event()

    def first(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()

    def second(peer: Peer) -> None:
        peer.request()
        heard.set()
        peer.see_leave()

    with RawServer(first, second) as server:
        fetch(transport, server.url)
        connection = UpstreamConnection()
        blocked = BackgroundCall(lambda: get(transport, server.url, connection))
        assert heard.wait(WAIT_TIMEOUT)
        connection.interrupt()
        assert isinstance(blocked.end(), httpx2.ReadError)
        assert connection.wait_closed(0) == "closed"


def test_a_stop_is_never_followed_by_a_second_attempt(transport: Transport) -> None:
    """A reused connection that ends because of the interrupt is not taken for a stale one."""
    heard = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()
        heard.set()
        peer.see_leave()

    with RawServer(handle) as server:
        fetch(transport, server.url)
        connection = UpstreamConnection()
        blocked = BackgroundCall(lambda: get(transport, server.url, connection))
        assert heard.wait(WAIT_TIMEOUT)
        connection.interrupt()
        assert blocked.end() is not None
        assert server.accepted == 1


# --- receipts -------------------------------------------------------------------------------------


def test_receipts_say_what_was_seen(transport: Transport) -> None:
    """None before and after, closing while it is open, closed when it is closed."""
    connection = UpstreamConnection()
    assert connection.wait_closed(0) == "none"
    with RawServer(answering(HELLO)) as server:
        body = body_of(get(transport, server.url, connection))
        assert connection.wait_closed(0) == "closing"
        connection.interrupt()
        assert connection.wait_closed(0) == "closing"  # nobody has seen it closed yet
        body.close()
        assert connection.wait_closed(0) == "closed"


def test_a_refused_connection_was_never_open(transport: Transport) -> None:
    """The receipt of a connection that the peer refuses is none: nothing was there to be closed."""
    connection = UpstreamConnection()
    with socket.socket() as bound:  # it does not listen
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(httpx2.ConnectError):
            get(transport, f"http://127.0.0.1:{bound.getsockname()[1]}", connection)
    assert connection.wait_closed(0) == "none"


def test_a_refused_attempt_hides_an_earlier_connection(transport: Transport) -> None:
    """The receipt is about the last attempt: one that was refused is none, whatever came before."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO)) as server:
        body_of(get(transport, server.url, connection)).close()
        assert connection.wait_closed(0) == "closed"
    with pytest.raises(httpx2.ConnectError):
        get(transport, server.url, connection)
    assert connection.wait_closed(0) == "none"


def test_a_connection_in_the_pool_is_not_closed(transport: Transport) -> None:
    """A run whose first connection was closed and whose second serves others says none."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO), answering(HELLO)) as server:
        body_of(get(transport, server.url, connection)).close()
        assert connection.wait_closed(0) == "closed"
        assert fetch(transport, server.url, connection) == b"hello"
        assert connection.wait_closed(0) == "none"


def test_a_receipt_waits_for_the_close(transport: Transport) -> None:
    """Whoever waits for the receipt learns of the close as it happens."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO)) as server:
        body = body_of(get(transport, server.url, connection))
        waiting = BackgroundCall(partial(connection.wait_closed, WAIT_TIMEOUT))
        connection.interrupt()
        body.close()
        assert waiting.end(WAIT_TIMEOUT / 2) is None
        assert waiting.result == "closed"


def test_what_was_closed_is_read_no_more(transport: Transport) -> None:
    """Reading a body that was closed is an error, never a read of another's socket."""
    with RawServer(answering(HELLO[:-5])) as server:
        body = body_of(get(transport, server.url))
        body.close()
        with pytest.raises(httpx2.ReadError):
            body.read()
        with pytest.raises(OSError, match="closed"):
            body.fileno()
        body.close()
