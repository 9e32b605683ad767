"""RemoteGeneration: a generation of another worker is read whole, in order, and to an end.

Two services in one process, each a worker of the same folder, talk over real sockets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from halt.clock import now
from halt.cluster import bus
from halt.cluster import remote as module
from halt.cluster import service as workers
from halt.cluster.bus import Bus, Serve
from halt.cluster.channel import Channel
from halt.cluster.remote import Batch, Header, RemoteGeneration
from halt.cluster.service import FindRequest, StopRequest, UndeliveredStops
from halt.config.data_dir import socket_folder
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
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.errors import OffsetLost, UnknownStream
from tests.support.cluster_workers import StartWorker, Worker
from tests.support.scripted_upstream import HI, Reader
from tests.support.waiting import WAIT_TIMEOUT, wait_until

METRICS = Meter().snapshot()


def test_reader_in_another_worker_gets_the_producers_events(start_worker: StartWorker) -> None:
    """A reader in another worker gets the producer's past and coming events, up to the end.

    So does a reader that starts after the end.
    """
    producer, other = start_worker(), start_worker()
    run, reply = producer.start("a-stream", "one ", "two ")
    run.expected_tokens = 7.0
    remote = other.service.get(StreamKey("", "a-stream"))
    assert isinstance(remote, RemoteGeneration)
    assert remote.answer() == (2, "one two ")
    assert remote.expected_tokens == 7.0
    reader = Reader(remote)  # type: ignore[arg-type]
    reply.feed("three")
    reader.wait_text("one two three")
    assert other.service.get(StreamKey("", "a-stream")) is remote
    reply.end(usage={"completion_tokens": 3})
    events = reader.finish()
    assert events == run.log.read(0)
    late_generation = other.service.get(StreamKey("", "a-stream"))
    assert late_generation.log.read(0) == events
    assert (late_generation.state, late_generation.model, late_generation.fingerprint) == (
        "done",
        run.model,
        run.fingerprint,
    )
    assert late_generation.arrival_time(2) == run.arrival_time(2)


def test_remote_generation_is_unknown_to_another_person(start_worker: StartWorker) -> None:
    """A remote generation is found for its owner, and unknown for anybody else."""
    producer, other = start_worker(), start_worker()
    producer.start("a-stream", "x", owner="me")
    assert other.service.get(StreamKey("me", "a-stream")).owner == "me"
    for owner in ("you", ""):
        with pytest.raises(UnknownStream):
            other.service.get(StreamKey(owner, "a-stream"))


def test_streams_of_two_people_with_one_id_run_in_two_workers(start_worker: StartWorker) -> None:
    """Each person reads and stops the own stream through any worker, also with the same ID."""
    first, second = start_worker(), start_worker()
    runs = {
        "me": first.start("a-stream", "mine", owner="me")[0],
        "you": second.start("a-stream", "yours", owner="you")[0],
    }
    for owner, text in (("me", "mine"), ("you", "yours")):
        for worker in (first, second):
            generation = worker.service.get(StreamKey(owner, "a-stream"))
            assert (generation.owner, generation.answer()[1]) == (owner, text)
    assert second.service.stop(runs["me"].key).status == "stopped"
    assert (runs["me"].state, runs["you"].state) == ("cancelled", "running")
    assert [stream.id for stream in first.service.running("you")] == ["a-stream"]
    assert first.service.running("me") == []
    assert [receipt.status for receipt in first.service.stop_all("you")] == ["stopped"]


def test_find_of_an_unknown_stream_keeps_its_wire_format(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """The reply for an unknown stream has the format of earlier versions.

    Workers of two versions talk to each other while a server is replaced (SIGUSR2).
    """
    worker = start_worker()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(socket_folder(tmp_path / "run") / f"{worker.membership.name}.sock"))
        channel = Channel(sock)
        channel.send(msgspec.msgpack.encode(FindRequest("a-stream", "", 0, live=False)))
        answer = channel.receive(WAIT_TIMEOUT)
    assert answer is not None
    assert msgspec.msgpack.decode(answer) == {"type": "unknown"}
    assert module.decode_header(answer) is None


def test_remote_viewers_count_as_one_viewer_at_the_producer(start_worker: StartWorker) -> None:
    """All viewers in one other worker share a connection, and count as one viewer at the producer.

    The connection ends with the last of them; a run without grace ends with it.
    """
    producer, other = start_worker(), start_worker()
    run, reply = producer.start("a-stream", "x", grace=0.0)
    remote = other.service.get(StreamKey("", "a-stream"))
    first, second = Reader(remote), Reader(remote)  # type: ignore[arg-type]
    first.wait_text("x")
    second.wait_text("x")
    wait_until(lambda: len(run.viewers()) == 1)
    first.leave()
    reply.feed("y")
    second.wait_text("xy")
    assert run.state == "running"
    second.leave()
    wait_until(lambda: run.state == "cancelled")


def test_remote_stop_returns_the_receipt_and_cuts_unseen_text(
    start_worker: StartWorker,
) -> None:
    """A Stop through another worker returns the producer's receipt and cuts the unseen text."""
    producer, other = start_worker(), start_worker()
    run, _ = producer.start("a-stream", "one ", "two ", "three ")
    receipt = other.service.stop(StreamKey("", "a-stream"), seen=2)
    assert (receipt.status, receipt.upstream) == ("stopped", "closed")
    assert isinstance(run.log.ended, Cancelled)
    remote = other.service.get(StreamKey("", "a-stream"))
    assert remote.answer() == (2, "one two ") == run.answer()
    assert other.service.stop(StreamKey("", "a-stream")).status == "finished"


