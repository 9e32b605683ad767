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
        self, name: str, ask: Callable[[Line], T], *, kept: float, again: float, limit: float
    ) -> None:
        """Times in seconds: an answer is good for `kept`, and a fault for `again`.

        The answer has `limit`; then the line that `ask` was given is interrupted.
        """
        self._name = name
        self._ask_it = ask
        self._kept = kept
        self._again = again
        self._limit = limit
        self._lock = threading.Lock()  # protects everything below
        self._asked_at = float("-inf")
        self._good_until = float("-inf")
        self._answered = threading.Event()
        self._answer: T | None = None
        self._fault: HaltError | None = None

    def begin(self, chain: Chain = ()) -> float:
        """Ask, unless what is known is fresh or the query is under way; when it was asked.

        `chain`: that of the request for which it is asked.
        """
        with self._lock:
            asked_at = now()
            if asked_at < self._good_until:
                return self._asked_at
            self._asked_at = asked_at
            self._good_until = float("inf")  # until it is answered
            self._answered = answered = threading.Event()
        try:
            threading.Thread(
                target=self._ask, args=(answered, chain), name=f"halt-ask-{self._name}", daemon=True
            ).start()
        except RuntimeError:  # the system has no more threads
            self._learn(answered, None, UpstreamError("internal", "no thread"))
        return asked_at

    def expire(self) -> None:
        """What is known is fresh no more: the next `begin` asks, unless it is under way."""
        with self._lock:
            if self._answered.is_set():
                self._good_until = float("-inf")

    def wait(self, until: float, *, fresh: bool = False) -> tuple[T | None, HaltError | None]:
        """The last answer, and the fault if there was one since; awaited where there is neither.

        `until`: a time, as `now` tells it. `fresh`: awaited also where the next one is under way.
        """
        with self._lock:
            answered, unknown = self._answered, self._answer is None and self._fault is None
        if fresh or unknown:
            answered.wait(max(0.0, until - now()))
        with self._lock:
            return self._answer, self._fault

    def _ask(self, answered: threading.Event, chain: Chain) -> None:
        answer: T | None = None
        fault: HaltError | None = UpstreamError("internal")
        try:
            with limited(self._limit, chain) as line:
                answer, fault = self._ask_it(line), None
        except Interrupted:
            fault = UpstreamError("upstream_unreachable", "it did not answer in time")
        except HaltError as exc:
            fault = exc
        except Exception as exc:
            logger.exception("%s", self._name)
            fault = UpstreamError("internal", type(exc).__name__)
        finally:  # whatever happened: no caller waits in vain, and it can be asked again
            self._learn(answered, answer, fault)

    def _learn(self, answered: threading.Event, answer: T | None, fault: HaltError | None) -> None:
        with self._lock:
            if fault is None:
                self._answer = answer  # else the one before is better than none
            self._fault = fault
            self._good_until = now() + (self._kept if fault is None else self._again)
        answered.set()
