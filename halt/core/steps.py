"""The steps of an answer (thoughts, tool calls, pictures, sources), built from its events.

The page shows each thought and tool call in a closed section above the text, pictures and sources
below it. `StepStream` takes a run's events one by one and returns what they change, as
`BlockStream` does for the text. Its memory is bounded: what exceeds STEPS_MAX or STEP_CHARS_MAX is
not shown nor saved, and the last step ends with CUT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from halt.clock import now
from halt.core import attachments
from halt.core.events import (
    Content,
    Event,
    Extra,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    is_terminal,
)
from halt.core.generation import Generation
from halt.rendering.data_urls import decoded_size, label_of

STEPS_MAX = 100  # steps of one answer
STEP_CHARS_MAX = 200_000  # characters in all steps of one answer, without its pictures
PICTURE_CHARS_MAX = 12_000_000  # characters of picture data; a picture beyond keeps its label alone
_MOST = f"{decoded_size(PICTURE_CHARS_MAX) // 1_000_000} MB"
SOURCES_MAX = 200  # sources of one answer
CUT = "\n[cut off here]"

#: `running` until it ends. `called`: a tool call without a result in this log.
State = Literal["running", "done", "failed", "called"]

#: `sources` is one step for all sources of an answer: a line "ADDRESS TITLE" for each.
Kind = Literal["thought", "tool", "picture", "sources"]

#: The kinds that the page shows below the text.
KINDS_BELOW = frozenset({"picture", "sources"})


@dataclass(frozen=True)
class Step:
    """A thought, a tool call with its result, a picture, or the sources."""

    number: int  # of its first event
    kind: Kind
    state: State = "running"
    name: str = ""  # of the tool
    text: str = ""  # the thought, the call's arguments, the picture's label, the sources
    result: str = ""  # of the call; the address or the data of a picture
    began: float = 0.0  # on the clock of `halt.clock.now`
    ms: float | None = None  # its duration in milliseconds, None if not known

    def size(self) -> int:
        """Its length in characters."""
        return len(self.name) + len(self.text) + len(self.result)


@dataclass(frozen=True)
class StepPatch:
    """The changes since the previous patch, for a page that shows all patches before."""

    fresh: list[Step] = field(default_factory=list)  # new steps, to append
    added: list[tuple[int, str]] = field(default_factory=list)  # (a known step's number, new text)
    changed: list[Step] = field(default_factory=list)  # steps with a new state, name or result


@dataclass(eq=False)
class _Growing:
    """A step that later events may change."""

    number: int
    kind: Kind
    began: float
    state: State = "running"
    id: str = ""  # the tool call's
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    result: str = ""
    ms: float | None = None

    def snapshot(self) -> Step:
        text = "".join(self.pieces)
        return Step(
            self.number, self.kind, self.state, self.name, text, self.result, self.began, self.ms
        )


class StepStream:
    """The steps of one answer, built event by event."""

    def __init__(self) -> None:
        self._all: list[_Growing] = []
        self._chars_left = STEP_CHARS_MAX  # characters that may still be added
        self._thought: _Growing | None = None
        self._writing: dict[int, _Growing] = {}  # calls with incomplete arguments, by index
        self._called: dict[str, _Growing] = {}  # calls without a result, by ID
        self._pictures: set[str] = set()  # addresses and data of the pictures so far
        self._picture_chars_left = PICTURE_CHARS_MAX
        #: Each source's address and title by its address, or title, and its repeats.
        self._sources: dict[tuple[str, int], tuple[str, str]] = {}
        self._sources_step: _Growing | None = None
        # For the next patch:
        self._fresh: list[_Growing] = []
        self._added: dict[int, list[str]] = {}
        self._changed: list[_Growing] = []

    def feed(self, number: int, event: Event, at: float) -> None:
        """Take an event, its number in the log, and its arrival time."""
        if isinstance(event, Reasoning):
            if self._thought is None:
                self._thought = self._open(number, "thought", at)
            self._write(self._thought, event.text)
            return
        if isinstance(event, Extra):  # it does not end a thought
            self._extra(number, event, at)
            return
        self._end_thought(at)
        if isinstance(event, Content):
            return
        if isinstance(event, ToolCallDelta):
            call = self._writing.get(event.index)
            if call is None and (call := self._open(number, "tool", at)) is not None:
                self._writing[event.index] = call
            self._name(call, event.id, event.name)
            self._write(call, event.arguments)
        elif isinstance(event, ToolCall):
            self._call(number, event, at)
        elif isinstance(event, ToolResult):
            done = self._called.pop(event.id, None) or self._open(number, "tool", at)
            self._name(done, event.id, event.name)
            if done is not None:
                done.state = "done" if event.ok else "failed"
                done.result = self._bounded(event.result)
                done.ms = event.duration_ms
                self._changed.append(done)

    def reclassify(self, number: int, text: str, began: float, at: float) -> None:
        """Take a ReasoningEnd: `text`, which came from `began` to `at`, was a thought."""
        self._end_thought(at)
        self._thought = self._open(number, "thought", began)
        self._write(self._thought, text.strip("\n"))
        self._end_thought(at)

    @property
    def has_grown(self) -> bool:
        """Whether the next patch is not empty."""
        return bool(self._added) or self.has_changed

    @property
    def has_changed(self) -> bool:
        """Whether the next patch has more than text to append to known steps."""
        return bool(self._fresh or self._changed)

    def patch(self) -> StepPatch:
        """The changes since the last patch."""
        if not self.has_grown:
            return StepPatch()
        new = {step.number for step in self._fresh}
        changed = {step.number: step for step in self._changed if step.number not in new}
        patch = StepPatch(
            [step.snapshot() for step in self._fresh],
            [(n, "".join(pieces)) for n, pieces in self._added.items() if n not in new],
            [step.snapshot() for step in changed.values()],
        )
        self._fresh, self._added, self._changed = [], {}, []
        return patch

    def steps(self) -> tuple[Step, ...]:
        """All steps as of now."""
        return tuple(step.snapshot() for step in self._all)

    def end(self, at: float) -> tuple[Step, ...]:
        """All steps after the answer's end, none of them `running`."""
        self._end_thought(at)
        for step in self._all:
            if step.state == "running":
                step.state = "called"
        return self.steps()

    def _extra(self, number: int, event: Extra, at: float) -> None:
        before = dict(self._sources)
        for attachment in attachments.attachments_of(event):
            if isinstance(attachment, attachments.Media):
                self._picture(number, attachment, at)
                continue
            key = (attachment.url or attachment.title, attachment.repeats)
            if key in self._sources or len(self._sources) < SOURCES_MAX:
                _, title = self._sources.get(key, ("", ""))
                self._sources[key] = attachment.url, title or attachment.title
        if self._sources == before:  # many servers repeat them in each chunk
            return
        if self._sources_step is None:
            self._sources_step = self._open(number, "sources", at)
        if (step := self._sources_step) is not None:
            step.state = "done"
            step.pieces = ["\n".join(f"{u} {t}".rstrip() for u, t in self._sources.values())]
            self._changed.append(step)

    def _picture(self, number: int, picture: attachments.Media, at: float) -> None:
        if picture.url in self._pictures:
            return
        step = self._open(number, "picture", at)
        if step is None:
            return
        self._pictures.add(picture.url)
        size = None
        if ";base64," in picture.url[:400].lower():
            data = len(picture.url) - picture.url.index(",") - 1
            size = decoded_size(data - picture.url.count("=", -2))
        step.state = "done"
        step.pieces = [label_of(picture.media_type, size)]
        self._picture_chars_left -= len(picture.url)
        if self._picture_chars_left >= 0:
            step.result = picture.url
        else:
            step.pieces.append(f". Not kept: the pictures of an answer have at most {_MOST}.")

    def _call(self, number: int, event: ToolCall, at: float) -> None:
        """Take a complete call. Its arguments are added already where it came in pieces."""
        index = next((i for i, call in self._writing.items() if call.id == event.id), None)
        if index is None:
            call = self._open(number, "tool", at)
            self._write(call, event.arguments)
        else:
            call = self._writing.pop(index)
        self._name(call, event.id, event.name)
        if call is not None:
            self._called[event.id] = call

    def _open(self, number: int, kind: Kind, at: float) -> _Growing | None:
        if len(self._all) >= STEPS_MAX:
            return None
        step = _Growing(number, kind, at)
        self._all.append(step)
        self._fresh.append(step)
        return step

    def _name(self, call: _Growing | None, id_: str, name: str) -> None:
        if call is not None:
            call.id = id_
            if name and name != call.name:
                call.name = name
                self._changed.append(call)

    def _write(self, step: _Growing | None, text: str) -> None:
        if step is not None and (piece := self._bounded(text)):
            step.pieces.append(piece)
            self._added.setdefault(step.number, []).append(piece)

    def _bounded(self, text: str) -> str:
        """As much of the text as the limit allows, with CUT at the end where it was cut."""
        if not text or self._chars_left < 0:
            return ""
        piece, self._chars_left = text[: self._chars_left], self._chars_left - len(text)
        return piece if self._chars_left >= 0 else piece + CUT

    def _end_thought(self, at: float) -> None:
        if (thought := self._thought) is not None:
            thought.state = "done"
            thought.ms = round((at - thought.began) * 1000, 1)
            self._changed.append(thought)
            self._thought = None


def stream_of(generation: Generation, upto: int) -> StepStream:
    """A StepStream that has the events from 1 to `upto`; the caller feeds it the later ones."""
    stream = StepStream()
    for number, event in [] if generation.only_text else generation.events(upto):
        if not is_terminal(event):
            feed_event(stream, generation, number, event)
    stream.patch()
    return stream


def feed_event(stream: StepStream, generation: Generation, number: int, event: Event) -> None:
    """Feed an event of a generation to `stream`. Not for the terminal event."""
    at = generation.arrival_time(number)
    if isinstance(event, ReasoningEnd):
        began = generation.arrival_time(min(event.after + 1, number))
        stream.reclassify(number, generation.reasoning(event), began, at)
    else:
        stream.feed(number, event, at)


def steps_of(generation: Generation) -> tuple[Step, ...]:
    """The steps of an ended generation. If it was stopped, only those that had been shown."""
    upto, _ = generation.answer()
    return stream_of(generation, upto).end(generation.ended_at or now())
