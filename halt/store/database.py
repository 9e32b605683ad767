"""The database: SQLite in the data folder, or PostgreSQL; its connections and their faults.

`open_database` makes the tables, or brings those of an earlier Halt up to date, one process at a
time; what it can't use it leaves as it is and says so (ConfigError). A `database` does so when it
is first used, after a look whether another process has. Then `reading` and `writing` give a
connection within a transaction, and each fault of the database becomes a StoreUnavailable, within
about BUSY_SECONDS where somebody else holds a lock; values that it does not take become Unstorable.

For developers: `alembic` finds the migrations by pyproject.toml and works on the database of the
settings. `HALT_DATA=/tmp/scratch alembic revision -m "What changes"` begins a new step in
halt/store/migrations/versions, `alembic current` and `alembic history` tell where a database is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from halt.config.data_dir import can_log_ahead, make_folder, make_private, open_private
from halt.config.settings import ConfigError
from halt.errors import StoreUnavailable, Unstorable
from halt.store.admission import NO_ANSWER, TOO_BUSY, Admission, Refused
from halt.store.tables import REVISION

BUSY_SECONDS = 2  # for a lock that somebody else holds, a free connection, a connection at all
STATEMENT_SECONDS = 30  # for one statement of PostgreSQL's, migrations apart
# Calls at a time. SQLite lets one writer in: the others wait in Halt's own queue, in their order,
# and not in SQLite's lock, which each polls with growing pauses and gives up after BUSY_SECONDS.
SQLITE_READERS, SQLITE_WRITERS = 31, 1
POSTGRES_READERS, POSTGRES_WRITERS = 6, 6  # one of the writers is the recorder alone
MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x48616C74  # PostgreSQL's lock of those who migrate: a number of our own

logger = logging.getLogger(__name__)

NO_LOCKS = "the file system cannot lock files as SQLite needs it"
NO_SHARED_MEMORY = "the file system cannot share memory as SQLite's write-ahead log needs it"
LOCAL_DISK = "Set HALT_DATA to a folder of a local disk, or DATABASE_URL."

#: Why SQLite refuses, by its extended result code, else by the low byte of that.
SQLITE_REASONS = {
    sqlite3.SQLITE_IOERR_LOCK: NO_LOCKS,
    sqlite3.SQLITE_IOERR_RDLOCK: NO_LOCKS,
    sqlite3.SQLITE_IOERR_UNLOCK: NO_LOCKS,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK: NO_LOCKS,
    sqlite3.SQLITE_PROTOCOL: NO_LOCKS,
    sqlite3.SQLITE_IOERR_SHMOPEN: NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMSIZE: NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMLOCK: NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMMAP: NO_SHARED_MEMORY,
    sqlite3.SQLITE_BUSY: "the database is locked by another program",
    sqlite3.SQLITE_LOCKED: "the database is locked by another program",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be written to or read from",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_PERM: "the database's file may not be used",
    sqlite3.SQLITE_AUTH: "the database's file may not be used",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the database is damaged",
}

#: Why PostgreSQL refuses, by the beginning of its SQLSTATE.
POSTGRES_REASONS = {
    "55P03": "the database is locked by another program",
    "57014": "the database took too long",
    "40": "the database was busy with something else",
    "25006": "the database is read-only",
    "42501": "the database's user may not do this",
    "53100": "the database's disk is full",
    "53300": "the database has too many connections",
    "53": "the database is out of resources",
    "28": "the database refuses the user name or password",
    "3D": "there is no such database",
    "57P": "the database is shutting down or starting",
    "XX": "the database is damaged",
}


class Database:
    """Connections, one for each transaction, from a pool that all threads share."""

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[], None] = lambda: None,
        file: Path | None = None,
    ) -> None:
        """`prepare` is called before the first transaction; it may raise ConfigError.

        `file` is SQLite's, which is there from then on.
        """
        self.engine = engine
        self._prepare: Callable[[], None] | None = prepare
        self._preparing = threading.Lock()  # protects `_prepare`
        if self.sqlite:
            self._readers = Admission(SQLITE_READERS, wait=BUSY_SECONDS)
            self._writers = Admission(SQLITE_WRITERS, wait=BUSY_SECONDS)
        else:
            self._readers = Admission(POSTGRES_READERS, wait=BUSY_SECONDS)
            self._writers = Admission(POSTGRES_WRITERS, reserved=1, wait=BUSY_SECONDS)
        self._file = file
        self._inode: int | None = None
        self._writing = engine.execution_options(write=True)
        # Whoever reads sees one state from its first statement to its last, as SQLite has it.
        self._reading = (
            engine if self.sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        )

    @property
    def sqlite(self) -> bool:
        """It is SQLite, not PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that changes nothing. Raises StoreUnavailable, Unstorable.

        While the database does not answer, a few calls wait for it and the others are refused at
        once. The calling thread must have no other transaction open.
        """
        with _admitted(self._readers, "read") as progress, _faults("read"):
            self._be_ready("read")
            with self._reading.begin() as connection:
                if self.sqlite:  # has the lock of readers from here on
                    execute(connection, "PRAGMA schema_version", ())
                progress()
                yield connection

    @contextlib.contextmanager
    def writing(self, *, urgent: bool = False) -> Iterator[Connection]:
        """A transaction: all of it or, after any exception, nothing.

        The same holds as of `reading`, and an `urgent` one goes before the others that wait. Raises
        StoreUnavailable, Unstorable.
        """
        with _admitted(self._writers, "saved", urgent) as progress, _faults("saved"):
            self._be_ready("saved")
            with self._writing.begin() as connection:
                if self.sqlite:  # has its lock; on PostgreSQL statements may have to wait for one
                    progress()
                yield connection

    def _be_ready(self, done: str) -> None:
        """Raises ConfigError, StoreUnavailable."""
        if self._prepare is not None:
            if not self._preparing.acquire(timeout=BUSY_SECONDS):
                raise _unavailable(done, NO_ANSWER)
            try:
                if self._prepare is not None:
                    self._prepare()
                    self._inode = _inode(self._file)
                    self._prepare = None
            finally:
                self._preparing.release()
        # Open connections go on with a file that was deleted, and what they write is lost.
        if _inode(self._file) != self._inode:
            raise _unavailable(done, "the database's file is not there any more")

    def close(self) -> None:
        """Close the connections that nobody uses; those in use close when they are given back."""
        with contextlib.suppress(SQLAlchemyError):
            self.engine.dispose()


def execute(
    connection: Connection, statement: str, values: tuple[object, ...] | list[tuple[object, ...]]
) -> Any:
    """Execute plain SQL, `?` standing for a value, with the driver's own cursor, which it returns.

    A list of values: once for each of its tuples. Raises SQLAlchemyError.
    """
    driver = connection.dialect.loaded_dbapi
    cursor = connection.connection.cursor()
    if connection.dialect.name != "sqlite":
        statement = statement.replace("?", "%s")
    try:
        if isinstance(values, list):
            cursor.executemany(statement, values)
        else:
            cursor.execute(statement, values)
    except driver.Error as fault:
        raise DBAPIError.instance(None, None, fault, driver.Error) from fault
    return cursor


def _inode(file: Path | None) -> int | None:
    """What tells a file from any other that comes in its place; None where there is none."""
    with contextlib.suppress(OSError):
        return None if file is None else file.stat().st_ino
    return None


def _unavailable(done: str, why: str) -> StoreUnavailable:
    return StoreUnavailable(f"This could not be {done}: {why}.", why)


@contextlib.contextmanager
def _admitted(
    admission: Admission, done: str, urgent: bool = False
) -> Iterator[Callable[[], None]]:
    """An admitted call. Raises StoreUnavailable."""
    with contextlib.ExitStack() as stack:
        try:
            progress = stack.enter_context(admission.call(urgent=urgent))
        except Refused as fault:
            raise _unavailable(done, str(fault)) from None
        yield progress


@contextlib.contextmanager
def _faults(done: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as fault:
        logger.error("%s", fault)
        raise _unavailable(done, "the database cannot be opened") from fault
    except SQLAlchemyError as fault:
        why = reason(fault)
        # The statement's values are hidden by the engine; the server's own message can hold some.
        origin = getattr(fault, "orig", None) or fault
        code = getattr(origin, "sqlite_errorname", type(origin).__name__)
        logger.debug("The store failed: %s (%s)", why, code)
        if isinstance(fault, DataError | IntegrityError):
            raise Unstorable(f"This could not be {done}: {why}.") from fault
        raise _unavailable(done, why) from fault


def reason(fault: SQLAlchemyError) -> str:
    """Why the database failed, in words for a user: no SQL, no secret, no text of anyone's."""
    if isinstance(fault, PoolTimeout):
        return TOO_BUSY
    if isinstance(fault, DataError | IntegrityError):
        return "the database does not take these values"
    origin = fault.orig if isinstance(fault, DBAPIError) else None
    if isinstance(origin, sqlite3.Error):
        code = getattr(origin, "sqlite_errorcode", None) or 0
        usual = SQLITE_REASONS.get(code & 0xFF, "the database has failed")
        return SQLITE_REASONS.get(code, usual)
    state: str | None = getattr(origin, "sqlstate", None)
    if state:
        for length in (5, 3, 2):
            if state[:length] in POSTGRES_REASONS:
                return POSTGRES_REASONS[state[:length]]
        return "the database has failed"
    if getattr(fault, "connection_invalidated", False) or (
        origin is not None and type(origin).__name__ in {"OperationalError", "ConnectionTimeout"}
    ):
        return "the database cannot be reached"
    return "the database has failed"


