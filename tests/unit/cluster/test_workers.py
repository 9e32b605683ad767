"""Several workers behave as one, whichever of them a request reaches; also while they come and go.

Every test crosses workers: it starts a stream in one and does the rest through others.
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
from tests.support.halt_server import RECORD_TIMEOUT, eventually, new_id, request_record
from tests.support.http_client import Client, EventStream
from tests.support.multi_worker import RESUME, SUSPEND, MultiWorkerHalt, WorkerClient, worker_pid
from tests.support.scripted_upstream import ScriptedUpstream

PAGE = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
FLOWING = "count?n=1000000&gap_ms=5"

#: A phase: the model that goes there and stays, and the text that shows that it has arrived.
PHASES = {
    "waiting for headers": ("silent_headers", ""),
    "waiting for the first token": ("silent_first_token", ""),
    "flowing": (FLOWING, "9 "),
    "flooding": ("long?n=10000000", "9 "),
    "stalled": ("stall?n=10", "9 "),
}


def crowd_of(workers: int, fake: FakeOpenAI, **settings: object) -> MultiWorkerHalt:
    """A Halt with so many workers before this upstream."""
    env = {name: str(value) for name, value in settings.items()}
    return MultiWorkerHalt(
        workers, {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "fake", **env}
    )


@pytest.fixture(scope="module")
def crowd(shared_fake: FakeOpenAI) -> Iterator[MultiWorkerHalt]:
    """Four workers; no test here ends one of them."""
    server = crowd_of(4, shared_fake)
    yield server
    server.close()


@pytest.fixture
def mortals(shared_fake: FakeOpenAI, tmp_path: Path) -> Iterator[MultiWorkerHalt]:
    """Two workers of this test's own; its folder is `tmp_path`."""
    server = crowd_of(2, shared_fake, HALT_DATA=tmp_path)
    yield server
    server.close()


def started(client: Client, fake: FakeOpenAI, model: str, text: str = "") -> EventStream:
    """Start a stream and wait until it is in its phase, as both ends see it."""
    said = new_id()
    events = client.chat(model, said).until_text(text)
    request_record(fake, said)
    return events


def others(crowd: MultiWorkerHalt, worker: str) -> list[str]:
    return [name for name in crowd.names if name != worker]


def taken(events: EventStream) -> list[tuple[str, str]]:
    """Number and content of every event read so far."""
    return [(m.id, m.data) for m in events.seen]


# --- Stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_stop_through_every_worker_ends_stream_and_upstream_in_every_phase(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI, phase: str
) -> None:
    """The receipt says stopped and closed, the reader is told, the provider sees the close."""
    model, text = PHASES[phase]
    for number, stopper in enumerate(crowd.names):
        said = new_id()
        owner = crowd.client_of(others(crowd, stopper)[number % 3])
        with owner.chat(model, said).until_text(text) as events:
            record = request_record(shared_fake, said)
            receipt = crowd.client_of(stopper).stop(events.id)
            assert receipt.status == 200
            assert receipt.json["status"] == "stopped"
            assert receipt.json["upstream"] == "closed"
            assert record.closed.wait(RECORD_TIMEOUT)
            assert events.to_end().terminal["type"] == "cancelled"
            again = crowd.client_of(crowd.names[number - 1]).stop(events.id)
            assert again.json["status"] == "finished"


