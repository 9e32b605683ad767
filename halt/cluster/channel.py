"""Connections between two workers that carry frames, and several workers' replies to a request.

A frame is a length in four bytes, then the payload.
"""

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
    """One connection between two workers. Used by one thread at a time, except `interrupt`."""

    def __init__(
        self, sock: socket.socket, begin_stream: Callable[[], bool] = lambda: True
    ) -> None:
        self.sock = sock
        self.is_kept = False  # set by the requester, which reads further frames and closes it
        #: Counts this reply as a stream, which has no time limit. False: too many streams are open.
        self.begin_stream = begin_stream
        self._received = bytearray()

    def send(self, payload: bytes) -> None:
        """Send a frame. Raises OSError."""
        self.sock.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self, timeout: float | None) -> bytes | None:
        """The next frame; None when the other end has closed.

        `timeout` is in seconds without data, None: no limit. Raises OSError, TimeoutError among
        them.
        """
        self.sock.settimeout(timeout)
        while (frame := self._next()) is None:
            data = self.sock.recv(READ_SIZE)
            if not data:
                return None
            self._received += data
        return frame

    def receive_nowait(self) -> tuple[bytes | None, bool]:
        """The next frame or None, and whether more data may come. Does not wait.

        An error of the connection counts as its end.
        """
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
        """Wake the thread that reads. Called by any thread, while the channel is not closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()

    def _next(self) -> bytes | None:
        """Remove and return the first frame of the received bytes; None if it is not complete."""
        if len(self._received) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._received)
        if size > FRAME_MAX:
            raise OSError(f"a frame of {size} bytes, more than FRAME_MAX")
        end = _LENGTH.size + size
        if len(self._received) < end:
            return None
        frame = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return frame


class Replies:
    """Iterates once over (worker name, first frame of its reply, channel), in order of arrival.

    To be used in a `with` block, whose end closes every channel that is not `is_kept`. `unreached`
    are the workers to which the request could not be sent: their queue is full, or they have just
    died.
    """

    def __init__(
        self,
        channels: Mapping[str, Channel] = MappingProxyType({}),
        deadline: float = 0.0,
        unreached: Sequence[str] = (),
    ) -> None:
        self.unreached = unreached
        self._channels = channels
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            if not channel.is_kept:
                channel.close()

    def __iter__(self) -> Iterator[tuple[str, bytes, Channel]]:
        poller = select.poll()
        channels = {}
        for name, channel in self._channels.items():
            channels[channel.sock.fileno()] = name, channel
            poller.register(channel.sock, select.POLLIN)
        while channels and (seconds_left := self._deadline - now()) > 0:
            for number, _ in poller.poll(seconds_left * 1000):
                name, channel = channels[number]
                frame, may_continue = channel.receive_nowait()
                if frame is None and may_continue:
                    continue
                poller.unregister(number)
                del channels[number]
                if frame is not None:
                    yield name, frame, channel
