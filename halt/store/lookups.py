"""Runs queries of the store with a deadline, for callers that must not wait: a Stop, a start.

One thread runs the queries one after another. While a query runs for longer than LOOKUP_WAIT, every
further call returns None at once. So a store that does not answer blocks this thread, no caller.
"""

from __future__ import annotations

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
    """Runs queries in its thread. Any thread may call it."""

    def __init__(self) -> None:
        self._thread = Serial("halt-lookup")
        self._query_started_at: float | None = None  # of the query that is running

    def start(self) -> None:
        """Start the thread unless it runs. RuntimeError: the system has no more threads."""
        self._thread.start()

    def ask(self, query: Callable[[], T], wait: float = LOOKUP_WAIT) -> T | None:
        """The result of `query`; None if the store fails or does not answer within `wait` seconds.

        None at once while another query has been running for longer than that.
        """
        started_at = self._query_started_at
        if started_at is not None and now() - started_at > wait:
            return None
        result: Future[T | None] = Future()
        try:
            self.start()
            self._thread.put(partial(self._run, query, result))
            return result.result(wait)
        except (RuntimeError, TimeoutError):  # no thread left in the system, or no result in time
            result.cancel()
            return None

    def close(self, timeout: float) -> None:
        """End the thread and wait at most `timeout` seconds for it."""
        self._thread.close(timeout)

    def _run(self, query: Callable[[], T], result: Future[T | None]) -> None:
        if not result.set_running_or_notify_cancel():  # its caller no longer waits
            return
        value = None
        self._query_started_at = now()
        try:
            value = query()
        except StoreUnavailable:
            pass
        finally:  # `Serial` logs other exceptions
            self._query_started_at = None
            result.set_result(value)
