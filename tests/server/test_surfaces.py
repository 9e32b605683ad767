"""POST /chat, GET /stream and the list of streams: plain text, JSON and EventSource of one core."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from urllib.parse import urlencode

import anthropic._streaming as anthropic_streaming
import openai._streaming as openai_streaming
import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, StartHalt, new_id, request_record
from tests.support.http_client import READ_TIMEOUT, Client, EventStream
from tests.support.waiting import SERVER_TIMEOUT, wait_until

TEXT = {"Accept": "text/plain"}
JSON = {"Accept": "application/json"}


def numbers(n: int) -> str:
    """The text of the model `count`."""
    return "".join(f"{i} " for i in range(n))


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A program that talks to the shared server."""
    return halt.client()


@pytest.fixture(scope="module")
def token_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with two places, a token, no retries and a short first-byte limit."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_RETRIES": "0",
            "HALT_MAX_STREAMS": "2",
            "HALT_MAX_BODY_BYTES": "8192",
            "HALT_FIRST_BYTE_TIMEOUT": "4",
            "HALT_TOKEN": "open-sesame",
            "HALT_LOG_SECONDS": "0",
        }
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def short_heartbeat_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with a short heartbeat, no retries and a short first-byte limit."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_RETRIES": "0",
            "HALT_HEARTBEAT": "0.2",
            "HALT_FIRST_BYTE_TIMEOUT": "4",
        }
    )
    yield server
    server.close()


@pytest.fixture
def program(token_server: HaltServer) -> Client:
    """A client with the token of `token_server`."""
    return token_server.client(Authorization="Bearer open-sesame")


class TextResponse:
    """A response of POST /chat, read piece by piece."""

    def __init__(self, client: Client, body: dict[str, Any]) -> None:
        self.connection = client.connect()
        client.send(self.connection, "POST", "/chat", body, TEXT)
        self.response = self.connection.getresponse()
        self.received = b""

    def until(self, text: str) -> None:
        """Read until the received text contains `text`."""
        while text.encode() not in self.received:
            piece = self.response.read1(65536)
            assert piece, f"ended with {self.received!r}"
            self.received += piece

    def to_end(self) -> str:
        """The whole text. Raises http.client.IncompleteRead if the body has no proper end."""
        try:
            while piece := self.response.read1(65536):
                self.received += piece
        finally:
            self.connection.close()
        return self.received.decode()

    def close(self) -> None:
        self.response.close()
        self.connection.close()


# --- POST /chat as text ---------------------------------------------------------------------------


def test_text_is_streamed_as_utf8(client: Client, shared_fake: FakeOpenAI) -> None:
    """The text comes piece by piece, with the stream's ID in a header, to a proper end."""
    prompt = new_id()
    text = TextResponse(client, {"prompt": prompt, "model": "stall?n=3&rest=2"})
    assert text.response.status == 200
    assert text.response.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.response.headers["cache-control"] == "no-store, no-transform"
    text.until("2 ")
    request_record(shared_fake, prompt).release()
    assert text.to_end() == numbers(5)
    stream_id = text.response.headers["x-stream-id"]
    assert client.follow(stream_id).to_end().text == numbers(5)


def test_reasoning_without_a_start_tag_is_separated(client: Client) -> None:
    """Reasoning without a start tag has its own field in JSON; as text it is a paragraph."""
    body = {"prompt": new_id(), "model": "shape?name=think_end"}
    assert TextResponse(client, body).to_end() == "hm\n\nHello"
    answer = client.post("/chat", body, **JSON).json
    assert (answer["content"], answer["reasoning"]) == ("Hello", "hm")


def test_prompt_system_and_options_reach_the_model(client: Client, shared_fake: FakeOpenAI) -> None:
    """A prompt becomes the user's message, `system` precedes it; messages are accepted as well."""
    prompt = new_id()
    body = {"prompt": prompt, "system": "Be brief.", "model": "echo", "temperature": 0.5}
    assert client.post("/chat", body).body.decode() == prompt
    sent = request_record(shared_fake, prompt).body
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt},
    ]
    assert sent["temperature"] == 0.5
    messages = [{"role": "user", "content": "from messages"}]
    assert client.post("/chat", {"messages": messages, "model": "echo"}).body == b"from messages"


def test_text_pieces_are_whole_characters(client: Client) -> None:
    """Each piece of the text is valid UTF-8; nothing is escaped."""
    answer = client.post("/chat", {"prompt": 'naïve "中文" 👩‍👧 <b>\n', "model": "echo"})
    assert answer.body.decode() == 'naïve "中文" 👩‍👧 <b>\n'


@pytest.mark.parametrize("accept", [TEXT, JSON], ids=["text", "json"])
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("401", 502, "unauthorized"),
        ("429?retry_after=17", 429, "rate_limited"),
        ("500", 502, "upstream_server_error"),
        ("context", 400, "context_too_long"),
        ("silent_headers", 504, "first_byte_timeout"),
        ("error_in_stream?n=0", 502, "upstream_error"),
    ],
)
def test_error_before_the_first_text_sets_the_status(
    program: Client, accept: dict[str, str], model: str, status: int, code: str
) -> None:
    """An error before the first text is JSON with its status, whatever form was requested."""
    refused = program.request("POST", "/chat", {"prompt": "Hello", "model": model}, accept)
    assert (refused.status, refused.error["code"]) == (status, code)
    assert refused.headers["x-stream-id"]
    assert refused.headers.get("retry-after") == ("17" if status == 429 else None)


