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


def test_a_question_is_asked_once_by_however_many() -> None:
    """All who come while it is under way wait for the same answer."""
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
def test_a_surprise_is_a_fault_at_once_and_the_next_question_is_asked(
    surprise: BaseException,
) -> None:
    """Nobody waits for an answer that can't come any more, and what was known is kept."""
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


def test_a_fault_is_kept_for_its_own_time() -> None:
    """A server that refuses is not asked again at once."""
    asked: list[UpstreamConnection] = []

    def ask(connection: UpstreamConnection) -> str:
        asked.append(connection)
        raise UpstreamError("unauthorized")

    one = question(ask, answer_seconds=0.0)
    faults = [answer(one)[1] for _ in range(3)]
    assert len(asked) == 1
    assert [fault and fault.code for fault in faults] == ["unauthorized"] * 3


def test_a_silent_server_has_a_limit() -> None:
    """Its line is interrupted, and it counts as not to be reached."""

    def ask(connection: UpstreamConnection) -> str:
        limit = threading.Event()
        while not connection.interrupted:
            limit.wait(0.01)
        raise Interrupted("too late")

    _, fault = answer(question(ask, timeout=0.05))
    assert fault is not None
    assert fault.code == "upstream_unreachable"


def test_what_has_expired_is_asked_anew() -> None:
    """Once; a question that is under way is not asked beside itself."""
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
