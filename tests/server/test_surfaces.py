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
def strict(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with few places, a token and a short grace that tries everything once."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_RETRIES": "0",
            "HALT_MAX_STREAMS": "2",
            "HALT_MAX_BODY_BYTES": "8192",
            "HALT_FIRST_BYTE_TIMEOUT": "1.5",
            "HALT_TOKEN": "open-sesame",
            "HALT_LOG_SECONDS": "0",
        }
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def lively(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server that soon speaks up in silence, and has no patience with a model for long."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_RETRIES": "0",
            "HALT_HEARTBEAT": "0.2",
            "HALT_FIRST_BYTE_TIMEOUT": "2.5",
        }
    )
    yield server
    server.close()


@pytest.fixture
def program(strict: HaltServer) -> Client:
    """A program that has that server's token."""
    return strict.client(Authorization="Bearer open-sesame")


class Text:
    """A response of POST /chat, read as it comes."""

    def __init__(self, client: Client, body: dict[str, Any]) -> None:
        self.connection = client.connect()
        client.send(self.connection, "POST", "/chat", body, TEXT)
        self.response = self.connection.getresponse()
        self.said = b""

    def until(self, text: str) -> None:
        """Read until this text has come."""
        while text.encode() not in self.said:
            piece = self.response.read1(65536)
            assert piece, f"ended with {self.said!r}"
            self.said += piece

    def to_end(self) -> str:
        """Everything. Raises http.client.IncompleteRead where the body has no proper end."""
        try:
            while piece := self.response.read1(65536):
                self.said += piece
        finally:
            self.connection.close()
        return self.said.decode()

    def leave(self) -> None:
        self.response.close()
        self.connection.close()


# --- POST /chat as text ---------------------------------------------------------------------------


def test_text_is_streamed_as_utf8(client: Client, shared_fake: FakeOpenAI) -> None:
    """The text comes piece by piece, with the stream's ID in a header, to a proper end."""
    prompt = new_id()
    text = Text(client, {"prompt": prompt, "model": "stall?n=3&rest=2"})
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
    assert Text(client, body).to_end() == "hm\n\nHello"
    whole = client.post("/chat", body, **JSON).json
    assert (whole["content"], whole["reasoning"]) == ("Hello", "hm")


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
    text = Text(program, {"prompt": "Hello", "model": model})
    assert text.response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    answer_text, _, error = text.said.decode().partition("\n")
    assert answer_text == numbers(5)
    assert error.startswith("[error: upstream_")
    assert error.endswith("\n")
    assert error.count("\n") == 1


def test_broken_answer_is_logged_without_a_traceback(strict: HaltServer, program: Client) -> None:
    """A broken answer is logged in one line as the model's failure."""
    text = Text(program, {"prompt": "Hello", "model": "drop?n=5&gap_ms=5"})
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    strict.wait_printed(
        rf"stream {text.response.headers['x-stream-id']} failed: upstream_dropped: "
    )
    assert "Traceback" not in strict.printed


