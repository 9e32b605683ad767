"""What generations leave in the database: written in batches, read back exactly, ended by others.

While a generation runs, its events are rows of `chunks`, each `[[milliseconds, event], ...]`. At
its end they become one compressed value of its own row, `[[first number, [[...], ...]], ...]`, and
what it wrote goes into its message.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from halt.core.events import (
    Content,
    Done,
    ErrorInfo,
    Event,
    Failed,
    ReasoningEnd,
    answer_of,
    is_terminal,
    text_of,
)
from halt.core.metrics import Metrics
from halt.core.steps import Fold, FoldStream
from halt.core.stop import may_touch
from halt.errors import CODES
from halt.store import tree
from halt.store.conversation import Batch, Begun, Chunk, Ended, Recorded, State, state_of
from halt.store.database import Database, execute
from halt.store.snippets import trigrams
from halt.store.tables import chunks, conversations, generations, messages, storable

#: Numbers that an interruption leaves out: readers may have seen events that were not written.
GAP = 100_000

#: Rows that one `sweep` touches at most, of each kind.
SWEEP = 200
PURGE = 10  # conversations of those, which may be long

DELETED_FOR = 86_400.0  # seconds that a deleted conversation can be brought back
DAY = 86_400.0

logger = logging.getLogger(__name__)

Timed = tuple[float, Event]
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_timed = msgspec.json.Decoder(list[tuple[float, Event]]).decode
_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode  # for events that are only passed on
_kept = msgspec.json.Decoder(list[tuple[int, list[tuple[float, Event]]]])


class Records:
    """The recorder's and the recovery's part of `halt.store.conversation.Store`, which explains
    it."""

    def __init__(self, database: Database, events_days: float = 7.0) -> None:
        self.database = database
        self._events_for = events_days * DAY

    def write(self, batch: Batch) -> None:
        ending = {each.stream_id: each for each in batch.ended}
        grown: list[tuple[object, ...]] = []
        last: defaultdict[str, list[Chunk]] = defaultdict(list)
        for each in batch.chunks:
            if each.stream_id in ending:
                last[each.stream_id].append(each)
            elif each.events:
                payload = _encode(each.events)
                grown.append((each.first_seq, payload, each.stream_id, batch.worker))
        with self.database.writing(urgent=True) as connection:
            if batch.begun:
                self._begin(connection, batch.begun)
            if grown:
                execute(connection, _GROW, grown)
            running = [
                row
                for stream_id in ending
                if (row := execute(connection, _RUNNING, (stream_id, batch.worker)).fetchone())
            ]
            _lock(connection, (conversation_id for _, conversation_id, _ in running))
            for stream_id, conversation_id, message_id in running:
                events = _gathered(connection, stream_id, last[stream_id], _raw)
                _end(connection, conversation_id, message_id, ending[stream_id], events)

    def count(self, stream_id: str, usage: Mapping[str, Any]) -> None:
        told = dict(usage)
        with self.database.writing() as connection:
            connection.execute(
                update(generations)
                .where(generations.c.id == stream_id, generations.c.state != "running")
                .values(
                    prompt_tokens=_count(told, "prompt_tokens", "input_tokens"),
                    completion_tokens=_count(told, "completion_tokens", "output_tokens"),
                    estimated=False,
                    usage=_encode(told),
                )
            )

    def recorded(self, stream_id: str, requester: str | None) -> Recorded | None:
        with self.database.reading() as connection:
            row = connection.execute(
                select(generations).where(
                    generations.c.id == stream_id, generations.c.state != "running"
                )
            ).one_or_none()
            if row is None or row.events is None or not may_touch(row.owner, requester):
                return None
            prefix = ""
            if row.prefix_chars and row.message_id is not None:
                text = connection.scalar(
                    select(messages.c.content).where(messages.c.id == row.message_id)
                )
                prefix = (text or "")[: row.prefix_chars]
        return Recorded(
            row.id,
            row.owner,
            row.conversation_id,
            row.message_id,
            row.worker,
            row.asked_model,
            row.model,
            row.state,
            prefix,
            row.started_at,
            row.ended_at,
            row.last_seq,
            row.seen,
            tuple(
                (first + index, at, event)
                for first, events in _kept.decode(zlib.decompress(row.events))
                for index, (at, event) in enumerate(events)
            ),
        )

    def state(self, stream_id: str, requester: str | None) -> State | None:
        with self.database.reading() as connection:
            found = select(generations.c.state, generations.c.owner)
            row = connection.execute(found.where(generations.c.id == stream_id)).one_or_none()
        return None if row is None or not may_touch(row.owner, requester) else row.state

    def exists(self, stream_id: str) -> bool:
        with self.database.reading() as connection:
            # A statement of SQLAlchemy's costs 140 us here, on the way of each start with an ID.
            return execute(connection, _EXISTS, (stream_id,)).fetchone() is not None

    def workers_running(self) -> dict[str, float]:
        with self.database.reading() as connection:
            found = (
                select(generations.c.worker, func.max(generations.c.started_at).label("began"))
                .where(generations.c.state == "running")
                .group_by(generations.c.worker)
            )
            return {each.worker: each.began for each in connection.execute(found)}

    def running_of(self, worker: str) -> list[str]:
        with self.database.reading() as connection:
            return list(
                connection.scalars(
                    select(generations.c.id)
                    .where(generations.c.worker == worker, generations.c.state == "running")
                    .order_by(generations.c.started_at)
                )
            )

    def interrupt(self, stream_id: str) -> bool:
        with self.database.writing() as connection:
            found = select(generations).where(
                generations.c.id == stream_id, generations.c.state == "running"
            )
            row = connection.execute(found).one_or_none()
            if row is None:
                return False
            _lock(connection, [row.conversation_id])
            if connection.execute(found.with_for_update()).one_or_none() is None:
                return False  # another worker was quicker
            events = _gathered(connection, stream_id, [], _timed)
            last = max((first + len(part) - 1 for first, part in events), default=0)
            said = [timed for _, part in events for timed in part]
            prefix = ""
            if row.prefix_chars:
                content = select(messages.c.content).where(messages.c.id == row.message_id)
                prefix = connection.scalar(content) or ""
            text = prefix + answer_of(_numbered(events))
            message, retryable = CODES["interrupted"]
            ended = Failed(ErrorInfo("interrupted", message, retryable), _measured(said))
            lasted = said[-1][0] if said else 0.0
            end = Ended(
                stream_id,
                ended,
                max(row.started_at + lasted / 1000, row.started_at),
                last + GAP + 1,
                text,
                row.model or row.asked_model,
                _folded(events),
            )
            events.append((end.last_seq, [(lasted, ended)]))
            _end(connection, row.conversation_id, row.message_id, end, events)
            return True

    def sweep(self, now: float) -> int:
        with self.database.writing() as connection:
            return (
                self._purge(connection, now)
                + self._forget_programs(connection, now)
                + self._forget_events(connection, now)
            )

    def close(self) -> None:
        self.database.close()

    def _purge(self, connection: Connection, now: float) -> int:
        """Remove conversations that were deleted a day ago, and those that never held anything."""
        gone = list(
            connection.scalars(
                select(conversations.c.id)
                .where(conversations.c.deleted_at < now - DELETED_FOR)
                .union(
                    select(conversations.c.id).where(
                        conversations.c.first_id.is_(None),
                        conversations.c.deleted_at.is_(None),  # else it is being imported
                        conversations.c.updated_at < now - DELETED_FOR,
                    )
                )
                .limit(PURGE)
            )
        )
        if gone:
            streams = select(generations.c.id).where(generations.c.conversation_id.in_(gone))
            connection.execute(delete(chunks).where(chunks.c.generation_id.in_(streams)))
            for table in (generations, messages):
                connection.execute(delete(table).where(table.c.conversation_id.in_(gone)))
            connection.execute(delete(conversations).where(conversations.c.id.in_(gone)))
        return len(gone)

    def _forget_programs(self, connection: Connection, now: float) -> int:
        """Remove the generations of programs when their time is over."""
        old = (
            select(generations.c.id)
            .where(
                generations.c.events.is_not(None),
                generations.c.ended_at < now - self._events_for,
                generations.c.conversation_id.is_(None),
            )
            .limit(SWEEP)
        )
        return connection.execute(delete(generations).where(generations.c.id.in_(old))).rowcount

    def _forget_events(self, connection: Connection, now: float) -> int:
        """Let go the events of conversations' generations when their time is over."""
        old = (
            select(generations.c.id)
            .where(
                generations.c.events.is_not(None),
                generations.c.ended_at < now - self._events_for,
            )
            .limit(SWEEP)
        )
        return connection.execute(
            update(generations).where(generations.c.id.in_(old)).values(events=None)
        ).rowcount

    def _begin(self, connection: Connection, begun: Sequence[Begun]) -> None:
        added = connection.execute(
            self._insert(generations).on_conflict_do_nothing(),
            [
                generation(each.stream_id, each.owner, each.worker, each.asked, each.started_at)
                for each in begun
            ],
        ).rowcount
        if added == len(begun):
            return
        for each in begun:  # those of a page are there already
            if execute(connection, _FOREIGN, (each.stream_id, each.worker)).fetchone():
                logger.error("stream %s is not saved: an earlier one has its ID", each.stream_id)

    def _insert(self, table: Any) -> Any:
        """An insert that can say what is to be done with rows that are there already."""
        return (sqlite if self.database.sqlite else postgresql).insert(table)


