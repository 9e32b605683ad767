"""Admission of calls to the database: so many at once, the others in a queue, in their order.

While the database does not answer, a few calls wait for it and the others are refused at once, so
no thread pool is used up. A database that is only busy finishes a call now and then, and no call is
refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from halt.clock import now
from halt.errors import StoreUnavailable

PATIENCE = 0.5  # seconds without any progress after which the database counts as not answering
AT_WORK = 2.0  # seconds more, once the database has answered a call that goes on
FEW = 4  # calls that may be under way while it does not answer
QUEUE_SECONDS = 10.0  # that a call waits for its turn, at most, while others make progress
TICK = PATIENCE  # seconds after which a call in the queue looks again whether to wait
FORGET_SECONDS = 5.0  # seconds without a call, after which earlier failures no longer count

NO_ANSWER = "the database does not answer"
TOO_BUSY = "the database has too much to do"


class Refused(Exception):
    """The call is not made; the exception's text is the reason; users read it."""


class _Waiter:
    """A call in the queue: `place` is released when it may go on."""

    __slots__ = ("is_gone", "may_go", "place", "urgent")

    def __init__(self, urgent: bool) -> None:
        self.urgent = urgent
        self.may_go = self.is_gone = False
        self.place = threading.Lock()
        self.place.acquire()


class Admission:
    """One for calls that read and one for calls that write: a lock can hold up the latter alone."""

    def __init__(self, places: int, *, reserved: int = 0, wait: float) -> None:
        """`places` of which `reserved` ones are for urgent calls alone.

        While the database does not answer a call is in the queue for `wait` seconds at most.
        """
        self._lock = threading.Lock()  # protects everything below; held without waiting
        self._free = places
        self._open = places - reserved  # of the free ones, those for any call
        self._wait = wait
        self._queue: deque[_Waiter] = deque()
        self._calls = 0  # under way: in the queue, or past it
        self._since: float | None = None  # since when calls are under way without any progress
        self._failures = 0  # calls that failed since the last success
        self._reason = NO_ANSWER  # of the last of those
        self._left_at = float("-inf")  # when the last call ended

    @contextlib.contextmanager
    def call(self, *, urgent: bool = False) -> Iterator[Callable[[], None]]:
        """Make a call. Raises Refused.

        An urgent one goes before the others and is refused only after QUEUE_SECONDS. The yielded
        function is to be called when the database has answered and the call goes on.
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
            if not urgent and self._calls >= FEW and self._stands_still(began):
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
        except BaseException:  # Ctrl-C in a program's own thread, too
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
                elif not waiter.urgent and self._stands_still(at):
                    reason = self._reason if self._calls > FEW or at - began >= self._wait else ""
                if reason:
                    self._withdraw(waiter)
                    raise Refused(reason)

    def _withdraw(self, waiter: _Waiter) -> None:
        """This call is not made. The lock is held. Harmless when repeated."""
        if waiter.is_gone:
            return
        waiter.is_gone = True
        self._calls -= 1
        if waiter.may_go:
            self._give_back(waiter.urgent)
        else:
            self._queue.remove(waiter)

    def _has_place(self, urgent: bool) -> bool:
        return self._free > 0 and (urgent or self._open > 0)

    def _take(self, urgent: bool) -> None:
        self._free -= 1
        self._open -= not urgent

    def _give_back(self, urgent: bool) -> None:
        """Give back a place; the first calls of the queue get what is free. The lock is held."""
        self._free += 1
        self._open += not urgent
        while self._queue and self._has_place(self._queue[0].urgent):
            waiter = self._queue.popleft()
            self._take(waiter.urgent)
            waiter.may_go = True
            waiter.place.release()

    def _stands_still(self, at: float) -> bool:
        """The database does not answer. The lock is held."""
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
            self._give_back(urgent)
