"""The part of the worker that runs in threads: serve one request from its bytes to its response."""

from __future__ import annotations

import errno
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from halt.server.request_buffer import Kind, RequestBuffer
from halt.server.thread_pools import ThreadPools
from halt.web.client_socket import ClientSocket


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A client's connection. A thread serves its request; the main loop does everything else."""

    def __init__(
        self, cfg: Any, sock: ClientSocket, client: Any, server: Any, body_max: int
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = True  # by the time a thread has the connection
        self.incoming = RequestBuffer(body_max)
        self.kind = Kind.STREAM  # class of the request that is being served
        self.began = self.timeout = 0.0  # when the request began; its deadline
        self.received = 0  # bytes of the request; later bytes of the response that were sent
        self.reads = 0  # `recv` calls for the request
        self.is_taken = False  # by a thread
        self.is_whole = False  # the whole request had arrived before a thread got it
        self.was_served = False
        self.is_kept = False  # open for a further request
        self.is_lingering = False  # the last response was sent; the client has to close
        self.sent_continue = False
        self.progress_at = 0.0  # when the client last read something


class RequestThreads(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, whose threads get requests that the main loop has read."""

    def init_process(self) -> None:
        #: Whether the main loop reads requests; else threads do.
        self.reads_requests = not (self.cfg.is_ssl or self.cfg.proxy_protocol != "off")
        super().init_process()

    def get_thread_pool(self) -> ThreadPools:
        return ThreadPools(self.cfg.threads)

    def notify(self) -> None:
        """Called in each turn of the main loop, at least once a second."""
        super().notify()
        if self.tpool is not None:
            self.tpool.grow()

    def handle(self, conn: Connection) -> Any:
        """Serve the request, in a thread."""
        if self.reads_requests:
            conn.sock.setblocking(True)
            conn.init()
            conn.is_whole = conn.incoming.is_whole
            request = conn.incoming.take()
            conn.is_taken = True
            after_request = conn.incoming.bytes_after_request if conn.kind is Kind.SOCKET else b""
            conn.sock.preload(
                request, is_all=conn.kind is not Kind.UPLOAD, after_request=after_request
            )
            if conn.kind is Kind.UPLOAD:
                conn.sock.begin_body()
        try:
            return super().handle(conn)
        finally:
            if conn.kind is Kind.UPLOAD:
                conn.sock.end_body()

    def handle_request(self, req: Any, conn: Connection) -> Any:
        if conn.sent_continue or conn.is_whole:
            # A thread would send `100 Continue` again or needlessly, and wait for the client.
            req._expected_100_continue = False
        if self.reads_requests and not conn.is_whole:
            req.force_close()  # with `Connection: close`: gunicorn drops at most 64 KiB of a body
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as stuck:
            # gunicorn closes the connection without a log line for this error alone.
            reason = "The client sends or reads nothing, or too slowly."
            raise ConnectionResetError(errno.ECONNRESET, reason) from stuck

    def _keepalive_after(self, conn: Connection, keepalive: Any) -> bool:
        """Whether the connection stays open. The rest of the body that the view did not read is
        dropped.

        gunicorn drops at most 64 KiB, although the response said that the connection stays open,
        and sends a second response to a malformed rest.
        """
        if keepalive and conn.is_whole and not conn.parser.mesg.body.failed:
            conn.sock.preload(b"", is_all=True)
            conn.parser.unreader.take_buffered()
            conn.parser.mesg = None
            return True
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except Exception as exc:  # noqa: BLE001 - the client's bytes caused it; the connection is closed
            self.log.debug("reading the rest of a body has failed: %s", exc)
            return False
