"""Limits of the starts of streams per time: HALT_RATE_SESSION and HALT_RATE_ADDRESS.

Only starts are counted, on every route. A client over its limit can still stop and read streams, so
no limit here affects Stop.

A start that cannot be counted (full disk, broken file) is allowed, and the error is logged.
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
from halt.store.rate_counters import counters_in
from halt.web.requests import client_address
from halt.web.sessions import browser_id

logger = logging.getLogger(__name__)


class RateLimits:
    """The limits of one application and their counters. Threads may share it."""

    def __init__(self, settings: Config) -> None:
        self._of_session = _parsed(settings.rate_session)
        self._of_address = _parsed(settings.rate_address)
        self.counters = counters_in(settings.data_folder)

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
