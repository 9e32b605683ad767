"""A client's socket: calls that block have a deadline, and `sendall` may leave the rest unsent."""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any

SILENCE_MAX = 30.0  # seconds in which a client sends or takes nothing
SLOWEST = 1_000  # bytes a second that a client sends or takes at least, beyond SILENCE_MAX
REST_MAX = 65_536  # bytes that are left and added to: a head is sent before its body
AT_ONCE = 262_144  # bytes of one system call, after which the deadline is looked at


def transfer_deadline(began: float, size: int) -> float:
    """The deadline of a transfer of this many bytes that began at that time."""
    return began + SILENCE_MAX + size / SLOWEST


class ClientSocket(socket.socket):
    """See the module.

    `leaves_rest`: `sendall` returns when the network takes no more, with the rest in `unsent`, and
    only then waits where there is a rest of more than REST_MAX already. So a client that reads
    slowly holds no thread: the worker's main loop sends the rest.
    """

    leaves_rest = False
    unsent = memoryview(b"")
    behind = b""  # bytes that have come behind the request; a view that reads on begins with them
    _come = memoryview(b"")
    _is_all = False  # the request has no more bytes than those given
    _body_began = 0.0  # when the body began that a thread reads; 0 where none does
    _received = 0

    def limit_silence(self, seconds: float) -> None:
        """Let each blocking call fail after that time without a byte, with BlockingIOError.

        Where gunicorn itself does TLS it has no effect: Python's ssl tries such a call again.
        """
        value = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        for which in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, which, value)

    def begin_body(self, received: int) -> None:
        """A thread reads a body from now on, of which this many bytes have come."""
        self._body_began = time.monotonic()
        self._received = received

    def end_body(self) -> None:
        """The body need not come any longer."""
        self._body_began = 0.0

    def preload(self, come: bytes, *, is_all: bool, behind: bytes = b"") -> None:
        """Let `recv` return these bytes before others, in pieces of the size that it is asked for.

        gunicorn's reader would copy all that it has for each piece that it takes of it. `is_all`:
        no others, but the end of file. So a thread never waits for a client whose request was read
        in another way by the main loop: gunicorn takes longer lines of chunks, for example.
        """
        self._come = memoryview(come)
        self._is_all = is_all
        self.behind = behind

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As ever with flags. Raises BlockingIOError where a body comes too slowly."""
        if flags:
            return super().recv(size, flags)
        if self._come:
            come, self._come = self._come[:size], self._come[size:]
            return bytes(come)
        if self._is_all:
            return b""
        data = super().recv(size)
        if self._body_began:
            self._received += len(data)
            if time.monotonic() > transfer_deadline(self._body_began, self._received):
                raise BlockingIOError(errno.EAGAIN, "The client sends too slowly.")
        return data

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send it, or leave the rest. Raises BlockingIOError where the client is too slow."""
        left, rest = self.unsent, memoryview(data).cast("B")
        self.unsent = memoryview(b"")
        if left:
            rest = memoryview(b"".join((left, rest)))
        if 0 < len(left) <= REST_MAX:
            self.unsent = rest
        elif self.leaves_rest and not left:
            self.unsent = rest[self.send_some(rest) :]
        else:
            self._send(rest, flags)

    def send_some(self, data: memoryview) -> int:
        """How many of these bytes the network has taken, without waiting. Raises OSError."""
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
