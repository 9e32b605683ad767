"""Hand-made servers for what no well-behaved server does, and short words for a Transport's use.

A `Handler` is the life of one accepted connection, written with a `Peer`: read a request, send
bytes, see the client leave. `HandMade` gives the first connection to the first handler, and so on;
the last one serves all that follow.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

import httpx2

from halt.core.connection import NoData, UpstreamConnection, use_connection
from halt.transport.http1 import Body
from halt.transport.pool import Transport

SOON = 10.0  # seconds; whatever waits this long has failed

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def received(client: socket.socket, end: bytes) -> bytes:
    """What a client gets up to these bytes, with which a piece of it must end."""
    data = bytearray()
    while not data.endswith(end):
        part = client.recv(65_536)
        assert part, bytes(data[-200:])
        data += part
    return bytes(data)


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""

    def request(self) -> bytes:
        """The next request's head and body; b"" when the client has left."""
        while b"\r\n\r\n" not in self.received:
            if not self._receive():
                return b""
        head, _, _ = self.received.partition(b"\r\n\r\n")
        size = len(head) + 4
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size += int(line.partition(b":")[2])
        while len(self.received) < size:
            if not self._receive():
                return b""
        request, self.received = self.received[:size], self.received[size:]
        return request

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def see_leave(self) -> bool:
        """Wait until the client has closed its end."""
        self.sock.settimeout(SOON)
        try:
            while self.sock.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass  # a reset is a way to leave, too
        return True

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(65_536)
        except OSError:
            return False
        self.received += data
        return bool(data)


Handler = Callable[[Peer], None]


def answer(*responses: bytes) -> Handler:
    """One response for each request, then wait for the client to leave."""

    def handle(peer: Peer) -> None:
        for response in responses:
            if not peer.request():
                return
            peer.send(response)
        peer.see_leave()

    return handle


class HandMade:
    """A server on a port of 127.0.0.1, a free one by default, for the duration of a `with`."""

    def __init__(self, *handlers: Handler, port: int = 0) -> None:
        self._handlers = handlers
        self._changed = threading.Condition()  # protects the figures below
        self.accepted = 0  # connections
        self.over = 0  # connections whose handler has returned
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._accepting = threading.Thread(target=self._accept, name="hand-made", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(SOON)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SOON)

    def wait_over(self, count: int) -> None:
        """Wait until so many connections have come to their end."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.over >= count, SOON), self.over

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            handler = self._handlers[min(self.accepted, len(self._handlers) - 1)]
            self.accepted += 1
            peer = Peer(sock)
            self._peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer, handler), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: Peer, handler: Handler) -> None:
        try:
            with contextlib.suppress(OSError):
                handler(peer)
        finally:
            peer.sock.close()
            with self._changed:
                self.over += 1
                self._changed.notify_all()


def get(
    transport: Transport, url: str, connection: UpstreamConnection | None = None
) -> httpx2.Response:
    """Send a GET request on a connection; the response with its body still to come."""
    with use_connection(connection or UpstreamConnection()):
        return transport.handle_request(httpx2.Request("GET", url))


def body_of(response: httpx2.Response) -> Body:
    body = response.extensions["halt.body"]
    assert isinstance(body, Body)
    return body


def read_all(body: Body) -> bytes:
    """Everything up to the body's end, through ticks of silence."""
    out: list[bytes] = []
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        with contextlib.suppress(NoData):
            data = body.read()
            if not data:
                return b"".join(out)
            out.append(data)
    raise TimeoutError(f"the body does not end; so far: {b''.join(out)[:200]!r}")


def fetch(transport: Transport, url: str, connection: UpstreamConnection | None = None) -> bytes:
    """A GET request from its beginning to its end."""
    body = body_of(get(transport, url, connection))
    try:
        return read_all(body)
    finally:
        body.close()


class Background(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(name="background", daemon=True)
        self._body = body
        self.result: object = None
        self.fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._body()
        except BaseException as fault:  # noqa: BLE001 - the test looks at it
            self.fault = fault

    def end(self, within: float = SOON) -> BaseException | None:
        """Wait for its end; what it raised, if anything."""
        self.join(within)
        assert not self.is_alive(), "it blocks still"
        return self.fault


def until(true: Callable[[], bool]) -> None:
    """Return when something that tells nobody of its change has become true."""
    deadline, never = time.monotonic() + SOON, threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it does not become true"
        never.wait(0.001)
