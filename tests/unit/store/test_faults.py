"""Faults of a database: reported in one sentence, with no partial write and no file damaged."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text, update

from halt.config.settings import ConfigError
from halt.core.events import Content
from halt.errors import StoreUnavailable, Unstorable
from halt.store import admission
from halt.store import database as database_module
from halt.store.batches import Batch, Chunk
from halt.store.database import Database, make_engine
from halt.store.migrate import MIGRATIONS, database, open_database
from halt.store.store import Store
from halt.store.tables import REVISION, messages, metadata
from tests.resilience.servers import Postgres
from tests.support.halt_server import ROOT, refused_start
from tests.support.races import together
from tests.support.stores import DATABASES, POSTGRES, Chat, Databases, open_store, postgres_schema
from tests.support.waiting import WAIT_TIMEOUT

needs_postgres = pytest.mark.skipif(not POSTGRES, reason="TEST_DATABASE_URL names no PostgreSQL")
SENTENCE = re.compile(
    r"(Saving failed: [a-z' -]+\. Try again later\."
    r"|Reading from the database failed: [a-z' -]+\. Try again later\.)"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store in SQLite with a short wait for locks."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    with open_store(tmp_path) as sqlite_store:
        yield sqlite_store


def files(folder: Path) -> dict[str, bytes]:
    """The files of a SQLite database with their bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("halt.db*"))}


def assert_refused(reason: str, *calls: Callable[[], object]) -> None:
    """Assert that each call is refused for this reason, in a sentence for users."""
    for call in calls:
        with pytest.raises(StoreUnavailable) as error_info:
            call()
        fault = error_info.value
        assert fault.reason == reason
        assert SENTENCE.fullmatch(fault.message)
        assert (fault.code, fault.status, fault.retryable) == ("store_unavailable", 503, True)


SILENT, UNREACHABLE = "the database does not answer", "the database cannot be reached"


def outcome(call: Callable[[], object]) -> str:
    """The reason of the refusal; "" for a call that succeeds."""
    try:
        call()
    except StoreUnavailable as fault:
        return fault.reason
    return ""


def refused_message(folder: Path, url: str = "") -> str:
    """The line that refuses a start on this database."""
    with pytest.raises(ConfigError) as error_info:
        open_database(folder, url)
    message = str(error_info.value)
    assert "\n" not in message
    return message


# --- faults in use --------------------------------------------------------------------------------


def test_sqlite_locked_by_another_program_refuses_writes(store: Store, tmp_path: Path) -> None:
    """While another program holds the lock, writes fail unchanged, reads work, and later writes
    succeed."""
    chat = Chat(store)
    chat.add_exchange("a", "1")
    key = chat.ask("b")
    chunk = Batch(chunks=(Chunk(key, 1, [(1.0, Content("2"))]),))
    with closing(sqlite3.connect(tmp_path / "halt.db", isolation_level=None)) as other_program:
        other_program.execute("BEGIN IMMEDIATE")
        assert_refused(
            "the database is locked by another program",
            partial(Chat(store, "other").ask, "c"),
            partial(store.conversations.rename, chat.name, chat.owner, "title"),
            partial(store.generations.write, chunk),
            partial(store.generations.interrupt, key),
        )
        assert chat.exchanges() == [("a", "1"), ("b", "")]
    store.generations.write(chunk)
    chat.end(key, "2")
    Chat(store, "other").add_exchange("c", "3")
    assert chat.exchanges() == [("a", "1"), ("b", "2")]


def test_own_writers_wait_for_each_other_without_a_lock_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 slow writers of one process all succeed, because they wait in Halt's own queue."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    for limit in ("PATIENCE", "QUEUE_SECONDS"):  # one write on a busy machine may take as long
        monkeypatch.setattr(admission, limit, WAIT_TIMEOUT)
    with open_store(tmp_path) as store:

        def write(number: int) -> None:
            with store.database.writing():
                time.sleep(0.03)
            Chat(store, f"chat-{number}").add_exchange("a", "1")

        together(*[partial(write, number) for number in range(25)])
        assert len(store.conversations.summaries("anna", limit=50).items) == 25


@needs_postgres
def test_postgres_row_lock_refuses_writes_of_its_conversation_alone(tmp_path: Path) -> None:
    """A locked row refuses writes of its conversation after the lock timeout; others go on."""
    with postgres_schema() as url, open_store(tmp_path, url) as store:
        chat = Chat(store)
        chat.add_exchange("a", "1")
        engine = make_engine(tmp_path, url)
        with engine.connect() as other_program:
            other_program.execute(text("SELECT * FROM conversations WHERE id = 'talk' FOR UPDATE"))
            start = time.monotonic()
            assert_refused("the database is locked by another program", partial(chat.ask, "b"))
            assert time.monotonic() - start > 1
            Chat(store, "other").add_exchange("c", "3")
            other_program.rollback()
        engine.dispose()
        chat.add_exchange("b", "2")


