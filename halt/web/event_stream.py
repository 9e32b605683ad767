"""Response bodies that follow a run: what a view returns to stream one run to one client.

`RunReader` is a reader's place at a run, from the view that looks how the answer begins to the last
byte of the response. `EventStream` is a WSGI body made of it: a comment line at once (headers leave
with the first bytes) and after each `heartbeat` of silence, and what `present` makes of the events
in between, for every kind of Server-Sent Events. `TextStream` is one of the answer's text alone.
`collect_answer` waits for a whole answer, for responses that are no stream.

Under gunicorn the view's thread yields the first bytes and then sleeps, while the relay writes to
the client's socket (`halt.web.sink`). Under any other server, and behind a middleware that may
change the body, the view follows the log by itself and yields the same bytes.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self, TypeVar

import msgspec

from halt.clock import now
from halt.core.events import (
    FINAL_FRAME,
    HEARTBEAT,
    Cancelled,
    Done,
    Event,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    encode,
    is_terminal,
    sse,
)
from halt.core.extra_fields import Extras
from halt.core.generation import Generation, Viewer
from halt.core.relay import Departure
from halt.core.request_ids import named
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.errors import AnswerFailed, OffsetLost, RequestError
from halt.web.schemas import StreamLost
from halt.web.sink import FrameResult, PendingFrame, Presenter, Sink, gunicorn_response

T = TypeVar("T")

WHOLE_INTERVAL = 0.1  # seconds between two looks at an answer that is given as a whole

#: For every proxy on the way: this is a stream, do not keep, change or gather it.
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def json_frames(events: list[tuple[int, Event]]) -> bytes:
    """Events as JSON Server-Sent Events, `[DONE]` behind the terminal one."""
    frames = [sse(seq, event) for seq, event in events]
    if is_terminal(events[-1][1]):
        frames.append(FINAL_FRAME)
    return frames[0] if len(frames) == 1 else b"".join(frames)


class RunReader:
    """A reader's place at a run, to be given back by `close`."""

    def __init__(
        self,
        generations: GenerationService,
        run: Generation,
        client: socket.socket | None,
        after: int = 0,
    ) -> None:
        """Take the place. Raises AtCapacity, OffsetLost."""
        run.log.read(after, 1)  # an offset that is lost is an error before the headers
        self.run = run
        self._generations = generations
        self._client = client
        self.after = after  # the event behind which the reader begins
        self._open = True
        self._viewer: Viewer = generations.readers.view(run)
        self._departure: Departure | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """Each event as it comes. Ends early when the client has left. Raises OffsetLost."""
        self._watch_client()
        for group in self.run.follow(self.after, self._viewer, WHOLE_INTERVAL):
            for _, event in group:
                yield event

    def _watch_client(self) -> None:
        """From now on notice that the client leaves, also in silence."""
        if self._departure is None and self._client is not None:
            leave = partial(self.run.leave, self._viewer)
            self._departure = Departure(self._generations.relay, self._client, leave)

    def wait(self, begins: Callable[[Event], bool], timeout: float = float("inf")) -> None:
        """Return at an event that `begins` the answer, at the run's end, or when the client leaves.

        Or after `timeout` seconds, to a second. Takes nothing: all is read again afterwards.
        Raises AnswerFailed where the run has failed before such an event, OffsetLost.
        """
        deadline = now() + timeout
        self._watch_client()
        for group in self.run.follow(self.after, self._viewer):
            for _, event in group:
                if begins(event):
                    return
                if isinstance(event, Failed):
                    raise answer_failed(event)
            if now() >= deadline:
                return

    def close(self) -> None:
        """Give the place back. The reader has left: see `Run.leave`."""
        if self._open:
            self._open = False
            if self._departure is not None:
                self._departure.cancel()
            self._generations.readers.unview(self.run, self._viewer)


