"""From a run's log to the bytes of one client's response.

`Reading` is a reader's place at a run, from the view that looks how the answer begins to the last
byte of the response. `EventStream` is a WSGI response body made of it: it sends a comment line at
once (headers leave with the first bytes) and after each `heartbeat` of silence, and what `present`
makes of the events in between. It serves every kind of Server-Sent Events; `present` decides what
they carry. `TextStream` is the same for the answer's text alone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import msgspec

from halt.errors import AnswerFailed, OffsetLost, RequestError
from halt.events import (
    FINAL_FRAME,
    HEARTBEAT,
    Cancelled,
    Content,
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
from halt.extras import Extras
from halt.generation import Generations
from halt.metrics import now
from halt.recording import Recording, Viewer
from halt.run import Run

T = TypeVar("T")

#: Events as a frame, or as a function without arguments that makes it. The function may take
#: milliseconds; it is called once, in any thread, before the next events are presented.
Present = Callable[[list[tuple[int, Event]]], bytes | Callable[[], bytes]]

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


class Reading:
    """A reader's place at a run, to be given back by `close`."""

    def __init__(
        self, generations: Generations, run: Recording, client: socket.socket | None, after: int = 0
    ) -> None:
        """Take the place. Raises AtCapacity, OffsetLost."""
        run.log.read(after)  # an offset that is lost is told before the headers
        self.run = run
        self._generations = generations
        self._after = after
        self._open = True
        self._viewer: Viewer = generations.view(run, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """Each event as it comes. Ends early when the client has left. Raises OffsetLost."""
        for group in self.run.follow(self._after, self._viewer):
            for _, event in group:
                yield event

    def wait(self, begins: Callable[[Event], bool], timeout: float = float("inf")) -> None:
        """Return at an event that `begins` the answer, at the run's end, or when the client leaves.

        Or after `timeout` seconds, to a second. Takes nothing: all is read again afterwards.
        Raises AnswerFailed where the run has failed before such an event, OffsetLost.
        """
        deadline = now() + timeout
        for group in self.run.follow(self._after, self._viewer):
            for _, event in group:
                if begins(event):
                    return
                if isinstance(event, Failed):
                    raise failure(event)
            if now() >= deadline:
                return

    def close(self) -> None:
        """Give the place back. The reader has left: see `Run.leave`."""
        if self._open:
            self._open = False
            self._generations.unview(self.run, self._viewer)


class EventStream(Reading):
    """The body of one streaming response. `close` is called by the server in every case."""

    #: What is said in silence, and at once.
    comment = HEARTBEAT

    def __init__(
        self,
        generations: Generations,
        run: Recording,
        client: socket.socket | None,
        after: int,
        present: Present,
        *,
        opening: bytes | None = None,
        interval: float = 0.0,
        brief: bool = False,
        nothing: bytes = b"",
        aside: Callable[[], bytes] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Take a reader's place. Raises AtCapacity, OffsetLost.

        `opening`: the first bytes, where they are no comment. `interval`: the least time between
        two frames, in seconds. `brief`: end after the events that are there now; the client comes
        back for more. `nothing` is sent at the stream's end to a reader that had all of it already.
        `aside` is asked in silence whether there is something else to be said.
        """
        super().__init__(generations, run, client, after)
        self._present = present
        self._opening = self.comment if opening is None else opening
        self._interval = interval
        self._brief = brief
        self._nothing = nothing
        self._aside = aside
        self._on_close = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self._brief_frames() if self._brief else self._frames()

    def _brief_frames(self) -> Iterator[bytes]:
        yield self._opening
        events = self.run.log.read(self._after)
        if events:
            made = self._present(events)
            yield made() if callable(made) else made

    def _frames(self) -> Iterator[bytes]:
        yield self._opening
        heartbeat = self._generations.config.heartbeat
        spoke_at = now()
        viewer, told = self._viewer, False
        try:
            for events in self.run.follow(self._after, viewer, self._interval):
                if events:
                    made, told = self._present(events), True
                    frame = made() if callable(made) else made
                elif self._aside is not None and (said := self._aside()):
                    frame = said
                elif now() - spoke_at >= heartbeat:
                    frame = self.comment
                else:
                    continue
                viewer.writing_since = spoke_at = now()
                yield frame
                viewer.writing_since = None
        except OffsetLost as lost:
            # The reader was slower than the log is long. It is told, never given a gap.
            yield self.lost(lost)
        else:
            if not told and not viewer.gone:
                yield self._nothing

    def lost(self, lost: OffsetLost) -> bytes:
        """The last frame of a reader whose next events are no longer kept."""
        error = {"code": lost.code, "message": lost.message, "retryable": False}
        body = encode({"type": "error", "done": True, "content": "", "error": error})
        return b"data: %b\n\n" % body + FINAL_FRAME

    def close(self) -> None:
        if self._open:
            super().close()
            if self._on_close is not None:
                self._on_close()


class TextStream(EventStream):
    """The body of a response that is the answer's text and nothing else.

    Text has no place for an error. So an answer that is not whole ends with a line for people and
    without the end that HTTP asks for (the last chunk), which every HTTP client reports.
    """

    comment = b""

    def __init__(
        self, generations: Generations, run: Recording, client: socket.socket | None
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

    def lost(self, lost: OffsetLost) -> bytes:
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


def gather(reading: Reading) -> Answer:
    """Wait for the whole answer. Raises AnswerFailed, OffsetLost, RequestError."""
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    extras = Extras()
    ended: Done | Cancelled | None = None
    for event in reading.events():  # to its end, where the model's connection is let go of
        if isinstance(event, Reasoning):
            thoughts.append(event.text)
        elif isinstance(event, ReasoningEnd):
            thoughts.append(reading.run.reasoning(event))
        elif isinstance(event, ToolCall):
            calls.append(event)
        elif isinstance(event, Extra):
            extras.add(event)
        elif isinstance(event, Failed):
            raise failure(event)
        elif isinstance(event, Done | Cancelled):
            ended = event
    if ended is None:  # most likely nobody reads this any more
        raise RequestError("The connection was closed for sending, which is taken for leaving.")
    return Answer(reading.run.answer()[1], "".join(thoughts), calls, extras, ended)


def failure(event: Failed) -> AnswerFailed:
    """A run's error as the answer to the request that started it."""
    error = event.error
    return AnswerFailed(
        error.code,
        error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        status=error.status,
    )


def is_text(event: Event) -> bool:
    """Whether this begins the answer itself."""
    return isinstance(event, Content)


def watched(run: Run, make: Callable[[], T]) -> T:
    """What `make` makes of a run that was just started; where it can't, the run ends too."""
    try:
        return make()
    except BaseException:
        run.cancel("no_viewer")
        raise
