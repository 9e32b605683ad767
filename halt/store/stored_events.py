"""The events of a generation out of its chunks, and what can be told of it from them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
from sqlalchemy import Connection

from halt.core.events import Content, Event, ReasoningEnd, answer_of, is_terminal, text_of
from halt.core.metrics import Metrics
from halt.core.steps import Step, StepStream
from halt.store.batches import Chunk
from halt.store.database import execute

T = TypeVar("T")
Timed = tuple[float, Event]

_encode = msgspec.json.Encoder().encode
decode_timed = msgspec.json.Decoder(list[Timed]).decode
decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode  # for events that are only passed on

_CHUNKS = "SELECT first_seq, payload FROM chunks WHERE generation_id = ?"


def gathered(
    connection: Connection,
    stream_id: str,
    last: Sequence[Chunk],
    decode: Callable[[bytes], list[T]],
) -> list[tuple[int, list[T]]]:
    """All events of a generation, those of the chunks that were not written too; each once."""
    parts = [
        (first, decode(payload))
        for first, payload in execute(connection, _CHUNKS, (stream_id,)).fetchall()
    ]
    parts += [(each.first_seq, decode(_encode(each.events))) for each in last]
    parts.sort(key=lambda part: part[0])
    out: list[tuple[int, list[T]]] = []
    upto = 0
    for first, part in parts:
        new = part[max(0, upto + 1 - first) :]
        if not new:
            continue
        start = first + len(part) - len(new)
        if out and start == upto + 1:
            out[-1][1].extend(new)
        else:
            out.append((start, new))
        upto = start + len(new) - 1
    return out


def text_so_far(connection: Connection, stream_id: str) -> str:
    """What is written down of the text of a generation that runs."""
    return answer_of(numbered(gathered(connection, stream_id, [], decode_timed)))


def numbered(events: list[tuple[int, list[Timed]]]) -> Iterator[tuple[int, Event]]:
    """Each event with its number."""
    for first, part in events:
        for number, (_, event) in enumerate(part, first):
            yield number, event


def folded(events: list[tuple[int, list[Timed]]]) -> tuple[Step, ...]:
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
                thought = [each for each in texts if each[0] > event.after]
                began = thought[0][1] if thought else at
                stream.reclassify(number, "".join(text for _, _, text in thought), began, at)
                texts.clear()
                continue
            if text := text_of(event):
                texts.append((number, at, text))
            stream.feed(number, event, at)
    return stream.end(at)


def measured(said: Sequence[Timed]) -> Metrics:
    """What can be told of a generation from its events alone."""
    times = [at for at, _ in said]
    first, last = (times[0], times[-1]) if times else (None, 0.0)
    rate = (len(times) - 1) / (last - times[0]) * 1000 if last - (first or 0.0) > 20 else None
    return Metrics(
        ttft_ms=first,
        duration_ms=last,
        tokens=len(said),
        tokens_estimated=True,
        tokens_per_second=None if rate is None else round(rate, 1),
        characters=sum(len(event.content) for _, event in said if isinstance(event, Content)),
        chunks=len(said),
        streaming_ms=None if first is None else round(last - first, 1),
    )
