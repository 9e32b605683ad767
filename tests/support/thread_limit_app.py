"""Halt in a worker that can lose the ability to start threads: `gunicorn
tests.support.thread_limit_app:app`.

After the signal REFUSE the system starts no thread for it, after ALLOW it does again; both print a
line on standard error. RELEASE answers one held request. TEST_SILENCE_MAX, in seconds, replaces
SILENCE_MAX, the limit for clients that send or take no byte.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from flask import Response

from halt.app import create_app
from halt.web import client_socket as client_sockets
from halt.web.client_socket import ClientSocket
from halt.web.requests import client_socket

REFUSE, ALLOW, RELEASE = (signal.SIGRTMIN + n for n in range(3))
SEND_SECONDS = 0.25
STACK = 1 << 30  # bytes of a new thread's stack
CHUNK = bytes(65_536)
LARGE = 8_388_608

app = create_app()
if silence_max := os.environ.get("TEST_SILENCE_MAX"):
    for module in (client_sockets, sys.modules["halt.server.worker"]):
        module.SILENCE_MAX = float(silence_max)  # type: ignore[attr-defined]
release = threading.Semaphore(0)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(_: int, __: FrameType | None) -> None:
    """Leave less address space than a thread's stack needs, and enough for everything else."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    threading.stack_size(STACK)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + STACK // 2, resource.RLIM_INFINITY))
    _print("no thread from now on")


def _allow(_: int, __: FrameType | None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    threading.stack_size(0)
    _print("threads again")


def _release(_: int, __: FrameType | None) -> None:
    release.release()


signal.signal(RELEASE, _release)
signal.signal(REFUSE, _refuse)
signal.signal(ALLOW, _allow)


@app.get("/pid")
def pid() -> Response:
    """The worker's process."""
    return Response(str(os.getpid()))


@app.get("/held")
@app.get("/settings/held")
def held() -> Response:
    """The PID, after RELEASE. The longer path counts as one of the page's."""
    _print("a request is held")
    release.acquire()
    return pid()


@app.get("/large")
def large() -> Response:
    """8 MB at once."""
    return Response(bytes(LARGE))


@app.get("/flood")
def flood() -> Response:
    """An endless response with a small send buffer; the client has SEND_SECONDS to read."""
    client = client_socket()
    assert isinstance(client, ClientSocket)
    client.limit_silence(SEND_SECONDS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def body() -> Iterator[bytes]:
        try:
            while True:
                yield CHUNK
        finally:
            _print("the flood is over")

    return Response(body())
