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

OTHERS = 20


class Silent:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def check(self, connection: UpstreamConnection) -> None:
        self.asked.set()
        assert self.answers.wait(RECORD_TIMEOUT)


def in_threads(count: int, call: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    """Call it in so many threads; those, and what the calls have returned so far."""
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
    upstream = Silent()
    probe = Probe(cast("Upstream", upstream))
    threads, answers = in_threads(OTHERS + 1, probe.upstream_state)
    # Any one of the threads may be the one that still waits for the probe.
    wait_until(lambda: len(answers) == OTHERS, SERVER_TIMEOUT)
    assert answers == ["unknown"] * OTHERS
    assert upstream.asked.wait(RECORD_TIMEOUT)
    upstream.answers.set()
    join(threads)
    assert answers[OTHERS:] == ["reachable"]
    assert probe.upstream_state() == "reachable"


def test_health_after_a_timeout_blocks_no_second_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the upstream's answer is pending, no later request waits for it."""
    monkeypatch.setattr(stop, "PROBE_WAIT", 0.01)
    upstream = Silent()
    probe = Probe(cast("Upstream", upstream))
    assert probe.upstream_state() == "unknown"
    monkeypatch.setattr(stop, "PROBE_WAIT", RECORD_TIMEOUT)
    others, answers = in_threads(OTHERS, probe.upstream_state)
    join(others)
    assert answers == ["unknown"] * OTHERS
    upstream.answers.set()


class Refusing:
    """An upstream that answers with this fault."""

    def __init__(self, code: str) -> None:
        self.code = code

    def check(self, connection: UpstreamConnection) -> None:
        raise UpstreamError(self.code)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("unauthorized", "reachable: unauthorized"),
        ("rate_limited", "reachable: rate_limited"),
        ("upstream_dns", "unreachable: upstream_dns"),
    ],
)
def test_health_counts_a_refusal_as_reachable(code: str, said: str) -> None:
    """An upstream that refuses the key is reachable; one that cannot be found is not."""
    assert Probe(cast("Upstream", Refusing(code))).upstream_state() == said


def test_health_with_a_hanging_worker_blocks_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request waits for a hanging worker; the others get the workers' last figures."""
    registry = StopRegistry()
    workers = Workers(Bus(Membership(tmp_path)), registry)
    service = GenerationService(
        Config(base_url="http://127.0.0.1:9/v1", api_key="fake", data=str(tmp_path)),
        cast("Upstream", Silent()),
        registry,
        other_workers=workers,
    )
    asked, hangs = threading.Event(), threading.Event()
    hangs.set()

    @contextlib.contextmanager
    def ask(*_: object) -> Iterator[list[tuple[str, bytes, None]]]:
        asked.set()
        assert hangs.wait(RECORD_TIMEOUT)
        yield [("other", b"\x03", None)]

    monkeypatch.setattr(workers, "_request", ask)
    assert (service.health().open_streams, service.health().workers) == (3, 2)
    asked.clear()
    hangs.clear()
    first, waited = in_threads(1, service.health)
    assert asked.wait(RECORD_TIMEOUT)
    others, answers = in_threads(OTHERS, service.health)
    join(others)
    assert {(answer.open_streams, answer.workers) for answer in answers} == {(3, 2)}
    assert waited == []
    hangs.set()
    join(first)
    assert waited[0].open_streams == 3
