"""The store writer: what generations produce is written behind them, whatever the store does."""

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
    """A store that keeps batches as they come, and has the faults that a test wants."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.batches: list[Batch] = []
        self.interrupted: list[str] = []
        self.unreadable: set[str] = set()  # generations whose end in the store goes wrong
        self.swept: list[float] = []
        self.attempts = 0
        self.fault: Callable[[Batch], Exception | None] = lambda batch: None
        self.free = threading.Event()  # a write goes on when it is set
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
        return any(each.stream_id == stream_id for b in self.batches for each in b.new)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until this is so, which is looked at after each change."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_TIMEOUT)

    def attempt(self, more: int = 1) -> None:
        """Wait until somebody has tried to write so many times more."""
        wanted = self.attempts + more
        self.until(lambda: self.attempts >= wanted)

    def chunks(self, stream_id: str) -> list[Chunk]:
        return [c for batch in self.batches for c in batch.chunks if c.stream_id == stream_id]

    def events(self, stream_id: str) -> list[tuple[int, Event]]:
        """The numbered events of a generation, in the order in which they were written."""
        return [
            (number, event)
            for chunk in self.chunks(stream_id)
            for number, (_, event) in enumerate(chunk.events, chunk.first_seq)
        ]

    def text(self, stream_id: str) -> str:
        return "".join(text_of(event) for _, event in self.events(stream_id))

    def end_of(self, stream_id: str) -> GenerationEnd:
        (found,) = [e for batch in self.batches for e in batch.ends if e.stream_id == stream_id]
        return found


class Desk:
    """A store writer at a shelf, and generations whose events a test makes."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.store_writer = StoreWriter(cast(Generations, self.shelf), "worker-1")

    def begin(self, stream_id: str = "a-stream", max_bytes: int = 1_000_000) -> Generation:
        recording = Generation(stream_id, "somebody", EventLog(max_bytes), started_at=now())
        self.store_writer.add(recording)
        return recording

    def end(self, recording: Generation) -> None:
        recording.log.end(lambda: Done("stop", METRICS))
        recording.ended_at = now()
        self.store_writer.notify_end()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.shelf.free.set()
    made.shelf.fault = lambda batch: None
    made.store_writer.close()


def add(recording: Generation, *events: str | Delta) -> None:
    """What a run does with what it gets from a model."""
    for each in events:
        event = Content(each) if isinstance(each, str) else each
        recording.record_text(text_of(event), now())
        recording.log.append(event)


def test_each_event_is_written_once_in_order_and_with_its_end(desk: Desk) -> None:
    """Chunks hold new events only; the end comes with the text as it is kept."""
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
    (begun,) = [each for batch in desk.shelf.batches for each in batch.new]
    assert (begun.stream_id, begun.owner, begun.worker) == ("a-stream", "somebody", "worker-1")
    assert not desk.store_writer.is_pending("a-stream")


def test_an_event_is_written_with_the_time_at_which_it_came(desk: Desk) -> None:
    """Milliseconds since the generation began, so that a replay can tell them."""
    recording = desk.begin()
    recording.record_text("a", recording.started_at + 1.25)
    recording.log.append(Content("a"))
    desk.shelf.until(lambda: desk.shelf.text("a-stream") == "a")
    assert desk.shelf.chunks("a-stream")[0].events[0][0] == 1250.0


def test_an_end_is_written_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends the next message right after an end does not wait for a period."""
    monkeypatch.setattr(module, "PERIOD", 100 * WAIT_TIMEOUT)
    monkeypatch.setattr(module, "PERIOD_MAX", 100 * WAIT_TIMEOUT)
    recording = desk.begin()
    add(recording, "text")
    desk.end(recording)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)


def test_an_end_does_not_write_what_the_others_have(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of all, a transaction has what has ended and nothing else."""
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
def test_turns_that_take_long_are_rarer_as_far_as_little_is_lost(took: float) -> None:
    """An event that just missed a turn is in the store after 0.15 seconds, when the next ends."""
    assert module.period(took) == pytest.approx(min(max(0.1, 100 * took), 0.15 - took))


def test_turns_never_follow_each_other_without_a_pause() -> None:
    """A store that is slow leaves the processor to others in between."""
    assert module.period(1.0) == 1.0 + module.PAUSE


def test_all_generations_of_a_process_share_a_transaction(desk: Desk) -> None:
    """However many are being written, there is one batch for all of them."""
    desk.shelf.free.clear()
    blocker = desk.begin("the-blocker")
    desk.shelf.attempt()
    recordings = [desk.begin(f"stream-{n:03}") for n in range(50)]
    for recording in recordings:
        add(recording, recording.id)
    desk.shelf.free.set()
    desk.shelf.until(lambda: len(desk.shelf.batches) == 2)
    assert {each.stream_id for each in desk.shelf.batches[1].chunks} == {r.id for r in recordings}
    assert blocker.log.last == 0


