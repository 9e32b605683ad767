"""The service that owns all generations of a process: places, memory, and faults of callbacks."""

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
from halt.errors import AtCapacity, Draining, UnknownStream
from halt.store.writer import StoreWriter
from tests.support.scripted_upstream import HI, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until


class Stage:
    """Generations of a scripted model."""

    def __init__(self, store_writer: StoreWriter | None = None, **settings: Any) -> None:
        self.upstream = ScriptedUpstream()
        self.service = GenerationService(
            Config(**settings), self.upstream, StopRegistry(), store_writer
        )

    def finished(self, request: ChatRequest, number: int = 0, **more: Any) -> Run:
        """A generation whose model has ended and whose place is free again."""
        run = self.service.start(request, **more)
        reply = self.upstream.reply(number)
        reply.feed("text")
        reply.end()
        wait_until(lambda: run.log.ended is not None and self.service.open_streams == 0)
        return run

    def kept(self, run: Run) -> bool:
        with contextlib.suppress(UnknownStream):
            return self.service.run(run.id, None) is run
        return False


MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage() -> Iterator[MakeStage]:
    stages: list[Stage] = []

    def make(**settings: Any) -> Stage:
        stages.append(Stage(**settings))
        return stages[-1]

    yield make
    for stage in stages:
        stage.service.close()
        stage.upstream.dispose()


def broken(run: Run) -> None:
    raise ValueError("the callback is broken")


# --- callbacks ------------------------------------------------------------------------------------


def test_a_broken_callback_of_the_end_is_logged_and_the_place_is_free(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that the model ended is done, whatever the callback raises."""
    run = make_stage().finished(ChatRequest(HI), on_end=broken)
    assert run.state == "done"
    assert "the callback is broken" in caplog.text


@pytest.mark.parametrize("exact_usage", [False, True])
def test_a_stop_succeeds_where_the_callback_of_the_end_is_broken(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture, exact_usage: bool
) -> None:
    """The receipt says stopped, the place comes back, and a reader of the usage is told it."""
    counted: list[dict[str, Any]] = []
    stage = make_stage(exact_usage=exact_usage, max_streams=1)
    run = stage.service.start(
        ChatRequest(HI), on_end=broken, on_usage=lambda _, usage: counted.append(usage)
    )
    reply = stage.upstream.reply()
    assert stage.service.stop(run.id, None).status == "stopped"
    wait_until(lambda: stage.service.open_streams == 0)
    if exact_usage:
        reply.end("stop", {"completion_tokens": 7})
        wait_until(lambda: counted == [{"completion_tokens": 7}])
    assert reply.over.wait(WAIT_TIMEOUT)
    assert "the callback is broken" in caplog.text


# --- memory ---------------------------------------------------------------------------------------


def test_a_finished_run_keeps_no_prompt(make_stage: MakeStage) -> None:
    """Finished runs are kept for their answers: 20 prompts of 400,000 characters leave no trace."""
    stage = make_stage()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        runs = []
        for number in range(20):
            prompt = Message("user", f"{number}" * 200_000)
            asked = ChatRequest([prompt], model="asked-1")
            runs.append(stage.finished(asked, number))
            stage.upstream.requests.clear()
            del prompt, asked
        wait_until(lambda: tracemalloc.get_traced_memory()[0] - before < 1_000_000)
    finally:
        tracemalloc.stop()
    assert all(run.answer()[1] == "text" and run.model == "scripted-1" for run in runs)
    assert len({run.fingerprint for run in runs}) == len(runs)


def test_finished_runs_are_forgotten_beyond_the_memory_that_is_set(make_stage: MakeStage) -> None:
    """The oldest go first, and a start with a forgotten ID is accepted."""
    stage = make_stage(kept_bytes=1_024)
    runs = [stage.finished(ChatRequest(HI, id=f"stream-{n}"), n) for n in range(10)]
    wait_until(lambda: not stage.kept(runs[0]))
    assert stage.kept(runs[-1])
    stage.service.start(ChatRequest(HI, id="stream-0"))


def test_one_look_at_finished_runs_does_not_look_at_all(make_stage: MakeStage) -> None:
    """The keeper looks at the oldest finished run only while that one stays."""

    class Shelf(StoreWriter):
        def __init__(self) -> None:
            self.asked: list[str] = []
            self.looked = threading.Event()

        def is_pending(self, stream_id: str) -> bool:
            self.asked.append(stream_id)
            self.looked.set()
            return True

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        add = notify_end = close = exists = lambda *_: None  # type: ignore[assignment]

    shelf = Shelf()
    stage = make_stage(store_writer=shelf, log_seconds=0.0)
    first = stage.finished(ChatRequest(HI, id="the-oldest"))
    for number in range(1, 20):
        stage.finished(ChatRequest(HI), number)
    shelf.looked.clear()
    assert shelf.looked.wait(WAIT_TIMEOUT)
    assert set(shelf.asked) == {first.id}


# --- places ---------------------------------------------------------------------------------------


def test_taking_a_place_holds_up_nobody(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the system is slow to give a place, readers come and Stops work."""
    slow, go_on = threading.Event(), threading.Event()

    class SlowSlots(Slots):
        def take(self, count: int, first: int = 0) -> int | None:
            if slow.is_set():
                assert go_on.wait(WAIT_TIMEOUT)
            return super().take(count, first)

    monkeypatch.setattr(module, "Slots", SlowSlots)
    stage = make_stage()
    run = stage.service.start(ChatRequest(HI))
    slow.set()
    starting = BackgroundCall(lambda: stage.service.start(ChatRequest(HI)))
    viewer = stage.service.readers.view(run)
    assert stage.service.stop(run.id, None).status == "stopped"
    stage.service.readers.unview(run, viewer)
    assert starting.is_alive()
    go_on.set()
    assert starting.end() is None


def test_room_can_be_asked_for_before_a_start(make_stage: MakeStage) -> None:
    """What would be refused is refused, and the places are free again afterwards."""
    stage = make_stage(max_streams=2)
    stage.service.require_places(2)
    with pytest.raises(AtCapacity):
        stage.service.require_places(3)
    stage.service.start(ChatRequest(HI))
    stage.service.require_places(1)
    stage.service.start(ChatRequest(HI))
    with pytest.raises(AtCapacity):
        stage.service.require_places()
    stage.service.drain()
    with pytest.raises(Draining):
        stage.service.require_places()


def test_a_reader_that_cannot_join_takes_no_place(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place is given back where what comes after it fails."""
    stage = make_stage(max_streams=1)
    run = stage.service.start(ChatRequest(HI))
    with monkeypatch.context() as patch:
        patch.setattr(run, "join", lambda: broken(run))
        with pytest.raises(ValueError, match="broken"):
            stage.service.readers.view(run)
    stage.service.readers.unview(run, stage.service.readers.view(run))


def test_a_start_without_a_keeper_is_refused(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no thread for the limits of a run, none begins and nothing is left."""
    stage = make_stage()

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(AtCapacity):
            stage.service.start(ChatRequest(HI, id="refused-1"))
    assert stage.service.open_streams == 0
    stage.finished(ChatRequest(HI, id="refused-1"))
