"""A generation of another worker, as it is read here: whole, in order, and never for ever.

Two services in one process, each a worker of the same folder, talk over real sockets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from halt.clock import now
from halt.cluster import bus
from halt.cluster import remote as module
from halt.cluster import service as workers
from halt.cluster.bus import Bus
from halt.cluster.channel import Channel
from halt.cluster.membership import Membership
from halt.cluster.remote import Batch, Header, RemoteGeneration
from halt.cluster.service import FindRequest, StopRequest, UndeliveredStops, Workers
from halt.config.data_dir import socket_folder
from halt.config.settings import Config
from halt.core import steps
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    ErrorInfo,
    Event,
    Failed,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    is_terminal,
)
from halt.core.gap_log import GapLog
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.request import ChatRequest, Part
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.errors import OffsetLost, UnknownStream
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until

ENDLESS = {"run_timeout": 1e9, "first_byte_timeout": 1e9, "gap_timeout": 1e9, "orphan_grace": 1e9}
METRICS = Meter().snapshot()


class Worker:
    """One of the workers, on an upstream whose moves the test decides."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.upstream = ScriptedUpstream()
        self.died: list[str] = []
        config = Config(**{**ENDLESS, **settings})
        registry = StopRegistry()
        self.membership = Membership(folder, self.died.append)
        self.bus = Bus(self.membership)
        self.workers = Workers(self.bus, registry)
        self.service = self.workers.service = GenerationService(
            config, self.upstream, registry, other_workers=self.workers
        )
        self.service.begin()

    def start(
        self, stream_id: str, *fed: str, number: int = 0, **more: Any
    ) -> tuple[Run, ScriptedReply]:
        """A run whose model has said this; the worker's first where no `number` says otherwise."""
        run = self.service.start(ChatRequest(HI, id=stream_id), **more)
        reply = self.upstream.reply(number)
        reply.feed(*fed)
        wait_until(lambda: run.log.last >= len(fed))
        return run, reply

    def close(self) -> None:
        self.service.close()
        self.upstream.dispose()


Begin = Callable[..., Worker]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """A worker, as often as it is called."""
    workers: list[Worker] = []

    def one(**settings: Any) -> Worker:
        workers.append(Worker(tmp_path, **settings))
        return workers[-1]

    yield one
    for worker in workers:
        worker.close()


def test_a_reader_elsewhere_reads_what_a_reader_here_does(begin: Begin) -> None:
    """What was there and what comes, to the end; so does one that comes when it is over."""
    owner, other = begin(), begin()
    run, reply = owner.start("a-stream", "one ", "two ")
    run.expected_tokens = 7.0
    remote = other.service.get("a-stream", None)
    assert isinstance(remote, RemoteGeneration)
    assert remote.answer() == (2, "one two ")
    assert remote.expected_tokens == 7.0
    reader = Reader(remote)  # type: ignore[arg-type]
    reply.feed("three")
    reader.wait_text("one two three")
    assert other.service.get("a-stream", None) is remote
    reply.end(usage={"completion_tokens": 3})
    told = reader.finish()
    assert told == run.log.read(0)
    late = other.service.get("a-stream", None)
    assert late.log.read(0) == told
    assert (late.state, late.model, late.fingerprint) == ("done", run.model, run.fingerprint)
    assert late.arrival_time(2) == run.arrival_time(2)


def test_a_remote_generation_is_read_by_its_owner_alone(begin: Begin) -> None:
    """Another session is told that there is no such stream."""
    owner, other = begin(), begin()
    owner.start("a-stream", "x", owner="me")
    assert other.service.get("a-stream", "me").owner == "me"
    for stranger in ("you", None):
        with pytest.raises(UnknownStream):
            other.service.get("a-stream", stranger)


def test_a_stream_that_is_not_there_is_said_as_earlier_versions_say_it(
    begin: Begin, tmp_path: Path
) -> None:
    """The workers of two versions ask each other while a server is replaced (SIGUSR2)."""
    worker = begin()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(socket_folder(tmp_path / "run") / f"{worker.membership.name}.sock"))
        channel = Channel(sock)
        channel.send(msgspec.msgpack.encode(FindRequest("a-stream", None, 0, live=False)))
        answer = channel.receive(WAIT_TIMEOUT)
    assert answer is not None
    assert msgspec.msgpack.decode(answer) == {"type": "unknown"}
    assert module.decode_header(answer) is None


def test_viewers_elsewhere_are_one_viewer_at_the_owner(begin: Begin) -> None:
    """They share a connection, which ends with the last of them; so does a run without grace."""
    owner, other = begin(), begin()
    run, reply = owner.start("a-stream", "x", grace=0.0)
    remote = other.service.get("a-stream", None)
    first, second = Reader(remote), Reader(remote)  # type: ignore[arg-type]
    first.wait_text("x")
    second.wait_text("x")
    wait_until(lambda: len(run._viewers) == 1)
    first.leave()
    reply.feed("y")
    second.wait_text("xy")
    assert run.state == "running"
    second.leave()
    wait_until(lambda: run.state == "cancelled")


