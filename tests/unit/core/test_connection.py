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

LONG = 60.0  # connect timeout in seconds; no test waits that long
SYN_SENT = 2  # TCP_INFO's first byte while a connection is being made
REPEATS = 100


class WatchedConnection(UpstreamConnection):
    """A connection that sets `attached` when a socket is attached to it."""

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

    def __init__(self, socket_count: int = 1) -> None:
        super().__init__()
        self._remaining_sockets = socket_count

    def attach(self, sock: socket.socket, *, connected: bool = True) -> None:
        super().attach(sock, connected=connected)
        self._remaining_sockets -= 1
        if not self._remaining_sockets:
            self.interrupt()


@pytest.fixture(scope="session")
def context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


@pytest.fixture
def transport(context: ssl.SSLContext) -> Iterator[Transport]:
    transport = Transport(LONG, context)
    yield transport
    transport.close()


# --- every phase ----------------------------------------------------------------------------------

#: Starts a request on this connection and returns once it blocks: the blocked call's thread.
Phase = Callable[[Transport, WatchedConnection, contextlib.ExitStack], BackgroundCall]


def block_in_connect(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    url = stack.enter_context(FakeOpenAI.unaccepting())
    call = BackgroundCall(lambda: get(transport, url, connection))
    assert connection.attached.wait(WAIT_TIMEOUT)
    sock = connection.sockets[0]
    if hasattr(socket, "TCP_INFO"):  # Linux; elsewhere the interrupt may come a little earlier
        wait_until(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) & 0xFF == SYN_SENT)
    return call


