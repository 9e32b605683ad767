"""The store writer: saves the events of generations in the background, also past store failures."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from halt.clock import now
from halt.config.settings import Config
from halt.core.events import Content, Delta, Done, Event, Failed, Reasoning, text_of
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.request import ChatRequest
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.errors import StoreUnavailable, StreamInUse, UnknownStream
from halt.store import writer as module
from halt.store.batches import Batch, Chunk, GenerationEnd
from halt.store.generations import Generations
from halt.store.writer import Saving, StoreWriter
from tests.support.scripted_upstream import HI, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until

FULL = StoreUnavailable("Saving failed: the disk is full.", "the disk is full")
METRICS = Meter().snapshot()


def key(stream_id: str) -> StreamKey:
    return StreamKey("somebody", stream_id)


class MemoryStore:
    """A store in memory that keeps the batches and has the faults that a test sets."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.batches: list[Batch] = []
        self.interrupted: list[str] = []
        self.failing_ids: set[str] = set()  # generations whose interruption fails
        self.sweep_times: list[float] = []
        self.attempts = 0
        self.fault: Callable[[Batch], Exception | None] = lambda batch: None
        self.free = threading.Event()  # a write waits until it is set
        self.free.set()

    def write(self, batch: Batch) -> None:
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
        assert self.free.wait(WAIT_TIMEOUT)
        fault = self.fault(batch)
        if fault is not None:
            raise fault
        with self._changed:
            self.batches.append(batch)
            self._changed.notify_all()

    def interrupt(self, key: StreamKey) -> bool:
        with self._changed:
            self.interrupted.append(key.id)
            self._changed.notify_all()
        if key.id in self.failing_ids:
            raise ValueError(f"{key.id} is broken")
        return True

    def sweep(self, now: float) -> int:
        with self._changed:
            self.sweep_times.append(now)
            self._changed.notify_all()
        return int(len(self.sweep_times) < 3)

    def exists(self, key: StreamKey) -> bool:
        return any(generation.key == key for b in self.batches for generation in b.new)

    def wait_for_change(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, which is checked after each change."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_TIMEOUT)

    def wait_attempts(self, count: int = 1) -> None:
        """Wait for this many further attempts to write."""
        attempts = self.attempts + count
        self.wait_for_change(lambda: self.attempts >= attempts)

    def chunks(self, stream_id: str) -> list[Chunk]:
        return [c for batch in self.batches for c in batch.chunks if c.key.id == stream_id]

    def events(self, stream_id: str) -> list[tuple[int, Event]]:
        """The numbered events of a generation in the order of their writes."""
        return [
            (number, event)
            for chunk in self.chunks(stream_id)
            for number, (_, event) in enumerate(chunk.events, chunk.first_seq)
        ]

    def text(self, stream_id: str) -> str:
        return "".join(text_of(event) for _, event in self.events(stream_id))

    def end_event(self, stream_id: str) -> GenerationEnd:
        (end,) = [e for batch in self.batches for e in batch.ends if e.key.id == stream_id]
        return end


class WriterHarness:
    """A store writer with a `MemoryStore`, and generations whose events a test appends."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store_writer = StoreWriter(cast(Generations, self.store), "worker-1")

    def begin(self, stream_id: str = "a-stream", max_bytes: int = 1_000_000) -> Generation:
        generation = Generation(key(stream_id), EventLog(max_bytes), started_at=now())
        self.store_writer.add(generation)
        return generation

    def end(self, generation: Generation) -> None:
        generation.log.end(lambda: Done("stop", METRICS))
        generation.ended_at = now()
        self.store_writer.notify_end()


@pytest.fixture
def harness() -> Iterator[WriterHarness]:
    writer_harness = WriterHarness()
    yield writer_harness
    writer_harness.store.free.set()
    writer_harness.store.fault = lambda batch: None
    writer_harness.store_writer.close()


def add(generation: Generation, *events: str | Delta) -> None:
    """Append events as a run does; a string is a Content event."""
    for item in events:
        event = Content(item) if isinstance(item, str) else item
        generation.record_text(text_of(event), now())
        generation.log.append(event)


def test_writer_saves_each_event_once_in_order_with_the_end(harness: WriterHarness) -> None:
    """Each event is written once and in order, and the end with the answer's whole text."""
    first = harness.begin()
    for letter in "abc":
        add(first, letter)
        harness.store.wait_for_change(lambda: letter in harness.store.text("a-stream"))
    add(first, "d", "e")
    harness.end(first)
    assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)
    assert harness.store.events("a-stream") == first.log.read(0)
    end = harness.store.end_event("a-stream")
    assert (end.ended, end.last_seq, end.answer) == (first.log.ended, 6, "abcde")
    (new_generation,) = [generation for batch in harness.store.batches for generation in batch.new]
    assert (new_generation.key, new_generation.worker) == (first.key, "worker-1")
    assert not harness.store_writer.is_pending(key("a-stream"))


