"""Conversations into files and out of them; the files' format is in `halt.store.portable`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Row, bindparam, insert, select, update

from halt.store import tree
from halt.store.database import Database
from halt.store.portable import PortableConversation, PortableMessage, PortableSettings, check
from halt.store.rows import LISTED, TITLE_MAX, find
from halt.store.search import trigrams
from halt.store.stored_events import text_so_far
from halt.store.tables import conversations, messages
from halt.store.title_text import first_words

IMPORT_STEP = 500  # messages that one transaction of an import writes
IMPORT_CHARS = 1_000_000  # characters of them, after which there is none more

T = TypeVar("T")


class Transfer:
    """Exports and imports conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(
        self, owner: str, conversation_id: str | None = None
    ) -> Iterator[PortableConversation]:
        """One conversation, or all of the owner's, one at a time. Raises UnknownConversation."""
        if conversation_id is not None:
            with self._database.reading() as connection:
                one = _portable(connection, find(connection, conversation_id, owner))
            return iter([one])
        return self._export_all(owner)

    def _export_all(self, owner: str) -> Iterator[PortableConversation]:
        last = ""
        while True:
            with self._database.reading() as connection:
                row = connection.execute(
                    select(conversations)
                    .where(conversations.c.owner == owner, conversations.c.id > last, *LISTED)
                    .order_by(conversations.c.id)
                    .limit(1)
                ).one_or_none()
                if row is None:
                    return
                one = _portable(connection, row)
            last = row.id
            yield one

    def import_(self, owner: str, conversations_: Iterable[PortableConversation]) -> list[str]:
        """Add exported conversations, all of them or none; returns their IDs.

        Those whose ID is taken get a new one. Raises RequestError.
        """
        # Deleted until all are there: others can write in between, and nobody sees half of them.
        added = []
        for each in conversations_:
            check(each)
            added.append(self._import(owner, each))
        with self._database.writing() as connection:
            for some in _steps(added):
                connection.execute(
                    update(conversations)
                    .where(conversations.c.id.in_(some))
                    .values(deleted_at=None)
                )
        return added

    def _import(self, owner: str, given: PortableConversation) -> str:
        """Add one conversation, deleted as yet, in steps that hold up nobody for long."""
        with self._database.writing() as connection:
            taken = select(conversations.c.id).where(conversations.c.id == given.id)
            new_id = secrets.token_urlsafe(16) if connection.scalar(taken) else given.id
            values = {"id": new_id, "owner": owner, "deleted_at": time.time()}
            connection.execute(insert(conversations).values(values | _values(given)))
        ids: dict[int | None, int | None] = {None: None}
        for some in _steps(given.messages, lambda each: len(each.content)):
            with self._database.writing() as connection:
                added = connection.scalars(
                    insert(messages).returning(messages.c.id, sort_by_parameter_order=True),
                    [_imported(new_id, each) for each in some],
                )
                ids.update(zip((each.id for each in some), added, strict=True))
        wanted = set(given.chosen)
        chosen = {each.parent: ids[each.id] for each in given.messages}  # where none is named
        chosen |= {each.parent: ids[each.id] for each in given.messages if each.id in wanted}
        depths: dict[int | None, int] = {None: -1}
        groups: dict[int, int | None] = {}
        places = []
        for each in given.messages:
            depths[each.id] = depths[each.parent] + 1
            group = None
            if each.group is not None:
                group = groups.setdefault(each.group, ids[each.id])
            places.append(
                {
                    "message": ids[each.id],
                    "above": ids[each.parent],
                    "below": chosen.get(each.id),
                    "level": depths[each.id],
                    "group": group,
                }
            )
        for part in _steps(places):
            with self._database.writing() as connection:
                connection.execute(_PLACED, part)
        with self._database.writing() as connection:
            tree.choose(connection, new_id, None, chosen.get(None))
        return new_id


_PLACED = (
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(
        parent_id=bindparam("above"),
        chosen_id=bindparam("below"),
        depth=bindparam("level"),
        rivals=bindparam("group"),
    )
)


def _steps(rows: Iterable[T], size: Callable[[T], int] = lambda row: 0) -> Iterator[list[T]]:
    """The rows in parts that take a moment each."""
    step: list[T] = []
    total = 0
    for row in rows:
        step.append(row)
        total += size(row)
        if len(step) >= IMPORT_STEP or total >= IMPORT_CHARS:
            yield step
            step, total = [], 0
    if step:
        yield step


def _values(given: PortableConversation) -> dict[str, Any]:
    """What a file says of a conversation, for its row."""
    at = time.time()
    title = " ".join(given.title.split())[:TITLE_MAX]
    return {
        "title": title or first_words(given.messages[0].content),
        "titled_by": "user" if title else "words",
        **msgspec.structs.asdict(given.settings),
        "created_at": given.created_at or at,
        "updated_at": given.updated_at or at,
    }


def _imported(conversation_id: str, given: PortableMessage) -> dict[str, Any]:
    """The row of a message of a file, without its place in the tree."""
    return {
        "conversation_id": conversation_id,
        "role": given.role,
        "content": given.content,
        "trigrams": trigrams(given.content),
        "state": given.state,
        "model": given.model,
        "asked_model": given.requested_model,
        "stream_id": secrets.token_urlsafe(16) if given.role == "assistant" else "",
        "picked": given.selected,
        "created_at": given.created_at or time.time(),
        "ended": given.ended or tree.ended_as(given.state),
        "folds": given.steps or None,
    }


def _portable(connection: Connection, row: Row[Any]) -> PortableConversation:
    rows = connection.execute(
        select(messages)
        .where(messages.c.conversation_id == row.id)
        .order_by(messages.c.depth, messages.c.id)
    ).all()

    def running(each: Row[Any]) -> bool:
        return bool(each.state == "running")

    chosen = {each.chosen_id for each in rows} | {row.first_id}
    number = {each.id: n for n, each in enumerate(rows, 1)}
    return PortableConversation(
        row.id,
        row.title,
        [
            PortableMessage(
                number[each.id],
                each.role,
                each.content + (text_so_far(connection, each.stream_id) if running(each) else ""),
                None if each.parent_id is None else number[each.parent_id],
                each.model,
                each.asked_model,
                "interrupted" if running(each) else each.state,
                each.rivals,
                each.picked,
                each.created_at,
                tree.ended_of(each),
                list(each.folds),
            )
            for each in rows
        ],
        [number[each.id] for each in rows if each.id in chosen],
        PortableSettings(row.model, row.system_prompt, row.temperature, row.max_tokens),
        row.created_at,
        row.updated_at,
    )
