"""gunicorn's threaded worker, changed in one point: nothing waits for a silent connection.

The original hands each accepted connection to a thread, which waits up to five seconds for its
first byte. Browsers open connections ahead of need, so a few dozen of those are enough to keep
every thread from a Stop. Here a new connection waits in the poller, as kept-alive ones do, and
takes a thread when its request is there. A shutdown does not wait for it either.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

#: Seconds for a new connection to send its first byte, and of silence within a request.
FIRST_BYTE_SECONDS = 30
_RECEIVE_TIMEOUT = struct.pack("ll", FIRST_BYTE_SECONDS, 0)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module."""

    def accept(self, listener: Any) -> None:
        try:
            client, address = listener.accept()
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        # A request that is sent so slowly that nothing comes for this long is given up.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        conn = TConn(self.cfg, client, address, listener.getsockname())  # sets it non-blocking
        # `murder_pending` expects the deque in order of time, which equal terms keep.
        conn.timeout = time.monotonic() + max(FIRST_BYTE_SECONDS, self.cfg.keepalive)
        self.pending_conns.append(conn)
        self.poller.register(client, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def murder_pending(self) -> None:
        """Close silent connections whose time is over; all of them when the worker leaves."""
        if not self.alive:
            for conn in self.pending_conns:
                conn.timeout = 0.0
        super().murder_pending()
