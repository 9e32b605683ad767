"""The connection of a WebSocket: which thread reads and writes the client's socket, and when.

the relay             writes all bytes, also the response to the handshake and the close frame,
                      one batch at a time. It never waits: it makes no batch before the kernel
                      has taken the previous one.
simple-websocket's    reads from a `Wire`, which replaces the socket, so the relay also writes its
thread                pongs, pings and close frames. It does not read while a message waits to be
                      handled, or FRAMES_MAX answers wait to be sent.
the server's thread   handles messages. At the end it takes the socket back from the relay and
                      shuts it down (`Wire.end`); then the server closes it.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
from collections import deque
from functools import partial
from typing import Any

from halt.clock import now
from halt.core.events import encode, is_terminal
from halt.core.generation import Generation
from halt.core.relay import WRITE, Relay, Timer, contained
from halt.errors import OffsetLost
from halt.web.sink import GROUP_CHARS, GROUP_EVENTS, fitting
from halt.web.websocket.messages import error_message

SEND_BUFFER = 65_536  # bytes of the kernel's send buffer; Linux doubles it
LAST_BUFFER = 4 * SEND_BUFFER  # room for the close frame, also where the client does not read
FRAMES_MAX = 256  # waiting answers and pongs; at this number reading and handling pause
RELEASE_TICK = 1.0  # seconds between two checks whether the relay still runs

TEXT, CLOSE, _PONG = b"\x81", b"\x88", b"\x8a"
_NOTHING = memoryview(b"")


def frame(kind: bytes, payload: bytes) -> bytes:
    """A server's WebSocket frame (RFC 6455): not masked, not fragmented."""
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (kind, size, payload)
    if size < 65536:
        return b"%b\x7e%b%b" % (kind, size.to_bytes(2), payload)
    return b"%b\x7f%b%b" % (kind, size.to_bytes(8), payload)


def _closes(data: bytes) -> bool:
    """Whether a close frame follows any pongs: simple-websocket sends pending pongs before it."""
    while data[:1] == _PONG:
        data = data[2 + data[1] :]  # the length of a control frame is one byte
    return data[:1] == CLOSE


