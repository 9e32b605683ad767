"""Reads and lists conversations, and changes their titles, settings and deletion.

Each method is one transaction. All returned values are frozen copies.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, exists, func, select, tuple_, update

from halt.errors import RequestError
from halt.store import tree
from halt.store.database import Database
from halt.store.models import WINDOW, Conversation, Page, Settings, Summary, Usage
from halt.store.prompt_messages import PathMessage, PromptPath, refuses_images
from halt.store.rows import (
    LISTED,
    PINS_MAX,
    TITLE_MAX,
    change,
    changed,
    cursor_number,
    find,
    find_or_create,
    lock,
    unknown,
    unpin_oldest,
)
from halt.store.search import has_word
from halt.store.tables import conversations, messages

_IS_RUNNING = exists().where(
    messages.c.conversation_id == conversations.c.id, messages.c.state == "running"
)
_LAST_USED_FIRST = (conversations.c.updated_at.desc(), conversations.c.id.desc())
_SUMMARY = (
    conversations.c.id,
    conversations.c.title,
    conversations.c.updated_at,
    _IS_RUNNING.label("running"),
    conversations.c.pinned_at.is_not(None).label("pinned"),
    conversations.c.archived_at.is_not(None).label("archived"),
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

    def prompt_path(self, conversation_id: str, owner: str) -> PromptPath:
        """What the model gets: the whole path, for `path_messages`. Raises UnknownConversation."""
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner)
            texts = tree.path_texts(connection, row)
            files = tree.path_files(connection, row)
        turns = [
            PathMessage(
                text.role,
                text.state,
                text.content,
                text.edited,
                files.get(text.id, ()),
                text.requested_model,
                refuses_images(text.ended),
            )
            for text in texts
        ]
        return PromptPath(row.system_prompt, turns)

    def summaries(
        self,
        owner: str,
        cursor: str | None = None,
        limit: int = WINDOW,
        *,
        archived: bool = False,
    ) -> Page[Summary]:
        """The owner's conversations, most recently used first. Raises RequestError (`cursor`).

        The first page begins with all pinned conversations, the last pinned one first; `limit`
        counts the others. Archived conversations are only on the pages with `archived`, which have
        no pinned ones before the others.
        """
        limit = max(1, limit)
        mine = select(*_SUMMARY).where(conversations.c.owner == owner, *LISTED)
        if archived:
            query = mine.where(conversations.c.archived_at.is_not(None))
        else:
            mine = mine.where(conversations.c.archived_at.is_(None))
            query = mine.where(conversations.c.pinned_at.is_(None))
        query = query.order_by(*_LAST_USED_FIRST).limit(limit + 1)
        if cursor is not None:
            at, _, last = cursor.partition("~")
            position = (cursor_number(at, float), last)
            query = query.where(
                tuple_(conversations.c.updated_at, conversations.c.id) < tuple_(*position)
            )
        pinned: tuple[Summary, ...] = ()
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            if cursor is None and not archived:
                pins = mine.where(conversations.c.pinned_at.is_not(None))
                pins = pins.order_by(conversations.c.pinned_at.desc(), *_LAST_USED_FIRST)
                pinned = tuple(_from_row(row) for row in connection.execute(pins))
        items = tuple(_from_row(row) for row in rows[:limit])
        next_cursor = f"{items[-1].updated_at!r}~{items[-1].id}" if len(rows) > limit else None
        return Page(pinned + items, next_cursor)

    def titled(self, owner: str, words: Collection[str], limit: int) -> tuple[Summary, ...]:
        """The owner's conversations with all words in their titles, most recently used first.

        Archived ones too. Words match inside of words, in upper and lower case.
        """
        query = select(*_SUMMARY).where(conversations.c.owner == owner, *LISTED)
        for word in words:
            query = query.where(has_word(conversations.c.title, word))
        query = query.order_by(*_LAST_USED_FIRST).limit(limit)
        with self._database.reading() as connection:
            return tuple(_from_row(row) for row in connection.execute(query))

    def summary(self, conversation_id: str, owner: str, *, deleted: bool = False) -> Summary:
        """A conversation's entry in the list, with `deleted` also of a deleted one.

        Raises UnknownConversation.
        """
        with self._database.reading() as connection:
            row = find(connection, conversation_id, owner, deleted=deleted)
            return _summary(connection, row)

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

    def set_pinned(self, conversation_ids: Collection[str], owner: str, pinned: bool) -> int:
        """Pin or unpin conversations; returns their number.

        IDs of no conversation are ignored, but if all are: UnknownConversation. Raises RequestError
        (`id`) if more than PINS_MAX would be pinned.
        """
        with self._database.writing() as connection:
            rows = _all_of(connection, conversation_ids, owner)
            ids = [row.id for row in rows if (row.pinned_at is None) == pinned]
            if pinned:
                count = connection.scalar(
                    select(func.count()).where(
                        conversations.c.owner == owner,
                        conversations.c.pinned_at.is_not(None),
                        conversations.c.deleted_at.is_(None),
                    )
                )
                if (count or 0) + len(ids) > PINS_MAX:
                    raise RequestError(
                        f"At most {PINS_MAX} conversations can be pinned. Unpin others first.",
                        field="id",
                    )
            _change_all(connection, ids, pinned_at=time.time() if pinned else None)
            return len(rows)

    def set_archived(self, conversation_ids: Collection[str], owner: str, archived: bool) -> int:
        """Move conversations to the archive, or out of it; returns their number.

        They keep their pins. IDs of no conversation are ignored, but if all are:
        UnknownConversation.
        """
        with self._database.writing() as connection:
            rows = _all_of(connection, conversation_ids, owner)
            ids = [row.id for row in rows if (row.archived_at is None) == archived]
            _change_all(connection, ids, archived_at=time.time() if archived else None)
            return len(rows)

    def delete(self, conversation_id: str, owner: str) -> list[str]:
        """Delete one conversation; see `delete_many`."""
        return self.delete_many([conversation_id], owner)[1]

    def delete_many(
        self, conversation_ids: Collection[str], owner: str
    ) -> tuple[list[str], list[str]]:
        """Delete conversations; `undelete` restores all of them within a day.

        Returns the IDs of the deleted conversations and their running streams; the caller must stop
        these. Their prompts stay even if the answers have no text, unlike those of other stopped
        answers (see `Generations.write`). IDs of no conversation are ignored, but if all are:
        UnknownConversation.
        """
        with self._database.writing() as connection:
            ids = [row.id for row in _all_of(connection, conversation_ids, owner)]
            _change_all(connection, ids, deleted_at=time.time())
            running = select(messages.c.stream_id).where(
                messages.c.conversation_id.in_(ids), messages.c.state == "running"
            )
            return ids, list(connection.scalars(running))

    def undelete(self, conversation_id: str, owner: str) -> list[Summary]:
        """Undo a deletion: restore this conversation and all that were deleted in the same call.

        This one is the first of the result. If more than PINS_MAX are pinned then, the oldest pins
        are removed. Raises UnknownConversation.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True, deleted=True)
            ids = {row.id}
            if row.deleted_at is not None:
                ids |= set(
                    connection.scalars(
                        select(conversations.c.id).where(
                            conversations.c.deleted_at == row.deleted_at,
                            conversations.c.owner == owner,
                        )
                    )
                )
                lock(connection, ids)
                _change_all(connection, ids, deleted_at=None)
                unpin_oldest(connection, owner)
            rows = connection.execute(select(*_SUMMARY).where(conversations.c.id.in_(ids)))
            summaries = [_from_row(row) for row in rows]
            return sorted(summaries, key=lambda summary: summary.id != conversation_id)


def _summary(connection: Connection, row: Row[Any]) -> Summary:
    return _from_row(
        connection.execute(select(*_SUMMARY).where(conversations.c.id == row.id)).one()
    )


def _from_row(row: Row[Any]) -> Summary:
    return Summary(
        row.id, row.title, row.updated_at, bool(row.running), bool(row.pinned), bool(row.archived)
    )


def _all_of(connection: Connection, ids: Collection[str], owner: str) -> Sequence[Any]:
    """The locked rows of the owner's conversations with these IDs. Raises UnknownConversation."""
    query = select(conversations.c.id, conversations.c.pinned_at, conversations.c.archived_at)
    query = query.where(
        conversations.c.id.in_(ids),
        conversations.c.owner == owner,
        conversations.c.deleted_at.is_(None),
    )
    rows = connection.execute(query.order_by(conversations.c.id).with_for_update()).all()
    if not rows:
        raise unknown()
    return rows


def _change_all(connection: Connection, ids: Collection[str], **values: Any) -> None:
    if ids:
        connection.execute(update(conversations).where(conversations.c.id.in_(ids)).values(values))
