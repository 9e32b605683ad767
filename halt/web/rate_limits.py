"""Limits of the starts of streams per time: HALT_RATE_SESSION and HALT_RATE_ADDRESS.

Only starts are counted, on every route. A client over its limit can still stop and read streams, so
no limit here affects Stop.

A limit counts in windows that begin with a client's first start. All workers count in one small
SQLite file: counts survive a reload, and one transaction checks and counts. Writes do not wait for
the disk, so a power failure loses the counts. A window is deleted when it ends, so the file holds
the clients of at most one window. A start that cannot be counted (full disk, broken file) is
allowed, and the error is logged.
"""

from __future__ import annotations

import logging
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from limits import RateLimitItem, parse_many

from halt.config.data_dir import create_private_file, make_folder, supports_wal
from halt.config.settings import Config
from halt.errors import RequestError, TooManyRequests
from halt.web.requests import client_address
from halt.web.sessions import browser_id

WAIT = 2.0  # seconds to wait for the file's lock, which another process may hold
SCHEMA = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS windows (key TEXT PRIMARY KEY, count INTEGER, ends REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS windows_ends ON windows (ends);
"""

logger = logging.getLogger(__name__)


class RateLimits:
    """The limits of one application and their counters. Threads may share it."""

    def __init__(self, settings: Config) -> None:
        self._of_session = _parsed(settings.rate_session)
        self._of_address = _parsed(settings.rate_address)
        self.counters = RateCounters(settings.data_folder / "rates.db")

    def count(self, starts: int, *, hit: bool = True) -> None:
        """Count all of these starts or none; with `hit=False` only check whether they are allowed.

        Raises TooManyRequests, RequestError.
        """
        limits = {limit.key_for("address", client_address()): limit for limit in self._of_address}
        if browser := browser_id():
            limits |= {limit.key_for("session", browser): limit for limit in self._of_session}
        max_starts = min((limit.amount for limit in limits.values()), default=starts)
        if starts > max_starts:
            raise RequestError(
                f"At most {max_starts} answers can be started at once.", field="model"
            )
        try:
            full = self.counters.count(limits, starts, hit=hit)
        except (sqlite3.Error, OSError) as exc:
            logger.error("starts cannot be counted: %s", exc)
            return
        if full:
            wait = max(1, math.ceil(max(full.values()) - time.time()))
            limit = str(limits[next(iter(full))]).replace(" 1 ", " ", 1)
            raise TooManyRequests(
                f"Too many answers were started: {limit} are allowed. Try again in {wait} s.",
                retry_after=wait,
            )


def _parsed(rates: str) -> Iterable[RateLimitItem]:
    return frozenset(parse_many(rates)) if rates else ()


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
