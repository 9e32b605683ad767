"""Admission of calls to the database: their order, and refusals while it does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from halt.errors import RequestError, StoreUnavailable
from halt.store import admission as module
from halt.store.admission import FEW, NO_ANSWER, TOO_BUSY, Admission, Refused
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FAULT = StoreUnavailable("This could not be read: the disk is full.", "the disk is full")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of admissions; queued threads read it every few milliseconds."""
    test_clock = Clock()
    monkeypatch.setattr(module, "now", test_clock)
    monkeypatch.setattr(module, "TICK", 0.005)
    return test_clock


class Watched(Admission):
    """An admission whose calls set an event when they enter the queue."""

    @property
    def under_way(self) -> int:
        return self._calls

    def _await_place(self, waiter: Any, began: float) -> None:
        call = threading.current_thread()
        assert isinstance(call, Call)
        call.queued.set()
        super()._await_place(waiter, began)


class Call(threading.Thread):
    """A call in a thread, which runs until `end`."""

    def __init__(self, admission: Admission, order: list[Call], *, urgent: bool = False) -> None:
        super().__init__(daemon=True)
        self.queued, self.inside, self.goes_on = (threading.Event() for _ in range(3))
        self.fault: BaseException | None = None
        self.refused = ""
        self._gate, self._order, self._urgent = admission, order, urgent
        self.start()

    def run(self) -> None:
        try:
            with self._gate.call(urgent=self._urgent):
                self._order.append(self)
                self.inside.set()
                assert self.goes_on.wait(60)
                if self.fault is not None:
                    raise self.fault
        except Refused as refusal:
            self.refused = str(refusal)
        except (StoreUnavailable, RequestError):
            pass

    def end(self, fault: BaseException | None = None) -> None:
        """End the call: with this exception, or with success."""
        self.fault = fault
        self.goes_on.set()
        self.join(60)
        assert not self.is_alive()


class Crowd:
    """The calls of a test, and their admission."""

    def __init__(self, admission: Watched) -> None:
        self.admission = admission
        self.order: list[Call] = []
        self.calls: list[Call] = []

    def add(self, *, urgent: bool = False) -> Call:
        """Add a call; returns when it is running, queued or refused."""
        call = Call(self.admission, self.order, urgent=urgent)
        self.calls.append(call)
        wait_until(
            lambda: call.inside.is_set() or call.queued.is_set() or not call.is_alive(),
            SERVER_TIMEOUT,
        )
        return call


@pytest.fixture
def crowd(clock: Clock) -> Iterator[Crowd]:
    callers = Crowd(Watched(1, wait=2.0))
    yield callers
    for call in callers.calls:
        call.goes_on.set()
    for call in callers.calls:
        call.join(60)


def test_admission_runs_calls_in_order_and_urgent_calls_first(crowd: Crowd) -> None:
    """Calls run in the order of their arrival; an urgent call runs before the waiting ones."""
    first, second, third = crowd.add(), crowd.add(), crowd.add()
    urgent = crowd.add(urgent=True)
    for call in (first, urgent, second, third):
        assert call.inside.wait(60)
        call.end()
    assert crowd.order == [first, urgent, second, third]
    assert crowd.admission.under_way == 0


def test_admission_of_a_busy_database_refuses_no_call(crowd: Crowd, clock: Clock) -> None:
    """Calls may wait longer than PATIENCE while the calls before them end one after the other."""
    calls = [crowd.add() for _ in range(20)]
    for call in calls:
        assert call.inside.wait(60)
        clock.time += module.PATIENCE * 0.9
        call.end()
    assert crowd.order == calls


