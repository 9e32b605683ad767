"""GenerationService: places, memory, and exceptions of callbacks."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from halt.config.settings import Config
from halt.core import capacity as module
from halt.core.request import ChatRequest, Message
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.slots import Slots
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.errors import AtCapacity, Draining, StreamInUse, UnknownStream
from halt.store.writer import StoreWriter
from tests.support.scripted_upstream import HI, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until


class ServiceHarness:
    """Generations of a scripted model."""

    def __init__(self, store_writer: StoreWriter | None = None, **settings: Any) -> None:
        self.upstream = ScriptedUpstream()
        self.service = GenerationService(
            Config(**settings), self.upstream, StopRegistry(), store_writer
        )

    def finished_run(self, request: ChatRequest, number: int = 0, **options: Any) -> Run:
        """A generation whose model has ended and whose place is free again."""
        run = self.service.start(request, **options)
        reply = self.upstream.reply(number)
        reply.feed("text")
        reply.end()
        wait_until(lambda: run.log.ended is not None and self.service.open_streams == 0)
        return run

    def is_kept(self, run: Run) -> bool:
        with contextlib.suppress(UnknownStream):
            return self.service.run(run.key) is run
        return False


MakeHarness = Callable[..., ServiceHarness]


@pytest.fixture
def make_harness() -> Iterator[MakeHarness]:
    harnesses: list[ServiceHarness] = []

    def make(**settings: Any) -> ServiceHarness:
        harnesses.append(ServiceHarness(**settings))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.service.close()
        harness.upstream.dispose()


def raise_fault(run: Run) -> None:
    raise ValueError("the callback is broken")


# --- callbacks ------------------------------------------------------------------------------------


def test_on_end_that_raises_is_logged_and_the_place_is_free(
    make_harness: MakeHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """An `on_end` that raises is logged, and its answer is done and its place free."""
    run = make_harness().finished_run(ChatRequest(HI), on_end=raise_fault)
    assert run.state == "done"
    assert "the callback is broken" in caplog.text


@pytest.mark.parametrize("exact_usage", [False, True])
def test_stop_succeeds_if_on_end_raises(
    make_harness: MakeHarness, caplog: pytest.LogCaptureFixture, exact_usage: bool
) -> None:
    """If `on_end` raises, the receipt still says stopped, the place is free and a usage is
    reported.
    """
    usages: list[dict[str, Any]] = []
    harness = make_harness(exact_usage=exact_usage, max_streams=1)
    run = harness.service.start(
        ChatRequest(HI), on_end=raise_fault, on_usage=lambda _, usage: usages.append(usage)
    )
    reply = harness.upstream.reply()
    assert harness.service.stop(run.key).status == "stopped"
    wait_until(lambda: harness.service.open_streams == 0)
    if exact_usage:
        reply.end("stop", {"completion_tokens": 7})
        wait_until(lambda: usages == [{"completion_tokens": 7}])
    assert reply.over.wait(WAIT_TIMEOUT)
    assert "the callback is broken" in caplog.text


# --- memory ---------------------------------------------------------------------------------------


def test_finished_run_holds_no_prompt(make_harness: MakeHarness) -> None:
    """Finished runs are kept for their answers: 20 prompts of 200,000 characters are freed."""
    harness = make_harness()
    tracemalloc.start()
    try:
        memory_before = tracemalloc.get_traced_memory()[0]
        runs = []
        for number in range(20):
            prompt = Message("user", f"{number}" * 200_000)
            request = ChatRequest([prompt], model="asked-1")
            runs.append(harness.finished_run(request, number))
            harness.upstream.requests.clear()
            del prompt, request
        wait_until(lambda: tracemalloc.get_traced_memory()[0] - memory_before < 1_000_000)
    finally:
        tracemalloc.stop()
    assert all(run.answer()[1] == "text" and run.model == "scripted-1" for run in runs)
    assert len({run.fingerprint for run in runs}) == len(runs)


def test_finished_runs_beyond_kept_bytes_are_removed(make_harness: MakeHarness) -> None:
    """Finished runs beyond KEPT_BYTES are removed, the oldest first, and their IDs can be used
    again.
    """
    harness = make_harness(kept_bytes=1_024)
    runs = [harness.finished_run(ChatRequest(HI, id=f"stream-{n}"), n) for n in range(10)]
    wait_until(lambda: not harness.is_kept(runs[0]))
    assert harness.is_kept(runs[-1])
    harness.service.start(ChatRequest(HI, id="stream-0"))


def test_check_of_finished_runs_ends_at_the_oldest(make_harness: MakeHarness) -> None:
    """The keeper checks only the oldest finished run while that one stays."""

    class PendingWriter(StoreWriter):
        def __init__(self) -> None:
            self.pending: list[StreamKey] = []
            self.checked = threading.Event()

        def is_pending(self, key: StreamKey) -> bool:
            self.pending.append(key)
            self.checked.set()
            return True

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        add = notify_end = close = exists = lambda *_: None  # type: ignore[assignment]

    store_writer = PendingWriter()
    harness = make_harness(store_writer=store_writer, log_seconds=0.0)
    first = harness.finished_run(ChatRequest(HI, id="the-oldest"))
    for number in range(1, 20):
        harness.finished_run(ChatRequest(HI), number)
    store_writer.checked.clear()
    assert store_writer.checked.wait(WAIT_TIMEOUT)
    assert set(store_writer.pending) == {first.key}


# --- people ---------------------------------------------------------------------------------------


def test_streams_of_two_people_with_one_id_are_separate(make_harness: MakeHarness) -> None:
    """Two people run streams with the same ID at once; each finds, lists and stops the own one."""
    harness = make_harness()
    anna, bert = (
        harness.service.start(ChatRequest(HI, id="a-stream"), owner) for owner in ("anna", "bert")
    )
    for run in (anna, bert):
        assert harness.service.get(run.key) is run
        assert [stream.id for stream in harness.service.running(run.owner)] == ["a-stream"]
        with pytest.raises(StreamInUse):
            harness.service.start(ChatRequest(HI, id="a-stream"), run.owner)
    assert harness.service.stop(anna.key).status == "stopped"
    assert (anna.state, bert.state) == ("cancelled", "running")
    assert harness.service.running("anna") == []
    assert [receipt.status for receipt in harness.service.stop_all("bert")] == ["stopped"]


def test_stream_of_another_person_behaves_as_unknown(make_harness: MakeHarness) -> None:
    """Another person's ID is not found, its Stop is pending, and stop_all leaves the stream."""
    harness = make_harness()
    run = harness.service.start(ChatRequest(HI, id="a-stream"), "anna")
    with pytest.raises(UnknownStream):
        harness.service.get(StreamKey("bert", run.id))
    receipts = harness.service.stop_many([(run.id, None), ("unknown", None)], "bert")
    assert [(receipt.status, receipt.upstream) for receipt in receipts] == [("pending", "none")] * 2
    assert harness.service.stop_all("bert") == []
    assert run.state == "running"
    stopped_run = harness.service.start(ChatRequest(HI, id=run.id), "bert")
    assert stopped_run.state == "cancelled"  # by the Stop that came before
    assert run.state == "running"


