"""Ports of 127.0.0.1 for servers that a test starts, and for connections that are refused."""

from __future__ import annotations

import contextlib
import random
import socket
import sys

#: The system gives ports from 32768 up (macOS: from 49152) to outgoing connections and to listeners
#: on port 0, so it gives none of these to another process.
FREE_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens; connections to it are refused.

    On Linux it stays bound while this process lives, so that no parallel test gets it; a server
    that sets SO_REUSEADDR, as all servers of the tests do, can listen on it.
    """
    for port in random.sample(FREE_PORTS, 100):
        sock = socket.socket()
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                sock.detach()
            else:
                sock.close()
            return port
        sock.close()
    raise OSError("no free port among 100")
