"""A server that writes its responses as bytes, for responses that no correct server sends.

A `Handler` serves one accepted connection with a `Peer`: it reads a request, sends bytes, waits
for the client to leave. `RawServer` gives the first connection to the first handler, and so on;
the last handler serves all further connections.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

from tests.support.waiting import WAIT_TIMEOUT

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def receive_until(client: socket.socket, end: bytes) -> bytes:
    """Read from the server until the data ends with these bytes; return the data."""
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
        """The next request's head and body; b"" if the client has left."""
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

    def wait_client_left(self) -> bool:
        """Wait until the client has closed its end; False after WAIT_TIMEOUT."""
        self.sock.settimeout(WAIT_TIMEOUT)
        try:
            while self.sock.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass  # a reset closes the connection too
        return True

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(65_536)
        except OSError:
            return False
        self.received += data
        return bool(data)


Handler = Callable[[Peer], None]


def answering(*responses: bytes) -> Handler:
    """One response for each request, then wait for the client to leave."""

    def handle(peer: Peer) -> None:
        for response in responses:
            if not peer.request():
                return
            peer.send(response)
        peer.wait_client_left()

    return handle


class RawServer:
    """A server on a port of this machine (0: a free one); the `with` block ends it."""

    def __init__(self, *handlers: Handler, port: int = 0, host: str = "127.0.0.1") -> None:
        self._handlers = handlers
        self._changed = threading.Condition()  # protects the figures below
        self.accepted = 0  # connections
        self.over = 0  # connections whose handler has returned
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}/v1"
        self._accepting = threading.Thread(target=self._accept, name="raw-server", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(WAIT_TIMEOUT)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_TIMEOUT)

    def wait_over(self, count: int) -> None:
        """Wait until at least `count` connections have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.over >= count, WAIT_TIMEOUT), self.over

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
