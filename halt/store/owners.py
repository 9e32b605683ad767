"""The owners of what is in the store, and how it becomes another person's."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, case, delete, select, text, update

from halt.config.settings import SAVED_NAME_MAX
from halt.store.database import Database
from halt.store.models import Busy
from halt.store.rows import LISTED, unpin_oldest
from halt.store.tables import (
    attachments,
    chunks,
    conversations,
    file_parts,
    files,
    generations,
    messages,
    named_prompts,
    people,
    presets,
)

#: The mode of a browser of an earlier version of Halt, in which each browser was an owner.
BROWSER = "browser"
_LISTED = (conversations.c.deleted_at.is_(None), conversations.c.first_id.is_not(None))


@dataclass(frozen=True)
class Owner:
    """An owner and what it has; times in seconds since 1970, 0 where there is none."""

    id: str
    mode: str  # of the person, "browser", or "" where there is no row
    name: str
    conversations: int
    messages: int
    began_at: float
    used_at: float


class Owners:
    """The owners in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Owner]:
        """All owners of conversations, prompts or presets, and all people; the last used first."""
        with self._database.reading() as connection:
            rows = connection.execute(_OWNERS).all()
        return [Owner(*row) for row in rows]

    def browsers(self) -> list[str]:
        """The browsers of an earlier version whose conversations no person has taken over."""
        query = select(people.c.id).where(people.c.mode == BROWSER).order_by(people.c.id)
        with self._database.reading() as connection:
            return list(connection.scalars(query))

    def browsers_have_conversations(self, *besides: str) -> bool:
        """Whether an owner that is no known person, and not among `besides`, has a conversation."""
        known = select(people.c.id).where(people.c.mode != BROWSER)
        query = select(conversations.c.id).where(
            *LISTED, conversations.c.owner.not_in(besides), conversations.c.owner.not_in(known)
        )
        with self._database.reading() as connection:
            return connection.scalar(query.limit(1)) is not None

    def give(self, owners: Sequence[str], to: str, *, also_running: bool = False) -> int:
        """Give all that these owners have to the person `to`.

        Returns the number of conversations, without deleted and empty ones. One transaction: all of
        it or nothing. Of two at once the second finds nothing left. What was the owners' stays in
        the index of words as it is (`indexed_as`). A prompt or preset whose name the person has
        used gets a number; a stream whose ID the person has used gets another one.

        While an answer is being written its worker knows it by its owner: then Busy is raised,
        unless `also_running` is set, for a start of Halt at which no worker runs.
        """
        sources = [owner for owner in owners if owner != to]
        if not sources:
            return 0
        with self._database.writing() as connection:
            for table in (named_prompts, presets):
                for source in _having(connection, table, sources):
                    _give_named(connection, table, source, to)
            counts = [
                connection.execute(
                    update(conversations)
                    .where(conversations.c.owner.in_(sources), *condition)
                    .values(owner=to)
                ).rowcount
                for condition in (_LISTED, ())
            ]
            unpin_oldest(connection, to)
            for source in _having(connection, files, sources):
                _give_files(connection, source, to)
            for source in _having(connection, generations, sources):
                _give_streams(connection, source, to, also_running=also_running)
            connection.execute(
                delete(people).where(people.c.id.in_(sources), people.c.mode == BROWSER)
            )
            # Asked last: no answer can have begun in a conversation that this transaction holds.
            left = select(generations.c.id).where(generations.c.owner.in_(sources)).limit(1)
            if connection.execute(left).first() is not None:
                raise Busy(
                    "An answer is being written there. Stop it or wait for its end, and try again."
                )
        return counts[0]


_OWNERS = text("""
    SELECT owners.id, coalesce(people.mode, ''), coalesce(people.name, ''),
      (SELECT count(*) FROM conversations
        WHERE owner = owners.id AND deleted_at IS NULL AND first_id IS NOT NULL),
      (SELECT count(*) FROM messages JOIN conversations ON conversations.id = conversation_id
        WHERE owner = owners.id AND deleted_at IS NULL),
      coalesce((SELECT min(created_at) FROM conversations WHERE owner = owners.id),
        people.created_at, 0),
      coalesce((SELECT max(updated_at) FROM conversations WHERE owner = owners.id), 0) AS used_at
    FROM (SELECT owner AS id FROM conversations UNION SELECT owner FROM named_prompts
      UNION SELECT owner FROM presets UNION SELECT id FROM people) AS owners
    LEFT JOIN people ON people.id = owners.id
    ORDER BY used_at DESC, owners.id
""")