def written(text: str) -> dict[str, str | None]:
    """A message's text, and what a search finds of it."""
    content = storable(text)
    return {"content": content, "trigrams": trigrams(content)}


def generation(
    stream_id: str,
    owner: str | None,
    worker: str,
    asked: str,
    started_at: float,
    *,
    conversation_id: str | None = None,
    message_id: int | None = None,
    prefix_chars: int = 0,
) -> dict[str, Any]:
    """The row of a generation that begins."""
    return {
        "id": stream_id,
        "owner": owner,
        "conversation_id": conversation_id,
        "message_id": message_id,
        "worker": worker,
        "state": "running",
        "asked_model": storable(asked),
        "model": "",
        "prefix_chars": prefix_chars,
        "started_at": started_at,
        "last_seq": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "estimated": False,
    }


# What is executed while tokens come is plain SQL: SQLAlchemy takes 110 us to build a statement and
# 31 us to run it, the driver 3.

#: A generation that another process has ended gets no more chunks. Nor does one of another worker:
#: its ID was chosen again while the store could not be asked for it.
_GROW = """
    INSERT INTO chunks (generation_id, first_seq, payload)
    SELECT id, ?, ? FROM generations
    WHERE id = ? AND state = 'running' AND worker = coalesce(?, worker)
    ON CONFLICT (generation_id, first_seq) DO UPDATE SET payload = excluded.payload
"""
_EXISTS = "SELECT 1 FROM generations WHERE id = ?"
_RUNNING = """
    SELECT id, conversation_id, message_id FROM generations
    WHERE id = ? AND state = 'running' AND worker = coalesce(?, worker)
"""
_FOREIGN = "SELECT 1 FROM generations WHERE id = ? AND NOT (state = 'running' AND worker = ?)"
_CHUNKS = "SELECT first_seq, payload FROM chunks WHERE generation_id = ?"
_END = """
    UPDATE generations SET state = ?, model = ?, ended_at = ?, last_seq = ?, seen = ?,
    prompt_tokens = ?, completion_tokens = ?, estimated = ?, usage = ?, ended = ?, events = ?
    WHERE id = ? AND state = 'running'
"""
_REMOVE = "DELETE FROM chunks WHERE generation_id = ?"


