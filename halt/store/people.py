"""The people of this Halt: a row for each, which is made at the first sign-in or request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from sqlalchemy import select, text

from halt.store.database import Database, upsert
from halt.store.tables import people


@dataclass(frozen=True)
class PersonRow:
    """What the store knows of a person. Times in seconds since 1970."""

    id: str
    mode: str
    issuer: str
    subject: str
    name: str
    is_admin: bool = False
    created_at: float = 0.0
    disabled_at: float | None = None
    removed_at: float | None = None


ALL = 2**31 - 1  # more people than there are
PERSON = [people.c[field.name] for field in fields(PersonRow)]


@dataclass(frozen=True)
class PersonCounts:
    """How much a person has, never what it is."""

    id: str
    name: str
    conversations: int
    messages: int
    created_at: float
    used_at: float  # 0: never
    disabled_at: float | None


class People:
    """The table of people. Every method raises StoreUnavailable like those of `Store`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, person: PersonRow) -> None:
        """Make the person's row, or give it this name; everything else of a known one stays."""
        values = {
            "id": person.id,
            "mode": person.mode,
            "issuer": person.issuer,
            "subject": person.subject,
            "name": person.name,
            "created_at": time.time(),
        }
        with self._database.writing() as connection:
            statement = upsert(connection, people).values(values)
            if person.name:
                statement = statement.on_conflict_do_update(
                    index_elements=["id"], set_={"name": person.name}
                )
            else:
                statement = statement.on_conflict_do_nothing(index_elements=["id"])
            connection.execute(statement)

    def get(self, person_id: str) -> PersonRow | None:
        """The person with this ID."""
        query = select(*PERSON).where(people.c.id == person_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else PersonRow(*row)

    def barred(self, person_ids: Iterable[str]) -> dict[str, Literal["disabled", "removed"]]:
        """Those of the people who may not use Halt, and why.

        A person without a row was removed.
        """
        wanted = set(person_ids)
        query = select(people.c.id, people.c.disabled_at).where(
            people.c.id.in_(wanted), people.c.removed_at.is_(None)
        )
        with self._database.reading() as connection:
            found = {row.id: row.disabled_at is not None for row in connection.execute(query)}
        return {
            person: "disabled" if person in found else "removed"
            for person in sorted(wanted)
            if found.get(person, True)
        }

    def counts(self, mode: str, *, limit: int = -1, offset: int = 0) -> list[PersonCounts]:
        """How much each person of this mode has; the last used first.

        At most `limit` of them after the first `offset`; all of them by default.
        """
        values = {"mode": mode, "limit": limit if limit >= 0 else ALL, "offset": offset}
        with self._database.reading() as connection:
            rows = connection.execute(_COUNTS, values).all()
        return [PersonCounts(*row) for row in rows]


#: The messages are counted for the people of the result alone.
_COUNTS = text("""
    SELECT id, name, chats,
      (SELECT count(*) FROM messages JOIN conversations
        ON messages.conversation_id = conversations.id
        WHERE conversations.owner = listed.id AND deleted_at IS NULL),
      created_at, used_at, disabled_at
    FROM (
      SELECT people.id, people.name, people.created_at, people.disabled_at,
        coalesce(used.chats, 0) AS chats, coalesce(used.used_at, 0) AS used_at
      FROM people
      LEFT JOIN (
        SELECT owner, count(*) AS chats, max(updated_at) AS used_at FROM conversations
        WHERE deleted_at IS NULL AND first_id IS NOT NULL GROUP BY owner
      ) AS used ON used.owner = people.id
      WHERE people.mode = :mode AND people.removed_at IS NULL
      ORDER BY used_at DESC, people.name, people.id
      LIMIT :limit OFFSET :offset
    ) AS listed
    ORDER BY used_at DESC, name, id
""")