class EventStream(RunReader):
    """The body of one streaming response. `close` is called by the server in every case."""

    #: Sent at once, and after each `heartbeat` of silence.
    comment = HEARTBEAT

    def __init__(
        self,
        generations: GenerationService,
        run: Generation,
        client: socket.socket | None,
        after: int,
        present: Presenter,
        *,
        opening: bytes | None = None,
        interval: float = 0.0,
        brief: bool = False,
        empty_message: bytes = b"",
        idle_message: Callable[[], bytes] | None = None,
        on_close: Callable[[], None] | None = None,
        unopened_run: Run | None = None,
    ) -> None:
        """Take a reader's place. Raises AtCapacity, OffsetLost.

        `opening`: the first bytes, where they are no comment. `interval`: the least time between
        two frames, in seconds. `brief`: end after the events that are there now; the client comes
        back for more. `empty_message` is sent at the stream's end to a reader that already has
        every event. `idle_message` is called while no events come; the bytes that it returns are
        sent, b"" sends nothing. `unopened_run`: the run, where the reader's thread opens its
        upstream.
        """
        super().__init__(generations, run, client, after)
        self.present = present
        self.opening = self.comment if opening is None else opening
        self.interval = interval
        self.empty_message = empty_message
        self.idle_message = idle_message
        self.heartbeat = generations.config.heartbeat
        self.relay = generations.relay
        self._brief = brief
        self._on_close = on_close
        self._unopened_run = unopened_run

    @property
    def is_dismissed(self) -> bool:
        """The reader is to go now, with what it has been sent."""
        return self._viewer.gone

    def paint(self, work: Callable[[], object]) -> None:
        """Have this done by the thread for what takes milliseconds."""
        self._generations.painter.put(work)

    def leave(self) -> None:
        """The reader has left, or was dropped."""
        self.run.leave(self._viewer)

    def __iter__(self) -> Iterator[bytes]:
        return self._brief_frames() if self._brief else self._frames()

    def _brief_frames(self) -> Iterator[bytes]:
        yield self.opening
        events = self.run.log.read(self.after)
        if events:
            yield frame_bytes(self.present(events))

    def _frames(self) -> Iterator[bytes]:
        # The frame that asks for the first bytes is the server's; around this one there may be
        # another generator of this module.
        asking = sys._getframe(1)
        while asking.f_back is not None and asking.f_code.co_filename == __file__:
            asking = asking.f_back
        response = gunicorn_response(asking, self._client)
        yield self.opening
        service = self._generations
        if response is None or not (service.config.relay_writes and service.painter.is_running):
            self._start_opening()
            yield from self._follow_log()
            return
        sink = Sink(self, response)
        unopened_run, self._unopened_run = self._unopened_run, None
        if unopened_run is not None:
            with named(unopened_run.request_id):
                unopened_run.work()
        if not sink.wait():
            raise ConnectionResetError(errno.ECONNRESET, "the reader has left")

    def _start_opening(self) -> None:
        """Have a thread of its own open the upstream, where this one will not."""
        unopened_run, self._unopened_run = self._unopened_run, None
        if unopened_run is not None:
            unopened_run.start_work()

    def _follow_log(self) -> Iterator[bytes]:
        """The frames, by the view's own thread."""
        self._watch_client()
        heartbeat = self.heartbeat
        sent_at = now()
        viewer, has_sent = self._viewer, False
        try:
            for events in self.run.follow(self.after, viewer, self.interval):
                if events:
                    frame, has_sent = frame_bytes(self.present(events)), True
                elif self.idle_message is not None and (other := self.idle_message()):
                    frame = other
                elif now() - sent_at >= heartbeat:
                    frame = self.comment
                else:
                    continue
                sent_at = now()
                yield frame
        except OffsetLost as lost:
            # The reader is further behind than the log is long: an error, never a gap.
            yield self.lost_frame(lost)
        else:
            if not has_sent and not viewer.gone:
                yield self.empty_message

    def lost_frame(self, lost: OffsetLost) -> bytes:
        """The last frame of a reader whose next events are no longer kept."""
        return b"data: %b\n\n" % encode(StreamLost.from_error(lost)) + FINAL_FRAME

    def close(self) -> None:
        if self._open:
            self._start_opening()  # the client has left before the first byte
            super().close()
            if self._on_close is not None:
                self._on_close()


def frame_bytes(frame: FrameResult) -> bytes:
    """The frame itself, made by this thread."""
    if isinstance(frame, bytes):
        return frame
    done = frame()
    if isinstance(done, PendingFrame):
        done.future.exception()  # wait
        return done.make()
    return done


class TextStream(EventStream):
    """The body of a response that is the answer's text and nothing else.

    Text has no place for an error. So an answer that is not whole ends with a line for people and
    without the end that HTTP asks for (the last chunk), which every HTTP client reports.
    """

    comment = b""

    def __init__(
        self, generations: GenerationService, run: Generation, client: socket.socket | None
    ) -> None:
        """Take a reader's place. Raises AtCapacity."""
        super().__init__(generations, run, client, 0, self._text)
        self._broken = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._frames()
        if self._broken or self.run.log.ended is None:
            # The server closes the connection for this one without a word.
            raise ConnectionResetError(errno.ECONNRESET, "the answer is not whole")

    def _text(self, events: list[tuple[int, Event]]) -> bytes:
        text = "".join(event.content for _, event in events)
        last = events[-1][1]
        if isinstance(last, Failed):
            text += self._break(last.error.code, last.error.message)
        return text.encode()

    def lost_frame(self, lost: OffsetLost) -> bytes:
        return self._break(lost.code, lost.message).encode()

    def _break(self, code: str, message: str) -> str:
        self._broken = True
        return f"\n[error: {code}] {' '.join(message.split())}\n"  # on one line


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. `content` is what is kept of it: of a stopped one, what was seen."""

    content: str
    reasoning: str
    calls: list[ToolCall]
    extras: Extras
    ended: Done | Cancelled


def collect_answer(reader: RunReader) -> Answer:
    """Wait for the whole answer. Raises AnswerFailed, OffsetLost, RequestError."""
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    extras = Extras()
    ended: Done | Cancelled | None = None
    for event in reader.events():  # to its end, where the model's connection is let go of
        if isinstance(event, Reasoning):
            thoughts.append(event.text)
        elif isinstance(event, ReasoningEnd):
            thoughts.append(reader.run.reasoning(event))
        elif isinstance(event, ToolCall):
            calls.append(event)
        elif isinstance(event, Extra):
            extras.add(event)
        elif isinstance(event, Failed):
            raise answer_failed(event)
        elif isinstance(event, Done | Cancelled):
            ended = event
    if ended is None:  # the client has most likely left
        raise RequestError("The connection was closed for sending, which is taken for leaving.")
    return Answer(reader.run.answer()[1], "".join(thoughts), calls, extras, ended)


def answer_failed(event: Failed) -> AnswerFailed:
    """A run's error as the answer to the request that started it."""
    error = event.error
    return AnswerFailed(
        error.code,
        error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        status=error.status,
    )


def cancel_on_error(run: Run, make: Callable[[], T], *, is_unopened: bool = False) -> T:
    """What `make` makes of a run that was just started; where it can't, the run ends too.

    `is_unopened`: the result of `make` was to open the run's upstream.
    """
    try:
        return make()
    except BaseException:
        run.cancel("no_viewer")
        if is_unopened:
            run.discard()
        raise
