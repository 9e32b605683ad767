"""The page's own routes, asked as its forms ask them: what they refuse, and what they answer."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.conftest import SEEN_WITHIN, HaltServer, asked, new_id
from tests.fake_openai import FakeOpenAI
from tests.sse import Answer, Client

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PAGE = FORM | {"HX-Request": "true"}


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A browser with a session."""
    made = halt.client()
    made.get("/")
    return made


def send(client: Client, path: str, *fields: tuple[str, Any], page: bool = True) -> Answer:
    """Send a form."""
    return client.request("POST", path, urlencode(fields).encode(), PAGE if page else FORM)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ([("model", "x" * 201)], "model"),
        ([("model", "a\nb")], "model"),
        ([("model", "count")] * 5, "model"),
        ([("id", "short")], "id"),
        ([("id", "longer-than-8"), ("id", "no way!!")], "id"),
    ],
)
def test_what_a_form_must_not_hold_is_refused_by_name(
    client: Client, fields: list[tuple[str, str]], field: str
) -> None:
    """A program is told which field is at fault; no conversation is begun."""
    path = f"/c/{new_id()}"
    answer = send(client, f"{path}/messages", ("prompt", "Hello"), *fields, page=False)
    assert answer.status == 400
    assert answer.json["error"]["field"] == field
    assert client.get(path).status == 404


def test_one_id_for_two_answers_is_refused(client: Client) -> None:
    """Two streams with one name could not be told apart."""
    same = new_id()
    fields = [("prompt", "Hi"), ("model", "count"), ("model", "echo"), ("id", same), ("id", same)]
    answer = send(client, f"/c/{new_id()}/messages", *fields, page=False)
    assert (answer.status, answer.json["error"]["field"]) == (409, "id")


def test_only_what_was_compared_can_be_picked(client: Client) -> None:
    """Neither in a conversation that is not there nor an answer that is not there."""
    path = f"/c/{new_id()}"
    assert send(client, f"{path}/pick", ("stream_id", "nothing-here"), page=False).status == 404
    assert send(client, f"{path}/messages", ("prompt", "/fake count?n=1 x")).status == 200
    assert send(client, f"{path}/pick", ("stream_id", "nothing-here"), page=False).status == 404


def test_the_models_are_options_and_the_chosen_one_is_marked(client: Client) -> None:
    """One that nobody offers is not made up, and hostile names stay names."""
    page = client.get("/models?model=count").body.decode()
    assert '<option value="count" selected>count</option>' in page
    assert page.count("selected") == 1
    assert "retired" not in client.get("/models?model=retired").body.decode()
    assert client.get("/models?model=" + "x" * 201).status == 400


def test_one_press_of_the_page_stops_several_answers(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """Each provider is told; the answer holds each answer as it was stopped."""
    said, ids = f"Hi {new_id()}", [new_id(), new_id()]
    models = ["silent_first_token", "stall"]
    fields = [("prompt", said), *(("id", i) for i in ids), *(("model", m) for m in models)]
    assert send(client, f"/c/{new_id()}/messages", *fields).status == 200
    records = [asked(shared_fake, said, nth) for nth in range(2)]
    pressed = send(client, "/stop", *(("stream_id", i) for i in ids), ("seen", "0"))
    assert pressed.status == 200
    for stream_id in ids:
        assert re.search(f'hx-target="#a-{stream_id}"', pressed.body.decode())
    for record in records:
        assert record.closed.wait(SEEN_WITHIN)
    assert send(client, "/stop").status == 400
