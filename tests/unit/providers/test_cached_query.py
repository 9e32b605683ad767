"""CachedQuery: one query at a time in the background, its answer cached, every caller woken."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from halt.clock import now
from halt.core.connection import UpstreamConnection
from halt.errors import HaltError, Interrupted, UpstreamError
from halt.providers.cached_query import CachedQuery
from tests.support.waiting import WAIT_TIMEOUT


def make_query(
    fetch: Callable[[UpstreamConnection], str],
    *,
    answer_seconds: float = 60.0,
    fault_seconds: float = 60.0,
    timeout: float = WAIT_TIMEOUT,
) -> CachedQuery[str]:
    """Make a query with long times."""
    return CachedQuery(
        "test", fetch, answer_seconds=answer_seconds, fault_seconds=fault_seconds, timeout=timeout
    )


def answer(query: CachedQuery[str]) -> tuple[str | None, HaltError | None]:
    """Run the query if it is due, and wait for its end."""
    return query.wait(query.start() + WAIT_TIMEOUT, fresh=True)


def test_concurrent_callers_share_one_query() -> None:
    """All callers during a running query wait for its answer."""
    connections: list[UpstreamConnection] = []
    go_on = threading.Event()

    def fetch(connection: UpstreamConnection) -> str:
        connections.append(connection)
        assert go_on.wait(WAIT_TIMEOUT)
        return "yes"

    query = make_query(fetch)
    assert len({query.start() for _ in range(5)}) == 1
    assert query.wait(now()) == (None, None)
    go_on.set()
    assert [answer(query) for _ in range(5)] == [("yes", None)] * 5
    assert len(connections) == 1


class Surprise(BaseException):
    """An exception that CachedQuery does not expect."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("surprise", [RuntimeError("oops"), Surprise()])
def test_unexpected_exception_is_an_internal_error_and_allows_the_next_query(
    surprise: BaseException,
) -> None:
    """An unexpected exception wakes the callers with an error and keeps the last answer."""
    answers: list[str | BaseException] = ["first", surprise, "second"]

    def fetch(connection: UpstreamConnection) -> str:
        result = answers.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    query = make_query(fetch, answer_seconds=0.0, fault_seconds=0.0)
    assert answer(query) == ("first", None)
    known_value, fault = answer(query)
    assert known_value == "first"
    assert fault is not None
    assert fault.code == "internal"
    assert answer(query) == ("second", None)
    for thread in threading.enumerate():
        if thread.name == "halt-query-test":
            thread.join()  # so that its exception is reported in this test


def test_error_is_cached_for_fault_seconds() -> None:
    """An error is cached for FAULT_SECONDS: a server that refuses is not queried again at once."""
    connections: list[UpstreamConnection] = []

    def fetch(connection: UpstreamConnection) -> str:
        connections.append(connection)
        raise UpstreamError("unauthorized")

    query = make_query(fetch, answer_seconds=0.0)
    faults = [answer(query)[1] for _ in range(3)]
    assert len(connections) == 1
    assert [fault and fault.code for fault in faults] == ["unauthorized"] * 3


def test_silent_server_is_interrupted_after_the_timeout() -> None:
    """After `timeout` seconds the connection is interrupted; the server counts as unreachable."""

    def fetch(connection: UpstreamConnection) -> str:
        limit = threading.Event()
        while not connection.interrupted:
            limit.wait(0.01)
        raise Interrupted("too late")

    _, fault = answer(make_query(fetch, timeout=0.05))
    assert fault is not None
    assert fault.code == "upstream_unreachable"


def test_expired_answer_is_queried_again_once() -> None:
    """`expire` makes the next `start` run the query, except while one is running."""
    connections: list[UpstreamConnection] = []
    go_on = threading.Event()

    def fetch(connection: UpstreamConnection) -> str:
        connections.append(connection)
        assert go_on.wait(WAIT_TIMEOUT)
        return str(len(connections))

    query = make_query(fetch)
    query.start()
    query.expire()
    query.start()
    go_on.set()
    assert answer(query) == ("1", None)
    assert answer(query) == ("1", None)
    query.expire()
    assert answer(query) == ("2", None)
