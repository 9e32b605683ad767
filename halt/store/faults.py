"""Turns errors of the database into StoreUnavailable and Unstorable, with reasons for users."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from halt.config.settings import ConfigError
from halt.errors import StoreUnavailable, Unstorable
from halt.store.admission import TOO_BUSY

logger = logging.getLogger(__name__)

NO_LOCKS = "the file system cannot lock files as SQLite needs it"
NO_SHARED_MEMORY = "the file system cannot share memory as SQLite's write-ahead log needs it"

#: Reasons by SQLite's extended result code, or by its low byte (the primary code).
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
    sqlite3.SQLITE_PERM: "Halt has no permission for the database file",
    sqlite3.SQLITE_AUTH: "Halt has no permission for the database file",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the database is damaged",
}

#: Reasons by the start of PostgreSQL's SQLSTATE.
POSTGRES_REASONS = {
    "55P03": "the database is locked by another program",
    "57014": "the database took too long",
    "40": "another transaction was in conflict",
    "25006": "the database is read-only",
    "42501": "the database user lacks a permission",
    "53100": "the database's disk is full",
    "53300": "the database has too many connections",
    "53": "the database is out of resources",
    "28": "the database refuses the user name or password",
    "3D": "there is no such database",
    "57P": "the database is shutting down or starting",
    "XX": "the database is damaged",
}


#: The beginnings of messages, by what failed: a call that reads, or one that writes.
_FAILED = {"read": "Reading from the database failed", "saved": "Saving failed"}


def unavailable(done: str, why: str) -> StoreUnavailable:
    """The error for a failed call. `done` is "read" or "saved", `why` the reason."""
    return StoreUnavailable(f"{_FAILED[done]}: {why}. Try again later.", why)


@contextlib.contextmanager
def faults(done: str) -> Iterator[None]:
    """Raise StoreUnavailable or Unstorable in place of SQLAlchemy's errors and of ConfigError."""
    try:
        yield
    except ConfigError as fault:
        logger.error("%s", fault)
        raise unavailable(done, "the database cannot be opened") from fault
    except SQLAlchemyError as fault:
        why = reason(fault)
        # The engine hides the statement's values, but the server's message may contain some of
        # them. So only the code is logged.
        origin = getattr(fault, "orig", None) or fault
        code = getattr(origin, "sqlite_errorname", type(origin).__name__)
        logger.debug("The store failed: %s (%s)", why, code)
        if _is_of_values(fault):
            raise Unstorable(f"{_FAILED[done]}: {why}.") from fault
        raise unavailable(done, why) from fault


def _is_of_values(fault: SQLAlchemyError) -> bool:
    """Whether the values are the cause: they were rejected, or could not be converted."""
    is_unsent = isinstance(fault, StatementError) and not isinstance(fault, DBAPIError)
    return is_unsent or isinstance(fault, DataError | IntegrityError)


def reason(fault: SQLAlchemyError) -> str:
    """The reason of a failure for a user, without SQL, secrets or texts of users."""
    if isinstance(fault, PoolTimeout):
        return TOO_BUSY
    if _is_of_values(fault):
        return "the database rejects these values"
    origin = fault.orig if isinstance(fault, DBAPIError) else None
    if isinstance(origin, sqlite3.Error):
        code = getattr(origin, "sqlite_errorcode", None) or 0
        default_reason = SQLITE_REASONS.get(code & 0xFF, "the database has failed")
        return SQLITE_REASONS.get(code, default_reason)
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
