"""Values that a person has saved under a name: the rows of one table with `owner` and `name`."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import Any, Generic, TypeVar

from sqlalchemy import Table, delete, func, select

from halt.errors import RequestError
from halt.store.database import Database, upsert
from halt.store.models import NamedPrompt, Preset

T = TypeVar("T", NamedPrompt, Preset)


class NamedRows(Generic[T]):
    """The named values of all owners. A call that raises StoreUnavailable has changed nothing."""

    def __init__(
        self, database: Database, table: Table, kind: type[T], limit: int, noun: str
    ) -> None:
        """`kind`: the dataclass of a value; its fields are columns of the table.

        `limit`: how many values an owner may save. `noun`: what users call the values.
        """
        self._database, self._table, self.limit = database, table, limit
        self._noun = noun
        self._kind: type[T] = kind

    def names(self, owner: str) -> list[str]:
        """The owner's names, sorted without regard to case."""
        query = select(self._table.c.name).where(self._table.c.owner == owner)
        with self._database.reading() as connection:
            return sorted(connection.scalars(query), key=lambda name: (name.casefold(), name))

    def all(self, owner: str) -> list[T]:
        """The owner's values, sorted by name without regard to case."""
        query = select(*self._columns()).where(self._table.c.owner == owner)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return sorted((self._kind(*row) for row in rows), key=_sort_key)

    def get(self, owner: str, name: str) -> T | None:
        """The owner's value with this name."""
        query = select(*self._columns()).where(
            self._table.c.owner == owner, self._table.c.name == name
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else self._kind(*row)

    def save(self, owner: str, value: T, *, replace: bool = False) -> bool:
        """Save the value. False if its name exists and `replace` is not set.

        Raises RequestError if the owner has `limit` other ones.
        """
        table, values = self._table, asdict(value) | {"owner": owner, "updated_at": time.time()}
        other_names = select(func.count()).where(table.c.owner == owner, table.c.name != value.name)
        with self._database.writing() as connection:
            if (connection.scalar(other_names) or 0) >= self.limit:
                raise RequestError(
                    f"You have saved {self.limit} {self._noun} already. Delete one of them first.",
                    field="name",
                )
            statement = upsert(connection, table).values(values)
            key = ["owner", "name"]
            statement = (
                statement.on_conflict_do_update(index_elements=key, set_=values)
                if replace
                else statement.on_conflict_do_nothing(index_elements=key)
            )
            return connection.scalar(statement.returning(table.c.name)) is not None

    def delete(self, owner: str, name: str) -> bool:
        """Delete the value with this name. False if there is none."""
        statement = delete(self._table).where(
            self._table.c.owner == owner, self._table.c.name == name
        )
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount == 1

    def _columns(self) -> list[Any]:
        return [self._table.c[field.name] for field in fields(self._kind)]


def _sort_key(value: NamedPrompt | Preset) -> tuple[str, str]:
    return value.name.casefold(), value.name
