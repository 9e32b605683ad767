"""What is new in the logs of generations, as the values that the database takes in one go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from halt.clock import now
from halt.core import steps
from halt.core.events import Content, Event, Terminal, is_terminal
from halt.core.generation import Generation
from halt.core.steps import Step
from halt.errors import OffsetLost


@dataclass(frozen=True)
class NewGeneration:
    """A generation to be written down. Those of conversations are so already, by `begin`."""

    stream_id: str
    owner: str | None  # None: anyone who knows the ID may read it
    worker: str
    requested_model: str = ""  # the model that was chosen
    started_at: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Chunk:
    """Consecutive events of a generation. Times are milliseconds since it began."""

    stream_id: str
    first_seq: int
    events: Sequence[tuple[float, Event]]


@dataclass(frozen=True)
class GenerationEnd:
    """How a generation ended. The terminal event itself comes in the last `Chunk`, too."""

    stream_id: str
    ended: Terminal
    ended_at: float  # seconds since 1970
    last_seq: int
    answer: str = ""  # all of the message's text, cut to what was seen, with a Continue's prefix
    model: str = ""  # as it names itself
    steps: tuple[Step, ...] = ()  # of this generation
    seen: int | None = None  # the last event that the one who stopped it had seen


@dataclass(frozen=True)
class Batch:
    """What all generations of a process have produced since the last one: written as one.

    `worker`: whose generations they are. One that the store has as another worker's is not written
    to. None: it is not looked at.
    """

    begun: tuple[NewGeneration, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    ended: tuple[GenerationEnd, ...] = ()
    worker: str | None = None


@dataclass(eq=False)
class PendingGeneration:
    """A generation that is not in the store as a whole."""

    recording: Generation
    begun: bool = False  # the store knows of it
    written: int = 0  # the last event that is in the store


class BatchPart(NamedTuple):
    """What a batch holds of one generation."""

    entry: PendingGeneration
    events: int  # how many
    upto: int  # the last of them
    chunks: tuple[Chunk, ...]
    begun: NewGeneration | None
    ended: GenerationEnd | None


def batch_part(entry: PendingGeneration, room: int, worker: str) -> BatchPart | None:
    """What is new of one generation, at most `room` events of it."""
    recording = entry.recording
    events: list[tuple[int, Event]] = []
    if room > 0 and recording.log.last > entry.written:
        events = _events(entry)[:room]
    elif entry.begun:
        return None
    upto, last = events[-1] if events else (entry.written, None)
    begun = ended = None
    if not entry.begun:
        asked, started = recording.asked, _wall(recording.started_at)
        begun = NewGeneration(recording.id, recording.owner, worker, asked, started)
    if last is not None and is_terminal(last):
        ended = GenerationEnd(
            recording.id,
            last,
            _wall(recording.ended_at or now()),
            upto,
            recording.answer()[1],
            recording.model,
            steps.steps_of(recording),
            recording.kept,
        )
    return BatchPart(entry, len(events), upto, _chunks(recording, events), begun, ended)


def batch_of(steps: Sequence[BatchPart], worker: str) -> Batch:
    return Batch(
        tuple(step.begun for step in steps if step.begun),
        tuple(each for step in steps for each in step.chunks),
        tuple(step.ended for step in steps if step.ended),
        worker,
    )


def _events(entry: PendingGeneration) -> list[tuple[int, Event]]:
    """The events that are not in the store, in order.

    Where the log has let go of some, their text is in the recording still; what was no text is
    missing then.
    """
    recording, log = entry.recording, entry.recording.log
    while True:
        try:
            return log.read(entry.written)
        except OffsetLost:
            first = log.first
            lost: list[tuple[int, Event]] = [
                (number, Content(text))
                for number in range(entry.written + 1, first)
                if (text := recording.piece(number))
            ]
            try:
                return lost + log.read(first - 1)
            except OffsetLost:  # it has let go of some more in between
                continue


def _chunks(recording: Generation, events: list[tuple[int, Event]]) -> tuple[Chunk, ...]:
    """The events with their times, a chunk for each row of numbers without a gap."""
    if not events:
        return ()
    stream_id, began = recording.id, recording.started_at
    first, last = events[0][0], events[-1][0]
    came = recording.came_at
    timed: list[tuple[float, Event]] = []
    if is_terminal(events[-1][1]):
        *events, (_, ended) = events
        at = recording.ended_at or now()
        timed = [(_ms(at - began), ended)]
    if last - first + 1 == len(events) + len(timed):  # as always, unless a log has let go of some
        said = [(_ms(came(number) - began), event) for number, event in events]
        return (Chunk(stream_id, first, said + timed),)
    chunks = [
        Chunk(stream_id, number, [(_ms(came(number) - began), event)]) for number, event in events
    ]
    return (*chunks, Chunk(stream_id, last, timed)) if timed else tuple(chunks)


def _ms(seconds: float) -> float:
    """Milliseconds, to a tenth."""
    return int(seconds * 10_000) / 10


def _wall(at: float) -> float:
    """A time on the clock of `halt.clock.now` as seconds since 1970."""
    return time.time() - (now() - at)
