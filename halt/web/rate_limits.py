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

from flask import Flask
from flask_limiter import Limiter
from limits import RateLimitItem, parse_many

from halt.config.settings import Config
from halt.errors import RequestError, TooManyRequests
from halt.web.client_address import address
from halt.web.rate_counters import Counts, uri
from halt.web.sessions import owner

logger = logging.getLogger(__name__)


class Rates:
    """The limits of one application, and what has been counted."""

    def __init__(self, app: Flask, settings: Config) -> None:
        self._of_session = _parsed(settings.rate_session)
        self._of_address = _parsed(settings.rate_address)
        where = uri(settings.data_folder / "rates.db")
        limiter = Limiter(address, app=app, storage_uri=where, strategy="fixed-window")
        self._counter = limiter.limiter
        assert isinstance(limiter.storage, Counts)  # noqa: S101
        self._counts = limiter.storage

    def count(self, starts: int, *, hit: bool = True) -> None:
        """Count so many starts, all or none; without `hit` only look whether they are allowed.

        Raises TooManyRequests, RequestError.
        """
        limits = [(limit, "address", address()) for limit in self._of_address]
        session = owner()
        if session is not None:
            limits += [(limit, "session", session) for limit in self._of_session]
        most = min((limit.amount for limit, _, _ in limits), default=starts)
        if starts > most:
            raise RequestError(f"At most {most} answers can be asked for at once.", field="model")
        try:
            with self._counts.together():  # nobody starts between another's test and its count
                full = [each for each in limits if not self._counter.test(*each, cost=starts)]
                if not full:
                    for each in limits if hit else ():
                        self._counter.hit(*each, cost=starts)
                    return
                over = max(self._counter.get_window_stats(*each).reset_time for each in full)
        except (sqlite3.Error, OSError) as exc:
            logger.error("starts cannot be counted: %s", exc)
            return
        wait = max(1, math.ceil(over - time.time()))
        limit = str(full[0][0]).replace(" 1 ", " ", 1)
        raise TooManyRequests(
            f"Too many answers were asked for: {limit} are allowed. Try again in {wait} s.",
            retry_after=wait,
        )


def _parsed(rates: str) -> Iterable[RateLimitItem]:
    return frozenset(parse_many(rates)) if rates else ()


def rates_of(app: Flask, settings: Config) -> Rates | None:
    """The limits of an application, put into it; None: there are none."""
    return Rates(app, settings) if settings.rate_session or settings.rate_address else None
