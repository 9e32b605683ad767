"""A client's socket: blocking calls have deadlines, and `sendall` may keep a rest unsent."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any

SILENCE_MAX = 30.0  # seconds in which a client may send or take no byte
SLOWEST = 1_000  # bytes per second that a client must send or take after SILENCE_MAX
REST_MAX = 65_536  # unsent bytes to which `sendall` adds: a head is sent before its body
AT_ONCE = 262_144  # bytes of one system call; the deadline is checked after each


def transfer_deadline(began: float, size: int) -> float:
    """The deadline (monotonic time) of a transfer of `size` bytes that began at `began`."""
    return began + SILENCE_MAX + size / SLOWEST


class ClientSocket(socket.socket):
    """A client's socket as the worker uses it.

    `leaves_rest`: `sendall` returns when the kernel's buffer is full and stores the rest in
    `unsent`; the worker's main loop sends it, so a slow reader blocks no thread. `sendall` blocks
    only where `unsent` already has more than REST_MAX bytes.
    """

    leaves_rest = False
    unsent = memoryview(b"")
    bytes_after_request = (
        b""  # bytes received after the end of the request; a WebSocket reads them first
    )
    _preloaded = memoryview(b"")
    _is_all = False  # the preloaded bytes are the whole request
    _body_began = 0.0  # monotonic time when a thread began to read a body; 0 where none does
    _received = 0

    def limit_silence(self, seconds: float) -> None:
        """Let each blocking call raise BlockingIOError after that time without a byte.

        It has no effect where gunicorn itself terminates TLS: Python's ssl repeats such a call.
        """
        value = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        for which in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, which, value)

    def begin_body(self) -> None:
        """Start the deadline of the rest of a body, which a thread reads."""
        self._body_began = time.monotonic()
        self._received = 0

    def end_body(self) -> None:
        """Cancel the deadline of the body."""
        self._body_began = 0.0

    def preload(self, data: bytes, *, is_all: bool, after_request: bytes = b"") -> None:
        """Let `recv` return these bytes first, in pieces of the requested size.

        gunicorn's reader would copy its whole buffer for each piece. `is_all`: after these bytes
        `recv` returns the end of file. So a thread never waits for a client where gunicorn and the
        main loop find different ends of the request: gunicorn accepts longer chunk lines, for
        example. `after_request`: bytes after the end of the request.
        """
        self._preloaded = memoryview(data)
        self._is_all = is_all
        self.bytes_after_request = after_request

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.recv`. Raises BlockingIOError where a body is sent too slowly."""
        if flags:
            return super().recv(size, flags)
        if self._preloaded:
            piece, self._preloaded = self._preloaded[:size], self._preloaded[size:]
            return bytes(piece)
        if self._is_all:
            return b""
        data = super().recv(size)
        if self._body_began:
            self._received += len(data)
            if time.monotonic() > transfer_deadline(self._body_began, self._received):
                raise BlockingIOError(errno.EAGAIN, "The client sends too slowly.")
        return data

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send the data or keep it in `unsent`. Raises BlockingIOError for a too slow client."""
        unsent, rest = self.unsent, memoryview(data).cast("B")
        self.unsent = memoryview(b"")
        if unsent:
            rest = memoryview(b"".join((unsent, rest)))
        if 0 < len(unsent) <= REST_MAX:
            self.unsent = rest
        elif self.leaves_rest and not unsent:
            self.unsent = rest[self.send_some(rest) :]
        else:
            self._send(rest, flags)

    def send_some(self, data: memoryview) -> int:
        """Send without blocking; the number of bytes sent. Raises OSError."""
        try:
            return self.send(data[:AT_ONCE], socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return 0

    def _send(self, rest: memoryview, flags: int) -> None:
        deadline = transfer_deadline(time.monotonic(), len(rest))
        while rest:
            rest = rest[self.send(rest[:AT_ONCE], flags) :]
            if rest and time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, "The client takes too little.")
