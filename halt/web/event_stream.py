"""Response bodies that stream one run to one client; `halt.web.sink` lets the relay write them.

`RunReader` registers a reader of a run, from the view's first look at the answer to the last byte
of the response. `EventStream` is a WSGI body for all kinds of Server-Sent Events: it sends the
frames that `present` makes of the events, and a comment line at once (headers are sent with the
first bytes) and after each `heartbeat` without data. `TextStream` sends the answer's text only.
`collect_answer` waits for a complete answer, for responses that are not streamed.

Under gunicorn the view's thread yields the first bytes and then sleeps, while the relay writes to
the client's socket (`halt.web.sink`). Under other servers, and behind middleware that may change
the body, the view's thread follows the log itself and yields the same bytes.
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
from halt.errors import AnswerFailed, HaltError, OffsetLost, RequestError, SignInEnded
from halt.web.schemas import StreamLost
from halt.web.sink import FrameResult, PendingFrame, Presenter, Sink, gunicorn_response

T = TypeVar("T")

WHOLE_INTERVAL = 0.1  # seconds between two reads of the log for a response with a whole answer

#: They tell proxies to not cache, transform or buffer the stream.
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def json_frames(events: list[tuple[int, Event]]) -> bytes:
    """Events as JSON Server-Sent Events, with `[DONE]` after the terminal event."""
    frames = [sse(seq, event) for seq, event in events]
    if is_terminal(events[-1][1]):
        frames.append(FINAL_FRAME)
    return frames[0] if len(frames) == 1 else b"".join(frames)


class RunReader:
    """A registered reader of a run. `close` unregisters it."""

    def __init__(
        self,
        generations: GenerationService,
        run: Generation,
        client: socket.socket | None,
        after: int = 0,
    ) -> None:
        """Register the reader. Raises AtCapacity, OffsetLost."""
        run.log.read(after, 1)  # so that a lost offset raises before the headers are sent
        self.run = run
        self._generations = generations
        self._client = client
        self.after = after  # the number of the event after which the reader begins
        self._open = True
        self._viewer: Viewer = generations.readers.view(run)
        self._departure: Departure | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """Yield events as they come. Ends early if the client leaves. Raises OffsetLost."""
        self._watch_client()
        for group in self.run.follow(self.after, self._viewer, WHOLE_INTERVAL):
            for _, event in group:
                yield event

    def _watch_client(self) -> None:
        """Start to watch for the client's departure, also while nothing is sent."""
        if self._departure is None and self._client is not None:
            leave = partial(self.run.leave, self._viewer)
            self._departure = Departure(self._generations.relay, self._client, leave)

    def wait(self, begins: Callable[[Event], bool], timeout: float = float("inf")) -> None:
        """Wait for an event for which `begins` is true, the run's end or the client's departure.

        Also returns after `timeout` seconds, at most a second late. The events are not consumed.
        Raises AnswerFailed where the run fails before such an event, OffsetLost, SignInEnded.
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
        self.check_admitted()

    def check_admitted(self) -> None:
        """Raise SignInEnded if the reader's sign-in or token is no longer valid."""
        if self._viewer.is_refused:
            raise SignInEnded

    def close(self) -> None:
        """Unregister the reader (see `Run.leave`). May be repeated."""
        if self._open:
            self._open = False
            if self._departure is not None:
                self._departure.cancel()
            self._generations.readers.unview(self.run, self._viewer)


