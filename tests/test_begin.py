"""Beginnings and Stops that meet a fault: nothing stays behind, and nobody is held up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from halt.config import load
from halt.conversations import Conversation
from halt.errors import AtCapacity, StoreUnavailable
from halt.generation import Generations, Receipt
from halt.recorder import Recorder
from halt.run import Run
from halt.store import SqlStore
from tests.conftest import eventually, new_id
from tests.scripted import SOON, Scripted

LOCKED = StoreUnavailable("This could not be saved: the database is locked.", "it is locked")


class Desk:
    """A page's requests, answered in this process."""

    def __init__(self, app: Flask, upstream: Scripted) -> None:
        self.app, self.upstream = app, upstream
        self.store: SqlStore = app.extensions["halt.store"]
        self.client: FlaskClient = app.test_client()
        self.path = f"/c/{new_id()}"

    def ask(self, *models: str) -> int:
        """Ask; the status of the answer."""
        form = {"prompt": "Hello", "model": list(models or [""])}
        return self.client.post(f"{self.path}/messages", data=form).status_code

    def conversation(self) -> Conversation:
        with self.client.session_transaction() as session:
            owner = str(session["owner"])
        return self.store.get(self.path[3:], owner)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    upstream = Scripted()
    settings = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HALT_DATA": str(tmp_path)}
    app = create_app(load({**settings, "HALT_TITLES": "words"}), upstream)
    made = Desk(app, upstream)
    made.client.get("/")
    yield made
    app.extensions["halt"].close()
    app.extensions["halt.store"].close()
    upstream.dispose()


def refuse(desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception, after: int = 0) -> None:
    """So many streams begin, and end with an answer that is saved; the next one cannot begin."""
    service: Generations = desk.app.extensions["halt"]
    start, begun = service.start, list[str]()

    def refusing(*args: Any, **more: Any) -> Run:
        if len(begun) == after:
            raise fault
        run = start(*args, **more)
        begun.append(run.id)
        reply = desk.upstream.reply(len(begun) - 1)
        reply.feed("Hi")
        reply.end()
        assert desk.app.extensions["halt.recorder"].written(run.id, SOON)
        return run

    monkeypatch.setattr(service, "start", refusing)


@pytest.mark.parametrize("begun", [0, 1])
def test_a_comparison_that_finds_no_place_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """Also where its first answer has ended already; the next message can be sent."""
    refuse(desk, monkeypatch, AtCapacity("All places are taken."), begun)
    assert desk.ask("a", "b") == 503
    assert desk.conversation().exchanges == ()
    monkeypatch.undo()
    assert desk.ask() == 200


@pytest.mark.parametrize("fault", [AtCapacity("All places are taken."), RuntimeError("no thread")])
def test_what_cannot_be_taken_back_blocks_no_conversation(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """It is ended as interrupted when the store is well again."""

    def locked(*args: object) -> None:
        raise LOCKED

    refuse(desk, monkeypatch, fault)
    monkeypatch.setattr(desk.store, "take_back", locked)
    assert desk.ask() in {500, 503}
    monkeypatch.undo()
    eventually(lambda: desk.conversation().exchanges[-1].ended is not None)
    assert desk.conversation().exchanges[-1].state == "interrupted"
    assert desk.ask() == 200


def test_a_stop_needs_no_store(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before its stream nor after it: the page is told nothing, which is no error."""

    asked: list[object] = []

    def locked(*args: object) -> None:
        asked.append(args)
        raise LOCKED

    monkeypatch.setattr(desk.store, "recorded", locked)
    monkeypatch.setattr(desk.store, "exists", locked)
    page = {"HX-Request": "true"}
    early = desk.client.post("/stop", data={"stream_id": new_id()}, headers=page)
    assert (early.status_code, early.data) == (200, b"")
    late = desk.client.post("/stop", data={"stream_id": new_id(), "shown": "1"}, headers=page)
    assert (late.status_code, late.data) == (200, b"")
    asked.clear()
    ids = [new_id() for _ in range(5)]
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert len(asked) <= 1
    monkeypatch.setattr(Recorder, "failing", True)
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert len(asked) <= 1


def test_one_press_stops_all_before_it_waits_for_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that closes slowly holds up no other answer's Stop."""
    assert desk.ask("a", "b", "c") == 200
    service: Generations = desk.app.extensions["halt"]
    ids = [each.stream_id for each in desk.conversation().exchanges[-1].candidates]
    receipt, left = service._receipt, list[int]()

    def waiting(*args: Any) -> Receipt:
        left.append(sum(service._runs[each].log.ended is None for each in ids))
        return receipt(*args)

    monkeypatch.setattr(service, "_receipt", waiting)
    page = {"HX-Request": "true"}
    assert desk.client.post("/stop", data={"stream_id": ids}, headers=page).status_code == 200
    assert left[0] == 0