def test_read_only_sqlite_refuses_writes_and_can_be_read(store: Store) -> None:
    """A read-only SQLite database refuses writes with its reason and can still be read."""
    chat = Chat(store)
    chat.add_exchange("a", "1")
    event.listen(
        store.database.engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=ON")
    )
    store.database.engine.dispose()
    assert_refused("the database is read-only", partial(chat.ask, "b"))
    assert chat.exchanges() == [("a", "1")]


@needs_postgres
def test_read_only_postgres_refuses_writes_and_can_be_read(tmp_path: Path) -> None:
    """A read-only PostgreSQL, such as a standby server, refuses writes and can still be read."""
    with postgres_schema() as url:
        open_database(tmp_path, url).close()
        with open_store(tmp_path, f"{url}%20-cdefault_transaction_read_only%3Don") as store:
            assert_refused("the database is read-only", partial(Chat(store).ask, "b"))
            assert store.conversations.summaries("anna").items == ()


def test_full_database_refuses_writes_until_there_is_room(store: Store) -> None:
    """A full database refuses a write as a whole and accepts it when there is room again."""
    chat = Chat(store)
    chat.add_exchange("a", "1")
    is_full = True

    def set_page_limit(raw: sqlite3.Connection, _: object) -> None:
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        raw.execute(f"PRAGMA max_page_count={pages + 1 if is_full else 1_000_000}")

    event.listen(store.database.engine, "connect", set_page_limit)
    store.database.engine.dispose()
    assert_refused("the disk is full", partial(chat.ask, "b" * 100_000))
    assert chat.exchanges() == [("a", "1")]
    is_full = False
    store.database.engine.dispose()
    chat.add_exchange("b" * 100_000, "2")


def test_file_size_limit_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    """A write beyond the system's file size limit fails with a reason; saved text is unharmed."""
    with open_store(tmp_path) as store:
        Chat(store).add_exchange("a", "1")
    code = f"""
import sys
from pathlib import Path
from halt.errors import StoreUnavailable, Unstorable
from tests.support.stores import Chat, open_store
with open_store(Path({str(tmp_path)!r})) as store:
    chat = Chat(store, "other")
    try:
        chat.add_exchange("b" * 3_000_000, "2")
    except StoreUnavailable as fault:
        print(fault.message, chat.store.conversations.get("talk", "anna").exchanges[0].answer)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert re.fullmatch(
        r"Saving failed: the disk (is full|cannot be written to or read from)\. "
        r"Try again later\. 1\n",
        result.stdout,
    )
    with open_store(tmp_path) as store:
        assert Chat(store).exchanges() == [("a", "1")]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["gone", "replaced"])
def test_removed_database_file_refuses_calls_until_restored(
    store: Store, tmp_path: Path, is_replaced: bool
) -> None:
    """While the file is gone or replaced, calls fail and write nothing; afterwards they work."""
    chat = Chat(store)
    chat.add_exchange("a", "1")
    path, backup_path = tmp_path / "halt.db", tmp_path / "away.db"
    path.rename(backup_path)
    if is_replaced:
        path.touch()
    reason = "the database file has been removed"
    assert_refused(
        reason, partial(chat.ask, "b"), chat.read, partial(store.generations.running_of, "worker-1")
    )
    assert path.exists() == is_replaced
    backup_path.replace(path)
    chat.add_exchange("b", "2")
    assert chat.exchanges() == [("a", "1"), ("b", "2")]


def test_damaged_page_is_reported_when_read(tmp_path: Path) -> None:
    """Damage in the middle of the file is reported by the call that reads it."""
    with open_store(tmp_path) as store:
        Chat(store).add_exchange("a" * 200_000, "1")
    path = tmp_path / "halt.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for offset in range(size // 2 // 4096 * 4096, size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 64)
    with open_store(tmp_path) as store:
        assert_refused("the database is damaged", lambda: store.conversations.get("talk", "anna"))


@needs_postgres
def test_terminated_postgres_connection_is_replaced(tmp_path: Path) -> None:
    """A connection that PostgreSQL has terminated is replaced without an error."""
    with postgres_schema() as url, open_store(tmp_path, url) as store:
        chat = Chat(store)
        chat.add_exchange("a", "1")
        with store.database.reading() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
        engine = make_engine(tmp_path, url)
        with engine.connect() as other_connection:
            other_connection.execute(text(f"SELECT pg_terminate_backend({pid})"))
        engine.dispose()
        chat.add_exchange("b", "2")
        assert chat.exchanges() == [("a", "1"), ("b", "2")]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own: other tests use the shared one while this is frozen."""
    with Postgres() as server:
        yield server


