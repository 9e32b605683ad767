"""The count behind a Stop: what a provider reports of an answer that nobody reads any more."""

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
from halt.errors import UpstreamError
from halt.providers.factory import make_upstream
from halt.testing.fake_openai import FakeOpenAI
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream, text_part
from tests.support.waiting import WAIT_TIMEOUT, wait_until

USAGE = {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45}


class Stage:
    """Generations that read on after a Stop, and what they report."""

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream()
        self.reported: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.ended: list[Run] = []
        self._made: list[GenerationService] = []

    def make(self, **settings: Any) -> GenerationService:
        config = Config(**{"exact_usage": True, "orphan_grace": 1e9} | settings)
        self._made.append(GenerationService(config, self.upstream, StopRegistry()))
        return self._made[-1]

    def start(self, generations: GenerationService) -> tuple[Run, ScriptedReply, Reader]:
        """A run whose viewer was shown its first words."""
        number = len(self.upstream.opened)
        run = generations.start(
            ChatRequest(HI),
            on_end=self.ended.append,
            on_usage=lambda run, usage: self.reported.put((run.id, usage)),
        )
        reader = Reader(run)
        reply = self.upstream.reply(number)
        reply.feed("one ")
        reader.wait_text("one ")
        return run, reply, reader

    def close(self) -> None:
        for each in self._made:
            each.close()
        self.upstream.dispose()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def test_the_provider_counts_to_the_end_after_a_stop(stage: Stage) -> None:
    """The log ends at once; the rest is thrown away, and its usage reported afterwards."""
    generations = stage.make()
    run, reply, reader = stage.start(generations)
    receipt = generations.stop(run.id, None)
    assert (receipt.status, receipt.upstream) == ("stopped", "closing")
    events = reader.finish()
    assert isinstance(events[-1][1], Cancelled)
    assert events[-1][1].metrics.tokens_estimated
    assert stage.ended == [run]
    assert not reply.closed
    assert not run.connection.interrupted
    reply.feed("two ", "three")
    reply.end("stop", USAGE)
    assert stage.reported.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)
    assert reply.over.wait(WAIT_TIMEOUT)
    assert run.answer() == (1, "one ")
    assert run.log.last == 2
    wait_until(lambda: not run.reads_usage)
    assert generations.stop(run.id, None).upstream == "closed"


def test_what_is_read_on_takes_no_place(stage: Stage) -> None:
    """A stopped run gives its place back at once."""
    generations = stage.make(max_streams=1)
    run, reply, _ = stage.start(generations)
    generations.stop(run.id, None)
    assert generations.open_streams == 0
    other, _, reader = stage.start(generations)
    assert generations.stop(other.id, None).upstream == "closed"  # one is read on, at most
    reader.finish()
    assert not reply.closed


def test_only_a_stop_is_read_on(stage: Stage) -> None:
    """A limit, a lost viewer or a fault ends the connection as ever."""
    generations = stage.make()
    ends: list[Callable[[Run], object]] = [
        lambda run: run.cancel("no_viewer"),
        lambda run: run.fail(UpstreamError("stalled")),
        lambda run: run.cancel("stop"),  # Ctrl-C in the middle of a read
    ]
    for end in ends:
        run, reply, reader = stage.start(generations)
        end(run)
        assert run.connection.interrupted
        assert reply.over.wait(WAIT_TIMEOUT)
        reader.finish()
    assert stage.reported.empty()


@pytest.mark.parametrize("how", ["off", "nobody"])
def test_without_the_setting_a_stop_closes_the_connection(stage: Stage, how: str) -> None:
    """Nor is anything read on where nobody wants to know."""
    generations = stage.make(exact_usage=how != "off")
    run = generations.start(
        ChatRequest(HI),
        on_usage=(lambda run, usage: stage.reported.put((run.id, usage))) if how == "off" else None,
    )
    stage.upstream.reply()
    assert generations.stop(run.id, None).upstream == "closed"


def test_a_shutdown_ends_what_is_read_on_at_once(stage: Stage) -> None:
    """Nothing outlives the server for the sake of a figure."""
    generations = stage.make()
    run, reply, _ = stage.start(generations)
    generations.stop(run.id, None)
    generations.close()
    assert reply.over.is_set()
    assert not run.reads_usage
    assert stage.reported.empty()


@pytest.mark.parametrize("limit", ["gap_timeout", "run_timeout"])
def test_limits_hold_for_what_is_read_on(stage: Stage, limit: str) -> None:
    """A model that falls silent, or never ends, is let go of."""
    generations = stage.make(**{limit: 0.3})
    run, reply, reader = stage.start(generations)
    generations.stop(run.id, None)
    reader.finish()
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    assert stage.reported.empty()


