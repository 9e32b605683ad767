"""The handle on one run's connection to its provider, which any thread can interrupt.

The opening thread passes an `UpstreamConnection` to `use_connection`. Each socket that is opened or
reused for the run is attached to it before a call blocks on the socket, so that
`UpstreamConnection.interrupt` works in every phase:

    connecting, TLS handshake,          -> socket shutdown, the blocked thread wakes at once
    waiting for headers, between bytes
    looking up a name (nothing can      -> the next socket is refused, nothing is sent
    wake the resolver)
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from halt.core.via import Chain
from halt.errors import Interrupted

TICK = 1.0  # seconds of silence after which a read returns to its caller


class NoData(Exception):
    """No data has arrived within TICK seconds or, on a non-blocking socket, so far."""


class UpstreamConnection:
    """One run's connection, for the thread that uses it and the threads that may interrupt it.

    The lock keeps shutdown and close apart: no thread uses a file descriptor after it was closed,
    when the system may have given its number to another stream.
    """

    def __init__(self, chain: Chain = (), person: str = "") -> None:
        """`chain`: the marks of the Halts that the client's request has passed (see `via`).

        `person`: the ID of the person whose run this is, "" for nobody.
        """
        self.chain = chain
        self.person = person
        #: The upstream of the run's first request, and the model's name there. Further requests go
        #: the same way, also after the provider was changed or removed. Only the opening thread
        #: uses it.
        self.route: tuple[Any, str | None] | None = None
        self._changed = threading.Condition(threading.Lock())  # protects the four below
        self._socket: socket.socket | None = None
        self._connected = False  # the peer has accepted that socket
        self._closed = False  # the last socket was closed after the peer had accepted it
        self.interrupted = False

    def attach(self, sock: socket.socket, *, connected: bool = True) -> None:
        """Use this socket from now on. Raises Interrupted after an interrupt.

        `connected`: the peer has accepted the socket. Pass False before connecting, and call
        `connected` afterwards.
        """
        with self._changed:
            if self.interrupted:
                raise Interrupted("stopped while the connection was being made")
            self._socket, self._connected, self._closed = sock, connected, False

    def connected(self) -> None:
        """Note that the peer has accepted the socket: `wait_closed` now reports its close."""
        with self._changed:
            self._connected = True

    def detach(self) -> None:
        """Forget the socket, without closing it: another run may reuse it."""
        with self._changed:
            self._socket = None
            self._changed.notify_all()

    def close(self, sock: socket.socket) -> None:
        """Close a socket of this run."""
        with self._changed:
            self._socket = None  # a run has one connection at a time; TLS replaces the object
            self._closed, self._connected = self._connected, False
            sock.close()
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Shut the socket down: the thread blocked on it wakes, the peer sees it. Idempotent."""
        with self._changed:
            self.interrupted = True
            if self._socket is not None:
                # Not SSLSocket.shutdown: that one drops the TLS layer under the reading thread.
                with contextlib.suppress(OSError):  # not connected yet, or gone already
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def wait_closed(self, timeout: float) -> str:
        """Wait at most `timeout` seconds for the connection's end: "closed", "closing" or "none".

        "closing": not closed in time. "none": the peer has accepted no connection, or its answer
        was complete and other runs may reuse the connection.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._socket is None, timeout):
                return "closing"
            return "closed" if self._closed else "none"


_connection: ContextVar[UpstreamConnection | None] = ContextVar("halt_connection", default=None)


def current_connection() -> UpstreamConnection:
    """The connection for requests of this thread; outside `use_connection` a new one."""
    return _connection.get() or UpstreamConnection()


@contextlib.contextmanager
def use_connection(connection: UpstreamConnection) -> Iterator[None]:
    """Context manager: requests made inside use `connection`."""
    token = _connection.set(connection)
    try:
        yield
    finally:
        _connection.reset(token)


@contextlib.contextmanager
def limited_connection(
    seconds: float, chain: Chain = (), person: str = ""
) -> Iterator[UpstreamConnection]:
    """Context manager: requests made inside use the result, interrupted after `seconds`."""
    connection = UpstreamConnection(chain, person)
    limit = threading.Timer(seconds, connection.interrupt)
    limit.daemon = True
    limit.start()
    try:
        with use_connection(connection):
            yield connection
    finally:
        limit.cancel()
