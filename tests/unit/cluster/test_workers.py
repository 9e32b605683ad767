"""Several workers behave as one server for every request, while workers start and exit.

Each test starts a stream in one worker and does the rest through others.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest

from halt.cluster.bus import Bus
from halt.cluster.channel import Channel, Replies
from halt.cluster.membership import Membership
from halt.cluster.service import Workers
from halt.config.settings import Config
from halt.core.receipts import Receipt
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import RECORD_TIMEOUT, new_id, request_record
from tests.support.http_client import Client, EventStream
from tests.support.multi_worker import RESUME, SUSPEND, MultiWorkerHalt, WorkerClient, worker_pid
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PAGE = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
FLOWING = "count?n=1000000&gap_ms=5"

#: A phase: a model that stays in it, and the text that shows that it is reached.
PHASES = {
    "waiting for headers": ("silent_headers", ""),
    "waiting for the first token": ("silent_first_token", ""),
    "flowing": (FLOWING, "9 "),
    "flooding": ("long?n=10000000", "9 "),
    "stalled": ("stall?n=10", "9 "),
}


def start_cluster(workers: int, fake: FakeOpenAI, **settings: object) -> MultiWorkerHalt:
    """A Halt with this many workers and this upstream."""
    env = {name: str(value) for name, value in settings.items()}
    return MultiWorkerHalt(
        workers, {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "fake", **env}
    )


@pytest.fixture(scope="module")
def cluster(shared_fake: FakeOpenAI) -> Iterator[MultiWorkerHalt]:
    """Four workers; no test may end one of them."""
    server = start_cluster(4, shared_fake)
    yield server
    server.close()


@pytest.fixture
def small_cluster(shared_fake: FakeOpenAI, tmp_path: Path) -> Iterator[MultiWorkerHalt]:
    """Two workers that the test may end; their data folder is `tmp_path`."""
    server = start_cluster(2, shared_fake, HALT_DATA=tmp_path)
    yield server
    server.close()


def start_stream(client: Client, fake: FakeOpenAI, model: str, text: str = "") -> EventStream:
    """Start a stream; return once client and upstream have reached its phase."""
    prompt = new_id()
    events = client.chat(model, prompt).until_text(text)
    request_record(fake, prompt)
    return events


def other_names(cluster: MultiWorkerHalt, worker: str) -> list[str]:
    return [name for name in cluster.names if name != worker]


def events_read(events: EventStream) -> list[tuple[str, str]]:
    """Number and content of each event read so far."""
    return [(message.id, message.data) for message in events.seen]


# --- Stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_stop_through_any_worker_ends_stream_and_upstream_in_every_phase(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI, phase: str
) -> None:
    """Through any worker the receipt says stopped and closed, the reader gets the end, the upstream
    sees the close.
    """
    model, text = PHASES[phase]
    for number, stopper in enumerate(cluster.names):
        prompt = new_id()
        producer = cluster.client_of(other_names(cluster, stopper)[number % 3])
        with producer.chat(model, prompt).until_text(text) as events:
            record = request_record(shared_fake, prompt)
            receipt = cluster.client_of(stopper).stop(events.id)
            assert receipt.status == 200
            assert receipt.json["status"] == "stopped"
            assert receipt.json["upstream"] == "closed"
            assert record.closed.wait(RECORD_TIMEOUT)
            assert events.to_end().terminal["type"] == "cancelled"
            second_reply = cluster.client_of(cluster.names[number - 1]).stop(events.id)
            assert second_reply.json["status"] == "finished"


def test_stop_before_the_start_holds_in_every_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A tombstone of one worker ends the stream in whichever starts it; no request is sent."""
    for stopper, producer in zip(
        cluster.names, (*cluster.names[1:], cluster.names[0]), strict=True
    ):
        stream_id, prompt = new_id(), new_id()
        pending = cluster.client_of(stopper).stop(stream_id)
        assert (pending.status, pending.json["status"]) == (202, "pending")
        with cluster.client_of(producer).chat(FLOWING, prompt, id=stream_id) as events:
            assert events.to_end().terminal["type"] == "cancelled"
        assert prompt not in str([record.body for record in shared_fake.requests])


