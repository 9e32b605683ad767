"""What makes a request a person's: the sign-in of a browser, or an API token of a program.

Both are random tokens, of which the store knows only the SHA-256 digest. A digest has an owner:
no method finds or ends what is another person's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, delete, func, insert, or_, select, update

from halt.errors import RequestError
from halt.store.database import Database
from halt.store.people import PERSON, PersonRow
from halt.store.tables import api_tokens, people, sign_ins

SIGN_INS_MAX = 100  # of one person; a further one ends the oldest
API_TOKENS_MAX = 100  # of one person
SEEN_EVERY = 60.0  # seconds: how exact the time of the last use is


@dataclass(frozen=True)
class SignIn:
    """A signed-in browser. Times in seconds since 1970."""

    digest: str
    created_at: float
    seen_at: float
    until: float
    agent: str  # User-Agent at the sign-in
    address: str  # at the sign-in
    id_token: str | None = None  # of the OpenID provider


@dataclass(frozen=True)
class ApiToken:
    """An API token of a program. Times in seconds since 1970."""

    digest: str
    name: str
    created_at: float
    used_at: float | None


class SignIns:
    """Sign-ins and API tokens. Every method raises StoreUnavailable like those of `Store`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, person_id: str, sign_in: SignIn) -> None:
        """Save a sign-in. The person's oldest one beyond SIGN_INS_MAX ends, and those out of time.

        A person who is disabled or removed meanwhile has no use of it: `person` does not find it.
        """
        values = {field: getattr(sign_in, field) for field in SignIn.__dataclass_fields__}
        newest = (
            select(sign_ins.c.digest)
            .where(sign_ins.c.person_id == person_id)
            .order_by(sign_ins.c.seen_at.desc(), sign_ins.c.created_at.desc())
            .limit(SIGN_INS_MAX)
        )
        with self._database.writing() as connection:
            connection.execute(insert(sign_ins).values(person_id=person_id, **values))
            connection.execute(delete(sign_ins).where(sign_ins.c.until <= time.time()))
            connection.execute(
                delete(sign_ins).where(
                    sign_ins.c.person_id == person_id, sign_ins.c.digest.not_in(newest)
                )
            )

    def person(self, digest: str, mode: str) -> PersonRow | None:
        """The person of this mode who has this sign-in or API token, and may use it now."""
        with self._database.reading() as connection:
            for table in (sign_ins, api_tokens):
                query = (
                    select(*PERSON)
                    .join(table, table.c.person_id == people.c.id)
                    .where(table.c.digest == digest, *_usable(table, mode))
                )
                if (row := connection.execute(query).one_or_none()) is not None:
                    return PersonRow(*row)
        return None

    def usable(self, digests: list[str], mode: str) -> set[str]:
        """Those of the digests that a person of this mode may use now."""
        found: set[str] = set()
        with self._database.reading() as connection:
            for table in (sign_ins, api_tokens):
                query = (
                    select(table.c.digest)
                    .join(people, table.c.person_id == people.c.id)
                    .where(table.c.digest.in_(digests), *_usable(table, mode))
                )
                found.update(connection.scalars(query))
        return found

    def seen(self, times: Mapping[str, float]) -> None:
        """Note when each digest was used last, to SEEN_EVERY seconds."""
        with self._database.writing() as connection:
            for digest, at in times.items():
                for table, used in (
                    (sign_ins, sign_ins.c.seen_at),
                    (api_tokens, api_tokens.c.used_at),
                ):
                    is_older = or_(used.is_(None), used < at - SEEN_EVERY)
                    statement = update(table).where(table.c.digest == digest, is_older)
                    connection.execute(statement.values({used: at}))

    def of_person(self, person_id: str) -> list[SignIn]:
        """The person's sign-ins that have not ended; the last used first."""
        columns = [sign_ins.c[field] for field in SignIn.__dataclass_fields__]
        query = (
            select(*columns)
            .where(sign_ins.c.person_id == person_id, sign_ins.c.until > time.time())
            .order_by(sign_ins.c.seen_at.desc(), sign_ins.c.created_at.desc())
        )
        with self._database.reading() as connection:
            return [SignIn(*row) for row in connection.execute(query)]

    def end(self, digest: str, *, person_id: str | None = None) -> SignIn | None:
        """End a sign-in and return it. With `person_id`: only if it is that person's."""
        with self._database.writing() as connection:
            columns = [sign_ins.c[field] for field in SignIn.__dataclass_fields__]
            where = [sign_ins.c.digest == digest]
            if person_id is not None:
                where.append(sign_ins.c.person_id == person_id)
            row = connection.execute(delete(sign_ins).where(*where).returning(*columns)).first()
        return None if row is None else SignIn(*row)

    def end_all(self, person_id: str) -> int:
        """End all of the person's sign-ins; returns their number."""
        statement = delete(sign_ins).where(sign_ins.c.person_id == person_id)
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount

    def add_token(self, person_id: str, digest: str, name: str) -> None:
        """Save an API token. Raises RequestError if the person has API_TOKENS_MAX."""
        count = select(func.count()).where(api_tokens.c.person_id == person_id)
        values = {"digest": digest, "person_id": person_id, "name": name, "created_at": time.time()}
        with self._database.writing() as connection:
            if (connection.scalar(count) or 0) >= API_TOKENS_MAX:
                raise RequestError(
                    f"You have {API_TOKENS_MAX} API tokens. Revoke one of them first.", field="name"
                )
            connection.execute(insert(api_tokens).values(values))

    def tokens(self, person_id: str) -> list[ApiToken]:
        """The person's API tokens; the newest first."""
        columns = [api_tokens.c[field] for field in ApiToken.__dataclass_fields__]
        query = (
            select(*columns)
            .where(api_tokens.c.person_id == person_id)
            .order_by(api_tokens.c.created_at.desc())
        )
        with self._database.reading() as connection:
            return [ApiToken(*row) for row in connection.execute(query)]

    def remove_token(self, person_id: str, digest: str) -> bool:
        """Revoke one of the person's API tokens. False: the person has no such one."""
        where = (api_tokens.c.person_id == person_id, api_tokens.c.digest == digest)
        with self._database.writing() as connection:
            return connection.execute(delete(api_tokens).where(*where)).rowcount == 1


def _usable(table: Table, mode: str) -> list[ColumnElement[bool]]:
    """The conditions under which a row of `sign_ins` or `api_tokens` makes its person known."""
    conditions = [
        people.c.mode == mode,
        people.c.disabled_at.is_(None),
        people.c.removed_at.is_(None),
    ]
    if table is sign_ins:
        conditions.append(sign_ins.c.until > time.time())
    return conditions