@pytest.mark.slow
@needs_postgres
def test_frozen_postgres_refuses_calls_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    """Calls to a frozen PostgreSQL are refused; when it answers again, calls succeed."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 1)
    with open_store(tmp_path, postgres.url) as store:
        chat = Chat(store)
        chat.add_exchange("a", "1")
        with postgres.frozen():
            with ThreadPoolExecutor(12) as pool:
                outcomes = list(pool.map(outcome, [chat.read] * 12))
            assert {reason for reason in outcomes if reason in {SILENT, UNREACHABLE}} == set(
                outcomes
            )
            assert outcomes.count(SILENT) >= 2
        chat.add_exchange("b", "2")
        assert chat.exchanges() == [("a", "1"), ("b", "2")]


@needs_postgres
def test_statement_on_a_frozen_postgres_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    """A statement that a frozen PostgreSQL does not answer fails after the client's own timeout."""
    monkeypatch.setattr(database_module, "STATEMENT_SECONDS", 0)
    with open_store(tmp_path, postgres.url) as store:
        start = time.monotonic()

        def read_while_frozen() -> None:
            with store.database.reading() as connection:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                with postgres.frozen():
                    connection.execute(text("SELECT 1"))

        assert_refused(UNREACHABLE, read_while_frozen)
        assert time.monotonic() - start < 30
        Chat(store).add_exchange("a", "1")


@needs_postgres
def test_unreachable_postgres_is_reported_without_the_password(tmp_path: Path) -> None:
    """An unreachable PostgreSQL is reported at a call and at a start, without its password."""
    url = "postgresql://halt:hush-hush@127.0.0.1:1/halt"
    store = Store(Database(make_engine(tmp_path, url)))
    assert_refused("the database cannot be reached", partial(store.conversations.get, "a", "b"))
    message = refused_message(tmp_path, url)
    assert "cannot be reached" in message
    assert "hush" not in message