class EarlyDataSelector(selectors.DefaultSelector):
    """simple-websocket's selector for one `Wire`, which is readable while it has early bytes."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._wire = fileobj
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._wire.early:
            return [(self.get_key(self._wire), selectors.EVENT_READ)]
        return super().select(timeout)


class Feed:
    """Sends one stream to one socket. Only the relay reads and moves its position in the log."""

    def __init__(self, run: Generation, after: int, wire: Wire) -> None:
        """Register a viewer after the event `after`. Raises OffsetLost.

        A reader that has all events of an ended stream gets the last one again, as its end.
        """
        run.log.read(after, 1)
        self._run = run
        self._after = min(after, run.log.last - (run.log.ended is not None))
        self._wire = wire
        self._prefix = b'{"stream":"%b","seq":' % run.id.encode()
        self._viewer = run.join()
        self._queued = False  # it is in the wire's queue
        self.over = False

    def begin(self) -> None:
        """Send the existing events, and new ones as they are added."""
        self._run.log.subscribe(self.changed)
        self.changed()

    def changed(self) -> None:
        """Queue the feed: there may be new events. Called by the thread that adds them; no lock."""
        if not self._queued and not self.over:
            self._queued = True
            self._wire.offer(self)

    def take(self, limit: int) -> tuple[bytes, int]:
        """In the relay: the frames of the next events, and their number, at most `limit`."""
        self._queued = False  # before the read: a later event queues it again
        run, after = self._run, self._after
        try:
            events = [] if self.over else fitting(run.log.read(after, limit))
        except OffsetLost as lost:
            # The reader's next event is no longer in the log: send an error, never leave a gap.
            self.end()
            return frame(TEXT, error_message(lost, run.id)), 1
        if not events:
            return b"", 0
        self._after, last = events[-1]
        if is_terminal(last):
            self.end()
        elif run.log.last > self._after:
            self.changed()
        newest = run.newest_frame
        if newest is None or newest[:3] != (Feed, after, self._after):
            data = b"".join(
                frame(TEXT, b'%b%d,"event":%b}' % (self._prefix, seq, encode(event)))
                for seq, event in events
            )
            newest = run.newest_frame = (Feed, after, self._after, data)
        return newest[3], len(events)

    def end(self) -> None:
        """Send no more and unregister the viewer. May be repeated."""
        self.over = True
        self._run.log.unsubscribe(self.changed)
        self._run.leave(self._viewer)


class Wire:
    """The client's connection, from the handshake to `end`. For its threads see the module."""

    def __init__(self, sock: socket.socket, relay: Relay, stall_timeout: float) -> None:
        """Give the socket to the relay. `stall_timeout`: seconds in which no byte is taken."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.wake_event = threading.Event()  # set when the server's thread has work
        self.inbox: list[str | bytes] = []  # received messages; simple-websocket's list
        self.too_slow = False  # the client has taken no byte for `stall_timeout`
        self.over = False  # no more bytes are written
        self.early = b""  # bytes received before the handshake's end, until they are read
        self.fault: Exception | None = None  # why the relay could not make a frame
        self._sock = sock
        self._relay = relay
        self._stall_timeout = stall_timeout
        # Any thread may append to the two queues. `_due`: the relay will serve them.
        self._frames: deque[bytes] = deque()  # answers and control frames
        self._feeds: deque[Feed] = deque()  # feeds with events to send
        self._due = False
        self._may_read = threading.Condition()  # notified when the reading thread may read on
        self._released = threading.Event()  # the relay has given the socket back
        # Used by the relay only:
        self._unsent = _NOTHING  # the part of a batch that the kernel has not taken
        self._stuck = Timer(self._drop)  # runs after `stall_timeout` without a byte taken
        self._closed = False  # the close frame is in a batch; no frame follows it
        relay.post(partial(relay.at_end.add, self._release))

    # --- for simple-websocket ---------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int) -> bytes:
        """Wait until all earlier messages are handled, then read, so that no queue grows."""
        with self._may_read:
            self._may_read.wait_for(lambda: (self.has_room and not self.inbox) or self.over)
        if self.over:
            return b""
        early, self.early = self.early[:size], self.early[size:]
        # Not `ClientSocket.recv`, which may return the end of the request.
        return early or socket.socket.recv(self._sock, size)

    def close(self) -> None:
        """Wake the server's thread: reading has ended. The server closes the connection itself."""
        self.wake_event.set()

    # --- for any thread ---------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more message may be handled. `wake_event` is set when there is room again."""
        return len(self._frames) < FRAMES_MAX

    def send(self, data: bytes) -> None:
        """Queue a frame, which is written before waiting events. After a close none is written."""
        if _closes(data):
            # Make room for it: a too slow client then finds it when it reads on.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LAST_BUFFER)
        self._frames.append(data)
        self._wake()

    def offer(self, feed: Feed) -> None:
        """Queue a feed that has events to send."""
        self._feeds.append(feed)
        self._wake()

    def _wake(self) -> None:
        if self._due:
            return
        self._due = True
        if self._relay.is_current:
            # At the end of the turn: for 25 tokens per turn and socket each costs 4.5 us, not 6.
            self._relay.at(0.0, self._serve)
        else:
            self._relay.post(self._serve)

    # --- for the server's thread ------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Let the reading thread read on; wait for `wake_event`, at most `timeout` seconds."""
        with self._may_read:
            self._may_read.notify()
        self.wake_event.wait(timeout)
        self.wake_event.clear()

    def release(self) -> None:
        """Take the socket back from the relay, which then writes no more. May be repeated."""
        self._relay.post(self._release)
        while not self._released.wait(RELEASE_TICK) and self._relay.is_running:
            pass
        self.over = True
        self.wait(0)  # so that the reading thread sees it

    def end(self, until: float) -> None:
        """Shut the connection down; no thread uses it afterwards.

        Read and discard what the client sends, at most until `until`: closing a socket with unread
        bytes resets the connection, and the client would lose the last frames.
        """
        self.release()
        poller = select.poll()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            poller.register(self._sock, select.POLLIN)
            while poller.poll(max(0.0, until - now()) * 1000):
                with contextlib.suppress(BlockingIOError):  # the other thread has read the bytes
                    if not self._sock.recv(GROUP_CHARS, socket.MSG_DONTWAIT):
                        break
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- the relay's own --------------------------------------------------------------------------

    @contained
    def _serve(self, _: int = WRITE) -> None:
        """Send the rest of the current batch, or the next batch."""
        if not self.over:
            self._push(self._unsent or memoryview(self._gather()))

    def on_fault(self, exc: Exception) -> None:
        """Pass the exception to the server's thread, which closes."""
        self.fault, self._due = exc, False
        self.wake_event.set()

    def _gather(self) -> bytes:
        """The frames of the next batch: answers first, then the feeds in turn."""
        out, size, room = list[bytes](), 0, GROUP_EVENTS
        # Counted before answers are taken, so a stream's events follow the answer to its start.
        feeds = len(self._feeds)
        while self._frames and size < GROUP_CHARS and not self._closed:
            data = self._frames.popleft()
            self._closed = _closes(data)
            out.append(data)
            size += len(data)
            if len(self._frames) == FRAMES_MAX - 1:
                self.wake_event.set()
        while feeds and room > 0 and size < GROUP_CHARS and not self._closed:
            data, count = self._feeds.popleft().take(room)
            out.append(data)
            feeds -= 1
            room -= count
            size += len(data)
        return b"".join(out)

    def _push(self, data: memoryview) -> None:
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT) if data else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.over, sent = True, len(data)
            self.wake_event.set()
        if sent < len(data):
            if not self._unsent:
                self._relay.watch(self._sock, WRITE, self._serve)
            if sent or not self._unsent:
                self._stuck.cancel()
                self._stuck = self._relay.at(now() + self._stall_timeout, self._drop)
            self._unsent = data[sent:]
            return
        self._forget_unsent()
        self._due = False  # before the queues are checked: a later item wakes the relay
        if (self._frames or self._feeds) and not (self._closed or self.over):
            self._due = True
            self._relay.call_next_turn(self._serve)

    def _forget_unsent(self) -> None:
        if self._unsent:
            self._unsent = _NOTHING
            self._relay.unwatch(self._sock)
            self._stuck.cancel()

    def _drop(self) -> None:
        self.too_slow = True
        self.wake_event.set()

    def _release(self) -> None:
        self._serve()
        self._serve()  # the first call may have sent the rest of a batch
        self._forget_unsent()
        self._relay.at_end.discard(self._release)
        self.over = True
        self._released.set()
        self.wake_event.set()