def test_stop_before_the_start_holds_in_every_worker(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A tombstone that one worker was given ends the stream wherever it starts; nothing is sent."""
    for stopper, owner in zip(crowd.names, (*crowd.names[1:], crowd.names[0]), strict=True):
        stream_id, said = new_id(), new_id()
        pending = crowd.client_of(stopper).stop(stream_id)
        assert (pending.status, pending.json["status"]) == (202, "pending")
        with crowd.client_of(owner).chat(FLOWING, said, id=stream_id) as events:
            assert events.to_end().terminal["type"] == "cancelled"
        assert said not in str([each.body for each in shared_fake.requests])


def test_a_worker_that_hangs_holds_up_no_stop_of_another_ones_stream(
    mortals: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """One of them is held: the other still stops its own, and says of a third that it is pending."""
    alive, held = mortals.names
    client = mortals.client_of(alive)
    stopper = client.connect()
    asker = client.connect()
    events = started(client, shared_fake, FLOWING, "9 ")
    os.kill(worker_pid(held), SUSPEND)
    try:
        client.send(stopper, "POST", f"/stop/{events.id}")
        assert b'"status":"stopped","upstream":"closed"' in stopper.getresponse().read()
        client.send(asker, "POST", f"/stop/{new_id()}")
        assert b'"status":"pending"' in asker.getresponse().read()
    finally:
        os.kill(worker_pid(held), RESUME)
    assert events.to_end().terminal["type"] == "cancelled"
    stopper.close()
    asker.close()


class OneReply(Replies):
    """One of the others has the stream that is asked for; another answer never comes."""

    def __init__(self, stream_id: str) -> None:
        super().__init__()
        self._told = msgspec.msgpack.encode([Receipt(stream_id, "stopped", "closed", 0.1)])

    def __iter__(self) -> Iterator[tuple[str, bytes, Channel]]:
        yield "1-a", self._told, Channel.__new__(Channel)
        pytest.fail("it waits for one that hangs")


class OneReplyBus(Bus):
    """Others of whom one has a stream."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(Membership(Path("unused")))
        self._others = OneReply(stream_id)

    def request(self, payload: bytes, timeout: float, only: str | None = None) -> Replies:
        return self._others


def test_the_same_id_twice_in_one_press_waits_for_nobody_else() -> None:
    """When all that were asked for are answered, no other worker is waited for."""
    one = new_id()
    config = Config(base_url="http://127.0.0.1:9/v1", api_key="fake")
    registry = StopRegistry()
    workers = Workers(OneReplyBus(one), registry)
    service = GenerationService(config, ScriptedUpstream(), registry, other_workers=workers)
    receipts = service.stop_many([(one, None), (one, 3)], None)
    assert [each.status for each in receipts] == ["stopped", "stopped"]


def test_a_session_sees_and_stops_all_its_streams_through_any_worker(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """`GET /streams` and `POST /stop-all` mean the streams of every worker, and no stranger's."""
    visitor = crowd.client()
    visitor.get("/")
    with ExitStack() as stack:
        mine = [
            stack.enter_context(
                started(crowd.client_of(name, like=visitor), shared_fake, FLOWING, "2 ")
            )
            for name in crowd.names
        ]
        stranger = stack.enter_context(
            started(crowd.client_of(crowd.names[0]), shared_fake, "stall?n=2", "1 ")
        )
        last = crowd.client_of(crowd.names[-1], like=visitor)
        listed = last.get("/streams").json["streams"]
        assert [each["id"] for each in listed] == [each.id for each in mine]
        receipts = last.post("/stop-all").json["stopped"]
        assert {each["id"] for each in receipts} == {each.id for each in mine}
        assert {each["upstream"] for each in receipts} == {"closed"}
        for each in mine:
            assert each.to_end().terminal["type"] == "cancelled"
        assert crowd.client().stop(stranger.id).json["status"] == "stopped"


# --- reading --------------------------------------------------------------------------------------


def test_every_worker_tells_every_event_once_and_in_order(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """From the beginning and from the middle, while it runs and afterwards, through each worker."""
    with ExitStack() as stack:
        owner = crowd.client_of(crowd.names[0])
        first = stack.enter_context(started(owner, shared_fake, "count?n=400&gap_ms=2", "9 "))
        readers = [
            (after, stack.enter_context(crowd.client_of(name).follow(first.id, after)))
            for name in crowd.names
            for after in (0, 5, 200)
        ]
        told = taken(first.to_end())
        assert [number for number, _ in told[:-1]] == [str(n) for n in range(1, len(told))]
        for after, events in readers:
            # On a busy machine tokens come together: fewer events than 200, and these readers
            # have all of them but the end.
            assert taken(events.to_end()) == told[min(after, len(told) - 1) :]
        for name in crowd.names:
            with crowd.client_of(name).follow(first.id, 7) as replay:
                assert taken(replay.to_end()) == told[7:]


def test_what_is_no_text_comes_through_as_well(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Thoughts and tool calls are told by another worker exactly as by their own."""
    owner, reader = crowd.names[:2]
    for model in ("reasoning", "tools"):
        with (
            started(crowd.client_of(owner), shared_fake, model) as events,
            crowd.client_of(reader).follow(events.id) as other,
        ):
            assert taken(other.to_end()) == taken(events.to_end())


def test_an_event_source_goes_on_through_another_worker(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A reconnect finds its stream wherever it lands, and does not run the prompt again."""
    owner, reader = crowd.names[:2]
    said = new_id()
    query = urlencode({"prompt": said, "model": "stall?n=5&rest=5", "on_disconnect": "continue"})
    with crowd.client_of(owner).stream("GET", f"/stream?{query}") as events:
        events.until_text("4 ")
        last = events.seen[-1].id
    record = request_record(shared_fake, said)
    headers = {"Last-Event-ID": last}
    with crowd.client_of(reader).stream("GET", f"/stream?{query}", headers=headers) as again:
        record.release()
        assert list(again)[-1].id.endswith(".end")
        assert again.text.split() == [str(n) for n in range(5, 10)]


def test_a_stranger_cannot_read_a_sessions_stream_through_another_worker(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """404 for whoever is not the owner, in every worker alike."""
    visitor = crowd.client()
    visitor.get("/")
    with started(
        crowd.client_of(crowd.names[0], like=visitor), shared_fake, FLOWING, "2 "
    ) as events:
        for name in crowd.names:
            with crowd.client_of(name).follow(events.id) as refused:
                assert refused.answer().error["code"] == "unknown_stream"
            assert crowd.client_of(name).stop(events.id).json["status"] == "pending"
        assert (
            crowd.client_of(crowd.names[1], like=visitor).stop(events.id).json["status"]
            == "stopped"
        )


def test_an_id_belongs_to_one_stream_of_all_workers(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """A second start with it is refused in every worker, also when the first is over."""
    with started(crowd.client_of(crowd.names[0]), shared_fake, "count?n=3") as events:
        for _ in range(2):
            for name in crowd.names:
                with crowd.client_of(name).chat("count?n=3", id=events.id) as refused:
                    answer = refused.answer()
                    assert (answer.status, answer.error["code"]) == (409, "stream_in_use")
            events.to_end()


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_served_by_any_worker(crowd: MultiWorkerHalt, shared_fake: FakeOpenAI) -> None:
    """Its stream comes through one that does not own the answer; Stop shows it through a third."""
    visitor = crowd.client()
    visitor.get("/")
    owner, reader, stopper = (crowd.client_of(name, like=visitor) for name in crowd.names[:3])
    stream_id, said = new_id(), new_id()
    form = urlencode({"prompt": said, "model": "stall?n=5", "id": stream_id}).encode()
    path = f"/c/{new_id()}/messages"
    assert owner.request("POST", path, form, PAGE).status == 200
    request_record(shared_fake, said).wait_tokens(5)
    with reader.stream("GET", f"/streams/{stream_id}/page") as page:
        shown = ""
        while "4 " not in shown:
            message = page.next()
            assert message is not None
            shown += message.data
        assert "hx-partial" in shown
        press = urlencode({"stream_id": stream_id, "shown": "1"}).encode()
        stopped = stopper.request("POST", "/stop", press, PAGE).body.decode()
        assert "0 1 2 3 4" in stopped
        assert "Stopped" in stopped
        rest = "".join(message.data for message in page)
        assert "Stopped" in rest
    assert request_record(shared_fake, said).closed.wait(RECORD_TIMEOUT)


def test_a_conversation_is_deleted_while_another_worker_writes_in_it(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Its answer is stopped there, and comes back with the conversation."""
    visitor = crowd.client()
    visitor.get("/")
    owner, other = (crowd.client_of(name, like=visitor) for name in crowd.names[:2])
    said, place = new_id(), f"/c/{new_id()}"
    form = urlencode({"prompt": said, "model": "stall?n=5"}).encode()
    assert owner.request("POST", f"{place}/messages", form, PAGE).status == 200
    record = request_record(shared_fake, said)
    eventually(lambda: "3 4" in owner.get(place).body.decode())
    assert "its answer stopped" in other.request("POST", f"{place}/delete", b"", PAGE).body.decode()
    assert record.closed.wait(5)
    assert other.get(place).status == 404
    other.request("POST", f"{place}/undelete", b"", PAGE)
    eventually(lambda: 'data-state="stopped"' in other.get(place).body.decode())
    assert "3 4" in other.get(place).body.decode()


def test_what_the_stopper_had_seen_is_what_every_worker_keeps(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """The answer is cut to it also where another worker shows it."""
    visitor = crowd.client()
    visitor.get("/")
    owner, reader = (crowd.client_of(name, like=visitor) for name in crowd.names[:2])
    with started(owner, shared_fake, FLOWING, "9 ") as events:
        seen = events.seen[0]
        text = seen.json["content"].strip()
        press = {"stream_id": events.id, "shown": "1", "seen": seen.id}
        shown = reader.request("POST", "/stop", urlencode(press).encode(), PAGE).body.decode()
        assert f"<p>{text}</p>" in shown


def test_a_sessions_page_streams_are_counted_over_all_workers(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """Beyond four, a page stream is brief, so that the browser can still press Stop."""
    visitor = crowd.client()
    visitor.get("/")
    names = cycle(crowd.names)
    with ExitStack() as stack:
        events = started(crowd.client_of(next(names), like=visitor), shared_fake, "stall?n=5", "4 ")
        stack.enter_context(events)
        path = f"/streams/{events.id}/page"
        for _ in range(4):
            tab = stack.enter_context(
                crowd.client_of(next(names), like=visitor).stream("GET", path)
            )
            assert tab.next() is not None
        with crowd.client_of(next(names), like=visitor).stream("GET", path) as brief:
            assert [message.id for message in brief] != []
        assert visitor.stop(events.id).json["status"] == "stopped"


# --- WebSocket ------------------------------------------------------------------------------------


def test_a_socket_follows_and_stops_what_another_worker_makes(
    crowd: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """All that a socket can do with a stream it can do through any worker."""
    owner, other = crowd.names[:2]
    with (
        started(crowd.client_of(owner), shared_fake, FLOWING, "9 ") as events,
        crowd.websocket_of(other) as ws,
    ):
        ws.send(type="follow", id=events.id)
        ws.until_text(events.id, "29 ")
        receipt = ws.stop(events.id)
        assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
        ws.to_end(events.id)
        told = taken(events.to_end())[:-1]
        assert [str(number) for number, _ in ws.seen[events.id]] == [n for n, _ in told]


# --- limits ---------------------------------------------------------------------------------------


def test_limits_hold_over_all_workers(shared_fake: FakeOpenAI) -> None:
    """The cap on open streams counts all workers' streams; a viewer in any of them is one."""
    server = crowd_of(2, shared_fake, HALT_MAX_STREAMS=3, HALT_ORPHAN_GRACE=1)
    try:
        one, two = map(server.client_of, server.names)
        _cap_holds(one, two, shared_fake)
        _grace_holds(one, two, shared_fake)
    finally:
        server.close()


def _cap_holds(one: WorkerClient, two: WorkerClient, fake: FakeOpenAI) -> None:
    with ExitStack() as stack:
        open_streams = [
            stack.enter_context(started(client, fake, FLOWING, "2 ")) for client in (one, two, two)
        ]
        for client in (one, two):
            with client.chat("count") as refused:
                assert refused.answer().error["code"] == "at_capacity"
        assert one.get("/healthz").json["open_streams"] == 3
        assert one.stop(open_streams[2].id).json["status"] == "stopped"
        with one.chat("count?n=3") as fits:
            assert fits.to_end().terminal["type"] == "done"
        for each in open_streams[:2]:
            two.stop(each.id)


def _grace_holds(one: WorkerClient, two: WorkerClient, fake: FakeOpenAI) -> None:
    said = new_id()
    first = one.chat("count?n=1000000&gap_ms=20", said).until_text("2 ")
    stream_id = first.id
    follower = two.follow(stream_id)
    first.close()
    follower.until_text("150 ")  # three times the grace after its first viewer has left
    record = request_record(fake, said)
    assert not record.closed.is_set()
    follower.close()
    assert record.closed.wait(RECORD_TIMEOUT)
    with one.follow(stream_id) as replay:
        assert replay.to_end().terminal["reason"] == "no_viewer"


# --- coming and going -----------------------------------------------------------------------------


def test_readers_elsewhere_are_told_when_a_streams_worker_is_killed(
    mortals: MultiWorkerHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """Nobody waits for ever; what it left behind is tidied up, and its places are free."""
    victim, survivor = mortals.names
    with (
        started(mortals.client_of(victim), shared_fake, FLOWING, "9 ") as events,
        mortals.client_of(survivor).follow(events.id) as follower,
    ):
        follower.until_text("19 ")
        os.kill(worker_pid(victim), signal.SIGKILL)
        ended = follower.to_end().terminal
        assert (ended["type"], ended["error"]["code"]) == ("error", "interrupted")
        assert ended["error"]["retryable"] is True
        numbers = [int(m.id) for m in follower.seen if m.id]
        assert numbers == sorted(set(numbers))
    run = tmp_path / "run"
    eventually(lambda: not list(run.glob(f"{victim}.*")))
    mortals.names = mortals.wait_workers(other_than=(victim,))
    assert {each.stem for each in run.glob("*.lock")} == set(mortals.names)
    assert mortals.client().get("/healthz").json["open_streams"] == 0


def test_a_reload_in_mid_stream_hands_over(
    mortals: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """SIGHUP: streams end with a terminal event for readers of every worker; Stops are inherited."""
    old = mortals.names
    stopped, said = new_id(), new_id()
    with (
        started(mortals.client_of(old[0]), shared_fake, FLOWING, "9 ") as events,
        mortals.client_of(old[1]).follow(events.id) as follower,
    ):
        follower.until_text("9 ")
        assert mortals.client().stop(stopped).json["status"] == "pending"
        mortals.process.send_signal(signal.SIGHUP)
        assert events.to_end().terminal["type"] == "error"
        assert taken(follower.to_end()) == taken(events)
    mortals.names = mortals.wait_workers(other_than=old)
    with mortals.client_of(mortals.names[0]).chat(FLOWING, said, id=stopped) as late:
        assert late.to_end().terminal["type"] == "cancelled"
    with started(mortals.client_of(mortals.names[0]), shared_fake, FLOWING, "9 ") as events:
        assert mortals.client_of(mortals.names[1]).stop(events.id).json["upstream"] == "closed"
