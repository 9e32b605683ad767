"""The terminal's command `halt-chat adopt`, on a database that also a running Halt may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert

from halt.people.person import MINE, person_id
from halt.server import command_line
from halt.store.owners import BROWSER
from halt.store.store import Store
from halt.store.tables import people
from tests.support.stores import Chat, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two browsers of an earlier version, and a stranger of today."""
    with open_store(tmp_path / "data") as opened_store:
        with opened_store.database.writing() as connection:
            for owner in ("browser-anna", "browser-bert"):
                connection.execute(insert(people).values(id=owner, mode=BROWSER, subject=owner))
        for owner in ("browser-anna", "browser-bert", "stranger"):
            Chat(opened_store, f"chat-of-{owner}", owner).add_exchange("Hello?", "Hello.")
        yield opened_store


@pytest.fixture
def adopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adopt:
    monkeypatch.chdir(tmp_path)
    return Adopt(tmp_path / "data")


class Adopt:
    """Runs the command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *arguments: str, answer: str = "", **settings: str) -> Result:
        env = {"HALT_DATA": str(self._folder), **settings}
        return CliRunner().invoke(
            command_line.commands, ["adopt", *arguments], input=answer, env=env
        )


def count_of(store: Store, owner: str) -> int:
    return len(store.conversations.summaries(owner).items)


def test_adopt_lists_the_owners(store: Store, adopt: Adopt) -> None:
    """Without arguments each owner is listed with counts and days, and nothing is changed."""
    Chat(store, "own", MINE.id).add_exchange("a", "1")
    result = adopt()
    assert result.exit_code == 0
    rows = {words[0]: words[1:] for words in map(str.split, result.output.splitlines()) if words}
    for owner, kind in ((MINE.id, "you"), ("browser-anna", "browser"), ("stranger", "browser")):
        assert rows[owner][:3] == [kind, "1", "2"]
        assert len(rows[owner]) == 5
    assert "halt-chat adopt --all" in result.output
    assert count_of(store, "browser-anna") == 1


def test_adopt_takes_all_after_a_confirmation(store: Store, adopt: Adopt) -> None:
    """`--all` asks with the counts; a No changes nothing, and a Yes makes everything yours."""
    refused = adopt("--all", answer="n\n")
    assert refused.exit_code == 1
    assert "Give 3 chats of 3 owners to you?" in refused.output
    assert count_of(store, MINE.id) == 0
    taken = adopt("--all", answer="y\n")
    assert taken.exit_code == 0
    assert "3 chats taken over." in taken.output
    assert count_of(store, MINE.id) == 3
    assert "nothing to take over" in adopt("--all").output


def test_adopt_takes_some_by_the_beginning_of_an_id(store: Store, adopt: Adopt) -> None:
    """An OWNER is the beginning of one ID; an ambiguous or unknown one is refused."""
    for argument, message in (("browser-", "2 owners' IDs begin"), ("nobody", "No owner's ID")):
        result = adopt(argument, "--yes")
        assert result.exit_code == 1
        assert message in result.output
    assert adopt("browser-a", "browser-anna", "--yes").output == "1 chat taken over.\n"
    assert [count_of(store, owner) for owner in (MINE.id, "browser-bert")] == [1, 1]
    assert adopt("browser-b", "--all").exit_code == 2


def test_adopt_takes_an_id_that_begins_like_an_option(store: Store, adopt: Adopt) -> None:
    """An ID may begin with a hyphen; a misspelt option is no owner, and nothing is changed."""
    Chat(store, "of-a-browser", "-aB3_x").add_exchange("a", "1")
    assert "No owner's ID begins with '--al'" in adopt("--al", "--yes").output
    assert adopt("-aB", "--yes").output == "1 chat taken over.\n"
    assert count_of(store, MINE.id) == 1


def test_adopt_refuses_owners_with_a_running_answer(store: Store, adopt: Adopt) -> None:
    """While an answer is being written the command says so and changes nothing."""
    Chat(store, "busy", "stranger").ask("Hello?")
    result = adopt("--all", "--yes")
    assert result.exit_code == 1
    assert "An answer is being written there." in result.output
    assert count_of(store, MINE.id) == 0


def test_adopt_for_a_named_person_needs_one(store: Store, adopt: Adopt) -> None:
    """With accounts the person is named by `--to`; an unknown or doubtful name is refused."""
    carla = person_id("accounts", "", "1")
    with store.database.writing() as connection:
        for id_, name in ((carla, "carla"), ("p_1", "twin"), ("p_2", "twin")):
            connection.execute(
                insert(people).values(id=id_, mode="accounts", subject=id_, name=name)
            )
    for arguments, message in (
        ((), "Say who gets them: --to NAME."),
        (("--to", "nobody"), "No people here have the name 'nobody'."),
        (("--to", "twin"), "2 people here have the name 'twin'."),
    ):
        result = adopt("--all", "--yes", *arguments, HALT_USERS="1")
        assert (result.exit_code, result.output) == (1, f"Error: {message}\n")
    result = adopt("--all", "--yes", "--to", "carla", HALT_USERS="1")
    assert result.output == "3 chats taken over.\n"
    assert count_of(store, carla) == 3
    # What is of the person of the mode `mine` goes to nobody but by its ID.
    Chat(store, "own", MINE.id).add_exchange("a", "1")
    assert "nothing to take" in adopt("--all", "--yes", "--to", "carla", HALT_USERS="1").output
    assert adopt(MINE.id, "--yes", "--to", "carla", HALT_USERS="1").exit_code == 0
    assert count_of(store, carla) == 4


def test_adopt_without_a_usable_database_ends_with_one_line(tmp_path: Path, adopt: Adopt) -> None:
    """A database that cannot be used ends the command with one line and no traceback."""
    (tmp_path / "data").write_text("not a folder")
    result = adopt()
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "HALT_DATA" in result.output


def test_adopt_in_an_empty_folder_lists_nobody(adopt: Adopt) -> None:
    """A new database has no owners."""
    assert adopt().output == "No owner has chats here.\n"
