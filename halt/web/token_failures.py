"""Counts wrong access tokens by the client's address. Active where HALT_TOKEN is set.

An address may send WRONG_MAX wrong tokens in WINDOW seconds, over all routes. Further wrong tokens
are refused with 429 and Retry-After. The right token is accepted at any time, because many clients
may share an address (a proxy, an office). A refusal does not block a thread.

Each worker counts for itself, in memory: a Stop has a token too and must not wait for a file.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict

from halt.clock import now

WRONG_MAX = 20  # wrong tokens of one address in a window
WINDOW = 60.0  # seconds from the first wrong token
ADDRESSES_MAX = 4096  # addresses in the table; the least recently used is dropped first
ADDRESS_MAX = 64  # characters of an address that are used; a proxy may send any text

logger = logging.getLogger(__name__)


class TokenFailures:
    """The wrong tokens of one worker's clients. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the table
        #: By address: the end of its window (monotonic) and its number of wrong tokens.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, address: str) -> int:
        """Count a wrong token. Return 0 within the limit, else the seconds until the window ends.

        The first token over the limit of a window is logged.
        """
        address = ascii(address[:ADDRESS_MAX])[1:-1]
        at = now()
        with self._lock:
            ends, wrong = self._windows.pop(address, (at, 0))
            ends, wrong = (ends, wrong + 1) if ends > at else (at + WINDOW, 1)
            self._windows[address] = ends, wrong  # the most recently used
            if len(self._windows) > ADDRESSES_MAX:
                self._windows.popitem(last=False)
        if wrong == WRONG_MAX + 1:
            logger.warning(
                "%s: more than %d wrong access tokens in %d s; further ones are refused with 429",
                address or "a client without an address",
                WRONG_MAX,
                WINDOW,
            )
        return math.ceil(ends - at) if wrong > WRONG_MAX else 0


def too_many_message(wait: int) -> str:
    """The message of a refusal; `wait` in seconds."""
    return (
        "Too many wrong access tokens came from this address. "
        f"Use the right one, or try again in {wait} s."
    )
