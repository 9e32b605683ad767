"""Writes generations to the database in batches, reads them back, ends those of dead workers.

While a generation runs, its events are rows of `chunks`, each `[[milliseconds, event], ...]`. At
its end they become one compressed value of its own row, `[[first number, [[...], ...]], ...]`, and
its answer becomes the text of its message.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, Row, func, select, update

from halt.core.events import Done, ErrorInfo, Event, Failed, answer_of
from halt.core.stream_key import StreamKey
from halt.errors import CODES
from halt.store import retention, tree
from halt.store.batches import Batch, Chunk, GenerationEnd, NewGeneration
from halt.store.database import Database, execute, upsert
from halt.store.models import State, state_of
from halt.store.rows import lock
from halt.store.search import trigrams
from halt.store.stored_events import (
    Timed,
    decode_raw,
    decode_timed,
    gathered,
    metrics_of,
    numbered,
    stored_steps,
)
from halt.store.tables import conversations, generations, messages, storable

#: Event numbers that an interruption skips: readers may have received events that are not stored.
GAP = 100_000

DAY = 86_400.0

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_stored_events = msgspec.json.Decoder(list[tuple[int, list[Timed]]])


@dataclass(frozen=True)
class GenerationRecord:
    """An ended generation with all its events."""

    key: StreamKey
    conversation_id: str | None
    message_id: int | None
    requested_model: str
    model: str
    state: State
    prefix: str  # of a Continue: the text that the answer had before
    started_at: float  # seconds since 1970
    ended_at: float
    last_seq: int
    seen: int | None
    events: tuple[tuple[int, float, Event], ...]  # number, milliseconds since the start, event


class Generations:
    """The rows and events of all generations. StoreWriter writes them, Replay reads them."""

    def __init__(self, database: Database, events_days: float = 7.0) -> None:
        self.database = database
        self._events_for = events_days * DAY  # seconds

    def write(self, batch: Batch) -> None:
        """Write a batch in one transaction.

        A batch may be written again: events that are already stored are not duplicated. Generations
        that are unknown or have ended are skipped. The message of an answer that was stopped
        before any of it was shown is removed, and its prompt too if that has no other answer.
        """
        ends = {end.key: end for end in batch.ends}
        new_rows: list[tuple[object, ...]] = []
        last_chunks: defaultdict[StreamKey, list[Chunk]] = defaultdict(list)
        for chunk in batch.chunks:
            if chunk.key in ends:
                last_chunks[chunk.key].append(chunk)
            elif chunk.events:
                payload = _encode(chunk.events)
                new_rows.append((chunk.first_seq, payload, *chunk.key, batch.worker))
        with self.database.writing(urgent=True) as connection:
            if batch.new:
                self._add(connection, batch.new)
            if new_rows:
                execute(connection, _ADD_CHUNK, new_rows)
            running = [
                (key, *row)
                for key in ends
                if (row := execute(connection, _RUNNING, (*key, batch.worker)).fetchone())
            ]
            lock(connection, (conversation_id for _, conversation_id, _ in running))
            for key, conversation_id, message_id in running:
                events = gathered(connection, key, last_chunks[key], decode_raw)
                _end(connection, conversation_id, message_id, ends[key], events)

    def count(self, key: StreamKey, usage: Mapping[str, Any]) -> None:
        """Store the token counts that the provider reported after the end; they are exact.

        A generation that is unknown or has not ended is skipped.
        """
        counts = dict(usage)
        with self.database.writing() as connection:
            connection.execute(
                update(generations)
                .where(*_is(key), generations.c.state != "running")
                .values(
                    prompt_tokens=_count(counts, "prompt_tokens", "input_tokens"),
                    completion_tokens=_count(counts, "completion_tokens", "output_tokens"),
                    estimated=False,
                    usage=_encode(counts),
                )
            )

    def get_ended(self, key: StreamKey) -> GenerationRecord | None:
        """The ended generation; None if there is none.

        Also None when its events have been removed, HALT_EVENTS_DAYS days after its end.
        """
        with self.database.reading() as connection:
            row = connection.execute(
                select(generations).where(*_is(key), generations.c.state != "running")
            ).one_or_none()
            if row is None or row.events is None:
                return None
            prefix = ""
            if row.prefix_chars and row.message_id is not None:
                text = connection.scalar(
                    select(messages.c.content).where(messages.c.id == row.message_id)
                )
                prefix = (text or "")[: row.prefix_chars]
        return GenerationRecord(
            key,
            row.conversation_id,
            row.message_id,
            row.requested_model,
            row.model,
            row.state,
            prefix,
            row.started_at,
            row.ended_at,
            row.last_seq,
            row.seen,
            tuple(
                (first + index, at, event)
                for first, events in _stored_events.decode(zlib.decompress(row.events))
                for index, (at, event) in enumerate(events)
            ),
        )

    def state(self, key: StreamKey) -> State | None:
        """The state of a generation; None if there is none."""
        with self.database.reading() as connection:
            state: State | None = connection.scalar(select(generations.c.state).where(*_is(key)))
        return state

    def exists(self, key: StreamKey) -> bool:
        """Whether a generation has this key, running or ended."""
        with self.database.reading() as connection:
            # Plain SQL: SQLAlchemy would add 140 us to every start with an ID.
            return execute(connection, _EXISTS, key).fetchone() is not None

    def workers_running(self) -> dict[str, float]:
        """The workers of running generations, each with the start time of its newest one.

        In seconds since 1970.
        """
        with self.database.reading() as connection:
            query = (
                select(generations.c.worker, func.max(generations.c.started_at).label("began"))
                .where(generations.c.state == "running")
                .group_by(generations.c.worker)
            )
            return {row.worker: row.began for row in connection.execute(query)}

    def running_of(self, worker: str) -> list[StreamKey]:
        """A worker's running generations, oldest first."""
        query = (
            select(generations.c.owner, generations.c.id)
            .where(generations.c.worker == worker, generations.c.state == "running")
            .order_by(generations.c.started_at)
        )
        with self.database.reading() as connection:
            return [StreamKey(*row) for row in connection.execute(query)]

    def interrupt(self, key: StreamKey) -> bool:
        """End a running generation as interrupted, after its last stored event.

        Of concurrent calls exactly one returns True. False if it has ended or is unknown.
        """
        with self.database.writing() as connection:
            query = select(generations).where(*_is(key), generations.c.state == "running")
            row = connection.execute(query).one_or_none()
            if row is None:
                return False
            lock(connection, [row.conversation_id])
            if connection.execute(query.with_for_update()).one_or_none() is None:
                return False  # another worker has ended it meanwhile
            events = gathered(connection, key, [], decode_timed)
            last_seq = max((first + len(part) - 1 for first, part in events), default=0)
            timed_events = [timed for _, part in events for timed in part]
            prefix = ""
            if row.prefix_chars:
                content = select(messages.c.content).where(messages.c.id == row.message_id)
                prefix = connection.scalar(content) or ""
            text = prefix + answer_of(numbered(events))
            message, retryable = CODES["interrupted"]
            ended = Failed(ErrorInfo("interrupted", message, retryable), metrics_of(timed_events))
            duration_ms = timed_events[-1][0] if timed_events else 0.0
            end = GenerationEnd(
                key,
                ended,
                max(row.started_at + duration_ms / 1000, row.started_at),
                last_seq + GAP + 1,
                text,
                row.model or row.requested_model,
                stored_steps(events),
            )
            events.append((end.last_seq, [(duration_ms, ended)]))
            _end(connection, row.conversation_id, row.message_id, end, events)
            return True

    def sweep(self, now: float) -> int:
        """Remove expired rows; returns their number. `now` is in seconds since 1970.

        Conversations expire a day after their deletion; events of ended generations, and
        generations without a conversation, after HALT_EVENTS_DAYS days. Each call does a bounded
        amount of work: repeat it until it returns 0.
        """
        with self.database.writing() as connection:
            return retention.sweep(connection, now, self._events_for)

    def _add(self, connection: Connection, begun: Sequence[NewGeneration]) -> None:
        added = connection.execute(
            upsert(connection, generations).on_conflict_do_nothing(),
            [
                {
                    "id": new.key.id,
                    "owner": new.key.owner,
                    "worker": new.worker,
                    "requested_model": new.requested_model,
                    "started_at": new.started_at,
                }
                for new in begun
            ],
        ).rowcount
        if added == len(begun):
            return
        for new in begun:  # `Turns` has already added those of conversations
            if execute(connection, _IS_TAKEN, (*new.key, new.worker)).fetchone():
                logger.error("stream %s is not saved: an earlier one has its ID", new.key.id)


