"""Migrations of databases of earlier versions, on SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from halt.core.events import Content
from halt.core.stream_key import StreamKey
from halt.people.person import MINE
from halt.store.batches import Batch, Chunk
from halt.store.connected import ConnectedRows, KeyRow, ProviderRow, Snapshot
from halt.store.migrate import existing_database, open_database
from halt.store.models import NamedPrompt, Preset
from halt.store.owners import Owners
from halt.store.people import PersonRow
from halt.store.store import Store
from halt.store.tables import REVISION
from tests.support.earlier_database import make_earlier_database, revision_of
from tests.support.halt_server import ROOT
from tests.support.stores import (
    DATABASES,
    WORKER,
    Chat,
    new_generation,
    open_store,
    postgres_schema,
    write_end,
)
from tests.support.waiting import SERVER_TIMEOUT

PROGRAM_KEY = StreamKey("", "program-1")

#: Migrates, and stops before a statement that contains the third argument.
MIGRATE_AND_STOP = """
import sys
from pathlib import Path
from sqlalchemy import Engine, event
from halt.store.migrate import open_database

def stop(connection, cursor, statement, *_):
    if sys.argv[3] in statement:
        print("stopped", flush=True)
        sys.stdin.read()

event.listen(Engine, "before_cursor_execute", stop)
open_database(Path(sys.argv[1]), sys.argv[2])
"""

#: Does what a start of Halt does with the database, once its standard input ends.
START = """
import sys
from pathlib import Path
from halt.config.settings import Config
from halt.people import adoption
from halt.store.migrate import open_database

sys.stdin.read()
database = open_database(Path(sys.argv[1]), sys.argv[2])
adoption.at_start(Config(), database)
database.close()
"""


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A data folder and the DATABASE_URL of an empty database."""
    if request.param == "sqlite":
        return tmp_path, ""
    stack = ExitStack()
    request.addfinalizer(stack.close)
    return tmp_path, stack.enter_context(postgres_schema())


def fill(store: Store) -> None:
    """What three browsers and a program had."""
    chat = Chat(store)
    chat.add_exchange("zebra?", "giraffe")
    running = chat.ask("And?")
    chunk = Chunk(running, 1, [(1.0, Content("It stands"))])
    store.generations.write(Batch(chunks=(chunk,)))
    Chat(store, "chat-of-bert", "bert").add_exchange("zebra too?", "1")
    store.presets.save("bert", Preset("cold", 0.1))
    store.named_prompts.save("carl", NamedPrompt("Poet", "Rhyme."))
    store.generations.write(Batch(new=(new_generation(PROGRAM_KEY),)))
    write_end(store, PROGRAM_KEY, "Hello.")


def assert_migrated(store: Store) -> None:
    """Everything of `fill` is there, each with its owner."""
    chat = Chat(store)
    assert chat.exchanges() == [("zebra?", "giraffe"), ("And?", "")]
    for key, answer in (
        (StreamKey("anna", "talk-1"), "giraffe"),
        (StreamKey(MINE.id, PROGRAM_KEY.id), "Hello."),
    ):
        record = store.generations.get_ended(key)
        assert record is not None
        assert record.events[0][2] == Content(answer)
    running = store.generations.running_of(WORKER)
    assert running == [StreamKey("anna", "talk-2")]
    assert store.generations.interrupt(running[0])
    assert chat.last_exchange().answer == "It stands"
    chat.stream_count = 2
    chat.add_exchange("okapi?", "1")
    for owner, query, count in (("anna", "zebra", 1), ("anna", "okapi", 1), ("bert", "zebra", 1)):
        assert len(store.search.find(owner, query).items) == count
    assert store.presets.names("bert") == ["cold"]
    assert store.named_prompts.names("carl") == ["Poet"]
    assert Owners(store.database).browsers() == ["anna", "bert", "carl"]


def test_migration_to_people_keeps_everything(place: tuple[Path, str]) -> None:
    """Conversations, streams and the index stay; each browser is an owner, programs' are mine."""
    make_earlier_database(*place, "0003", fill)
    with open_store(*place) as store:
        assert_migrated(store)


