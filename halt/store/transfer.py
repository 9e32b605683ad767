"""Exports and imports conversations. `halt.store.portable` defines the format of the files."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Row, bindparam, insert, select, update

from halt.core.stream_key import StreamKey
from halt.store import tree
from halt.store.database import Database
from halt.store.files import ATTACHED, IS_FILE, attach, by_message
from halt.store.portable import PortableConversation, PortableMessage, PortableSettings, check
from halt.store.portable_files import PortableFile
from halt.store.rows import LISTED, TITLE_MAX, find, unpin_oldest
from halt.store.search import trigrams
from halt.store.stored_events import text_so_far
from halt.store.tables import attachments, conversations, files, messages
from halt.store.title_text import first_words

IMPORT_STEP = 500  # messages that one transaction of an import writes at most
IMPORT_CHARS = 1_000_000  # characters after which a transaction takes no further message

T = TypeVar("T")


class Transfer:
    """Exports and imports conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(
        self, owner: str, conversation_id: str | None = None
    ) -> Iterator[PortableConversation]:
        """One conversation, or all of the owner, one by one. Raises UnknownConversation."""
        if conversation_id is not None:
            with self._database.reading() as connection:
                conversation = _portable(connection, find(connection, conversation_id, owner))
            return iter([conversation])
        return self.export_many(owner)

    def export_many(
        self, owner: str, conversation_ids: Collection[str] | None = None
    ) -> Iterator[PortableConversation]:
        """Those conversations of the owner that have these IDs, or all of them, one by one."""
        query = select(conversations).where(conversations.c.owner == owner, *LISTED)
        if conversation_ids is not None:
            query = query.where(conversations.c.id.in_(conversation_ids))
        last_id = ""
        while True:
            with self._database.reading() as connection:
                row = connection.execute(
                    query.where(conversations.c.id > last_id).order_by(conversations.c.id).limit(1)
                ).one_or_none()
                if row is None:
                    return
                conversation = _portable(connection, row)
            last_id = row.id
            yield conversation

    def have_files(self, owner: str, conversation_ids: Collection[str] | None = None) -> bool:
        """Whether any message of these conversations, or of all of the owner, has a file."""
        query = (
            select(attachments.c.message_id)
            .join(messages, messages.c.id == attachments.c.message_id)
            .join(conversations, conversations.c.id == messages.c.conversation_id)
            .where(attachments.c.owner == owner, conversations.c.owner == owner, *LISTED)
        )
        if conversation_ids is not None:
            query = query.where(conversations.c.id.in_(conversation_ids))
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def import_(self, owner: str, conversations_: Iterable[PortableConversation]) -> list[str]:
        """Add exported conversations, all of them or none; returns their IDs.

        A conversation whose ID is taken gets a new one. If more than PINS_MAX are pinned then, the
        oldest pins are removed. The owner must have the messages' files: see `halt.chat.imports`.
        Raises RequestError, UnknownFile.
        """
        # They are marked as deleted until all are complete: other transactions can write in
        # between, and no reader sees a part of the import.
        added_ids = []
        for conversation in conversations_:
            check(conversation)
            added_ids.append(self._import(owner, conversation))
        with self._database.writing() as connection:
            for ids in _batches(added_ids):
                connection.execute(
                    update(conversations).where(conversations.c.id.in_(ids)).values(deleted_at=None)
                )
            unpin_oldest(connection, owner)
        return added_ids

    def _import(self, owner: str, conversation: PortableConversation) -> str:
        """Add a conversation, marked as deleted, in short transactions; returns its ID."""
        with self._database.writing() as connection:
            taken = select(conversations.c.id).where(conversations.c.id == conversation.id)
            new_id = secrets.token_urlsafe(16) if connection.scalar(taken) else conversation.id
            values = {"id": new_id, "owner": owner, "deleted_at": time.time()}
            connection.execute(insert(conversations).values(values | _values(conversation)))
        ids: dict[int | None, int | None] = {None: None}  # IDs in the file -> row IDs
        for batch in _batches(conversation.messages, lambda message: len(message.content)):
            with self._database.writing() as connection:
                row_ids = connection.scalars(
                    insert(messages).returning(messages.c.id, sort_by_parameter_order=True),
                    [_imported(new_id, message) for message in batch],
                )
                ids.update(zip((message.id for message in batch), row_ids, strict=True))
                for message in batch:
                    if (row_id := ids[message.id]) is not None:
                        names = [(file.hash, file.name) for file in message.files]
                        attach(connection, owner, row_id, names)
        chosen_ids = set(conversation.chosen)
        # The last child of a message is chosen unless the file names another one.
        chosen = {message.parent: ids[message.id] for message in conversation.messages}
        chosen |= {
            message.parent: ids[message.id]
            for message in conversation.messages
            if message.id in chosen_ids
        }
        depths: dict[int | None, int] = {None: -1}
        groups: dict[int, int | None] = {}
        places = []
        for message in conversation.messages:
            depths[message.id] = depths[message.parent] + 1
            group = None
            if message.group is not None:
                group = groups.setdefault(message.group, ids[message.id])
            places.append(
                {
                    "message": ids[message.id],
                    "above": ids[message.parent],
                    "below": chosen.get(message.id),
                    "level": depths[message.id],
                    "group": group,
                }
            )
        for place_batch in _batches(places):
            with self._database.writing() as connection:
                connection.execute(_SET_PLACE, place_batch)
        with self._database.writing() as connection:
            tree.choose(connection, new_id, None, chosen.get(None))
        return new_id


