"""Removes expired rows: deleted conversations, generations without one, and stored events."""

from __future__ import annotations

from sqlalchemy import Connection, Select, delete, select, tuple_, update

from halt.store.files import UNFINISHED_FOR, UNUSED_FOR, detach
from halt.store.tables import (
    chunks,
    conversations,
    file_parts,
    files,
    generations,
    messages,
)

SWEEP = 200  # generations that one `sweep` changes at most
PURGE = 10  # conversations that one `sweep` removes at most; they may be long
FILES_PURGED = 3  # files that one `sweep` removes at most; they may be large

DELETED_FOR = 86_400.0  # seconds for which a deletion can be undone


def sweep(connection: Connection, now: float, events_for: float) -> int:
    """See `halt.store.generations.Generations.sweep`. `events_for`: seconds after the end."""
    removed = _remove_conversations(connection, now) + _remove_events(connection, now - events_for)
    return removed + _remove_files(connection, now)


def _remove_conversations(connection: Connection, now: float) -> int:
    """Remove conversations deleted more than a day ago, and empty ones not used for a day."""
    deleted = conversations.c.deleted_at < now - DELETED_FOR
    empty = select(conversations.c.id).where(
        conversations.c.first_id.is_(None),
        conversations.c.deleted_at.is_(None),  # it is set while an import runs
        conversations.c.updated_at < now - DELETED_FOR,
    )
    expired = select(conversations.c.id).where(deleted).union(empty)
    ids = list(connection.scalars(expired.limit(PURGE)))
    remove_conversations(connection, ids)
    return len(ids)


def remove_conversations(connection: Connection, ids: list[str]) -> None:
    """Remove conversations with their messages, the words of these, and their generations."""
    if not ids:
        return
    streams = select(generations.c.owner, generations.c.id).where(
        generations.c.conversation_id.in_(ids)
    )
    connection.execute(
        delete(chunks).where(tuple_(chunks.c.owner, chunks.c.generation_id).in_(streams))
    )
    _remove_attachments(connection, ids)
    for table in (generations, messages):
        connection.execute(delete(table).where(table.c.conversation_id.in_(ids)))
    connection.execute(delete(conversations).where(conversations.c.id.in_(ids)))


def _remove_attachments(connection: Connection, ids: list[str]) -> None:
    """Take the files from the messages of removed conversations.

    Those that no other message has are removed by one of the next sweeps, unless they were uploaded
    again within UNUSED_FOR.
    """
    detach(connection, select(messages.c.id).where(messages.c.conversation_id.in_(ids)), None)


def _remove_files(connection: Connection, now: float) -> int:
    """Remove files that no message has had for UNUSED_FOR, and uploads that broke off."""
    query = (
        select(files.c.owner, files.c.hash)
        .where(
            (files.c.unused_since < now - UNUSED_FOR)
            | (files.c.complete.is_(False) & (files.c.unused_since < now - UNFINISHED_FOR))
        )
        .order_by(files.c.unused_since)
        .limit(FILES_PURGED)
        .with_for_update(skip_locked=True)
    )
    return _remove(connection, query)


def remove_files(connection: Connection, owner: str, limit: int | None = None) -> int:
    """Remove the files of a person, all or at most `limit`, also those that messages have."""
    query = select(files.c.owner, files.c.hash).where(files.c.owner == owner).limit(limit)
    return _remove(connection, query)


def _remove(connection: Connection, query: Select[str, str]) -> int:
    """Remove the files (owner, hash) of the query."""
    keys = [tuple(row) for row in connection.execute(query)]
    if keys:
        for table in (file_parts, files):
            connection.execute(delete(table).where(tuple_(table.c.owner, table.c.hash).in_(keys)))
    return len(keys)


def _remove_events(connection: Connection, before: float) -> int:
    """Remove generations without a conversation that ended before `before` (seconds since 1970).

    Of those with a conversation only the events are removed.
    """
    key = tuple_(generations.c.owner, generations.c.id)
    expired = (
        select(generations.c.owner, generations.c.id)
        .where(generations.c.events.is_not(None), generations.c.ended_at < before)
        .limit(SWEEP)
    )
    of_programs = expired.where(generations.c.conversation_id.is_(None))
    removed = connection.execute(delete(generations).where(key.in_(of_programs)))
    emptied = connection.execute(update(generations).where(key.in_(expired)).values(events=None))
    return removed.rowcount + emptied.rowcount
