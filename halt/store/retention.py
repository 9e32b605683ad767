"""Removes what is kept for a time only: deleted conversations, programs' generations, events."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update

from halt.store.tables import chunks, conversations, generations, messages

#: Rows that one `sweep` touches at most, of each kind.
SWEEP = 200
PURGE = 10  # conversations of those, which may be long

DELETED_FOR = 86_400.0  # seconds that a deleted conversation can be brought back


def sweep(connection: Connection, now: float, events_for: float) -> int:
    """See `halt.store.generations.Generations.sweep`; events are kept for `events_for` seconds."""
    return _purge(connection, now) + _forget(connection, now - events_for)


def _purge(connection: Connection, now: float) -> int:
    """Remove conversations that were deleted a day ago, and those that never held anything."""
    deleted = conversations.c.deleted_at < now - DELETED_FOR
    empty = select(conversations.c.id).where(
        conversations.c.first_id.is_(None),
        conversations.c.deleted_at.is_(None),  # else it is being imported
        conversations.c.updated_at < now - DELETED_FOR,
    )
    old = select(conversations.c.id).where(deleted).union(empty)
    gone = list(connection.scalars(old.limit(PURGE)))
    if gone:
        streams = select(generations.c.id).where(generations.c.conversation_id.in_(gone))
        connection.execute(delete(chunks).where(chunks.c.generation_id.in_(streams)))
        for table in (generations, messages):
            connection.execute(delete(table).where(table.c.conversation_id.in_(gone)))
        connection.execute(delete(conversations).where(conversations.c.id.in_(gone)))
    return len(gone)


def _forget(connection: Connection, before: float) -> int:
    """Remove programs' generations that ended before then, and the events of conversations'."""
    old = (
        select(generations.c.id)
        .where(generations.c.events.is_not(None), generations.c.ended_at < before)
        .limit(SWEEP)
    )
    of_programs = old.where(generations.c.conversation_id.is_(None))
    removed = connection.execute(delete(generations).where(generations.c.id.in_(of_programs)))
    emptied = connection.execute(
        update(generations).where(generations.c.id.in_(old)).values(events=None)
    )
    return removed.rowcount + emptied.rowcount
