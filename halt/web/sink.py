"""The relay's part of a streaming response: it writes a run's events to one client's socket.

gunicorn writes the head of the response and the body's first bytes. From then on the relay writes
the chunks of the body, up to and including the last one of the stream; the last chunk of HTTP,
which is empty, is gunicorn's again. The view sleeps in between. It is woken when the kernel has
taken everything and the socket is in no table of the relay's, or after the connection was shut
down.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import FrameType, FunctionType
from typing import Any, Protocol

from halt.clock import now
from halt.core.connection import TICK
from halt.core.events import Event, is_terminal, size_of
from halt.core.generation import Generation
from halt.core.relay import PIPELINED_LOOK, READ, WRITE, Relay, Timer, contained, has_left
from halt.errors import OffsetLost
from halt.web.client_socket import ClientSocket

#: Makes the bytes of a group of events, or gives a function that makes them: that one may take
#: milliseconds, so the relay has it called by a thread, once and before the next group.
Presenter = Callable[[list[tuple[int, Event]]], "FrameResult"]


@dataclass(frozen=True)
class PendingFrame:
    """A frame that `make` makes when the future is resolved, which takes seconds at most."""

    future: Future[Any]
    make: Callable[[], bytes]


FrameResult = bytes | Callable[[], bytes | PendingFrame]

GROUP_CHARS = 65_536  # about as many in one frame
GROUP_EVENTS = 64  # of one frame, so that a long replay holds up no other reader
STUCK_MAX = 30.0  # seconds without a byte taken, after which a reader is dropped; it can resume

_NOTHING = memoryview(b"")

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """What the relay needs of `halt.web.event_stream.EventStream`, which itself makes a `Sink`."""

    run: Generation
    after: int
    present: Presenter
    comment: bytes
    empty_message: bytes
    interval: float
    heartbeat: float
    idle_message: Callable[[], bytes] | None
    relay: Relay

    @property
    def is_dismissed(self) -> bool:
        """The reader is to go now, with what it has been sent."""

    def lost_frame(self, lost: OffsetLost) -> bytes:
        """The last frame of a reader whose next events are no longer kept."""

    def paint(self, work: Callable[[], object]) -> None:
        """Have this done by the thread for what takes milliseconds."""

    def leave(self) -> None:
        """The reader has left, or was dropped."""


def gunicorn_response(frame: FrameType | None, client: socket.socket | None) -> Any:
    """gunicorn's Response where its threaded worker itself iterates the body.

    None: something else does, which may frame or change the bytes in its own way: another server,
    HTTP/1.0, TLS that ends here, a middleware around the body. `frame` is the one that asked for
    the body's first bytes.
    """
    if (
        frame is None
        or frame.f_code.co_name != "handle_request"
        or frame.f_globals.get("__name__") != "gunicorn.workers.gthread"
    ):
        return None
    response = frame.f_locals.get("resp")
    chunked = getattr(response, "chunked", False)
    writes = isinstance(client, ClientSocket) and not client.leaves_rest
    return response if chunked and writes else None


class Sink:
    """A client's socket, and its reader's place in the log. All but `wait` is the relay's.

    One group of events at a time is made and sent. What the network does not take is kept, at most
    that one group; then nothing is made until the client has taken it. So memory is bounded, and a
    reader that is behind goes on from the log.
    """

    def __init__(self, stream: Stream, response: Any) -> None:
        self._stream = stream
        self._run = stream.run
        self._response = response
        self._relay = stream.relay
        self._finished = threading.Lock()  # the view sleeps on it
        self._finished.acquire()
        self._is_whole = False  # all was taken, so the server can end the body
        self._sock: socket.socket = response.sock
        self._is_open = False  # from `_begin` on, until `_end`
        self._events = 0  # what the selector waits for
        self._after = stream.after
        self._shares = isinstance(stream.present, FunctionType)
        self._is_scheduled = True  # a look at the log is coming
        self._has_sent = False  # a group of events
        self._unsent = _NOTHING  # what the network has not taken
        self._taken_at = self._sent_at = now()
        self._ready_at = 0.0  # before this time no group is sent
        self._is_painting = False
        self._is_ending = False  # nothing follows what is there
        self._timers: dict[str, Timer] = {}
        self._relay.post(self._begin)

    def wait(self) -> bool:
        """By the view: sleep until the reader is through. False: it has left, or was dropped."""
        self._finished.acquire()
        return self._is_whole

    @contained
    def _begin(self) -> None:
        self._is_open = True
        self._relay.at_end.add(self._drop)
        self._wait_for(READ)
        self._run.log.subscribe(self._changed)
        self._beat()
        self._serve()

    def _end(self, *, whole: bool) -> None:
        """The socket is the view's again."""
        if not self._is_open:
            return
        self._is_open = False
        self._is_whole = whole
        self._relay.at_end.discard(self._drop)
        self._wait_for(0)
        self._run.log.unsubscribe(self._changed)
        for timer in self._timers.values():
            timer.cancel()
        if not whole:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._stream.leave()
        self._finished.release()

    def _drop(self) -> None:
        self._end(whole=False)

    def _wait_for(self, events: int) -> None:
        before = self._events
        if before == events:
            return
        if not before:
            self._relay.watch(self._sock, events, self._ready)
        elif events:
            self._relay.change(self._sock, events, self._ready)
        else:
            self._relay.unwatch(self._sock)
        self._events = events  # last: where the selector refuses, `_drop` finds what it has

    def _schedule(self, name: str, time: float, work: Callable[[], None]) -> None:
        """Call `work` at this time, in place of what was to be called under this name."""
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._relay.at(time, work)

    # --- the log ----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The log has grown. Called by the thread that added to it."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._relay.post(self._serve)

    @contained
    def _serve(self) -> None:
        """Send the next group, if there is one and the client has taken the one before."""
        self._is_scheduled = False  # before the read: a later event schedules it again
        if not self._is_open or self._unsent or self._is_painting or self._is_ending:
            return
        stream, log = self._stream, self._run.log
        if stream.is_dismissed:
            self._send_result(b"", is_last=True)
            return
        ended = log.ended  # before the read: with the end all events are there
        if stream.interval and ended is None and (at := self._ready_at) > now():
            self._schedule("interval", at, self._serve)
            return
        try:
            events = log.read(self._after, GROUP_EVENTS)
        except OffsetLost as lost:
            # The reader is further behind than the log is long: an error, never a gap.
            self._send_result(stream.lost_frame(lost), is_last=True)
            return
        if not events:
            if ended is not None:
                self._send_result(b"" if self._has_sent else stream.empty_message, is_last=True)
            return
        if stream.interval:
            self._ready_at = now() + stream.interval
        if len(events) > 1:
            events = fitting(events)
        self._has_sent = True
        after, (self._after, last) = self._after, events[-1]
        self._send_result(self._frame(after, events), is_last=is_terminal(last))

    def _frame(self, after: int, events: list[tuple[int, Event]]) -> FrameResult:
        present, newest = self._stream.present, self._run.newest_frame
        if not self._shares:
            return present(events)
        if newest and newest[:3] == (present, after, self._after):
            return newest[3]
        made = present(events)
        if isinstance(made, bytes):
            self._run.newest_frame = (present, after, self._after, made)
        return made

    def _send_result(self, made: FrameResult, *, is_last: bool) -> None:
        """Send what `present` has made, or have it made by the painter."""
        if isinstance(made, bytes):
            self._is_ending = is_last
            self._send(made)
            return
        self._is_painting = True
        self._stream.paint(partial(self._paint, made, is_last))

    def _paint(self, make: Callable[[], bytes | PendingFrame], is_last: bool) -> None:
        """By the painter, which waits for nothing: another reader's frame may be next."""
        try:
            frame = make()
        except Exception as exc:  # noqa: BLE001 - logged by `broken`
            self._relay.post(partial(self.broken, exc))
            return
        if isinstance(frame, PendingFrame):
            again = partial(self._stream.paint, partial(self._paint, frame.make, is_last))
            frame.future.add_done_callback(lambda _: again())
            return
        self._relay.post(partial(self._painted, frame, is_last))

    @contained
    def _painted(self, frame: bytes, is_last: bool) -> None:
        self._is_painting = False
        self._send_result(frame, is_last=is_last)

    def broken(self, exc: Exception) -> None:
        """A frame cannot be made or sent: the reader is dropped, and may come again."""
        log = partial(logger.error, "a frame of stream %s", self._run.id, exc_info=exc)
        self._stream.paint(log)
        self._drop()

    # --- the socket -------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send a chunk of the body; b"" is none."""
        if not self._is_open:
            return
        self._sent_at = now()  # also where there was nothing to say
        if data:
            self._response.sent += len(data)  # for the server's access log
            self._taken_at = self._sent_at
            self._push(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._continue()

    def _push(self, data: bytes | memoryview) -> None:
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop()
            return
        if sent == len(data):
            if self._events & WRITE:
                self._unsent = _NOTHING
                self._wait_for(self._events & ~WRITE)
            self._continue()
            return
        if sent:
            self._taken_at = now()
        self._unsent = memoryview(data)[sent:]
        self._wait_for(self._events | WRITE)
        if "stuck" not in self._timers:  # one for a stream, however often the network is full
            self._schedule("stuck", self._taken_at + STUCK_MAX, self._look_whether_stuck)

    @contained
    def _look_whether_stuck(self) -> None:
        """Drop a client that has taken nothing for STUCK_MAX."""
        del self._timers["stuck"]
        if not self._unsent or not self._is_open:
            return
        due = self._taken_at + STUCK_MAX
        if now() >= due:
            self._drop()
        else:
            self._schedule("stuck", due, self._look_whether_stuck)

    def _continue(self) -> None:
        """The client has taken everything."""
        if self._is_ending:
            self._end(whole=True)
        elif not self._is_scheduled and (
            self._run.log.last > self._after or self._run.log.ended or self._stream.is_dismissed
        ):
            self._is_scheduled = True
            self._relay.again(self._serve)

    @contained
    def _ready(self, events: int) -> None:
        if not self._is_open:
            return
        if events & WRITE and self._unsent:
            self._push(self._unsent)
        if events & READ and self._is_open:
            left = has_left(self._sock)
            if left:
                self._drop()
            elif left is None:  # it has sent something behind its request
                self._wait_for(self._events & ~READ)
                self._schedule("pipelined", now() + PIPELINED_LOOK, self._watch_again)

    @contained
    def _watch_again(self) -> None:
        self._wait_for(self._events | READ)

    @contained
    def _beat(self) -> None:
        """Send `idle_message` or the comment where nothing else was sent; again later."""
        stream, at = self._stream, now()
        is_silent = not (self._unsent or self._is_painting or self._is_ending)
        if is_silent and stream.idle_message is not None and (frame := stream.idle_message()):
            self._send_result(frame, is_last=False)
        elif is_silent and at - self._sent_at >= stream.heartbeat:
            self._send(stream.comment)
        again = at + stream.heartbeat if not is_silent else self._sent_at + stream.heartbeat
        if stream.idle_message is not None:
            again = min(again, at + TICK)
        if self._is_open:
            self._schedule("beat", max(again, at + 0.001), self._beat)


def fitting(events: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """The first of these, of which one frame of bounded size can be made."""
    size = 0
    for index, (_, event) in enumerate(events):
        size += size_of(event)
        if size > GROUP_CHARS:
            return events[: index + 1]
    return events
