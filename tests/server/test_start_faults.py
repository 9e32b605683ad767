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
from halt.errors import AtCapacity, StoreUnavailable, UnknownStream
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
    """A page's requests, answered in this process."""

    def __init__(self, app: Flask, upstream: ScriptedUpstream) -> None:
        self.app, self.upstream = app, upstream
        self.store: Store = services(app).store
        self.client: FlaskClient = app.test_client()
        self.path = f"/c/{new_id()}"

    def ask(self, *models: str) -> int:
        """Ask; the status of the answer."""
        form = {"prompt": "Hello", "model": list(models or [""])}
        return self.client.post(f"{self.path}/messages", data=form).status_code

    def conversation(self) -> Conversation:
        with self.client.session_transaction() as session:
            owner = str(session["owner"])
        return self.store.conversations.get(self.path[3:], owner)


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A desk with default settings, or with those of an indirect parameter."""
    upstream = ScriptedUpstream()
    settings = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HALT_DATA": str(tmp_path)}
    more = getattr(request, "param", {})
    app = create_app(load({**settings, "HALT_TITLES": "words", **more}), upstream)
    made = Desk(app, upstream)
    made.client.get("/")
    yield made
    services(app).generations.close()
    services(app).store.close()
    upstream.dispose()


def refused_start_after(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception, after: int = 0
) -> None:
    """So many streams begin, and end with an answer that is saved; the next one cannot begin."""
    service: GenerationService = services(desk.app).generations
    start, begun = service.start, list[str]()

    def refusing(*args: Any, **more: Any) -> Run:
        if len(begun) == after:
            raise fault
        run = start(*args, **more)
        begun.append(run.id)
        reply = desk.upstream.reply(len(begun) - 1)
        reply.feed("Hi")
        reply.end()
        assert services(desk.app).store_writer.wait_written(run.id, WAIT_TIMEOUT)
        return run

    monkeypatch.setattr(service, "start", refusing)


@pytest.mark.parametrize("begun", [0, 1])
def test_comparison_beyond_the_limit_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """A comparison beyond the limit leaves nothing, even if its first answer has ended; the next
    message is sent.
    """
    refused_start_after(desk, monkeypatch, AtCapacity("All places are taken."), begun)
    assert desk.ask("a", "b") == 503
    assert desk.conversation().exchanges == ()
    monkeypatch.undo()
    assert desk.ask() == 200


@pytest.mark.parametrize("fault", [AtCapacity("All places are taken."), RuntimeError("no thread")])
def test_start_that_cannot_be_undone_is_interrupted_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """A start that cannot be undone is ended as interrupted when the store works again."""

    def locked(*args: object) -> None:
        raise LOCKED

    refused_start_after(desk, monkeypatch, fault)
    monkeypatch.setattr(desk.store.turns, "cancel_start", locked)
    assert desk.ask() in {500, 503}
    monkeypatch.undo()
    wait_until(lambda: desk.conversation().exchanges[-1].ended is not None, SERVER_TIMEOUT)
    assert desk.conversation().exchanges[-1].state == "interrupted"
    assert desk.ask() == 200


def test_stop_works_without_the_store(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the store a Stop works before and after the start, and the page shows no error."""

    requests: list[object] = []

    def locked(*args: object) -> None:
        requests.append(args)
        raise LOCKED

    monkeypatch.setattr(desk.store.generations, "get_ended", locked)
    monkeypatch.setattr(desk.store.generations, "exists", locked)
    page = {"HX-Request": "true"}
    early = desk.client.post("/stop", data={"stream_id": new_id()}, headers=page)
    assert (early.status_code, early.data) == (200, b"")
    late = desk.client.post("/stop", data={"stream_id": new_id(), "shown": "1"}, headers=page)
    assert (late.status_code, late.data) == (200, b"")
    requests.clear()
    ids = [new_id() for _ in range(5)]
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert len(requests) <= 1
    monkeypatch.setattr(StoreWriter, "is_failing", True)
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert len(requests) <= 1