def test_hanging_worker_does_not_delay_stops_of_other_streams(
    small_cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """While one worker hangs, another stops its own stream.

    A Stop of an unknown stream is pending.
    """
    live_name, held_name = small_cluster.names
    client = small_cluster.client_of(live_name)
    stopper = client.connect()
    second = client.connect()
    events = start_stream(client, shared_fake, FLOWING, "9 ")
    os.kill(worker_pid(held_name), SUSPEND)
    try:
        client.send(stopper, "POST", f"/stop/{events.id}")
        assert b'"status":"stopped","upstream":"closed"' in stopper.getresponse().read()
        client.send(second, "POST", f"/stop/{new_id()}")
        assert b'"status":"pending"' in second.getresponse().read()
    finally:
        os.kill(worker_pid(held_name), RESUME)
    assert events.to_end().terminal["type"] == "cancelled"
    stopper.close()
    second.close()


class OneReply(Replies):
    """Replies of which the first has the stream's receipt; the next one never comes."""

    def __init__(self, stream_id: str) -> None:
        super().__init__()
        self._receipts = msgspec.msgpack.encode([Receipt(stream_id, "stopped", "closed", 0.1)])

    def __iter__(self) -> Iterator[tuple[str, bytes, Channel]]:
        yield "1-a", self._receipts, Channel.__new__(Channel)
        pytest.fail("a further reply was awaited")


class OneReplyBus(Bus):
    """A bus to workers of which one has a stream."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(Membership(Path("unused")))
        self._replies = OneReply(stream_id)

    def request(self, payload: bytes, timeout: float, only: str | None = None) -> Replies:
        return self._replies


def test_stop_with_a_repeated_id_waits_for_no_further_worker() -> None:
    """Once all requested streams have a receipt, no further worker is awaited."""
    stream_id = new_id()
    config = Config(base_url="http://127.0.0.1:9/v1", api_key="fake")
    registry = StopRegistry()
    workers = Workers(OneReplyBus(stream_id), registry)
    service = GenerationService(config, ScriptedUpstream(), registry, other_workers=workers)
    receipts = service.stop_many([(stream_id, None), (stream_id, 3)], "")
    assert [receipt.status for receipt in receipts] == ["stopped", "stopped"]


def test_session_lists_and_stops_its_streams_through_any_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """`GET /streams` and `POST /stop-all` cover the session's streams of all workers alone."""
    browser = cluster.client()
    browser.get("/")
    with ExitStack() as stack:
        own_streams = [
            stack.enter_context(
                start_stream(cluster.client_of(name, like=browser), shared_fake, FLOWING, "2 ")
            )
            for name in cluster.names
        ]
        other_stream = stack.enter_context(
            start_stream(cluster.client_of(cluster.names[0]), shared_fake, "stall?n=2", "1 ")
        )
        last_client = cluster.client_of(cluster.names[-1], like=browser)
        listed_streams = last_client.get("/streams").json["streams"]
        assert [stream["id"] for stream in listed_streams] == [events.id for events in own_streams]
        receipts = last_client.post("/stop-all").json["stopped"]
        assert {receipt["id"] for receipt in receipts} == {events.id for events in own_streams}
        assert {receipt["upstream"] for receipt in receipts} == {"closed"}
        for events in own_streams:
            assert events.to_end().terminal["type"] == "cancelled"
        assert cluster.client().stop(other_stream.id).json["status"] == "stopped"


# --- reading --------------------------------------------------------------------------------------


def test_every_worker_sends_every_event_once_and_in_order(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Through each worker a reader gets every event once and in order.

    Readers start at the beginning and in the middle, while the stream runs and after its end.
    """
    with ExitStack() as stack:
        producer = cluster.client_of(cluster.names[0])
        prompt = new_id()
        model = "count?n=400&gap_ms=2&hold=20"
        first = stack.enter_context(producer.chat(model, prompt).until_text("9 "))
        readers = [
            (last_seen, stack.enter_context(cluster.client_of(name).follow(first.id, last_seen)))
            for name in cluster.names
            for last_seen in (0, 5, 200)
        ]
        request_record(shared_fake, prompt).release()  # every reader has its response's head
        expected = events_read(first.to_end())
        assert [number for number, _ in expected[:-1]] == [str(n) for n in range(1, len(expected))]
        for last_seen, events in readers:
            # On a busy machine tokens come together: there may be fewer events than 200. Such
            # readers get the end alone.
            assert events_read(events.to_end()) == expected[min(last_seen, len(expected) - 1) :]
        for name in cluster.names:
            with cluster.client_of(name).follow(first.id, 7) as replay:
                assert events_read(replay.to_end()) == expected[7:]


def test_reasoning_and_tool_calls_are_read_through_another_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Another worker sends reasoning and tool calls exactly as the producer does."""
    producer, reader = cluster.names[:2]
    for model in ("reasoning", "tools"):
        with (
            start_stream(cluster.client_of(producer), shared_fake, model) as events,
            cluster.client_of(reader).follow(events.id) as other_events,
        ):
            assert events_read(other_events.to_end()) == events_read(events.to_end())


def test_event_source_reconnects_through_another_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A reconnect finds its stream in any worker and does not send the prompt again."""
    producer, reader = cluster.names[:2]
    prompt = new_id()
    query = urlencode({"prompt": prompt, "model": "stall?n=5&rest=5", "on_disconnect": "continue"})
    with cluster.client_of(producer).stream("GET", f"/stream?{query}") as events:
        events.until_text("4 ")
        last_id = events.seen[-1].id
    record = request_record(shared_fake, prompt)
    headers = {"Last-Event-ID": last_id}
    with cluster.client_of(reader).stream(
        "GET", f"/stream?{query}", headers=headers
    ) as reconnected:
        record.release()
        assert list(reconnected)[-1].id.endswith(".end")
        assert reconnected.text.split() == [str(n) for n in range(5, 10)]


def test_stream_of_a_session_is_hidden_from_others_in_every_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """In every worker, another session gets 404 for the stream and cannot stop it."""
    browser = cluster.client()
    browser.get("/")
    with start_stream(
        cluster.client_of(cluster.names[0], like=browser), shared_fake, FLOWING, "2 "
    ) as events:
        for name in cluster.names:
            with cluster.client_of(name).follow(events.id) as response:
                assert response.answer().error["code"] == "unknown_stream"
            assert cluster.client_of(name).stop(events.id).json["status"] == "pending"
        assert (
            cluster.client_of(cluster.names[1], like=browser).stop(events.id).json["status"]
            == "stopped"
        )


def test_stream_id_in_use_is_refused_by_every_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A second start with an ID is refused in every worker, during the first and after it."""
    prompt = new_id()
    with cluster.client_of(cluster.names[0]).chat("count?n=3&hold=1", prompt) as events:
        record = request_record(shared_fake, prompt)
        for _ in range(2):
            for name in cluster.names:
                with cluster.client_of(name).chat("count?n=3", id=events.id) as response:
                    answer = response.answer()
                    assert (answer.status, answer.error["code"]) == (409, "stream_in_use")
            record.release()
            events.to_end()


# --- the page -------------------------------------------------------------------------------------


def test_page_stream_and_stop_work_through_any_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """The page's stream comes through a second worker, its Stop through a third."""
    browser = cluster.client()
    browser.get("/")
    producer, reader, stopper = (
        cluster.client_of(name, like=browser) for name in cluster.names[:3]
    )
    stream_id, prompt = new_id(), new_id()
    form = urlencode({"prompt": prompt, "model": "stall?n=5", "id": stream_id}).encode()
    path = f"/c/{new_id()}/messages"
    assert producer.request("POST", path, form, PAGE).status == 200
    request_record(shared_fake, prompt).wait_tokens(5)
    with reader.stream("GET", f"/streams/{stream_id}/page") as page:
        html = ""
        while "4 " not in html:
            message = page.next()
            assert message is not None
            html += message.data
        assert "hx-partial" in html
        stop_form = urlencode({"stream_id": stream_id, "shown": "1"}).encode()
        stop_html = stopper.request("POST", "/stop", stop_form, PAGE).body.decode()
        assert "0 1 2 3 4" in stop_html
        assert "Stopped" in stop_html
        remaining_html = "".join(message.data for message in page)
        assert "Stopped" in remaining_html
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


def test_deleting_a_conversation_stops_its_answer_in_another_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Deletion of a conversation stops its answer in another worker; Undo restores the text."""
    browser = cluster.client()
    browser.get("/")
    producer, other = (cluster.client_of(name, like=browser) for name in cluster.names[:2])
    prompt, place = new_id(), f"/c/{new_id()}"
    form = urlencode({"prompt": prompt, "model": "stall?n=5"}).encode()
    assert producer.request("POST", f"{place}/messages", form, PAGE).status == 200
    record = request_record(shared_fake, prompt)
    wait_until(lambda: "3 4" in producer.get(place).body.decode(), SERVER_TIMEOUT)
    assert "its answer stopped" in other.request("POST", f"{place}/delete", b"", PAGE).body.decode()
    assert record.closed.wait(RECORD_TIMEOUT)
    assert other.get(place).status == 404
    other.request("POST", f"{place}/undelete", b"", PAGE)
    wait_until(lambda: 'data-state="stopped"' in other.get(place).body.decode(), SERVER_TIMEOUT)
    assert "3 4" in other.get(place).body.decode()


def test_stop_through_another_worker_cuts_the_answer_to_the_seen_text(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A Stop cuts the answer to the seen text also where another worker renders it."""
    browser = cluster.client()
    browser.get("/")
    producer, reader = (cluster.client_of(name, like=browser) for name in cluster.names[:2])
    with start_stream(producer, shared_fake, FLOWING, "9 ") as events:
        seen_event = events.seen[0]
        text = seen_event.json["content"].strip()
        form = {"stream_id": events.id, "shown": "1", "seen": seen_event.id}
        html = reader.request("POST", "/stop", urlencode(form).encode(), PAGE).body.decode()
        assert f"<p>{text}</p>" in html


def test_page_streams_of_a_session_are_counted_over_all_workers(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Beyond four, a session's page stream is brief, so that the browser can still send a Stop."""
    browser = cluster.client()
    browser.get("/")
    names = cycle(cluster.names)
    with ExitStack() as stack:
        events = start_stream(
            cluster.client_of(next(names), like=browser), shared_fake, "stall?n=5", "4 "
        )
        stack.enter_context(events)
        path = f"/streams/{events.id}/page"
        for _ in range(4):
            tab = stack.enter_context(
                cluster.client_of(next(names), like=browser).stream("GET", path)
            )
            assert tab.next() is not None
        with cluster.client_of(next(names), like=browser).stream("GET", path) as page_stream:
            assert [message.id for message in page_stream] != []
        assert browser.stop(events.id).json["status"] == "stopped"


# --- WebSocket ------------------------------------------------------------------------------------


def test_websocket_follows_and_stops_a_stream_of_another_worker(
    cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A WebSocket follows and stops a stream through a worker that is not its producer."""
    producer, other = cluster.names[:2]
    with (
        start_stream(cluster.client_of(producer), shared_fake, FLOWING, "9 ") as events,
        cluster.websocket_of(other) as ws,
    ):
        ws.send(type="follow", id=events.id)
        ws.until_text(events.id, "29 ")
        receipt = ws.stop(events.id)
        assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
        ws.to_end(events.id)
        expected = events_read(events.to_end())[:-1]
        assert [str(number) for number, _ in ws.seen[events.id]] == [n for n, _ in expected]


# --- limits ---------------------------------------------------------------------------------------


def test_stream_limit_and_orphan_grace_hold_over_all_workers(shared_fake: FakeOpenAI) -> None:
    """The limit counts open streams of all workers; a viewer in any of them counts as one."""
    server = start_cluster(2, shared_fake, HALT_MAX_STREAMS=3, HALT_ORPHAN_GRACE=1)
    try:
        first_client, second_client = map(server.client_of, server.names)
        _cap_holds(first_client, second_client, shared_fake)
        _grace_holds(first_client, second_client, shared_fake)
    finally:
        server.close()


def _cap_holds(first_client: WorkerClient, second_client: WorkerClient, fake: FakeOpenAI) -> None:
    with ExitStack() as stack:
        open_streams = [
            stack.enter_context(start_stream(client, fake, FLOWING, "2 "))
            for client in (first_client, second_client, second_client)
        ]
        for client in (first_client, second_client):
            with client.chat("count") as response:
                assert response.answer().error["code"] == "at_capacity"
        assert first_client.get("/healthz").json["open_streams"] == 3
        assert first_client.stop(open_streams[2].id).json["status"] == "stopped"
        with first_client.chat("count?n=3") as later_events:
            assert later_events.to_end().terminal["type"] == "done"
        for events in open_streams[:2]:
            second_client.stop(events.id)


def _grace_holds(first_client: WorkerClient, second_client: WorkerClient, fake: FakeOpenAI) -> None:
    prompt = new_id()
    first = first_client.chat("count?n=1000000&gap_ms=20", prompt).until_text("2 ")
    stream_id = first.id
    follower = second_client.follow(stream_id).until_text("2 ")  # it counts as a viewer
    first.close()
    follower.until_text("150 ")  # three times the grace after its first viewer has left
    record = request_record(fake, prompt)
    assert not record.closed.is_set()
    follower.close()
    assert record.closed.wait(RECORD_TIMEOUT)
    with first_client.follow(stream_id) as replay:
        assert replay.to_end().terminal["reason"] == "no_viewer"


# --- coming and going -----------------------------------------------------------------------------


def test_killed_worker_ends_its_streams_and_frees_its_places(
    small_cluster: MultiWorkerHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """Readers in other workers get an interrupted error when a stream's worker is killed.

    The dead worker's files are removed, and its places are free.
    """
    killed_name, live_name = small_cluster.names
    with (
        start_stream(small_cluster.client_of(killed_name), shared_fake, FLOWING, "9 ") as events,
        small_cluster.client_of(live_name).follow(events.id) as follower,
    ):
        follower.until_text("19 ")
        os.kill(worker_pid(killed_name), signal.SIGKILL)
        terminal = follower.to_end().terminal
        assert (terminal["type"], terminal["error"]["code"]) == ("error", "interrupted")
        assert terminal["error"]["retryable"] is True
        numbers = [int(message.id) for message in follower.seen if message.id]
        assert numbers == sorted(set(numbers))
    run = tmp_path / "run"
    wait_until(lambda: not list(run.glob(f"{killed_name}.*")), SERVER_TIMEOUT)
    small_cluster.names = small_cluster.wait_workers(other_than=(killed_name,))
    assert {path.stem for path in run.glob("*.lock")} == set(small_cluster.names)
    assert small_cluster.client().get("/healthz").json["open_streams"] == 0


def test_reload_ends_running_streams_and_keeps_pending_stops(
    small_cluster: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """After SIGHUP running streams end for all readers; new workers inherit pending Stops."""
    old = small_cluster.names
    stopped_id, prompt = new_id(), new_id()
    with (
        start_stream(small_cluster.client_of(old[0]), shared_fake, FLOWING, "9 ") as events,
        small_cluster.client_of(old[1]).follow(events.id) as follower,
    ):
        follower.until_text("9 ")
        assert small_cluster.client().stop(stopped_id).json["status"] == "pending"
        small_cluster.process.send_signal(signal.SIGHUP)
        assert events.to_end().terminal["type"] == "error"
        assert events_read(follower.to_end()) == events_read(events)
    small_cluster.names = small_cluster.wait_workers(other_than=old)
    with small_cluster.client_of(small_cluster.names[0]).chat(
        FLOWING, prompt, id=stopped_id
    ) as late_stream:
        assert late_stream.to_end().terminal["type"] == "cancelled"
    with start_stream(
        small_cluster.client_of(small_cluster.names[0]), shared_fake, FLOWING, "9 "
    ) as events:
        assert (
            small_cluster.client_of(small_cluster.names[1]).stop(events.id).json["upstream"]
            == "closed"
        )
