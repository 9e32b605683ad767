"""A rendering process as its worker sees it: started, asked, and killed when it hangs."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import subprocess
from collections.abc import Callable, Sequence

import msgspec

from halt.clock import now
from halt.rendering.protocol import HEAD, Reply, Request, frame, length_of, replies

START_MAX = 10.0  # seconds from a start to the first reply (0.15 measured)
TICK = 0.02  # seconds between two looks at the requests whose time is over, while there is work

logger = logging.getLogger(__name__)


class ProcessDied(Exception):
    """The process has ended, or its socket is closed."""


class ProcessTimeout(Exception):
    """The process has not answered by its deadline."""


class Child:
    """A rendering process, for the one thread that waits for it.

    Raises ProcessDied, ProcessTimeout, OSError.
    """

    def __init__(self, command: Sequence[str], look: Callable[[], None]) -> None:
        """Start it. `look` is called every TICK while it is waited for."""
        self._look = look
        self._socket, theirs = socket.socketpair()
        self._received = bytearray()
        self._socket.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, cwd="/"
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait for its first reply."""
        self._exchange(b"", now() + START_MAX)

    def request(self, request: Request) -> Reply:
        """Have it answer a request."""
        answer = self._exchange(frame(request), now() + request.deadline)
        try:
            reply = replies.decode(answer)
        except msgspec.MsgspecError as exc:
            raise ProcessDied from exc
        if reply.fault:
            logger.error("a text cannot be rendered: %s", reply.fault)
        return reply

    def _exchange(self, out: bytes, deadline: float) -> bytes:
        rest, received = memoryview(out), bytearray()
        size = HEAD
        poll = select.poll()
        try:
            while len(received) < size:
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if rest else 0))
                if not poll.poll(TICK * 1000):
                    self._look()
                    if now() >= deadline:
                        raise ProcessTimeout
                    continue
                if rest:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[self._socket.send(rest) :]
                with contextlib.suppress(BlockingIOError):
                    part = self._socket.recv(1 << 18)
                    if not part:
                        raise ProcessDied
                    received += part
                if size == HEAD and len(received) >= HEAD:
                    size += length_of(received[:HEAD])
        except OSError as exc:  # it has ended before it has read all
            raise ProcessDied from exc
        return bytes(received[HEAD:])

    def kill(self) -> None:
        """End it at once. Harmless when repeated, and in any thread."""
        self._process.kill()

    def close(self) -> int:
        """End it, and return its exit status."""
        self._process.kill()
        self._socket.close()
        return self._process.wait()