def test_silent_model_delays_the_head_by_one_heartbeat(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """The head of a silent model's response is sent after HALT_HEARTBEAT, and the text later."""
    lively = start_halt(shared_fake, HALT_HEARTBEAT="0.2")
    prompt = new_id()
    body = json.dumps({"prompt": prompt, "model": "silent_first_token?n=3"}).encode()
    request = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    with socket.create_connection((lively.host, lively.port), timeout=READ_TIMEOUT) as sock:
        sock.sendall(request % (len(body), body))
        head = sock.recv(65536)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.endswith(b"\r\n\r\n"), "the model has said nothing"
        request_record(shared_fake, prompt).release()
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = sock.recv(65536)
            assert part, answer
            answer += part
    assert b"2 " in answer


def test_error_after_the_head_breaks_the_text(lively: HaltServer) -> None:
    """An error after the head is sent like one in mid-answer."""
    text = Text(lively.client(), {"prompt": "Hello", "model": "silent_first_token"})
    assert text.response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        text.to_end()
    assert text.said.startswith(b"\n[error: first_byte_timeout] ")


def test_stopped_text_ends_normally(client: Client) -> None:
    """A stopped text ends without an error after the text before the Stop."""
    text = Text(client, {"prompt": "Hello", "model": "stall?n=3"})
    text.until("2 ")
    assert client.stop(text.response.headers["x-stream-id"]).json["upstream"] == "closed"
    assert text.to_end() == numbers(3)


def test_text_stopped_before_the_first_token_is_empty(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A Stop by the client's own ID works before the first token."""
    chosen = new_id()
    assert client.stop(chosen).status == 202
    answer = client.post("/chat", {"prompt": "Hello", "model": "count", "id": chosen})
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["x-stream-id"] == chosen


# --- what becomes of a run whose reader leaves ----------------------------------------------------

#: How each surface is asked for the same, and what it does where nothing is said: with an ID of the
#: client's own, and without.
STARTS: dict[str, tuple[str, str, dict[str, str], str, str]] = {
    "text": ("POST", "/chat", TEXT, "stop", "stop"),
    "json": ("POST", "/chat", JSON, "stop", "stop"),
    "stream": ("POST", "/chat/stream", {}, "continue", "stop"),
    "eventsource": ("GET", "/stream", {}, "continue", "stop"),
    "openai": ("POST", "/v1/chat/completions", {}, "stop", "stop"),
}


def begun(client: Client, surface: str, said: str, model: str, **fields: Any) -> Any:
    """Start a run on this surface and return its connection; a chosen ID is sent as it is there."""
    method, path, headers, *_ = STARTS[surface]
    body: dict[str, Any] = {"model": model, **fields}
    if surface == "openai" and "id" in body:
        headers = {"X-Stream-Id": body.pop("id")}
    if surface == "eventsource":
        path += "?" + urlencode({**body, "prompt": said})
    elif surface in {"text", "json"}:
        body["prompt"] = said
    else:
        body["messages"] = [{"role": "user", "content": said}]
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
    for surface, choice, chosen in product(STARTS, ("stop", "continue", None), (True, False)):
        prompt = new_id()
        fields = {"id": new_id()} if chosen else {}
        if choice is not None:
            fields["on_disconnect"] = choice
        *_, named, unnamed = STARTS[surface]
        expected = choice or (named if chosen else unnamed)
        connection = begun(client, surface, prompt, models[expected], **fields)
        started.append(((surface, choice, chosen), expected, prompt, connection))
    for _, _, prompt, connection in started:
        request_record(shared_fake, prompt).wait_tokens(1, RECORD_TIMEOUT)
        connection.close()
    for case, expected, prompt, _ in started:
        record = request_record(shared_fake, prompt)
        seen = record.closed if expected == "stop" else record.finished
        assert seen.wait(RECORD_TIMEOUT), (case, expected, record)
        assert "on_disconnect" not in record.body


def test_client_gone_during_silence_stops_the_model(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A client that leaves before the first text stops the silent model."""
    for surface in STARTS:
        prompt = new_id()
        fields = {"on_disconnect": "stop", "id": new_id()}
        connection = begun(client, surface, prompt, "silent_first_token", **fields)
        record = request_record(shared_fake, prompt)
        connection.close()
        assert record.closed.wait(RECORD_TIMEOUT), surface
        with client.follow(fields["id"]) as events:
            ended = events.to_end().terminal
        assert (ended["type"], ended["reason"]) == ("cancelled", "no_viewer")


def test_on_disconnect_stop_waits_for_the_last_reader(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """Another reader on any surface keeps the run; a reader that returns later finds it ended."""
    prompt, chosen = new_id(), new_id()
    text = Text(client, {"prompt": prompt, "model": "stall?n=3", "id": chosen})
    text.until("2 ")
    with client.follow(chosen).until_text("2 ") as events:
        text.leave()
        record = request_record(shared_fake, prompt)
        record.release()
        assert events.to_end().terminal["type"] == "done"


def test_invalid_on_disconnect_is_refused(client: Client) -> None:
    """An invalid `on_disconnect` gets 400, and the error names the field."""
    for surface in STARTS:
        connection = begun(client, surface, "Hello", "count?n=1", on_disconnect="maybe")
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        connection.close()
        assert response.status == 400
        assert error.get("field", error.get("param")) == "on_disconnect"


# --- POST /chat as JSON ---------------------------------------------------------------------------


def test_json_answer_has_text_reason_usage_and_metrics(client: Client) -> None:
    """A client that prefers JSON gets text, finish reason, usage and metrics."""
    answer = client.request("POST", "/chat", {"prompt": "Hello", "model": "count?n=5"}, JSON)
    whole = answer.json
    assert whole["id"] == answer.headers["x-stream-id"]
    assert (whole["content"], whole["finish_reason"]) == (numbers(5), "stop")
    assert (whole["state"], whole["model"]) == ("done", "count?n=5")
    assert whole["usage"]["completion_tokens"] == whole["metrics"]["tokens"] == 5
    assert not {"reasoning", "tool_calls"} & whole.keys()


def test_json_answer_has_reasoning_and_calls(client: Client) -> None:
    """A JSON answer has reasoning and tool calls as fields beside the text."""
    body = {"prompt": "Hello", "model": "reasoning?thoughts=2&n=2"}
    whole = client.request("POST", "/chat", body, JSON).json
    assert (whole["content"], whole["reasoning"]) == (numbers(2), "thought0 thought1 ")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    asks: dict[str, Any] = {"prompt": "Hello", "model": "asks_tools?calls=1", "tools": [tool]}
    whole = client.request("POST", "/chat", asks, JSON).json
    assert whole["finish_reason"] == "tool_calls"
    assert whole["tool_calls"] == [
        {"id": "call_0", "name": "weather", "arguments": '{"city": "town 0"}'}
    ]


def test_stopped_json_answer_has_state_cancelled(client: Client, shared_fake: FakeOpenAI) -> None:
    """A stopped JSON answer has the text up to the Stop, the state "cancelled" and no finish
    reason.
    """
    chosen, prompt = new_id(), new_id()
    connection = client.connect()
    body = {"prompt": prompt, "model": "stall?n=3", "id": chosen}
    client.send(connection, "POST", "/chat", body, JSON)
    request_record(shared_fake, prompt)
    with client.follow(chosen) as events:
        events.until_text("2 ")
    client.stop(chosen)
    whole = json.loads(connection.getresponse().read())
    connection.close()
    assert (whole["content"], whole["finish_reason"]) == (numbers(3), None)
    assert (whole["state"], whole["reason"]) == ("cancelled", "stop")


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


def test_whole_answers_count_as_streams(strict: HaltServer, program: Client) -> None:
    """Whole answers count as streams: beyond the limit a request gets 503 at once, and
    Stop works.
    """
    waiting: list[http.client.HTTPConnection] = []
    ids = [new_id(), new_id()]
    for chosen in ids:
        waiting.append(program.connect())
        body = {"prompt": "Hello", "model": "stall?n=1", "id": chosen}
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
    for chosen, connection in zip(ids, waiting, strict=True):
        assert program.stop(chosen).json["status"] == "stopped"
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
        {"User_Agent": "Mozilla/5.0"},  # an image elsewhere, over plain HTTP, without a referrer
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


def ask(client: Client, headers: dict[str, str] | None = None, **parameters: Any) -> EventStream:
    """What an EventSource does."""
    path = f"/stream?{urlencode(parameters)}"
    return client.stream("GET", path, headers={"Accept": "text/event-stream", **(headers or {})})


def remaining(events: EventStream) -> EventStream:
    """Read to the end of the response."""
    for _ in events:
        pass
    events.close()
    return events


def test_event_source_gets_content_and_done(client: Client) -> None:
    """An EventSource gets unnamed JSON messages with IDs that name the stream; the last one says
    done.
    """
    events = remaining(ask(client, prompt="Hello", model="count?n=30&gap_ms=2"))
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
    events = remaining(
        ask(
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


def test_event_source_after_the_end_gets_204(client: Client, shared_fake: FakeOpenAI) -> None:
    """After the end a reconnect gets 204, which ends it; the prompt is not run again."""
    prompt = new_id()
    events = remaining(ask(client, prompt=prompt, model="echo"))
    for _ in range(3):
        again = client.get(f"/stream?model=echo&prompt={prompt}", Last_Event_ID=events.seen[-1].id)
        assert (again.status, again.body) == (204, b"")
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


def test_event_source_resumes_after_its_last_event(client: Client, shared_fake: FakeOpenAI) -> None:
    """A reconnect with the last ID gets the later events, and the prompt is not run again."""
    prompt = new_id()
    parameters: dict[str, Any] = {
        "prompt": prompt,
        "model": "stall?n=5&gap_ms=5&rest=5",
        "on_disconnect": "continue",
    }
    with ask(client, **parameters) as first:
        first.until_text("4 ")
        last = first.seen[-1].id
    request_record(shared_fake, prompt).release()
    second = remaining(ask(client, {"Last-Event-ID": last}, **parameters))
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
    opening = response.read1(65536).decode()
    response.close()
    connection.close()
    stream_id = response.headers["x-stream-id"]
    nothing = '{"type":"content","content":""}'
    assert opening == f"retry: 1000\nid: {stream_id}.0\ndata: {nothing}\n\n"
    request_record(shared_fake, prompt).release()
    events = remaining(ask(client, {"Last-Event-ID": f"{stream_id}.0"}, prompt=prompt))
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
    lively: HaltServer, shared_fake: FakeOpenAI, surface: str
) -> None:
    """A comment makes no event in libraries that dispatch at every empty line: each gets JSON or
    [DONE].
    """
    client, prompt, chosen = lively.client(), new_id(), new_id()
    start = "stream" if surface == "follow" else surface
    connection = begun(client, start, prompt, "stall?n=3", id=chosen, on_disconnect="continue")
    response = connection.getresponse()
    if surface == "follow":
        connection.close()
        connection = client.connect()
        client.send(connection, "GET", f"/streams/{chosen}")
        response = connection.getresponse()
    raw = b""
    while b"\n\n:\n" not in raw:  # a heartbeat behind an event
        raw += response.read1(65536)
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
    lost = remaining(ask(client, {"Last-Event-ID": f"{new_id()}.7"}, prompt="Hello"))
    assert lost.seen[0].json["content"] == ""


def test_repeated_start_with_an_id_is_one_run(client: Client, shared_fake: FakeOpenAI) -> None:
    """The same address with a client's own ID twice is one run; another prompt is refused."""
    prompt, chosen = new_id(), new_id()
    parameters: dict[str, Any] = {"prompt": prompt, "model": "stall?n=3", "id": chosen}
    with ask(client, **parameters) as first:
        first.until_text("2 ")
        with ask(client, **parameters) as second:
            assert second.until_text("2 ").id == chosen
    refused = client.get(f"/stream?prompt=other&id={chosen}")
    assert (refused.status, refused.error["code"]) == (409, "stream_in_use")
    client.stop(chosen)
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


def test_unknown_stream_of_an_event_source_is_an_event(client: Client) -> None:
    """A reconnect to an unknown stream, as after a restart, gets an error event, then 204, and
    starts no run.
    """
    lost = remaining(ask(client, {"Last-Event-ID": f"{new_id()}.7"}, prompt="Hello"))
    (message,) = lost.seen
    assert message.json["done"] is True
    assert message.json["error"]["code"] == "unknown_stream"
    assert ask(client, {"Last-Event-ID": message.id}, prompt="Hello").status == 204
    refused = client.get("/stream?prompt=a", Last_Event_ID="7")
    assert (refused.status, refused.error["field"]) == (400, "Last-Event-ID")


def test_event_source_ends_with_one_message(client: Client, program: Client) -> None:
    """A stopped stream ends with cancelled, a failed one with an error; both are done."""
    events = ask(client, prompt="Hello", model="stall?n=3").until_text("2 ")
    client.stop(events.id)
    assert (remaining(events).terminal["type"], events.terminal["reason"]) == ("cancelled", "stop")
    events = remaining(ask(program, prompt="Hello", model="drop?n=5&gap_ms=5"))
    assert events.text == numbers(5)
    assert events.terminal["error"]["code"] == "upstream_dropped"


def test_head_request_starts_no_run(client: Client, shared_fake: FakeOpenAI) -> None:
    """A HEAD request is answered and starts no run."""
    prompt = new_id()
    answer = client.request("HEAD", f"/stream?model=echo&prompt={prompt}")
    assert answer.status == 200
    assert "x-stream-id" not in answer.headers
    assert not [r for r in shared_fake.requests if prompt in str(r.body)]


# --- whose streams --------------------------------------------------------------------------------


def listed(client: Client) -> list[str]:
    """The IDs that it is told."""
    return [stream["id"] for stream in client.get("/streams").json["streams"]]


def test_session_lists_and_stops_its_own_streams(halt: HaltServer, client: Client) -> None:
    """Streams of other sessions and of programs are neither listed nor stopped."""
    mine, other = halt.client(), halt.client()
    for browser in (mine, other):
        browser.get("/")
    with (
        mine.chat("stall?n=2") as one,
        ask(mine, prompt="Hello", model="stall?n=2") as two,
        other.chat("stall?n=2") as theirs,
        client.chat("stall?n=2") as program,
    ):
        for events in (one, two, theirs, program):
            events.until_text("1 ")
        assert listed(mine) == [one.id, two.id]
        first = mine.get("/streams").json["streams"][0]
        assert (first["state"], first["model"], first["characters"]) == ("running", "stall?n=2", 4)
        assert first["events"] >= 1
        assert first["age"] >= 0
        receipts = mine.post("/stop-all").json["stopped"]
        assert [(r["id"], r["status"], r["upstream"]) for r in receipts] == [
            (one.id, "stopped", "closed"),
            (two.id, "stopped", "closed"),
        ]
        assert one.to_end().terminal["type"] == "cancelled"
        assert listed(mine) == []
        assert mine.post("/stop-all").json["stopped"] == []
        assert listed(other) == [theirs.id]
        for stranger in (other, client):
            assert stranger.stop(one.id).json["status"] == "pending"
        other.stop(theirs.id)
        client.stop(program.id)


def test_programs_streams_are_not_listed_without_a_token(client: Client) -> None:
    """Without a session and a token no stream is listed: an ID gives access to its stream."""
    with client.chat("stall?n=1") as events:
        events.until_text("0 ")
        assert listed(client) == []
        assert client.post("/stop-all").json["stopped"] == []
        assert client.stop(events.id).json["status"] == "stopped"


def test_token_lists_and_stops_programs_streams(strict: HaltServer, program: Client) -> None:
    """With the token a program lists and stops all programs' streams; without it the request gets
    401.
    """
    assert strict.client().get("/streams").status == 401
    with program.chat("stall?n=1") as events:
        events.until_text("0 ")
        assert listed(program) == [events.id]
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

HUGE = "9" * 5000
MESSAGES = '"messages":[{"role":"user","content":"Hello"}],"model":"count?n=1"'

#: Numbers in JSON that no field of Halt's own takes.
NOT_THESE = [str(2**63), str(2**64), str(2**70), "-1", "1e400", HUGE, "1.5"]


@pytest.mark.parametrize("number", NOT_THESE, ids=lambda number: number[:24])
def test_number_out_of_range_is_refused_by_field(client: Client, number: str) -> None:
    """A number out of range in a body, form, address or header gets 400 with its field, never a
    5xx.
    """
    stream = new_id()
    asks = [
        ("POST", "/chat/stream", f'{{{MESSAGES},"max_tokens":{number}}}', "max_tokens"),
        ("POST", "/chat", f'{{"prompt":"x","max_tokens":{number}}}', "max_tokens"),
        ("POST", "/v1/chat/completions", f'{{{MESSAGES},"n":{number}}}', "n"),
        ("POST", "/stop", f'{{"stream_id":"{stream}","seen":{number}}}', "seen"),
        ("POST", f"/stop/{stream}", f'{{"seen":{number}}}', "seen"),
        ("POST", f"/stop/{stream}?seen={number}", None, "seen"),
        ("GET", f"/stream?prompt=x&max_tokens={number}", None, "max_tokens"),
    ]
    if number != "1.5":
        asks += [("POST", "/chat/stream", f'{{{MESSAGES},"temperature":{number}}}', "temperature")]
    if number != "-1":
        asks += [
            ("POST", "/chat/stream", f'{{{MESSAGES},"seed":{number}}}', "seed"),
        ]
    if number in {"1e400", HUGE}:  # what JSON can hold goes on from there to the model's server
        asks += [
            ("POST", "/v1/chat/completions", f'{{{MESSAGES},"max_tokens":{number}}}', "max_tokens"),
            ("POST", "/v1/chat/completions", f'{{{MESSAGES},"top_k":{number}}}', "top_k"),
        ]
    if len(number) < 4000:  # more than an address or a header may hold
        events = client.chat("count?n=1").to_end()
        asks += [("GET", f"/streams/{events.id}?after={number}", None, "after")]
        refused = client.get(f"/streams/{events.id}", Last_Event_ID=number)
        assert (refused.status, refused.error["field"]) == (400, "after")
        refused = client.get("/stream?prompt=x", Last_Event_ID=f"{events.id}.{number}")
        assert (refused.status, refused.error["field"]) == (400, "Last-Event-ID")
    for method, path, body, field in asks:
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


@pytest.mark.parametrize("number", ["1e400", HUGE], ids=["1e400", "5000-digits"])
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


# --- which request it was -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/static/halt.css"),
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
        client.request(method, path, headers={"X-Request-Id": bad}).headers["x-request-id"]
        for bad in ("", "a b", "x" * 129, "a,b", "<b>", "é".encode().decode("latin-1"))
    }
    assert len(request_ids) == 6
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", request_id) for request_id in request_ids)


def test_log_of_a_failed_run_has_the_request_id(lively: HaltServer) -> None:
    """The log line of a failed run has its request's ID, also long after the request."""
    own = f"req.{new_id()}"
    body = {"messages": [{"role": "user", "content": "Hello"}], "model": "drop?n=3&gap_ms=20"}
    with lively.client().stream("POST", "/chat/stream", body, {"X-Request-Id": own}) as events:
        assert events.headers["x-request-id"] == own
        events.to_end()
    lively.wait_printed(rf"stream {events.id} failed: upstream_dropped: .* \(request ID: {own}\)\n")


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

    def fails() -> str:
        raise ZeroDivisionError

    app.view_functions["api.streams"] = app.view_functions["openai_api.models"] = fails
    own = {"X-Request-Id": "fault-1", **headers}
    answer = app.test_client().get(path, headers=own)
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] == "fault-1"
    assert "Its log has the details. (request ID: fault-1)" in answer.text
    assert answer.text.count("(request ID: fault-1)") == 1
    (record,) = [record for record in caplog.records if record.name == "halt.web.responses"]
    assert record.getMessage() == f"unforeseen error in GET {path} (request ID: fault-1)"