_SET_PLACE = (
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(
        parent_id=bindparam("above"),
        chosen_id=bindparam("below"),
        depth=bindparam("level"),
        first_alternative_id=bindparam("group"),
    )
)


def _batches(rows: Iterable[T], size: Callable[[T], int] = lambda row: 0) -> Iterator[list[T]]:
    """The rows in batches for short transactions. `size` returns the characters of a row."""
    batch: list[T] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += size(row)
        if len(batch) >= IMPORT_STEP or total >= IMPORT_CHARS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _values(conversation: PortableConversation) -> dict[str, Any]:
    """The row of an imported conversation, without its ID, owner and first message."""
    at = time.time()
    title, first = " ".join(conversation.title.split())[:TITLE_MAX], conversation.messages[0]
    return {
        "title": title
        or first_words(first.content or ", ".join(file.name for file in first.files)),
        "titled_by": "user" if title else "words",
        **msgspec.structs.asdict(conversation.settings),
        "created_at": conversation.created_at or at,
        "updated_at": conversation.updated_at or at,
        "pinned_at": conversation.pinned_at,
        "archived_at": conversation.archived_at,
    }


def _imported(conversation_id: str, message: PortableMessage) -> dict[str, Any]:
    """The row of an imported message, without its place in the tree."""
    return {
        "conversation_id": conversation_id,
        "role": message.role,
        "content": message.content,
        "trigrams": trigrams(message.content),
        "state": message.state,
        "model": message.model,
        "requested_model": message.requested_model,
        "stream_id": secrets.token_urlsafe(16) if message.role == "assistant" else "",
        "selected": message.selected,
        "created_at": message.created_at or time.time(),
        "ended": message.ended or tree.terminal_for_state(message.state),
        "steps": message.steps or None,
        "edited": message.edited and message.role == "assistant",
    }


_ATTACHED = (
    select(*ATTACHED)
    .join(files, IS_FILE)
    .join(messages, messages.c.id == attachments.c.message_id)
    .where(messages.c.conversation_id == bindparam("conversation"))
    .order_by(attachments.c.position)
)


def _portable(connection: Connection, row: Row[Any]) -> PortableConversation:
    """The conversation of a row for an export, with the text so far of running answers."""
    rows = connection.execute(
        select(messages)
        .where(messages.c.conversation_id == row.id)
        .order_by(messages.c.depth, messages.c.id)
    ).all()

    attached = by_message(connection.execute(_ATTACHED, {"conversation": row.id}))

    def is_running(message: Row[Any]) -> bool:
        return bool(message.state == "running")

    def text_of_running(message: Row[Any]) -> str:
        key = StreamKey(row.owner, message.stream_id)
        return text_so_far(connection, key) if is_running(message) else ""

    chosen = {message.chosen_id for message in rows} | {row.first_id}
    number = {message.id: n for n, message in enumerate(rows, 1)}
    return PortableConversation(
        row.id,
        row.title,
        [
            PortableMessage(
                number[message.id],
                message.role,
                message.content + text_of_running(message),
                None if message.parent_id is None else number[message.parent_id],
                message.model,
                message.requested_model,
                "interrupted" if is_running(message) else message.state,
                message.first_alternative_id,
                message.selected,
                message.created_at,
                tree.terminal_or_none(message),
                list(message.steps),
                message.edited,
                [
                    PortableFile(
                        attachment.file.hash, attachment.name, attachment.file.facts.media_type
                    )
                    for attachment in attached.get(message.id, ())
                ],
            )
            for message in rows
        ],
        [number[message.id] for message in rows if message.id in chosen],
        PortableSettings(**asdict(tree.settings(row))),
        row.created_at,
        row.updated_at,
        row.pinned_at,
        row.archived_at,
    )