def test_saved_event_has_its_arrival_time_in_milliseconds(harness: WriterHarness) -> None:
    """An event is saved with its milliseconds since the generation began."""
    generation = harness.begin()
    generation.record_text("a", generation.started_at + 1.25)
    generation.log.append(Content("a"))
    harness.store.wait_for_change(lambda: harness.store.text("a-stream") == "a")
    assert harness.store.chunks("a-stream")[0].events[0][0] == 1250.0


def test_end_is_written_without_waiting_for_the_period(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end is written at once, so that the next message does not wait for a period."""
    monkeypatch.setattr(module, "PERIOD", 100 * WAIT_TIMEOUT)
    monkeypatch.setattr(module, "PERIOD_MAX", 100 * WAIT_TIMEOUT)
    generation = harness.begin()
    add(generation, "text")
    harness.end(generation)
    assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)


def test_end_between_two_turns_writes_no_running_generation(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction for an end contains the events of ended generations alone."""
    monkeypatch.setattr(module, "PERIOD", 100 * WAIT_TIMEOUT)
    monkeypatch.setattr(module, "PERIOD_MAX", 100 * WAIT_TIMEOUT)
    running_generation, ended_generation = harness.begin("running"), harness.begin("ended")
    add(running_generation, "text")
    add(ended_generation, "text")
    harness.end(ended_generation)
    assert harness.store_writer.wait_written(key("ended"), WAIT_TIMEOUT)
    assert harness.store.text("ended") == "text"
    assert not harness.store.chunks("running")
    assert harness.store_writer.close()
    assert harness.store.text("running") == "text"


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0012, 0.01, 0.05])
def test_period_grows_with_the_turn_up_to_its_limit(seconds: float) -> None:
    """A longer turn makes the period longer, but an event is saved after 0.15 seconds at most."""
    assert module.period(seconds) == pytest.approx(min(max(0.1, 100 * seconds), 0.15 - seconds))


def test_period_of_a_slow_turn_adds_a_pause() -> None:
    """After a turn of any length there is a pause of PAUSE seconds."""
    assert module.period(1.0) == 1.0 + module.PAUSE


def test_generations_of_a_process_share_a_transaction(harness: WriterHarness) -> None:
    """The events of 50 generations are written in one batch."""
    harness.store.free.clear()
    blocker = harness.begin("the-blocker")
    harness.store.wait_attempts()
    generations = [harness.begin(f"stream-{n:03}") for n in range(50)]
    for generation in generations:
        add(generation, generation.id)
    harness.store.free.set()
    harness.store.wait_for_change(lambda: len(harness.store.batches) == 2)
    assert {chunk.key.id for chunk in harness.store.batches[1].chunks} == {
        r.id for r in generations
    }
    assert blocker.log.last == 0


def test_failing_store_loses_no_event_and_is_logged_twice(
    harness: WriterHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of a failing store are saved when it works again; its log has two lines."""
    harness.store.fault = lambda batch: FULL
    generation = harness.begin()
    with caplog.at_level(logging.INFO, "halt.store.writer"):
        for letter in "abc":
            add(generation, letter)
            harness.store.wait_attempts()
        assert not harness.store_writer.wait_written(key("a-stream"), 0)
        harness.store.fault = lambda batch: None
        harness.end(generation)
        assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)
    assert harness.store.events("a-stream") == generation.log.read(0)
    log_lines = [record.getMessage() for record in caplog.records]
    assert len(log_lines) == 2, log_lines
    assert "the disk is full" in log_lines[0]


def test_saving_reports_behind_failed_and_saved(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`saving` is "behind" while a write takes long, "failed" with its reason, then "saved"."""
    monkeypatch.setattr(module, "BEHIND", 0.0)
    harness.store.free.clear()
    generation = harness.begin()
    harness.store.wait_attempts()
    assert harness.store_writer.saving == Saving("behind")
    harness.store.fault = lambda batch: FULL
    harness.store.free.set()
    harness.store.wait_attempts()
    assert harness.store_writer.saving == Saving("failed", "the disk is full")
    harness.store.fault = lambda batch: None
    harness.end(generation)
    assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)
    assert harness.store_writer.saving == Saving("saved")


