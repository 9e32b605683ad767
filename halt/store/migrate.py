"""Opens the database with its tables up to date.

`open_database` makes the tables, or brings those of an earlier Halt up to date, one process at a
time; what it can't use it leaves as it is and says so (ConfigError). A `database` does so when it
is first used, after a look whether another process has.

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
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from halt.config.data_dir import can_log_ahead, make_folder, make_private, open_private
from halt.config.settings import ConfigError
from halt.store.database import Database, make_engine
from halt.store.faults import NO_LOCKS, NO_SHARED_MEMORY, reason
from halt.store.tables import REVISION

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x48616C74  # PostgreSQL's lock of those who migrate: a number of our own
LOCAL_DISK = "Set HALT_DATA to a folder of a local disk, or DATABASE_URL."

logger = logging.getLogger(__name__)


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
