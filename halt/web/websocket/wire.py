"""The connection of a WebSocket: what is written to the client's socket, by which thread, and when.

the relay             writes every byte, the answer to the handshake and the close included, one
                      batch at a time. It never waits: no batch is made before the network has
                      taken the one before.
simple-websocket's    reads, on a `Wire` in place of the socket, so that its pongs, pings and
thread                closes go to the relay too. It reads nothing while a message waits to be
                      obeyed, or FRAMES_MAX answers wait to be taken.
the server's thread   obeys messages. At the end it takes the socket back from the relay and
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

SEND_BUFFER = 65_536  # bytes given to the kernel ahead of the reader; Linux takes twice as much
LAST_BUFFER = 4 * SEND_BUFFER  # room for the last words, also when the reader has not read
FRAMES_MAX = 256  # answers and pongs that wait; with so many, nothing more is read or obeyed
RELEASE_TICK = 1.0  # seconds between two looks whether the relay still runs

TEXT, CLOSE, _PONG = b"\x81", b"\x88", b"\x8a"
_NOTHING = memoryview(b"")


def frame(kind: bytes, payload: bytes) -> bytes:
    """A server's WebSocket frame (RFC 6455): not masked, not split."""
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (kind, size, payload)
    if size < 65536:
        return b"%b\x7e%b%b" % (kind, size.to_bytes(2), payload)
    return b"%b\x7f%b%b" % (kind, size.to_bytes(8), payload)


def _closes(data: bytes) -> bool:
    """Whether these frames end with a close. simple-websocket sends one behind pongs it owes."""
    while data[:1] == _PONG:
        data = data[2 + data[1] :]  # a control frame's size is one byte
    return data[:1] == CLOSE


class EarlyDataSelector(selectors.DefaultSelector):
    """simple-websocket waits by it for one `Wire`, of which something may be read already."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._wire = fileobj
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._wire.early:
            return [(self.get_key(self._wire), selectors.EVENT_READ)]
        return super().select(timeout)


class Feed:
    """One stream on its way to one socket. Its place in the log is the relay's own."""

    def __init__(self, run: Generation, after: int, wire: Wire) -> None:
        """Take a viewer's place behind the event `after`. Raises OffsetLost.

        A reader that has all of an ended stream gets its last event again, and so learns of the
        end.
        """
        run.log.read(after, 1)
        self._run = run
        self._after = min(after, run.log.last - (run.log.ended is not None))
        self._wire = wire
        self._prefix = b'{"stream":"%b","seq":' % run.id.encode()
        self._viewer = run.join()
        self._queued = False  # the wire knows that there is something
        self.over = False

    def begin(self) -> None:
        """Send what is there, and what comes."""
        self._run.log.subscribe(self.changed)
        self.changed()

    def changed(self) -> None:
        """There may be something to send. Called by the thread that added it; takes no lock."""
        if not self._queued and not self.over:
            self._queued = True
            self._wire.offer(self)

    def take(self, most: int) -> tuple[bytes, int]:
        """By the relay: the frames of what comes next, and how many: at most so many."""
        self._queued = False  # before the log is read: what comes after that is announced again
        run, after = self._run, self._after
        try:
            events = [] if self.over else fitting(run.log.read(after, most))
        except OffsetLost as lost:
            # The reader is further behind than the log is long: an error, never a gap.
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
        """Send no more. The reader has left. Harmless when repeated."""
        self.over = True
        self._run.log.unsubscribe(self.changed)
        self._run.leave(self._viewer)


