"""Connections to the database: SQLite in the data folder, or PostgreSQL; with their limits.

`reading` and `writing` yield a connection within a transaction. Every failure of the database is
raised as StoreUnavailable, after about BUSY_SECONDS if another program holds a lock. Values that
the database rejects raise Unstorable.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from halt.config.settings import ConfigError
from halt.store.admission import NO_ANSWER, Admission, Refused
from halt.store.faults import faults, unavailable

BUSY_SECONDS = 2  # limit of the wait for a lock, for a free connection, and for connecting
STATEMENT_SECONDS = 30  # limit of one PostgreSQL statement, except in migrations
# Limits of concurrent calls. SQLite admits one writer. The others wait in Halt's own queue in their
# order, because SQLite's lock is polled with growing pauses and fails after BUSY_SECONDS.
SQLITE_READERS, SQLITE_WRITERS = 31, 1
POSTGRES_READERS, POSTGRES_WRITERS = 6, 6  # one of the writers is reserved for StoreWriter


class Database:
    """Gives each transaction a connection from a pool that all threads share."""

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[], None] = lambda: None,
        file: Path | None = None,
    ) -> None:
        """`prepare` is called before the first transaction; it may raise ConfigError.

        `file` is the file of SQLite, which exists after that call.
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
        # All statements of a reading transaction see the same state, as in SQLite.
        self._reading = (
            engine if self.sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        )

    @property
    def sqlite(self) -> bool:
        """Whether the database is SQLite rather than PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction. The calling thread must have no other transaction open.

        While the database does not answer, a few calls wait for it and further calls are refused at
        once. Raises StoreUnavailable, Unstorable.
        """
        with self._call(self._readers, "read") as progress, self._reading.begin() as connection:
            if self.sqlite:  # this statement takes the shared lock of a reader
                execute(connection, "PRAGMA schema_version", ())
            progress()
            yield connection

    @property
    def file_state(self) -> tuple[int, ...]:
        """Sizes and times of SQLite's files, which a commit changes; empty for other databases."""
        if self._file is None:
            return ()
        state: list[int] = []
        for path in (self._file, self._file.with_name(f"{self._file.name}-wal")):
            with contextlib.suppress(OSError):  # not there yet
                status = path.stat()
                state += (status.st_ino, status.st_size, status.st_mtime_ns)
        return tuple(state)

    @contextlib.contextmanager
    def writing(self, *, urgent: bool = False) -> Iterator[Connection]:
        """A transaction that is committed, or rolled back after any exception.

        The rules of `reading` hold. An `urgent` call goes before the others in the queue. Raises
        StoreUnavailable, Unstorable.
        """
        call = self._call(self._writers, "saved", urgent)
        with call as progress, self._writing.begin() as connection:
            if self.sqlite:  # it holds the lock; on PostgreSQL a statement may still wait for one
                progress()
            yield connection

    @contextlib.contextmanager
    def _call(
        self, admission: Admission, done: str, urgent: bool = False
    ) -> Iterator[Callable[[], None]]:
        """An admitted call to the prepared database. Raises StoreUnavailable, Unstorable."""
        try:
            with admission.call(urgent=urgent) as progress, faults(done):
                self._ensure_ready(done)
                yield progress
        except Refused as fault:
            raise unavailable(done, str(fault)) from None

    def _ensure_ready(self, done: str) -> None:
        """Prepare the database once and check its file. Raises ConfigError, StoreUnavailable."""
        if self._prepare is not None:
            if not self._preparing.acquire(timeout=BUSY_SECONDS):
                raise unavailable(done, NO_ANSWER)
            try:
                if self._prepare is not None:
                    self._prepare()
                    self._inode = _inode(self._file)
                    self._prepare = None
            finally:
                self._preparing.release()
        # Open connections keep using a deleted file, and everything they write to it is lost.
        if _inode(self._file) != self._inode:
            raise unavailable(done, "the database file has been removed")

    def close(self) -> None:
        """Close idle connections; those in use are closed when they return to the pool."""
        with contextlib.suppress(SQLAlchemyError):
            self.engine.dispose()


def upsert(connection: Connection, table: Table) -> Any:
    """An insert statement that supports `on_conflict_do_nothing` and the like."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def execute(
    connection: Connection, statement: str, values: tuple[object, ...] | list[tuple[object, ...]]
) -> Any:
    """Execute plain SQL with a cursor of the driver, and return the cursor.

    `?` is the placeholder for a value. With a list of tuples the statement runs once for each.
    Raises SQLAlchemyError.
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
    """The inode number, which differs for a file put in its place; None if there is no file."""
    with contextlib.suppress(OSError):
        return None if file is None else file.stat().st_ino
    return None


def make_engine(folder: Path, url: str) -> Engine:
    """The engine for the SQLite file in `folder`, or for the PostgreSQL database at `url`.

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
    url_options = address.query.get("options", "")
    if not isinstance(url_options, str):
        url_options = " ".join(url_options)
    options = f"{url_options} {limits}".strip()
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
    """Allow STATEMENT_SECONDS for the answers within a transaction.

    The pool's check before it and the statements after it keep the short limit. This limit on the
    client's side is needed because the server's own limits have no effect while its processes are
    frozen or its host is unreachable.
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
    # A transaction that reads and then writes fails at once if another one has written in between.
    # A writing transaction therefore takes its lock at the beginning.
    writes = connection.get_execution_options().get("write")
    execute(connection, "BEGIN IMMEDIATE" if writes else "BEGIN", ())
