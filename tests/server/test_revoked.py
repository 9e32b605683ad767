"""Streams of people who lose their access: readers end, and the answers go on or are stopped."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from halt.people.known import digest_of
from halt.store.accounts import AccountRows
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, new_id, settings
from tests.support.http_client import Client, HttpResponse
from tests.support.multi_worker import MultiWorkerHalt, WorkerClient
from tests.support.people import make_api_token, make_person, store_at
from tests.support.waiting import BackgroundCall, wait_until
from tests.support.websocket_client import WebSocket

pytestmark = pytest.mark.slow

MODEL = "count?n=100000&gap_ms=20"  # answers for longer than a test takes
HELLO = [{"role": "user", "content": "Hello"}]
ENDED = "no longer valid"  # in the message of each reader that is ended
END_TIMEOUT = 20.0  # seconds; 5 are promised, and a busy machine may need more


@pytest.fixture(scope="module", params=["relay", "threads"])
def halt(request: pytest.FixtureRequest, shared_fake: FakeOpenAI) -> Iterator[MultiWorkerHalt]:
    """A Halt with accounts and two workers, whose readers are served by the relay or by threads."""
    more = {
        "HALT_USERS": 1,
        "HALT_RELAY_WRITES": int(request.param == "relay"),
        "HALT_HEARTBEAT": 300,  # so that no heartbeat wakes a reader
    }
    server = MultiWorkerHalt(2, settings(shared_fake, **more))
    yield server
    server.close()


@pytest.fixture
def store(halt: HaltServer) -> Iterator[Store]:
    """The server's store, in this process."""
    store = store_at(halt.data_folder)
    yield store
    store.database.close()


def bearer(store: Store, person: str) -> dict[str, str]:
    """The header with a new API token of the person."""
    return {"Authorization": f"Bearer {make_api_token(store, person)}"}


def revoke(store: Store, person: str, header: dict[str, str]) -> None:
    """Revoke the API token in this header."""
    token = header["Authorization"].removeprefix("Bearer ")
    assert store.sign_ins.remove_token(person, digest_of(token))


def open_response(
    stack: ExitStack, client: Client, path: str, **body: Any
) -> http.client.HTTPResponse:
    """Send a request for an answer; return the response whose body is read later."""
    connection = client.connect()
    stack.callback(connection.close)
    client.send(connection, "POST", path, {"messages": HELLO, "model": MODEL, **body})
    return connection.getresponse()


def test_readers_of_a_revoked_token_end_and_the_run_goes_on(
    halt: MultiWorkerHalt, store: Store
) -> None:
    """When a token is revoked in mid-stream, each kind of reader ends with the reason, in both
    workers. Another token of the person reads on, and the text is saved.
    """
    person = make_person(store, "accounts", new_id())
    lost, kept = bearer(store, person), bearer(store, person)
    here, there = (WorkerClient(halt, name, **lost) for name in halt.names)
    other = WorkerClient(halt, halt.names[1], **kept)
    with ExitStack() as stack:
        events = stack.enter_context(here.chat(MODEL))
        watcher = stack.enter_context(other.follow(events.id))
        remote = stack.enter_context(there.follow(events.id))
        silent = stack.enter_context(here.chat("silent_first_token")).until_comment(1)
        source = stack.enter_context(here.stream("GET", f"/stream?prompt=Hello&model={quoted()}"))
        for stream in (events, watcher, remote, source):
            stream.until_text("5")
        text = open_response(stack, here, "/chat", on_disconnect="continue")
        chunks = open_response(stack, here, "/v1/chat/completions", stream=True)
        for response in (text, chunks):
            assert response.read(40)
        whole = BackgroundCall(
            lambda: here.post("/chat", whole_request(), Accept="application/json")
        )
        openai = BackgroundCall(lambda: here.post("/v1/chat/completions", whole_request()))
        ws = stack.enter_context(WebSocket(halt, Authorization=lost["Authorization"]))
        ws.until_text(ws.start(MODEL), "5")
        wait_until(lambda: len(other.get("/streams").json["streams"]) == 8)

        revoke(store, person, lost)

        for stream in (events, remote, silent, source):
            for _ in stream:
                pass
            last = stream.terminal
            assert last["error"]["code"] == "unauthorized"
            assert ENDED in last["error"]["message"]
        assert source.seen[-1].id.endswith(".end")  # an EventSource does not reconnect for ever
        with pytest.raises(http.client.IncompleteRead) as broken:
            text.read()
        assert b"\n[error: unauthorized] " in broken.value.partial
        rest = chunks.read()
        assert json.loads(rest.rpartition(b"data: ")[2])["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in rest
        for call in (whole, openai):
            assert call.end(END_TIMEOUT) is None
            assert isinstance(call.result, HttpResponse)
            assert call.result.status == 401
        closed = ws.read_to_close()
        assert closed.code == 4001
        assert ENDED in closed.reason

        assert here.get(f"/streams/{events.id}").status == 401
        assert here.stop(events.id).status == 401
        shown = len(watcher.text)
        while len(watcher.text) < shown + 100:
            assert watcher.next() is not None
        assert other.stop(events.id).json["status"] == "stopped"
        watcher.to_end()
        assert watcher.terminal["reason"] == "stop"
    assert other.follow(events.id).to_end().text == watcher.text


def quoted() -> str:
    """The model in a query."""
    return MODEL.replace("&", "%26").replace("=", "%3D").replace("?", "%3F")


def whole_request() -> dict[str, Any]:
    """The body of a request for a whole answer."""
    return {"messages": HELLO, "model": MODEL}


def disable(store: Store, person: str) -> None:
    AccountRows(store.database).set_disabled(person, disabled=True)


def remove(store: Store, person: str) -> None:
    AccountRows(store.database).begin_removal(person)


@pytest.mark.parametrize(("bar", "reason"), [(disable, "disabled"), (remove, "removed")])
def test_streams_of_a_barred_person_are_stopped(
    halt: MultiWorkerHalt, store: Store, bar: Callable[[Store, str], None], reason: str
) -> None:
    """A disabled or removed person's readers end and runs are stopped, in each worker; the log says
    why. Another person's run goes on.
    """
    person = make_person(store, "accounts", new_id())
    neighbour = make_person(store, "accounts", new_id())
    clients = [WorkerClient(halt, name, **bearer(store, person)) for name in halt.names]
    other = WorkerClient(halt, halt.names[0], **bearer(store, neighbour))
    with ExitStack() as stack:
        streams = [stack.enter_context(client.chat(MODEL)) for client in clients]
        beside = stack.enter_context(other.chat(MODEL))
        ws = stack.enter_context(
            WebSocket(halt, Authorization=bearer(store, person)["Authorization"])
        )
        ws.until_text(ws.start(MODEL, on_disconnect="continue"), "5")
        for stream in (*streams, beside):
            stream.until_text("5")

        bar(store, person)

        for stream in streams:
            for _ in stream:
                pass
            assert stream.terminal["error"]["code"] == "unauthorized"
        assert ws.read_to_close().code == 4001
        for client in clients:
            assert client.get("/streams").status == 401
        halt.wait_printed(
            rf"\d streams? of the person {person}, who was {reason}, w(as|ere) stopped"
        )
        shown = len(beside.text)
        while len(beside.text) < shown + 100:
            assert beside.next() is not None
        wait_until(lambda: not AccountRows(store.database).running(person), END_TIMEOUT)
        assert other.stop(beside.id).json["status"] == "stopped"
