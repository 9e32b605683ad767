"""Queries of the store with a deadline, for callers that must not wait for it: a Stop, a start.

One thread makes them, one after the other. While a query takes longer than LOOKUP_WAIT, further
callers get no answer at once: a store that does not answer holds up one thread, and no caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from halt.clock import now
from halt.core.serial import Serial
from halt.errors import StoreUnavailable

LOOKUP_WAIT = 0.05  # seconds that a caller waits for the answer

T = TypeVar("T")


class Lookups:
    """See the module. Threads may share one."""

    def __init__(self) -> None:
        self._thread = Serial("halt-lookup")
        self._starting = threading.Lock()  # one caller at a time starts the thread
        self._asked_at: float | None = None  # when the query under way was begun

    def start(self) -> None:
        """Start the thread, if it does not run. Raises RuntimeError where there is none."""
        if not self._thread.is_running:
            with self._starting:
                self._thread.start()

    def ask(self, ask: Callable[[], T]) -> T | None:
        """What `ask` returns. None: the store does not answer, or not within LOOKUP_WAIT."""
        asked_at = self._asked_at
        if asked_at is not None and now() - asked_at > LOOKUP_WAIT:
            return None
        answer: Future[T | None] = Future()
        try:
            self.start()
            self._thread.put(partial(self._ask, ask, answer))
            return answer.result(LOOKUP_WAIT)
        except (RuntimeError, TimeoutError):  # the system has no more threads
            answer.cancel()
            return None

    def close(self, timeout: float) -> None:
        """End the thread; wait so many seconds for it."""
        self._thread.close(timeout)

    def _ask(self, ask: Callable[[], T], answer: Future[T | None]) -> None:
        if not answer.set_running_or_notify_cancel():  # its caller waits no more
            return
        found = None
        self._asked_at = now()
        try:
            found = ask()
        except StoreUnavailable:
            pass
        finally:  # what else went wrong is logged by the thread
            self._asked_at = None
            answer.set_result(found)
