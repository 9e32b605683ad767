"""Stopped answers that are read on for the sake of the provider's own count of tokens.

With HALT_EXACT_USAGE a Stop ends the log at once, as ever, but leaves the model writing: most
providers count only at the end of an answer. What comes is thrown away. No place of a stream's is
held; there are at most as many such readers as places, and beyond that a Stop closes the connection
as it does without this setting. The limits of a run hold, and a shutdown ends them all at once.
"""

from __future__ import annotations

import threading
from typing import Protocol

from halt.core.connection import Line
from halt.core.limits import Limits


class Reading(Protocol):
    """A stopped run whose upstream is read on."""

    line: Line


class Unheard:
    """The runs of one process that are read on."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_streams if limits.exact_usage else 0
        self._changed = threading.Condition()  # protects the two below
        self._runs: set[Reading] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, run: Reading) -> bool:
        """Take a place for a run that is about to be stopped. False: interrupt it instead.

        Also where another Stop, at the same time, has taken it.
        """
        with self._changed:
            if self._closed or run in self._runs or len(self._runs) >= self._most:
                return False
            self._runs.add(run)
            return True

    def give_back(self, run: Reading) -> None:
        """The run is not, or no longer, read on."""
        with self._changed:
            self._runs.discard(run)
            self._changed.notify_all()

    def close(self, timeout: float = 0.0) -> None:
        """Interrupt all, take no more, and wait so many seconds for the last. May be repeated."""
        with self._changed:
            self._closed = True
            runs = list(self._runs)
        for run in runs:
            run.line.interrupt()
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, timeout)
