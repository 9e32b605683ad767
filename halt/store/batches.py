"""Collects the new events of generations as a batch that the store writes in one transaction."""

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
from halt.core.stream_key import StreamKey
from halt.errors import OffsetLost


@dataclass(frozen=True)
class NewGeneration:
    """A generation that may need its row. `Turns` has already added those of conversations."""

    key: StreamKey
    worker: str
    requested_model: str = ""  # "" for the default one
    started_at: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Chunk:
    """Consecutive events of a generation, each with milliseconds since the generation's start."""

    key: StreamKey
    first_seq: int
    events: Sequence[tuple[float, Event]]


@dataclass(frozen=True)
class GenerationEnd:
    """The end of a generation. Its terminal event is in its last `Chunk` too."""

    key: StreamKey
    ended: Terminal
    ended_at: float  # seconds since 1970
    last_seq: int
    answer: str = ""  # the message's whole text: with a Continue's prefix, cut at `seen`
    model: str = ""  # as the model names itself
    steps: tuple[Step, ...] = ()  # of this generation
    seen: int | None = None  # the last event that the client had received when it sent the Stop


@dataclass(frozen=True)
class Batch:
    """New events of all generations of a process, for one transaction.

    `worker` is the ID of their process: a generation that belongs to another worker in the store is
    not written to. None: the worker is not compared.
    """

    new: tuple[NewGeneration, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    ends: tuple[GenerationEnd, ...] = ()
    worker: str | None = None


@dataclass(eq=False)
class PendingGeneration:
    """A generation that is not completely in the store."""

    generation: Generation
    is_stored: bool = False  # its row is in the store
    last_written: int = 0  # number of its last event that is in the store


class BatchPart(NamedTuple):
    """The part of a batch that belongs to one generation."""

    entry: PendingGeneration
    event_count: int
    last_seq: int  # number of its last event
    chunks: tuple[Chunk, ...]
    new: NewGeneration | None
    end: GenerationEnd | None


def batch_part(entry: PendingGeneration, room: int, worker: str) -> BatchPart | None:
    """At most `room` new events of one generation; None if there is nothing to write."""
    generation = entry.generation
    events: list[tuple[int, Event]] = []
    if room > 0 and generation.log.last > entry.last_written:
        events = _new_events(entry)[:room]
    elif entry.is_stored:
        return None
    last_seq, last = events[-1] if events else (entry.last_written, None)
    new_generation = end = None
    if not entry.is_stored:
        started_at = _epoch_seconds(generation.started_at)
        new_generation = NewGeneration(
            generation.key, worker, generation.requested_model, started_at
        )
    if last is not None and is_terminal(last):
        end = GenerationEnd(
            generation.key,
            last,
            _epoch_seconds(generation.ended_at or now()),
            last_seq,
            generation.answer()[1],
            generation.model,
            steps.steps_of(generation),
            generation.seen_events,
        )
    return BatchPart(entry, len(events), last_seq, _chunks(generation, events), new_generation, end)


def batch_of(parts: Sequence[BatchPart], worker: str) -> Batch:
    return Batch(
        tuple(part.new for part in parts if part.new),
        tuple(chunk for part in parts for chunk in part.chunks),
        tuple(part.end for part in parts if part.end),
        worker,
    )


def _new_events(entry: PendingGeneration) -> list[tuple[int, Event]]:
    """The numbered events that are not in the store, in order.

    Events that the log has dropped are rebuilt from the text that the generation keeps; those
    without text are missing.
    """
    generation, log = entry.generation, entry.generation.log
    while True:
        try:
            return log.read(entry.last_written)
        except OffsetLost:
            first = log.first
            rebuilt: list[tuple[int, Event]] = [
                (number, Content(text))
                for number in range(entry.last_written + 1, first)
                if (text := generation.event_text(number))
            ]
            try:
                return rebuilt + log.read(first - 1)
            except OffsetLost:  # the log has dropped more events in between
                continue


def _chunks(generation: Generation, events: list[tuple[int, Event]]) -> tuple[Chunk, ...]:
    """The events with their times: one chunk, or one for each event where numbers are missing."""
    if not events:
        return ()
    key, started_at = generation.key, generation.started_at
    first, last = events[0][0], events[-1][0]
    time_of = generation.arrival_time
    end: list[tuple[float, Event]] = []
    if is_terminal(events[-1][1]):
        *events, (_, terminal) = events
        at = generation.ended_at or now()
        end = [(_ms(at - started_at), terminal)]
    if last - first + 1 == len(events) + len(end):  # the usual case: the log has dropped no event
        timed = [(_ms(time_of(number) - started_at), event) for number, event in events]
        return (Chunk(key, first, timed + end),)
    chunks = [
        Chunk(key, number, [(_ms(time_of(number) - started_at), event)]) for number, event in events
    ]
    return (*chunks, Chunk(key, last, end)) if end else tuple(chunks)


def _ms(seconds: float) -> float:
    """Milliseconds, to a tenth."""
    return int(seconds * 10_000) / 10


def _epoch_seconds(at: float) -> float:
    """A time of `halt.clock.now` as seconds since 1970."""
    return time.time() - (now() - at)
