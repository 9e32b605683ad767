"""Finds, creates, locks and changes the row of a conversation; refuses changes while it is busy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, select, update

from halt.errors import RequestError
from halt.store import tree
from halt.store.database import upsert
from halt.store.models import BUSY, Busy, Conversation, UnknownConversation
from halt.store.tables import conversations, messages

TITLE_MAX = 200  # characters of a title
PINS_MAX = 100  # pinned conversations of an owner, which the list shows at once

#: Conditions for the owner's list: not deleted, and with at least one message.
LISTED = (conversations.c.deleted_at.is_(None), conversations.c.first_id.is_not(None))


def find(
    connection: Connection,
    conversation_id: str,
    owner: str,
    *,
    lock: bool = False,
    deleted: bool = False,
) -> Row[Any]:
    """The row of the owner's conversation, also of a deleted one if `deleted` is set.

    `lock` locks the row until the end of the transaction (PostgreSQL). Raises UnknownConversation.
    """
    query = select(conversations).where(
        conversations.c.id == conversation_id, conversations.c.owner == owner
    )
    if not deleted:
        query = query.where(conversations.c.deleted_at.is_(None))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise unknown()
    return row


def unknown() -> UnknownConversation:
    """The error for a conversation that does not exist, or belongs to another owner."""
    return UnknownConversation("There is no such conversation here.")


def find_or_create(connection: Connection, conversation_id: str, owner: str) -> Row[Any]:
    """The conversation's row, created if it does not exist, and locked.

    Raises UnknownConversation for a conversation of another owner.
    """
    values = {"id": conversation_id, "owner": owner}
    connection.execute(upsert(connection, conversations).values(values).on_conflict_do_nothing())
    return find(connection, conversation_id, owner, lock=True)


def lock(connection: Connection, conversation_ids: Iterable[str | None]) -> None:
    """Lock the rows of these conversations until the end of the transaction.

    All transactions lock in the order of the IDs, so that none can wait for another in a circle.
    """
    ids = sorted(
        {conversation_id for conversation_id in conversation_ids if conversation_id is not None}
    )
    if ids:
        connection.execute(
            select(conversations.c.id)
            .where(conversations.c.id.in_(ids))
            .order_by(conversations.c.id)
            .with_for_update()
        )


def message(
    connection: Connection, row: Row[Any], message_id: int, role: str | None = None
) -> Row[Any]:
    """A message of the conversation. Raises UnknownConversation, also for another role."""
    valid_id = message_id if 0 < message_id < 2**63 else 0
    message_row = connection.execute(
        select(messages).where(messages.c.id == valid_id, messages.c.conversation_id == row.id)
    ).one_or_none()
    if message_row is None or role not in {None, message_row.role}:
        raise UnknownConversation("There is no such message in this conversation.")
    return message_row


def refuse_while_running(connection: Connection, conversation_id: str) -> None:
    """Raise Busy while an answer is being written in the conversation."""
    running = select(messages.c.id).where(
        messages.c.conversation_id == conversation_id, messages.c.state == "running"
    )
    if connection.execute(running.limit(1)).first() is not None:
        raise Busy(BUSY)


def change(connection: Connection, row: Row[Any], values: dict[str, Any]) -> Row[Any]:
    """Change the conversation's row; returns the new row."""
    statement = update(conversations).where(conversations.c.id == row.id).values(values)
    return connection.execute(statement.returning(*conversations.c)).one()


def changed(connection: Connection, row: Row[Any], values: dict[str, Any]) -> Conversation:
    """Change the conversation's row; returns the conversation with its last exchange alone."""
    return tree.window(connection, change(connection, row, values), limit=1)


def unpin_oldest(connection: Connection, owner: str) -> None:
    """Remove the oldest pins of the owner that are more than PINS_MAX."""
    pinned = (
        select(conversations.c.id)
        .where(
            conversations.c.owner == owner,
            conversations.c.pinned_at.is_not(None),
            conversations.c.deleted_at.is_(None),
        )
        .order_by(conversations.c.pinned_at.desc(), conversations.c.id)
    )
    ids = list(connection.scalars(pinned))[PINS_MAX:]
    for first in range(0, len(ids), 500):
        part = conversations.c.id.in_(ids[first : first + 500])
        connection.execute(update(conversations).where(part).values(pinned_at=None))


def cursor_number(cursor: str, kind: type[Any]) -> Any:
    """The number (`kind`: int or float) in a cursor. Raises RequestError (`cursor`)."""
    with contextlib.suppress(ValueError):
        if -(2**62) < (value := kind(cursor)) < 2**62:
            return value
    raise RequestError("This is not a cursor of an earlier page.", field="cursor")
