"""A query that runs in a background thread, one at a time, and whose answer is cached.

A caller gets the cached answer, and waits no longer than its own limit even if the server is
silent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from halt.clock import now
from halt.core.connection import UpstreamConnection, limited_connection
from halt.core.via import Chain
from halt.errors import HaltError, Interrupted, UpstreamError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class CachedQuery(Generic[T]):
    """A query with its last answer and its last error. Threads may share one."""

    def __init__(
        self,
        name: str,
        fetch: Callable[[UpstreamConnection], T],
        *,
        answer_seconds: float,
        fault_seconds: float,
        timeout: float,
    ) -> None:
        """An answer is fresh for `answer_seconds`, and an error for `fault_seconds`.

        After `timeout` seconds the connection that `fetch` was given is interrupted.
        """
        self._name = name
        self._fetch = fetch
        self._answer_seconds = answer_seconds
        self._fault_seconds = fault_seconds
        self._timeout = timeout
        self._lock = threading.Lock()  # protects everything below
        self._started_at = float("-inf")
        self._fresh_until = float("-inf")
        self._done = threading.Event()
        self._answer: T | None = None
        self._fault: HaltError | None = None
        #: Seconds that the last query took, None before its end.
        self.took: float | None = None

    def start(self, chain: Chain = ()) -> float:
        """Start the query unless its answer is fresh or it is running; return its start time.

        `chain`: of the request that needs the answer, see `halt.core.via`.
        """
        with self._lock:
            started_at = now()
            if started_at < self._fresh_until:
                return self._started_at
            self._started_at = started_at
            self._fresh_until = float("inf")  # until the query ends
            self._done = done = threading.Event()
        try:
            threading.Thread(
                target=self._run, args=(done, chain), name=f"halt-query-{self._name}", daemon=True
            ).start()
        except RuntimeError:  # the system has no more threads
            self._store(done, None, UpstreamError("internal", "no thread"))
        return started_at

    def expire(self) -> None:
        """Mark the answer as stale, so that the next `start` runs the query if none is running."""
        with self._lock:
            if self._done.is_set():
                self._fresh_until = float("-inf")

    def wait(self, until: float, *, fresh: bool = False) -> tuple[T | None, HaltError | None]:
        """Return the last answer, and the error if the last query failed.

        Waits for a running query until the time `until` (of `halt.clock.now`) if there is neither
        an answer nor an error yet, or if `fresh`.
        """
        with self._lock:
            done, is_unknown = self._done, self._answer is None and self._fault is None
        if fresh or is_unknown:
            done.wait(max(0.0, until - now()))
        with self._lock:
            return self._answer, self._fault

    def _run(self, done: threading.Event, chain: Chain) -> None:
        answer: T | None = None
        fault: HaltError | None = UpstreamError("internal")
        try:
            with limited_connection(self._timeout, chain) as connection:
                answer, fault = self._fetch(connection), None
        except Interrupted:
            fault = UpstreamError("upstream_unreachable", "it did not answer in time")
        except HaltError as exc:
            fault = exc
        except Exception as exc:
            logger.exception("query %s failed", self._name)
            fault = UpstreamError("internal", type(exc).__name__)
        finally:  # always: wakes the callers that wait, and lets the query run again
            self._store(done, answer, fault)

    def _store(self, done: threading.Event, answer: T | None, fault: HaltError | None) -> None:
        with self._lock:
            if fault is None:
                self._answer = answer  # an error leaves the answer before it
            self._fault = fault
            self.took = now() - self._started_at
            self._fresh_until = now() + (
                self._answer_seconds if fault is None else self._fault_seconds
            )
        done.set()