def test_store_fault_log_contains_no_sql_and_no_message_text(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A database fault is logged by its reason alone."""
    store.database.engine.dispose()
    event.listen(
        store.database.engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=ON")
    )
    caplog.set_level("DEBUG", logger="halt")
    assert_refused("the database is read-only", partial(Chat(store).ask, "hush-hush"))
    (record,) = caplog.records
    assert record.getMessage() == "The store failed: the database is read-only (SQLITE_READONLY)"


# --- faults at the start --------------------------------------------------------------------------


@contextmanager
def sound_database(folder: Path) -> Iterator[Path]:
    """Create a sound database; its file, which the test may damage."""
    with open_store(folder) as store:
        Chat(store).add_exchange("a", "1")
    yield folder / "halt.db"


@pytest.mark.parametrize("damage", ["garbage", "header", "truncated"])
def test_damaged_database_file_is_refused_unchanged(tmp_path: Path, damage: str) -> None:
    """A start on a damaged file is refused in one line and changes no byte of it."""
    with sound_database(tmp_path) as path:
        sound_content = path.read_bytes()
        damaged_contents = {
            "garbage": b"This is no database. " * 1000,
            "header": b"\0" * 100 + sound_content[100:],
            "truncated": sound_content[: len(sound_content) // 2],
        }
        path.write_bytes(damaged_contents[damage])
    files_before = files(tmp_path)
    assert "the database is damaged. Nothing was changed" in refused_message(tmp_path)
    assert files(tmp_path) == files_before


def test_database_of_a_newer_halt_is_refused_unchanged(tmp_path: Path) -> None:
    """A start on the database of a newer Halt is refused and changes no byte of it."""
    with (
        sound_database(tmp_path) as path,
        closing(sqlite3.connect(path, isolation_level=None)) as connection,
    ):
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    files_before = files(tmp_path)
    assert "was made by a newer Halt (its version is '9999')" in refused_message(tmp_path)
    assert files(tmp_path) == files_before


def test_data_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    """A start names the data folder that cannot be created or written to."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "data", Path("/proc/halt-data")):
        message = refused_message(folder)
        assert message.startswith(f"HALT_DATA: the folder {str(folder)!r} cannot be written to: ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_read_only_data_folder_is_refused_unchanged(tmp_path: Path) -> None:
    """A start on a read-only data folder is refused and changes no file in it."""
    with sound_database(tmp_path):
        pass
    files_before = files(tmp_path)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o555 if parent is tmp_path else 0o755)
    os.seteuid(65534)
    try:
        message = refused_message(tmp_path)
    finally:
        os.seteuid(0)
        tmp_path.chmod(0o755)
    assert "cannot be written to: Permission denied" in message
    assert files(tmp_path) == files_before


def test_server_start_on_a_damaged_database_prints_one_line(tmp_path: Path) -> None:
    """A start on a damaged database ends with one line, without a traceback."""
    (tmp_path / "halt.db").write_bytes(b"This is no database. " * 1000)
    status, output = refused_start(HALT_DATA=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert status != 0
    (line,) = [line for line in output.splitlines() if line]
    assert line.startswith("halt: HALT_DATA: ")
    assert "the database is damaged" in line


@pytest.mark.parametrize(
    "url", ["mysql://halt:hush-hush@db/halt", "postgresql://halt:hush-hush@db", "hush-hush", "://"]
)
def test_database_url_of_another_database_is_refused(tmp_path: Path, url: str) -> None:
    """A DATABASE_URL that is not PostgreSQL's is refused without printing its password."""
    message = refused_message(tmp_path, url)
    assert message.startswith("DATABASE_URL is not the address of a PostgreSQL database")
    assert "hush" not in message


def test_postgres_without_its_driver_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without psycopg the error names the package to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = refused_message(tmp_path, "postgresql://halt@127.0.0.1:1/halt")
    assert 'pip install "psycopg[binary]"' in message


@pytest.mark.parametrize("kind", DATABASES)
def test_concurrent_starts_create_the_tables_once(tmp_path: Path, kind: str) -> None:
    """Of concurrent starts one creates the tables; all of them can use the database."""
    with ExitStack() as stack:
        url = "" if kind == "sqlite" else stack.enter_context(postgres_schema())
        for n, database in enumerate(together(*[partial(open_database, tmp_path, url)] * 4)):
            store = Store(database)
            Chat(store, f"chat-{n}").add_exchange("a", "1")
            store.close()
        with open_store(tmp_path, url) as store:
            assert len(store.conversations.summaries("anna").items) == 4


@pytest.mark.parametrize("kind", DATABASES)
def test_database_is_opened_at_its_first_use(tmp_path: Path, kind: str) -> None:
    """A database is created at its first use; one that is up to date waits for no migration
    lock."""
    with ExitStack() as stack:
        url = "" if kind == "sqlite" else stack.enter_context(postgres_schema())
        folder = tmp_path / "data"
        first, second = database(folder, url), database(folder, url)
        assert not folder.exists()
        Chat(Store(first)).add_exchange("a", "1")
        with (folder / "migrate.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert Chat(Store(second)).exchanges() == [("a", "1")]
        with second.writing() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'of the future'"))
        assert_refused(
            "the database cannot be opened",
            partial(Store(database(folder, url)).conversations.summaries, "anna"),
        )
        for store in (first, second):
            store.close()


def test_revision_constant_equals_the_newest_migration() -> None:
    """REVISION is the newest migration, so that a worker sees when there is nothing to migrate."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


@pytest.mark.parametrize("kind", DATABASES)
def test_migrations_create_the_tables_of_the_code(tmp_path: Path, kind: str) -> None:
    """The migrations create each column and index of the code, and only the word index besides."""
    with ExitStack() as stack:
        folder, url = Databases(tmp_path, stack).new(kind)
        database = open_database(folder, url)
        stack.callback(database.close)
        with database.reading() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "include_name": lambda name, *_: (
                        not (name or "").startswith(("messages_words", "words"))
                    )
                },
            )
            assert compare_metadata(context, metadata) == []


def test_data_folder_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """The data folder has mode 0700 and the database files 0600."""
    folder = tmp_path / "a" / "data"
    with open_store(folder) as store:
        Chat(store).add_exchange("secret", "secret too")
        assert folder.stat().st_mode & 0o777 == 0o700
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("halt.db*")}
    assert modes == dict.fromkeys(["halt.db", "halt.db-wal", "halt.db-shm"], 0o600)


def test_rejected_values_are_unstorable_and_no_outage(store: Store) -> None:
    """Values that the database rejects raise Unstorable, so they are not tried again."""
    with pytest.raises(Unstorable) as error_info, store.database.writing() as connection:
        connection.execute(text("INSERT INTO conversations (id) VALUES ('incomplete')"))
    assert error_info.value.status == 400
    assert error_info.value.message == "Saving failed: the database rejects these values."


def test_unencodable_value_is_unstorable_and_no_outage(store: Store) -> None:
    """A value that cannot be encoded raises Unstorable, and the store goes on."""
    with pytest.raises(Unstorable), store.database.writing() as connection:
        connection.execute(update(messages).values(steps=("\ud800",)))
    assert store.conversations.summaries("anna").items == ()
