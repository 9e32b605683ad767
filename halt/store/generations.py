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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Row, func, select, update

from halt.core.events import Done, ErrorInfo, Event, Failed, answer_of
from halt.core.stop import may_touch
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
    folded,
    gathered,
    measured,
    numbered,
)
from halt.store.tables import conversations, generations, messages, storable

#: Numbers that an interruption leaves out: readers may have seen events that were not written.
GAP = 100_000

DAY = 86_400.0

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_kept = msgspec.json.Decoder(list[tuple[int, list[Timed]]])


@dataclass(frozen=True)
class GenerationRecord:
    """A generation that has ended, with everything that it produced."""

    stream_id: str
    owner: str | None
    conversation_id: str | None
    message_id: int | None
    requested_model: str
    model: str
    state: State
    prefix: str  # the text from which it went on, where it was a Continue
    started_at: float  # seconds since 1970
    ended_at: float
    last_seq: int
    seen: int | None
    events: tuple[tuple[int, float, Event], ...]  # number, milliseconds since the start, event


class Generations:
    """All generations: for the store writer that writes them, and the replay that reads them."""

    def __init__(self, database: Database, events_days: float = 7.0) -> None:
        self.database = database
        self._events_for = events_days * DAY

    def write(self, batch: Batch) -> None:
        """Write down what generations produced, in one transaction.

        What is already there is not written twice, so a batch may be tried again. A generation
        that is not known, or that has ended, is passed over. An answer stopped before anything
        leaves no message, nor does its prompt where it has no other answer.
        """
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
            lock(connection, (conversation_id for _, conversation_id, _ in running))
            for stream_id, conversation_id, message_id in running:
                events = gathered(connection, stream_id, last[stream_id], decode_raw)
                _end(connection, conversation_id, message_id, ending[stream_id], events)

    def count(self, stream_id: str, usage: Mapping[str, Any]) -> None:
        """What the provider has counted for a generation, told after its end; no estimate any more.

        A generation that is not known, or has not ended, is passed over.
        """
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

    def get_ended(self, stream_id: str, requester: str | None) -> GenerationRecord | None:
        """A generation that has ended, and may be read by the requester; None: there is none.

        Nor is there one when its events have gone, HALT_EVENTS_DAYS after its end.
        """
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
        return GenerationRecord(
            row.id,
            row.owner,
            row.conversation_id,
            row.message_id,
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
        """How a generation is that the requester may read; None: there is none."""
        with self.database.reading() as connection:
            found = select(generations.c.state, generations.c.owner)
            row = connection.execute(found.where(generations.c.id == stream_id)).one_or_none()
        return None if row is None or not may_touch(row.owner, requester) else row.state

    def exists(self, stream_id: str) -> bool:
        """Whether a generation has this ID, of whomever, running or ended."""
        with self.database.reading() as connection:
            # A statement of SQLAlchemy's costs 140 us here, on the way of each start with an ID.
            return execute(connection, _EXISTS, (stream_id,)).fetchone() is not None

    def workers_running(self) -> dict[str, float]:
        """The workers that have generations which have not ended, and when the last of them began.

        In seconds since 1970.
        """
        with self.database.reading() as connection:
            found = (
                select(generations.c.worker, func.max(generations.c.started_at).label("began"))
                .where(generations.c.state == "running")
                .group_by(generations.c.worker)
            )
            return {each.worker: each.began for each in connection.execute(found)}

    def running_of(self, worker: str) -> list[str]:
        """Its generations that have not ended."""
        with self.database.reading() as connection:
            return list(
                connection.scalars(
                    select(generations.c.id)
                    .where(generations.c.worker == worker, generations.c.state == "running")
                    .order_by(generations.c.started_at)
                )
            )

    def interrupt(self, stream_id: str) -> bool:
        """End a generation whose worker is gone with what was written of it.

        True for the one caller who did; False where it had ended, or is not known.
        """
        with self.database.writing() as connection:
            found = select(generations).where(
                generations.c.id == stream_id, generations.c.state == "running"
            )
            row = connection.execute(found).one_or_none()
            if row is None:
                return False
            lock(connection, [row.conversation_id])
            if connection.execute(found.with_for_update()).one_or_none() is None:
                return False  # another worker was quicker
            events = gathered(connection, stream_id, [], decode_timed)
            last = max((first + len(part) - 1 for first, part in events), default=0)
            said = [timed for _, part in events for timed in part]
            prefix = ""
            if row.prefix_chars:
                content = select(messages.c.content).where(messages.c.id == row.message_id)
                prefix = connection.scalar(content) or ""
            text = prefix + answer_of(numbered(events))
            message, retryable = CODES["interrupted"]
            ended = Failed(ErrorInfo("interrupted", message, retryable), measured(said))
            lasted = said[-1][0] if said else 0.0
            end = GenerationEnd(
                stream_id,
                ended,
                max(row.started_at + lasted / 1000, row.started_at),
                last + GAP + 1,
                text,
                row.model or row.asked_model,
                folded(events),
            )
            events.append((end.last_seq, [(lasted, ended)]))
            _end(connection, row.conversation_id, row.message_id, end, events)
            return True

    def sweep(self, now: float) -> int:
        """Let go what is kept for a time only; `now` in seconds since 1970. Returns how much.

        Conversations a day after their deletion; events of finished generations, and generations
        of programs, after HALT_EVENTS_DAYS. Bounded work: call again while it returns some.
        """
        with self.database.writing() as connection:
            return retention.sweep(connection, now, self._events_for)

    def _begin(self, connection: Connection, begun: Sequence[NewGeneration]) -> None:
        added = connection.execute(
            upsert(connection, generations).on_conflict_do_nothing(),
            [
                {
                    "id": each.stream_id,
                    "owner": each.owner,
                    "worker": each.worker,
                    "asked_model": each.requested_model,
                    "started_at": each.started_at,
                }
                for each in begun
            ],
        ).rowcount
        if added == len(begun):
            return
        for each in begun:  # those of a page are there already
            if execute(connection, _FOREIGN, (each.stream_id, each.worker)).fetchone():
                logger.error("stream %s is not saved: an earlier one has its ID", each.stream_id)


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
_END = """
    UPDATE generations SET state = ?, model = ?, ended_at = ?, last_seq = ?, seen = ?,
    prompt_tokens = ?, completion_tokens = ?, estimated = ?, usage = ?, ended = ?, events = ?
    WHERE id = ? AND state = 'running'
"""
#: What is needed of the message that a generation has written.
_ENDING: tuple[Column[Any], ...] = tuple(
    messages.c[name] for name in ("id", "conversation_id", "model", "folds", "rivals")
)
_REMOVE = "DELETE FROM chunks WHERE generation_id = ?"


def _end(
    connection: Connection,
    conversation_id: str | None,
    message_id: int | None,
    end: GenerationEnd,
    events: Sequence[tuple[int, Sequence[Timed | msgspec.Raw]]],
) -> None:
    """End a generation that runs: its own row, its chunks, its message."""
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
    if not execute(connection, _END, (*ended, end.stream_id)).rowcount:
        return  # it was ended by another process in between
    execute(connection, _REMOVE, (end.stream_id,))
    if message_id is None:
        return
    message = connection.execute(
        select(*_ENDING).where(messages.c.id == message_id, messages.c.stream_id == end.stream_id)
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
            folds=(*message.folds, *end.steps),
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


def _count(usage: dict[str, Any] | None, *names: str) -> int:
    """A count of the provider's, under the first of these names that is there."""
    return _fitting(next((usage[name] for name in names if name in usage), 0)) if usage else 0


def _fitting(count: object) -> int:
    """A count that a column holds; 0 for what is none, whatever a provider has said."""
    return int(count) if isinstance(count, int) and 0 <= count < 2**31 else 0
