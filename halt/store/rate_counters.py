"""Counts per time: of starts (`halt.web.rate_limits`), of wrong passwords (`halt.people.attempts`).

A limit counts in windows that begin with a client's first count. All workers count in one small
SQLite file: counts survive a restart, and one transaction checks and counts. Writes do not wait for
the disk, so a power failure loses the counts. A window is deleted when it ends, so the file holds
the clients of at most one window.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from limits import RateLimitItem

from halt.config.data_dir import create_private_file, make_folder, supports_wal

WAIT = 2.0  # seconds to wait for the file's lock, which another process may hold
SCHEMA = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS windows (key TEXT PRIMARY KEY, count INTEGER, ends REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS windows_ends ON windows (ends);
"""


def counters_in(data_folder: Path) -> RateCounters:
    """Counters in the file of this data folder."""
    return RateCounters(data_folder / "rates.db")


class RateCounters:
    """The open windows and their counts, in a SQLite file. A window begins with its first count."""

    def __init__(self, path: Path) -> None:
        """Opens no file: the worker opens it after its fork, at the first count."""
        self._path = path
        self._lock = threading.Lock()  # protects the connection; held while it is used
        self._connection: sqlite3.Connection | None = None

    def count(
        self, limits: Mapping[str, RateLimitItem], starts: int, *, hit: bool
    ) -> dict[str, float]:
        """Count starts in the windows of all these limits, or in none where one of them is full.

        `limits`: by the keys of their windows. With `hit=False` nothing is counted. Returns the
        keys of the full windows with their end times (seconds since 1970). Raises sqlite3.Error,
        OSError.
        """
        full: dict[str, float] = {}
        with self._lock:
            database = self._connection = self._connection or self._opened()
            with database:  # one transaction, atomic for all threads and processes
                database.execute("BEGIN IMMEDIATE")
                at = time.time()
                database.execute("DELETE FROM windows WHERE ends <= ?", (at,))
                for key, limit in limits.items():
                    query = "SELECT count, ends FROM windows WHERE key = ?"
                    count, ends = database.execute(query, (key,)).fetchone() or (0, at)
                    if count + starts > limit.amount:
                        full[key] = ends
                if hit and not full:
                    database.executemany(
                        "INSERT INTO windows VALUES (?, ?, ?) "
                        "ON CONFLICT (key) DO UPDATE SET count = count + excluded.count",
                        [(key, starts, at + limit.get_expiry()) for key, limit in limits.items()],
                    )
        return full

    def take_back(self, keys: Iterable[str]) -> None:
        """Take back one count of each window. Raises sqlite3.Error, OSError."""
        with self._lock:
            database = self._connection = self._connection or self._opened()
            with database:
                database.executemany(
                    "UPDATE windows SET count = count - 1 WHERE key = ? AND count > 0",
                    [(key,) for key in keys],
                )

    def _opened(self) -> sqlite3.Connection:
        make_folder(self._path.parent)
        is_new = not self._path.exists()
        create_private_file(self._path)
        database = sqlite3.connect(
            self._path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            if is_new and supports_wal(self._path.with_name(f"probe-{secrets.token_hex(8)}.db")):
                database.execute("PRAGMA journal_mode = WAL")
            database.executescript(SCHEMA)
        except BaseException:
            database.close()
            raise
        return database