def test_a_stop_elsewhere_says_what_it_did_and_cuts_what_was_not_seen(begin: Begin) -> None:
    """The receipt is the owner's; the answer ends with what the stopper had seen."""
    owner, other = begin(), begin()
    run, _ = owner.start("a-stream", "one ", "two ", "three ")
    receipt = other.service.stop("a-stream", None, seen=2)
    assert (receipt.status, receipt.upstream) == ("stopped", "closed")
    assert isinstance(run.log.ended, Cancelled)
    remote = other.service.get("a-stream", None)
    assert remote.answer() == (2, "one two ") == run.answer()
    assert other.service.stop("a-stream", None).status == "finished"


def test_a_worker_that_begins_inherits_every_tombstone(begin: Begin, tmp_path: Path) -> None:
    """Of workers that are there, and of such as have left; what cannot be read is passed over."""
    first = begin()
    (tmp_path / "run" / "cut.word").write_bytes(b"")
    assert first.service.stop("stopped-1", None).status == "pending"
    second = begin()
    run = second.service.start(ChatRequest(HI, id="stopped-1"))
    assert isinstance(run.log.ended, Cancelled)
    assert second.service.stop("stopped-2", None).status == "pending"
    second.close()
    first.close()
    run = begin().service.start(ChatRequest(HI, id="stopped-2"))
    assert isinstance(run.log.ended, Cancelled)


def test_a_worker_that_leaves_lets_its_readers_go_elsewhere(begin: Begin) -> None:
    """They get all that has come and no end, so that they ask another worker for the rest."""
    owner, leaving, other = begin(), begin(), begin()
    run, reply = owner.start("a-stream", "one ")
    reader = Reader(leaving.service.get("a-stream", None))  # type: ignore[arg-type]
    reader.wait_text("one ")
    leaving.close()
    assert reader.finish() == run.log.read(0)
    assert run.state == "running"
    again = Reader(other.service.get("a-stream", None), after=1)  # type: ignore[arg-type]
    reply.feed("two")
    again.wait_text("two")


