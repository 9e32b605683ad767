"""A question in the background: one at a time, kept for a while, and nobody waits in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from halt.clock import now
from halt.core.connection import UpstreamConnection
from halt.errors import HaltError, Interrupted, UpstreamError
from halt.providers.cached_query import CachedQuery
from tests.support.waiting import WAIT_TIMEOUT


def question(
    ask: Callable[[UpstreamConnection], str],
    *,
    answer_seconds: float = 60.0,
    fault_seconds: float = 60.0,
    timeout: float = WAIT_TIMEOUT,
) -> CachedQuery[str]:
    """One with long times, which a test shortens."""
    return CachedQuery(
        "test", ask, answer_seconds=answer_seconds, fault_seconds=fault_seconds, timeout=timeout
    )


def answer(asked: CachedQuery[str]) -> tuple[str | None, HaltError | None]:
    """Ask if it is due, and wait for the end of that."""
    return asked.wait(asked.start() + WAIT_TIMEOUT, fresh=True)


def test_concurrent_callers_share_one_query() -> None:
    """All callers during a running query wait for its answer."""
    asked: list[UpstreamConnection] = []
    go_on = threading.Event()

    def ask(connection: UpstreamConnection) -> str:
        asked.append(connection)
        assert go_on.wait(WAIT_TIMEOUT)
        return "yes"

    one = question(ask)
    assert len({one.start() for _ in range(5)}) == 1
    assert one.wait(now()) == (None, None)
    go_on.set()
    assert [answer(one) for _ in range(5)] == [("yes", None)] * 5
    assert len(asked) == 1


class Surprise(BaseException):
    """What nobody foresees."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("surprise", [RuntimeError("oops"), Surprise()])
def test_unexpected_exception_is_an_internal_error_and_allows_the_next_query(
    surprise: BaseException,
) -> None:
    """An unexpected exception wakes the callers with an error and keeps the last answer."""
    answers: list[str | BaseException] = ["first", surprise, "second"]

    def ask(connection: UpstreamConnection) -> str:
        what = answers.pop(0)
        if isinstance(what, BaseException):
            raise what
        return what

    one = question(ask, answer_seconds=0.0, fault_seconds=0.0)
    assert answer(one) == ("first", None)
    known, fault = answer(one)
    assert known == "first"
    assert fault is not None
    assert fault.code == "internal"
    assert answer(one) == ("second", None)
    for thread in threading.enumerate():
        if thread.name == "halt-query-test":
            thread.join()  # what it raised is reported here, and not in the next test


def test_error_is_cached_for_fault_seconds() -> None:
    """A server that refuses is not queried again at once."""
    asked: list[UpstreamConnection] = []

    def ask(connection: UpstreamConnection) -> str:
        asked.append(connection)
        raise UpstreamError("unauthorized")

    one = question(ask, answer_seconds=0.0)
    faults = [answer(one)[1] for _ in range(3)]
    assert len(asked) == 1
    assert [fault and fault.code for fault in faults] == ["unauthorized"] * 3


def test_silent_server_is_interrupted_after_the_timeout() -> None:
    """After `timeout` seconds the connection is interrupted; the server counts as unreachable."""

    def ask(connection: UpstreamConnection) -> str:
        limit = threading.Event()
        while not connection.interrupted:
            limit.wait(0.01)
        raise Interrupted("too late")

    _, fault = answer(question(ask, timeout=0.05))
    assert fault is not None
    assert fault.code == "upstream_unreachable"


def test_expired_answer_is_queried_again_once() -> None:
    """`expire` makes the next `start` run the query, except while one is running."""
    asked: list[UpstreamConnection] = []
    go_on = threading.Event()

    def ask(connection: UpstreamConnection) -> str:
        asked.append(connection)
        assert go_on.wait(WAIT_TIMEOUT)
        return str(len(asked))

    one = question(ask)
    one.start()
    one.expire()
    one.start()
    go_on.set()
    assert answer(one) == ("1", None)
    assert answer(one) == ("1", None)
    one.expire()
    assert answer(one) == ("2", None)