def test_saving_during_a_short_failure_is_saved(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure shorter than BEHIND seconds leaves `saving` at "saved"."""
    monkeypatch.setattr(module, "BEHIND", 100 * WAIT_TIMEOUT)
    harness.store.fault = lambda batch: FULL
    harness.begin()
    harness.store.wait_attempts(2)
    assert harness.store_writer.saving == Saving("saved")


def test_unsavable_generation_delays_no_other_generation(harness: WriterHarness) -> None:
    """A generation that the store refuses is interrupted, and the others are written."""

    def fault(batch: Batch) -> Exception | None:
        has_bad_generation = any(generation.key.id == "the-bad-one" for generation in batch.new)
        return ValueError("it cannot be encoded") if has_bad_generation else None

    harness.store.fault = fault
    failing_generation, working_generation = (
        harness.begin("the-bad-one"),
        harness.begin("the-good-one"),
    )
    add(working_generation, "text")
    harness.end(working_generation)
    assert harness.store_writer.wait_written(key("the-good-one"), WAIT_TIMEOUT)
    assert harness.store_writer.wait_written(key("the-bad-one"), WAIT_TIMEOUT)
    assert harness.store.text("the-good-one") == "text"
    assert harness.store.end_event("the-good-one").answer == "text"
    assert failing_generation.log.ended is None
    harness.store.wait_for_change(lambda: "the-bad-one" in harness.store.interrupted)


def test_unreadable_generation_delays_no_other_generation(harness: WriterHarness) -> None:
    """A generation whose events cannot be read is interrupted, and the others are written."""
    failing_generation, working_generation = (
        harness.begin("the-bad-one"),
        harness.begin("the-good-one"),
    )
    failing_generation.log.append(Content("without a time"))
    add(working_generation, "text")
    harness.end(working_generation)
    assert harness.store_writer.wait_written(key("the-good-one"), WAIT_TIMEOUT)
    assert harness.store.text("the-good-one") == "text"
    harness.store.wait_for_change(lambda: "the-bad-one" in harness.store.interrupted)


def test_text_dropped_from_the_log_is_saved_without_its_thoughts(harness: WriterHarness) -> None:
    """Text that the bounded log has dropped while the store failed is saved; thoughts are lost."""
    harness.store.fault = lambda batch: FULL
    generation = harness.begin(max_bytes=1_000)
    harness.store.wait_attempts()
    add(generation, "a", "b", Reasoning("a thought"), *"cdefghijklmnopqrstuvwxyz")
    assert generation.log.first > 4
    harness.store.fault = lambda batch: None
    harness.end(generation)
    assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)
    assert harness.store.text("a-stream") == "abcdefghijklmnopqrstuvwxyz"
    numbers = [number for number, _ in harness.store.events("a-stream")]
    assert numbers == [1, 2, *range(4, 29)]


def test_long_backlog_is_written_in_bounded_transactions(
    harness: WriterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog is written in transactions of BATCH_EVENTS events at most."""
    monkeypatch.setattr(module, "BATCH_EVENTS", 10)
    harness.store.free.clear()
    generation = harness.begin()
    harness.store.wait_attempts()
    add(generation, *"abcdefghijklmnopqrstuvwxyz")
    other_generation = harness.begin("another")
    add(other_generation, "text")
    harness.end(generation)
    harness.end(other_generation)
    harness.store.free.set()
    assert harness.store_writer.wait_written(key("a-stream"), WAIT_TIMEOUT)
    assert harness.store_writer.wait_written(key("another"), WAIT_TIMEOUT)
    assert harness.store.events("a-stream") == generation.log.read(0)
    sizes = [sum(len(chunk.events) for chunk in batch.chunks) for batch in harness.store.batches]
    assert max(sizes) <= 10


def test_dropped_generations_are_interrupted_when_the_store_works(
    harness: WriterHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """Generations dropped for lack of memory are interrupted in the store when it works again."""
    harness.store.fault = lambda batch: FULL
    kept_generation = harness.begin("the-kept-one")
    for n in range(3):
        harness.begin(f"given-up-{n}")
    harness.store.wait_attempts()
    harness.store_writer.drop([key("given-up-0"), key("given-up-1")])
    harness.store_writer.drop([key("given-up-2"), key("never-heard-of")])
    add(kept_generation, "text")
    harness.store.fault = lambda batch: None
    harness.store.wait_for_change(lambda: len(harness.store.interrupted) == 3)
    assert sorted(harness.store.interrupted) == [f"given-up-{n}" for n in range(3)]
    assert harness.store_writer.is_pending(key("the-kept-one"))
    assert sum("memory" in record.getMessage() for record in caplog.records) == 1


def test_interrupt_that_fails_delays_no_other_and_is_retried(
    harness: WriterHarness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed interruption is logged and retried INTERRUPT_TRIES times; the others are
    interrupted."""
    monkeypatch.setattr(module, "LATER", 0.01)
    harness.store.failing_ids = {"broken"}
    harness.store_writer.interrupt([key("broken"), key("after-it"), key("and-that")])
    harness.store.wait_for_change(
        lambda: {"after-it", "and-that"} <= set(harness.store.interrupted)
    )
    harness.store.wait_for_change(
        lambda: harness.store.interrupted.count("broken") == module.INTERRUPT_TRIES
    )
    assert harness.store.interrupted.count("after-it") == 1
    harness.store_writer.interrupt([key("the-next")])
    harness.store.wait_for_change(lambda: "the-next" in harness.store.interrupted)
    assert harness.store.interrupted.count("broken") == module.INTERRUPT_TRIES
    assert "broken is broken" in caplog.text


def test_sweep_of_an_idle_writer_removes_all_expired_rows(harness: WriterHarness) -> None:
    """A writer without generations removes all expired rows, step by step."""
    harness.store_writer.start()
    harness.store.wait_for_change(lambda: len(harness.store.sweep_times) == 3)


@pytest.mark.parametrize(
    "fault",
    [ValueError("it is broken"), StoreUnavailable("No.", "it is broken")],
    ids=["exception", "store unavailable"],
)
def test_sweep_that_fails_is_logged_and_loses_no_event(
    harness: WriterHarness,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    """A sweep that fails is logged; the events of the same turn are written once."""

    def failing_sweep(_: float) -> int:
        raise fault

    monkeypatch.setattr(harness.store, "sweep", failing_sweep)
    generation = harness.begin()
    add(generation, "text")
    harness.end(generation)
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)
    assert harness.store.text(generation.id) == "text"
    wait_until(lambda: "it is broken" in caplog.text)
    assert not harness.store_writer.is_failing


def test_sweep_repeats_until_no_expired_row_is_left(harness: WriterHarness) -> None:
    """Sweeps follow one another while rows are expired, then none runs for an hour."""
    harness.begin()
    harness.store.wait_for_change(lambda: len(harness.store.sweep_times) == 3)
    assert abs(harness.store.sweep_times[0] - time.time()) < 60
    harness.end(harness.begin("another"))
    assert harness.store_writer.wait_written(key("another"), WAIT_TIMEOUT)
    assert len(harness.store.sweep_times) == 3


def test_close_writes_all_ended_generations(harness: WriterHarness) -> None:
    """After `close` every ended generation is in the store."""
    generations = [harness.begin(f"stream-{n:03}") for n in range(20)]
    for generation in generations:
        add(generation, "text")
        generation.log.end(lambda: Done("stop", METRICS))
    assert harness.store_writer.close()
    assert {e.key.id for b in harness.store.batches for e in b.ends} == {r.id for r in generations}


def test_close_with_a_broken_store_returns_false_in_time(harness: WriterHarness) -> None:
    """With a failing or blocked store `close` returns False after its timeout."""
    harness.store.fault = lambda batch: FULL
    harness.end(harness.begin())
    assert not harness.store_writer.close(0.2)
    harness.store.free.clear()
    assert not harness.store_writer.close(0.2)


# --- with a generation service --------------------------------------------------------------------


class Service(WriterHarness):
    """A service on a scripted upstream whose generations are saved in a `MemoryStore`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.upstream = ScriptedUpstream()
        config = Config(**{"log_seconds": 0.0, **settings})
        self.generations = GenerationService(
            config, self.upstream, StopRegistry(), self.store_writer
        )

    def finished_run(self, text: str = "text") -> Run:
        """A generation that has ended and whose connection is closed."""
        run = self.generations.start(ChatRequest(HI))
        reply = self.upstream.reply()
        reply.feed(text)
        reply.end()
        wait_until(lambda: run.log.ended is not None and self.generations.open_streams == 0)
        return run

    def is_kept(self, run: Run) -> bool:
        try:
            self.generations.run(run.key)
        except UnknownStream:
            return False
        return True


@pytest.fixture
def make_service() -> Iterator[Callable[..., Service]]:
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Service:
            service = Service(**settings)
            stack.callback(service.generations.close)
            return service

        yield make


def test_ended_run_stays_in_memory_until_saved(make_service: Callable[..., Service]) -> None:
    """An ended run stays in memory, however old, until the store has it."""
    service = make_service()
    service.store.fault = lambda batch: FULL
    run = service.finished_run()
    service.store.wait_attempts(3)  # longer than the keeper waits before it forgets a run
    assert service.is_kept(run)
    service.store.fault = lambda batch: None
    wait_until(lambda: not service.is_kept(run))
    assert service.store.end_event(run.id).answer == "text"


def test_unsaved_runs_over_the_memory_limit_are_dropped(
    make_service: Callable[..., Service],
) -> None:
    """Over the memory limit an unsaved run is dropped and later interrupted in the store."""
    service = make_service(kept_bytes=1_024)
    service.store.fault = lambda batch: FULL
    run = service.finished_run("x" * 2_000)
    wait_until(lambda: not service.is_kept(run))
    assert not service.store_writer.is_pending(run.key)
    service.store.fault = lambda batch: None
    service.store.wait_for_change(lambda: run.id in service.store.interrupted)


def test_start_with_an_id_in_the_store_is_refused(make_service: Callable[..., Service]) -> None:
    """An ID that is in the store is refused as in use, also when no memory of it is left."""
    service = make_service()
    run = service.finished_run()
    wait_until(lambda: not service.is_kept(run))
    with pytest.raises(StreamInUse):
        service.generations.start(ChatRequest(HI, id=run.id))
    assert service.generations.start(ChatRequest(HI, id=run.id), noted=True).id == run.id
    assert service.generations.start(ChatRequest(HI, id="another-id")).id == "another-id"


def test_start_with_a_failing_store_skips_the_id_check(
    make_service: Callable[..., Service],
) -> None:
    """While the store fails, a start does not look up its ID there."""
    service = make_service()
    service.store.fault = lambda batch: FULL
    service.generations.start(ChatRequest(HI))
    wait_until(lambda: service.store_writer.is_failing)
    service.store.exists = lambda key: pytest.fail("the store got a lookup")  # type: ignore[method-assign]
    service.generations.start(ChatRequest(HI, id="a-new-one"))


def test_start_with_a_silent_store_is_not_delayed(make_service: Callable[..., Service]) -> None:
    """While an ID lookup gets no answer, further starts look up nothing."""
    service = make_service()
    questions: list[StreamKey] = []
    answers = threading.Event()

    def wait_for_release(key: StreamKey) -> bool:
        questions.append(key)
        return answers.wait(60)

    service.store.exists = wait_for_release  # type: ignore[method-assign]
    try:
        for number in range(20):
            service.generations.start(ChatRequest(HI, id=f"stream-{number:04}"))
            service.generations.stop(StreamKey("", f"stream-{number:04}"))
        assert len(questions) < 20
    finally:
        answers.set()
    wait_until(lambda: service.store_writer.exists(key("stream-9999")))


def test_close_of_the_service_saves_running_generations_as_interrupted(
    make_service: Callable[..., Service],
) -> None:
    """Closing the service ends a running generation as interrupted and saves its text."""
    service = make_service()
    run = service.generations.start(ChatRequest(HI))
    service.upstream.reply().feed("as far as it came")
    wait_until(lambda: run.log.last == 1)
    service.generations.close()
    end = service.store.end_event(run.id)
    assert isinstance(end.ended, Failed)
    assert (end.ended.error.code, end.answer) == ("interrupted", "as far as it came")