def test_what_could_not_be_saved_is_saved_as_soon_as_it_can_be(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that fails for a while loses nothing, and is spoken of twice: no line an attempt."""
    desk.shelf.fault = lambda batch: FULL
    recording = desk.begin()
    with caplog.at_level(logging.INFO, "halt.store.writer"):
        for letter in "abc":
            add(recording, letter)
            desk.shelf.attempt()
        assert not desk.store_writer.wait_written("a-stream", 0)
        desk.shelf.fault = lambda batch: None
        desk.end(recording)
        assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.shelf.events("a-stream") == recording.log.read(0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert "the disk is full" in said[0]


def test_it_is_said_when_saving_is_behind_fails_and_is_well_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind while the store takes its time, failed with a reason when it refuses."""
    monkeypatch.setattr(module, "BEHIND", 0.0)
    desk.shelf.free.clear()
    recording = desk.begin()
    desk.shelf.attempt()
    assert desk.store_writer.saving == Saving("behind")
    desk.shelf.fault = lambda batch: FULL
    desk.shelf.free.set()
    desk.shelf.attempt()
    assert desk.store_writer.saving == Saving("failed", "the disk is full")
    desk.shelf.fault = lambda batch: None
    desk.end(recording)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.store_writer.saving == Saving("saved")


def test_a_short_delay_is_not_worth_a_word(desk: Desk) -> None:
    """One attempt that fails is not shown to anybody."""
    desk.shelf.fault = lambda batch: FULL
    desk.begin()
    desk.shelf.attempt(2)
    assert desk.store_writer.saving == Saving("saved")


def test_an_answer_that_cannot_be_saved_holds_up_no_other(desk: Desk) -> None:
    """Where one batch is refused for what is in it, the others are written without it."""

    def fault(batch: Batch) -> Exception | None:
        bad = any(each.stream_id == "the-bad-one" for each in batch.new)
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


def test_an_answer_that_cannot_even_be_read_holds_up_no_other(desk: Desk) -> None:
    """A fault of one is its own: the thread lives, the others are written."""
    bad, good = desk.begin("the-bad-one"), desk.begin("the-good-one")
    bad.log.append(Content("without a time"))
    add(good, "text")
    desk.end(good)
    assert desk.store_writer.wait_written("the-good-one", WAIT_TIMEOUT)
    assert desk.shelf.text("the-good-one") == "text"
    desk.shelf.until(lambda: "the-bad-one" in desk.shelf.interrupted)


def test_text_that_the_log_has_let_go_of_is_saved_all_the_same(desk: Desk) -> None:
    """A log is bounded and a failing store may be away for long; thoughts are lost, text is not."""
    desk.shelf.fault = lambda batch: FULL
    recording = desk.begin(max_bytes=1_000)
    desk.shelf.attempt()
    add(recording, "a", "b", Reasoning("a thought"), *"cdefghijklmnopqrstuvwxyz")
    assert recording.log.first > 4
    desk.shelf.fault = lambda batch: None
    desk.end(recording)
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.shelf.text("a-stream") == "abcdefghijklmnopqrstuvwxyz"
    numbers = [number for number, _ in desk.shelf.events("a-stream")]
    assert numbers == [1, 2, *range(4, 29)]


def test_a_long_backlog_goes_in_several_transactions(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction grows with the time that the store was away."""
    monkeypatch.setattr(module, "BATCH_EVENTS", 10)
    desk.shelf.free.clear()
    recording = desk.begin()
    desk.shelf.attempt()
    add(recording, *"abcdefghijklmnopqrstuvwxyz")
    other = desk.begin("another")
    add(other, "text")
    desk.end(recording)
    desk.end(other)
    desk.shelf.free.set()
    assert desk.store_writer.wait_written("a-stream", WAIT_TIMEOUT)
    assert desk.store_writer.wait_written("another", WAIT_TIMEOUT)
    assert desk.shelf.events("a-stream") == recording.log.read(0)
    sizes = [sum(len(each.events) for each in batch.chunks) for batch in desk.shelf.batches]
    assert max(sizes) <= 10


def test_what_is_given_up_is_ended_in_the_store_when_it_is_well(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """No conversation waits for ever for an answer that memory had no room for."""
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


def test_one_that_cannot_be_ended_holds_up_no_other(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the end of one generation is logged; those given up after it are ended.

    It is tried again a few times, and not more often.
    """
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


def test_what_is_kept_for_a_time_is_swept_while_nothing_is_generated(desk: Desk) -> None:
    """A server that is only looked at removes what was deleted a day ago, all of it."""
    desk.store_writer.start()
    desk.shelf.until(lambda: len(desk.shelf.swept) == 3)


@pytest.mark.parametrize(
    "fault", [ValueError("it is broken"), StoreUnavailable("No.", "it is broken")]
)
def test_a_sweep_that_goes_wrong_is_logged_and_loses_no_event(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """What is written in the same turn counts as written, once, and saving as well."""

    def broken(_: float) -> int:
        raise fault

    monkeypatch.setattr(desk.shelf, "sweep", broken)
    recording = desk.begin()
    add(recording, "text")
    desk.end(recording)
    assert desk.store_writer.wait_written(recording.id, WAIT_TIMEOUT)
    assert desk.shelf.text(recording.id) == "text"
    wait_until(lambda: "it is broken" in caplog.text)
    assert not desk.store_writer.is_failing


def test_what_is_kept_for_a_time_is_swept_a_little_at_a_time(desk: Desk) -> None:
    """As often as there is more of it, and then not for an hour."""
    desk.begin()
    desk.shelf.until(lambda: len(desk.shelf.swept) == 3)
    assert abs(desk.shelf.swept[0] - time.time()) < 60
    desk.end(desk.begin("another"))
    assert desk.store_writer.wait_written("another", WAIT_TIMEOUT)
    assert len(desk.shelf.swept) == 3


def test_a_recorder_that_closes_writes_what_there_is(desk: Desk) -> None:
    """Whatever had ended before is in the store afterwards."""
    recordings = [desk.begin(f"stream-{n:03}") for n in range(20)]
    for recording in recordings:
        add(recording, "text")
        recording.log.end(lambda: Done("stop", METRICS))
    assert desk.store_writer.close()
    assert {e.stream_id for b in desk.shelf.batches for e in b.ends} == {r.id for r in recordings}


def test_a_store_that_is_broken_keeps_no_server_from_leaving(desk: Desk) -> None:
    """Closing takes as long as it may, and says that not all was saved."""
    desk.shelf.fault = lambda batch: FULL
    desk.end(desk.begin())
    assert not desk.store_writer.close(0.2)
    desk.shelf.free.clear()
    assert not desk.store_writer.close(0.2)


# --- with the generations -------------------------------------------------------------------------


class Service(Desk):
    """Generations of a scripted model that are written down."""

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
            made = Service(**settings)
            stack.callback(made.generations.close)
            return made

        yield make


def test_what_is_not_saved_is_not_forgotten(make_service: Callable[..., Service]) -> None:
    """A finished answer stays in memory, however long ago it ended, until the store has it."""
    service = make_service()
    service.shelf.fault = lambda batch: FULL
    run = service.answered()
    service.shelf.attempt(3)  # longer than the keeper waits to forget
    assert service.kept(run)
    service.shelf.fault = lambda batch: None
    wait_until(lambda: not service.kept(run))
    assert service.shelf.end_of(run.id).answer == "text"


def test_memory_is_bounded_also_while_nothing_can_be_saved(
    make_service: Callable[..., Service],
) -> None:
    """Beyond the bound the oldest is given up; when the store is well, nobody waits for it."""
    service = make_service(kept_bytes=1_024)
    service.shelf.fault = lambda batch: FULL
    run = service.answered("x" * 2_000)
    wait_until(lambda: not service.kept(run))
    assert not service.store_writer.is_pending(run.id)
    service.shelf.fault = lambda batch: None
    service.shelf.until(lambda: run.id in service.shelf.interrupted)


def test_an_id_that_the_store_knows_is_in_use(make_service: Callable[..., Service]) -> None:
    """A client's own choice names one generation, also when memory has long forgotten it."""
    service = make_service()
    run = service.answered()
    wait_until(lambda: not service.kept(run))
    with pytest.raises(StreamInUse):
        service.generations.start(ChatRequest(HI, id=run.id))
    assert service.generations.start(ChatRequest(HI, id=run.id), noted=True).id == run.id
    assert service.generations.start(ChatRequest(HI, id="another-id")).id == "another-id"


def test_a_store_that_fails_is_not_asked_for_an_id(make_service: Callable[..., Service]) -> None:
    """Its silence would be a delay of the start, and of the Stop behind it on the same socket."""
    service = make_service()
    service.shelf.fault = lambda batch: FULL
    service.generations.start(ChatRequest(HI))
    wait_until(lambda: service.store_writer.is_failing)
    service.shelf.exists = lambda stream_id: pytest.fail("it was asked")  # type: ignore[method-assign]
    service.generations.start(ChatRequest(HI, id="a-new-one"))


def test_a_store_that_is_silent_delays_no_start(make_service: Callable[..., Service]) -> None:
    """It is asked by another thread, and while that one waits nothing more is asked."""
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
    wait_until(lambda: service.generations._is_stored("stream-9999"))


def test_leaving_saves_what_was_under_way(make_service: Callable[..., Service]) -> None:
    """Every running answer ends as interrupted, and is in the store when closing is over."""
    service = make_service()
    run = service.generations.start(ChatRequest(HI))
    service.upstream.reply().feed("as far as it came")
    wait_until(lambda: run.log.last == 1)
    service.generations.close()
    end = service.shelf.end_of(run.id)
    assert isinstance(end.ended, Failed)
    assert (end.ended.error.code, end.answer) == ("interrupted", "as far as it came")