def test_stop_of_several_answers_does_not_wait_between_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that closes slowly does not delay the Stop of other answers."""
    assert desk.ask("a", "b", "c") == 200
    service: GenerationService = services(desk.app).generations
    ids = [candidate.stream_id for candidate in desk.conversation().exchanges[-1].candidates]
    runs = service.capacity.live()
    assert {run.id for run in runs} == set(ids)
    wait_closed, left = UpstreamConnection.wait_closed, list[int]()

    def waiting(connection: UpstreamConnection, timeout: float) -> str:
        left.append(sum(run.log.ended is None for run in runs))
        return wait_closed(connection, timeout)

    monkeypatch.setattr(UpstreamConnection, "wait_closed", waiting)
    page = {"HX-Request": "true"}
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert left[0] == 0


# --- starts that are refused ----------------------------------------------------------------------


def count_writes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that write a start into the store, from now on."""
    written: list[str] = []
    for name in ("add_prompt", "regenerate", "continue_answer"):
        real = getattr(desk.store.turns, name)

        def spy(*args: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            written.append(name)
            return real(*args, **more)

        monkeypatch.setattr(desk.store.turns, name, spy)
    return written


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
    assert desk.ask() == 200
    if status == 429:
        desk.upstream.reply().feed("Hi")
        desk.upstream.reply().end()
        wait_until(lambda: desk.conversation().exchanges[-1].ended is not None, SERVER_TIMEOUT)
    (exchange,) = desk.conversation().exchanges
    written = count_writes(desk, monkeypatch)
    prompt_id = {"prompt_id": str(exchange.prompt_id)}
    for route, form in (
        ("messages", {"prompt": "Hello again"}),
        ("regenerate", prompt_id),
        ("continue", prompt_id),
    ):
        assert desk.client.post(f"{desk.path}/{route}", data=form).status_code == status, route
    assert written == []
    assert len(desk.upstream.requests) == 1


def test_other_workers_are_queried_once_per_pending_write(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that ended in another worker is queried once; then the store is read."""
    service: GenerationService = services(desk.app).generations
    assert desk.ask() == 200
    desk.upstream.reply().end()
    stream_id = desk.conversation().exchanges[-1].stream_id
    assert services(desk.app).store_writer.wait_written(stream_id, WAIT_TIMEOUT)

    elsewhere = Generation(stream_id, None, EventLog(1_000), started_at=now())
    elsewhere.log.end(lambda: Done("stop", Meter().snapshot()))
    requests: list[str] = []

    def get(stream_id: str, requester: str | None) -> Generation:
        requests.append(stream_id)
        if len(requests) > 1:
            raise UnknownStream("asked again")
        return elsewhere

    begin, busy = desk.store.turns.add_prompt, iter(range(4))

    def begin_late(*args: Any, **more: Any) -> Conversation:
        if next(busy, None) is not None:
            raise Busy(BUSY)
        monkeypatch.setattr(service, "get", real_get)
        return begin(*args, **more)

    real_get = service.get
    last = desk.conversation()
    running = still_running(last)
    monkeypatch.setattr(service, "get", get)
    monkeypatch.setattr(desk.store.turns, "add_prompt", begin_late)
    with monkeypatch.context() as patch:
        patch.setattr(desk.store.conversations, "get", lambda *_, **__: running)
        assert desk.ask() == 200
    assert requests == [stream_id]


def still_running(found: Conversation) -> Conversation:
    """The conversation with its last answer as one that is still being written."""
    last = dataclasses.replace(found.exchanges[-1], ended=None)
    return dataclasses.replace(found, exchanges=(*found.exchanges[:-1], last))


@pytest.mark.parametrize("desk", [{"HALT_MAX_STREAMS": "1"}], indirect=True)
def test_failed_socket_set_up_releases_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that fails while it is set up gives its reader's place back."""

    def gone(_: socket.socket) -> None:
        raise OSError("the client has left")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(sockets, "Wire", gone)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        environ = {"gunicorn.socket": ours}
        got = desk.client.get("/ws", headers=headers, environ_overrides=environ)
        assert got.status_code == 500
    service: GenerationService = services(desk.app).generations
    service.readers.take_place()
    service.readers.give_back_place()
