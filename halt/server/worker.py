"""gunicorn's threaded worker, with another way for connections.

gunicorn hands each accepted connection to a thread, which waits for the request as long as the
client takes, and for the client to take the response; its main loop waits two seconds for a client
to close. So a few dozen slow clients keep every thread from a Stop. Here a thread is given what it
can serve without waiting for a client:

- The main loop reads a request, however slowly it comes, and then gives it to a thread of the
  request's class (`halt.server.request_buffer`, `halt.server.thread_pools`). Of a body of more than
  BODY_MAX bytes a thread of the class UPLOAD reads the rest.
- What a client does not take of a response that is complete is sent by the main loop.
- After the last response of a connection the client has time to close; what it sends is dropped. A
  connection that is closed with bytes unread makes the client's system throw the answer away: a
  file that is too large would end with a reset in place of the sentence that says so.
- Each of these has a deadline (`halt.web.client_socket.until`), after which the connection is
  closed.
- Where open files or memory run short, the oldest waiting connections are closed.

Where gunicorn does TLS itself, or expects the PROXY protocol, threads read the requests.

A worker whose master is gone ends its streams at once; gunicorn's lets them go on until its grace
is over. And a request for which the system gives no thread waits for one; gunicorn's worker dies.
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
from halt.server.refusals import FILES_SHORT, SAID_EVERY, TOO_MANY, TOO_SLOW, FewRefusals
from halt.server.request_buffer import Kind, RequestBuffer
from halt.server.request_threads import Connection, RequestThreads
from halt.web.client_socket import SILENCE_MAX, ClientSocket, transfer_deadline

#: Seconds that a leaving worker gives clients to take their last answers, to close, and to send a
#: request that is under way on a kept connection.
LAST_ANSWERS = 2.0

ACCEPTS = 16  # connections that are accepted in one turn of the main loop
READ_SIZE = 65_536
#: After some reads, a request of which the last one brought less than SMALL bytes is looked at once
#: in PAUSE seconds: a read costs some 20 us, also of a single byte.
READS_AT_ONCE = 8
SMALL = 512
PAUSE = 0.05

INCOMING_MAX = 67_108_864  # bytes of requests that have not come as a whole
QUEUED_MAX = 67_108_864  # bytes of large requests that wait for a thread
UNSENT_MAX = 67_108_864  # bytes of responses that clients have not taken

FULL_PAUSE = 0.1  # seconds without new connections where no file is left, and none can be closed
ROOM = 8  # waiting connections that are closed at once where files run short

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: What is served also where open files run short.
_ALWAYS = frozenset({Kind.STOP, Kind.HEALTH})
#: Faults of `accept` that are the listening socket's, not those of one connection.
_BROKEN_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Step = Callable[[Connection, ClientSocket], None]

logger = logging.getLogger(__name__)


class Worker(RequestThreads):
    """See the module."""

    leave_by = 0.0  # when a leaving worker has waited for its clients; 0 while it stays

    def init_process(self) -> None:
        #: Connections that wait for their client, in the order in which they began to.
        self.waiting: dict[Connection, None] = {}
        #: Those with a response that the client has not taken.
        self.unsent: dict[Connection, None] = {}
        #: Those of `waiting` that are not looked at before a time, in the order of that time.
        self.resting: deque[tuple[float, Connection]] = deque()
        self.incoming_size = 0  # bytes, of those that wait
        #: Those with a large request that no thread had taken when this was last looked at.
        self.queued: list[Connection] = []
        self.full_until = 0.0  # no file is left for a connection
        self.say_full_at = 0.0
        self.files = open_files.limit()
        #: The system gives the lowest free number: one from here on says that files run short.
        self.number_max = self.files - open_files.kept(self.files)
        #: From here on no waiting connection was left to be closed, and Stop alone is served.
        self.stops_alone = self.number_max + ACCEPTS
        self.log.error_log.addFilter(FewRefusals())
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        #: Bytes of a request's body.
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
            client.limit_silence(SILENCE_MAX)  # for threads
        except OSError:  # some systems refuse it once the client has left
            client.close()
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, listener.getsockname(), self.body_max)
        self._wait(conn, time.monotonic() + max(SILENCE_MAX, self.cfg.keepalive))

    def _make_room(self) -> bool:
        """Close the connections that have waited longest. Whether there were any.

        A request that is there, and that the main loop has not come to yet, is served.
        """
        closed = 0
        for conn in list(self.waiting):
            if self.reads_requests and not conn.lingers:
                self._turn(self._arrives, conn, conn.sock)
            if conn in self.waiting:
                self._drop(conn)
                closed += 1
            if closed == ROOM:
                break
        if closed and (at := time.monotonic()) >= self.say_full_at:
            self.say_full_at = at + SAID_EVERY
            logger.warning(
                "Connections that wait are closed, the oldest first: %d are open, and the system "
                "allows %d open files (ulimit -n).",
                self.nr_conns,
                self.files,
            )
        return closed > 0

    # --- a request comes --------------------------------------------------------------------------

    def _wait(self, conn: Connection, timeout: float) -> None:
        """Have the main loop read what comes, until that time."""
        conn.began = time.monotonic()
        conn.timeout = timeout
        conn.received = conn.reads = 0
        conn.said_continue = False
        conn.sock.setblocking(False)
        self.waiting[conn] = None
        self.incoming_size += len(conn.incoming)
        self._watch(conn, EVENT_READ, self._arrives)

    def _watch(self, conn: Connection, event: int, step: Step) -> None:
        """Have the poller call it whenever the connection can be read, or written to."""
        self.poller.register(conn.sock, event, partial(self._turn, step, conn))

    def _turn(self, step: Step, conn: Connection, client: ClientSocket) -> None:
        """What the poller calls. A fault is the end of its connection, never of the main loop."""
        try:
            step(conn, client)
        except Exception:
            logger.exception("a connection is closed")
            if conn in self.waiting or conn in self.unsent:
                self._drop(conn)

    def _arrives(self, conn: Connection, client: ClientSocket) -> None:
        if conn not in self.waiting:  # dropped in this turn, for want of room
            return
        if not (self.reads_requests or conn.lingers):
            self._serve(conn)
            return
        try:
            data = client.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if conn.lingers and data:
            return
        if not data:  # it has closed
            if conn.incoming:  # a thread finds that the request has no end, and says so
                self._serve(conn)
            else:
                self._drop(conn)
            return
        at = time.monotonic()
        if not conn.received and conn.was_served:
            conn.began = at  # of a request on a kept connection
        conn.received += len(data)
        conn.reads += 1
        self.incoming_size += len(data)
        conn.timeout = min(at + SILENCE_MAX, transfer_deadline(conn.began, conn.received))
        if conn.incoming.feed(data):
            self._serve(conn)
        else:
            self._await_rest(conn, is_slow=len(data) < SMALL)

    def _await_rest(self, conn: Connection, *, is_slow: bool) -> None:
        if conn.incoming.awaits_word and not conn.said_continue:
            conn.said_continue = True
            with contextlib.suppress(OSError):  # it has left: the next read says so
                conn.sock.send_some(memoryview(CONTINUE))
        if self.incoming_size > INCOMING_MAX:
            large = [each for each in self.waiting if len(each.incoming) > READ_SIZE]
            self._drop(min(large or [conn], key=lambda each: each.began))
        elif is_slow and conn.reads > READS_AT_ONCE:
            self._unregister(conn)
            self.resting.append((time.monotonic() + PAUSE, conn))

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        at = time.monotonic()
        if not self.alive:
            self.leave_by = self.leave_by or at + LAST_ANSWERS
        while self.resting and self.resting[0][0] <= at:
            _, conn = self.resting.popleft()
            if conn in self.waiting:
                self._watch(conn, EVENT_READ, self._arrives)
        for due in (self.leave_by, self.resting[0][0] if self.resting else 0.0):
            if due > at:
                timeout = min(timeout, due - at)
        super().wait_for_and_dispatch_events(timeout)

    def _release(self, conn: Connection) -> None:
        """It waits no more."""
        del self.waiting[conn]
        self.incoming_size -= len(conn.incoming)
        self._unregister(conn)

    def _unregister(self, conn: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it rests
            self.poller.unregister(conn.sock)

    def _drop(self, conn: Connection) -> None:
        """Close a connection, also one that waits or has not taken its response."""
        if conn in self.waiting:
            self._release(conn)
        elif conn in self.unsent:
            del self.unsent[conn]
            self._unregister(conn)
        self.nr_conns -= 1
        conn.close()

    # --- it is served -----------------------------------------------------------------------------

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

    def _refuse(self, conn: Connection, answer: bytes) -> None:
        with contextlib.suppress(OSError):  # it has left
            conn.sock.send_some(memoryview(answer))
        self._drop(conn)

    def _may_queue(self, conn: Connection) -> bool:
        """Whether there is room for a large request among those that wait for a thread."""
        self.queued = [each for each in self.queued if not each.is_taken]
        self.queued.append(conn)
        if sum([len(each.incoming) for each in self.queued]) <= QUEUED_MAX:
            return True
        self.queued.pop()
        return False

    def finish_request(self, conn: Connection, fs: Any) -> None:
        self.tpool.finished(conn)
        conn.is_taken = True  # also where it has failed before
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
                self._answered(conn)
        except (OSError, ValueError):  # gone, or closed by the request itself
            self._drop(conn)

    # --- the client takes its response ------------------------------------------------------------

    def _send_rest(self, conn: Connection) -> None:
        conn.sock.setblocking(False)
        conn.began = conn.progress_at = time.monotonic()
        conn.timeout = conn.began + SILENCE_MAX
        conn.received = 0
        self.unsent[conn] = None
        self._watch(conn, EVENT_WRITE, self._takes)
        while (
            len(self.unsent) > 1 and sum(len(each.sock.unsent) for each in self.unsent) > UNSENT_MAX
        ):
            self._drop(min(self.unsent, key=lambda each: each.progress_at))

    def _takes(self, conn: Connection, client: ClientSocket) -> None:
        if conn not in self.unsent:  # given up in this turn, for want of room
            return
        try:
            sent = client.send_some(client.unsent)
            client.unsent = client.unsent[sent:]
            if not client.unsent:
                self._unregister(conn)
                del self.unsent[conn]
                self._answered(conn)
        except OSError:  # it has left
            self._drop(conn)
            return
        if client.unsent and sent:
            conn.progress_at = time.monotonic()
            conn.received += sent
            conn.timeout = min(
                conn.progress_at + SILENCE_MAX, transfer_deadline(conn.began, conn.received)
            )

    # --- and goes on, or leaves -------------------------------------------------------------------

    def _answered(self, conn: Connection) -> None:
        """Raises OSError where the connection is gone."""
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
        """Drop what a client sends behind its last answer, and close when it has closed."""
        conn.sock.shutdown(socket.SHUT_WR)
        conn.incoming = RequestBuffer()
        conn.lingers = True
        self._wait(conn, time.monotonic() + max(SILENCE_MAX, self.cfg.keepalive))

    # --- time is over -----------------------------------------------------------------------------

    def is_parent_alive(self) -> bool:
        """Whether the master is there. A worker without one leaves as one that was told to."""
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def murder_pending(self) -> None:
        """Close the connections whose time is over.

        When the worker leaves: those that have sent no request yet at once; the others have
        LAST_ANSWERS seconds, and as many again whenever they have taken something.
        """
        super().murder_pending()  # those of TLS
        at = time.monotonic()
        if not self.alive:
            for conn in self.waiting:
                conn.timeout = min(conn.timeout, self.leave_by) if conn.was_served else 0.0
            for conn in self.unsent:
                takes_by = max(self.leave_by, conn.progress_at + LAST_ANSWERS)
                conn.timeout = min(conn.timeout, takes_by)
        for conn in [each for each in self.waiting if each.timeout <= at]:
            if conn.received and self.alive and not conn.lingers:
                with contextlib.suppress(OSError):
                    conn.sock.send_some(memoryview(TOO_SLOW))
            self._drop(conn)
        for conn in [each for each in self.unsent if each.timeout <= at]:
            self._drop(conn)
