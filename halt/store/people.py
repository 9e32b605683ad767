"""The people of this Halt: a row for each, which is made at the first sign-in or request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields

from sqlalchemy import select, text, update

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

    def removed(self, person_ids: Iterable[str]) -> list[str]:
        """Those of the people that are being removed, or whose row has gone."""
        wanted = set(person_ids)
        query = select(people.c.id).where(people.c.id.in_(wanted), people.c.removed_at.is_(None))
        with self._database.reading() as connection:
            return sorted(wanted - set(connection.scalars(query)))

    def mark_removed(self, person_id: str) -> None:
        """From now on the person is unknown; the servers stop the person's streams."""
        with self._database.writing() as connection:
            connection.execute(
                update(people).where(people.c.id == person_id).values(removed_at=time.time())
            )

    def counts(self, mode: str) -> list[PersonCounts]:
        """How much each person of this mode has; the last used first."""
        with self._database.reading() as connection:
            rows = connection.execute(_COUNTS, {"mode": mode}).all()
        return [PersonCounts(*row) for row in rows]


_COUNTS = text("""
    SELECT people.id, people.name, count(DISTINCT conversations.id), count(messages.id),
      people.created_at, coalesce(max(conversations.updated_at), 0) AS used_at, people.disabled_at
    FROM people
    LEFT JOIN conversations ON conversations.owner = people.id AND deleted_at IS NULL
      AND first_id IS NOT NULL
    LEFT JOIN messages ON messages.conversation_id = conversations.id
    WHERE people.mode = :mode AND people.removed_at IS NULL
    GROUP BY people.id, people.name, people.created_at, people.disabled_at
    ORDER BY used_at DESC, people.name
""")
