"""gunicorn's threaded worker, with connections handled so that slow clients block no thread.

gunicorn gives each accepted connection to a thread, which waits as long as the client takes to send
the request and to read the response; its main loop waits two seconds for a client to close. So a
few dozen slow clients can occupy every thread, and a Stop finds none. Here a thread gets only work
that does not wait for a client:

- The main loop reads a request, however slowly it arrives, then gives it to a thread of the
  request's class (`halt.server.request_buffer`, `halt.server.thread_pools`). The rest of a body of
  more than BODY_MAX bytes, of a file more than FILE_BODY_MAX, is read by a thread of the class
  UPLOAD.
- The rest of a complete response, which the client has not read yet, is sent by the main loop.
- After the last response of a connection the client has time to close; bytes that it sends are
  dropped. If the server closed a connection with unread bytes, the client's system would drop the
  response: a file that is too large would get a reset instead of the error message.
- Each of these has a deadline (`halt.web.client_socket`), after which the connection is closed.
- If open files or memory run short, the oldest waiting connections are closed.

If gunicorn does TLS itself, or expects the PROXY protocol, threads read the requests.

A worker whose master is gone ends its streams at once; gunicorn's own worker continues them until
its grace is over. A request for which the system provides no thread waits for one; gunicorn's own
worker dies.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from halt.config import open_files
from halt.server.refusals import FILES_SHORT, LOG_EVERY, TOO_MANY, TOO_SLOW, FewRefusals
from halt.server.request_buffer import Kind, RequestBuffer
from halt.server.request_threads import Connection, RequestThreads
from halt.web.client_socket import SILENCE_MAX, ClientSocket, transfer_deadline

#: Seconds that a stopping worker gives clients to read their last responses, to close, and to send
#: a request that has begun to arrive on a kept connection.
CLIENTS_WITHIN = 2.0

ACCEPTS = 16  # connections accepted in one turn of the main loop
READ_SIZE = 65_536
#: After READS_AT_ONCE reads, a request whose last read returned less than SMALL bytes is read once
#: in PAUSE seconds: a read costs about 20 us, even of a single byte.
READS_AT_ONCE = 8
SMALL = 512
PAUSE = 0.05

INCOMING_MAX = 67_108_864  # bytes of requests that have not arrived completely
QUEUED_MAX = 67_108_864  # bytes of large requests that wait for a thread
UNSENT_MAX = 67_108_864  # bytes of responses that clients have not read

FULL_PAUSE = 0.1  # seconds without `accept` if no file is free and no connection can be closed
CLOSED_AT_ONCE = 8  # waiting connections closed in one go when files run short

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: The classes that are served even if open files run short.
_ALWAYS = frozenset({Kind.STOP, Kind.HEALTH})
#: Errors of `accept` that concern the listening socket, not one connection.
_BROKEN_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Step = Callable[[Connection, ClientSocket], None]

logger = logging.getLogger(__name__)


class Worker(RequestThreads):
    """See the module."""

    leave_by = 0.0  # when a stopping worker ends its wait for clients; 0: not stopping

    def init_process(self) -> None:
        #: Connections that wait for their client, the longest wait first.
        self.waiting: dict[Connection, None] = {}
        #: Connections with a response that the client has not read completely.
        self.unsent: dict[Connection, None] = {}
        #: (time, connection) of `waiting` that are not read before this time, in its order.
        self.resting: deque[tuple[float, Connection]] = deque()
        self.incoming_size = 0  # bytes of all requests of `waiting`
        #: Connections with a large request that no thread had taken at the last check.
        self.queued: list[Connection] = []
        self.full_until = 0.0  # no `accept` before this time: no file is free
        self.log_full_at = 0.0  # not logged again before this time
        self.files = open_files.limit()
        #: The system assigns the lowest free descriptor; from this one on, files run short.
        self.number_max = self.files - open_files.reserved_files(self.files)
        #: From this descriptor on, no waiting connection could be closed: only _ALWAYS is served.
        self.stops_alone = self.number_max + ACCEPTS
        self.log.error_log.addFilter(FewRefusals())
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        #: Most bytes of a request's body.
        self.body_max = self.wsgi.extensions["halt"].config.max_body_bytes

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and time.monotonic() >= self.full_until)

    # --- a connection begins ----------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, address = listener.accept()
            except OSError as exc:
                if exc.errno in _NO_FILES:
                    if not self._make_room():
                        self.full_until = time.monotonic() + FULL_PAUSE
                        self.set_accept_enabled(False)
                elif exc.errno in _BROKEN_LISTENER:
                    raise
                return
            self._begin(accepted, address, listener)

    def _begin(self, accepted: socket.socket, address: Any, listener: Any) -> None:
        number = accepted.fileno()
        if number >= self.number_max:
            self._make_room()
        client = ClientSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
        try:
            client.limit_silence(SILENCE_MAX)  # applies to threads
        except OSError:  # some systems refuse it once the client has left
            client.close()
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, listener.getsockname(), self.body_max)
        self._wait(conn, time.monotonic() + max(SILENCE_MAX, self.cfg.keepalive))

    def _make_room(self) -> bool:
        """Close the connections that have waited longest. Returns whether there were any.

        A request that has arrived, but that the main loop has not read yet, is served instead.
        """
        closed = 0
        for conn in list(self.waiting):
            if self.reads_requests and not conn.is_lingering:
                self._turn(self._arrives, conn, conn.sock)
            if conn in self.waiting:
                self._drop(conn)
                closed += 1
            if closed == CLOSED_AT_ONCE:
                break
        if closed and (at := time.monotonic()) >= self.log_full_at:
            self.log_full_at = at + LOG_EVERY
            logger.warning(
                "Waiting connections are closed, the oldest first: %d connections are open, and "
                "the system allows %d open files (ulimit -n).",
                self.nr_conns,
                self.files,
            )
        return closed > 0

    # --- a request comes --------------------------------------------------------------------------

    def _wait(self, conn: Connection, timeout: float) -> None:
        """Let the main loop read from this connection, until the time `timeout`."""
        conn.began = time.monotonic()
        conn.timeout = timeout
        conn.received = conn.reads = 0
        conn.sent_continue = False
        conn.sock.setblocking(False)
        self.waiting[conn] = None
        self.incoming_size += len(conn.incoming)
        self._watch(conn, EVENT_READ, self._arrives)

    def _watch(self, conn: Connection, event: int, step: Step) -> None:
        """Let the poller call `step` whenever the connection can be read, or written to."""
        self.poller.register(conn.sock, event, partial(self._turn, step, conn))

    def _turn(self, step: Step, conn: Connection, client: ClientSocket) -> None:
        """Called by the poller. An exception closes the connection; the main loop goes on."""
        try:
            step(conn, client)
        except Exception:
            logger.exception("a connection is closed after an error")
            if conn in self.waiting or conn in self.unsent:
                self._drop(conn)

    def _arrives(self, conn: Connection, client: ClientSocket) -> None:
        if conn not in self.waiting:  # closed earlier in this turn to free files or memory
            return
        if not (self.reads_requests or conn.is_lingering):
            self._serve(conn)
            return
        try:
            data = client.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if conn.is_lingering and data:
            return
        if not data:  # the client has closed
            if conn.incoming:  # a thread finds the incomplete request and responds
                self._serve(conn)
            else:
                self._drop(conn)
            return
        at = time.monotonic()
        if not conn.received and conn.was_served:
            conn.began = at  # the first bytes of a request on a kept connection
        conn.received += len(data)
        conn.reads += 1
        self.incoming_size += len(data)
        conn.timeout = min(at + SILENCE_MAX, transfer_deadline(conn.began, conn.received))
        if conn.incoming.feed(data):
            self._serve(conn)
        else:
            self._await_rest(conn, is_slow=len(data) < SMALL)

    def _await_rest(self, conn: Connection, *, is_slow: bool) -> None:
        if conn.incoming.awaits_continue and not conn.sent_continue:
            conn.sent_continue = True
            with contextlib.suppress(OSError):  # the client has left: the next read finds out
                conn.sock.send_some(memoryview(CONTINUE))
        if self.incoming_size > INCOMING_MAX:
            large = [other for other in self.waiting if len(other.incoming) > READ_SIZE]
            self._drop(min(large or [conn], key=lambda other: other.began))
        elif is_slow and conn.reads > READS_AT_ONCE:
            self._unregister(conn)
            self.resting.append((time.monotonic() + PAUSE, conn))

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        at = time.monotonic()
        if not self.alive:
            self.leave_by = self.leave_by or at + CLIENTS_WITHIN
        while self.resting and self.resting[0][0] <= at:
            _, conn = self.resting.popleft()
            if conn in self.waiting:
                self._watch(conn, EVENT_READ, self._arrives)
        for due in (self.leave_by, self.resting[0][0] if self.resting else 0.0):
            if due > at:
                timeout = min(timeout, due - at)
        super().wait_for_and_dispatch_events(timeout)

    def _release(self, conn: Connection) -> None:
        """Remove a connection from those that wait."""
        del self.waiting[conn]
        self.incoming_size -= len(conn.incoming)
        self._unregister(conn)

    def _unregister(self, conn: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it is resting, so not registered
            self.poller.unregister(conn.sock)

    def _drop(self, conn: Connection) -> None:
        """Close a connection in any state."""
        if conn in self.waiting:
            self._release(conn)
        elif conn in self.unsent:
            del self.unsent[conn]
            self._unregister(conn)
        self.nr_conns -= 1
        conn.close()

    # --- a request is served ----------------------------------------------------------------------

    def _serve(self, conn: Connection) -> None:
        self._release(conn)
        self._submit(conn)

    def _submit(self, conn: Connection) -> None:
        if self.reads_requests:
            conn.kind = conn.incoming.kind
            conn.sock.leaves_rest = conn.kind.is_short
            conn.is_taken = False
            if conn.sock.fileno() >= self.stops_alone and conn.kind not in _ALWAYS:
                self._refuse(conn, FILES_SHORT)
                return
            if len(conn.incoming) > READ_SIZE and not self._may_queue(conn):
                self._refuse(conn, TOO_MANY)
                return
        self.enqueue_req(conn)

    def _refuse(self, conn: Connection, response: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has left
            conn.sock.send_some(memoryview(response))
        self._drop(conn)

    def _may_queue(self, conn: Connection) -> bool:
        """Whether a large request fits into QUEUED_MAX with those that wait for a thread."""
        self.queued = [other for other in self.queued if not other.is_taken]
        self.queued.append(conn)
        if sum([len(other.incoming) for other in self.queued]) <= QUEUED_MAX:
            return True
        self.queued.pop()
        return False

    def finish_request(self, conn: Connection, fs: Any) -> None:
        self.tpool.finished(conn)
        conn.is_taken = True  # also if `handle` failed before it set this
        if fs.cancelled() or fs.exception() is not None:
            self._drop(conn)
            return
        conn.was_served = True
        conn.is_kept = bool(fs.result())
        try:
            if conn.is_kept and not self.reads_requests:
                super().finish_request(conn, fs)
            elif self.reads_requests and conn.sock.unsent:
                self._send_rest(conn)
            else:
                self._end_response(conn)
        except (OSError, ValueError):  # the client is gone, or the request closed the connection
            self._drop(conn)

    # --- the client reads its response ------------------------------------------------------------

    def _send_rest(self, conn: Connection) -> None:
        conn.sock.setblocking(False)
        conn.began = conn.progress_at = time.monotonic()
        conn.timeout = conn.began + SILENCE_MAX
        conn.received = 0
        self.unsent[conn] = None
        self._watch(conn, EVENT_WRITE, self._send_more)
        while (
            len(self.unsent) > 1
            and sum(len(other.sock.unsent) for other in self.unsent) > UNSENT_MAX
        ):
            self._drop(min(self.unsent, key=lambda other: other.progress_at))

    def _send_more(self, conn: Connection, client: ClientSocket) -> None:
        if conn not in self.unsent:  # closed earlier in this turn to free memory
            return
        try:
            sent = client.send_some(client.unsent)
            client.unsent = client.unsent[sent:]
            if not client.unsent:
                self._unregister(conn)
                del self.unsent[conn]
                self._end_response(conn)
        except OSError:  # the client has left
            self._drop(conn)
            return
        if client.unsent and sent:
            conn.progress_at = time.monotonic()
            conn.received += sent
            conn.timeout = min(
                conn.progress_at + SILENCE_MAX, transfer_deadline(conn.began, conn.received)
            )

    # --- the connection stays open, or ends -------------------------------------------------------

    def _end_response(self, conn: Connection) -> None:
        """Begin the next request, or linger. Raises OSError if the connection is gone."""
        if conn.is_kept:
            self._begin_next(conn)
        else:
            self._linger(conn)

    def _begin_next(self, conn: Connection) -> None:
        if conn.incoming.begin(conn.parser.unreader.take_buffered()):
            self._submit(conn)
            return
        timeout = time.monotonic() + self.cfg.keepalive
        self._wait(conn, min(timeout, self.leave_by) if self.leave_by else timeout)
        self._await_rest(conn, is_slow=False)

    def _linger(self, conn: Connection) -> None:
        """Drop what the client sends after its last response, and close after the client has."""
        conn.sock.shutdown(socket.SHUT_WR)
        conn.incoming = RequestBuffer()
        conn.is_lingering = True
        self._wait(conn, time.monotonic() + max(SILENCE_MAX, self.cfg.keepalive))

    # --- deadlines --------------------------------------------------------------------------------

    def is_parent_alive(self) -> bool:
        """Whether the master lives. A worker without a master stops as after a SIGTERM."""
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def murder_pending(self) -> None:
        """Close the connections whose deadline has passed.

        While the worker stops: connections that were never served are closed at once; the others
        have CLIENTS_WITHIN seconds, and again as many whenever they have read something.
        """
        super().murder_pending()  # connections with TLS
        at = time.monotonic()
        if not self.alive:
            for conn in self.waiting:
                conn.timeout = min(conn.timeout, self.leave_by) if conn.was_served else 0.0
            for conn in self.unsent:
                deadline = max(self.leave_by, conn.progress_at + CLIENTS_WITHIN)
                conn.timeout = min(conn.timeout, deadline)
        for conn in [other for other in self.waiting if other.timeout <= at]:
            if conn.received and self.alive and not conn.is_lingering:
                with contextlib.suppress(OSError):
                    conn.sock.send_some(memoryview(TOO_SLOW))
            self._drop(conn)
        for conn in [other for other in self.unsent if other.timeout <= at]:
            self._drop(conn)
