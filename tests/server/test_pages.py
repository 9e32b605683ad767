"""Requests of the page's forms: refusals and responses."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, new_id, request_record
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import FORM_HEADERS, PAGE_HEADERS, STREAM_HEADERS


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A browser with a session."""
    client = halt.client()
    client.get("/")
    return client


def send(client: Client, path: str, *fields: tuple[str, Any], page: bool = True) -> HttpResponse:
    """Send a form."""
    return client.request(
        "POST", path, urlencode(fields).encode(), PAGE_HEADERS if page else FORM_HEADERS
    )


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
def test_invalid_form_is_refused_by_field(
    client: Client, fields: list[tuple[str, str]], field: str
) -> None:
    """An invalid form starts no conversation, and its error names the field."""
    path = f"/c/{new_id()}"
    answer = send(client, f"{path}/messages", ("prompt", "Hello"), *fields, page=False)
    assert answer.status == 400
    assert answer.json["error"]["field"] == field
    assert client.get(path).status == 404


def test_same_id_for_two_answers_is_refused(client: Client) -> None:
    """Two answers of one comparison cannot have the same stream ID."""
    stream_id = new_id()
    fields = [
        ("prompt", "Hi"),
        ("model", "count"),
        ("model", "echo"),
        ("id", stream_id),
        ("id", stream_id),
    ]
    answer = send(client, f"/c/{new_id()}/messages", *fields, page=False)
    assert (answer.status, answer.json["error"]["field"]) == (409, "id")


def test_unknown_answer_cannot_be_selected(client: Client) -> None:
    """Selection of an unknown answer, or in an unknown conversation, is refused."""
    path = f"/c/{new_id()}"
    assert send(client, f"{path}/pick", ("stream_id", "nothing-here"), page=False).status == 404
    assert send(client, f"{path}/messages", ("prompt", "/fake count?n=1 x")).status == 200
    assert send(client, f"{path}/pick", ("stream_id", "nothing-here"), page=False).status == 404


def test_model_options_are_escaped_and_one_is_selected(client: Client) -> None:
    """Model names are escaped and one is selected; an unknown model is not offered."""
    page = client.get("/models?model=count").body.decode()
    assert '<option value="count" selected>count</option>' in page
    assert page.count("selected") == 1
    assert "retired" not in client.get("/models?model=retired").body.decode()
    assert client.get("/models?model=" + "x" * 201).status == 400


def test_stop_on_the_page_stops_several_answers(client: Client, shared_fake: FakeOpenAI) -> None:
    """One Stop closes the upstream of each answer; the response has each in its stopped state."""
    prompt, ids = f"Hi {new_id()}", [new_id(), new_id()]
    models = ["silent_first_token", "stall"]
    fields = [("prompt", prompt), *(("id", i) for i in ids), *(("model", m) for m in models)]
    assert send(client, f"/c/{new_id()}/messages", *fields).status == 200
    records = [request_record(shared_fake, prompt, nth) for nth in range(2)]
    stopped = send(client, "/stop", *(("stream_id", i) for i in ids), ("seen", "0"))
    assert stopped.status == 200
    for stream_id in ids:
        assert re.search(f'hx-target="#a-{stream_id}"', stopped.body.decode())
    for record in records:
        assert record.closed.wait(RECORD_TIMEOUT)
    assert send(client, "/stop").status == 400


def stream(client: Client, path: str, *fields: tuple[str, Any], **headers: str) -> HttpResponse:
    """Send a form as htmx does, read the response to its end and return it."""
    return client.request("POST", path, urlencode(fields).encode(), STREAM_HEADERS | headers)


def is_stream(answer: HttpResponse) -> bool:
    """Whether the response is an event stream."""
    return answer.headers["content-type"].startswith("text/event-stream")


