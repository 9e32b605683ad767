"""Conversations: one read, the list, and what is kept of each beside its messages.

Each method is one transaction. Everything handed out is a frozen copy.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, exists, select, tuple_, update

from halt.core.request import Message
from halt.errors import RequestError
from halt.store import tree
from halt.store.database import Database
from halt.store.models import WINDOW, Conversation, Page, Settings, Summary, Usage
from halt.store.prompt_messages import path_messages
from halt.store.rows import LISTED, TITLE_MAX, change, changed, cursor_number, find, made
from halt.store.tables import conversations, messages

_IS_RUNNING = exists().where(
    messages.c.conversation_id == conversations.c.id, messages.c.state == "running"
)


class Conversations:
    """All conversations. Each call raises StoreUnavailable, and then did nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- reading ----------------------------------------------------------------------------------

    def get(
        self,
        conversation_id: str,
        owner: str,
        *,
        around: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = WINDOW,
    ) -> Conversation:
        """The last `limit` exchanges; or those around, before or after a message of the path.

        A message that is not on the path (any more) counts as none given. Raises
        UnknownConversation.
        """
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner)
            return tree.window(
                connection, row, around=around, before=before, after=after, limit=limit
            )

    def prompt_messages(
        self, conversation_id: str, owner: str, system_prompt: str = ""
    ) -> list[Message]:
        """What the model is told: everything on the path, stopped and broken answers marked so.

        `system_prompt` is used where the conversation has none of its own. An answer that is
        continued comes last, as it is, without a mark. Raises UnknownConversation.
        """
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner)
            said = tree.path_texts(connection, row)
        path = ((each.role, each.state, each.content) for each in said)
        return path_messages(
            path, system_prompt if row.system_prompt is None else row.system_prompt
        )

    def summaries(
        self, owner: str, cursor: str | None = None, limit: int = WINDOW
    ) -> Page[Summary]:
        """The owner's conversations, the one used last first. Raises RequestError (`cursor`)."""
        limit = max(1, limit)
        found = (
            select(
                conversations.c.id,
                conversations.c.title,
                conversations.c.updated_at,
                _IS_RUNNING.label("running"),
            )
            .where(conversations.c.owner == owner, *LISTED)
            .order_by(conversations.c.updated_at.desc(), conversations.c.id.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            at, _, last = cursor.partition("~")
            place = (cursor_number(at, float), last)
            found = found.where(
                tuple_(conversations.c.updated_at, conversations.c.id) < tuple_(*place)
            )
        with self._database.reading() as connection:
            rows = connection.execute(found).all()
        items = tuple(Summary(*each) for each in rows[:limit])
        more = len(rows) > limit
        return Page(items, f"{items[-1].updated_at!r}~{items[-1].id}" if more else None)

    def has_any(self) -> bool:
        """Whether any owner has a conversation that is not deleted."""
        with self._database.reading() as connection:
            return connection.scalar(select(conversations.c.id).where(*LISTED).limit(1)) is not None

    def summary(self, conversation_id: str, owner: str) -> Summary:
        """A conversation's entry in the list. Raises UnknownConversation."""
        with self._database.reading() as connection:
            return _summary(connection, find(connection, conversation_id, owner))

    def token_usage(self, conversation_id: str, owner: str) -> Usage:
        """Tokens of everything that was answered in it. Raises UnknownConversation."""
        with self._database.reading() as connection:
            return tree.usage(connection, find(connection, conversation_id, owner).id)

    # --- keeping ----------------------------------------------------------------------------------

    def rename(self, conversation_id: str, owner: str, title: str) -> Summary:
        """Give it a title of the user's. Raises UnknownConversation, RequestError."""
        title = " ".join(title.split())
        if not title:
            raise RequestError("A title needs at least one character.", field="title")
        if len(title) > TITLE_MAX:
            raise RequestError(f"A title has at most {TITLE_MAX} characters.", field="title")
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            row = change(connection, row, {"title": title, "titled_by": "user"})
            return _summary(connection, row)

    def is_listed(self, conversation_id: str) -> bool:
        """Whether there is such a conversation, whosever it is, and it has not been deleted."""
        with self._database.reading() as connection:
            found = select(conversations.c.id).where(
                conversations.c.id == conversation_id, conversations.c.deleted_at.is_(None)
            )
            return connection.scalar(found) is not None

    def title_from_model(self, conversation_id: str, title: str) -> bool:
        """Give it a title of the model's, whosever it is.

        False where the user has named or deleted it.
        """
        title = " ".join(title.split())[:TITLE_MAX]
        with self._database.writing() as connection:
            changed = connection.execute(
                update(conversations)
                .where(
                    conversations.c.id == conversation_id,
                    *LISTED,
                    conversations.c.titled_by != "user",
                )
                .values(title=title, titled_by="model")
            )
            return bool(title) and changed.rowcount == 1

    def set_settings(self, conversation_id: str, owner: str, settings: Settings) -> Conversation:
        """Settings of all further answers; makes the conversation if needed.

        Raises UnknownConversation for another owner's.
        """
        with self._database.writing() as connection:
            row = made(connection, conversation_id, owner)
            return changed(connection, row, asdict(settings))

    def delete(self, conversation_id: str, owner: str) -> list[str]:
        """It is gone, and can be brought back for a day. Raises UnknownConversation.

        Returns the streams that are still writing in it, and are to be stopped. A prompt whose
        answer has no text by then stays, other than in `write`.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            change(connection, row, {"deleted_at": time.time()})
            return list(
                connection.scalars(
                    select(messages.c.stream_id).where(
                        messages.c.conversation_id == row.id, messages.c.state == "running"
                    )
                )
            )

    def undelete(self, conversation_id: str, owner: str) -> Summary:
        """Bring it back. Raises UnknownConversation."""
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True, deleted=True)
            return _summary(connection, change(connection, row, {"deleted_at": None}))


def _summary(connection: Connection, row: Row[Any]) -> Summary:
    running = connection.scalar(select(_IS_RUNNING).where(conversations.c.id == row.id))
    return Summary(row.id, row.title, row.updated_at, bool(running))