# --- places ---------------------------------------------------------------------------------------


def test_slow_place_delays_no_reader_and_no_stop(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a place is given slowly, readers join and Stops work."""
    is_opening, may_continue = threading.Event(), threading.Event()

    class SlowSlots(Slots):
        def take(self, count: int, first: int = 0) -> int | None:
            if is_opening.is_set():
                assert may_continue.wait(WAIT_TIMEOUT)
            return super().take(count, first)

    monkeypatch.setattr(module, "Slots", SlowSlots)
    harness = make_harness()
    run = harness.service.start(ChatRequest(HI))
    is_opening.set()
    start_call = BackgroundCall(lambda: harness.service.start(ChatRequest(HI)))
    viewer = harness.service.readers.view(run)
    assert harness.service.stop(run.key).status == "stopped"
    harness.service.readers.unview(run, viewer)
    assert start_call.is_alive()
    may_continue.set()
    assert start_call.end() is None


def test_require_places_refuses_as_start_does(make_harness: MakeHarness) -> None:
    """`require_places` raises as a start would, and takes no place."""
    harness = make_harness(max_streams=2)
    harness.service.require_places(2)
    with pytest.raises(AtCapacity):
        harness.service.require_places(3)
    harness.service.start(ChatRequest(HI))
    harness.service.require_places(1)
    harness.service.start(ChatRequest(HI))
    with pytest.raises(AtCapacity):
        harness.service.require_places()
    harness.service.drain()
    with pytest.raises(Draining):
        harness.service.require_places()


def test_view_that_raises_gives_its_place_back(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's place is given back if its join of the run raises."""
    harness = make_harness(max_streams=1)
    run = harness.service.start(ChatRequest(HI))
    with monkeypatch.context() as patch:
        patch.setattr(run, "join", lambda: raise_fault(run))
        with pytest.raises(ValueError, match="broken"):
            harness.service.readers.view(run)
    harness.service.readers.unview(run, harness.service.readers.view(run))


def test_start_without_a_keeper_thread_is_refused(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start is refused and leaves nothing if the system has no thread for the limits of a run."""
    harness = make_harness()

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(AtCapacity):
            harness.service.start(ChatRequest(HI, id="refused-1"))
    assert harness.service.open_streams == 0
    harness.finished_run(ChatRequest(HI, id="refused-1"))
