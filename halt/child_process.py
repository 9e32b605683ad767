"""A child process that answers requests over a socket: both of its ends.

A frame is a length (four bytes in network order) and that many bytes. The worker sends a frame,
with file descriptors where the request needs them, and waits for one frame. When the child is
ready, it first sends a frame. It has one end of the socket as standard input, and ends when the
other end is closed, however its worker ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from halt.clock import now

START_MAX = 10.0  # seconds from the start to the first frame (0.15 measured)
TICK = 0.02  # seconds between two checks for overdue requests, while there is work
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LENGTH = struct.Struct("!I")
_PART = 1 << 18  # bytes of one read


def python_command(module: str) -> tuple[str, ...]:
    """The command that runs `main` of a module of Halt in a new interpreter."""
    program = f"import sys; sys.path.insert(0, sys.argv[1]); from {module} import main; main()"
    return (sys.executable or "python3", "-P", "-c", program, str(Path(__file__).parents[1]))


def framed(body: bytes) -> bytes:
    """The bytes of a frame."""
    return _LENGTH.pack(len(body)) + body


class ProcessDied(Exception):
    """The process has ended, or its socket is closed."""


class ProcessTimeout(Exception):
    """The process has not replied by its deadline."""


class ChildProcess:
    """The worker's end, used by one thread; other threads may call `pid` and `kill`.

    The methods raise ProcessDied, ProcessTimeout, OSError.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_tick: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process. `on_tick` is called every TICK seconds while a reply is awaited.

        `environment` replaces the worker's own.
        """
        self._on_tick = on_tick
        self._socket, child_end = socket.socketpair()
        self._socket.setblocking(False)
        try:
            with child_end:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                    command,
                    stdin=child_end.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env=environment,
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait for the first frame, at most START_MAX seconds."""
        self.exchange(b"", START_MAX)

    def exchange(self, out: bytes, timeout: float, files: Sequence[int] = ()) -> bytes:
        """Send `out`, a frame, with copies of file descriptors; return the body of the next frame.

        Waits at most `timeout` seconds.
        """
        deadline = now() + timeout
        rest, received = memoryview(out), bytearray()
        size = _LENGTH.size
        poll = select.poll()
        try:
            if files:
                rest = rest[socket.send_fds(self._socket, [rest], list(files)) :]
            while len(received) < size:
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if rest else 0))
                if not poll.poll(TICK * 1000):
                    if self._on_tick is not None:
                        self._on_tick()
                    if now() >= deadline:
                        raise ProcessTimeout
                    continue
                if rest:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[self._socket.send(rest) :]
                with contextlib.suppress(BlockingIOError):
                    part = self._socket.recv(_PART)
                    if not part:
                        raise ProcessDied
                    received += part
                if size == _LENGTH.size and len(received) >= size:
                    size += _LENGTH.unpack(received[:size])[0]
        except OSError as exc:  # it ended before it read everything
            raise ProcessDied from exc
        return bytes(received[_LENGTH.size :])

    def kill(self) -> None:
        """End the process at once. Thread-safe; may be repeated."""
        self._process.kill()

    def close(self) -> int:
        """End the process and return its exit status."""
        self._process.kill()
        self._socket.close()
        return self._process.wait()


# --- in the child ---------------------------------------------------------------------------------


def begin(*, ends_with_thread: bool = False) -> socket.socket:
    """Make this process a child; return its end of the socket.

    It ignores the signals that end a program, which its worker decides about.
    `ends_with_thread`: it also ends, at once, with the thread that started it, and so with the
    worker. Otherwise it ends when it next reads from the socket.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if ends_with_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return socket.socket(fileno=0)


def limit_cpu(seconds: float, used: float) -> None:
    """Let the kernel end this process after `seconds` more of CPU time; it has used `used`."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used) + 1 + int(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def receive(worker: socket.socket, files: int = 0) -> tuple[bytes, list[int]]:
    """Receive a frame's body, and at most `files` file descriptors; ends the process at the end."""
    if not files:
        return _exactly(worker, _LENGTH.unpack(_exactly(worker, _LENGTH.size))[0]), []
    head, descriptors, *_ = socket.recv_fds(worker, _LENGTH.size, files)
    if not head:
        os._exit(0)
    head += _exactly(worker, _LENGTH.size - len(head))
    return _exactly(worker, _LENGTH.unpack(head)[0]), descriptors


def _exactly(worker: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = worker.recv(min(size - len(data), _PART))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)
