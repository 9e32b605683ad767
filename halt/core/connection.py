"""One run's handle on its connection, which any thread can interrupt in any phase.

The opening thread puts a `Line` into `on_line`, and each socket that is opened or reused for the
run is attached to it before anything blocks on it. So `Line.interrupt` finds the socket in every
phase:

    connecting, TLS handshake,          -> socket shutdown, the blocked thread wakes at once
    waiting for headers, between bytes
    looking up a name (nothing can      -> the socket that would follow is refused,
    wake the resolver)                     nothing is sent
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from halt.core.via import Chain
from halt.errors import Interrupted

TICK = 1.0  # seconds of silence after which a read returns to its caller


class Quiet(Exception):
    """Nothing has arrived: for TICK seconds, or, where the socket does not block, by now."""


class Line:
    """One run's connection, as seen by the threads that may interrupt it.

    The lock makes shutdown and close exclude each other: a socket's number is never used after it
    was given back to the system, when it may belong to another stream already.
    """

    def __init__(self, chain: Chain = ()) -> None:
        """`chain`: the marks of the Halts that the request behind the run has passed."""
        self.chain = chain
        self._changed = threading.Condition(threading.Lock())  # protects the four below
        self._socket: socket.socket | None = None
        self._connected = False  # the peer has accepted that socket
        self._closed = False  # the last socket was closed after the peer had accepted it
        self.interrupted = False

    def attach(self, sock: socket.socket, *, connected: bool = True) -> None:
        """Run on this socket from now on. Raises Interrupted after an interrupt.

        `connected`: the peer has accepted it. For one that is about to connect it is False, and
        `connected` is called afterwards.
        """
        with self._changed:
            if self.interrupted:
                raise Interrupted("stopped while the connection was being made")
            self._socket, self._connected, self._closed = sock, connected, False

    def connected(self) -> None:
        """The peer has accepted the socket: from now on a close is the close of a connection."""
        with self._changed:
            self._connected = True

    def detach(self) -> None:
        """The socket is healthy and goes to another run; an interrupt must not find it here."""
        with self._changed:
            self._socket = None
            self._changed.notify_all()

    def close(self, sock: socket.socket) -> None:
        """Close a socket of this line."""
        with self._changed:
            self._socket = None  # a line has one connection at a time; TLS replaces its object
            self._closed, self._connected = self._connected, False
            sock.close()
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Wake the thread that blocks on the connection, and tell the peer. May be repeated."""
        with self._changed:
            self.interrupted = True
            if self._socket is not None:
                # Not SSLSocket.shutdown: that one drops the TLS layer under the reading thread.
                with contextlib.suppress(OSError):  # not connected yet, or gone already
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def wait_closed(self, timeout: float) -> str:
        """Wait at most `timeout` seconds for the connection's end: "closed", "closing" or "none".

        "closing": not closed by then. "none": the peer has accepted no connection, or its answer
        was complete and it serves other runs.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._socket is None, timeout):
                return "closing"
            return "closed" if self._closed else "none"


_line: ContextVar[Line | None] = ContextVar("halt_line", default=None)


def current_line() -> Line:
    """The line that requests made here run on; outside `on_line` a new one."""
    return _line.get() or Line()


@contextlib.contextmanager
def on_line(line: Line) -> Iterator[None]:
    """Requests made inside run on `line`."""
    token = _line.set(line)
    try:
        yield
    finally:
        _line.reset(token)


@contextlib.contextmanager
def limited(seconds: float, chain: Chain = ()) -> Iterator[Line]:
    """Requests made inside run on this line and are interrupted after so many seconds."""
    line = Line(chain)
    limit = threading.Timer(seconds, line.interrupt)
    limit.daemon = True
    limit.start()
    try:
        with on_line(line):
            yield line
    finally:
        limit.cancel()
