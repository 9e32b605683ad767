"""gunicorn's threaded worker, changed in five points.

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

And a write to a client that takes nothing for SEND_SECONDS closes the connection. The original's
thread waits for as long as the client stays.

And a request for which the system gives no thread waits for one. The original's worker dies.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from operator import attrgetter
from queue import SimpleQueue
from selectors import EVENT_READ
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

#: Seconds for a new connection to send its request's head, and of silence within a long body.
REQUEST_SECONDS = 30

#: Seconds in which a client takes nothing of what a thread writes to it.
SEND_SECONDS = 30.0

#: Seconds that a leaving worker gives clients to take their last answers and close.
LAST_ANSWERS = 2.0

#: Bytes of a request that is waited for as a whole. The body of a longer one is read by a thread.
WHOLE_MAX = 65_536

logger = logging.getLogger(__name__)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


def _limit(client: socket.socket, which: int, seconds: float) -> None:
    """Let each blocking call on the socket fail after that time, with BlockingIOError.

    Where gunicorn itself does TLS it has no effect: Python's ssl tries such a call again.
    """
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    client.setsockopt(socket.SOL_SOCKET, which, value)


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


class Threads:
    """The threads that serve requests, at most `most`. Its methods belong to the main thread.

    It stands in for gunicorn's pool, `concurrent.futures.ThreadPoolExecutor`. When the system has
    no thread left, that one raises RuntimeError, which ends the worker, with the request in a queue
    that an idle thread may still serve. And it counts a thread as idle that has taken the next
    request already, so it may start none where one is needed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._started = 0
        self._unfinished = 0  # requests that are queued or being served
        self._queue: SimpleQueue[tuple[Callable[[Any], Any], Any, Future[Any]] | None]
        self._queue = SimpleQueue()
        self._short = False  # the last attempt to start a thread has failed

    def submit(self, serve: Callable[[Any], Any], conn: Any) -> Future[Any]:
        """Serve a request in an idle thread, a new one, or the next one that becomes free."""
        future: Future[Any] = Future()
        self._unfinished += 1
        self._queue.put((serve, conn, future))
        self.grow()
        return future

    def finished(self) -> None:
        """A thread is about to wait for its next request."""
        self._unfinished -= 1

    def grow(self) -> None:
        """Start a thread if a request waits for one. To be called regularly: it may be refused."""
        if self._started >= min(self._unfinished, self._most):
            return
        thread = threading.Thread(target=self._work, name=f"halt-request-{self._started + 1}")
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            if not self._short:
                logger.error(
                    "The system starts no further thread, so requests wait for the %d that there "
                    "are. Raise the limit (ulimit -u, pids.max of the container).",
                    self._started,
                )
            self._short = True
            return
        self._short = False
        self._started += 1

    def shutdown(self, wait: bool) -> None:
        """Let each thread end after the requests that are queued by now. `wait` is ignored."""
        self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            serve, conn, future = work
            try:
                future.set_result(serve(conn))
            except BaseException as fault:  # noqa: BLE001 - the main thread judges it
                future.set_exception(fault)
            del work, serve, conn, future  # while it waits, it must not keep a connection alive
        self._queue.put(None)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module."""

    leave_by = 0.0  # when a leaving worker has waited for its clients; 0 while it stays

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads)

    def notify(self) -> None:
        """In each turn of the main loop, at least once a second."""
        super().notify()
        if self.tpool is not None:
            self.tpool.grow()

    def accept(self, listener: Any) -> None:
        try:
            client, address = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        # A long body that is sent so slowly that nothing comes for this long is given up.
        _limit(client, socket.SO_RCVTIMEO, REQUEST_SECONDS)
        _limit(client, socket.SO_SNDTIMEO, SEND_SECONDS)
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

    def handle_request(self, req: Any, conn: Any) -> Any:
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as stuck:
            # gunicorn closes such a connection in silence, and logs any other error.
            silent = "The client sends or takes nothing."
            raise ConnectionResetError(errno.ECONNRESET, silent) from stuck

    def finish_request(self, conn: Any, fs: Any) -> None:
        self.tpool.finished()
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
