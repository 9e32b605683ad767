"""How much each person has, on SQLite and PostgreSQL."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import update

from halt.store.people import PersonRow
from halt.store.store import Store
from halt.store.tables import conversations, people
from tests.support.stores import Chat


@pytest.fixture
def counted(store: Store) -> Store:
    """Two people with chats, one without, a disabled and a removed one, and one of another mode."""
    for name in ("ann", "ben", "cy", "dee", "eve"):
        store.people.ensure(PersonRow(name, "accounts", "", name, name.title()))
    store.people.ensure(PersonRow("fox", "oidc", "", "fox", "Fox"))
    for name, owner in (("a-1", "ann"), ("a-2", "ann"), ("a-3", "ann"), ("b-1", "ben")):
        Chat(store, name, owner).add_exchange("Hello", "Hi")
    store.conversations.delete("a-3", "ann")
    store.accounts.begin_removal("eve")
    with store.database.writing() as connection:
        connection.execute(
            update(people).where(people.c.id == "dee").values(disabled_at=time.time())
        )
        connection.execute(
            update(conversations).where(conversations.c.owner == "ben").values(updated_at=9e9)
        )
    return store


def test_counts_are_of_each_person_of_the_mode(counted: Store) -> None:
    """The last used comes first; deleted chats do not count, nor do removed people."""
    counts = counted.people.counts("accounts")
    assert [(one.name, one.conversations, one.messages) for one in counts] == [
        ("Ben", 1, 2),
        ("Ann", 2, 4),
        ("Cy", 0, 0),
        ("Dee", 0, 0),
    ]
    assert [one.used_at > 0 for one in counts] == [True, True, False, False]
    assert [one.disabled_at is not None for one in counts] == [False, False, False, True]


def test_counts_are_given_in_parts(counted: Store) -> None:
    """A part has at most `limit` people, after the first `offset`."""
    names = [
        [one.name for one in counted.people.counts("accounts", limit=3, offset=offset)]
        for offset in (0, 3, 6)
    ]
    assert names == [["Ben", "Ann", "Cy"], ["Dee"], []]
