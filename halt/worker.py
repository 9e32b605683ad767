"""gunicorn's threaded worker, changed in three points.

A worker whose master is gone ends its streams at once; the original lets them go on until its
grace is over.

And no thread waits for a request to arrive. The original hands each accepted connection to a
thread, which waits up to five seconds for its first byte, and for the rest of the request as long
as it takes. Browsers open connections ahead of need and slow clients send a byte now and then, so a
few dozen of those are enough to keep every thread from a Stop. Here a connection waits in the
poller until a request's head and, when it is short, its body are there. A shutdown does not wait
for it either.

And after its last response a connection is closed when its client has closed it, or after
REQUEST_SECONDS (LAST_ANSWERS where the worker leaves); what the client still sends is dropped. The
original closes after 64 KiB, or after two seconds in which its main loop stands still. If a
connection is closed with bytes unread, the client's system throws the answer away: a file that is
too large would end with a reset, or with a proxy's 502, in place of the sentence that says so.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import time
from collections import deque
from functools import partial
from operator import attrgetter
from selectors import EVENT_READ
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

#: Seconds for a new connection to send its request's head, and of silence within a long body.
REQUEST_SECONDS = 30
_RECEIVE_TIMEOUT = struct.pack("ll", REQUEST_SECONDS, 0)

#: Seconds that a leaving worker gives clients to take their last answers and close.
LAST_ANSWERS = 2.0

#: Bytes of a request that is waited for as a whole. The body of a longer one is read by a thread.
WHOLE_MAX = 65_536

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


def missing(seen: bytes) -> int:
    """How many bytes at least have to come before a request that begins so is worth a thread."""
    head, end, _ = seen.partition(b"\r\n\r\n")
    if not end:
        return 1 if len(seen) < WHOLE_MAX else 0
    length = _LENGTH.search(head + b"\r\n")
    if length is None or _EXPECT.search(head):  # no body, chunks, or one that waits for a word
        return 0
    whole = len(head) + len(end) + int(length[1])
    return max(0, whole - len(seen)) if whole <= WHOLE_MAX else 0


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module."""

    leave_by = 0.0  # when a leaving worker has waited for its clients; 0 while it stays

    def accept(self, listener: Any) -> None:
        try:
            client, address = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        # A long body that is sent so slowly that nothing comes for this long is given up.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        conn = TConn(self.cfg, client, address, listener.getsockname())  # sets it non-blocking
        # `murder_pending` expects the deque in order of time, which equal terms keep.
        conn.timeout = time.monotonic() + max(REQUEST_SECONDS, self.cfg.keepalive)
        self.pending_conns.append(conn)
        self.poller.register(client, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        if self._has_arrived(conn):
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        if self._has_arrived(conn):
            super().on_client_socket_readable(conn, client)

    def finish_request(self, conn: Any, fs: Any) -> None:
        if fs.cancelled() or fs.exception() is not None or fs.result() or self.cfg.is_ssl:
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError:  # the client has gone, or the request has closed the connection itself
            self.nr_conns -= 1
            conn.close()
            return
        conn.halt_lingers = True
        conn.timeout = time.monotonic() + max(REQUEST_SECONDS, self.cfg.keepalive)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_unwanted_bytes, conn))

    def on_unwanted_bytes(self, conn: Any, client: Any) -> None:
        """Drop what a client sends behind its answer, and close when it has closed."""
        try:
            if client.recv(WHOLE_MAX):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self.nr_conns -= 1
        conn.close()

    def is_parent_alive(self) -> bool:
        """Whether the master is there. A worker without one leaves as one that was told to."""
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def murder_pending(self) -> None:
        """Close silent connections whose time is over.

        When the worker leaves: all, but those that were answered have LAST_ANSWERS seconds.
        """
        if not self.alive:
            self.leave_by = self.leave_by or time.monotonic() + LAST_ANSWERS
            for conn in self.pending_conns:
                lingers = getattr(conn, "halt_lingers", False)
                conn.timeout = min(conn.timeout, self.leave_by) if lingers else 0.0
            in_order = sorted(self.pending_conns, key=attrgetter("timeout"))
            self.pending_conns: deque[Any] = deque(in_order)
        super().murder_pending()

    def _has_arrived(self, conn: Any) -> bool:
        """Whether a thread can read the request without waiting.

        If not, the system is told (SO_RCVLOWAT) to call again only when more has come than was
        seen. It calls early for an end of file, with less than that: nothing more will come then.
        """
        wanted = getattr(conn, "halt_wanted", 1)
        try:
            seen = b"" if self.cfg.is_ssl else conn.sock.recv(WHOLE_MAX, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            seen = b""
        more = missing(seen) if len(seen) >= wanted else 0
        conn.halt_wanted = len(seen) + more if more else 1
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, conn.halt_wanted)
        return not more
