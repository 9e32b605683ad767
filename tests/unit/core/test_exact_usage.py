"""The usage after a Stop: the provider's count of an answer that was stopped."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from halt.config.settings import Config
from halt.core.events import Cancelled
from halt.core.exact_usage import UsageDrain
from halt.core.live import LiveGeneration
from halt.core.request import ChatRequest, Part
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.errors import UpstreamError
from halt.providers.factory import make_upstream
from halt.testing.fake_openai import FakeOpenAI
from tests.support.run_harness import ENDLESS
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream, text_part
from tests.support.waiting import WAIT_TIMEOUT, wait_until

USAGE = {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45}


class UsageHarness:
    """Generations that read on after a Stop, and the usages that they report."""

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream()
        self.usages: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.ended_runs: list[Run] = []
        self._services: list[GenerationService] = []

    def make(self, **settings: Any) -> GenerationService:
        config = Config(**{"exact_usage": True, "orphan_grace": 1e9} | settings)
        self._services.append(GenerationService(config, self.upstream, StopRegistry()))
        return self._services[-1]

    def start(self, generations: GenerationService) -> tuple[Run, ScriptedReply, Reader]:
        """A run whose viewer has received its first words."""
        number = len(self.upstream.opened)
        run = generations.start(
            ChatRequest(HI),
            on_end=self.ended_runs.append,
            on_usage=lambda run, usage: self.usages.put((run.id, usage)),
        )
        reader = Reader(run)
        reply = self.upstream.reply(number)
        reply.feed("one ")
        reader.wait_text("one ")
        return run, reply, reader

    def reads_another(self, generations: GenerationService) -> bool:
        """Whether a further stopped run is read for its usage: there was a free place."""
        run, _, reader = self.start(generations)
        receipt = generations.stop(run.key)
        reader.finish()
        return receipt.upstream == "closing"

    def close(self) -> None:
        for service in self._services:
            service.close()
        self.upstream.dispose()


@pytest.fixture
def harness() -> Iterator[UsageHarness]:
    harness = UsageHarness()
    yield harness
    harness.close()


def test_stop_with_exact_usage_reports_the_usage_of_the_whole_answer(harness: UsageHarness) -> None:
    """A Stop ends the log at once; the rest is dropped, and its usage is reported at the end."""
    generations = harness.make()
    run, reply, reader = harness.start(generations)
    receipt = generations.stop(run.key)
    assert (receipt.status, receipt.upstream) == ("stopped", "closing")
    events = reader.finish()
    assert isinstance(events[-1][1], Cancelled)
    assert events[-1][1].metrics.tokens_estimated
    assert harness.ended_runs == [run]
    assert not reply.closed
    assert not run.connection.interrupted
    reply.feed("two ", "three")
    reply.end("stop", USAGE)
    assert harness.usages.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)
    assert reply.over.wait(WAIT_TIMEOUT)
    assert run.answer() == (1, "one ")
    assert run.log.last == 2
    wait_until(lambda: not run.reads_usage)
    assert generations.stop(run.key).upstream == "closed"


def test_stopped_run_read_for_its_usage_takes_no_place(harness: UsageHarness) -> None:
    """A stopped run gives its place back at once."""
    generations = harness.make(max_streams=1)
    run, reply, _ = harness.start(generations)
    generations.stop(run.key)
    assert generations.open_streams == 0
    other_run, _, reader = harness.start(generations)
    assert generations.stop(other_run.key).upstream == "closed"  # at most one is read for its usage
    reader.finish()
    assert not reply.closed


def test_end_other_than_a_stop_closes_the_connection(harness: UsageHarness) -> None:
    """Lost viewers, faults and a direct cancel close the connection and report no usage."""
    generations = harness.make()
    ends: list[Callable[[Run], object]] = [
        lambda run: run.cancel("no_viewer"),
        lambda run: run.fail(UpstreamError("stalled")),
        lambda run: run.cancel("stop"),  # Ctrl-C in the middle of a read
    ]
    for end in ends:
        run, reply, reader = harness.start(generations)
        end(run)
        assert run.connection.interrupted
        assert reply.over.wait(WAIT_TIMEOUT)
        reader.finish()
    assert harness.usages.empty()


@pytest.mark.parametrize("missing_part", ["setting", "callback"])
def test_stop_without_setting_or_callback_closes_the_connection(
    harness: UsageHarness, missing_part: str
) -> None:
    """Without HALT_EXACT_USAGE, or without a callback for the usage, nothing is read on."""
    generations = harness.make(exact_usage=missing_part != "setting")
    run = generations.start(
        ChatRequest(HI),
        on_usage=(lambda run, usage: harness.usages.put((run.id, usage)))
        if missing_part == "setting"
        else None,
    )
    harness.upstream.reply()
    assert generations.stop(run.key).upstream == "closed"


def test_shutdown_ends_the_reading_of_usage_at_once(harness: UsageHarness) -> None:
    """A service that closes waits for no usage."""
    generations = harness.make()
    run, reply, _ = harness.start(generations)
    generations.stop(run.key)
    generations.close()
    assert reply.over.is_set()
    assert not run.reads_usage
    assert harness.usages.empty()


def exceed_limit(run: Run, limit: str) -> None:
    """Age a run, or its model's silence, by more than a limit of 1000 s, then check its limits."""
    if limit == "run_timeout":
        run.meter.started_at -= 1_001.0
    else:
        run.meter.last_at -= 1_001.0
    run.check_limits_soon()


