"""People, sign-ins and API tokens for tests, written into a server's database."""

from __future__ import annotations

from pathlib import Path

from halt.people.known import digest_of, new_api_token
from halt.people.person import Mode, person_id
from halt.store.database import Database
from halt.store.migrate import open_database
from halt.store.people import PersonRow
from halt.store.store import Store


def make_person(store: Store, mode: Mode, subject: str, issuer: str = "") -> str:
    """Make a person's row; return the person's ID."""
    person = PersonRow(person_id(mode, issuer, subject), mode, issuer, subject, subject)
    store.people.ensure(person)
    return person.id


def make_api_token(store: Store, person: str, name: str = "test") -> str:
    """Make an API token of the person; return it."""
    token = new_api_token()
    store.sign_ins.add_token(person, digest_of(token), name)
    return token


def store_at(folder: Path, url: str = "") -> Store:
    """The store of a server with this data folder or PostgreSQL database."""
    database: Database = open_database(folder, url)
    return Store(database)