def test_a_worker_without_a_lock_is_tidied_up_after_once(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds it does it and removes its files; where that fails, it is tried again."""
    worker = begin()
    run = tmp_path / "run"
    (run / "7-dead.lock").write_text("")
    sock = socket_folder(run) / "7-dead.sock"
    sock.write_text("")
    worker.membership.sweep()
    worker.membership.sweep()
    assert worker.died == ["7-dead"]
    assert list(run.glob("7-dead.*")) == []
    assert not sock.exists()
    (run / "8-dead.lock").write_text("")
    monkeypatch.setattr(worker.membership, "recover", None)
    worker.membership.sweep()
    assert (run / "8-dead.lock").exists()
    monkeypatch.undo()
    worker.membership.sweep()
    assert worker.died == ["7-dead", "8-dead"]
    begin().membership.sweep()
    assert worker.died == ["7-dead", "8-dead"]


def test_an_owner_that_dies_while_it_tells_is_no_error(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its readers have a generation that they can follow: what was saved of it comes later."""
    owner, other = begin(), begin()
    owner.start("a-stream", "text")
    monkeypatch.setattr(workers, "send_events", lambda *said: None)
    monkeypatch.setattr(module, "send_events", lambda *said: None)
    assert other.service.get("a-stream", None).log.ended is None


def test_who_takes_no_answer_keeps_no_stop_from_being_heard(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that hangs while it is answered has the other's attention for a moment only."""
    monkeypatch.setattr(bus, "REQUESTS_MAX", 1)
    monkeypatch.setattr(bus, "REPLY_WITHIN", 0.01)
    owner, other = begin(), begin()
    owner.start("a-stream", "x" * 2_000_000)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.connect(str(socket_folder(tmp_path / "run") / f"{owner.membership.name}.sock"))
        Channel(hanging).send(msgspec.msgpack.encode(FindRequest("a-stream", None, 0, live=False)))
        assert hanging.recv(1, socket.MSG_PEEK)
        assert other.service.stop("a-stream", None).status == "stopped"


def test_text_is_whole_where_the_owners_log_is_not(begin: Begin) -> None:
    """Events that its log has let go of are lost here too, their text is not."""
    owner, other = begin(log_bytes=1024), begin()
    words = [f"{number} " for number in range(40)]
    run, reply = owner.start("a-stream", *words)
    remote = other.service.get("a-stream", None)
    assert remote.answer() == (40, "".join(words))
    assert remote.log.first == run.log.first > 1
    with pytest.raises(OffsetLost):
        remote.log.read(0)
    reader = Reader(remote, after=40)  # type: ignore[arg-type]
    reply.feed("end")
    reader.wait_text("end")
    assert remote.text(41) == run.text(41)


def test_a_thought_that_is_told_late_is_one_elsewhere_too(begin: Begin) -> None:
    """For a remote that was there, and for one to which the owner tells what is lost."""
    owner, other = begin(log_bytes=3_000), begin()
    run, reply = owner.start("a-stream", "Okay. ")
    remote = other.service.get("a-stream", None)
    reader = Reader(remote)  # type: ignore[arg-type]
    reply.feed(Part((ReasoningEnd(), Content("Hello")), 1))
    reader.wait_text("Okay. Hello")
    assert remote.answer() == run.answer() == (3, "Hello")
    assert [fold.text for fold in steps.stream_of(remote, 3).steps()] == ["Okay. "]
    for number in range(40):
        reply.feed(str(number))
        reader.wait_text("Okay. Hello" + "".join(map(str, range(number + 1))))
    late = begin().service.get("a-stream", None)
    assert run.log.first > 3
    assert late.answer()[1] == run.answer()[1] == "Hello" + "".join(map(str, range(40)))
    reply.end()
    reader.finish()


# --- connections that break -----------------------------------------------------------------------


class Told:
    """A Source that says what a test has prepared: one list of frames for each connection."""

    def __init__(self, *connections: list[object]) -> None:
        self.left = list(connections)
        self.kept: Generation | None = None
        self.asked: list[int] = []  # from which event on

    def open(self, remote: RemoteGeneration) -> Channel | None:
        self.asked.append(remote.log.last)
        if not self.left:
            return None
        ours, theirs = socket.socketpair()
        with contextlib.closing(Channel(theirs)) as speaker:
            for each in self.left.pop(0):
                speaker.send(msgspec.msgpack.encode(each))
        return Channel(ours)

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        return self.kept


def remote_of(source: Told) -> RemoteGeneration:
    header = Header("a-stream", None, "asked-1", "", now(), "", None, 1, [])
    return RemoteGeneration(header, "owner", 1_000_000, source)


def batch(first: int, *events: Event) -> Batch:
    timed = [(first + step, now(), event) for step, event in enumerate(events)]
    ended = now() if is_terminal(events[-1]) else None
    return Batch(timed, "model-1", len(events), None, ended, more=False)


def saved(numbered: list[tuple[int, Event]]) -> Generation:
    """A generation as a store has it; its last event may leave a gap before it."""
    log = GapLog(1_000_000, 1)
    kept = Generation("a-stream", None, log, started_at=now())
    for number, event in numbered:
        if isinstance(event, Done | Cancelled | Failed):
            log.end_at(number, lambda event=event: event)  # type: ignore[misc]
        else:
            kept.record_event(event, now())
            log.append(event)
    return kept


A, B, C = Content("a"), Content("b"), Content("c")
DONE = Done("stop", METRICS)


def test_a_connection_that_breaks_is_made_again_and_repeats_nothing() -> None:
    """Each event once and in order, whatever is told twice."""
    source = Told([batch(1, A, B)], [], [batch(1, A, B, C)], [batch(3, C, DONE)])
    assert Reader(remote_of(source)).finish() == [(1, A), (2, B), (3, C), (4, DONE)]  # type: ignore[arg-type]
    assert source.asked == [0, 2, 2, 3]


def test_what_was_saved_goes_on_where_the_owner_died() -> None:
    """What was not seen yet comes first, then the end, which has a number far behind."""
    lost = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = Told([batch(1, A)])
    source.kept = saved([(1, A), (2, Reasoning("hm")), (3, B), (100_003, lost)])
    remote = remote_of(source)
    assert Reader(remote).finish() == [(1, A), (2, Reasoning("hm")), (3, B), (100_003, lost)]  # type: ignore[arg-type]
    assert remote.log.last == 100_003
    assert remote.log.read(2) == [(3, B), (100_003, lost)]
    assert remote.log.read(3) == remote.log.read(50_000) == [(100_003, lost)]
    assert remote.log.read(100_003) == []
    assert remote.answer() == (3, "ab")


def test_a_thought_that_the_owner_saved_before_it_died_is_one() -> None:
    """What was seen here as an answer's text is none any more."""
    lost = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = Told([batch(1, A)])
    source.kept = saved([(1, A), (2, ReasoningEnd()), (3, B), (100_003, lost)])
    remote = remote_of(source)
    Reader(remote).finish()  # type: ignore[arg-type]
    assert remote.answer() == (3, "b")


def test_text_that_was_seen_and_not_saved_is_not_kept() -> None:
    """The answer is the one that the store has, so that it does not change with a reload."""
    lost = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = Told([batch(1, A, B, C)])
    source.kept = saved([(1, A), (100_001, lost)])
    remote = remote_of(source)
    assert Reader(remote).finish() == [(1, A), (2, B), (3, C), (100_001, lost)]  # type: ignore[arg-type]
    assert remote.answer() == (1, "a")


def test_nobody_waits_for_ever_for_a_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing saved the readers are told that the answer was interrupted."""
    monkeypatch.setattr(module, "SAVED_WITHIN", 0.2)
    told = Reader(remote_of(Told([batch(1, A)]))).finish()  # type: ignore[arg-type]
    number, ended = told[-1]
    assert (number, told[0]) == (2, (1, A))
    assert isinstance(ended, Failed)
    assert (ended.error.code, ended.error.retryable) == ("interrupted", True)


def test_an_unfinished_record_is_not_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody has ended it in the store, it is waited for."""
    source = Told([batch(1, A)])
    source.kept = Generation("a-stream", None, GapLog(1000, 1), started_at=now())
    reader = Reader(remote_of(source))  # type: ignore[arg-type]
    wait_until(lambda: len(source.asked) > 3)
    source.kept = saved([(1, A), (2, ToolCall("1", "f", "{}")), (3, DONE)])
    assert [number for number, _ in reader.finish()] == [1, 2, 3]


def test_the_log_of_a_remote_generation_is_a_log() -> None:
    """It may begin anywhere, and a gap before its end is passed over, at its first event too."""
    log: EventLog = (made := GapLog(10_000, 5))
    assert (log.first, log.last, log.read(4)) == (5, 4, [])
    made.end_at(50, lambda: DONE)
    assert log.read(4) == log.read(49) == [(50, DONE)]
    assert log.read(50) == []
    assert log.last == 50
    with pytest.raises(OffsetLost):
        log.read(3)


# --- a worker that takes no requests --------------------------------------------------------------


@pytest.mark.parametrize(
    "press",
    [
        lambda worker, who: worker.service.stop("a-stream", who, seen=0),
        lambda worker, who: worker.service.stop_all(who),
    ],
    ids=["stop", "stop-all"],
)
def test_a_stop_reaches_a_worker_whose_queue_was_full(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, press: Callable[[Worker, str], object]
) -> None:
    """A Stop that a hanging worker could not be sent is sent again until it takes it."""
    monkeypatch.setattr(bus, "REQUESTS_MAX", 1)
    monkeypatch.setattr(bus, "BACKLOG", 1)
    monkeypatch.setattr(workers, "STOP_WITHIN", 0.01)
    hangs, go_on = threading.Event(), threading.Event()
    serve = Workers._serve

    def hang(service: Workers, said: bytes, channel: Channel) -> None:
        hangs.set()
        assert go_on.wait(WAIT_TIMEOUT)
        serve(service, said, channel)

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_serve", hang)
        owner = begin()
    other = begin()
    run, _ = owner.start("a-stream", "one ", owner="me")
    (name,) = other.bus.others
    with contextlib.ExitStack() as stack:
        full = False
        while not full:
            full = bool(stack.enter_context(other.bus.request(b"?", 0.0, name)).unreached)
        assert hangs.wait(WAIT_TIMEOUT)
        press(other, "somebody else")
        press(other, "me")
        assert run.log.ended is None
        go_on.set()
        wait_until(lambda: run.log.ended is not None)
        assert run.state == "cancelled"
        later, _ = owner.start("another", "two ", owner="me", number=1)
        wait_until(lambda: not other.workers._undelivered)
        assert later.log.ended is None  # it began after the press


def test_stops_for_a_worker_are_kept_for_a_time_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest go first; a worker that has gone, or that hangs for too long, is not waited for."""
    monkeypatch.setattr(workers, "UNDELIVERED_MAX", 5)
    monkeypatch.setattr(workers, "STOPS_PER_REQUEST", 2)
    kept = UndeliveredStops()
    kept.add(["w1"], [(f"stream-{n}", n) for n in range(6)], None)
    kept.add(["w1"], [("stream-5", 7)], None)

    def due(*workers: str) -> list[list[str]]:
        presses = [request for _, request in kept.due(workers) if isinstance(request, StopRequest)]
        return [[stream_id for stream_id, _ in press.stops] for press in presses]

    assert due("w1") == [["stream-1", "stream-2"], ["stream-3", "stream-4"], ["stream-5"]]
    kept.delivered("w1", StopRequest([("stream-1", 1), ("stream-2", 2)], None))
    kept.delivered("w1", StopRequest([("stream-3", 3)], "me"))
    assert due("w1", "w2") == [["stream-3", "stream-4"], ["stream-5"]]
    assert due("w2") == []
    assert due("w1") == []
    monkeypatch.setattr(workers, "UNDELIVERED_SECONDS", -1.0)
    kept.add(["w1"], [("stream-1", 1)], None)
    assert due("w1") == []
    assert not kept