def test_new_worker_inherits_the_tombstones_of_all_workers(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """A new worker inherits tombstones of live and former workers; it skips unreadable files."""
    first = start_worker()
    (tmp_path / "run" / "cut.note").write_bytes(b"")
    assert first.service.stop(StreamKey("", "stopped-1")).status == "pending"
    second = start_worker()
    run = second.service.start(ChatRequest(HI, id="stopped-1"))
    assert isinstance(run.log.ended, Cancelled)
    assert second.service.stop(StreamKey("", "stopped-2")).status == "pending"
    second.close()
    first.close()
    run = start_worker().service.start(ChatRequest(HI, id="stopped-2"))
    assert isinstance(run.log.ended, Cancelled)


def test_new_worker_begins_beside_one_with_unreadable_tombstones(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tombstones of an earlier version, which had some of nobody, do not keep a worker from
    beginning."""
    earlier = start_worker()
    of_nobody: list[tuple[str, str | None, float]] = [("a-stream", None, now() + 30)]
    monkeypatch.setattr(StopRegistry, "tombstones", lambda _: of_nobody)
    start_worker().start("a-stream", "text")
    assert "cannot be read" in caplog.text
    earlier.close()


def test_leaving_worker_ends_its_readers_without_a_terminal_event(
    start_worker: StartWorker,
) -> None:
    """Readers of a leaving worker get all events so far and no end.

    They continue in another worker.
    """
    producer, leaving_worker, other = start_worker(), start_worker(), start_worker()
    run, reply = producer.start("a-stream", "one ")
    reader = Reader(leaving_worker.service.get(StreamKey("", "a-stream")))  # type: ignore[arg-type]
    reader.wait_text("one ")
    leaving_worker.close()
    assert reader.finish() == run.log.read(0)
    assert run.state == "running"
    new_reader = Reader(other.service.get(StreamKey("", "a-stream")), after=1)  # type: ignore[arg-type]
    reply.feed("two")
    new_reader.wait_text("two")


def test_sweep_recovers_a_dead_worker_once(
    tmp_path: Path, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead worker is recovered once and its files are removed; a failed recovery is repeated."""
    worker = start_worker()
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
    start_worker().membership.sweep()
    assert worker.died == ["7-dead", "8-dead"]


def test_producer_that_dies_in_its_reply_is_no_error(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the producer dies during its reply, the reader gets a generation to follow."""
    producer, other = start_worker(), start_worker()
    producer.start("a-stream", "text")
    monkeypatch.setattr(workers, "send_events", lambda *args: None)
    monkeypatch.setattr(module, "send_events", lambda *args: None)
    assert other.service.get(StreamKey("", "a-stream")).log.ended is None


def test_peer_that_reads_no_reply_does_not_block_a_stop(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that does not read its reply blocks the producer for REPLY_WITHIN at most."""
    monkeypatch.setattr(bus, "REQUESTS_MAX", 1)
    monkeypatch.setattr(bus, "REPLY_WITHIN", 0.01)
    producer, other = start_worker(), start_worker()
    producer.start("a-stream", "x" * 2_000_000)
    with socket.socket(socket.AF_UNIX) as hanging_socket:
        hanging_socket.connect(
            str(socket_folder(tmp_path / "run") / f"{producer.membership.name}.sock")
        )
        Channel(hanging_socket).send(
            msgspec.msgpack.encode(FindRequest("a-stream", "", 0, live=False))
        )
        assert hanging_socket.recv(1, socket.MSG_PEEK)
        assert other.service.stop(StreamKey("", "a-stream")).status == "stopped"


def test_remote_text_is_whole_after_the_log_dropped_events(start_worker: StartWorker) -> None:
    """Events that the producer's log has dropped are lost for remote readers; the text is not."""
    producer, other = start_worker(log_bytes=1024), start_worker()
    texts = [f"{number} " for number in range(40)]
    run, reply = producer.start("a-stream", *texts)
    remote = other.service.get(StreamKey("", "a-stream"))
    assert remote.answer() == (40, "".join(texts))
    assert remote.log.first == run.log.first > 1
    with pytest.raises(OffsetLost):
        remote.log.read(0)
    reader = Reader(remote, after=40)  # type: ignore[arg-type]
    reply.feed("end")
    reader.wait_text("end")
    assert remote.text(41) == run.text(41)


def test_late_reasoning_end_applies_to_remote_generations(start_worker: StartWorker) -> None:
    """A late end of reasoning applies to remote generations, also after the log dropped it."""
    producer, other = start_worker(log_bytes=3_000), start_worker()
    run, reply = producer.start("a-stream", "Okay. ")
    remote = other.service.get(StreamKey("", "a-stream"))
    reader = Reader(remote)  # type: ignore[arg-type]
    reply.feed(Part((ReasoningEnd(), Content("Hello")), 1))
    reader.wait_text("Okay. Hello")
    assert remote.answer() == run.answer() == (3, "Hello")
    assert [step.text for step in steps.stream_of(remote, 3).steps()] == ["Okay. "]
    for number in range(40):
        reply.feed(str(number))
        reader.wait_text("Okay. Hello" + "".join(map(str, range(number + 1))))
    late_generation = start_worker().service.get(StreamKey("", "a-stream"))
    assert run.log.first > 3
    assert late_generation.answer()[1] == run.answer()[1] == "Hello" + "".join(map(str, range(40)))
    reply.end()
    reader.finish()


# --- connections that break -----------------------------------------------------------------------


class PreparedSource:
    """A Source whose connections send prepared frames: one list for each connection."""

    def __init__(self, *connections: list[object]) -> None:
        self.connections = list(connections)
        self.stored: Generation | None = None
        self.offsets: list[int] = []  # the offset of each `open`

    def open(self, remote: RemoteGeneration) -> Channel | None:
        self.offsets.append(remote.log.last)
        if not self.connections:
            return None
        client_socket, server_socket = socket.socketpair()
        with contextlib.closing(Channel(server_socket)) as channel:
            for frame in self.connections.pop(0):
                channel.send(msgspec.msgpack.encode(frame))
        return Channel(client_socket)

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        return self.stored


def remote_of(source: PreparedSource) -> RemoteGeneration:
    header = Header("a-stream", "", "asked-1", "", now(), "", None, 1, [])
    return RemoteGeneration(header, "owner", 1_000_000, source)


def batch(first: int, *events: Event) -> Batch:
    timed_events = [(first + step, now(), event) for step, event in enumerate(events)]
    ended_at = now() if is_terminal(events[-1]) else None
    return Batch(timed_events, "model-1", len(events), None, ended_at, more=False)


def stored_generation(numbered: list[tuple[int, Event]]) -> Generation:
    """A generation as a store has it; its last event may leave a gap before it."""
    log = GapLog(1_000_000, 1)
    generation = Generation(StreamKey("", "a-stream"), log, started_at=now())
    for number, event in numbered:
        if isinstance(event, Done | Cancelled | Failed):
            log.end_at(number, lambda event=event: event)  # type: ignore[misc]
        else:
            generation.record_event(event, now())
            log.append(event)
    return generation


A, B, C = Content("a"), Content("b"), Content("c")
DONE = Done("stop", METRICS)


def test_broken_connection_is_reopened_without_repeated_events() -> None:
    """After a broken connection the reader gets each event once and in order."""
    source = PreparedSource([batch(1, A, B)], [], [batch(1, A, B, C)], [batch(3, C, DONE)])
    assert Reader(remote_of(source)).finish() == [(1, A), (2, B), (3, C), (4, DONE)]  # type: ignore[arg-type]
    assert source.offsets == [0, 2, 2, 3]


def test_reader_continues_from_the_store_after_the_producer_died() -> None:
    """After the producer died, the reader gets the saved events, then the end.

    The end has a number far behind theirs.
    """
    interrupted = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = PreparedSource([batch(1, A)])
    source.stored = stored_generation(
        [(1, A), (2, Reasoning("hm")), (3, B), (100_003, interrupted)]
    )
    remote = remote_of(source)
    assert Reader(remote).finish() == [(1, A), (2, Reasoning("hm")), (3, B), (100_003, interrupted)]  # type: ignore[arg-type]
    assert remote.log.last == 100_003
    assert remote.log.read(2) == [(3, B), (100_003, interrupted)]
    assert remote.log.read(3) == remote.log.read(50_000) == [(100_003, interrupted)]
    assert remote.log.read(100_003) == []
    assert remote.answer() == (3, "ab")


def test_saved_reasoning_end_applies_after_the_producer_died() -> None:
    """A saved end of reasoning turns text that was read as the answer into reasoning."""
    interrupted = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = PreparedSource([batch(1, A)])
    source.stored = stored_generation([(1, A), (2, ReasoningEnd()), (3, B), (100_003, interrupted)])
    remote = remote_of(source)
    Reader(remote).finish()  # type: ignore[arg-type]
    assert remote.answer() == (3, "b")


def test_unsaved_text_is_dropped_after_the_producer_died() -> None:
    """The final answer is the stored one, so that it does not change with a reload."""
    interrupted = Failed(ErrorInfo("interrupted", "Gone.", retryable=True), METRICS)
    source = PreparedSource([batch(1, A, B, C)])
    source.stored = stored_generation([(1, A), (100_001, interrupted)])
    remote = remote_of(source)
    assert Reader(remote).finish() == [(1, A), (2, B), (3, C), (100_001, interrupted)]  # type: ignore[arg-type]
    assert remote.answer() == (1, "a")


def test_unsaved_stream_of_a_dead_worker_ends_as_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the store has nothing of a dead worker's stream, readers get an interrupted error."""
    monkeypatch.setattr(module, "SAVED_WITHIN", 0.2)
    events = Reader(remote_of(PreparedSource([batch(1, A)]))).finish()  # type: ignore[arg-type]
    number, terminal = events[-1]
    assert (number, events[0]) == (2, (1, A))
    assert isinstance(terminal, Failed)
    assert (terminal.error.code, terminal.error.retryable) == ("interrupted", True)


def test_unfinished_stored_generation_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored generation without an end is awaited until a worker has ended it."""
    source = PreparedSource([batch(1, A)])
    source.stored = Generation(StreamKey("", "a-stream"), GapLog(1000, 1), started_at=now())
    reader = Reader(remote_of(source))  # type: ignore[arg-type]
    wait_until(lambda: len(source.offsets) > 3)
    source.stored = stored_generation([(1, A), (2, ToolCall("1", "f", "{}")), (3, DONE)])
    assert [number for number, _ in reader.finish()] == [1, 2, 3]


def test_gap_log_starts_anywhere_and_skips_the_gap_before_its_end() -> None:
    """A GapLog may start at any number, and skips the gap before its end."""
    log: EventLog = (gap_log := GapLog(10_000, 5))
    assert (log.first, log.last, log.read(4)) == (5, 4, [])
    gap_log.end_at(50, lambda: DONE)
    assert log.read(4) == log.read(49) == [(50, DONE)]
    assert log.read(50) == []
    assert log.last == 50
    with pytest.raises(OffsetLost):
        log.read(3)


# --- a worker that takes no requests --------------------------------------------------------------


@pytest.mark.parametrize(
    "send_stop",
    [
        lambda worker, session: worker.service.stop(StreamKey(session, "a-stream"), seen=0),
        lambda worker, session: worker.service.stop_all(session),
    ],
    ids=["stop", "stop-all"],
)
def test_stop_is_resent_to_a_worker_whose_queue_was_full(
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    send_stop: Callable[[Worker, str], object],
) -> None:
    """A Stop that could not be sent to a hanging worker is sent again until the worker takes it."""
    monkeypatch.setattr(bus, "REQUESTS_MAX", 1)
    monkeypatch.setattr(bus, "BACKLOG", 1)
    monkeypatch.setattr(workers, "STOP_WITHIN", 0.01)
    is_hanging, may_serve = threading.Event(), threading.Event()
    begin, stop_lists = Bus.begin, list[UndeliveredStops]()

    def serve_late(serve: Serve, payload: bytes, channel: Channel) -> None:
        is_hanging.set()
        assert may_serve.wait(WAIT_TIMEOUT)
        serve(payload, channel)

    def make_undelivered() -> UndeliveredStops:
        stop_lists.append(UndeliveredStops())
        return stop_lists[-1]

    monkeypatch.setattr(workers, "UndeliveredStops", make_undelivered)
    with monkeypatch.context() as patch:
        patch.setattr(
            Bus, "begin", lambda own_bus, serve: begin(own_bus, partial(serve_late, serve))
        )
        producer = start_worker()
    other = start_worker()
    run, _ = producer.start("a-stream", "one ", owner="me")
    (name,) = other.bus.other_names
    with contextlib.ExitStack() as stack:
        is_full = False
        while not is_full:
            is_full = bool(stack.enter_context(other.bus.request(b"?", 0.0, name)).unreached)
        assert is_hanging.wait(WAIT_TIMEOUT)
        send_stop(other, "somebody else")
        send_stop(other, "me")
        assert run.log.ended is None
        may_serve.set()
        wait_until(lambda: run.log.ended is not None)
        assert run.state == "cancelled"
        later_run, _ = producer.start("another", "two ", owner="me", number=1)
        wait_until(lambda: not stop_lists[-1])
        assert later_run.log.ended is None  # it began after the Stop


def test_undelivered_stops_are_bounded_in_number_and_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Undelivered Stops are dropped if they are too many or too old, the oldest first.

    Those of a former worker are dropped too.
    """
    monkeypatch.setattr(workers, "UNDELIVERED_MAX", 5)
    monkeypatch.setattr(workers, "STOPS_PER_REQUEST", 2)
    undelivered_stops = UndeliveredStops()
    undelivered_stops.add(["w1"], [(f"stream-{n}", n) for n in range(6)], "")
    undelivered_stops.add(["w1"], [("stream-5", 7)], "")

    def due_ids(*workers: str) -> list[list[str]]:
        requests = [
            request
            for _, request in undelivered_stops.due(workers)
            if isinstance(request, StopRequest)
        ]
        return [[stream_id for stream_id, _ in stop_request.stops] for stop_request in requests]

    assert due_ids("w1") == [["stream-1", "stream-2"], ["stream-3", "stream-4"], ["stream-5"]]
    undelivered_stops.delivered("w1", StopRequest([("stream-1", 1), ("stream-2", 2)], ""))
    undelivered_stops.delivered("w1", StopRequest([("stream-3", 3)], "me"))
    assert due_ids("w1", "w2") == [["stream-3", "stream-4"], ["stream-5"]]
    assert due_ids("w2") == []
    assert due_ids("w1") == []
    monkeypatch.setattr(workers, "UNDELIVERED_SECONDS", -1.0)
    undelivered_stops.add(["w1"], [("stream-1", 1)], "")
    assert due_ids("w1") == []
    assert not undelivered_stops