def _having(connection: Connection, table: Table, owners: Sequence[str]) -> list[str]:
    """Those of the owners that have rows in the table; most of many browsers have none."""
    query = select(table.c.owner).where(table.c.owner.in_(owners)).distinct()
    having = set(connection.scalars(query))
    return [owner for owner in owners if owner in having]


def _give_streams(connection: Connection, source: str, to: str, *, also_running: bool) -> None:
    """Give the streams that have ended, or all."""
    mine = select(generations.c.id).where(generations.c.owner == to)
    both = select(generations.c.id, generations.c.message_id).where(
        generations.c.owner == source, generations.c.id.in_(mine)
    )
    for stream_id, message_id in connection.execute(both).all():
        new_id = secrets.token_urlsafe(16)
        for table, column in ((generations, generations.c.id), (chunks, chunks.c.generation_id)):
            connection.execute(
                update(table)
                .where(table.c.owner == source, column == stream_id)
                .values({column: new_id})
            )
        connection.execute(
            update(messages)
            .where(messages.c.id == message_id, messages.c.stream_id == stream_id)
            .values(stream_id=new_id)
        )
    ended = () if also_running else (generations.c.state != "running",)
    connection.execute(
        update(generations).where(generations.c.owner == source, *ended).values(owner=to)
    )
    if also_running:  # only those have chunks
        connection.execute(update(chunks).where(chunks.c.owner == source).values(owner=to))


def _give_files(connection: Connection, source: str, to: str) -> None:
    """Give the files; of one that both have, that of the person `to` stays."""
    theirs = update(files).where(
        files.c.owner == to,
        files.c.hash.in_(
            select(files.c.hash).where(
                files.c.owner == source, files.c.complete, files.c.unused_since.is_(None)
            )
        ),
        files.c.complete,
    )
    connection.execute(theirs.values(unused_since=None))
    mine = select(files.c.hash).where(files.c.owner == to, files.c.complete)
    for table in (file_parts, files):
        connection.execute(delete(table).where(table.c.owner == source, table.c.hash.in_(mine)))
    unfinished = select(files.c.hash).where(files.c.owner == to, ~files.c.complete)
    for table in (file_parts, files):
        connection.execute(
            delete(table).where(
                table.c.owner == to,
                table.c.hash.in_(unfinished),
                table.c.hash.in_(select(files.c.hash).where(files.c.owner == source)),
            )
        )
    for table in (files, file_parts, attachments):
        connection.execute(update(table).where(table.c.owner == source).values(owner=to))


def _give_named(connection: Connection, table: Table, source: str, to: str) -> None:
    """Give the rows of `named_prompts` or `presets`; the same under the same name is given once."""
    ignored = {"owner", "updated_at"}
    query = select(table).where(table.c.owner.in_((source, to)))
    rows = [row._asdict() for row in connection.execute(query)]
    taken = {row["name"]: row for row in rows if row["owner"] == to}
    new_names: dict[str, str] = {}  # by the name before
    for row in rows:
        if row["owner"] == to:
            continue
        name = row["name"]
        mine = taken.get(name)
        if mine is not None and all(mine[key] == row[key] for key in row.keys() - ignored):
            connection.execute(delete(table).where(table.c.owner == source, table.c.name == name))
            continue
        new_name = _free_name(name, taken)
        taken[new_name] = row
        if new_name != name:
            new_names[name] = new_name
        connection.execute(
            update(table)
            .where(table.c.owner == source, table.c.name == name)
            .values(owner=to, name=new_name)
        )
    if table is named_prompts and new_names:  # conversations name the prompt that they use
        used = conversations.c.prompt_name
        connection.execute(
            update(conversations)
            .where(conversations.c.owner == source, used.in_(new_names))
            .values(prompt_name=case(new_names, value=used))
        )


def _free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken."""
    used = set(taken)
    number, new_name = 1, name
    while new_name in used:
        number += 1
        ending = f" ({number})"
        new_name = name[: SAVED_NAME_MAX - len(ending)] + ending
    return new_name
