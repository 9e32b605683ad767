"""Faults at a start or a Stop: nothing is left behind, and no request waits for another one."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from halt.app import create_app
from halt.clock import now
from halt.config.environment import load
from halt.core.connection import UpstreamConnection
from halt.core.events import Done
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stream_key import StreamKey
from halt.errors import AtCapacity, StoreUnavailable, UnknownStream
from halt.people.person import MINE
from halt.store.models import BUSY, Busy, Conversation
from halt.store.store import Store
from halt.store.writer import StoreWriter
from halt.web.services import services
from halt.web.websocket import routes as sockets
from tests.support.halt_server import new_id
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, wait_until

LOCKED = StoreUnavailable("Saving failed: the database is locked.", "it is locked")


class Desk:
    """The application in this process, and the requests of a page."""

    def __init__(self, app: Flask, upstream: ScriptedUpstream) -> None:
        self.app, self.upstream = app, upstream
        self.store: Store = services(app).store
        self.client: FlaskClient = app.test_client()
        self.path = f"/c/{new_id()}"

    def send_prompt(self, *models: str) -> int:
        """Send a prompt; return the status of the response."""
        form = {"prompt": "Hello", "model": list(models or [""])}
        return self.client.post(f"{self.path}/messages", data=form).status_code

    def conversation(self) -> Conversation:
        return self.store.conversations.get(self.path[3:], MINE.id)


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A desk with default settings, or with those of an indirect parameter."""
    upstream = ScriptedUpstream()
    settings = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HALT_DATA": str(tmp_path)}
    more = getattr(request, "param", {})
    app = create_app(load({**settings, "HALT_TITLES": "words", **more}), upstream)
    desk = Desk(app, upstream)
    desk.client.get("/")
    yield desk
    services(app).generations.close()
    services(app).store.close()
    upstream.dispose()


def refused_start_after(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception, started_count: int = 0
) -> None:
    """Let `started_count` streams start, end and be saved; the next start raises `fault`."""
    service: GenerationService = services(desk.app).generations
    start, run_ids = service.start, list[str]()

    def start_or_refuse(*args: Any, **more: Any) -> Run:
        if len(run_ids) == started_count:
            raise fault
        run = start(*args, **more)
        run_ids.append(run.id)
        reply = desk.upstream.reply(len(run_ids) - 1)
        reply.feed("Hi")
        reply.end()
        assert services(desk.app).store_writer.wait_written(run.key, WAIT_TIMEOUT)
        return run

    monkeypatch.setattr(service, "start", start_or_refuse)


@pytest.mark.parametrize("started_count", [0, 1])
def test_comparison_beyond_the_limit_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, started_count: int
) -> None:
    """A comparison beyond the limit leaves nothing, even if its first answer has ended; the next
    message is sent.
    """
    refused_start_after(desk, monkeypatch, AtCapacity("All places are taken."), started_count)
    assert desk.send_prompt("a", "b") == 503
    assert desk.conversation().exchanges == ()
    monkeypatch.undo()
    assert desk.send_prompt() == 200


@pytest.mark.parametrize("fault", [AtCapacity("All places are taken."), RuntimeError("no thread")])
def test_start_that_cannot_be_undone_is_interrupted_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """A start that cannot be undone is ended as interrupted when the store works again."""

    def raise_locked(*args: object) -> None:
        raise LOCKED

    refused_start_after(desk, monkeypatch, fault)
    monkeypatch.setattr(desk.store.turns, "cancel_start", raise_locked)
    assert desk.send_prompt() in {500, 503}
    monkeypatch.undo()
    wait_until(lambda: desk.conversation().exchanges[-1].ended is not None, SERVER_TIMEOUT)
    assert desk.conversation().exchanges[-1].state == "interrupted"
    assert desk.send_prompt() == 200


