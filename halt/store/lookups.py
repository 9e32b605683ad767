"""Queries of the store with a deadline, for callers that must not wait for it: a Stop, a start.

One thread makes them, one after the other. While a query takes longer than LOOKUP_WAIT, further
callers get no answer at once: a store that does not answer holds up one thread, and no caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from halt.clock import now
from halt.core.serial import Serial
from halt.errors import StoreUnavailable

LOOKUP_WAIT = 0.05  # seconds that a caller waits for the answer

T = TypeVar("T")


class _Question(Generic[T]):
    """A question and, once `answered` is set, its answer; None where the store has none."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self.ask = ask
        self.answer: T | None = None
        self.answered = threading.Event()
        self.is_wanted = True  # its caller waits


class Lookups:
    """See the module. Threads may share one."""

    def __init__(self) -> None:
        self._thread = Serial("halt-lookup")
        self._starting = threading.Lock()  # one caller at a time starts the thread
        self._asked_at: float | None = None  # when the question under way was asked

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
        try:
            self.start()
        except RuntimeError:  # the system has no more threads
            return None
        question = _Question(ask)
        self._thread.put(lambda: self._ask(question))
        question.answered.wait(LOOKUP_WAIT)
        question.is_wanted = False
        return question.answer

    def close(self, timeout: float) -> None:
        """End the thread; wait so many seconds for it."""
        self._thread.close(timeout)

    def _ask(self, question: _Question[T]) -> None:
        if not question.is_wanted:
            return
        self._asked_at = now()
        try:
            question.answer = question.ask()
        except StoreUnavailable:
            pass
        finally:  # what else went wrong is logged by the thread
            self._asked_at = None
            question.answered.set()
