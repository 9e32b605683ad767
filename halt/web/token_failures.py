"""Wrong access tokens, counted by the client's address, always where HALT_TOKEN is set.

An address has WRONG_MAX wrong tokens in WINDOW seconds, by whichever way they come; further wrong
ones are refused with 429 and Retry-After. The right token is taken at any time: an address may be
that of a proxy, or of an office. No error_response holds a thread.

Each worker counts by itself, in memory: a Stop brings the token too, and waits for no file.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict

from halt.clock import now

WRONG_MAX = 20  # wrong tokens of one address in a window
WINDOW = 60.0  # seconds, from the first of them
ADDRESSES_MAX = 4096  # addresses that are remembered; the least recently used go first
ADDRESS_MAX = 64  # characters of an address; a proxy may pass on anything

logger = logging.getLogger(__name__)


class TokenFailures:
    """The wrong tokens of one worker's clients. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the table
        #: When an address's window ends, and its wrong tokens in it.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, address: str) -> int:
        """Count one more wrong token; seconds until the next is answered as usual, 0: this one is.

        The first one too many of a window is logged.
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
    """The message of the error_response."""
    return (
        "Too many wrong access tokens came from this address. "
        f"Use the right one, or try again in {wait} s."
    )
