"""Where limits on starts count: one small SQLite file that all workers share.

What is counted outlives a reload, and a transaction makes test and count one step. It is written
without waiting for the disk: a machine that loses its power forgets who had started what.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from limits.storage import Storage

from halt.config.data_dir import can_log_ahead, make_folder, make_private

SCHEME = "halt-counts"
WAIT = 2.0  # seconds for another process that counts at the same moment
SCHEMA = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS windows (key TEXT PRIMARY KEY, count INTEGER, ends REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS windows_ends ON windows (ends);
"""


def uri(path: Path) -> str:
    """How Flask-Limiter is told of the file."""
    return f"{SCHEME}://{quote(os.fspath(path.absolute()))}"


class Counts(Storage):
    """The windows that are open, each with its count. A window begins with its first count."""

    STORAGE_SCHEME = [SCHEME]  # noqa: RUF012 - found by Flask-Limiter under this name

    def __init__(self, uri: str, *, wrap_exceptions: bool = False, **_: str) -> None:
        """Touches nothing: the file is opened by the process that counts, after its fork."""
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._path = Path(unquote(urlsplit(uri).path))
        self._lock = threading.RLock()  # protects the two below
        self._connection: sqlite3.Connection | None = None
        self._depth = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[sqlite3.Connection]:
        """What is done inside is one step for all processes. Raises sqlite3.Error, OSError."""
        with self._lock:
            database = self._connection = self._connection or self._opened()
            if not self._depth:
                database.execute("BEGIN IMMEDIATE")
                database.execute("DELETE FROM windows WHERE ends <= ?", (time.time(),))
            self._depth += 1
            try:
                yield database
            except BaseException:
                self._depth = 0
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            self._depth -= 1
            if not self._depth:
                database.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        make_folder(self._path.parent)
        is_new = not self._path.exists()
        make_private(self._path)
        database = sqlite3.connect(
            self._path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            if is_new and can_log_ahead(self._path.with_name(f"probe-{secrets.token_hex(8)}.db")):
                database.execute("PRAGMA journal_mode = WAL")
            database.executescript(SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _one(self, query: str, *values: Any) -> Any:
        """The first column of the only row, None where there is none."""
        with self.together() as database:
            row = database.execute(query, values).fetchone()
        return row[0] if row else None

    # --- for the limiter --------------------------------------------------------------------------

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return (sqlite3.Error, OSError)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count; the number that it comes to. A window that begins ends after `expiry` seconds."""
        query = (
            "INSERT INTO windows VALUES (?, ?, ?) ON CONFLICT (key) "
            "DO UPDATE SET count = count + excluded.count RETURNING count"
        )
        return int(self._one(query, key, amount, time.time() + expiry))

    def get(self, key: str) -> int:
        return int(self._one("SELECT count FROM windows WHERE key = ?", key) or 0)

    def get_expiry(self, key: str) -> float:
        return float(self._one("SELECT ends FROM windows WHERE key = ?", key) or time.time())

    def check(self) -> bool:
        with contextlib.suppress(sqlite3.Error, OSError), self.together():
            return True
        return False

    def reset(self) -> int | None:
        count = self.size
        with self.together() as database:
            database.execute("DELETE FROM windows")
        return count

    def clear(self, key: str) -> None:
        with self.together() as database:
            database.execute("DELETE FROM windows WHERE key = ?", (key,))

    @property
    def size(self) -> int:
        """Windows that are open."""
        return int(self._one("SELECT COUNT(*) FROM windows"))
