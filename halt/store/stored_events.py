"""Reads the events of a generation from its chunks; derives its text, steps and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
from sqlalchemy import Connection

from halt.core.events import Content, Event, ReasoningEnd, answer_of, is_terminal, text_of
from halt.core.metrics import Metrics
from halt.core.steps import Step, StepStream
from halt.core.stream_key import StreamKey
from halt.store.batches import Chunk
from halt.store.database import execute

T = TypeVar("T")
Timed = tuple[float, Event]

_encode = msgspec.json.Encoder().encode
decode_timed = msgspec.json.Decoder(list[Timed]).decode
decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode  # where the events are not inspected

_CHUNKS = "SELECT first_seq, payload FROM chunks WHERE owner = ? AND generation_id = ?"


def gathered(
    connection: Connection,
    key: StreamKey,
    last: Sequence[Chunk],
    decode: Callable[[bytes], list[T]],
) -> list[tuple[int, list[T]]]:
    """All events of a generation, each once, in order: (number of the first, events) per run.

    `last` are chunks that are not in the database yet. A run has no gap in its numbers.
    """
    parts = [
        (first, decode(payload)) for first, payload in execute(connection, _CHUNKS, key).fetchall()
    ]
    parts += [(chunk.first_seq, decode(_encode(chunk.events))) for chunk in last]
    parts.sort(key=lambda part: part[0])
    out: list[tuple[int, list[T]]] = []
    last_seq = 0
    for first, part in parts:
        new_events = part[max(0, last_seq + 1 - first) :]
        if not new_events:
            continue
        start = first + len(part) - len(new_events)
        if out and start == last_seq + 1:
            out[-1][1].extend(new_events)
        else:
            out.append((start, new_events))
        last_seq = start + len(new_events) - 1
    return out


def text_so_far(connection: Connection, key: StreamKey) -> str:
    """The text of a running generation as far as its events are stored."""
    return answer_of(numbered(gathered(connection, key, [], decode_timed)))


def numbered(events: list[tuple[int, list[Timed]]]) -> Iterator[tuple[int, Event]]:
    """Each event with its number."""
    for first, part in events:
        for number, (_, event) in enumerate(part, first):
            yield number, event


def stored_steps(events: list[tuple[int, list[Timed]]]) -> tuple[Step, ...]:
    """The thoughts and tool calls among the events."""
    stream = StepStream()
    at = 0.0
    texts: list[tuple[int, float, str]] = []
    for first, part in events:
        for number, (ms, event) in enumerate(part, first):
            if is_terminal(event):
                continue
            at = ms / 1000
            if isinstance(event, ReasoningEnd):
                thought = [piece for piece in texts if piece[0] > event.after]
                began = thought[0][1] if thought else at
                stream.reclassify(number, "".join(text for _, _, text in thought), began, at)
                texts.clear()
                continue
            if text := text_of(event):
                texts.append((number, at, text))
            stream.feed(number, event, at)
    return stream.end(at)


def metrics_of(events: Sequence[Timed]) -> Metrics:
    """The figures of a generation, computed from its events alone; tokens are estimated."""
    times = [at for at, _ in events]
    first, last = (times[0], times[-1]) if times else (None, 0.0)
    rate = (len(times) - 1) / (last - times[0]) * 1000 if last - (first or 0.0) > 20 else None
    return Metrics(
        ttft_ms=first,
        duration_ms=last,
        tokens=len(events),
        tokens_estimated=True,
        tokens_per_second=None if rate is None else round(rate, 1),
        characters=sum(len(event.content) for _, event in events if isinstance(event, Content)),
        chunks=len(events),
        streaming_ms=None if first is None else round(last - first, 1),
    )