def make_engine(folder: Path, url: str) -> Engine:
    """The engine for `folder`'s SQLite file, or for the PostgreSQL that `url` names.

    Opens no connection. Raises ConfigError.
    """
    if not url:
        engine = create_engine(
            f"sqlite:///{folder / 'halt.db'}",
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=SQLITE_READERS + SQLITE_WRITERS - 8,
            pool_timeout=BUSY_SECONDS,
            hide_parameters=True,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    try:
        address = make_url(url)
        if address.drivername not in {"postgresql", "postgres"} or not address.database:
            raise ValueError
    except (SQLAlchemyError, ValueError):
        raise ConfigError(
            "DATABASE_URL is not the address of a PostgreSQL database: "
            "use postgresql://USER:PASSWORD@HOST[:PORT]/NAME."
        ) from None
    address = address.set(drivername="postgresql+psycopg")
    limits = f"-c lock_timeout={BUSY_SECONDS}s -c statement_timeout={STATEMENT_SECONDS}s"
    given = address.query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} {limits}".strip()
    try:
        engine = create_engine(
            address,
            pool_size=4,
            max_overflow=POSTGRES_READERS + POSTGRES_WRITERS - 4,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": BUSY_SECONDS,
                "tcp_user_timeout": 1000 * BUSY_SECONDS,
                "options": options,
                "application_name": "halt",
            },
        )
    except ImportError:
        raise ConfigError(
            "DATABASE_URL names PostgreSQL, and its driver is not installed: "
            'pip install "psycopg[binary]".'
        ) from None
    event.listen(engine, "do_connect", _postgres_connect)
    event.listen(engine, "begin", _postgres_begin)
    event.listen(engine, "checkin", _postgres_back)
    return engine


