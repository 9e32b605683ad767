"""GET /healthz while the model's server or a worker hangs: one request waits, never all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from halt.cluster.bus import Bus
from halt.cluster.membership import Membership
from halt.cluster.service import Workers
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.request import Upstream
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.errors import UpstreamError
from halt.providers import router
from halt.web.api import stop
from halt.web.api.stop import Probe
from tests.support.halt_server import RECORD_TIMEOUT
from tests.support.waiting import SERVER_TIMEOUT, wait_until

OTHER_REQUESTS = 20


class SilentUpstream:
    """An upstream that answers after `may_answer` is set."""

    def __init__(self) -> None:
        self.requested, self.may_answer = threading.Event(), threading.Event()

    def check(self, connection: UpstreamConnection) -> None:
        self.requested.set()
        assert self.may_answer.wait(RECORD_TIMEOUT)


def in_threads(count: int, call: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    """Start `count` threads that make the call; return them and the list of their results."""
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(RECORD_TIMEOUT)
        assert not thread.is_alive()


def test_health_with_a_silent_upstream_blocks_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request waits for a silent upstream; the others get the last known state."""
    monkeypatch.setattr(stop, "PROBE_WAIT", RECORD_TIMEOUT)
    monkeypatch.setattr(router, "QUERY_TIMEOUT", RECORD_TIMEOUT)
    upstream = SilentUpstream()
    probe = Probe(cast("Upstream", upstream))
    threads, answers = in_threads(OTHER_REQUESTS + 1, probe.upstream_state)
    # Any one of the threads may be the one that still waits for the probe.
    wait_until(lambda: len(answers) == OTHER_REQUESTS, SERVER_TIMEOUT)
    assert answers == ["unknown"] * OTHER_REQUESTS
    assert upstream.requested.wait(RECORD_TIMEOUT)
    upstream.may_answer.set()
    join(threads)
    assert answers[OTHER_REQUESTS:] == ["reachable"]
    assert probe.upstream_state() == "reachable"


def test_health_after_a_timeout_blocks_no_second_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the upstream's answer is pending, no later request waits for it."""
    monkeypatch.setattr(stop, "PROBE_WAIT", 0.01)
    upstream = SilentUpstream()
    probe = Probe(cast("Upstream", upstream))
    assert probe.upstream_state() == "unknown"
    monkeypatch.setattr(stop, "PROBE_WAIT", RECORD_TIMEOUT)
    other_threads, answers = in_threads(OTHER_REQUESTS, probe.upstream_state)
    join(other_threads)
    assert answers == ["unknown"] * OTHER_REQUESTS
    upstream.may_answer.set()


class RefusingUpstream:
    """An upstream whose check fails with this code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def check(self, connection: UpstreamConnection) -> None:
        raise UpstreamError(self.code)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("unauthorized", "reachable: unauthorized"),
        ("rate_limited", "reachable: rate_limited"),
        ("upstream_dns", "unreachable: upstream_dns"),
    ],
)
def test_health_counts_a_refusal_as_reachable(code: str, state: str) -> None:
    """An upstream that refuses the key counts as reachable; one whose name is unknown does not."""
    assert Probe(cast("Upstream", RefusingUpstream(code))).upstream_state() == state


def test_health_with_a_hanging_worker_blocks_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request waits for a hanging worker; the others get the workers' last figures."""
    registry = StopRegistry()
    workers = Workers(Bus(Membership(tmp_path)), registry)
    service = GenerationService(
        Config(base_url="http://127.0.0.1:9/v1", api_key="fake", data=str(tmp_path)),
        cast("Upstream", SilentUpstream()),
        registry,
        other_workers=workers,
    )
    requested, may_answer = threading.Event(), threading.Event()
    may_answer.set()

    @contextlib.contextmanager
    def request(*_: object) -> Iterator[list[tuple[str, bytes, None]]]:
        requested.set()
        assert may_answer.wait(RECORD_TIMEOUT)
        yield [("other", b"\x03", None)]

    monkeypatch.setattr(workers, "_request", request)
    assert (service.health().open_streams, service.health().workers) == (3, 2)
    requested.clear()
    may_answer.clear()
    first_threads, first_answers = in_threads(1, service.health)
    assert requested.wait(RECORD_TIMEOUT)
    other_threads, answers = in_threads(OTHER_REQUESTS, service.health)
    join(other_threads)
    assert {(answer.open_streams, answer.workers) for answer in answers} == {(3, 2)}
    assert first_answers == []
    may_answer.set()
    join(first_threads)
    assert first_answers[0].open_streams == 3
