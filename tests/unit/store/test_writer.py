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
from halt.errors import StoreUnavailable, StreamInUse, UnknownStream
from halt.store import writer as module
from halt.store.batches import Batch, Chunk, GenerationEnd
from halt.store.generations import Generations
from halt.store.writer import Saving, StoreWriter
from tests.support.scripted_upstream import HI, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until

FULL = StoreUnavailable("This could not be saved: the disk is full.", "the disk is full")
METRICS = Meter().snapshot()


class Shelf:
    """A store in memory that keeps the batches and has the faults that a test sets."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.batches: list[Batch] = []
        self.interrupted: list[str] = []
        self.unreadable: set[str] = set()  # generations whose interruption fails
        self.swept: list[float] = []
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

    def interrupt(self, stream_id: str) -> bool:
        with self._changed:
            self.interrupted.append(stream_id)
            self._changed.notify_all()
        if stream_id in self.unreadable:
            raise ValueError(f"{stream_id} is broken")
        return True

    def sweep(self, now: float) -> int:
        with self._changed:
            self.swept.append(now)
            self._changed.notify_all()
        return int(len(self.swept) < 3)

    def exists(self, stream_id: str) -> bool:
        return any(generation.stream_id == stream_id for b in self.batches for generation in b.new)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, which is checked after each change."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_TIMEOUT)

    def attempt(self, more: int = 1) -> None:
        """Wait for this many further attempts to write."""
        wanted = self.attempts + more
        self.until(lambda: self.attempts >= wanted)

    def chunks(self, stream_id: str) -> list[Chunk]:
        return [c for batch in self.batches for c in batch.chunks if c.stream_id == stream_id]

    def events(self, stream_id: str) -> list[tuple[int, Event]]:
        """The numbered events of a generation in the order of their writes."""
        return [
            (number, event)
            for chunk in self.chunks(stream_id)
            for number, (_, event) in enumerate(chunk.events, chunk.first_seq)
        ]

    def text(self, stream_id: str) -> str:
        return "".join(text_of(event) for _, event in self.events(stream_id))

    def end_of(self, stream_id: str) -> GenerationEnd:
        (end,) = [e for batch in self.batches for e in batch.ends if e.stream_id == stream_id]
        return end


class Desk:
    """A store writer with a `Shelf`, and generations whose events a test appends."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.store_writer = StoreWriter(cast(Generations, self.shelf), "worker-1")

    def begin(self, stream_id: str = "a-stream", max_bytes: int = 1_000_000) -> Generation:
        generation = Generation(stream_id, "somebody", EventLog(max_bytes), started_at=now())
        self.store_writer.add(generation)
        return generation

    def end(self, generation: Generation) -> None:
        generation.log.end(lambda: Done("stop", METRICS))
        generation.ended_at = now()
        self.store_writer.notify_end()


@pytest.fixture
def desk() -> Iterator[Desk]:
    writer_desk = Desk()
    yield writer_desk
    writer_desk.shelf.free.set()
    writer_desk.shelf.fault = lambda batch: None
    writer_desk.store_writer.close()


def add(generation: Generation, *events: str | Delta) -> None:
    """Append events as a run does; a string is a Content event."""
    for each in events:
        event = Content(each) if isinstance(each, str) else each
        generation.record_text(text_of(event), now())
        generation.log.append(event)


def test_writer_saves_each_event_once_in_order_with_the_end(desk: Desk) -> None:
    """Each event is written once and in order, and the end with the answer's whole text."""
    first = desk.begin()
    for letter in "abc":
        add(first, letter)
        desk.shelf.until(lambda: letter in desk.shelf.text("a-stream"))
    add(first, "d", "e")
    desk.end(first)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.shelf.events("a-stream") == first.log.read(0)
    end = desk.shelf.end_of("a-stream")
    assert (end.ended, end.last_seq, end.answer) == (first.log.ended, 6, "abcde")
    (begun,) = [generation for batch in desk.shelf.batches for generation in batch.new]
    assert (begun.stream_id, begun.owner, begun.worker) == ("a-stream", "somebody", "worker-1")
    assert not desk.store_writer.is_pending("a-stream")