def test_stop_works_without_the_store(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the store a Stop works before and after the start, and the page shows no error."""

    requests: list[object] = []

    def raise_locked(*args: object) -> None:
        requests.append(args)
        raise LOCKED

    monkeypatch.setattr(desk.store.generations, "get_ended", raise_locked)
    monkeypatch.setattr(desk.store.generations, "exists", raise_locked)
    page_headers = {"HX-Request": "true"}
    first_stop = desk.client.post("/stop", data={"stream_id": new_id()}, headers=page_headers)
    assert (first_stop.status_code, first_stop.data) == (200, b"")
    second_stop = desk.client.post(
        "/stop", data={"stream_id": new_id(), "shown": "1"}, headers=page_headers
    )
    assert (second_stop.status_code, second_stop.data) == (200, b"")
    requests.clear()
    ids = [new_id() for _ in range(5)]
    assert (
        desk.client.post("/stop", data={"stream_id": ids}, headers=page_headers).status_code == 200
    )
    assert len(requests) <= 1
    monkeypatch.setattr(StoreWriter, "is_failing", True)
    assert (
        desk.client.post("/stop", data={"stream_id": ids}, headers=page_headers).status_code == 200
    )
    assert len(requests) <= 1


def test_stop_of_several_answers_does_not_wait_between_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that closes slowly does not delay the Stop of other answers."""
    assert desk.send_prompt("a", "b", "c") == 200
    service: GenerationService = services(desk.app).generations
    ids = [candidate.stream_id for candidate in desk.conversation().exchanges[-1].candidates]
    runs = service.capacity.live()
    assert {run.id for run in runs} == set(ids)
    wait_closed, running_counts = UpstreamConnection.wait_closed, list[int]()

    def wait_closed_and_count(connection: UpstreamConnection, timeout: float) -> str:
        running_counts.append(sum(run.log.ended is None for run in runs))
        return wait_closed(connection, timeout)

    monkeypatch.setattr(UpstreamConnection, "wait_closed", wait_closed_and_count)
    page_headers = {"HX-Request": "true"}
    assert (
        desk.client.post("/stop", data={"stream_id": ids}, headers=page_headers).status_code == 200
    )
    assert running_counts[0] == 0


# --- starts that are refused ----------------------------------------------------------------------


def count_writes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that write a start into the store, from now on."""
    calls: list[str] = []
    for name in ("add_prompt", "regenerate", "continue_answer"):
        original = getattr(desk.store.turns, name)

        def record_call(*args: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            calls.append(name)
            return original(*args, **more)

        monkeypatch.setattr(desk.store.turns, name, record_call)
    return calls


@pytest.mark.parametrize(
    ("desk", "status"),
    [({"HALT_RATE_SESSION": "1/hour"}, 429), ({"HALT_MAX_STREAMS": "1"}, 503)],
    indirect=["desk"],
)
def test_refused_start_is_not_written(
    desk: Desk, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start beyond a limit reaches neither store nor model, from any form that starts
    an answer.
    """
    assert desk.send_prompt() == 200
    if status == 429:
        desk.upstream.reply().feed("Hi")
        desk.upstream.reply().end()
        wait_until(lambda: desk.conversation().exchanges[-1].ended is not None, SERVER_TIMEOUT)
    (exchange,) = desk.conversation().exchanges
    calls = count_writes(desk, monkeypatch)
    prompt_id = {"prompt_id": str(exchange.prompt_id)}
    for route, form in (
        ("messages", {"prompt": "Hello again"}),
        ("regenerate", prompt_id),
        ("continue", prompt_id),
    ):
        assert desk.client.post(f"{desk.path}/{route}", data=form).status_code == status, route
    assert calls == []
    assert len(desk.upstream.requests) == 1


def test_other_workers_are_queried_once_per_pending_write(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ended in another worker is queried once; then the store is read."""
    service: GenerationService = services(desk.app).generations
    assert desk.send_prompt() == 200
    desk.upstream.reply().end()
    stream_id = desk.conversation().exchanges[-1].stream_id
    key = StreamKey(MINE.id, stream_id)
    assert services(desk.app).store_writer.wait_written(key, WAIT_TIMEOUT)

    remote = Generation(key, EventLog(1_000), started_at=now())
    remote.log.end(lambda: Done("stop", Meter().snapshot()))
    requests: list[StreamKey] = []

    def get_once(key: StreamKey) -> Generation:
        requests.append(key)
        if len(requests) > 1:
            raise UnknownStream("a second request")
        return remote

    add_prompt, busy_answers = desk.store.turns.add_prompt, iter(range(4))

    def add_prompt_when_ended(*args: Any, **more: Any) -> Conversation:
        if next(busy_answers, None) is not None:
            raise Busy(BUSY)
        monkeypatch.setattr(service, "get", original_get)
        return add_prompt(*args, **more)

    original_get = service.get
    last = desk.conversation()
    running = with_running_answer(last)
    monkeypatch.setattr(service, "get", get_once)
    monkeypatch.setattr(desk.store.turns, "add_prompt", add_prompt_when_ended)
    with monkeypatch.context() as patch:
        patch.setattr(desk.store.conversations, "get", lambda *_, **__: running)
        assert desk.send_prompt() == 200
    assert requests == [key]


def with_running_answer(conversation: Conversation) -> Conversation:
    """The conversation, with its last answer marked as running."""
    last = dataclasses.replace(conversation.exchanges[-1], ended=None)
    return dataclasses.replace(conversation, exchanges=(*conversation.exchanges[:-1], last))


@pytest.mark.parametrize("desk", [{"HALT_MAX_STREAMS": "1"}], indirect=True)
def test_failed_socket_set_up_releases_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that fails while it is set up gives its reader's place back."""

    def raise_disconnected(_: socket.socket) -> None:
        raise OSError("the client has left")

    server_side, client_side = socket.socketpair()
    with server_side, client_side:
        monkeypatch.setattr(sockets, "Wire", raise_disconnected)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        environ = {"gunicorn.socket": server_side}
        answer = desk.client.get("/ws", headers=headers, environ_overrides=environ)
        assert answer.status_code == 500
    service: GenerationService = services(desk.app).generations
    service.readers.take_place()
    service.readers.give_back_place()
