"""The worker's side of a rendering process: starts it, sends requests, kills it when it hangs."""

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

START_MAX = 10.0  # seconds from the start to the first reply (0.15 measured)
TICK = 0.02  # seconds between two checks for overdue requests, while there is work

logger = logging.getLogger(__name__)


class ProcessDied(Exception):
    """The process has ended, or its socket is closed."""


class ProcessTimeout(Exception):
    """The process has not replied by its deadline."""


class Child:
    """A rendering process, used by one thread; other threads may call `pid` and `kill`.

    The methods raise ProcessDied, ProcessTimeout, OSError.
    """

    def __init__(self, command: Sequence[str], on_tick: Callable[[], None]) -> None:
        """Start the process. `on_tick` is called every TICK seconds while a reply is awaited."""
        self._on_tick = on_tick
        self._socket, child_end = socket.socketpair()
        self._socket.setblocking(False)
        try:
            with child_end:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                    command, stdin=child_end.fileno(), stdout=subprocess.DEVNULL, cwd="/"
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait for the first reply, at most START_MAX seconds."""
        self._exchange(b"", now() + START_MAX)

    def request(self, request: Request) -> Reply:
        """Send a request and return the reply. Logs a fault that the reply names."""
        body = self._exchange(frame(request), now() + request.deadline)
        try:
            reply = replies.decode(body)
        except msgspec.MsgspecError as exc:
            raise ProcessDied from exc
        if reply.fault:
            logger.error("a text cannot be rendered: %s", reply.fault)
        return reply

    def _exchange(self, out: bytes, deadline: float) -> bytes:
        """Send `out`; return the body of the next frame."""
        rest, received = memoryview(out), bytearray()
        size = HEAD
        poll = select.poll()
        try:
            while len(received) < size:
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if rest else 0))
                if not poll.poll(TICK * 1000):
                    self._on_tick()
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
        except OSError as exc:  # it ended before it read everything
            raise ProcessDied from exc
        return bytes(received[HEAD:])

    def kill(self) -> None:
        """End the process at once. Thread-safe; may be repeated."""
        self._process.kill()

    def close(self) -> int:
        """End the process and return its exit status."""
        self._process.kill()
        self._socket.close()
        return self._process.wait()