# Statements that run while tokens arrive are plain SQL: SQLAlchemy takes 110 us to build one and
# 31 us to run it, the driver 3 us.

#: Adds no chunk to a generation that another process has ended, nor to one of another worker: a
#: client has used its ID again while the store could not be queried for it.
_ADD_CHUNK = """
    INSERT INTO chunks (owner, generation_id, first_seq, payload)
    SELECT owner, id, ?, ? FROM generations
    WHERE owner = ? AND id = ? AND state = 'running' AND worker = coalesce(?, worker)
    ON CONFLICT (owner, generation_id, first_seq) DO UPDATE SET payload = excluded.payload
"""
_EXISTS = "SELECT 1 FROM generations WHERE owner = ? AND id = ?"
_RUNNING = """
    SELECT conversation_id, message_id FROM generations
    WHERE owner = ? AND id = ? AND state = 'running' AND worker = coalesce(?, worker)
"""
_IS_TAKEN = """
    SELECT 1 FROM generations
    WHERE owner = ? AND id = ? AND NOT (state = 'running' AND worker = ?)
"""
_END = """
    UPDATE generations SET state = ?, model = ?, ended_at = ?, last_seq = ?, seen = ?,
    prompt_tokens = ?, completion_tokens = ?, estimated = ?, usage = ?, ended = ?, events = ?
    WHERE owner = ? AND id = ? AND state = 'running'
"""
#: Columns of a message that `_end` reads.
_MESSAGE_COLUMNS: tuple[Column[Any], ...] = tuple(
    messages.c[name] for name in ("id", "conversation_id", "model", "steps", "first_alternative_id")
)
_REMOVE = "DELETE FROM chunks WHERE owner = ? AND generation_id = ?"


