"""Limits the concurrent calls to the database; further calls wait in a queue, in their order.

While the database does not answer, a few calls wait for it and further ones are refused at once, so
that they do not occupy all request threads. A database that is only busy still finishes calls, and
then no call is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from halt.clock import now
from halt.errors import StoreUnavailable

PATIENCE = 0.5  # seconds without any progress after which the database counts as not answering
AT_WORK = 2.0  # seconds added once the database has answered a call that is still running
FEW = 4  # calls that may be running or waiting while it does not answer
QUEUE_SECONDS = 10.0  # limit of the wait in the queue while other calls make progress
TICK = PATIENCE  # seconds between two checks whether a call in the queue should keep waiting
FORGET_SECONDS = 5.0  # seconds without a call after which earlier failures no longer count

NO_ANSWER = "the database does not answer"
TOO_BUSY = "the database is overloaded"


class Refused(Exception):
    """The call is not admitted. The exception's text is the reason, for users."""


class _Waiter:
    """A call in the queue. `place` is a lock that is released to admit the call."""

    __slots__ = ("is_gone", "may_go", "place", "urgent")

    def __init__(self, urgent: bool) -> None:
        self.urgent = urgent
        self.may_go = self.is_gone = False
        self.place = threading.Lock()
        self.place.acquire()


class Admission:
    """Admits calls. Reading and writing calls have one each, as a lock may block writers alone."""

    def __init__(self, places: int, *, reserved: int = 0, wait: float) -> None:
        """`places` is the limit of concurrent calls; `reserved` of them are for urgent calls alone.

        While the database does not answer, a call stays in the queue for at most `wait` seconds.
        """
        self._lock = threading.Lock()  # protects all fields below; its holder never waits
        self._free = places
        self._open = places - reserved  # free places for calls that are not urgent
        self._wait = wait
        self._queue: deque[_Waiter] = deque()
        self._calls = 0  # calls in the queue or running
        self._since: float | None = None  # time since which no call has made progress
        self._failures = 0  # calls that failed since the last success
        self._reason = NO_ANSWER  # of the last failure
        self._left_at = float("-inf")  # when the last call ended

    @contextlib.contextmanager
    def call(self, *, urgent: bool = False) -> Iterator[Callable[[], None]]:
        """Admit a call for the duration of the block. Raises Refused.

        An urgent call goes before the others and is refused only after QUEUE_SECONDS. The block
        must call the yielded function when the database has answered and the call continues.
        """
        self._enter(urgent)
        failure: str | None = None
        try:
            yield self._progress
        except StoreUnavailable as fault:
            failure = fault.reason
            raise
        finally:
            self._leave(failure, urgent)

    def _enter(self, urgent: bool) -> None:
        with self._lock:
            began = now()
            if not self._calls and began - self._left_at > FORGET_SECONDS:
                self._since, self._failures, self._reason = None, 0, NO_ANSWER
            if self._since is None:
                self._since = began
            if not urgent and self._calls >= FEW and self._is_stuck(began):
                raise Refused(self._reason)
            self._calls += 1
            if self._has_place(urgent) and (urgent or not self._queue):
                self._take(urgent)
                return
            waiter = _Waiter(urgent)
            if urgent:
                self._queue.appendleft(waiter)
            else:
                self._queue.append(waiter)
        try:
            self._await_place(waiter, began)
        except BaseException:  # also KeyboardInterrupt in a program's main thread
            with self._lock:
                self._withdraw(waiter)
            raise

    def _await_place(self, waiter: _Waiter, began: float) -> None:
        while not waiter.place.acquire(timeout=TICK):
            with self._lock:
                at = now()
                if waiter.may_go:
                    return
                reason = ""
                if at - began >= QUEUE_SECONDS:
                    reason = TOO_BUSY
                elif not waiter.urgent and self._is_stuck(at):
                    reason = self._reason if self._calls > FEW or at - began >= self._wait else ""
                if reason:
                    self._withdraw(waiter)
                    raise Refused(reason)

    def _withdraw(self, waiter: _Waiter) -> None:
        """Remove a call that is not made. The lock is held. A second call has no effect."""
        if waiter.is_gone:
            return
        waiter.is_gone = True
        self._calls -= 1
        if waiter.may_go:
            self._release(waiter.urgent)
        else:
            self._queue.remove(waiter)

    def _has_place(self, urgent: bool) -> bool:
        return self._free > 0 and (urgent or self._open > 0)

    def _take(self, urgent: bool) -> None:
        self._free -= 1
        self._open -= not urgent

    def _release(self, urgent: bool) -> None:
        """Free a place and admit calls from the front of the queue. The lock is held."""
        self._free += 1
        self._open += not urgent
        while self._queue and self._has_place(self._queue[0].urgent):
            waiter = self._queue.popleft()
            self._take(waiter.urgent)
            waiter.may_go = True
            waiter.place.release()

    def _is_stuck(self, at: float) -> bool:
        """Whether the database counts as not answering. The lock is held."""
        return self._failures >= FEW or (self._since is not None and at - self._since >= PATIENCE)

    def _progress(self) -> None:
        with self._lock:
            self._since = now() + AT_WORK

    def _leave(self, failure: str | None, urgent: bool) -> None:
        with self._lock:
            self._calls -= 1
            self._left_at = now()
            if failure is None:
                self._since = self._left_at if self._calls else None
                self._failures, self._reason = 0, NO_ANSWER
            else:
                self._failures += 1
                self._reason = failure
            self._release(urgent)
