"""How many streams a client may start in a time: HALT_RATE_SESSION and HALT_RATE_ADDRESS.

Only starts are counted, by whichever surface they come. Whoever has started enough can still stop,
read on and look; so every limit here leaves Stop alone.

A limit counts in windows that begin with a client's first start, in all workers together. What is
counted is let go of when its window is over: the file holds the clients of one window at most. What
cannot be counted, because the disk is full or the file is broken, is let through and logged.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Iterable

from limits import RateLimitItem, parse_many

from halt.config.settings import Config
from halt.errors import RequestError, TooManyRequests
from halt.web.client_address import address
from halt.web.rate_counters import Counts
from halt.web.sessions import owner

logger = logging.getLogger(__name__)


class Rates:
    """The limits of one application, and what has been counted."""

    def __init__(self, settings: Config) -> None:
        self._of_session = _parsed(settings.rate_session)
        self._of_address = _parsed(settings.rate_address)
        self.counts = Counts(settings.data_folder / "rates.db")

    def count(self, starts: int, *, hit: bool = True) -> None:
        """Count so many starts, all or none; without `hit` only look whether they are allowed.

        Raises TooManyRequests, RequestError.
        """
        limits = {limit.key_for("address", address()): limit for limit in self._of_address}
        session = owner()
        if session is not None:
            limits |= {limit.key_for("session", session): limit for limit in self._of_session}
        most = min((limit.amount for limit in limits.values()), default=starts)
        if starts > most:
            raise RequestError(f"At most {most} answers can be asked for at once.", field="model")
        try:
            full = self.counts.count(limits, starts, hit=hit)
        except (sqlite3.Error, OSError) as exc:
            logger.error("starts cannot be counted: %s", exc)
            return
        if full:
            wait = max(1, math.ceil(max(full.values()) - time.time()))
            limit = str(limits[next(iter(full))]).replace(" 1 ", " ", 1)
            raise TooManyRequests(
                f"Too many answers were asked for: {limit} are allowed. Try again in {wait} s.",
                retry_after=wait,
            )


def _parsed(rates: str) -> Iterable[RateLimitItem]:
    return frozenset(parse_many(rates)) if rates else ()