def test_admission_without_answers_keeps_few_calls_and_refuses_the_others(
    crowd: Crowd, clock: Clock
) -> None:
    """When no call ends for PATIENCE seconds, FEW calls stay; the others and new calls are
    refused."""
    calls = [crowd.add() for _ in range(20)]
    urgent = crowd.add(urgent=True)
    clock.time += module.PATIENCE
    wait_until(lambda: sum(not call.is_alive() for call in calls) == 21 - FEW, SERVER_TIMEOUT)
    refused = [call for call in calls if not call.is_alive()]
    assert {call.refused for call in refused} == {NO_ANSWER}
    late = crowd.add()
    assert late.refused == NO_ANSWER
    calls[0].end()  # the database answers again
    assert urgent.inside.wait(60)
    assert not crowd.add().refused


def test_admission_gives_an_answered_call_more_time(clock: Clock) -> None:
    """After the database has answered a running call, waiting calls are refused AT_WORK seconds
    later."""
    crowd = Crowd(Watched(1, wait=2.0))
    with crowd.admission.call() as progress:
        clock.time += module.PATIENCE / 2
        progress()
        for _ in range(10):
            crowd.add()
        clock.time += module.AT_WORK
        assert not crowd.add().refused
        clock.time += module.PATIENCE
        assert crowd.add().refused
        wait_until(lambda: crowd.admission.under_way <= FEW, SERVER_TIMEOUT)
    for call in crowd.calls:
        call.goes_on.set()
    for call in crowd.calls:
        call.join(60)
        assert not call.is_alive()


def test_waiting_call_is_refused_after_the_wait_limit(crowd: Crowd, clock: Clock) -> None:
    """A waiting call is refused after the configured wait; an urgent call stays."""
    first, second, urgent = crowd.add(), crowd.add(), crowd.add(urgent=True)
    clock.time += 2.0
    second.join(60)
    assert second.refused == NO_ANSWER
    assert first.is_alive()
    assert urgent.is_alive()


def test_call_in_a_moving_queue_is_refused_as_too_busy(crowd: Crowd, clock: Clock) -> None:
    """A call that waits QUEUE_SECONDS while other calls end is refused because of overload."""
    first, last = crowd.add(), crowd.add()
    while last.is_alive() and clock.time < 1000 + 2 * module.QUEUE_SECONDS:
        clock.time += module.PATIENCE / 2
        before = crowd.add(urgent=True)
        first.end()
        assert before.inside.wait(60)
        first = before
    last.join(60)
    assert last.refused == TOO_BUSY


def test_admission_after_failures_refuses_with_their_reason(crowd: Crowd, clock: Clock) -> None:
    """Failed calls count as no progress and give the refusal its reason; one success ends it."""
    for _ in range(FEW):
        crowd.add().end(FAULT)
    calls = [crowd.add() for _ in range(FEW)]
    assert crowd.add().refused == "the disk is full"
    calls[0].end()
    assert not crowd.add().refused


def test_request_error_counts_as_an_answer_of_the_database(crowd: Crowd, clock: Clock) -> None:
    """A call that ends with the caller's own error counts as a success of the database."""
    for _ in range(FEW):
        crowd.add().end(RequestError("This cannot be changed."))
    calls = [crowd.add() for _ in range(FEW + 1)]
    assert not any(call.refused for call in calls)


def test_failures_without_calls_are_forgotten(crowd: Crowd, clock: Clock) -> None:
    """Failures older than FORGET_SECONDS without a call in between refuse no call."""
    for _ in range(FEW):
        crowd.add().end(FAULT)
    clock.time += module.FORGET_SECONDS + 1
    assert not any(call.refused for call in [crowd.add() for _ in range(FEW + 5)])


def test_reserved_place_admits_an_urgent_call_at_once(clock: Clock) -> None:
    """An urgent call runs in the reserved place while other calls wait."""
    crowd = Crowd(Watched(3, reserved=1, wait=2.0))
    usual = [crowd.add() for _ in range(3)]
    urgent = crowd.add(urgent=True)
    assert urgent.inside.wait(60)
    assert usual[0].inside.is_set()
    assert usual[1].inside.is_set()
    assert not usual[2].inside.is_set()
    usual[0].end()
    assert usual[2].inside.wait(60)
    for call in (urgent, *usual[1:]):
        call.end()
    assert crowd.admission.under_way == 0
