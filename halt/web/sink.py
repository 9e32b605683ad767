"""Writes a run's events to one client's socket in the relay thread, as part of a response.

gunicorn writes the response's head and the body's first bytes. Then the relay writes the chunks of
the body, up to the last one of the stream; gunicorn writes HTTP's last chunk, which is empty. The
view's thread sleeps in between. It wakes when the kernel has taken all bytes and the relay has
removed the socket from its tables, or after the connection was shut down.
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
from halt.core.events import Event, approximate_size, is_terminal
from halt.core.generation import Generation
from halt.core.relay import PIPELINED_LOOK, READ, WRITE, Relay, Timer, contained, has_left
from halt.errors import HaltError, OffsetLost
from halt.web.client_socket import ClientSocket

#: Makes the bytes of a group of events, or returns a function that makes them. Such a function may
#: take milliseconds, so the frame thread calls it, once and before the next group.
Presenter = Callable[[list[tuple[int, Event]]], "FrameResult"]


@dataclass(frozen=True)
class PendingFrame:
    """A frame that `make` makes when `future` is done, which takes seconds at most."""

    future: Future[Any]
    make: Callable[[], bytes]


FrameResult = bytes | Callable[[], bytes | PendingFrame]

GROUP_CHARS = 65_536  # characters of one frame, approximately
GROUP_EVENTS = 64  # events of one frame, so that a long replay does not delay other readers
STUCK_MAX = 30.0  # seconds in which a client takes no byte; then it is dropped and can resume

_NOTHING = memoryview(b"")

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """The part of `halt.web.event_stream.EventStream` that a `Sink` uses."""

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
        """Whether the stream to this reader must end now."""

    def dismissal(self) -> bytes:
        """The last frame of a reader that must end now."""

    def lost_frame(self, lost: HaltError) -> bytes:
        """The last frame of a reader that gets no further event; `lost` is the reason."""

    def run_in_frame_thread(self, work: Callable[[], object]) -> None:
        """Run `work` in the frame thread."""

    def leave(self) -> None:
        """Unregister the reader, which has left or was dropped."""


def gunicorn_response(frame: FrameType | None, client: socket.socket | None) -> Any:
    """gunicorn's Response, where gunicorn's threaded worker iterates the body directly.

    None where the bytes may be framed or changed otherwise: another server, HTTP/1.0, TLS that
    gunicorn terminates, middleware around the body. `frame`: the stack frame that requested the
    body's first bytes.
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
    """Sends the log to a client's socket. Only the relay thread uses it, except for `wait`.

    It makes and sends one group of events at a time. Bytes that the kernel does not take are kept,
    at most one group; no group is made until they are sent. So memory is bounded, and a slow reader
    continues from the log.
    """

    def __init__(self, stream: Stream, response: Any) -> None:
        self._stream = stream
        self._run = stream.run
        self._response = response
        self._relay = stream.relay
        self._finished = threading.Lock()  # held until the end; the view's thread waits for it
        self._finished.acquire()
        self._is_whole = False  # all bytes were taken, so the server can end the body
        self._sock: socket.socket = response.sock
        self._is_open = False  # from `_begin` on, until `_end`
        self._events = 0  # the events that the selector waits for
        self._after = stream.after
        self._shares = isinstance(stream.present, FunctionType)
        self._is_scheduled = True  # `_serve` will run
        self._has_sent = False  # at least one group of events
        self._unsent = _NOTHING  # bytes that the kernel has not taken
        self._taken_at = self._sent_at = now()
        self._ready_at = 0.0  # no group is sent before this time
        self._is_making_frame = False
        self._is_ending = False  # nothing is sent after the current bytes
        self._timers: dict[str, Timer] = {}
        self._relay.post(self._begin)

    def wait(self) -> bool:
        """In the view's thread: wait for the end. False: the reader has left or was dropped."""
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
        """Give the socket back to the view's thread."""
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
        self._events = events  # last: if the selector raises, `_drop` must see its real state

    def _schedule(self, name: str, time: float, work: Callable[[], None]) -> None:
        """Call `work` at this time. It replaces the timer of the same name."""
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
        """Send the next group, if there is one and the client has taken the previous one."""
        self._is_scheduled = False  # before the read: a later event schedules it again
        if not self._is_open or self._unsent or self._is_making_frame or self._is_ending:
            return
        stream, log = self._stream, self._run.log
        if stream.is_dismissed:
            self._send_result(stream.dismissal(), is_last=True)
            return
        ended = log.ended  # before the read: if it has ended, the read sees all events
        if stream.interval and ended is None and (at := self._ready_at) > now():
            self._schedule("interval", at, self._serve)
            return
        try:
            events = log.read(self._after, GROUP_EVENTS)
        except OffsetLost as lost:
            # The reader's next event is no longer in the log: send an error, never leave a gap.
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
        result = present(events)
        if isinstance(result, bytes):
            self._run.newest_frame = (present, after, self._after, result)
        return result

    def _send_result(self, result: FrameResult, *, is_last: bool) -> None:
        """Send the bytes, or have the frame thread make them."""
        if isinstance(result, bytes):
            self._is_ending = is_last
            self._send(result)
            return
        self._is_making_frame = True
        self._stream.run_in_frame_thread(partial(self._make_frame, result, is_last))

    def _make_frame(self, make: Callable[[], bytes | PendingFrame], is_last: bool) -> None:
        """In the frame thread. It must not wait: another reader's frame may be next."""
        try:
            frame = make()
        except Exception as exc:  # noqa: BLE001 - logged by `on_fault`
            self._relay.post(partial(self.on_fault, exc))
            return
        if isinstance(frame, PendingFrame):
            again = partial(
                self._stream.run_in_frame_thread, partial(self._make_frame, frame.make, is_last)
            )
            frame.future.add_done_callback(lambda _: again())
            return
        self._relay.post(partial(self._frame_made, frame, is_last))

    @contained
    def _frame_made(self, frame: bytes, is_last: bool) -> None:
        self._is_making_frame = False
        self._send_result(frame, is_last=is_last)

    def on_fault(self, exc: Exception) -> None:
        """Log the exception and drop the reader, which can reconnect."""
        log = partial(logger.error, "a frame of stream %s", self._run.id, exc_info=exc)
        self._stream.run_in_frame_thread(log)
        self._drop()

    # --- the socket -------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send a chunk of the body; b"" sends no chunk."""
        if not self._is_open:
            return
        self._sent_at = now()  # also for b""
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
        if "stuck" not in self._timers:  # at most one such timer for a stream
            self._schedule("stuck", self._taken_at + STUCK_MAX, self._look_whether_stuck)

    @contained
    def _look_whether_stuck(self) -> None:
        """Drop the client if it has taken no byte for STUCK_MAX."""
        del self._timers["stuck"]
        if not self._unsent or not self._is_open:
            return
        due = self._taken_at + STUCK_MAX
        if now() >= due:
            self._drop()
        else:
            self._schedule("stuck", due, self._look_whether_stuck)

    def _continue(self) -> None:
        """Continue after the client has taken all bytes."""
        if self._is_ending:
            self._end(whole=True)
        elif not self._is_scheduled and (
            self._run.log.last > self._after or self._run.log.ended or self._stream.is_dismissed
        ):
            self._is_scheduled = True
            self._relay.call_next_turn(self._serve)

    @contained
    def _ready(self, events: int) -> None:
        if not self._is_open:
            return
        if events & WRITE and self._unsent:
            self._push(self._unsent)
        if events & READ and self._is_open:
            client_left = has_left(self._sock)
            if client_left:
                self._drop()
            elif client_left is None:  # the client has sent bytes after its request
                self._wait_for(self._events & ~READ)
                self._schedule("pipelined", now() + PIPELINED_LOOK, self._watch_again)

    @contained
    def _watch_again(self) -> None:
        self._wait_for(self._events | READ)

    @contained
    def _beat(self) -> None:
        """Send `idle_message` or the comment if nothing else was sent; schedule the next call."""
        stream, at = self._stream, now()
        is_silent = not (self._unsent or self._is_making_frame or self._is_ending)
        if is_silent and stream.idle_message is not None and (frame := stream.idle_message()):
            self._send_result(frame, is_last=False)
        elif is_silent and at - self._sent_at >= stream.heartbeat:
            self._send(stream.comment)
        next_beat = at + stream.heartbeat if not is_silent else self._sent_at + stream.heartbeat
        if stream.idle_message is not None:
            next_beat = min(next_beat, at + TICK)
        if self._is_open:
            self._schedule("beat", max(next_beat, at + 0.001), self._beat)


def fitting(events: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """The first events, as many as fit into one frame of about GROUP_CHARS characters."""
    size = 0
    for index, (_, event) in enumerate(events):
        size += approximate_size(event)
        if size > GROUP_CHARS:
            return events[: index + 1]
    return events