class EventStream(RunReader):
    """The body of one streaming response. The server calls `close` in every case."""

    #: Sent at once, and after each `heartbeat` without data.
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
        """Register the reader. Raises AtCapacity, OffsetLost.

        `opening`: the first bytes, by default the comment. `interval`: the minimum time between
        two frames, in seconds. `brief`: end after the events that exist now; the client requests
        later ones itself. `empty_message` is sent at the stream's end to a reader that already has
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
        """Whether the stream to this reader must end now."""
        return self._viewer.gone

    def dismissal(self) -> bytes:
        """The last frame of a reader that must end now.

        b"" where another worker goes on with the stream: the client resumes there.
        """
        return self.lost_frame(SignInEnded()) if self._viewer.is_refused else b""

    def run_in_frame_thread(self, work: Callable[[], object]) -> None:
        """Run `work` in the frame thread, which does the work that takes milliseconds."""
        self._generations.frame_thread.put(work)

    def leave(self) -> None:
        """Unregister the reader, which has left or was dropped."""
        self.run.leave(self._viewer)

    def __iter__(self) -> Iterator[bytes]:
        return self._brief_frames() if self._brief else self._frames()

    def _brief_frames(self) -> Iterator[bytes]:
        yield self.opening
        events = self.run.log.read(self.after)
        if events:
            yield frame_bytes(self.present(events))

    def _frames(self) -> Iterator[bytes]:
        # The caller that requests the first bytes is the server, perhaps through another generator
        # of this module.
        caller = sys._getframe(1)
        while caller.f_back is not None and caller.f_code.co_filename == __file__:
            caller = caller.f_back
        response = gunicorn_response(caller, self._client)
        yield self.opening
        service = self._generations
        if response is None or not (
            service.config.relay_writes and service.frame_thread.is_running
        ):
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
        """Start a thread that opens the run's upstream, unless this thread has opened it."""
        unopened_run, self._unopened_run = self._unopened_run, None
        if unopened_run is not None:
            unopened_run.start_work()

    def _follow_log(self) -> Iterator[bytes]:
        """Yield the frames in the view's thread."""
        self._watch_client()
        heartbeat = self.heartbeat
        sent_at = now()
        viewer, has_sent, has_ended = self._viewer, False, False
        try:
            for events in self.run.follow(self.after, viewer, self.interval):
                if events:
                    frame, has_sent = frame_bytes(self.present(events)), True
                    has_ended = is_terminal(events[-1][1])
                elif self.idle_message is not None and (idle_frame := self.idle_message()):
                    frame = idle_frame
                elif now() - sent_at >= heartbeat:
                    frame = self.comment
                else:
                    continue
                sent_at = now()
                yield frame
        except OffsetLost as lost:
            # The reader's next event is no longer in the log: send an error, never leave a gap.
            yield self.lost_frame(lost)
        else:
            if not has_sent and not viewer.gone:
                yield self.empty_message
            elif viewer.is_refused and not has_ended:
                yield self.dismissal()

    def lost_frame(self, lost: HaltError) -> bytes:
        """The last frame of a reader that gets no further event; `lost` is the reason."""
        return b"data: %b\n\n" % encode(StreamLost.from_error(lost)) + FINAL_FRAME

    def close(self) -> None:
        if self._open:
            self._start_opening()  # where the client has left before the first byte
            super().close()
            if self._on_close is not None:
                self._on_close()


def frame_bytes(frame: FrameResult) -> bytes:
    """The bytes of a frame, made by this thread where they are not ready."""
    if isinstance(frame, bytes):
        return frame
    done = frame()
    if isinstance(done, PendingFrame):
        done.future.exception()  # wait
        return done.make()
    return done


class TextStream(EventStream):
    """The body of a response that is the answer's plain text.

    Plain text has no field for an error. So an incomplete answer ends with a line that names the
    error, and without HTTP's last chunk, which HTTP clients report as an error.
    """

    comment = b""

    def __init__(
        self, generations: GenerationService, run: Generation, client: socket.socket | None
    ) -> None:
        """Register the reader. Raises AtCapacity."""
        super().__init__(generations, run, client, 0, self._text)
        self._broken = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._frames()
        if self._broken or self.run.log.ended is None:
            # For this error the server closes the connection and logs nothing.
            raise ConnectionResetError(errno.ECONNRESET, "the answer is not complete")

    def _text(self, events: list[tuple[int, Event]]) -> bytes:
        text = "".join(event.content for _, event in events)
        last = events[-1][1]
        if isinstance(last, Failed):
            text += self._break(last.error.code, last.error.message)
        return text.encode()

    def lost_frame(self, lost: HaltError) -> bytes:
        return self._break(lost.code, lost.message).encode()

    def _break(self, code: str, message: str) -> str:
        self._broken = True
        return f"\n[error: {code}] {' '.join(message.split())}\n"  # on one line


class Answer(msgspec.Struct, frozen=True):
    """A complete answer. `content`: its text; of a stopped one, the text that was seen."""

    content: str
    reasoning: str
    calls: list[ToolCall]
    extras: Extras
    ended: Done | Cancelled


def collect_answer(reader: RunReader) -> Answer:
    """Wait for the complete answer. Raises AnswerFailed, OffsetLost, RequestError, SignInEnded."""
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    extras = Extras()
    ended: Done | Cancelled | None = None
    for event in reader.events():  # to the run's end, where the upstream connection is released
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
    if not isinstance(ended, Done):
        reader.check_admitted()  # the run may have ended because this reader had to leave
    if ended is None:  # the client has probably left
        raise RequestError("The client closed its sending side; Halt treats that as a disconnect.")
    return Answer(reader.run.answer()[1], "".join(thoughts), calls, extras, ended)


def answer_failed(event: Failed) -> AnswerFailed:
    """A run's error as the error of the request that started the run."""
    error = event.error
    return AnswerFailed(
        error.code,
        error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        status=error.status,
    )


def cancel_on_error(run: Run, make: Callable[[], T], *, is_unopened: bool = False) -> T:
    """Return `make()` for a run that was just started; if it raises, cancel the run.

    `is_unopened`: the result of `make` would have opened the run's upstream.
    """
    try:
        return make()
    except BaseException:
        run.cancel("no_viewer")
        if is_unopened:
            run.discard()
        raise