@pytest.mark.parametrize("limit", ["gap_timeout", "run_timeout"])
def test_limit_ends_the_reading_of_usage(harness: UsageHarness, limit: str) -> None:
    """A model that falls silent after a Stop, or never ends, is closed at the limit."""
    generations = harness.make(**ENDLESS | {limit: 1_000.0})
    run, reply, reader = harness.start(generations)
    generations.stop(run.key)
    reader.finish()
    assert run.reads_usage
    exceed_limit(run, limit)
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    assert harness.usages.empty()


def test_limit_ends_a_stopped_request_without_a_head(harness: UsageHarness) -> None:
    """After a Stop a server that never answers is closed at the limit."""
    harness.upstream.silent = True
    generations = harness.make(**ENDLESS | {"first_byte_timeout": 1_000.0}, max_streams=1)
    run = generations.start(
        ChatRequest(HI), on_usage=lambda run, usage: harness.usages.put((run.id, usage))
    )
    assert harness.upstream.waiting.wait(WAIT_TIMEOUT)
    assert generations.stop(run.key).upstream == "closing"
    exceed_limit(run, "first_byte_timeout")
    wait_until(lambda: not run.reads_usage)
    harness.upstream.silent = False
    wait_until(lambda: harness.reads_another(generations))
    assert harness.usages.empty()


def test_internal_fault_while_usage_is_read_gives_the_place_back(
    harness: UsageHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """An internal fault while usage is read is logged, closes the connection and reports
    no usage.
    """
    generations = harness.make(max_streams=1)
    run, reply, _ = harness.start(generations)
    generations.stop(run.key)
    assert run.reads_usage
    reply.feed(ZeroDivisionError("in the decoder"))
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: harness.reads_another(generations))
    assert "ZeroDivisionError: in the decoder" in caplog.text
    assert harness.usages.empty()


def test_stop_before_the_answer_reports_its_usage(harness: UsageHarness) -> None:
    """A Stop before the answer lets the connection go on; the answer is counted and never shown."""
    generations = harness.make()
    reply = ScriptedReply()
    harness.upstream = ScriptedUpstream(reply)
    generations = harness.make()
    run = generations.start(
        ChatRequest(HI), on_usage=lambda run, usage: harness.usages.put((run.id, usage))
    )
    harness.upstream.reply()
    reply.wait_reads()
    assert generations.stop(run.key).upstream == "closing"
    reply.feed("one")
    reply.end("stop", USAGE)
    assert harness.usages.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)
    assert run.answer() == (0, "")


@pytest.mark.parametrize("text", ["", "end"])
def test_usage_in_the_read_that_meets_the_stop_is_reported_once(
    harness: UsageHarness, text: str
) -> None:
    """Last text, end and usage arrive in one read after the Stop: one usage is reported."""
    generations = harness.make()
    run, reply, reader = harness.start(generations)
    reply.finish_reason, reply.usage = "stop", USAGE
    generations.stop(run.key)
    reply.feed(Part(text_part(text).events if text else (), 1, ended=True))
    reader.finish()
    assert harness.usages.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)


def test_answer_without_usage_is_not_reported(harness: UsageHarness) -> None:
    """An answer without a usage from the provider is not reported, so its estimate stays."""
    generations = harness.make()
    run, reply, _ = harness.start(generations)
    generations.stop(run.key)
    reply.feed(Part(text_part("end").events, 1, ended=True))
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    assert harness.usages.empty()


def test_usage_callback_that_raises_is_logged_and_the_place_is_free(
    harness: UsageHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A usage callback that raises is logged, and the place and the connection are given back."""
    generations = harness.make(max_streams=1)

    def raise_fault(run: Run, usage: dict[str, Any]) -> None:
        raise RuntimeError("the store is full")

    run = generations.start(ChatRequest(HI), on_usage=raise_fault)
    reply = harness.upstream.reply()
    generations.stop(run.key)
    reply.end("stop", USAGE)
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    wait_until(lambda: "the store is full" in caplog.text)
    wait_until(lambda: harness.reads_another(generations))


def test_real_server_is_read_to_its_usage(fake: FakeOpenAI) -> None:
    """A real server is read to its usage over HTTP: the count is that of the whole answer."""
    config = Config(base_url=fake.base_url, api_key="fake", exact_usage=True)
    usages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    generations = GenerationService(config, make_upstream(config), StopRegistry())
    with contextlib.closing(generations):
        run = generations.start(
            ChatRequest(HI, model="stall?n=5&rest=5"), on_usage=lambda _, usage: usages.put(usage)
        )
        record = fake.wait_request()
        record.wait_tokens(5)
        assert generations.stop(run.key).upstream == "closing"
        assert not record.closed.is_set()
        record.release()
        assert usages.get(timeout=WAIT_TIMEOUT)["completion_tokens"] == 10


def idle_generation() -> LiveGeneration:
    """A generation that has not begun."""
    return LiveGeneration(StreamKey("", "a-stream"), ChatRequest(HI), 1_000)


def test_usage_drain_has_as_many_places_as_streams() -> None:
    """The drain takes max_streams runs; a close interrupts all and takes no more."""
    usage_drain = UsageDrain(Config(exact_usage=True, max_streams=2))
    first, second, third = idle_generation(), idle_generation(), idle_generation()
    assert usage_drain.take(first)
    assert usage_drain.take(second)
    assert not usage_drain.take(third)
    usage_drain.give_back(second)
    assert not usage_drain.take(first), "another Stop has taken it, and gives it back alone"
    assert usage_drain.take(second)
    usage_drain.give_back(second)
    assert usage_drain.take(third)
    usage_drain.close()
    assert first.connection.interrupted
    assert not usage_drain.take(second)
    assert not UsageDrain(Config(max_streams=2)).take(first)
