"""Reads and lists conversations, and changes their titles, settings and deletion.

Each method is one transaction. All returned values are frozen copies.
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
from halt.store.prompt_messages import PathMessage, path_messages
from halt.store.rows import LISTED, TITLE_MAX, change, changed, cursor_number, find, find_or_create
from halt.store.tables import conversations, messages

_IS_RUNNING = exists().where(
    messages.c.conversation_id == conversations.c.id, messages.c.state == "running"
)


class Conversations:
    """All conversations. A call that raises StoreUnavailable has changed nothing."""

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
        """The conversation with its last `limit` exchanges.

        With a message ID: the exchanges around, before or after that message. An ID that is not on
        the path is ignored. Raises UnknownConversation.
        """
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner)
            return tree.window(
                connection, row, around=around, before=before, after=after, limit=limit
            )

    def prompt_messages(
        self, conversation_id: str, owner: str, system_prompt: str = ""
    ) -> list[Message]:
        """The messages that the model gets: the whole path, with notes on incomplete and edited
        answers.

        `system_prompt` is used if the conversation has none itself. An answer that is being
        continued comes last, unchanged and without a note. Raises UnknownConversation.
        """
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner)
            texts = tree.path_texts(connection, row)
        path = map(PathMessage._make, texts)
        return path_messages(
            path, system_prompt if row.system_prompt is None else row.system_prompt
        )

    def summaries(
        self, owner: str, cursor: str | None = None, limit: int = WINDOW
    ) -> Page[Summary]:
        """The owner's conversations, most recently used first. Raises RequestError (`cursor`)."""
        limit = max(1, limit)
        query = (
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
            position = (cursor_number(at, float), last)
            query = query.where(
                tuple_(conversations.c.updated_at, conversations.c.id) < tuple_(*position)
            )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        items = tuple(Summary(*row) for row in rows[:limit])
        has_more = len(rows) > limit
        return Page(items, f"{items[-1].updated_at!r}~{items[-1].id}" if has_more else None)

    def has_any(self) -> bool:
        """Whether any owner has a conversation that is not deleted."""
        with self._database.reading() as connection:
            return connection.scalar(select(conversations.c.id).where(*LISTED).limit(1)) is not None

    def summary(self, conversation_id: str, owner: str) -> Summary:
        """A conversation's entry in the list. Raises UnknownConversation."""
        with self._database.reading() as connection:
            return _summary(connection, find(connection, conversation_id, owner))

    def token_usage(self, conversation_id: str, owner: str) -> Usage:
        """Tokens of all answers ever generated in it. Raises UnknownConversation."""
        with self._database.reading() as connection:
            return tree.usage(connection, find(connection, conversation_id, owner).id)

    # --- changing ---------------------------------------------------------------------------------

    def rename(self, conversation_id: str, owner: str, title: str) -> Summary:
        """Set the user's title. Raises UnknownConversation, RequestError."""
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
        """Whether the conversation exists, with any owner, and is not deleted."""
        with self._database.reading() as connection:
            query = select(conversations.c.id).where(
                conversations.c.id == conversation_id, conversations.c.deleted_at.is_(None)
            )
            return connection.scalar(query) is not None

    def title_from_model(self, conversation_id: str, title: str) -> bool:
        """Set a title from a model, for any owner.

        False if the user has renamed or deleted the conversation, or the title is empty.
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
        """Set the settings of future answers; create the conversation if it does not exist.

        Raises UnknownConversation for a conversation of another owner.
        """
        with self._database.writing() as connection:
            row = find_or_create(connection, conversation_id, owner)
            return changed(connection, row, asdict(settings))

    def delete(self, conversation_id: str, owner: str) -> list[str]:
        """Delete the conversation; `undelete` restores it within a day.

        Returns its running streams; the caller must stop them. Their prompts stay even if the
        answers have no text, unlike those of other stopped answers (see `Generations.write`).
        Raises UnknownConversation.
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
        """Undo a deletion. Raises UnknownConversation."""
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True, deleted=True)
            return _summary(connection, change(connection, row, {"deleted_at": None}))


def _summary(connection: Connection, row: Row[Any]) -> Summary:
    running = connection.scalar(select(_IS_RUNNING).where(conversations.c.id == row.id))
    return Summary(row.id, row.title, row.updated_at, bool(running))