def test_saved_event_has_its_arrival_time_in_milliseconds(desk: Desk) -> None:
    """An event is saved with its milliseconds since the generation began."""
    generation = desk.begin()
    generation.record_text("a", generation.started_at + 1.25)
    generation.log.append(Content("a"))
    desk.shelf.until(lambda: desk.shelf.text("a-stream") == "a")
    assert desk.shelf.chunks("a-stream")[0].events[0][0] == 1250.0


def test_end_is_written_without_waiting_for_the_period(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end is written at once, so that the next message does not wait for a period."""
    monkeypatch.setattr(module, "PERIOD", 100 * WAIT_TIMEOUT)
    monkeypatch.setattr(module, "PERIOD_MAX", 100 * WAIT_TIMEOUT)
    generation = desk.begin()
    add(generation, "text")
    desk.end(generation)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)


def test_end_between_two_turns_writes_no_running_generation(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction for an end contains the events of ended generations alone."""
    monkeypatch.setattr(module, "PERIOD", 100 * WAIT_TIMEOUT)
    monkeypatch.setattr(module, "PERIOD_MAX", 100 * WAIT_TIMEOUT)
    running, ended = desk.begin("running"), desk.begin("ended")
    add(running, "text")
    add(ended, "text")
    desk.end(ended)
    assert desk.store_writer.wait_written("ended", WAIT_TIMEOUT)
    assert desk.shelf.text("ended") == "text"
    assert not desk.shelf.chunks("running")
    assert desk.store_writer.close()
    assert desk.shelf.text("running") == "text"


@pytest.mark.parametrize("took", [0.0, 0.001, 0.0012, 0.01, 0.05])
def test_period_grows_with_the_turn_up_to_its_limit(took: float) -> None:
    """A longer turn makes the period longer, but an event is saved after 0.15 seconds at most."""
    assert module.period(took) == pytest.approx(min(max(0.1, 100 * took), 0.15 - took))


def test_period_of_a_slow_turn_adds_a_pause() -> None:
    """After a turn of any length there is a pause of PAUSE seconds."""
    assert module.period(1.0) == 1.0 + module.PAUSE


def test_generations_of_a_process_share_a_transaction(desk: Desk) -> None:
    """The events of 50 generations are written in one batch."""
    desk.shelf.free.clear()
    blocker = desk.begin("the-blocker")
    desk.shelf.attempt()
    generations = [desk.begin(f"stream-{n:03}") for n in range(50)]
    for generation in generations:
        add(generation, generation.id)
    desk.shelf.free.set()
    desk.shelf.until(lambda: len(desk.shelf.batches) == 2)
    assert {chunk.stream_id for chunk in desk.shelf.batches[1].chunks} == {
        r.id for r in generations
    }
    assert blocker.log.last == 0


def test_failing_store_loses_no_event_and_is_logged_twice(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of a failing store are saved when it works again; its log has two lines."""
    desk.shelf.fault = lambda batch: FULL
    generation = desk.begin()
    with caplog.at_level(logging.INFO, "halt.store.writer"):
        for letter in "abc":
            add(generation, letter)
            desk.shelf.attempt()
        assert not desk.store_writer.wait_written("a-stream", 0)
        desk.shelf.fault = lambda batch: None
        desk.end(generation)
        assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.shelf.events("a-stream") == generation.log.read(0)
    log_lines = [record.getMessage() for record in caplog.records]
    assert len(log_lines) == 2, log_lines
    assert "the disk is full" in log_lines[0]


def test_saving_reports_behind_failed_and_saved(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`saving` is "behind" while a write takes long, "failed" with its reason, then "saved"."""
    monkeypatch.setattr(module, "BEHIND", 0.0)
    desk.shelf.free.clear()
    generation = desk.begin()
    desk.shelf.attempt()
    assert desk.store_writer.saving == Saving("behind")
    desk.shelf.fault = lambda batch: FULL
    desk.shelf.free.set()
    desk.shelf.attempt()
    assert desk.store_writer.saving == Saving("failed", "the disk is full")
    desk.shelf.fault = lambda batch: None
    desk.end(generation)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.store_writer.saving == Saving("saved")


def test_saving_during_a_short_failure_is_saved(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure shorter than BEHIND seconds leaves `saving` at "saved"."""
    monkeypatch.setattr(module, "BEHIND", 100 * WAIT_TIMEOUT)
    desk.shelf.fault = lambda batch: FULL
    desk.begin()
    desk.shelf.attempt(2)
    assert desk.store_writer.saving == Saving("saved")


def test_unsavable_generation_delays_no_other_generation(desk: Desk) -> None:
    """A generation that the store refuses is interrupted, and the others are written."""

    def fault(batch: Batch) -> Exception | None:
        bad = any(generation.stream_id == "the-bad-one" for generation in batch.new)
        return ValueError("it cannot be encoded") if bad else None

    desk.shelf.fault = fault
    bad, good = desk.begin("the-bad-one"), desk.begin("the-good-one")
    add(good, "text")
    desk.end(good)
    assert desk.store_writer.wait_written("the-good-one", WAIT_TIMEOUT)
    assert desk.store_writer.wait_written("the-bad-one", WAIT_TIMEOUT)
    assert desk.shelf.text("the-good-one") == "text"
    assert desk.shelf.end_of("the-good-one").answer == "text"
    assert bad.log.ended is None
    desk.shelf.until(lambda: "the-bad-one" in desk.shelf.interrupted)


def test_unreadable_generation_delays_no_other_generation(desk: Desk) -> None:
    """A generation whose events cannot be read is interrupted, and the others are written."""
    bad, good = desk.begin("the-bad-one"), desk.begin("the-good-one")
    bad.log.append(Content("without a time"))
    add(good, "text")
    desk.end(good)
    assert desk.store_writer.wait_written("the-good-one", WAIT_TIMEOUT)
    assert desk.shelf.text("the-good-one") == "text"
    desk.shelf.until(lambda: "the-bad-one" in desk.shelf.interrupted)


def test_text_dropped_from_the_log_is_saved_without_its_thoughts(desk: Desk) -> None:
    """Text that the bounded log has dropped while the store failed is saved; thoughts are lost."""
    desk.shelf.fault = lambda batch: FULL
    generation = desk.begin(max_bytes=1_000)
    desk.shelf.attempt()
    add(generation, "a", "b", Reasoning("a thought"), *"cdefghijklmnopqrstuvwxyz")
    assert generation.log.first > 4
    desk.shelf.fault = lambda batch: None
    desk.end(generation)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.shelf.text("a-stream") == "abcdefghijklmnopqrstuvwxyz"
    numbers = [number for number, _ in desk.shelf.events("a-stream")]
    assert numbers == [1, 2, *range(4, 29)]


def test_long_backlog_is_written_in_bounded_transactions(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog is written in transactions of BATCH_EVENTS events at most."""
    monkeypatch.setattr(module, "BATCH_EVENTS", 10)
    desk.shelf.free.clear()
    generation = desk.begin()
    desk.shelf.attempt()
    add(generation, *"abcdefghijklmnopqrstuvwxyz")
    other = desk.begin("another")
    add(other, "text")
    desk.end(generation)
    desk.end(other)
    desk.shelf.free.set()
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.store_writer.wait_written("another", WAIT_TIMEOUT)
    assert desk.shelf.events("a-stream") == generation.log.read(0)
    sizes = [sum(len(chunk.events) for chunk in batch.chunks) for batch in desk.shelf.batches]
    assert max(sizes) <= 10


def test_dropped_generations_are_interrupted_when_the_store_works(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Generations dropped for lack of memory are interrupted in the store when it works again."""
    desk.shelf.fault = lambda batch: FULL
    kept = desk.begin("the-kept-one")
    for n in range(3):
        desk.begin(f"given-up-{n}")
    desk.shelf.attempt()
    desk.store_writer.drop(["given-up-0", "given-up-1"])
    desk.store_writer.drop(["given-up-2", "never-heard-of"])
    add(kept, "text")
    desk.shelf.fault = lambda batch: None
    desk.shelf.until(lambda: len(desk.shelf.interrupted) == 3)
    assert sorted(desk.shelf.interrupted) == [f"given-up-{n}" for n in range(3)]
    assert desk.store_writer.is_pending("the-kept-one")
    assert sum("memory" in record.getMessage() for record in caplog.records) == 1


def test_interrupt_that_fails_delays_no_other_and_is_retried(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed interruption is logged and retried INTERRUPT_TRIES times; the others are
    interrupted."""
    monkeypatch.setattr(module, "LATER", 0.01)
    desk.shelf.unreadable = {"broken"}
    desk.store_writer.interrupt(["broken", "after-it", "and-that"])
    desk.shelf.until(lambda: {"after-it", "and-that"} <= set(desk.shelf.interrupted))
    desk.shelf.until(lambda: desk.shelf.interrupted.count("broken") == module.INTERRUPT_TRIES)
    assert desk.shelf.interrupted.count("after-it") == 1
    desk.store_writer.interrupt(["the-next"])
    desk.shelf.until(lambda: "the-next" in desk.shelf.interrupted)
    assert desk.shelf.interrupted.count("broken") == module.INTERRUPT_TRIES
    assert "broken is broken" in caplog.text


def test_sweep_of_an_idle_writer_removes_all_expired_rows(desk: Desk) -> None:
    """A writer without generations removes all expired rows, step by step."""
    desk.store_writer.start()
    desk.shelf.until(lambda: len(desk.shelf.swept) == 3)


@pytest.mark.parametrize(
    "fault",
    [ValueError("it is broken"), StoreUnavailable("No.", "it is broken")],
    ids=["exception", "store unavailable"],
)
def test_sweep_that_fails_is_logged_and_loses_no_event(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """A sweep that fails is logged; the events of the same turn are written once."""

    def broken(_: float) -> int:
        raise fault

    monkeypatch.setattr(desk.shelf, "sweep", broken)
    generation = desk.begin()
    add(generation, "text")
    desk.end(generation)
    assert desk.store_writer.wait_written(generation.id, WAIT_TIMEOUT)
    assert desk.shelf.text(generation.id) == "text"
    wait_until(lambda: "it is broken" in caplog.text)
    assert not desk.store_writer.is_failing


def test_sweep_repeats_until_no_expired_row_is_left(desk: Desk) -> None:
    """Sweeps follow one another while rows are expired, then none runs for an hour."""
    desk.begin()
    desk.shelf.until(lambda: len(desk.shelf.swept) == 3)
    assert abs(desk.shelf.swept[0] - time.time()) < 60
    desk.end(desk.begin("another"))
    assert desk.store_writer.wait_written("another", WAIT_TIMEOUT)
    assert len(desk.shelf.swept) == 3


def test_close_writes_all_ended_generations(desk: Desk) -> None:
    """After `close` every ended generation is in the store."""
    generations = [desk.begin(f"stream-{n:03}") for n in range(20)]
    for generation in generations:
        add(generation, "text")
        generation.log.end(lambda: Done("stop", METRICS))
    assert desk.store_writer.close()
    assert {e.stream_id for b in desk.shelf.batches for e in b.ends} == {r.id for r in generations}


def test_close_with_a_broken_store_returns_false_in_time(desk: Desk) -> None:
    """With a failing or blocked store `close` returns False after its timeout."""
    desk.shelf.fault = lambda batch: FULL
    desk.end(desk.begin())
    assert not desk.store_writer.close(0.2)
    desk.shelf.free.clear()
    assert not desk.store_writer.close(0.2)


# --- with a generation service --------------------------------------------------------------------


class Service(Desk):
    """A service on a scripted upstream whose generations are saved in a `Shelf`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.upstream = ScriptedUpstream()
        config = Config(**{"log_seconds": 0.0, **settings})
        self.generations = GenerationService(
            config, self.upstream, StopRegistry(), self.store_writer
        )

    def answered(self, text: str = "text") -> Run:
        """A generation that has ended and whose connection is closed."""
        run = self.generations.start(ChatRequest(HI))
        reply = self.upstream.reply()
        reply.feed(text)
        reply.end()
        wait_until(lambda: run.log.ended is not None and self.generations.open_streams == 0)
        return run

    def kept(self, run: Run) -> bool:
        try:
            self.generations.run(run.id, None)
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
    service.shelf.fault = lambda batch: FULL
    run = service.answered()
    service.shelf.attempt(3)  # longer than the keeper waits before it forgets a run
    assert service.kept(run)
    service.shelf.fault = lambda batch: None
    wait_until(lambda: not service.kept(run))
    assert service.shelf.end_of(run.id).answer == "text"


def test_unsaved_runs_over_the_memory_limit_are_dropped(
    make_service: Callable[..., Service],
) -> None:
    """Over the memory limit an unsaved run is dropped and later interrupted in the store."""
    service = make_service(kept_bytes=1_024)
    service.shelf.fault = lambda batch: FULL
    run = service.answered("x" * 2_000)
    wait_until(lambda: not service.kept(run))
    assert not service.store_writer.is_pending(run.id)
    service.shelf.fault = lambda batch: None
    service.shelf.until(lambda: run.id in service.shelf.interrupted)


def test_start_with_an_id_in_the_store_is_refused(make_service: Callable[..., Service]) -> None:
    """An ID that is in the store is refused as in use, also when no memory of it is left."""
    service = make_service()
    run = service.answered()
    wait_until(lambda: not service.kept(run))
    with pytest.raises(StreamInUse):
        service.generations.start(ChatRequest(HI, id=run.id))
    assert service.generations.start(ChatRequest(HI, id=run.id), noted=True).id == run.id
    assert service.generations.start(ChatRequest(HI, id="another-id")).id == "another-id"


def test_start_with_a_failing_store_skips_the_id_check(
    make_service: Callable[..., Service],
) -> None:
    """While the store fails, a start does not look up its ID there."""
    service = make_service()
    service.shelf.fault = lambda batch: FULL
    service.generations.start(ChatRequest(HI))
    wait_until(lambda: service.store_writer.is_failing)
    service.shelf.exists = lambda stream_id: pytest.fail("the store got a lookup")  # type: ignore[method-assign]
    service.generations.start(ChatRequest(HI, id="a-new-one"))


def test_start_with_a_silent_store_is_not_delayed(make_service: Callable[..., Service]) -> None:
    """While an ID lookup gets no answer, further starts look up nothing."""
    service = make_service()
    questions: list[str] = []
    answers = threading.Event()

    def silent(stream_id: str) -> bool:
        questions.append(stream_id)
        return answers.wait(60)

    service.shelf.exists = silent  # type: ignore[method-assign]
    try:
        for number in range(20):
            service.generations.start(ChatRequest(HI, id=f"stream-{number:04}"))
            service.generations.stop(f"stream-{number:04}", None)
        assert len(questions) < 20
    finally:
        answers.set()
    wait_until(lambda: service.store_writer.exists("stream-9999"))


def test_close_of_the_service_saves_running_generations_as_interrupted(
    make_service: Callable[..., Service],
) -> None:
    """Closing the service ends a running generation as interrupted and saves its text."""
    service = make_service()
    run = service.generations.start(ChatRequest(HI))
    service.upstream.reply().feed("as far as it came")
    wait_until(lambda: run.log.last == 1)
    service.generations.close()
    end = service.shelf.end_of(run.id)
    assert isinstance(end.ended, Failed)
    assert (end.ended.error.code, end.answer) == ("interrupted", "as far as it came")
