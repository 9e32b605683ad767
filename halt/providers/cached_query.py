"""A query that is made in the background, one at a time, and whose answer is kept for a while.

A caller gets what is known and waits no longer than it says, also where the server that should
answer is silent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from halt.clock import now
from halt.core.connection import Line, limited
from halt.core.via import Chain
from halt.errors import HaltError, Interrupted, UpstreamError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class CachedQuery(Generic[T]):
    """A query with its last answer and its last fault. Threads may share one."""

    def __init__(
        self,
        name: str,
        ask: Callable[[Line], T],
        *,
        answer_seconds: float,
        fault_seconds: float,
        timeout: float,
    ) -> None:
        """Times in seconds: an answer is good for `kept`, and a fault for `again`.

        The answer has `limit`; then the line that `ask` was given is interrupted.
        """
        self._name = name
        self._fetch = ask
        self._answer_seconds = answer_seconds
        self._fault_seconds = fault_seconds
        self._timeout = timeout
        self._lock = threading.Lock()  # protects everything below
        self._started_at = float("-inf")
        self._fresh_until = float("-inf")
        self._done = threading.Event()
        self._answer: T | None = None
        self._fault: HaltError | None = None

    def start(self, chain: Chain = ()) -> float:
        """Ask, unless what is known is fresh or the query is under way; when it was asked.

        `chain`: that of the request for which it is asked.
        """
        with self._lock:
            started_at = now()
            if started_at < self._fresh_until:
                return self._started_at
            self._started_at = started_at
            self._fresh_until = float("inf")  # until it is done
            self._done = done = threading.Event()
        try:
            threading.Thread(
                target=self._run, args=(done, chain), name=f"halt-ask-{self._name}", daemon=True
            ).start()
        except RuntimeError:  # the system has no more threads
            self._store(done, None, UpstreamError("internal", "no thread"))
        return started_at

    def expire(self) -> None:
        """What is known is fresh no more: the next `begin` asks, unless it is under way."""
        with self._lock:
            if self._done.is_set():
                self._fresh_until = float("-inf")

    def wait(self, until: float, *, fresh: bool = False) -> tuple[T | None, HaltError | None]:
        """The last answer, and the fault if there was one since; awaited where there is neither.

        `until`: a time, as `now` tells it. `fresh`: awaited also where the next one is under way.
        """
        with self._lock:
            done, unknown = self._done, self._answer is None and self._fault is None
        if fresh or unknown:
            done.wait(max(0.0, until - now()))
        with self._lock:
            return self._answer, self._fault

    def _run(self, done: threading.Event, chain: Chain) -> None:
        answer: T | None = None
        fault: HaltError | None = UpstreamError("internal")
        try:
            with limited(self._timeout, chain) as line:
                answer, fault = self._fetch(line), None
        except Interrupted:
            fault = UpstreamError("upstream_unreachable", "it did not answer in time")
        except HaltError as exc:
            fault = exc
        except Exception as exc:
            logger.exception("%s", self._name)
            fault = UpstreamError("internal", type(exc).__name__)
        finally:  # whatever happened: no caller waits in vain, and it can be asked again
            self._store(done, answer, fault)

    def _store(self, done: threading.Event, answer: T | None, fault: HaltError | None) -> None:
        with self._lock:
            if fault is None:
                self._answer = answer  # else the one before is better than none
            self._fault = fault
            self._fresh_until = now() + (
                self._answer_seconds if fault is None else self._fault_seconds
            )
        done.set()
