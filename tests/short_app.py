"""Halt in a worker whose system runs short: `gunicorn tests.short_app:app`.

On REFUSE the system starts no thread for it, on ALLOW it does again; each says so on standard error.
A client that takes nothing of a response is given up after SEND_SECONDS.
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

import halt.worker
from app import create_app
from halt.web import client_socket

REFUSE, ALLOW = signal.SIGRTMIN, signal.SIGRTMIN + 1
SEND_SECONDS = 0.25
STACK = 1 << 30  # bytes that each further thread asks for
CHUNK = bytes(65_536)

halt.worker.SEND_SECONDS = SEND_SECONDS
app = create_app()


def _say(word: str) -> None:
    print(word, file=sys.stderr, flush=True)


def _refuse(_: int, __: FrameType | None) -> None:
    """Leave less address space than a thread's stack needs, and enough for everything else."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    threading.stack_size(STACK)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + STACK // 2, resource.RLIM_INFINITY))
    _say("no thread from now on")


def _allow(_: int, __: FrameType | None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    threading.stack_size(0)
    _say("threads again")


signal.signal(REFUSE, _refuse)
signal.signal(ALLOW, _allow)


_run = halt.worker.Worker.run


def _said(worker: halt.worker.Worker) -> None:
    """All threads of Halt's own have been started by then."""
    _say("the worker runs")
    _run(worker)


halt.worker.Worker.run = _said


@app.get("/pid")
def pid() -> Response:
    """The worker's process."""
    return Response(str(os.getpid()))


@app.post("/take")
def take() -> Response:
    """The same, when the whole body has come."""
    return Response(str(os.getpid()))


@app.get("/flood")
def flood() -> Response:
    """An endless response, over a buffer that is full at once."""
    client = client_socket()
    assert client is not None
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def body() -> Iterator[bytes]:
        try:
            while True:
                yield CHUNK
        finally:
            _say("the flood is over")

    return Response(body())