@pytest.mark.parametrize("model", ["drop?n=5&gap_ms=5", "garbage?n=5", "error_in_stream?n=5"])
def test_error_in_mid_answer_breaks_the_text(program: Client, model: str) -> None:
    """An error in mid-answer adds a line with the reason and breaks the body, so that no client
    takes it for whole.
    """
    text = TextResponse(program, {"prompt": "Hello", "model": model})
    assert text.response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    answer_text, _, error = text.received.decode().partition("\n")
    assert answer_text == numbers(5)
    assert error.startswith("[error: upstream_")
    assert error.endswith("\n")
    assert error.count("\n") == 1


def test_broken_answer_is_logged_without_a_traceback(
    token_server: HaltServer, program: Client
) -> None:
    """A broken answer is logged in one line as the model's failure."""
    text = TextResponse(program, {"prompt": "Hello", "model": "drop?n=5&gap_ms=5"})
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    token_server.wait_printed(
        rf"stream {text.response.headers['x-stream-id']} failed: upstream_dropped: "
    )
    assert "Traceback" not in token_server.printed


def test_silent_model_delays_the_head_by_one_heartbeat(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """The head of a silent model's response is sent after HALT_HEARTBEAT, and the text later."""
    server = start_halt(shared_fake, HALT_HEARTBEAT="0.2")
    prompt = new_id()
    body = json.dumps({"prompt": prompt, "model": "silent_first_token?n=3"}).encode()
    request = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    with socket.create_connection((server.host, server.port), timeout=READ_TIMEOUT) as sock:
        sock.sendall(request % (len(body), body))
        head = sock.recv(65536)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.endswith(b"\r\n\r\n"), "text before the model's first token"
        request_record(shared_fake, prompt).release()
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = sock.recv(65536)
            assert part, answer
            answer += part
    assert b"2 " in answer


def test_error_after_the_head_breaks_the_text(short_heartbeat_server: HaltServer) -> None:
    """An error after the head is sent like one in mid-answer."""
    text = TextResponse(
        short_heartbeat_server.client(), {"prompt": "Hello", "model": "silent_first_token"}
    )
    assert text.response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    assert text.received.startswith(b"\n[error: first_byte_timeout] ")


def test_stopped_text_ends_normally(client: Client) -> None:
    """A stopped text ends without an error after the text before the Stop."""
    text = TextResponse(client, {"prompt": "Hello", "model": "stall?n=3"})
    text.until("2 ")
    assert client.stop(text.response.headers["x-stream-id"]).json["upstream"] == "closed"
    assert text.to_end() == numbers(3)


def test_text_stopped_before_the_first_token_is_empty(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A Stop by the client's own ID works before the first token."""
    stream_id = new_id()
    assert client.stop(stream_id).status == 202
    answer = client.post("/chat", {"prompt": "Hello", "model": "count", "id": stream_id})
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["x-stream-id"] == stream_id


# --- a run whose reader leaves --------------------------------------------------------------------

#: Surface -> method, path and headers of its request, and its default of `on_disconnect`: with a
#: stream ID chosen by the client, and without.
STARTS: dict[str, tuple[str, str, dict[str, str], str, str]] = {
    "text": ("POST", "/chat", TEXT, "stop", "stop"),
    "json": ("POST", "/chat", JSON, "stop", "stop"),
    "stream": ("POST", "/chat/stream", {}, "continue", "stop"),
    "eventsource": ("GET", "/stream", {}, "continue", "stop"),
    "openai": ("POST", "/v1/chat/completions", {}, "stop", "stop"),
}


def start_request(client: Client, surface: str, prompt: str, model: str, **fields: Any) -> Any:
    """Start a run on this surface, its `id` where the surface takes it; return the connection."""
    method, path, headers, *_ = STARTS[surface]
    body: dict[str, Any] = {"model": model, **fields}
    if surface == "openai" and "id" in body:
        headers = {"X-Stream-Id": body.pop("id")}
    if surface == "eventsource":
        path += "?" + urlencode({**body, "prompt": prompt})
    elif surface in {"text", "json"}:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    if surface == "openai":
        body["stream"] = True
    connection = client.connect()
    client.send(connection, method, path, None if method == "GET" else body, headers)
    return connection


def test_on_disconnect_decides_for_each_surface(client: Client, shared_fake: FakeOpenAI) -> None:
    """`on_disconnect` decides; without it a chosen ID, and then the surface, decides.

    The model's server is the judge: it sees the connection close in the middle, or all of it taken.
    """
    models = {"stop": "count?n=100000&gap_ms=10", "continue": "count?n=200&gap_ms=10"}
    started = []
    for surface, choice, has_id in product(STARTS, ("stop", "continue", None), (True, False)):
        prompt = new_id()
        fields = {"id": new_id()} if has_id else {}
        if choice is not None:
            fields["on_disconnect"] = choice
        *_, with_id, without_id = STARTS[surface]
        expected = choice or (with_id if has_id else without_id)
        connection = start_request(client, surface, prompt, models[expected], **fields)
        started.append(((surface, choice, has_id), expected, prompt, connection))
    for _, _, prompt, connection in started:
        request_record(shared_fake, prompt).wait_tokens(1, RECORD_TIMEOUT)
        connection.close()
    for case, expected, prompt, _ in started:
        record = request_record(shared_fake, prompt)
        event = record.closed if expected == "stop" else record.finished
        assert event.wait(RECORD_TIMEOUT), (case, expected, record)
        assert "on_disconnect" not in record.body


def test_client_gone_during_silence_stops_the_model(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A client that leaves before the first text stops the silent model."""
    for surface in STARTS:
        prompt = new_id()
        fields = {"on_disconnect": "stop", "id": new_id()}
        connection = start_request(client, surface, prompt, "silent_first_token", **fields)
        record = request_record(shared_fake, prompt)
        connection.close()
        assert record.closed.wait(RECORD_TIMEOUT), surface
        with client.follow(fields["id"]) as events:
            terminal = events.to_end().terminal
        assert (terminal["type"], terminal["reason"]) == ("cancelled", "no_viewer")


def test_on_disconnect_stop_waits_for_the_last_reader(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """Another reader on any surface keeps the run; a reader that returns later finds it ended."""
    prompt, stream_id = new_id(), new_id()
    text = TextResponse(client, {"prompt": prompt, "model": "stall?n=3", "id": stream_id})
    text.until("2 ")
    with client.follow(stream_id).until_text("2 ") as events:
        text.close()
        record = request_record(shared_fake, prompt)
        record.release()
        assert events.to_end().terminal["type"] == "done"


def test_invalid_on_disconnect_is_refused(client: Client) -> None:
    """An invalid `on_disconnect` gets 400, and the error names the field."""
    for surface in STARTS:
        connection = start_request(client, surface, "Hello", "count?n=1", on_disconnect="maybe")
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        connection.close()
        assert response.status == 400
        assert error.get("field", error.get("param")) == "on_disconnect"


# --- POST /chat as JSON ---------------------------------------------------------------------------


def test_json_answer_has_text_reason_usage_and_metrics(client: Client) -> None:
    """A client that prefers JSON gets text, finish reason, usage and metrics."""
    response = client.request("POST", "/chat", {"prompt": "Hello", "model": "count?n=5"}, JSON)
    answer = response.json
    assert answer["id"] == response.headers["x-stream-id"]
    assert (answer["content"], answer["finish_reason"]) == (numbers(5), "stop")
    assert (answer["state"], answer["model"]) == ("done", "count?n=5")
    assert answer["usage"]["completion_tokens"] == answer["metrics"]["tokens"] == 5
    assert not {"reasoning", "tool_calls"} & answer.keys()


def test_json_answer_has_reasoning_and_calls(client: Client) -> None:
    """A JSON answer has reasoning and tool calls as fields beside the text."""
    body = {"prompt": "Hello", "model": "reasoning?thoughts=2&n=2"}
    answer = client.request("POST", "/chat", body, JSON).json
    assert (answer["content"], answer["reasoning"]) == (numbers(2), "thought0 thought1 ")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    tool_body = {"prompt": "Hello", "model": "asks_tools?calls=1", "tools": [tool]}
    answer = client.request("POST", "/chat", tool_body, JSON).json
    assert answer["finish_reason"] == "tool_calls"
    assert answer["tool_calls"] == [
        {"id": "call_0", "name": "weather", "arguments": '{"city": "town 0"}'}
    ]


def test_stopped_json_answer_has_state_cancelled(client: Client, shared_fake: FakeOpenAI) -> None:
    """A stopped JSON answer has the text up to the Stop, the state "cancelled" and no finish
    reason.
    """
    stream_id, prompt = new_id(), new_id()
    connection = client.connect()
    body = {"prompt": prompt, "model": "stall?n=3", "id": stream_id}
    client.send(connection, "POST", "/chat", body, JSON)
    request_record(shared_fake, prompt)
    with client.follow(stream_id) as events:
        events.until_text("2 ")
    client.stop(stream_id)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert (answer["content"], answer["finish_reason"]) == (numbers(3), None)
    assert (answer["state"], answer["reason"]) == ("cancelled", "stop")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("application/json", "application/json"),
        ("application/json, */*;q=0.5", "application/json"),
        ("text/plain, application/json;q=0.9", "text/plain"),
    ],
)
def test_accept_header_chooses_text_or_json(client: Client, accept: str, kind: str) -> None:
    """The answer is JSON if Accept prefers it, else text."""
    answer = client.post("/chat", {"prompt": "Hello", "model": "count?n=1"}, Accept=accept)
    assert answer.headers["content-type"].partition(";")[0] == kind


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"prompt": "a", "system": 5}, "system"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "promt": "b"}, "promt"),
        ({"prompt": "a", "id": "short"}, "id"),
        ({"messages": "a", "system": "b"}, "messages"),
        ([], "body"),
        (b"prompt=hello", "body"),
    ],
    ids=str,
)
def test_invalid_request_is_refused_by_field(client: Client, body: Any, field: str) -> None:
    """An invalid request gets 400, and the error names the field."""
    refused = client.post("/chat", body)
    assert (refused.status, refused.error["field"]) == (400, field)


# --- limits of all surfaces -----------------------------------------------------------------------


def test_whole_answers_count_as_streams(token_server: HaltServer, program: Client) -> None:
    """Whole answers count as streams: beyond the limit a request gets 503 at once, and
    Stop works.
    """
    waiting: list[http.client.HTTPConnection] = []
    ids = [new_id(), new_id()]
    for stream_id in ids:
        waiting.append(program.connect())
        body = {"prompt": "Hello", "model": "stall?n=1", "id": stream_id}
        program.send(waiting[-1], "POST", "/chat", body, JSON)
        wait_until(
            lambda: program.get("/healthz").json["open_streams"] == len(waiting), SERVER_TIMEOUT
        )
    messages = [{"role": "user", "content": "a"}]
    for path in ("/chat", "/chat/stream", "/v1/chat/completions"):
        refused = program.post(path, {"messages": messages})
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
    assert program.get("/stream?prompt=a").status == 503
    assert program.get("/v1/models").status == 503
    for stream_id, connection in zip(ids, waiting, strict=True):
        assert program.stop(stream_id).json["status"] == "stopped"
        assert connection.getresponse().read()
        connection.close()


def test_body_over_the_limit_is_refused(program: Client) -> None:
    """A body over the limit gets 413, as on every route."""
    misspelt = program.post("/chat", {"promt": "x"})
    assert (misspelt.status, misspelt.error["field"]) == (400, "promt")
    assert misspelt.error["message"] == "promt: unknown field"
    nameless = program.post("/chat", {"": "x"})
    assert (nameless.status, nameless.error["field"]) == (400, "body")
    assert nameless.error["message"] == "The body has a field with an empty name."
    refused = program.post("/chat", {"prompt": "x" * 9000})
    assert (refused.status, refused.error["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x", "temperature": 9},
        {"prompt": ""},
        {"prompt": "x", "messages": []},
        {"messages": [{"content": "x"}]},
        {"prompt": "x", "system": 5},
    ],
)
def test_chat_names_an_unknown_field_before_other_faults(
    program: Client, fields: dict[str, Any]
) -> None:
    """An unknown field is named before a wrong value, an empty or a second prompt."""
    refused = program.post("/chat", {**fields, "promt": 1})
    assert (refused.status, refused.error["field"]) == (400, "promt")
    assert refused.error["message"] == "promt: unknown field"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat", {"POST", "OPTIONS"}),
        ("POST", "/stream", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/streams", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/stop-all", {"POST", "OPTIONS"}),
    ],
)
def test_wrong_method_gets_405_with_allow(
    client: Client, method: str, path: str, allowed: set[str]
) -> None:
    """A wrong method gets 405 with the allowed methods."""
    refused = client.request(method, path)
    assert refused.status == 405
    assert set(refused.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Referer": "https://evil.example/page"},
        {"User_Agent": "Mozilla/5.0"},  # an image on another site, over HTTP, without a referrer
    ],
    ids=lambda headers: "-".join(headers.values()),
)
def test_cross_site_get_is_refused(
    client: Client, shared_fake: FakeOpenAI, headers: dict[str, str]
) -> None:
    """A link or an image of another site to /stream is refused before any upstream request."""
    prompt = new_id()
    refused = client.get(f"/stream?model=echo&prompt={prompt}", **headers)
    assert (refused.status, refused.error["code"]) == (403, "foreign_site")
    assert not [r for r in shared_fake.requests if prompt in str(r.body)]


@pytest.mark.parametrize("path", ["/chat", "/stop-all", "/v1/chat/completions"])
def test_cross_site_post_is_refused(client: Client, path: str) -> None:
    """A POST of another site is refused before it is processed."""
    assert client.post(path, {"prompt": "a"}, Sec_Fetch_Site="cross-site").status == 403


# --- GET /stream ----------------------------------------------------------------------------------


def open_event_source(
    client: Client, headers: dict[str, str] | None = None, **parameters: Any
) -> EventStream:
    """Send the request of an EventSource."""
    path = f"/stream?{urlencode(parameters)}"
    return client.stream("GET", path, headers={"Accept": "text/event-stream", **(headers or {})})


def read_rest(events: EventStream) -> EventStream:
    """Read to the end of the response and close it."""
    for _ in events:
        pass
    events.close()
    return events


def test_event_source_gets_content_and_done(client: Client) -> None:
    """An EventSource gets unnamed JSON messages with IDs that name the stream; the last one says
    done.
    """
    events = read_rest(open_event_source(client, prompt="Hello", model="count?n=30&gap_ms=2"))
    assert events.status == 200
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.headers["cache-control"] == "no-store, no-transform"
    *content, done = events.seen
    assert {m.event for m in events.seen} == {""}
    assert "".join(m.json["content"] for m in content) == numbers(30)
    assert all(m.id.startswith(f"{events.id}.") for m in content)
    assert (done.id, done.json["done"], done.json["finish_reason"]) == (
        f"{events.id}.end",
        True,
        "stop",
    )
    assert done.json["metrics"]["tokens"] == 30


def test_query_parameters_reach_the_model(client: Client, shared_fake: FakeOpenAI) -> None:
    """Query parameters have the same meaning as the fields of JSON."""
    prompt = new_id()
    events = read_rest(
        open_event_source(
            client, prompt=prompt, system="Be brief.", model="echo", temperature="0.5", max_tokens=9
        )
    )
    assert events.text == prompt
    sent = request_record(shared_fake, prompt).body
    assert [m["content"] for m in sent["messages"]] == ["Be brief.", prompt]
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 9)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "prompt"),
        ("prompt=", "prompt"),
        ("prompt=a&temperature=hot", "temperature"),
        ("prompt=a&max_tokens=0", "max_tokens"),
        ("prompt=a&id=short", "id"),
        ("prompt=a&messages=b", "messages"),
    ],
)
def test_invalid_query_parameter_is_refused(client: Client, query: str, field: str) -> None:
    """An invalid query parameter gets 400, which ends an EventSource."""
    refused = client.get(f"/stream?{query}")
    assert (refused.status, refused.error["field"]) == (400, field)


def test_event_source_without_a_prompt_is_refused_with_its_own_parameters(client: Client) -> None:
    """The route has no messages, so the error asks for a prompt alone."""
    for query in ("", "?prompt="):
        assert client.get(f"/stream{query}").error["message"] == "Give a prompt."


def test_event_source_after_the_end_gets_204(client: Client, shared_fake: FakeOpenAI) -> None:
    """After the end a reconnect gets 204, which ends it; the prompt is not run again."""
    prompt = new_id()
    events = read_rest(open_event_source(client, prompt=prompt, model="echo"))
    for _ in range(3):
        reconnected = client.get(
            f"/stream?model=echo&prompt={prompt}", Last_Event_ID=events.seen[-1].id
        )
        assert (reconnected.status, reconnected.body) == (204, b"")
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


def test_event_source_resumes_after_its_last_event(client: Client, shared_fake: FakeOpenAI) -> None:
    """A reconnect with the last ID gets the later events, and the prompt is not run again."""
    prompt = new_id()
    parameters: dict[str, Any] = {
        "prompt": prompt,
        "model": "stall?n=5&gap_ms=5&rest=5",
        "on_disconnect": "continue",
    }
    with open_event_source(client, **parameters) as first:
        first.until_text("4 ")
        last = first.seen[-1].id
    request_record(shared_fake, prompt).release()
    second = read_rest(open_event_source(client, {"Last-Event-ID": last}, **parameters))
    assert first.text + second.text == numbers(10)
    assert second.terminal["type"] == "done"
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


def test_event_source_id_is_sent_before_the_first_token(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """The ID is sent before the first token, so that a reconnect during silence finds its run."""
    prompt = new_id()
    connection = client.connect()
    path = f"/stream?model=silent_first_token&on_disconnect=continue&prompt={prompt}"
    client.send(connection, "GET", path)
    response = connection.getresponse()
    first_bytes = response.read1(65536).decode()
    response.close()
    connection.close()
    stream_id = response.headers["x-stream-id"]
    nothing = '{"type":"content","content":""}'
    assert first_bytes == f"retry: 1000\nid: {stream_id}.0\ndata: {nothing}\n\n"
    request_record(shared_fake, prompt).release()
    events = read_rest(
        open_event_source(client, {"Last-Event-ID": f"{stream_id}.0"}, prompt=prompt)
    )
    assert events.text == numbers(20)


def events_of_httpx_sse(raw: bytes) -> list[str]:
    """The data of each event as httpx-sse dispatches it: at every empty line behind an ID."""
    texts: list[str] = []
    data: list[str] = []
    fields: dict[str, str] = {}
    for line in raw.decode().split("\n")[:-1]:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name:
            fields[name] = value
        elif not line and (data or fields):
            texts.append("\n".join(data))
            data, fields = [], {name: fields[name] for name in ("id",) if name in fields}
    return texts


DECODERS: dict[str, Callable[[bytes], list[str]]] = {
    "httpx-sse": events_of_httpx_sse,
    "openai": lambda raw: [e.data for e in openai_streaming.SSEDecoder().iter_bytes(iter([raw]))],
    "anthropic": lambda raw: [
        e.data for e in anthropic_streaming.SSEDecoder().iter_bytes(iter([raw]))
    ],
}


@pytest.mark.parametrize("surface", ["stream", "eventsource", "openai", "follow"])
def test_event_source_comments_are_no_events(
    short_heartbeat_server: HaltServer, shared_fake: FakeOpenAI, surface: str
) -> None:
    """A comment makes no event in libraries that dispatch at every empty line: each gets JSON or
    [DONE].
    """
    client, prompt, stream_id = short_heartbeat_server.client(), new_id(), new_id()
    start = "stream" if surface == "follow" else surface
    connection = start_request(
        client, start, prompt, "stall?n=3", id=stream_id, on_disconnect="continue"
    )
    response = connection.getresponse()
    if surface == "follow":
        connection.close()
        connection = client.connect()
        client.send(connection, "GET", f"/streams/{stream_id}")
        response = connection.getresponse()
    raw = b""
    while b"\n\n:\n" not in raw:  # a heartbeat behind an event
        piece = response.read1(65536)
        assert piece, raw
        raw += piece
    request_record(shared_fake, prompt).release()
    while piece := response.read1(65536):
        raw += piece
    connection.close()
    for name, decode in DECODERS.items():
        messages = decode(raw)
        assert messages, name
        text = ""
        for data in messages:
            if data != "[DONE]":
                event = json.loads(data)
                text += "" if surface == "openai" else event["content"]
        assert surface == "openai" or text == numbers(8), name


def test_event_source_messages_have_content(client: Client) -> None:
    """Messages of reasoning and calls have empty content, so that no client appends `undefined`."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    for model in ("reasoning?thoughts=2&n=2", "asks_tools?calls=2&n=2", "drop?n=2&gap_ms=5"):
        events = client.chat(model, tools=[tool]).to_end()
        objects = [m.json for m in events.seen if m.data != "[DONE]"]
        assert "".join(event["content"] for event in objects) == numbers(2)
        assert {event["type"] for event in objects} > {"content"}
    events = read_rest(
        open_event_source(client, {"Last-Event-ID": f"{new_id()}.7"}, prompt="Hello")
    )
    assert events.seen[0].json["content"] == ""


def test_repeated_start_with_an_id_is_one_run(client: Client, shared_fake: FakeOpenAI) -> None:
    """The same address with a client's own ID twice is one run; another prompt is refused."""
    prompt, stream_id = new_id(), new_id()
    parameters: dict[str, Any] = {"prompt": prompt, "model": "stall?n=3", "id": stream_id}
    with open_event_source(client, **parameters) as first:
        first.until_text("2 ")
        with open_event_source(client, **parameters) as second:
            assert second.until_text("2 ").id == stream_id
    refused = client.get(f"/stream?prompt=other&id={stream_id}")
    assert (refused.status, refused.error["code"]) == (409, "stream_in_use")
    client.stop(stream_id)
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


def test_unknown_stream_of_an_event_source_is_an_event(client: Client) -> None:
    """A reconnect to an unknown stream, as after a restart, gets an error event, then 204, and
    starts no run.
    """
    events = read_rest(
        open_event_source(client, {"Last-Event-ID": f"{new_id()}.7"}, prompt="Hello")
    )
    (message,) = events.seen
    assert message.json["done"] is True
    assert message.json["error"]["code"] == "unknown_stream"
    assert open_event_source(client, {"Last-Event-ID": message.id}, prompt="Hello").status == 204
    refused = client.get("/stream?prompt=a", Last_Event_ID="7")
    assert (refused.status, refused.error["field"]) == (400, "Last-Event-ID")


def test_event_source_ends_with_one_message(client: Client, program: Client) -> None:
    """A stopped stream ends with cancelled, a failed one with an error; both are done."""
    events = open_event_source(client, prompt="Hello", model="stall?n=3").until_text("2 ")
    client.stop(events.id)
    assert (read_rest(events).terminal["type"], events.terminal["reason"]) == ("cancelled", "stop")
    events = read_rest(open_event_source(program, prompt="Hello", model="drop?n=5&gap_ms=5"))
    assert events.text == numbers(5)
    assert events.terminal["error"]["code"] == "upstream_dropped"


def test_head_request_starts_no_run(client: Client, shared_fake: FakeOpenAI) -> None:
    """A HEAD request is answered and starts no run."""
    prompt = new_id()
    answer = client.request("HEAD", f"/stream?model=echo&prompt={prompt}")
    assert answer.status == 200
    assert "x-stream-id" not in answer.headers
    assert not [r for r in shared_fake.requests if prompt in str(r.body)]


# --- streams of other sessions --------------------------------------------------------------------


def listed_ids(client: Client) -> list[str]:
    """The IDs of the streams that the client's list has."""
    return [stream["id"] for stream in client.get("/streams").json["streams"]]


def test_session_lists_and_stops_its_own_streams(halt: HaltServer, client: Client) -> None:
    """Streams of other sessions and of programs are neither listed nor stopped."""
    browser, other_browser = halt.client(), halt.client()
    browser.get("/")
    other_browser.get("/")
    with (
        browser.chat("stall?n=2") as first,
        open_event_source(browser, prompt="Hello", model="stall?n=2") as second,
        other_browser.chat("stall?n=2") as third,
        client.chat("stall?n=2") as program,
    ):
        for events in (first, second, third, program):
            events.until_text("1 ")
        assert listed_ids(browser) == [first.id, second.id]
        entry = browser.get("/streams").json["streams"][0]
        assert (entry["state"], entry["model"], entry["characters"]) == ("running", "stall?n=2", 4)
        assert entry["events"] >= 1
        assert entry["age"] >= 0
        receipts = browser.post("/stop-all").json["stopped"]
        assert [(r["id"], r["status"], r["upstream"]) for r in receipts] == [
            (first.id, "stopped", "closed"),
            (second.id, "stopped", "closed"),
        ]
        assert first.to_end().terminal["type"] == "cancelled"
        assert listed_ids(browser) == []
        assert browser.post("/stop-all").json["stopped"] == []
        assert listed_ids(other_browser) == [third.id]
        for other_client in (other_browser, client):
            assert other_client.stop(first.id).json["status"] == "pending"
        other_browser.stop(third.id)
        client.stop(program.id)


def test_programs_streams_are_not_listed_without_a_token(client: Client) -> None:
    """Without a session and a token no stream is listed: an ID gives access to its stream."""
    with client.chat("stall?n=1") as events:
        events.until_text("0 ")
        assert listed_ids(client) == []
        assert client.post("/stop-all").json["stopped"] == []
        assert client.stop(events.id).json["status"] == "stopped"


def test_token_lists_and_stops_programs_streams(token_server: HaltServer, program: Client) -> None:
    """With the token a program lists and stops all programs' streams; without it the request gets
    401.
    """
    assert token_server.client().get("/streams").status == 401
    with program.chat("stall?n=1") as events:
        events.until_text("0 ")
        assert listed_ids(program) == [events.id]
        (receipt,) = program.post("/stop-all").json["stopped"]
        assert (receipt["id"], receipt["upstream"]) == (events.id, "closed")


def test_http_1_0_client_gets_the_text(halt: HaltServer) -> None:
    """An HTTP/1.0 client gets the text without chunks, up to the close of the connection."""
    body = b'{"prompt": "Hello", "model": "count?n=3"}'
    head = b"POST /chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection((halt.host, halt.port), timeout=READ_TIMEOUT) as sock:
        sock.sendall(head + body)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.partition(b"\r\n\r\n")[2] == numbers(3).encode()


# --- numbers --------------------------------------------------------------------------------------

LONG_NUMBER = "9" * 5000
MESSAGES = '"messages":[{"role":"user","content":"Hello"}],"model":"count?n=1"'

#: Numbers in JSON that are invalid in every field of Halt.
INVALID_NUMBERS = [str(2**63), str(2**64), str(2**70), "-1", "1e400", LONG_NUMBER, "1.5"]


@pytest.mark.parametrize(
    "number",
    INVALID_NUMBERS,
    ids=lambda number: number if len(number) < 30 else f"{len(number)} digits",
)
def test_number_out_of_range_is_refused_by_field(client: Client, number: str) -> None:
    """A number out of range in a body, form, address or header gets 400 with its field, never a
    5xx.
    """
    stream = new_id()
    requests = [
        ("POST", "/chat/stream", f'{{{MESSAGES},"max_tokens":{number}}}', "max_tokens"),
        ("POST", "/chat", f'{{"prompt":"x","max_tokens":{number}}}', "max_tokens"),
        ("POST", "/v1/chat/completions", f'{{{MESSAGES},"n":{number}}}', "n"),
        ("POST", "/stop", f'{{"stream_id":"{stream}","seen":{number}}}', "seen"),
        ("POST", f"/stop/{stream}", f'{{"seen":{number}}}', "seen"),
        ("POST", f"/stop/{stream}?seen={number}", None, "seen"),
        ("GET", f"/stream?prompt=x&max_tokens={number}", None, "max_tokens"),
    ]
    if number != "1.5":
        requests += [
            ("POST", "/chat/stream", f'{{{MESSAGES},"temperature":{number}}}', "temperature")
        ]
    if number != "-1":
        requests += [
            ("POST", "/chat/stream", f'{{{MESSAGES},"seed":{number}}}', "seed"),
        ]
    if number in {
        "1e400",
        LONG_NUMBER,
    }:  # values that JSON allows are passed to the model's server
        requests += [
            ("POST", "/v1/chat/completions", f'{{{MESSAGES},"max_tokens":{number}}}', "max_tokens"),
            ("POST", "/v1/chat/completions", f'{{{MESSAGES},"top_k":{number}}}', "top_k"),
        ]
    if len(number) < 4000:  # longer ones do not fit into an address or a header
        events = client.chat("count?n=1").to_end()
        requests += [("GET", f"/streams/{events.id}?after={number}", None, "after")]
        refused = client.get(f"/streams/{events.id}", Last_Event_ID=number)
        assert (refused.status, refused.error["field"]) == (400, "after")
        refused = client.get("/stream?prompt=x", Last_Event_ID=f"{events.id}.{number}")
        assert (refused.status, refused.error["field"]) == (400, "Last-Event-ID")
    for method, path, body, field in requests:
        if len(path) > 4000:
            continue
        refused = client.request(
            method,
            path,
            None if body is None else body.encode(),
            {"Content-Type": "application/json"},
        )
        assert refused.status == 400, (path, body, refused)
        assert refused.error.get("field", refused.error.get("param")) == field, (path, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_number_that_is_no_json_is_refused(client: Client, number: str) -> None:
    """NaN and Infinity in JSON are refused; in an address the error names the field."""
    for path in ("/chat/stream", "/chat", "/v1/chat/completions", "/stop"):
        refused = client.post(path, f'{{{MESSAGES},"temperature":{number}}}'.encode())
        assert refused.status == 400, path
        assert refused.error.get("field", refused.error.get("param")) in {"body", "stream_id"}
    refused = client.get(f"/stream?prompt=x&temperature={number}")
    assert (refused.status, refused.error["field"]) == (400, "temperature")


@pytest.mark.parametrize("number", [2**63, 2**64, 2**70, -(2**70), 1e300])
def test_number_in_an_unknown_field_is_passed_on(
    client: Client, shared_fake: FakeOpenAI, number: float
) -> None:
    """Numbers in fields unknown to Halt and in schemas are passed on unchanged."""
    prompt = new_id()
    parameters = {"type": "object", "properties": {"n": {"type": "integer", "maximum": number}}}
    body = {
        "model": "echo",
        "messages": [{"role": "user", "content": prompt}],
        "top_k": number,
        "response_format": {"type": "json_schema", "json_schema": {"maximum": number}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
    }
    assert client.post("/v1/chat/completions", body).status == 200
    sent = request_record(shared_fake, prompt).body
    for name in ("top_k", "response_format", "tools"):
        assert sent[name] == body[name]


@pytest.mark.parametrize("number", ["1e400", LONG_NUMBER], ids=["1e400", "5000 digits"])
@pytest.mark.parametrize(
    ("path", "field"),
    [("/chat/stream", "extra_body"), ("/v1/chat/completions", "top_k"), ("/chat", "top_k")],
)
def test_number_beyond_every_type_is_refused(
    client: Client, path: str, field: str, number: str
) -> None:
    """A number beyond every type is refused in a field of the model's server too, with its name."""
    inner = f'{{"a":[{number}]}}'
    refused = client.post(path, f'{{{MESSAGES},"{field}":{inner}}}'.encode())
    assert refused.status == 400
    assert refused.error.get("field", refused.error.get("param")) == f"{field}[0]"


# --- request IDs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/static/css/base.css"),
        ("GET", "/static/no-such-file"),
        ("GET", "/nowhere"),
        ("GET", "/healthz"),
        ("GET", "/v1/models"),
        ("GET", "/v1/nowhere"),
        ("PUT", "/chat"),
        ("POST", "/chat"),
        ("GET", "/stream?prompt=x&model=echo"),
        ("GET", "/streams/no-such-stream"),
        ("GET", "/ws"),
        ("HEAD", "/stream"),
        ("OPTIONS", "/chat"),
    ],
)
def test_every_response_has_a_request_id(client: Client, method: str, path: str) -> None:
    """Each response has the client's request ID if it is valid, else a new one."""
    answer = client.request(method, path, headers={"X-Request-Id": "my.request-1_A"})
    assert answer.headers["x-request-id"] == "my.request-1_A"
    if answer.status >= 400 and method != "HEAD":
        error = answer.error
        if path.startswith("/v1/"):
            assert error["message"].endswith(" (request ID: my.request-1_A)")
        else:
            assert error["request_id"] == "my.request-1_A"
    request_ids = {
        client.request(method, path, headers={"X-Request-Id": invalid_id}).headers["x-request-id"]
        for invalid_id in ("", "a b", "x" * 129, "a,b", "<b>", "é".encode().decode("latin-1"))
    }
    assert len(request_ids) == 6
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", request_id) for request_id in request_ids)


def test_log_of_a_failed_run_has_the_request_id(short_heartbeat_server: HaltServer) -> None:
    """The log line of a failed run has its request's ID, also long after the request."""
    request_id = f"req.{new_id()}"
    body = {"messages": [{"role": "user", "content": "Hello"}], "model": "drop?n=3&gap_ms=20"}
    with short_heartbeat_server.client().stream(
        "POST", "/chat/stream", body, {"X-Request-Id": request_id}
    ) as events:
        assert events.headers["x-request-id"] == request_id
        events.to_end()
    short_heartbeat_server.wait_printed(
        rf"stream {events.id} failed: upstream_dropped: .* \(request ID: {request_id}\)\n"
    )


@pytest.mark.parametrize(
    "headers", [{}, {"Accept": "text/html"}, {"HX-Request": "true"}], ids=["json", "page", "part"]
)
@pytest.mark.parametrize("path", ["/streams", "/v1/models"])
def test_internal_error_and_its_log_have_the_request_id(
    caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str]
) -> None:
    """An internal error has the request's ID in every form, and so has the line with the
    traceback.
    """
    app = create_app(load({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "fake"}))
    app.config["PROPAGATE_EXCEPTIONS"] = False

    def raise_error() -> str:
        raise ZeroDivisionError

    app.view_functions["api.streams"] = app.view_functions["openai_api.models"] = raise_error
    headers = {"X-Request-Id": "fault-1", **headers}
    answer = app.test_client().get(path, headers=headers)
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] == "fault-1"
    assert "Its log has the details. (request ID: fault-1)" in answer.text
    assert answer.text.count("(request ID: fault-1)") == 1
    (record,) = [record for record in caplog.records if record.name == "halt.web.responses"]
    assert record.getMessage() == f"unforeseen error in GET {path} (request ID: fault-1)"
