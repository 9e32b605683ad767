"""Generations of a server that was killed, restarted or stopped: no saved event is lost.

The servers and databases are real ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import event, update

from halt.clock import now
from halt.cluster import membership
from halt.cluster.bus import Bus
from halt.cluster.membership import Membership
from halt.config.data_dir import socket_folder
from halt.config.settings import Config
from halt.core import steps
from halt.core.events import Content, Done, Failed, Reasoning, ReasoningEnd, text_of
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.other_workers import OtherWorkers
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.people.person import ANYONE
from halt.store.batches import Batch, NewGeneration
from halt.store.database import Database
from halt.store.migrate import open_database
from halt.store.replay import HOUR, Replay
from halt.store.store import Store
from halt.store.tables import conversations
from halt.store.writer import StoreWriter
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, HaltServer, StartHalt, new_id, request_record
from tests.support.http_client import Client, EventStream, ServerEvent
from tests.support.races import together
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.stores import POSTGRES, first_value, open_store, postgres_schema, saved_events
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, wait_until
from tests.support.websocket_client import WebSocket

GAP = 100_000  # unused numbers between the last saved event and the end


# --- killed and stopped servers -------------------------------------------------------------------


def kill_worker(folder: Path, stream_id: str) -> None:
    """Kill the worker that produces this stream with SIGKILL; wait until its lease is free."""
    name = first_value(folder, "SELECT worker FROM generations WHERE id = ?", stream_id)
    with (folder / "run" / f"{name}.lock").open("rb") as lease:
        os.kill(int(name.partition("-")[0]), signal.SIGKILL)
        fcntl.flock(lease, fcntl.LOCK_SH)  # the lease is free when the worker has died


def send_message(client: Client, place: str, text: str, stream_id: str) -> int:
    """Send a message as the page does; the status of the response."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
    body = urlencode({"prompt": text, "id": stream_id}).encode()
    return client.request("POST", f"{place}/messages", body, form).status


def read_until_it_breaks(events: EventStream) -> list[ServerEvent]:
    """All messages that a client gets before its connection breaks."""
    with contextlib.suppress(http.client.IncompleteRead, ConnectionError, AssertionError):
        for _ in events:
            pass
    return events.seen


@pytest.fixture(scope="module")
def two_workers(
    shared_fake: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HaltServer, Path]]:
    """A server whose workers the tests kill, and its data folder."""
    folder = tmp_path_factory.mktemp("data")
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer({**env, "HALT_DATA": str(folder), "WEB_CONCURRENCY": "2"})
    yield server, folder
    server.close()


@pytest.fixture
def killing_halt(two_workers: tuple[HaltServer, Path]) -> KillingHalt:
    return KillingHalt(*two_workers)