def test_response_to_a_prompt_streams_the_answer(client: Client, shared_fake: FakeOpenAI) -> None:
    """The response to a prompt has the exchange first and the whole answer last, and opens no other
    stream.
    """
    page_path, stream_id = f"/c/{new_id()}", new_id()
    prompt = f"/fake silent_first_token?n=3 {new_id()}"
    form = urlencode([("prompt", prompt), ("id", stream_id)]).encode()
    events = client.stream("POST", f"{page_path}/messages", form, STREAM_HEADERS)
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.headers["hx-push-url"] == page_path
    assert events.id == stream_id
    first = events.next()
    assert first
    assert '<section class="exchange"' in first.data
    assert 'data-state="running"' in first.data
    assert f'id="feed-{stream_id}"' in first.data
    request_record(shared_fake, prompt).release()
    *texts, last = events
    assert all(text.data.startswith("<hx-partial") for text in texts)
    assert f'hx-target="#a-{stream_id}"' in last.data
    assert 'data-state="done"' in last.data
    assert "hx-sse:connect" not in "".join(event.data for event in events.seen)
    prompt_id = re.search(r'data-prompt="(\d+)"', first.data)
    assert prompt_id
    form = urlencode([("prompt_id", prompt_id[1])]).encode()
    regeneration = client.stream("POST", f"{page_path}/regenerate", form, STREAM_HEADERS)
    first = regeneration.next()
    assert first
    assert "Version" in first.data
    request_record(shared_fake, prompt, 1).release()
    *_, last = regeneration
    assert 'data-state="done"' in last.data


def test_prompt_stopped_before_its_start_is_not_streamed(client: Client) -> None:
    """The response to a prompt that was stopped earlier is the ended exchange."""
    stream_id = new_id()
    assert send(client, "/stop", ("stream_id", stream_id), ("seen", "0")).status == 200
    fields = [("prompt", f"/fake silent_first_token {new_id()}"), ("id", stream_id)]
    answer = stream(client, f"/c/{new_id()}/messages", *fields)
    assert (answer.status, is_stream(answer)) == (200, False)
    assert b'data-state="withdrawn"' in answer.body


@pytest.mark.parametrize("fields", [[], [("prompt", "Hi"), ("model", "x" * 201)]])
def test_refused_prompt_is_not_streamed(client: Client, fields: list[tuple[str, str]]) -> None:
    """A refused prompt gets a fragment with a status, as every form does."""
    answer = stream(client, f"/c/{new_id()}/messages", *fields)
    assert (answer.status, is_stream(answer)) == (400, False)
    assert b'role="alert"' in answer.body


def test_compared_answers_have_their_own_streams(client: Client, shared_fake: FakeOpenAI) -> None:
    """A comparison's response has a place for each answer, with the address of its stream."""
    prompt = f"/fake silent_first_token {new_id()}"
    fields = [("prompt", prompt), ("model", "count"), ("model", "echo")]
    answer = stream(client, f"/c/{new_id()}/messages", *fields)
    assert not is_stream(answer)
    assert answer.body.count(b"hx-sse:connect") == 2
    for nth in range(2):
        request_record(shared_fake, prompt, nth).release()


def test_prompt_beyond_the_page_streams_is_not_streamed(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A session's fifth prompt over HTTP/1.1 is not streamed, so that its browser can send a Stop;
    HTTP/2 has no limit.
    """
    prompt = f"/fake silent_first_token {new_id()}"

    def form() -> bytes:
        return urlencode([("prompt", prompt), ("id", new_id())]).encode()

    path = "/c/{}/messages"
    streams = [
        client.stream("POST", path.format(new_id()), form(), STREAM_HEADERS) for _ in range(4)
    ]
    for events in streams:
        assert events.headers["content-type"].startswith("text/event-stream")
    fragment = client.request("POST", path.format(new_id()), form(), STREAM_HEADERS)
    assert not is_stream(fragment)
    assert b"hx-sse:connect" in fragment.body
    http2_headers = STREAM_HEADERS | {"Halt-Protocol": "h2"}
    http2_stream = client.stream("POST", path.format(new_id()), form(), http2_headers)
    assert http2_stream.headers["content-type"].startswith("text/event-stream")
    for nth in range(6):
        request_record(shared_fake, prompt, nth).release()
    for events in (*streams, http2_stream):
        events.close()