def _postgres_connect(_: Any, __: Any, arguments: Any, settings: Any) -> Any:
    from halt.store.postgres_timeout import TimeoutConnection  # noqa: PLC0415 - where psycopg is installed

    connection = TimeoutConnection.connect(*arguments, **settings)
    connection.answer_timeout = BUSY_SECONDS
    return connection


def _postgres_begin(connection: Connection) -> None:
    """From here on a statement may take its time. The look before, and what is sent after it, not.

    The server's own limits say nothing while its processes are frozen or its host is gone.
    """
    connection.connection.dbapi_connection.answer_timeout = STATEMENT_SECONDS + BUSY_SECONDS  # type: ignore[union-attr]


def _postgres_back(connection: Any, _: Any) -> None:
    if connection is not None:
        connection.answer_timeout = BUSY_SECONDS


def _sqlite_connected(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # `_sqlite_begin` begins the transactions
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON", "journal_size_limit=67108864"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads first and then writes would fail at once when another one has
    # written in between, so those that will write take their lock at the beginning.
    writes = connection.get_execution_options().get("write")
    execute(connection, "BEGIN IMMEDIATE" if writes else "BEGIN", ())


def database(folder: Path, url: str = "") -> Database:
    """The database, which is opened when it is first used; touches nothing. Raises ConfigError."""
    engine = make_engine(folder, url)

    def prepare() -> None:
        if (url or (folder / "halt.db").exists()) and _is_current(engine):
            return
        _open(engine, folder, url)

    return Database(engine, prepare, None if url else folder / "halt.db")


def open_database(folder: Path, url: str = "") -> Database:
    """Open the database, its tables up to date. `folder` is made where it is missing.

    Raises ConfigError, one line, where that can't be done; the database is then as it was before.
    """
    engine = make_engine(folder, url)
    _open(engine, folder, url)
    return Database(engine, file=None if url else folder / "halt.db")


def _is_current(engine: Engine) -> bool:
    """Whether another process has brought it up to date: the server's first one, before the fork.

    A program that is newer than its first process, after a reload, finds that it has not.
    """
    try:
        with engine.connect() as connection:
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found == REVISION
    except SQLAlchemyError:
        return False


def _open(engine: Engine, folder: Path, url: str) -> None:
    """Bring the tables up to date. Raises ConfigError."""
    try:
        make_folder(folder)
        lock_path = folder / "migrate.lock"
        lock = os.fdopen(open_private(lock_path, os.O_WRONLY | os.O_APPEND), "ab")
        if not url:
            make_private(folder / "halt.db")
    except OSError as fault:
        raise ConfigError(
            f"HALT_DATA: the folder {str(folder)!r} cannot be written to: {fault.strerror}."
        ) from None
    what = "DATABASE_URL: the database" if url else f"HALT_DATA: {str(folder / 'halt.db')!r}"
    with lock:
        _lock_out_others(lock, lock_path)
        try:
            _migrate(engine, folder, what)
        except SQLAlchemyError as fault:
            why = reason(fault)
            remedy = f" {LOCAL_DISK}" if why in {NO_LOCKS, NO_SHARED_MEMORY} else ""
            raise ConfigError(
                f"{what} cannot be used: {why}. Nothing was changed.{remedy}"
            ) from None
        finally:
            engine.dispose()  # until it is used, nothing is held open, nor shared by a fork


def _lock_out_others(lock: IO[bytes], path: Path) -> None:
    """Wait until no other process migrates.

    Where the file system has no such lock, the database's own must do: SQLite refuses one of two
    that migrate at once, PostgreSQL lets one wait.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as exc:
        logger.warning("%s cannot be locked: %s", path, exc.strerror)


@contextlib.contextmanager
def _raw(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """A connection outside any transaction; the driver's faults are raised as SQLAlchemy's."""
    with contextlib.closing(engine.raw_connection()) as raw:
        try:
            yield raw
        except sqlite3.Error as fault:
            raise DBAPIError.instance(None, None, fault, sqlite3.Error) from fault


def _log_ahead(engine: Engine, folder: Path, what: str) -> None:
    """Let SQLite write ahead, so that readers and writers need not wait for each other.

    That takes memory which processes share, and not every network share has it. Then SQLite keeps
    its usual journal: all is as safe, and slower. A file of its own is tried first, since one that
    was switched and cannot be opened afterwards cannot be switched back.
    """
    if engine.dialect.name != "sqlite":
        return
    with _raw(engine) as raw:
        cursor = raw.cursor()
        (mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            return
        if can_log_ahead(folder / "wal-probe.db"):
            cursor.execute("PRAGMA journal_mode=WAL")
            return
    logger.warning(
        "%s: %s, so readers and writers wait for each other. %s",
        what,
        NO_SHARED_MEMORY,
        LOCAL_DISK,
    )


def _migrate(engine: Engine, folder: Path, what: str) -> None:
    if _is_current(engine):
        _log_ahead(engine, folder, what)
        return
    # A start that migrates nothing does without these, which take 0.2 s to load.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config as AlembicConfig  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    alembic = AlembicConfig()
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(alembic)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    known = {step.revision for step in script.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigError(
            f"{what} was made by a newer Halt (its version is {current!r}). Nothing was changed: "
            "start that one, or choose another HALT_DATA or DATABASE_URL."
        )
    _log_ahead(engine, folder, what)
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name != "sqlite":
            connection.connection.dbapi_connection.answer_timeout = None  # type: ignore[union-attr]
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")