class KillingHalt:
    """A server of two workers, one of which is killed in the middle of its answer."""

    def __init__(self, server: HaltServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.client = server.client()

    def stream(self, **fields: Any) -> tuple[str, list[ServerEvent], int]:
        """The stream's ID, its client's messages, and the number of an event that was saved before."""
        events = self.client.chat("count?n=100000&gap_ms=5", **fields).until_text("20 ")
        wait_until(lambda: saved_events(self.folder, events.id) >= 20, SERVER_TIMEOUT)
        saved_number = saved_events(self.folder, events.id)
        kill_worker(self.folder, events.id)
        return events.id, read_until_it_breaks(events), saved_number


def test_killed_worker_replays_saved_events_and_ends_interrupted(killing_halt: KillingHalt) -> None:
    """The replay has each saved event once and in order, then the end "interrupted"."""
    stream_id, received, saved_number = killing_halt.stream()
    replay = killing_halt.client.follow(stream_id, 0).to_end()
    *events, terminal, done_message = replay.seen
    assert done_message.data == "[DONE]"
    assert [int(event.id) for event in events] == list(range(1, len(events) + 1))
    assert len(events) >= saved_number
    assert received[: len(events)] == events[: len(received)]
    assert int(terminal.id) == len(events) + GAP + 1
    assert terminal.json["error"]["code"] == "interrupted"
    assert terminal.json["error"]["retryable"] is True
    wait_until(partial(is_over, killing_halt.client, stream_id), SERVER_TIMEOUT)


def test_reader_after_a_kill_resumes_behind_its_last_event(killing_halt: KillingHalt) -> None:
    """A reader that resumes at any event number gets the later events once, then the end."""
    stream_id, received, saved_number = killing_halt.stream()
    all_events = killing_halt.client.follow(stream_id, 0).to_end().seen
    for number in (1, 7, saved_number, len(received), int(received[-1].id) + 500):
        later_events = killing_halt.client.follow(stream_id, number).to_end().seen
        assert later_events == [
            event for event in all_events if not event.id or int(event.id) > number
        ]
    resumed_events = (
        killing_halt.client.follow(stream_id, Last_Event_ID=str(saved_number)).to_end().seen
    )
    assert resumed_events == killing_halt.client.follow(stream_id, saved_number).to_end().seen


def test_websocket_and_eventsource_replay_the_saved_events(killing_halt: KillingHalt) -> None:
    """A WebSocket and an EventSource get the same events and end as the JSON stream."""
    stream_id, _, _ = killing_halt.stream()
    all_events = killing_halt.client.follow(stream_id, 0).to_end().seen[:-1]
    text = "".join(event.json["content"] for event in all_events if int(event.id) > 3)
    with WebSocket(killing_halt.server) as socket:
        socket.send(type="follow", id=stream_id)
        socket.to_end(stream_id)
        assert socket.seen[stream_id] == [(int(event.id), event.json) for event in all_events]
    source = killing_halt.client.stream(
        "GET", "/stream", headers={"Last-Event-ID": f"{stream_id}.3"}
    )
    messages = [event.json for event in source]
    assert "".join(message["content"] for message in messages) == text
    assert messages[-1]["error"]["code"] == "interrupted"


def test_stream_after_a_kill_is_hidden_from_other_sessions(killing_halt: KillingHalt) -> None:
    """After a worker's death a stream is still found by its own session alone."""
    killing_halt.client.get("/")
    stream_id, _, _ = killing_halt.stream(id=new_id())
    assert killing_halt.server.client().get(f"/streams/{stream_id}").status == 404
    assert killing_halt.client.get(f"/streams/{stream_id}").status == 200


def test_page_after_a_kill_shows_the_saved_text_as_interrupted(killing_halt: KillingHalt) -> None:
    """The page shows the saved text as interrupted, and the conversation accepts the next
    message."""
    client, stream_id, place = killing_halt.client, new_id(), f"/c/{new_id()}"
    client.get("/")
    assert send_message(client, place, "/fake count?n=100000&gap_ms=5", stream_id) == 200
    wait_until(lambda: saved_events(killing_halt.folder, stream_id) >= 20, SERVER_TIMEOUT)
    kill_worker(killing_halt.folder, stream_id)
    page = client.get(place).body.decode()
    assert 'data-state="interrupted"' in page
    assert "0 1 2 3 4 5 6 7 8 9 10" in page
    assert 'data-state="running"' not in page
    feed = client.follow(f"{stream_id}/page", Last_Event_ID="10")
    message = feed.next()
    assert message is not None
    assert 'data-state="interrupted"' in message.data
    assert feed.next() is None
    assert send_message(client, place, "Hello", new_id()) == 200


def test_message_right_after_an_end_is_accepted_by_every_worker(killing_halt: KillingHalt) -> None:
    """A message sent as soon as the last answer has ended is accepted, whichever worker gets it."""
    client, place = killing_halt.client, f"/c/{new_id()}"
    client.get("/")
    for _ in range(12):
        stream_id = new_id()
        assert send_message(client, place, "/fake count?n=1", stream_id) == 200
        client.follow(stream_id, 0).to_end()


def test_sigterm_saves_the_events_that_readers_received(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """After SIGTERM the next server replays exactly the events that readers received, end
    included."""
    server = start_halt(fake, HALT_DATA=tmp_path)
    streams = [
        server.client().chat("count?n=100000&gap_ms=5").until_text("20 "),
        server.client().chat("reasoning_field?n=5&gap_ms=5"),
        server.client().chat("silent_headers"),
    ]
    server.terminate()
    received_lists = [events.to_end().seen for events in streams]
    assert server.wait() == 0
    client = start_halt(fake, HALT_DATA=tmp_path).client()
    for events, received in zip(streams, received_lists, strict=True):
        assert client.follow(events.id, 0).to_end().seen == received
    assert streams[0].terminal["error"]["code"] == "interrupted"


def is_over(client: Client, stream_id: str) -> bool:
    """Whether a Stop reports an ended stream; on a busy machine the store may answer too late."""
    return bool(client.stop(stream_id).json["status"] == "finished")


def test_later_server_replays_ended_streams_exactly(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """A later server replays a finished and a stopped stream event for event."""
    first = start_halt(fake, HALT_DATA=tmp_path)
    client = first.client()
    finished_stream = client.chat("count?n=30").to_end()
    stopped_stream = client.chat("count?n=100000&gap_ms=5").until_text("9 ")
    client.stop(stopped_stream.id)
    stopped_stream.to_end()
    first.terminate()
    assert first.wait() == 0
    client = start_halt(fake, HALT_DATA=tmp_path).client()
    for events in (finished_stream, stopped_stream):
        assert client.follow(events.id, 0).to_end().seen == events.seen
        wait_until(partial(is_over, client, events.id), SERVER_TIMEOUT)


# --- faults of the store --------------------------------------------------------------------------


class WriterHarness:
    """A store writer with a real database, in which a test causes faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = open_database(folder)
        self.store = Store(self.database)
        self.store_writer = StoreWriter(self.store.generations, "worker-1")
        self.replay = Replay(self.store.generations, lambda worker: worker == "worker-1")

    def begin(self, stream_id: str = "a-stream") -> Generation:
        generation = Generation(
            StreamKey("somebody", stream_id), EventLog(10_000_000), started_at=now()
        )
        self.store_writer.add(generation)
        return generation

    def add_text(self, generation: Generation, *texts: str) -> None:
        for text in texts:
            generation.record_text(text, now())
            generation.log.append(Content(text))

    def end(self, generation: Generation) -> None:
        generation.log.end(lambda: Done("stop", Meter().snapshot()))
        generation.ended_at = now()
        self.store_writer.notify_end()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[WriterHarness]:
    writer_harness = WriterHarness(tmp_path)
    yield writer_harness
    writer_harness.store_writer.close()
    writer_harness.store.close()


@contextlib.contextmanager
def locked(harness: WriterHarness) -> Iterator[None]:
    """Another connection holds the write lock of the database."""
    with contextlib.closing(sqlite3.connect(harness.folder / "halt.db")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def pragma_fault(
    pragma: str, working_pragma: str
) -> Callable[[WriterHarness], contextlib.AbstractContextManager[None]]:
    """A fault: each connection gets the first pragma, and afterwards the second one."""

    @contextlib.contextmanager
    def with_fault(harness: WriterHarness) -> Iterator[None]:
        current_pragma = pragma

        def set_pragma(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA {current_pragma}").fetchall()

        event.listen(harness.database.engine, "checkout", set_pragma)
        yield
        current_pragma = working_pragma

    return with_fault


FAULTS = {
    "locked": (locked, "the database is locked by another program"),
    "full": (pragma_fault("max_page_count=1", "max_page_count=1000000"), "the disk is full"),
    "read-only": (pragma_fault("query_only=1", "query_only=0"), "the database is read-only"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_store_delays_no_reader_and_catches_up(
    harness: WriterHarness, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store fails readers get all events; afterwards all events are saved."""
    with_fault, reason = FAULTS[fault]
    generation = harness.begin()
    harness.add_text(generation, "before ")
    wait_until(lambda: saved_events(harness.folder, "a-stream") == 1, SERVER_TIMEOUT)
    with with_fault(harness):
        harness.add_text(generation, "meanwhile ", "x" * 100_000)
        assert generation.log.last == 3  # no append has waited
        wait_until(lambda: harness.store_writer.saving.state == "failed", SERVER_TIMEOUT)
        assert harness.store_writer.saving.reason == reason
    harness.add_text(generation, " after")
    harness.end(generation)
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)
    assert harness.store_writer.saving.state == "saved"
    replay = harness.replay.get(StreamKey("somebody", "a-stream"))
    assert replay is not None
    assert replay.log.read(0) == generation.log.read(0)
    assert replay.answer() == generation.answer()
    # The first removal of expired rows may meet the fault, too, and then has a line of its own.
    log_lines = [
        line.getMessage()
        for line in caplog.records
        if line.levelname != "DEBUG" and not line.getMessage().startswith("expired rows ")
    ]
    assert len(log_lines) == 2, log_lines


# --- replays and recovery -------------------------------------------------------------------------


def test_replay_equals_the_recorded_generation(harness: WriterHarness) -> None:
    """A replay has the events, times, text and thoughts of its generation, for its owner alone."""
    generation = harness.begin()
    for delta in (Reasoning("a thought"), Content("some "), Content("text")):
        generation.record_text(text_of(delta), now())
        generation.log.append(delta)
    harness.end(generation)
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)
    replay = harness.replay.get(StreamKey("somebody", "a-stream"))
    assert replay is not None
    assert replay.log.read(0) == generation.log.read(0)
    assert replay.answer() == (3, "some text")
    assert [step.text for step in steps.steps_of(replay)] == ["a thought"]
    for number in (1, 2, 3):
        arrival = generation.arrival_time(number) - generation.started_at
        assert replay.arrival_time(number) - replay.started_at == pytest.approx(arrival, abs=0.001)
    assert replay.state == "done"
    assert harness.replay.get(StreamKey("somebody else", "a-stream")) is None
    assert harness.replay.get(StreamKey("somebody", "another-stream")) is None


def test_replay_separates_a_late_thought_from_the_answer(harness: WriterHarness) -> None:
    """Text that a late ReasoningEnd turned into a thought is a step of the replay, not its
    answer."""
    generation = harness.begin()
    for delta in (Content("Okay. "), Content("So."), ReasoningEnd(), Content("Hello")):
        generation.record_event(delta, now())
        generation.log.append(delta)
    harness.end(generation)
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)
    replay = harness.replay.get(StreamKey("somebody", "a-stream"))
    assert replay is not None
    assert replay.answer() == generation.answer() == (4, "Hello")
    assert [step.text for step in steps.steps_of(replay)] == ["Okay. So."]