def _is(key: StreamKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions for the row of this generation."""
    return generations.c.owner == key.owner, generations.c.id == key.id


def _end(
    connection: Connection,
    conversation_id: str | None,
    message_id: int | None,
    end: GenerationEnd,
    events: Sequence[tuple[int, Sequence[Timed | msgspec.Raw]]],
) -> None:
    """End a running generation: update its row and its message, remove its chunks.

    No effect if another process has ended it. The caller has locked the conversation.
    """
    state = state_of(end.ended, end.answer, end.steps)
    usage = end.ended.usage if isinstance(end.ended, Done) else None
    metrics = end.ended.metrics
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
        _encode(end.ended),
        zlib.compress(_encode(events), 1),
    )
    if not execute(connection, _END, (*ended, *end.key)).rowcount:
        return  # another process has ended it meanwhile
    execute(connection, _REMOVE, end.key)
    if message_id is None:
        return
    message = connection.execute(
        select(*_MESSAGE_COLUMNS).where(
            messages.c.id == message_id, messages.c.stream_id == end.key.id
        )
    ).one_or_none()
    if message is None:
        return
    connection.execute(
        update(messages)
        .where(messages.c.id == message_id)
        .values(
            content=end.answer,
            trigrams=trigrams(end.answer),
            model=end.model or message.model,
            state=state,
            ended=end.ended,
            steps=(*message.steps, *end.steps),
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
    """Remove an answer stopped before any of it was shown; alternatives once all of them are."""
    answer_ids = [message.id]
    if message.first_alternative_id is not None:
        alternatives = connection.execute(
            select(messages.c.id, messages.c.state).where(
                messages.c.conversation_id == message.conversation_id,
                messages.c.first_alternative_id == message.first_alternative_id,
            )
        ).all()
        if any(row.state != "withdrawn" for row in alternatives):
            return
        answer_ids = [row.id for row in alternatives]
    tree.remove(connection, message.conversation_id, answer_ids)


def _count(usage: dict[str, Any] | None, *names: str) -> int:
    """A token count of the provider: the value of the first of these names that it reports."""
    return _fitting(next((usage[name] for name in names if name in usage), 0)) if usage else 0


def _fitting(count: object) -> int:
    """A count that fits a 32-bit column; 0 for any other value that a provider may report."""
    return int(count) if isinstance(count, int) and 0 <= count < 2**31 else 0
