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

FAULT = StoreUnavailable("Reading failed: the disk is full.", "the disk is full")


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


class QueueingAdmission(Admission):
    """An admission whose calls set an event when they enter the queue."""

    @property
    def under_way(self) -> int:
        return self._calls

    def _await_place(self, waiter: Any, start: float) -> None:
        call = threading.current_thread()
        assert isinstance(call, Call)
        call.queued.set()
        super()._await_place(waiter, start)


class Call(threading.Thread):
    """A call in a thread, which runs until `end`."""

    def __init__(
        self, admission: Admission, call_order: list[Call], *, urgent: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self.queued, self.inside, self.may_end = (threading.Event() for _ in range(3))
        self.fault: BaseException | None = None
        self.refused = ""
        self._gate, self._order, self._urgent = admission, call_order, urgent
        self.start()

    def run(self) -> None:
        try:
            with self._gate.call(urgent=self._urgent):
                self._order.append(self)
                self.inside.set()
                assert self.may_end.wait(60)
                if self.fault is not None:
                    raise self.fault
        except Refused as refusal:
            self.refused = str(refusal)
        except (StoreUnavailable, RequestError):
            pass

    def end(self, fault: BaseException | None = None) -> None:
        """End the call: with this exception, or with success."""
        self.fault = fault
        self.may_end.set()
        self.join(60)
        assert not self.is_alive()


class CallGroup:
    """The calls of a test, and their admission."""

    def __init__(self, admission: QueueingAdmission) -> None:
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
def group(clock: Clock) -> Iterator[CallGroup]:
    call_group = CallGroup(QueueingAdmission(1, wait=2.0))
    yield call_group
    for call in call_group.calls:
        call.may_end.set()
    for call in call_group.calls:
        call.join(60)


def test_admission_runs_calls_in_order_and_urgent_calls_first(group: CallGroup) -> None:
    """Calls run in the order of their arrival; an urgent call runs before the waiting ones."""
    first, second, third = group.add(), group.add(), group.add()
    urgent_call = group.add(urgent=True)
    for call in (first, urgent_call, second, third):
        assert call.inside.wait(60)
        call.end()
    assert group.order == [first, urgent_call, second, third]
    assert group.admission.under_way == 0


def test_admission_of_a_busy_database_refuses_no_call(group: CallGroup, clock: Clock) -> None:
    """Calls may wait longer than PATIENCE while the calls before them end one after the other."""
    calls = [group.add() for _ in range(20)]
    for call in calls:
        assert call.inside.wait(60)
        clock.time += module.PATIENCE * 0.9
        call.end()
    assert group.order == calls


def test_admission_without_answers_keeps_few_calls_and_refuses_the_others(
    group: CallGroup, clock: Clock
) -> None:
    """When no call ends for PATIENCE seconds, FEW calls stay; the others and new calls are
    refused."""
    calls = [group.add() for _ in range(20)]
    urgent_call = group.add(urgent=True)
    clock.time += module.PATIENCE
    wait_until(lambda: sum(not call.is_alive() for call in calls) == 21 - FEW, SERVER_TIMEOUT)
    refused_calls = [call for call in calls if not call.is_alive()]
    assert {call.refused for call in refused_calls} == {NO_ANSWER}
    late_call = group.add()
    assert late_call.refused == NO_ANSWER
    calls[0].end()  # the database answers again
    assert urgent_call.inside.wait(60)
    assert not group.add().refused


def test_admission_gives_an_answered_call_more_time(clock: Clock) -> None:
    """After the database has answered a running call, waiting calls are refused AT_WORK seconds
    later."""
    group = CallGroup(QueueingAdmission(1, wait=2.0))
    with group.admission.call() as progress:
        clock.time += module.PATIENCE / 2
        progress()
        for _ in range(10):
            group.add()
        clock.time += module.AT_WORK
        assert not group.add().refused
        clock.time += module.PATIENCE
        assert group.add().refused
        wait_until(lambda: group.admission.under_way <= FEW, SERVER_TIMEOUT)
    for call in group.calls:
        call.may_end.set()
    for call in group.calls:
        call.join(60)
        assert not call.is_alive()


def test_waiting_call_is_refused_after_the_wait_limit(group: CallGroup, clock: Clock) -> None:
    """A waiting call is refused after the configured wait; an urgent call stays."""
    first, second, urgent_call = group.add(), group.add(), group.add(urgent=True)
    clock.time += 2.0
    second.join(60)
    assert second.refused == NO_ANSWER
    assert first.is_alive()
    assert urgent_call.is_alive()


def test_call_in_a_moving_queue_is_refused_as_too_busy(group: CallGroup, clock: Clock) -> None:
    """A call that waits QUEUE_SECONDS while other calls end is refused because of overload."""
    running_call, waiting_call = group.add(), group.add()
    while waiting_call.is_alive() and clock.time < 1000 + 2 * module.QUEUE_SECONDS:
        clock.time += module.PATIENCE / 2
        urgent_call = group.add(urgent=True)
        running_call.end()
        assert urgent_call.inside.wait(60)
        running_call = urgent_call
    waiting_call.join(60)
    assert waiting_call.refused == TOO_BUSY


def test_admission_after_failures_refuses_with_their_reason(group: CallGroup, clock: Clock) -> None:
    """Failed calls count as no progress and give the refusal its reason; one success ends it."""
    for _ in range(FEW):
        group.add().end(FAULT)
    calls = [group.add() for _ in range(FEW)]
    assert group.add().refused == "the disk is full"
    calls[0].end()
    assert not group.add().refused


def test_request_error_counts_as_an_answer_of_the_database(group: CallGroup, clock: Clock) -> None:
    """A call that ends with the caller's own error counts as a success of the database."""
    for _ in range(FEW):
        group.add().end(RequestError("This cannot be changed."))
    calls = [group.add() for _ in range(FEW + 1)]
    assert not any(call.refused for call in calls)


def test_failures_without_calls_are_forgotten(group: CallGroup, clock: Clock) -> None:
    """Failures older than FORGET_SECONDS without a call in between refuse no call."""
    for _ in range(FEW):
        group.add().end(FAULT)
    clock.time += module.FORGET_SECONDS + 1
    assert not any(call.refused for call in [group.add() for _ in range(FEW + 5)])


def test_reserved_place_admits_an_urgent_call_at_once(clock: Clock) -> None:
    """An urgent call runs in the reserved place while other calls wait."""
    group = CallGroup(QueueingAdmission(3, reserved=1, wait=2.0))
    usual_calls = [group.add() for _ in range(3)]
    urgent_call = group.add(urgent=True)
    assert urgent_call.inside.wait(60)
    assert usual_calls[0].inside.is_set()
    assert usual_calls[1].inside.is_set()
    assert not usual_calls[2].inside.is_set()
    usual_calls[0].end()
    assert usual_calls[2].inside.wait(60)
    for call in (urgent_call, *usual_calls[1:]):
        call.end()
    assert group.admission.under_way == 0