def block_in_handshake(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """In the TLS handshake, with a server that reads the hello and sends nothing."""
    has_received = threading.Event()

    def handle(peer: Peer) -> None:
        peer.sock.recv(1)
        has_received.set()
        peer.wait_client_left()

    server = stack.enter_context(RawServer(handle))
    call = BackgroundCall(lambda: get(transport, server.url.replace("http:", "https:"), connection))
    assert has_received.wait(WAIT_TIMEOUT)
    return call


def block_before_head(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """Waiting for the response's head."""
    has_received = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        has_received.set()
        peer.wait_client_left()

    server = stack.enter_context(RawServer(handle))
    call = BackgroundCall(lambda: get(transport, server.url, connection))
    assert has_received.wait(WAIT_TIMEOUT)
    return call


def block_in_body(
    transport: Transport, connection: WatchedConnection, stack: contextlib.ExitStack
) -> BackgroundCall:
    """In the middle of a chunk."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"ff\r\nsome")
        peer.wait_client_left()

    server = stack.enter_context(RawServer(handle))
    body = body_of(get(transport, server.url, connection))
    stack.callback(body.close)
    assert body.read() == b"some"

    def read_body() -> None:
        try:
            read_all(body)
        finally:
            body.close()

    return BackgroundCall(read_body)


PHASES = [block_in_connect, block_in_handshake, block_before_head, block_in_body]


def receipt(phase: Phase) -> str:
    """The receipt for a connection that an interrupt in this phase ends."""
    return "none" if phase is block_in_connect else "closed"


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_wakes_the_blocked_thread(transport: Transport, phase: Phase) -> None:
    """In every phase an interrupt ends the blocked call with an error, and all sockets are closed."""
    with contextlib.ExitStack() as stack:
        connection = WatchedConnection()
        call = phase(transport, connection, stack)
        assert connection.wait_closed(0) == "closing"
        connection.interrupt()
        assert isinstance(call.end(), (httpx2.TransportError, Interrupted))
        assert connection.wait_closed(0) == receipt(phase)
        assert connection.interrupted
        assert [sock.fileno() for sock in connection.sockets] == [-1] * len(connection.sockets)


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_repeated_has_the_effect_of_one(transport: Transport, phase: Phase) -> None:
    """Property: any number of interrupts at any time do what one does."""
    with contextlib.ExitStack() as stack:
        connection = WatchedConnection()
        call = phase(transport, connection, stack)
        together(*[connection.interrupt] * 3)
        call.end()
        connection.interrupt()
        assert connection.wait_closed(0) == receipt(phase)


# --- before and after -----------------------------------------------------------------------------


def test_interrupt_before_the_request_sends_nothing(transport: Transport, fake: FakeOpenAI) -> None:
    """After an interrupt no connection is made for the run and no request is sent."""
    connection = UpstreamConnection()
    connection.interrupt()
    with pytest.raises(Interrupted):
        get(transport, f"{fake.base_url}/models", connection)
    assert (fake.requests, fake.open_connections) == ([], 0)
    assert connection.wait_closed(0) == "none"


def test_interrupt_before_the_request_sends_nothing_on_a_pooled_connection(
    transport: Transport, fake: FakeOpenAI
) -> None:
    """After an interrupt a pooled connection is not used for the request either."""
    url = f"{fake.base_url}/models"
    fetch(transport, url)
    connection = UpstreamConnection()
    connection.interrupt()
    with pytest.raises(Interrupted):
        get(transport, url, connection)
    assert len(fake.requests) == 1


def test_interrupt_between_socket_and_connect_ends_the_connect(transport: Transport) -> None:
    """An interrupt between the attach and the connect of a socket ends the connect too.

    The receipt says that no connection was accepted, and so none was closed.
    """
    connection = HastyConnection()
    with FakeOpenAI.unaccepting() as url:
        call = BackgroundCall(lambda: get(transport, url, connection))
        call.join(WAIT_TIMEOUT)
        assert not call.is_alive(), "it connects until the connect timeout"
    assert isinstance(call.fault, (httpx2.TransportError, Interrupted))
    assert connection.wait_closed(0) == "none"


def test_interrupt_at_the_start_of_tls_closes_the_connection() -> None:
    """An interrupt as TLS takes over the socket: nothing blocks, and the receipt says closed."""
    connection = UpstreamConnection()

    class Context(ssl.SSLContext):
        def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
            tls_socket = super().wrap_socket(*args, **options)
            connection.interrupt()
            return tls_socket

    transport = Transport(LONG, Context(ssl.PROTOCOL_TLS_CLIENT))
    with RawServer(answering()) as server:
        call = BackgroundCall(
            lambda: get(transport, server.url.replace("http:", "https:"), connection)
        )
        assert isinstance(call.end(), (httpx2.TransportError, Interrupted))
        server.wait_over(1)
    assert connection.wait_closed(0) == "closed"


def test_interrupt_after_the_end_does_not_reach_the_next_run(transport: Transport) -> None:
    """An interrupt on an ended run's handle leaves its pooled connection to the next run."""
    may_continue = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()
        peer.send(CHUNKED, b"5\r\nhello\r\n")
        may_continue.wait(WAIT_TIMEOUT)
        peer.send(b"6\r\n world\r\n0\r\n\r\n")
        peer.wait_client_left()

    with RawServer(handle) as server:
        old = UpstreamConnection()
        assert fetch(transport, server.url, old) == b"hello"
        assert old.wait_closed(0) == "none"
        body = body_of(get(transport, server.url))
        assert body.read() == b"hello"
        old.interrupt()
        may_continue.set()
        assert read_all(body) == b" world"
        body.close()
        assert server.accepted == 1


def test_interrupt_racing_the_end_closes_the_connection_or_misses_it(transport: Transport) -> None:
    """Property: an interrupt at the moment of the end closes the connection or misses it; the next
    run gets a connection that works.
    """
    with RawServer(answering(*[HELLO] * (2 * REPEATS))) as server:
        for _ in range(REPEATS):
            connection = UpstreamConnection()
            body = body_of(get(transport, server.url, connection))
            assert body.read() == b"hello"
            together(body.close, connection.interrupt)
            assert connection.wait_closed(0) in {"closed", "none"}
            assert fetch(transport, server.url) == b"hello"


def test_interrupt_reaches_the_connection_that_replaced_a_stale_one(transport: Transport) -> None:
    """When a pooled connection was stale, an interrupt ends the new connection in its place."""
    received = threading.Event()

    def first(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()

    def second(peer: Peer) -> None:
        peer.request()
        received.set()
        peer.wait_client_left()

    with RawServer(first, second) as server:
        fetch(transport, server.url)
        connection = UpstreamConnection()
        call = BackgroundCall(lambda: get(transport, server.url, connection))
        assert received.wait(WAIT_TIMEOUT)
        connection.interrupt()
        assert isinstance(call.end(), httpx2.ReadError)
        assert connection.wait_closed(0) == "closed"


def test_interrupt_on_a_reused_connection_causes_no_second_attempt(transport: Transport) -> None:
    """A reused connection that ends by an interrupt is not retried as a stale one."""
    received = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()
        received.set()
        peer.wait_client_left()

    with RawServer(handle) as server:
        fetch(transport, server.url)
        connection = UpstreamConnection()
        call = BackgroundCall(lambda: get(transport, server.url, connection))
        assert received.wait(WAIT_TIMEOUT)
        connection.interrupt()
        assert call.end() is not None
        assert server.accepted == 1


# --- receipts -------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing_server() -> Iterator[str]:
    """The URL of a port that refuses connections: its socket is bound and does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_receipt_is_none_then_closing_then_closed(transport: Transport) -> None:
    """The receipt is none before the connection, closing while it is open, closed after its close."""
    connection = UpstreamConnection()
    assert connection.wait_closed(0) == "none"
    with RawServer(answering(HELLO)) as server:
        body = body_of(get(transport, server.url, connection))
        assert connection.wait_closed(0) == "closing"
        connection.interrupt()
        assert connection.wait_closed(0) == "closing"  # no thread has closed it yet
        body.close()
        assert connection.wait_closed(0) == "closed"


def test_receipt_of_a_refused_connection_is_none(transport: Transport) -> None:
    """A connection that the peer refuses was never open: the receipt is none."""
    connection = UpstreamConnection()
    with refusing_server() as url, pytest.raises(httpx2.ConnectError):
        get(transport, url, connection)
    assert connection.wait_closed(0) == "none"


def test_receipt_is_that_of_the_last_attempt(transport: Transport) -> None:
    """A refused last attempt gives none, also after an earlier connection that was closed."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO)) as server:
        body_of(get(transport, server.url, connection)).close()
        assert connection.wait_closed(0) == "closed"
    with refusing_server() as url, pytest.raises(httpx2.ConnectError):
        get(transport, url, connection)
    assert connection.wait_closed(0) == "none"


def test_receipt_of_a_pooled_connection_is_none(transport: Transport) -> None:
    """A run whose first connection was closed and whose second went to the pool gets none."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO), answering(HELLO)) as server:
        body_of(get(transport, server.url, connection)).close()
        assert connection.wait_closed(0) == "closed"
        assert fetch(transport, server.url, connection) == b"hello"
        assert connection.wait_closed(0) == "none"


def test_receipt_wait_returns_at_the_close(transport: Transport) -> None:
    """A thread that waits for the receipt gets closed as soon as the connection is closed."""
    connection = UpstreamConnection()
    with RawServer(answering(HELLO)) as server:
        body = body_of(get(transport, server.url, connection))
        waiting_call = BackgroundCall(partial(connection.wait_closed, WAIT_TIMEOUT))
        connection.interrupt()
        body.close()
        assert waiting_call.end(WAIT_TIMEOUT / 2) is None
        assert waiting_call.result == "closed"


def test_closed_body_read_is_an_error(transport: Transport) -> None:
    """Reading a closed body is an error, never a read of another socket."""
    with RawServer(answering(HELLO[:-5])) as server:
        body = body_of(get(transport, server.url))
        body.close()
        with pytest.raises(httpx2.ReadError):
            body.read()
        with pytest.raises(OSError, match="closed"):
            body.fileno()
        body.close()
