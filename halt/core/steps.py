"""What an answer brings beside its text: thoughts and tool calls, each a fold of the page; pictures
and sources, which the page shows below the text.

`FoldStream` takes a run's events one by one and tells what they change, as `BlockStream` does for
the text. What it keeps is bounded: what is beyond FOLDS_MAX or FOLDED_MAX is neither shown nor
saved, and the last fold says so.
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

FOLDS_MAX = 100  # folds of one answer
FOLDED_MAX = 200_000  # characters in all folds of one answer, without its pictures
PICTURED_MAX = 8_000_000  # characters of the data of its pictures; of one beyond, the line stays
SOURCES_MAX = 200  # sources of one answer
CUT = "\n[cut off here]"

#: `running` until it ends. `called`: a tool that was asked for and gave no result here.
State = Literal["running", "done", "failed", "called"]

#: `sources`: all of an answer, a line for each: its address, and behind a blank its title.
Kind = Literal["thought", "tool", "picture", "sources"]

#: What the page shows below the text.
BELOW = frozenset({"picture", "sources"})


@dataclass(frozen=True)
class Fold:
    """A thought, a tool call with its result, a picture, or the sources."""

    number: int  # of the event that began it
    kind: Kind
    state: State = "running"
    name: str = ""  # of the tool
    text: str = ""  # the thought, the call's arguments, the line of a picture, the sources
    result: str = ""  # of the call; the address or the data of a picture
    began: float = 0.0  # on the clock of `halt.clock.now`
    ms: float | None = None  # how long it took, None where that is not known

    def size(self) -> int:
        """Characters."""
        return len(self.name) + len(self.text) + len(self.result)


@dataclass(frozen=True)
class FoldPatch:
    """What a page that shows everything before must do to show the folds so far."""

    fresh: list[Fold] = field(default_factory=list)  # to be added after the others
    added: list[tuple[int, str]] = field(default_factory=list)  # text for a fold that is there
    changed: list[Fold] = field(default_factory=list)  # another state or name, or a result


@dataclass(eq=False)
class _Growing:
    """A fold that more may be added to."""

    number: int
    kind: Kind
    began: float
    state: State = "running"
    id: str = ""  # the tool call's
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    result: str = ""
    ms: float | None = None

    def fold(self) -> Fold:
        text = "".join(self.pieces)
        return Fold(
            self.number, self.kind, self.state, self.name, text, self.result, self.began, self.ms
        )


class FoldStream:
    """The folds of one answer, event by event."""

    def __init__(self) -> None:
        self._all: list[_Growing] = []
        self._left = FOLDED_MAX
        self._thought: _Growing | None = None
        self._writing: dict[int, _Growing] = {}  # calls whose arguments come in, by their index
        self._called: dict[str, _Growing] = {}  # calls without a result, by their ID
        self._pictures: set[str] = set()  # addresses and data of those that are there
        self._pictured = PICTURED_MAX
        self._sources: dict[str, str] = {}  # titles by address
        self._named: _Growing | None = None  # the fold that holds them
        # What the next patch tells.
        self._fresh: list[_Growing] = []
        self._added: dict[int, list[str]] = {}
        self._changed: list[_Growing] = []

    def feed(self, number: int, event: Event, at: float) -> None:
        """Take an event: its number in the log, and when it came."""
        if isinstance(event, Reasoning):
            if self._thought is None:
                self._thought = self._open(number, "thought", at)
            self._write(self._thought, event.text)
            return
        if isinstance(event, Extra):  # a model may think on meanwhile
            self._extra(number, event, at)
            return
        self._end_thought(at)
        if isinstance(event, Content):
            return
        if isinstance(event, ToolCallDelta):
            call = self._writing.get(event.index)
            if call is None and (call := self._open(number, "tool", at)) is not None:
                self._writing[event.index] = call
            self._tell(call, event.id, event.name)
            self._write(call, event.arguments)
        elif isinstance(event, ToolCall):
            self._call(number, event, at)
        elif isinstance(event, ToolResult):
            done = self._called.pop(event.id, None) or self._open(number, "tool", at)
            self._tell(done, event.id, event.name)
            if done is not None:
                done.state = "done" if event.ok else "failed"
                done.result = self._bounded(event.result)
                done.ms = event.duration_ms
                self._changed.append(done)

    def reclassify(self, number: int, text: str, began: float, at: float) -> None:
        """Take a ReasoningEnd: text that came from `began` to `at` was a thought."""
        self._end_thought(at)
        self._thought = self._open(number, "thought", began)
        self._write(self._thought, text.strip("\n"))
        self._end_thought(at)

    @property
    def has_grown(self) -> bool:
        """The next patch has text for folds that are there, or more."""
        return bool(self._added) or self.has_changed

    @property
    def has_changed(self) -> bool:
        """The next patch has more than text for folds that are there."""
        return bool(self._fresh or self._changed)

    def patch(self) -> FoldPatch:
        """What has changed since the last patch."""
        if not self.has_grown:
            return FoldPatch()
        new = {each.number for each in self._fresh}
        changed = {each.number: each for each in self._changed if each.number not in new}
        patch = FoldPatch(
            [each.fold() for each in self._fresh],
            [(n, "".join(pieces)) for n, pieces in self._added.items() if n not in new],
            [each.fold() for each in changed.values()],
        )
        self._fresh, self._added, self._changed = [], {}, []
        return patch

    def folds(self) -> tuple[Fold, ...]:
        """All of them as they are now."""
        return tuple(each.fold() for each in self._all)

    def ended(self, at: float) -> tuple[Fold, ...]:
        """All of them when the answer has ended: nothing is under way any more."""
        self._end_thought(at)
        for each in self._all:
            if each.state == "running":
                each.state = "called"
        return self.folds()

    def _extra(self, number: int, event: Extra, at: float) -> None:
        before = dict(self._sources)
        for each in attachments.found(event):
            if isinstance(each, attachments.Picture):
                self._picture(number, each, at)
            elif each.url in self._sources or len(self._sources) < SOURCES_MAX:
                self._sources[each.url] = self._sources.get(each.url) or each.title
        if self._sources == before:  # many servers send them again with each chunk
            return
        if self._named is None:
            self._named = self._open(number, "sources", at)
        if (fold := self._named) is not None:
            fold.state = "done"
            fold.pieces = ["\n".join(f"{u} {t}".rstrip() for u, t in self._sources.items())]
            self._changed.append(fold)

    def _picture(self, number: int, picture: attachments.Picture, at: float) -> None:
        if picture.url in self._pictures:
            return
        fold = self._open(number, "picture", at)
        if fold is None:
            return
        self._pictures.add(picture.url)
        size = None
        if ";base64," in picture.url[:400].lower():
            data = len(picture.url) - picture.url.index(",") - 1
            size = decoded_size(data - picture.url.count("=", -2))
        fold.state = "done"
        fold.pieces = [label_of(picture.media_type, size)]
        self._pictured -= len(picture.url)
        if self._pictured >= 0:
            fold.result = picture.url

    def _call(self, number: int, event: ToolCall, at: float) -> None:
        """A call is complete: its pieces, if it came in pieces, are written."""
        index = next((i for i, each in self._writing.items() if each.id == event.id), None)
        if index is None:
            call = self._open(number, "tool", at)
            self._write(call, event.arguments)
        else:
            call = self._writing.pop(index)
        self._tell(call, event.id, event.name)
        if call is not None:
            self._called[event.id] = call

    def _open(self, number: int, kind: Kind, at: float) -> _Growing | None:
        if len(self._all) >= FOLDS_MAX:
            return None
        fold = _Growing(number, kind, at)
        self._all.append(fold)
        self._fresh.append(fold)
        return fold

    def _tell(self, call: _Growing | None, id_: str, name: str) -> None:
        if call is not None:
            call.id = id_
            if name and name != call.name:
                call.name = name
                self._changed.append(call)

    def _write(self, fold: _Growing | None, text: str) -> None:
        if fold is not None and (piece := self._bounded(text)):
            fold.pieces.append(piece)
            self._added.setdefault(fold.number, []).append(piece)

    def _bounded(self, text: str) -> str:
        """As much of the text as there is room for."""
        if not text or self._left < 0:
            return ""
        piece, self._left = text[: self._left], self._left - len(text)
        return piece if self._left >= 0 else piece + CUT

    def _end_thought(self, at: float) -> None:
        if (thought := self._thought) is not None:
            thought.state = "done"
            thought.ms = round((at - thought.began) * 1000, 1)
            self._changed.append(thought)
            self._thought = None


def folding(generation: Generation, upto: int) -> FoldStream:
    """The folds of the events from 1 to `upto`, ready to be fed with what comes behind."""
    stream = FoldStream()
    for number, event in [] if generation.only_text else generation.events(upto):
        if not is_terminal(event):
            fold(stream, generation, number, event)
    stream.patch()
    return stream


def fold(stream: FoldStream, generation: Generation, number: int, event: Event) -> None:
    """Feed an event that is not the terminal one to a stream of folds."""
    at = generation.came_at(number)
    if isinstance(event, ReasoningEnd):
        began = generation.came_at(min(event.after + 1, number))
        stream.reclassify(number, generation.reasoning(event), began, at)
    else:
        stream.feed(number, event, at)


def folds(generation: Generation) -> tuple[Fold, ...]:
    """After the end: the folds, as far as the answer goes."""
    upto, _ = generation.answer()
    return folding(generation, upto).ended(generation.ended_at or now())