def test_stop_of_an_ended_stream_reads_no_events(harness: WriterHarness) -> None:
    """A Stop of an ended stream reports its end without reading its events."""
    for stream_id in ("a-stream", "dead-stream"):
        harness.add_text(harness.begin(stream_id), "text")
    harness.end(generation := harness.begin("an-end"))
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)
    wait_until(lambda: saved_events(harness.folder, "dead-stream") == 1, SERVER_TIMEOUT)
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        if threading.current_thread().name == "halt-lookup":  # the store writer may sweep meanwhile
            statements.append(arguments[2])

    event.listen(harness.database.engine, "before_cursor_execute", note)
    upstream = ScriptedUpstream()
    service = GenerationService(
        Config(), upstream, StopRegistry(), other_workers=OtherWorkers(harness.replay)
    )
    ids = ("an-end", "a-stream", "unknown-stream")
    with contextlib.closing(service):

        def statuses() -> list[str]:
            receipts = service.stop_many([(stream_id, None) for stream_id in ids], "somebody")
            return [receipt.status for receipt in receipts]

        # The store may not answer in time on a busy machine.
        wait_until(lambda: statuses() == ["finished", "pending", "pending"], SERVER_TIMEOUT)
        assert service.stop(StreamKey("somebody else", "an-end")).status == "pending"
    assert statements
    assert not [statement for statement in statements if "generations.events" in statement]
    upstream.dispose()
    assert Replay(harness.store.generations, lambda worker: False).has_ended(
        StreamKey("somebody", "dead-stream")
    )


