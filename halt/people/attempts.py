"""Limits of wrong passwords, before any password is compared.

Wrong passwords are counted by address and by name. An attempt over the limit of its address does
not count for the name, so that one address alone cannot use up a name's limit: the right person can
sign in from elsewhere. A browser that has signed in to the account before has a limit of its own in
place of both, which other clients cannot use up.

All workers of a data folder share the counts, which survive a restart. An attempt that cannot be
counted (full disk, broken file) is refused.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from limits import RateLimitItem, parse

from halt.errors import HaltError, TooManyRequests
from halt.store.rate_counters import RateCounters

BY_ADDRESS = parse("10 per 5 minutes")
BY_NAME = parse("50 per 15 minutes")
BY_BROWSER = parse("10 per 5 minutes")
ONCE = parse("1 per 15 minutes")  # lines in the log for one window, which is shorter
ADDRESS_MAX = 64  # characters of an address that are used; a proxy may send any text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where an attempt comes from."""

    address: str
    browser: str = ""  # its random ID, "" where it has none yet
    known_to: frozenset[str] = frozenset()  # IDs of the people who have signed in with it


class WrongPassword(HaltError):
    """The name and the password belong to no account."""

    code = "wrong_password"
    status = 401


class NotCounted(HaltError):
    """Attempts cannot be counted now, so none is made."""

    code = "store_unavailable"
    status = 503
    retryable = True


class Attempts:
    """The counts of one application. Threads may share it."""

    def __init__(self, counters: RateCounters) -> None:
        self._counters = counters

    @contextlib.contextmanager
    def counted(self, name_key: str, person_id: str | None, origin: Origin) -> Iterator[None]:
        """Count an attempt to sign in unless the block finds that the password is right.

        It is counted before the block, so that of many at once none is too many, and taken back if
        the block does not raise WrongPassword. Raises TooManyRequests, NotCounted before the block.
        """
        windows = self._windows(name_key, person_id, origin)
        limits = {key: limit for key, (limit, _) in windows.items()}
        try:
            full = self._counters.count(limits, 1, hit=True)
        except (sqlite3.Error, OSError) as exc:
            logger.error("every sign-in is refused, because attempts cannot be counted: %s", exc)
            raise NotCounted(
                "Attempts to sign in cannot be counted now. Try again.", retry_after=2
            ) from None
        if full:
            for key, ends in full.items():
                self._log_full(f"{key}/{ends:.0f}", *windows[key])
            raise _too_many(full)
        try:
            yield
        except WrongPassword:
            logger.info("a wrong name or password from %s", ascii(origin.address[:ADDRESS_MAX]))
            raise
        except BaseException:
            self._take_back(limits)
            raise
        self._take_back(limits)

    def _windows(
        self, name_key: str, person_id: str | None, origin: Origin
    ) -> dict[str, tuple[RateLimitItem, str]]:
        """The windows that count an attempt: by key the limit, and for the log what is limited.

        A name that no account has is not logged: it may be a password in the wrong field.
        """
        known = "the name " + ("of no account" if person_id is None else ascii(name_key))
        if origin.browser and person_id in origin.known_to:
            key = BY_BROWSER.key_for("sign-in-browser", str(person_id), origin.browser)
            return {key: (BY_BROWSER, f"{known} in a browser that has signed in with it before")}
        name = blake2b(name_key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        address = ascii(origin.address[:ADDRESS_MAX])[1:-1]
        return {
            BY_ADDRESS.key_for("sign-in-address", address): (
                BY_ADDRESS,
                address or "a client without an address",
            ),
            BY_NAME.key_for("sign-in-name", name): (BY_NAME, known),
        }

    def _log_full(self, window: str, limit: RateLimitItem, limited: str) -> None:
        """Log that a window is full, once for all workers."""
        with contextlib.suppress(sqlite3.Error, OSError):
            if self._counters.count({f"logged/{window}": ONCE}, 1, hit=True):
                return
        logger.warning(
            "%s: more than %d wrong passwords in %d s; further ones are refused with 429",
            limited,
            limit.amount,
            limit.get_expiry(),
        )

    def _take_back(self, limits: dict[str, RateLimitItem]) -> None:
        try:
            self._counters.take_back(limits)
        except (sqlite3.Error, OSError) as exc:
            logger.error("an attempt to sign in counts as a wrong one: %s", exc)


def _too_many(full: dict[str, float]) -> TooManyRequests:
    """The refusal until the full windows have ended."""
    wait = max(1, math.ceil(max(full.values()) - time.time()))
    span = f"{wait} s" if wait < 120 else f"{math.ceil(wait / 60)} minutes"
    return TooManyRequests(f"Too many wrong passwords. Try again in {span}.", retry_after=wait)