def _lock(connection: Connection, conversation_ids: Iterable[str | None]) -> None:
    """Have these conversations to oneself, in an order in which nobody waits for another."""
    wanted = sorted({each for each in conversation_ids if each is not None})
    if wanted:
        connection.execute(
            select(conversations.c.id)
            .where(conversations.c.id.in_(wanted))
            .order_by(conversations.c.id)
            .with_for_update()
        )


def _gathered(
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
    return answer_of(_numbered(_gathered(connection, stream_id, [], _timed)))


def _end(
    connection: Connection,
    conversation_id: str | None,
    message_id: int | None,
    end: Ended,
    events: Sequence[tuple[int, Sequence[Timed | msgspec.Raw]]],
) -> None:
    """End a generation that runs: its own row, its chunks, its message."""
    state = state_of(end.ended, end.answer, end.folds)
    usage = end.ended.usage if isinstance(end.ended, Done) else None
    metrics = end.ended.metrics
    encoded = _encode(end.ended)
    ended = (
        state,
        storable(end.model),
        end.ended_at,
        end.last_seq,
        None if end.seen is None else min(end.seen, end.last_seq),
        _count(usage, "prompt_tokens", "input_tokens"),
        _fitting(metrics.tokens),
        metrics.tokens_estimated and metrics.tokens > 0,
        None if usage is None else _encode(usage),
        encoded,
        zlib.compress(_encode(events), 1),
    )
    if not execute(connection, _END, (*ended, end.stream_id)).rowcount:
        return  # it was ended by another process in between
    execute(connection, _REMOVE, (end.stream_id,))
    if message_id is None:
        return
    message = connection.execute(select(messages).where(messages.c.id == message_id)).one_or_none()
    if message is None or message.stream_id != end.stream_id:
        return
    connection.execute(
        update(messages)
        .where(messages.c.id == message_id)
        .values(
            **written(end.answer),
            model=storable(end.model or message.model),
            state=state,
            ended=encoded,
            folds=_encode((*tree.folds_of(message.folds), *end.folds)),
        )
    )
    connection.execute(
        update(conversations)
        .where(conversations.c.id == conversation_id)
        .values(updated_at=time.time())
    )
    if state == "withdrawn":
        _withdraw(connection, message)


def _withdraw(connection: Connection, message: Row[Any]) -> None:
    """Remove what was stopped before it was shown; of rivals, when that holds for all of them."""
    group = [message.id]
    if message.rivals is not None:
        rivals = connection.execute(
            select(messages.c.id, messages.c.state).where(
                messages.c.conversation_id == message.conversation_id,
                messages.c.rivals == message.rivals,
            )
        ).all()
        if any(each.state != "withdrawn" for each in rivals):
            return
        group = [each.id for each in rivals]
    tree.remove(connection, message.conversation_id, group)


def earlier(folds: tuple[Fold, ...]) -> tuple[Fold, ...]:
    """The folds of a message that another generation goes on with: no number is used twice."""
    return tuple(replace(each, number=n - len(folds)) for n, each in enumerate(folds))


def _numbered(events: list[tuple[int, list[Timed]]]) -> Iterator[tuple[int, Event]]:
    for first, part in events:
        for number, (_, event) in enumerate(part, first):
            yield number, event


def _folded(events: list[tuple[int, list[Timed]]]) -> tuple[Fold, ...]:
    stream = FoldStream()
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
    return stream.ended(at)


def _measured(said: Sequence[Timed]) -> Metrics:
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


def _count(usage: dict[str, Any] | None, *names: str) -> int:
    """A count of the provider's, under the first of these names that is there."""
    return _fitting(next((usage[name] for name in names if name in usage), 0)) if usage else 0


def _fitting(count: object) -> int:
    """A count that a column holds; 0 for what is none, whatever a provider has said."""
    return int(count) if isinstance(count, int) and 0 <= count < 2**31 else 0