def test_limits_hold_for_a_stopped_request_without_a_head(stage: Stage) -> None:
    """A server that never answers is let go of after a Stop that waits for its count."""
    stage.upstream.silent = True
    generations = stage.make(first_byte_timeout=0.3)
    run = generations.start(
        ChatRequest(HI), on_usage=lambda run, usage: stage.reported.put((run.id, usage))
    )
    assert stage.upstream.waiting.wait(WAIT_TIMEOUT)
    assert generations.stop(run.id, None).upstream == "closing"
    wait_until(lambda: not run.reads_usage)
    wait_until(lambda: not generations._usage_drain)
    assert stage.reported.empty()


def test_a_fault_while_it_is_read_on_gives_its_place_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of Halt's own: it is logged, the connection closed, and no figure is reported."""
    generations = stage.make()
    run, reply, _ = stage.start(generations)

    def broken(_: float) -> Part:
        raise ZeroDivisionError("in the decoder")

    generations.stop(run.id, None)
    assert len(generations._usage_drain) == 1
    monkeypatch.setattr(reply, "_next", broken)
    reply.feed("two ")
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not len(generations._usage_drain))
    assert "ZeroDivisionError: in the decoder" in caplog.text
    assert stage.reported.empty()


def test_a_stop_before_the_answer_is_read_on_as_well(stage: Stage) -> None:
    """The connection that is being made goes on; what comes of it is counted and never shown."""
    generations = stage.make()
    reply = ScriptedReply()
    stage.upstream = ScriptedUpstream(reply)
    generations = stage.make()
    run = generations.start(
        ChatRequest(HI), on_usage=lambda run, usage: stage.reported.put((run.id, usage))
    )
    stage.upstream.reply()
    reply.wait_reads()
    assert generations.stop(run.id, None).upstream == "closing"
    reply.feed("one")
    reply.end("stop", USAGE)
    assert stage.reported.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)
    assert run.answer() == (0, "")


@pytest.mark.parametrize("text", ["", "end"])
def test_an_end_that_comes_with_the_last_words_is_counted_once(stage: Stage, text: str) -> None:
    """The last words, the end and the count in one read, which meets the Stop."""
    generations = stage.make()
    run, reply, reader = stage.start(generations)
    reply.finish_reason, reply.usage = "stop", USAGE
    generations.stop(run.id, None)
    reply.feed(Part(text_part(text).events if text else (), 1, ended=True))
    reader.finish()
    assert stage.reported.get(timeout=WAIT_TIMEOUT) == (run.id, USAGE)


def test_a_provider_that_tells_no_usage_is_not_reported(stage: Stage) -> None:
    """The estimate stays what there is."""
    generations = stage.make()
    run, reply, _ = stage.start(generations)
    generations.stop(run.id, None)
    reply.feed(Part(text_part("end").events, 1, ended=True))
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    assert stage.reported.empty()


def test_a_callback_that_fails_is_logged_and_holds_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The place and the connection are given back."""
    generations = stage.make()

    def fails(run: Run, usage: dict[str, Any]) -> None:
        raise RuntimeError("the store is full")

    run = generations.start(ChatRequest(HI), on_usage=fails)
    reply = stage.upstream.reply()
    generations.stop(run.id, None)
    reply.end("stop", USAGE)
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_until(lambda: not run.reads_usage)
    wait_until(lambda: "the store is full" in caplog.text)
    wait_until(lambda: not generations._usage_drain)


def test_a_real_server_is_read_to_its_count(fake: FakeOpenAI) -> None:
    """Over the wire: the model writes to its end, and what it reports is the whole answer's."""
    config = Config(base_url=fake.base_url, api_key="fake", exact_usage=True)
    reported: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    generations = GenerationService(config, make_upstream(config), StopRegistry())
    with contextlib.closing(generations):
        run = generations.start(
            ChatRequest(HI, model="stall?n=5&rest=5"), on_usage=lambda _, usage: reported.put(usage)
        )
        record = fake.wait_request()
        record.wait_tokens(5)
        assert generations.stop(run.id, None).upstream == "closing"
        assert not record.closed.is_set()
        record.release()
        assert reported.get(timeout=WAIT_TIMEOUT)["completion_tokens"] == 10


def idle() -> LiveGeneration:
    """A generation that is not under way."""
    return LiveGeneration("a-stream", ChatRequest(HI), None, 1_000)


def test_places_of_the_unheard_are_bounded_and_given_back() -> None:
    """As many as streams; none is left after a close, which interrupts all."""
    usage_drain = UsageDrain(Config(exact_usage=True, max_streams=2))
    first, late, third = idle(), idle(), idle()
    assert usage_drain.take(first)
    assert usage_drain.take(late)
    assert not usage_drain.take(third)
    usage_drain.give_back(late)
    assert not usage_drain.take(first), "another Stop has taken it, and gives it back alone"
    assert usage_drain.take(late)
    usage_drain.give_back(late)
    assert usage_drain.take(third)
    usage_drain.close()
    assert first.connection.interrupted
    assert not usage_drain.take(late)
    assert not UsageDrain(Config(max_streams=2)).take(first)
