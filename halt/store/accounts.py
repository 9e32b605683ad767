"""The accounts of the mode `accounts`: names, hashes of passwords, digests of one-time links."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, text, update

from halt.errors import NameTaken
from halt.store import retention
from halt.store.connected import remove_keys_of
from halt.store.database import Database
from halt.store.people import PERSON, PersonRow
from halt.store.tables import (
    accounts,
    api_tokens,
    attachments,
    chunks,
    conversations,
    generations,
    named_prompts,
    people,
    presets,
    sign_ins,
)


@dataclass(frozen=True)
class Link:
    """A one-time link with which a person sets a password."""

    digest: str
    until: float  # seconds since 1970


@dataclass(frozen=True)
class AccountRow:
    """What a person signs in with."""

    person: PersonRow
    password: str | None  # its hash; None: only the link works
    link_until: float | None


@dataclass(frozen=True)
class AccountSummary:
    """An account in a list: counts and times (seconds since 1970), no texts."""

    person_id: str
    name: str
    is_admin: bool
    disabled_at: float | None
    removed_at: float | None
    has_password: bool
    link_until: float | None
    conversations: int
    sign_ins: int
    api_tokens: int
    used_at: float | None  # the last use of a chat, a sign-in or an API token


class AccountRows:
    """The table of accounts. Every method raises StoreUnavailable like those of `Store`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- reading ----------------------------------------------------------------------------------

    def has_any(self) -> bool:
        """Whether there is an account."""
        with self._database.reading() as connection:
            return _has_any(connection)

    def find(self, key: str) -> AccountRow | None:
        """The account with this normalized name, also one that is disabled or being removed."""
        return self._one(accounts.c.name == key)

    def of_person(self, person_id: str) -> AccountRow | None:
        """The account of this person."""
        return self._one(accounts.c.person_id == person_id)

    def of_link(self, digest: str) -> AccountRow | None:
        """The account whose one-time link has this digest, also one that is out of time."""
        return self._one(accounts.c.link_digest == digest)

    def summaries(self) -> list[AccountSummary]:
        """All accounts, sorted by name."""
        with self._database.reading() as connection:
            rows = connection.execute(_SUMMARIES, {"at": time.time()}).all()
        found = [AccountSummary(*row) for row in rows]
        return sorted(found, key=lambda account: account.name.casefold())

    def _one(self, condition: ColumnElement[bool]) -> AccountRow | None:
        query = (
            select(*PERSON, accounts.c.password, accounts.c.link_until)
            .join(accounts, accounts.c.person_id == people.c.id)
            .where(condition)
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        *person, password, link_until = row
        return AccountRow(PersonRow(*person), password, link_until)

    # --- changing ---------------------------------------------------------------------------------

    def add(
        self, person: PersonRow, key: str, *, password: str | None = None, link: Link | None = None
    ) -> PersonRow:
        """Save a new person with an account. The first account's person is administrator.

        Raises NameTaken.
        """
        with self._database.writing() as connection:
            if not self._database.sqlite:  # of two first accounts at once, one is the first
                connection.execute(text("LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE"))
            if connection.execute(select(accounts.c.name).where(accounts.c.name == key)).first():
                raise NameTaken(f"There is an account with the name {person.name!r}.", field="name")
            values = {field.name: getattr(person, field.name) for field in fields(PersonRow)}
            values |= {"is_admin": not _has_any(connection), "created_at": time.time()}
            connection.execute(insert(people).values(values))
            connection.execute(
                insert(accounts).values(
                    person_id=person.id,
                    name=key,
                    password=password,
                    link_digest=link and link.digest,
                    link_until=link and link.until,
                )
            )
        return PersonRow(**values)

    def set_password(
        self,
        person_id: str,
        password: str,
        *,
        replaced: str | None = None,
        keep: str = "",
        renewed: str = "",
    ) -> int | None:
        """Set the hash of a password, and end the person's sign-ins but `keep` and any link.

        The sign-in `keep` has the digest `renewed` from then on, so its old token has no use.

        Returns the number of ended sign-ins. None: nothing was changed, because there is no such
        account, or its hash is not `replaced` (where given) any more.
        """
        where = [accounts.c.person_id == person_id]
        if replaced is not None:
            where.append(accounts.c.password == replaced)
        with self._database.writing() as connection:
            statement = update(accounts).where(*where)
            values = {"password": password, "link_digest": None, "link_until": None}
            if connection.execute(statement.values(values)).rowcount == 0:
                return None
            ended = _end_sign_ins(connection, person_id, keep)
            if renewed:
                connection.execute(
                    update(sign_ins)
                    .where(sign_ins.c.person_id == person_id, sign_ins.c.digest == keep)
                    .values(digest=renewed)
                )
            return ended

    def set_link(self, person_id: str, link: Link) -> int:
        """From now on only this link works. Returns the number of sign-ins that it ended."""
        with self._database.writing() as connection:
            connection.execute(
                update(accounts)
                .where(accounts.c.person_id == person_id)
                .values(password=None, link_digest=link.digest, link_until=link.until)
            )
            return _end_sign_ins(connection, person_id)

    def use_link(self, digest: str, password: str) -> PersonRow | None:
        """Set the hash of a password by a link, which is used up; returns its person.

        None: the link has been used or replaced, or is out of time.
        """
        statement = (
            update(accounts)
            .where(accounts.c.link_digest == digest, accounts.c.link_until > time.time())
            .values(password=password, link_digest=None, link_until=None)
            .returning(accounts.c.person_id)
        )
        with self._database.writing() as connection:
            person_id = connection.scalar(statement)
            if person_id is None:
                return None
            _end_sign_ins(connection, person_id)
            row = connection.execute(select(*PERSON).where(people.c.id == person_id)).one()
        return PersonRow(*row)

    def revoke_tokens(self, person_id: str) -> int:
        """Revoke all of the person's API tokens; returns their number."""
        with self._database.writing() as connection:
            where = api_tokens.c.person_id == person_id
            return connection.execute(delete(api_tokens).where(where)).rowcount

    def set_disabled(self, person_id: str, *, disabled: bool) -> None:
        """Disable the account, or enable it. Its sign-ins and API tokens stay."""
        at = time.time() if disabled else None
        with self._database.writing() as connection:
            connection.execute(
                update(people).where(people.c.id == person_id).values(disabled_at=at)
            )

    # --- removing ---------------------------------------------------------------------------------

    def begin_removal(self, person_id: str) -> int:
        """Mark the person as removed, and end all sign-ins and API tokens; returns their number.

        From now on the person is unknown; servers stop the person's streams.
        """
        with self._database.writing() as connection:
            connection.execute(
                update(people)
                .where(people.c.id == person_id, people.c.removed_at.is_(None))
                .values(removed_at=time.time())
            )
            ended = _end_sign_ins(connection, person_id)
            where = api_tokens.c.person_id == person_id
            return ended + connection.execute(delete(api_tokens).where(where)).rowcount

    def running(self, person_id: str) -> int:
        """The number of the person's generations that run."""
        query = select(func.count()).where(
            generations.c.owner == person_id, generations.c.state == "running"
        )
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def remove(self, person_id: str) -> None:
        """Remove a person who is marked as removed with all that is the person's.

        The conversations go in several transactions, so that others can write in between;
        everything else goes in the last one.
        """
        while self._remove_conversations(person_id) or self._remove_files(person_id):
            pass
        with self._database.writing() as connection:
            _remove_conversations(connection, person_id)
            for table in (chunks, generations, named_prompts, presets, attachments):
                connection.execute(delete(table).where(table.c.owner == person_id))
            for table in (sign_ins, api_tokens, accounts):
                connection.execute(delete(table).where(table.c.person_id == person_id))
            remove_keys_of(connection, person_id)
            retention.remove_files(connection, person_id)
            connection.execute(delete(people).where(people.c.id == person_id))

    def _remove_conversations(self, person_id: str) -> bool:
        with self._database.writing() as connection:
            return _remove_conversations(connection, person_id)

    def _remove_files(self, person_id: str) -> bool:
        with self._database.writing() as connection:
            return bool(retention.remove_files(connection, person_id, limit=retention.FILES_PURGED))


#: Times that do not exist are NULL, which SQLite's max of several values cannot take.
_SUMMARIES = text("""
    SELECT people.id, people.name, people.is_admin, people.disabled_at, people.removed_at,
      accounts.password IS NOT NULL, accounts.link_until,
      (SELECT count(*) FROM conversations WHERE owner = people.id AND deleted_at IS NULL
        AND first_id IS NOT NULL),
      (SELECT count(*) FROM sign_ins WHERE person_id = people.id AND until > :at),
      (SELECT count(*) FROM api_tokens WHERE person_id = people.id),
      (SELECT max(at) FROM (
        SELECT max(updated_at) AS at FROM conversations WHERE owner = people.id
        UNION ALL SELECT max(seen_at) FROM sign_ins WHERE person_id = people.id
        UNION ALL SELECT max(used_at) FROM api_tokens WHERE person_id = people.id
      ) AS uses)
    FROM accounts JOIN people ON people.id = accounts.person_id
""")


def _has_any(connection: Connection) -> bool:
    return bool(connection.scalar(select(exists().select_from(accounts))))


def _end_sign_ins(connection: Connection, person_id: str, keep: str = "") -> int:
    where = (sign_ins.c.person_id == person_id, sign_ins.c.digest != keep)
    return connection.execute(delete(sign_ins).where(*where)).rowcount


def _remove_conversations(connection: Connection, person_id: str) -> bool:
    """Remove some conversations of the person. False: there are none."""
    query = select(conversations.c.id).where(conversations.c.owner == person_id)
    ids = list(connection.scalars(query.limit(retention.PURGE)))
    retention.remove_conversations(connection, ids)
    return bool(ids)
