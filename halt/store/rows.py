"""A conversation's row in the database: found, made, locked, changed; and what is refused."""

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

#: A conversation that is in its owner's list: not deleted, and with a message.
LISTED = (conversations.c.deleted_at.is_(None), conversations.c.first_id.is_not(None))


def find(
    connection: Connection,
    conversation_id: str,
    owner: str,
    *,
    lock: bool = False,
    deleted: bool = False,
) -> Row[Any]:
    """The owner's conversation. Raises UnknownConversation."""
    found = select(conversations).where(
        conversations.c.id == conversation_id, conversations.c.owner == owner
    )
    if not deleted:
        found = found.where(conversations.c.deleted_at.is_(None))
    row = connection.execute(found.with_for_update() if lock else found).one_or_none()
    if row is None:
        raise UnknownConversation(
            "There is no such conversation here. "
            "Conversations belong to the browser that began them."
        )
    return row


def made(connection: Connection, conversation_id: str, owner: str) -> Row[Any]:
    """The conversation's row, new where there is none. Raises UnknownConversation."""
    values = {"id": conversation_id, "owner": owner}
    connection.execute(upsert(connection, conversations).values(values).on_conflict_do_nothing())
    return find(connection, conversation_id, owner, lock=True)


def lock(connection: Connection, conversation_ids: Iterable[str | None]) -> None:
    """Have these conversations to oneself, in an order in which nobody waits for another."""
    wanted = sorted({each for each in conversation_ids if each is not None})
    if wanted:
        connection.execute(
            select(conversations.c.id)
            .where(conversations.c.id.in_(wanted))
            .order_by(conversations.c.id)
            .with_for_update()
        )


def message(
    connection: Connection, row: Row[Any], message_id: int, role: str | None = None
) -> Row[Any]:
    """A message of the conversation. Raises UnknownConversation, also for another role."""
    place = message_id if 0 < message_id < 2**63 else 0
    found = connection.execute(
        select(messages).where(messages.c.id == place, messages.c.conversation_id == row.id)
    ).one_or_none()
    if found is None or role not in {None, found.role}:
        raise UnknownConversation("There is no such message in this conversation.")
    return found


def refuse_while_running(connection: Connection, conversation_id: str) -> None:
    """Raises Busy."""
    running = select(messages.c.id).where(
        messages.c.conversation_id == conversation_id, messages.c.state == "running"
    )
    if connection.execute(running.limit(1)).first() is not None:
        raise Busy(BUSY)


def change(connection: Connection, row: Row[Any], values: dict[str, Any]) -> Row[Any]:
    """Change the conversation's row; as it is then."""
    changing = update(conversations).where(conversations.c.id == row.id).values(values)
    return connection.execute(changing.returning(*conversations.c)).one()


def changed(connection: Connection, row: Row[Any], values: dict[str, Any]) -> Conversation:
    """Change the conversation's row; the conversation with its last exchange alone."""
    return tree.window(connection, change(connection, row, values), limit=1)


def cursor_number(cursor: str, kind: type[Any]) -> Any:
    """A number of this kind in a cursor. Raises RequestError (`cursor`)."""
    with contextlib.suppress(ValueError):
        if -(2**62) < (value := kind(cursor)) < 2**62:
            return value
    raise RequestError("This is not a cursor of an earlier page.", field="cursor")