class Wire:
    """The client's connection, from the handshake to `end`. See the module for its threads."""

    def __init__(self, sock: socket.socket, relay: Relay, stall_timeout: float) -> None:
        """Give the socket to the relay. `stall_timeout`: seconds in which no byte is taken."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.wake_event = threading.Event()  # the server's thread has something to do
        self.inbox: list[str | bytes] = []  # messages that have been read, simple-websocket's list
        self.too_slow = False  # the client has taken nothing for `stall_timeout`
        self.over = False  # nothing is written any more
        self.early = b""  # what came before the connection became a WebSocket, until it is read
        self.fault: Exception | None = None  # why the relay could not make a frame
        self._sock = sock
        self._relay = relay
        self._stall_timeout = stall_timeout
        # Any thread may append to these two. `_due`: the relay will look at them.
        self._frames: deque[bytes] = deque()  # answers and control frames
        self._feeds: deque[Feed] = deque()  # those that have something
        self._due = False
        self._may_read = threading.Condition()  # the reading thread waits for it
        self._released = threading.Event()  # the socket is the server's thread's again
        # The relay's own:
        self._unsent = _NOTHING  # of a batch, what the network has not taken
        self._stuck = Timer(self._drop)  # due when the client has taken nothing for `stall_timeout`
        self._closed = False  # the last frame is in a batch
        relay.post(partial(relay.at_end.add, self._release))

    # --- for simple-websocket ---------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int) -> bytes:
        """Read on when all that was said before has been obeyed: no queue grows here."""
        with self._may_read:
            self._may_read.wait_for(lambda: (self.has_room and not self.inbox) or self.over)
        if self.over:
            return b""
        early, self.early = self.early[:size], self.early[size:]
        # Past the end of the request, which is that of a `ClientSocket`.
        return early or socket.socket.recv(self._sock, size)

    def close(self) -> None:
        """Nothing is read any more. The connection itself is the server's to close."""
        self.wake_event.set()

    # --- for any thread ---------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more message may be obeyed. `wake_event` is set when there is room again."""
        return len(self._frames) < FRAMES_MAX

    def send(self, data: bytes) -> None:
        """Have a frame written, before events that wait. Behind a close nothing is."""
        if _closes(data):
            # Room for it: a reader that is too slow finds it when it reads on.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LAST_BUFFER)
        self._frames.append(data)
        self._wake()

    def offer(self, feed: Feed) -> None:
        """Have written what this stream has."""
        self._feeds.append(feed)
        self._wake()

    def _wake(self) -> None:
        if self._due:
            return
        self._due = True
        if self._relay.is_current:
            # At the turn's end: of 25 tokens for one socket in a turn, each costs 4.5 us, not 6.
            self._relay.at(0.0, self._serve)
        else:
            self._relay.post(self._serve)

    # --- for the server's thread ------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Let the next message be read where all were obeyed. Return when there is work to do."""
        with self._may_read:
            self._may_read.notify()
        self.wake_event.wait(timeout)
        self.wake_event.clear()

    def release(self) -> None:
        """Take the socket back from the relay; nothing is written afterwards. May be repeated."""
        self._relay.post(self._release)
        while not self._released.wait(RELEASE_TICK) and self._relay.is_running:
            pass
        self.over = True
        self.wait(0)  # for the reading thread to see it

    def end(self, until: float) -> None:
        """Shut the connection down; no thread uses it afterwards.

        Until that time at most, what the client still sends is read: it would not find the last
        words in a connection that is closed over something unread.
        """
        self.release()
        poller = select.poll()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            poller.register(self._sock, select.POLLIN)
            while poller.poll(max(0.0, until - now()) * 1000):
                with contextlib.suppress(BlockingIOError):  # the other thread took it
                    if not self._sock.recv(GROUP_CHARS, socket.MSG_DONTWAIT):
                        break
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- the relay's own --------------------------------------------------------------------------

    @contained
    def _serve(self, _: int = WRITE) -> None:
        """Send what is left of a batch, or else the next one."""
        if not self.over:
            self._push(self._unsent or memoryview(self._gather()))

    def on_fault(self, exc: Exception) -> None:
        """A frame cannot be made or sent: the server's thread is told, and closes."""
        self.fault, self._due = exc, False
        self.wake_event.set()

    def _gather(self) -> bytes:
        """Whole frames for the next batch: answers first, then the streams in turn."""
        out, size, room = list[bytes](), 0, GROUP_EVENTS
        # Counted before answers are taken: a stream's events come behind the answer to its start.
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
        self._due = False  # before the queues are looked at: what comes after that wakes the relay
        if (self._frames or self._feeds) and not (self._closed or self.over):
            self._due = True
            self._relay.again(self._serve)

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
        self._serve()  # the first may have been the rest of a batch
        self._forget_unsent()
        self._relay.at_end.discard(self._release)
        self.over = True
        self._released.set()
        self.wake_event.set()