def test_existing_database_is_never_made_or_changed(place: tuple[Path, str]) -> None:
    """It is None where there is no database, or one of another version."""
    folder, url = place
    missing = folder / "new"
    assert existing_database(missing, url) is None
    assert not missing.exists()
    make_earlier_database(folder, url, "0003", fill)
    assert existing_database(folder, url) is None
    assert revision_of(folder, url) == "0003"
    open_database(folder, url).close()
    database = existing_database(folder, url)
    assert database is not None
    assert ConnectedRows(database).version() == 0
    database.close()


@pytest.mark.parametrize(
    "statement", ["INSERT INTO people", "CREATE TABLE site_values", "UPDATE alembic_version"]
)
def test_killed_migration_is_repeated_by_the_next_start(
    place: tuple[Path, str], statement: str
) -> None:
    """After kill -9 in the middle of a migration the next start migrates, and nothing is lost."""
    make_earlier_database(*place, "0003", fill)
    command = [sys.executable, "-c", MIGRATE_AND_STOP, *map(str, place), statement]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
        process.wait(SERVER_TIMEOUT)
    assert revision_of(*place) == "0003"
    with open_store(*place) as store:
        assert_migrated(store)


def test_concurrent_first_starts_migrate_and_adopt_once(place: tuple[Path, str]) -> None:
    """Of two first starts on one database both succeed, and all is the person's, once."""
    folder, url = place
    make_earlier_database(folder, url, "0003", fill)
    # Servers that share PostgreSQL have data folders of their own.
    folders = [folder / "a", folder / "b"] if url else [folder, folder]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(own_folder), url], cwd=ROOT, stdin=subprocess.PIPE
        )
        for own_folder in folders
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(SERVER_TIMEOUT) for process in processes] == [0, 0]
    assert revision_of(folder, url) == REVISION
    with open_store(folder, url) as store:
        owners = Owners(store.database)
        assert owners.browsers() == []
        assert [(row.id, row.conversations, row.messages) for row in owners.all()] == [
            (MINE.id, 2, 6)
        ]
        assert store.named_prompts.names(MINE.id) == ["Poet"]
        assert store.presets.names(MINE.id) == ["cold"]
        assert len(store.search.find(MINE.id, "zebra").items) == 2
        assert store.generations.running_of(WORKER) == [StreamKey(MINE.id, "talk-2")]


def test_migration_to_connected_providers_keeps_everything(place: tuple[Path, str]) -> None:
    """Chats, streams and accounts stay; nothing is connected yet, and a provider can be."""

    def fill_people(store: Store) -> None:
        person = store.accounts.add(PersonRow("anna", "accounts", "", "anna", "Anna"), "anna")
        Chat(store, owner=person.id).add_exchange("zebra?", "giraffe")
        store.presets.save(person.id, Preset("cold", 0.1))

    make_earlier_database(*place, "0004", fill_people)
    with open_store(*place) as store:
        assert Chat(store).exchanges() == [("zebra?", "giraffe")]
        assert len(store.search.find("anna", "zebra").items) == 1
        assert [account.name for account in store.accounts.summaries()] == ["Anna"]
        assert store.presets.names("anna") == ["cold"]
        assert store.connected.snapshot() == Snapshot(0, (), (), (), None)
        key = KeyRow("groq", "anna", b"sealed")
        assert store.connected.add(ProviderRow("groq", "openai")) == 1
        assert store.connected.save_key(key) == 2
        Chat(store, "later").add_exchange("okapi?", "1")


def test_migration_indexes_earlier_texts_without_blanks(place: tuple[Path, str]) -> None:
    """The migration of the first version makes texts without blanks searchable."""

    def fill_texts(store: Store) -> None:
        Chat(store).add_exchange("plain words", "東京都に住む")

    make_earlier_database(*place, "0001", fill_texts)
    with open_store(*place) as store:
        assert len(store.search.find("anna", "京都").items) == 1
        assert len(store.search.find("anna", "plain wor").items) == 1
