"""Connections between two workers. A frame is four bytes of length, then the payload."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Self

from halt.clock import now

FRAME_MAX = 1 << 30  # bytes
READ_SIZE = 65_536

_LENGTH = struct.Struct("!I")


class Channel:
    """One connection between two workers. Used by one thread at a time, apart from `interrupt`."""

    def __init__(self, sock: socket.socket, long: Callable[[], bool] = lambda: True) -> None:
        self.sock = sock
        self.kept = False  # by the asker: it reads on
        #: The answer will be a long one: count it as such. False: there are too many of them.
        self.long = long
        self._received = bytearray()

    def send(self, payload: bytes) -> None:
        """Send a frame. Raises OSError."""
        self.sock.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self, timeout: float | None) -> bytes | None:
        """The next frame; None at the end. Raises OSError, of which TimeoutError is one.

        `timeout` is in seconds of silence, None: for ever.
        """
        self.sock.settimeout(timeout)
        while (frame := self._next()) is None:
            data = self.sock.recv(READ_SIZE)
            if not data:
                return None
            self._received += data
        return frame

    def look(self) -> tuple[bytes | None, bool]:
        """The next frame if it is there, without waiting; and whether more may come."""
        self.sock.settimeout(0)
        try:
            while (frame := self._next()) is None:
                data = self.sock.recv(READ_SIZE)
                if not data:
                    return None, False
                self._received += data
        except BlockingIOError:
            return None, True
        except OSError:
            return None, False
        return frame, True

    def interrupt(self) -> None:
        """Wake the thread that reads. By any thread, as long as the channel is not closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()

    def _next(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._received)
        if size > FRAME_MAX:
            raise OSError("a frame that is too long")
        end = _LENGTH.size + size
        if len(self._received) < end:
            return None
        frame = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return frame


class Answers:
    """The first frame of each answer of (worker, frame, channel), as they come, in one iteration.

    To be used in a `with`, at whose end every channel that is not `kept` is closed. `unreached` are
    the workers to which the request could not be sent: their queues are full, or they are dying.
    """

    def __init__(
        self,
        asked: Mapping[str, Channel] = MappingProxyType({}),
        deadline: float = 0.0,
        unreached: Sequence[str] = (),
    ) -> None:
        self.unreached = unreached
        self._asked = asked
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._asked.values():
            if not channel.kept:
                channel.close()

    def __iter__(self) -> Iterator[tuple[str, bytes, Channel]]:
        poller = select.poll()
        waiting = {}
        for name, channel in self._asked.items():
            waiting[channel.sock.fileno()] = name, channel
            poller.register(channel.sock, select.POLLIN)
        while waiting and (left := self._deadline - now()) > 0:
            for number, _ in poller.poll(left * 1000):
                name, channel = waiting[number]
                frame, more = channel.look()
                if frame is None and more:
                    continue
                poller.unregister(number)
                del waiting[number]
                if frame is not None:
                    yield name, frame, channel
