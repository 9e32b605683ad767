"""A thread's part of the worker: one request, from its bytes to the end of its response."""

from __future__ import annotations

import errno
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from halt.server.request_buffer import Kind, RequestBuffer
from halt.server.thread_pools import ThreadPools
from halt.web.client_socket import ClientSocket


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """One client's connection. Its request is served by one thread, all else is the main loop's."""

    def __init__(
        self, cfg: Any, sock: ClientSocket, client: Any, server: Any, body_max: int
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = True  # when a thread has it
        self.incoming = RequestBuffer(body_max)
        self.kind = Kind.STREAM  # of the request that is being served
        self.began = self.timeout = 0.0  # when the request began; when this state ends
        self.received = 0  # bytes of the request; then those of the response that were taken
        self.reads = 0  # of the request
        self.is_taken = False  # a thread has the request
        self.is_whole = False  # all of the request had come before a thread got it
        self.was_served = False
        self.is_kept = False  # for a further request
        self.lingers = False  # its client has its last answer, and has to close
        self.said_continue = False
        self.progress_at = 0.0  # when the client has last taken something


class RequestThreads(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker, whose threads are given requests that the main loop has read."""

    def init_process(self) -> None:
        #: Whether the main loop can read requests.
        self.reads_requests = not (self.cfg.is_ssl or self.cfg.proxy_protocol != "off")
        super().init_process()

    def get_thread_pool(self) -> ThreadPools:
        return ThreadPools(self.cfg.threads)

    def notify(self) -> None:
        """In each turn of the main loop, at least once a second."""
        super().notify()
        if self.tpool is not None:
            self.tpool.grow()

    def handle(self, conn: Connection) -> Any:
        """By a thread: serve the request."""
        if self.reads_requests:
            conn.sock.setblocking(True)
            conn.init()
            conn.is_whole = conn.incoming.is_whole
            taken = conn.incoming.take()
            conn.is_taken = True
            behind = conn.incoming.behind if conn.kind is Kind.SOCKET else b""
            conn.sock.preload(taken, is_all=conn.kind is not Kind.UPLOAD, behind=behind)
            if conn.kind is Kind.UPLOAD:
                conn.sock.begin_body(len(taken))
        try:
            return super().handle(conn)
        finally:
            if conn.kind is Kind.UPLOAD:
                conn.sock.end_body()

    def handle_request(self, req: Any, conn: Connection) -> Any:
        if conn.said_continue or conn.is_whole:
            # It would be said once more, or for nothing: by a thread, which waits for the client.
            req._expected_100_continue = False
        if self.reads_requests and not conn.is_whole:
            req.force_close()  # and said so: gunicorn drops no more than 64 KiB of a body
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as stuck:
            # gunicorn closes such a connection in silence, and logs any other error.
            silent = "The client sends or takes nothing, or too little."
            raise ConnectionResetError(errno.ECONNRESET, silent) from stuck

    def _keepalive_after(self, conn: Connection, keepalive: Any) -> bool:
        """Whether the connection goes on; what the view left of the body is dropped.

        gunicorn drops 64 KiB at most, though the client was told that the connection goes on, and
        answers a rest that is malformed a second time.
        """
        if keepalive and conn.is_whole and not conn.parser.mesg.body.failed:
            conn.sock.preload(b"", is_all=True)
            conn.parser.unreader.take_buffered()
            conn.parser.mesg = None
            return True
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except Exception as exc:  # noqa: BLE001 - what a client has sent; the connection is closed
            self.log.debug("The rest of a body: %s", exc)
            return False
