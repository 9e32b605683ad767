"""What browsers of an earlier version had becomes the person's at a start, or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert

from halt.config.settings import Config
from halt.people import adoption
from halt.people.person import MINE
from halt.store.owners import BROWSER, Owners
from halt.store.store import Store
from halt.store.tables import people
from tests.support.stores import WORKER, Chat, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened_store:
        yield opened_store


def add_browsers(store: Store, *owners: str) -> None:
    """Browsers of an earlier version, each with a conversation in which an answer was running."""
    with store.database.writing() as connection:
        for owner in owners:
            connection.execute(insert(people).values(id=owner, mode=BROWSER, subject=owner))
    for owner in owners:
        Chat(store, f"chat-of-{owner}", owner).ask("Hello?")


def count_of(store: Store, owner: str) -> int:
    return len(store.conversations.summaries(owner).items)


@pytest.mark.parametrize(
    ("settings", "browsers", "is_adopted"),
    [
        ({}, ["anna", "bert"], True),
        ({"token": "t" * 40}, ["anna"], True),
        ({"token": "t" * 40, "host": "0.0.0.0"}, ["anna"], True),
        ({"token": "t" * 40}, ["anna", "bert"], False),
        ({"trusted_proxies": 1}, ["anna", "bert"], False),
        ({"hosts": "chat.example.org"}, ["anna", "bert"], False),
        ({"allow_anonymous": True}, ["anna"], False),
    ],
    ids=["loopback", "token", "network", "team", "proxy", "named host", "anonymous"],
)
def test_adoption_depends_on_who_may_have_used_halt(
    store: Store, settings: dict[str, Any], browsers: list[str], is_adopted: bool
) -> None:
    """All is the person's where one person has used Halt; where several may have, nothing is."""
    add_browsers(store, *browsers)
    adoption.at_start(Config(**settings), store.database)
    assert count_of(store, MINE.id) == (len(browsers) if is_adopted else 0)
    assert [count_of(store, owner) for owner in browsers] == [0 if is_adopted else 1] * len(
        browsers
    )
    owners = {key.owner for key in store.generations.running_of(WORKER)}
    assert owners == ({MINE.id} if is_adopted else set(browsers))


def test_adoption_of_a_team_is_left_to_the_command(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """With a token and several browsers each start says how they are adopted."""
    add_browsers(store, "anna", "bert")
    for _ in range(2):
        caplog.clear()
        adoption.at_start(Config(token="t" * 40), store.database)
        assert "`halt-chat adopt`" in caplog.text


def test_adoption_happens_at_the_first_start_alone(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A later start changes and logs nothing, also if browsers have been people since."""
    add_browsers(store, "anna")
    caplog.set_level(logging.INFO, "halt.people")
    adoption.at_start(Config(), store.database)
    assert len(caplog.records) == 1
    Chat(store, "of-a-stranger", "stranger").ask("Hello?")
    adoption.at_start(Config(), store.database)
    assert len(caplog.records) == 1
    assert (count_of(store, MINE.id), count_of(store, "stranger")) == (1, 1)


def test_adoption_that_fails_is_repeated_by_the_next_start(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """If the database refuses, the start goes on, says so, and the next one adopts."""
    add_browsers(store, "anna", "bert")

    def make_read_only(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only=1").fetchall()

    event.listen(store.database.engine, "checkout", make_read_only)
    adoption.at_start(Config(), store.database)
    assert "are not shown yet" in caplog.text
    assert "read-only" in caplog.text
    event.remove(store.database.engine, "checkout", make_read_only)
    event.listen(
        store.database.engine, "checkout", lambda c, *_: c.execute("PRAGMA query_only=0").fetchall()
    )
    assert Owners(store.database).browsers() == ["anna", "bert"]
    adoption.at_start(Config(), store.database)
    assert count_of(store, MINE.id) == 2
