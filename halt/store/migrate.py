"""Opens the database and migrates its tables to the current version.

`open_database` creates the tables, or migrates those of an earlier Halt, in one process at a time.
It leaves a database that it cannot use unchanged and raises ConfigError. `database` does the same
when the database is first used, unless another process has done so before. `existing_database`
changes nothing.

For developers: `alembic` finds the migrations through pyproject.toml and uses the database of the
settings. `HALT_DATA=/tmp/scratch alembic revision -m "What changes"` creates a new migration in
halt/store/migrations/versions; `alembic current` and `alembic history` show a database's version.
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

from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from halt.config.data_dir import create_private_file, make_folder, open_private, supports_wal
from halt.config.settings import ConfigError
from halt.store.database import Database, make_engine
from halt.store.faults import NO_LOCKS, NO_SHARED_MEMORY, faults, reason
from halt.store.tables import REVISION

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x48616C74  # of migrations on PostgreSQL: "Halt" in ASCII
LOCAL_DISK = "Set HALT_DATA to a folder of a local disk, or DATABASE_URL."

logger = logging.getLogger(__name__)


def database(folder: Path, url: str = "") -> Database:
    """The database, which is opened and migrated when it is first used. Raises ConfigError."""
    engine = make_engine(folder, url)

    def prepare() -> None:
        if (url or (folder / "halt.db").exists()) and _is_current(engine):
            return
        _open(engine, folder, url)

    return Database(engine, prepare, None if url else folder / "halt.db")


def open_database(folder: Path, url: str = "") -> Database:
    """Open the database and migrate its tables now; create `folder` if it does not exist.

    Raises ConfigError with a message of one line; the database is then unchanged.
    """
    engine = make_engine(folder, url)
    _open(engine, folder, url)
    return Database(engine, file=None if url else folder / "halt.db")


def has_database(folder: Path, url: str = "") -> bool:
    """Whether there may be a database; False also without the right to look."""
    return bool(url) or os.path.exists(folder / "halt.db")


def existing_database(folder: Path, url: str = "") -> Database | None:
    """The database as it is; None if there is none, or if it has the tables of another version.

    Creates and changes nothing. Raises ConfigError, StoreUnavailable.
    """
    if not has_database(folder, url):
        return None
    engine = make_engine(folder, url)
    with faults("read"), engine.connect() as connection:
        is_current = inspect(connection).has_table("alembic_version") and _is_current(engine)
    if is_current:
        return Database(engine, file=None if url else folder / "halt.db")
    engine.dispose()
    return None


def _is_current(engine: Engine) -> bool:
    """Whether the tables are up to date; usually the server's first process has migrated them.

    They are not if a reload has started workers of a newer version than that process.
    """
    try:
        with engine.connect() as connection:
            query = text("SELECT version_num FROM alembic_version")
            revision: str | None = connection.scalar(query)
            return revision == REVISION
    except SQLAlchemyError:
        return False


def _open(engine: Engine, folder: Path, url: str) -> None:
    """Migrate the tables to the current version. Raises ConfigError."""
    try:
        make_folder(folder)
        lock_path = folder / "migrate.lock"
        lock = os.fdopen(open_private(lock_path, os.O_WRONLY | os.O_APPEND), "ab")
        if not url:
            create_private_file(folder / "halt.db")
    except OSError as fault:
        raise ConfigError(
            f"HALT_DATA: the folder {str(folder)!r} cannot be written to: {fault.strerror}."
        ) from None
    subject = "DATABASE_URL: the database" if url else f"HALT_DATA: {str(folder / 'halt.db')!r}"
    with lock:
        _lock_out_others(lock, lock_path)
        try:
            _migrate(engine, folder, subject)
        except SQLAlchemyError as fault:
            why = reason(fault)
            remedy = f" {LOCAL_DISK}" if why in {NO_LOCKS, NO_SHARED_MEMORY} else ""
            raise ConfigError(
                f"{subject} cannot be used: {why}. Nothing was changed.{remedy}"
            ) from None
        finally:
            engine.dispose()  # no connection stays open, and none is shared after a fork


def _lock_out_others(lock: IO[bytes], path: Path) -> None:
    """Wait until no other process migrates, and lock out others.

    If the file system has no such lock, the database's own lock has to suffice: of two migrations
    at the same time SQLite refuses one, and PostgreSQL makes one wait.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as exc:
        logger.warning("%s cannot be locked: %s", path, exc.strerror)


@contextlib.contextmanager
def _raw(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """A connection without a transaction; errors of the driver are raised as SQLAlchemy's."""
    with contextlib.closing(engine.raw_connection()) as raw:
        try:
            yield raw
        except sqlite3.Error as fault:
            raise DBAPIError.instance(None, None, fault, sqlite3.Error) from fault


def _enable_wal(engine: Engine, folder: Path, subject: str) -> None:
    """Switch SQLite to a write-ahead log, so that readers and writers do not wait for each other.

    That needs memory shared between processes, which some network file systems lack. SQLite then
    keeps its rollback journal, which is as safe but slower. A separate file is tried first, because
    a database that was switched and then cannot be opened cannot be switched back.
    """
    if engine.dialect.name != "sqlite":
        return
    with _raw(engine) as raw:
        cursor = raw.cursor()
        (mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            return
        if supports_wal(folder / "wal-probe.db"):
            cursor.execute("PRAGMA journal_mode=WAL")
            return
    logger.warning(
        "%s: %s, so readers and writers wait for each other. %s",
        subject,
        NO_SHARED_MEMORY,
        LOCAL_DISK,
    )


def _migrate(engine: Engine, folder: Path, subject: str) -> None:
    if _is_current(engine):
        _enable_wal(engine, folder, subject)
        return
    # Imported here, because they take 0.2 s to load and most starts migrate nothing.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config as AlembicConfig  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    alembic = AlembicConfig()
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(alembic)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    known_revisions = {migration.revision for migration in script.walk_revisions()}
    if current is not None and current not in known_revisions:
        raise ConfigError(
            f"{subject} was made by a newer Halt (its version is {current!r}). Nothing was "
            "changed: start the newer Halt, or set another HALT_DATA or DATABASE_URL."
        )
    _enable_wal(engine, folder, subject)
    if current is not None:
        logger.info(
            "%s is being changed to the tables of this version, which takes up to half a minute "
            "for each GB. If it is interrupted, the next start does it.",
            subject,
        )
    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name != "sqlite":
            connection.connection.dbapi_connection.answer_timeout = None  # type: ignore[union-attr]
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")