def test_replay_ignores_generations_of_a_live_worker(harness: WriterHarness) -> None:
    """While its worker lives, a generation is neither replayed nor ended."""
    generation = harness.begin()
    harness.add_text(generation, "text")
    wait_until(lambda: saved_events(harness.folder, "a-stream") == 1, SERVER_TIMEOUT)
    assert harness.replay.get(StreamKey("somebody", "a-stream")) is None
    assert harness.replay.recover() == 0
    harness.end(generation)
    assert harness.store_writer.wait_written(generation.key, WAIT_TIMEOUT)


def test_concurrent_recoveries_end_each_generation_once(harness: WriterHarness) -> None:
    """Of concurrent recoveries of a dead worker exactly one ends each of its generations."""
    generations = [harness.begin(f"stream-{n}") for n in range(5)]
    for generation in generations:
        harness.add_text(generation, "some ", "text")
        wait_until(lambda: saved_events(harness.folder, generation.id) == 2, SERVER_TIMEOUT)
    databases = [open_database(harness.folder) for _ in range(4)]
    counts: list[int] = []
    start_barrier = threading.Barrier(len(databases))

    def recover(database: Database) -> None:
        start_barrier.wait(WAIT_TIMEOUT)
        counts.append(Replay(Store(database).generations, lambda worker: False).recover())

    threads = [threading.Thread(target=recover, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT)
    assert sum(counts) == 5
    for generation in generations:
        replay = harness.replay.get(generation.key)
        assert replay is not None
        assert replay.answer() == (2, "some text")
        assert isinstance(replay.log.ended, Failed)
        assert replay.log.ended.error.code == "interrupted"
        assert replay.log.last == 2 + GAP + 1
    for database in databases:
        database.close()


def test_replay_of_a_dead_workers_generation_ends_at_once(harness: WriterHarness) -> None:
    """A reader of a dead worker's generation gets its replay before any recovery has run."""
    harness.add_text(harness.begin(), "text")
    wait_until(lambda: saved_events(harness.folder, "a-stream") == 1, SERVER_TIMEOUT)
    replay = Replay(harness.store.generations, lambda worker: False).get(
        StreamKey("somebody", "a-stream")
    )
    assert replay is not None
    assert replay.answer() == (1, "text")


def test_worker_of_another_folder_counts_as_dead_after_a_long_time(
    harness: WriterHarness, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of another data folder counts as dead only if its generation began long ago."""
    own_folder_worker, other_folder_worker = (
        Membership(tmp_path / "mine"),
        Membership(tmp_path / "other"),
    )
    for member in (own_folder_worker, other_folder_worker):
        member.begin()
    start = time.time()
    for stream_id, worker in (
        ("old-stream", "9999999-abcdef12"),
        ("its-stream", other_folder_worker.name),
    ):
        harness.store.generations.write(
            Batch((NewGeneration(StreamKey("somebody", stream_id), worker, "", start),))
        )
    other_folder_worker.stop()
    assert Replay(harness.store.generations, own_folder_worker.is_alive, 10.0).recover() == 1
    assert "worker 9999999-abcdef12 has died: 1 answer was interrupted" in caplog.messages
    assert harness.store.generations.workers_running().keys() == {other_folder_worker.name}
    assert (
        Replay(harness.store.generations, own_folder_worker.is_alive, -HOUR).get(
            StreamKey("somebody", "its-stream")
        )
        is not None
    )
    own_folder_worker.stop()


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES, reason="TEST_DATABASE_URL names no PostgreSQL")
def test_servers_sharing_a_database_end_no_foreign_stream(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """Neither a start nor a request of another server ends a running stream of the database."""
    with postgres_schema() as url:
        first, second = (start_halt(shared_fake, DATABASE_URL=url) for _ in range(2))
        prompt = new_id()
        with first.client().chat("stall?n=5&rest=5", prompt) as events:
            events.until_text("4 ")
            place = f"/streams/{events.id}"
            with open_store(tmp_path, url) as store:
                wait_until(
                    partial(store.generations.exists, StreamKey(ANYONE.id, events.id)),
                    SERVER_TIMEOUT,
                )
            third_server = start_halt(shared_fake, DATABASE_URL=url)
            assert [server.client().get(place).status for server in (second, third_server)] == [
                404,
                404,
            ]
            request_record(shared_fake, prompt).release()
            assert events.to_end().terminal["type"] == "done"
        wait_until(lambda: second.client().get(place).status == 200, SERVER_TIMEOUT)
        assert '"type":"done"' in second.client().get(place).body.decode()
        for server in (first, second, third_server):
            server.close()


def test_worker_counts_as_dead_during_its_recovery(tmp_path: Path) -> None:
    """While one worker recovers a dead one, the others see the dead worker as dead."""
    liveness: list[bool | None] = []
    observer = Membership(tmp_path)
    sweeping_worker = Membership(tmp_path, lambda name: liveness.append(observer.is_alive(name)))
    for worker in (observer, sweeping_worker):
        worker.begin()
    program = (
        "import sys; from pathlib import Path; from halt.cluster.membership import Membership\n"
        "worker = Membership(Path(sys.argv[1])); worker.begin()\n"
        "print(worker.name, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as dead_worker:
        assert dead_worker.stdout
        name = dead_worker.stdout.readline().strip()
        assert observer.is_alive(name)
        dead_worker.kill()
    sweeping_worker.sweep()
    assert liveness == [False]
    assert not observer.is_alive(name)
    for worker in (observer, sweeping_worker):
        worker.stop()


def test_concurrent_sweeps_recover_each_dead_worker_once(tmp_path: Path) -> None:
    """Of concurrent sweeps one recovers each dead worker, and no file of it is left."""
    recovered_names: list[str] = []
    live_workers = [Membership(tmp_path, recovered_names.append) for _ in range(3)]
    for member in live_workers:
        member.begin()
    run = tmp_path / "run"
    dead_names = {f"{number}-dead" for number in range(200)}
    for name in dead_names:
        (run / f"{name}.lock").touch()
    together(*(worker.sweep for worker in live_workers))
    assert sorted(recovered_names) == sorted(dead_names)
    assert {path.stem for path in run.glob("*.lock")} == {worker.name for worker in live_workers}
    assert not list(run.glob("*.cleanup"))
    for member in live_workers:
        member.stop()


def test_workers_with_deleted_files_stay_alive_and_create_them_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers whose run folder is deleted recover no live worker, log it once and create it
    again."""
    recovered_names: list[str] = []
    first, second, third = (Bus(Membership(tmp_path, recovered_names.append)) for _ in range(3))
    run = tmp_path / "run"
    numbers = itertools.count(1)

    def has_files(worker_bus: Bus) -> bool:
        sockets = socket_folder(run)  # another folder where the path is too long
        name = worker_bus.membership.name
        return all(map(Path.exists, (run / f"{name}.lock", sockets / f"{name}.sock")))

    for bus in (first, second):
        bus.begin(lambda payload, channel: channel.send(payload))
        bus.membership.watch()

    def delete_folder() -> None:
        # Renamed first: a worker that creates its files again would make a removal in place fail.
        shutil.rmtree(run.rename(tmp_path / f"deleted-{next(numbers)}"))

    for _ in range(2):
        delete_folder()
        assert first.membership.is_alive(second.membership.name)
        assert second.membership.is_alive(first.membership.name)
        wait_until(lambda: has_files(first) and has_files(second), SERVER_TIMEOUT)
        with first.request(b"Who?", WAIT_TIMEOUT) as answers:
            assert [payload for _, payload, _ in answers] == [b"Who?"]
    messages = [message for message in caplog.messages if "were deleted" in message]
    assert 2 <= len(messages) <= 4  # once for each deletion that follows a repair
    delete_folder()
    third.begin(lambda payload, channel: None)
    assert third.membership.is_alive(first.membership.name)
    third.membership.watch()
    wait_until(lambda: has_files(first) and has_files(second), SERVER_TIMEOUT)
    assert recovered_names == []
    for store in (first, second, third):
        store.close()


def test_worker_without_a_lock_file_is_dead_if_its_process_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lock file a worker is dead if its process has ended or if it never had a file."""
    worker = Membership(tmp_path)
    (tmp_path / "run").mkdir(mode=0o700)
    worker.begin()
    assert not worker.is_alive("1-unknown")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended_process:
        pass
    shutil.rmtree(tmp_path / "run")
    assert not worker.is_alive(f"{ended_process.pid}-gone")
    assert worker.is_alive(f"{os.getpid()}-hangs")
    worker.watch()
    wait_until((tmp_path / "run" / f"{worker.name}.lock").exists, SERVER_TIMEOUT)
    monkeypatch.setattr(membership, "REPAIR_WITHIN", 0.0)
    assert worker.is_alive(f"{os.getpid()}-hangs")
    worker.stop()
    worker.wait_stopped()


# --- removal of expired rows ----------------------------------------------------------------------


@pytest.mark.slow
def test_idle_server_removes_conversations_deleted_days_ago(
    tmp_path: Path, start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Conversations deleted three days ago are removed although no answer is generated."""
    store = Store(open_database(tmp_path, ""))
    for number in range(60):
        conversation_id = f"deleted-{number:03}"
        store.turns.add_prompt(
            conversation_id, "somebody", "Hello", [(new_id(), "")], worker="gone"
        )
        store.conversations.delete(conversation_id, "somebody")
    with store.database.writing() as connection:
        connection.execute(update(conversations).values(deleted_at=time.time() - 3 * 86_400))
    store.close()
    server = start_halt(shared_fake, HALT_DATA=str(tmp_path))
    assert server.client().get("/").status == 200
    wait_until(
        lambda: first_value(tmp_path, "SELECT count(*) FROM conversations WHERE id <> ?", "") == 0,
        SERVER_TIMEOUT,
    )
    assert first_value(tmp_path, "SELECT count(*) FROM messages WHERE role <> ?", "") == 0
