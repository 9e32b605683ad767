"""Streams over HTTP as programs use them: a real server and real sockets."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, StartHalt, new_id, request_record
from tests.support.http_client import READ_TIMEOUT, Client, HttpResponse
from tests.support.waiting import SERVER_TIMEOUT, wait_until

HELLO = [{"role": "user", "content": "Hello"}]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.fixture
def client(halt: HaltServer) -> Client:
    """A client without a session of the shared server."""
    return halt.client()


@pytest.fixture(scope="module")
def small_log_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with a short heartbeat and small logs, which it keeps for 0.5 s after their end."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_HEARTBEAT": "0.2",
            "HALT_LOG_BYTES": "2000",
            "HALT_LOG_SECONDS": "0.5",
        }
    )
    yield server
    server.close()


# --- POST /chat/stream ----------------------------------------------------------------------------


def test_stream_has_numbered_events_and_ends_with_done(client: Client) -> None:
    """Events are numbered and have no name, the text is whole, and `done` and [DONE] end the
    stream.
    """
    with client.chat("count?n=50&gap_ms=2") as events:
        assert events.status == 200
        assert events.headers["content-type"].startswith("text/event-stream")
        assert "no-cache" in events.headers["cache-control"]
        assert events.headers["x-accel-buffering"] == "no"
        assert re.fullmatch(r"[A-Za-z0-9_-]{22,64}", events.id)
        events.to_end()
    *events_before, last = events.seen
    assert [m.id for m in events_before] == [str(n) for n in range(1, len(events_before) + 1)]
    assert {m.event for m in events.seen} == {""}
    assert all(m.json["type"] == "content" for m in events_before[:-1])
    assert events.text == "".join(f"{n} " for n in range(50))
    terminal = events_before[-1].json
    assert (terminal["type"], terminal["done"], terminal["content"]) == ("done", True, "")
    assert terminal["finish_reason"] == "stop"
    assert terminal["usage"]["completion_tokens"] == terminal["metrics"]["tokens"] == 50
    assert terminal["metrics"]["tokens_estimated"] is False
    assert 0 < terminal["metrics"]["ttft_ms"] <= terminal["metrics"]["duration_ms"]
    assert (last.id, last.data) == ("", "[DONE]")


def test_unreported_token_count_is_marked_as_estimate(client: Client) -> None:
    """Without usage from the provider the metrics say that the figures are estimates."""
    terminal = client.chat("no_usage?n=20").to_end().terminal
    assert terminal["usage"] is None
    assert terminal["metrics"]["tokens_estimated"] is True
    assert terminal["metrics"]["tokens"] == 20


def test_upstream_request_has_messages_and_options(client: Client, shared_fake: FakeOpenAI) -> None:
    """Messages and options are sent unchanged, with streaming and usage requested."""
    prompt = new_id()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": prompt},
    ]
    body = {"messages": messages, "model": "echo", "temperature": 0.5, "seed": 7, "stop": ["END"]}
    events = client.stream("POST", "/chat/stream", body).to_end()
    assert events.text == prompt
    sent = request_record(shared_fake, prompt)
    assert sent.body["messages"] == messages
    assert sent.body["stream"] is True
    assert sent.body["stream_options"] == {"include_usage": True}
    assert {k: sent.body[k] for k in ("model", "temperature", "seed", "stop")} == {
        "model": "echo",
        "temperature": 0.5,
        "seed": 7,
        "stop": ["END"],
    }
    assert sent.headers["authorization"] == "Bearer fake"


def test_client_chooses_the_stream_id(client: Client) -> None:
    """A client may choose the stream's ID, so that Stop works before the first byte."""
    chosen = new_id()
    events = client.chat("count?n=1", id=chosen).to_end()
    assert events.id == chosen


@pytest.mark.parametrize(
    "model",
    [
        "no_images",
        "no_images?style=openrouter",
        "error_in_stream?n=0&message=Model+does+not+support+images.",
    ],
)
def test_refused_image_is_named_and_not_sent_again(
    client: Client, shared_fake: FakeOpenAI, model: str
) -> None:
    """Another model is needed, whether the server refuses at once or in the stream."""
    prompt = new_id()
    content = [IMAGE, {"type": "text", "text": prompt}]
    body = {"messages": [{"role": "user", "content": content}], "model": model}
    with client.stream("POST", "/chat/stream", body) as events:
        error = events.to_end().terminal["error"]
    assert (error["code"], error["retryable"]) == ("images_refused", False)
    assert "image" in error["message"].partition("It said:")[2]
    sent = [r for r in shared_fake.requests if prompt in json.dumps(r.body)]
    assert len(sent) == 1


def test_used_id_is_refused(client: Client) -> None:
    """A second stream with the same ID gets 409, and the first continues."""
    with client.chat("stall?n=3") as first:
        first.until_text("2 ")
        with client.chat("count", id=first.id) as second:
            refused = second.answer()
        assert refused.status == 409
        assert refused.error["code"] == "stream_in_use"
        assert refused.error["message"].endswith("belongs to another stream: choose a new one.")
        assert refused.error["field"] == "id"
        assert client.stop(first.id).json["status"] == "stopped"
        first.to_end()


def deep_json(levels: int) -> bytes:
    """Valid JSON of a request whose content has this many levels of lists."""
    brackets = b"[" * levels + b"]" * levels
    return b'{"messages":[{"role":"user","content":[{"type":%b}]}]}' % brackets


BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "no body": (b"", "body"),
    "no JSON": (b"messages=hello", "body"),
    "half JSON": (b'{"messages": [', "body"),
    "not UTF-8": (b'{"messages":[{"role":"user","content":"\xff"}]}', "body"),
    "a list": ([], "body"),
    "a string": ("hello", "body"),
    "null": (b"null", "body"),
    "nested a million times": (b"[" * 1_000_000, "body"),
    "content nested too deep": (deep_json(100_000), "body"),
    "no messages": ({}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages no list": ({"messages": "hello"}, "messages"),
    "message no object": ({"messages": ["hello"]}, "messages"),
    "no role": ({"messages": [{"content": "hello"}]}, "role"),
    "role a number": ({"messages": [{"role": 5, "content": "hello"}]}, "role"),
    "unknown field": ({"messages": HELLO, "mesages": 1}, "mesages"),
    "tools of a word": ({"messages": HELLO, "tools": ["x"]}, "tools"),
    "id too short": ({"messages": HELLO, "id": "short"}, "id"),
    "id too long": ({"messages": HELLO, "id": "x" * 65}, "id"),
    "id with a slash": ({"messages": HELLO, "id": "../../etc/passwd"}, "id"),
    "id with a line break": ({"messages": HELLO, "id": "abcdefgh\n"}, "id"),
    "id a number": ({"messages": HELLO, "id": 12345678}, "id"),
    "temperature a word": ({"messages": HELLO, "temperature": "hot"}, "temperature"),
    "temperature too high": ({"messages": HELLO, "temperature": 2.1}, "temperature"),
    "max_tokens zero": ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    "max_tokens a fraction": ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
    "model empty": ({"messages": HELLO, "model": ""}, "model"),
    "model an object": ({"messages": HELLO, "model": {}}, "model"),
    "stream false": ({"messages": HELLO, "stream": False}, "stream"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_invalid_request_is_refused_by_field(client: Client, name: str) -> None:
    """An invalid request gets 400 as JSON, and `field` names the field."""
    body, field = BAD_REQUESTS[name]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused = client.post("/chat/stream", body, Content_Type="application/json")
    assert refused.status == 400, refused
    assert refused.error["code"] == "invalid_request"
    assert refused.error["field"].split(".")[-1].startswith(field)
    assert refused.error["retryable"] is False


def raw(halt: HaltServer, request: bytes) -> bytes:
    """Send bytes as they are, and all that is answered until the server closes."""
    with socket.create_connection((halt.host, halt.port), timeout=READ_TIMEOUT) as sock:
        sock.sendall(request)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer


def raw_answer(halt: HaltServer, request: bytes) -> HttpResponse:
    """The same, as status, headers and body."""
    head, _, body = raw(halt, request).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return HttpResponse(int(first.split(" ")[1]), {k.lower(): v for k, _, v in pairs}, body)


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("/chat/stream", "json", json.dumps({"messages": HELLO})),
        ("/stop", "x-www-form-urlencoded", "stream_id=broken-off"),
    ],
)
def test_incomplete_body_is_not_processed(
    halt: HaltServer, path: str, kind: str, part: str
) -> None:
    """A body that breaks off is not processed, even if its beginning is valid."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\n"
    with socket.create_connection((halt.host, halt.port), timeout=READ_TIMEOUT) as sock:
        sock.sendall(f"{head}Content-Length: {len(part) + 9}\r\n\r\n{part}".encode())
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/chat/stream", "/stop", "/c/0123456789/messages"])
def test_body_with_too_large_length_is_refused_unread(halt: HaltServer, path: str) -> None:
    """A Content-Length over the limit gets 413 before the body arrives."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    kind = "Content-Type: application/x-www-form-urlencoded\r\n"
    refused = raw_answer(halt, f"{head}{kind}Content-Length: 9999999999\r\n\r\nx=".encode())
    assert refused.status == 413
    assert refused.error["code"] == "too_large"


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_refusal_reaches_a_client_that_still_sends(halt: HaltServer, connection: str) -> None:
    """A client that still sends its body gets the refusal: no reset of the connection loses it."""
    size = 20_000_000
    head = f"POST /chat/stream HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n"
    kind = "Content-Type: application/json\r\n"
    request = f"{head}{kind}Content-Length: {size}\r\n\r\n".encode() + b" " * size
    assert raw_answer(halt, request).status == 413


def test_chunked_body_over_the_limit_is_refused(client: Client) -> None:
    """A chunked body over the limit is refused, never cut."""
    pieces = (b" " * 0x100000 for _ in range(6))
    with contextlib.closing(client.connect()) as connection:
        with contextlib.suppress(ConnectionError):  # the answer may come before the end of the body
            connection.request("POST", "/chat/stream", pieces, encode_chunked=True)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 413, body
    assert json.loads(body)["error"]["code"] == "too_large"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/chat/stream", {"POST", "OPTIONS"}),
        ("PUT", "/chat/stream", {"POST", "OPTIONS"}),
        ("GET", "/stop/0123456789", {"POST", "OPTIONS"}),
        ("GET", "/stop", {"POST", "OPTIONS"}),
        ("DELETE", "/streams/0123456789", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_method_gets_405_with_allow(
    client: Client, method: str, path: str, allowed: set[str]
) -> None:
    """A wrong method gets 405 as JSON, with the allowed methods in the header."""
    refused = client.request(method, path)
    assert refused.status == 405
    assert refused.error["code"] == "method_not_allowed"
    assert set(refused.headers["allow"].split(", ")) == allowed
    methods = ", ".join(sorted(allowed - {"HEAD", "OPTIONS"}))
    assert refused.error["message"] == f"{path} does not allow {method}. Allowed: {methods}."


@pytest.mark.parametrize(
    "path", ["/nothing", "/chat/", "/streams/", "/stop/a/b", "/static/../app.py", "/c/0123456789"]
)
def test_unknown_path_gets_404_as_json(client: Client, path: str) -> None:
    """An unknown path gets 404 as JSON, and so does another session's conversation for a
    program.
    """
    refused = client.get(path)
    assert refused.status == 404
    assert refused.error["code"] in {"not_found", "unknown_conversation"}
    if refused.error["code"] == "not_found":
        message = "There is no route {}. GET /docs lists the API."
        assert refused.error["message"] in {message.format(path), message.format("/app.py")}


def test_every_response_has_security_headers(client: Client) -> None:
    """Every response has a strict policy without inline script, style or eval."""
    for answer in (client.get("/"), client.get("/nothing"), client.get("/static/js/main.js")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


# --- before and between the tokens ----------------------------------------------------------------


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token"])
def test_headers_come_before_the_first_token(client: Client, model: str) -> None:
    """Headers and the stream's ID are sent at once, before the model's first token."""
    with client.chat(model) as events:
        assert events.until_comment(1).seen == []
        client.stop(events.id)
        assert events.to_end().terminal["type"] == "cancelled"


def test_silent_stream_sends_comments(small_log_server: HaltServer) -> None:
    """A silent stream sends comments, so that proxies and clients keep the connection."""
    client = small_log_server.client()
    with client.chat("stall?n=2") as events:
        events.until_text("1 ").until_comment(events.comments + 2)
        client.stop(events.id)
        events.to_end()
    assert events.text == "0 1 "


# --- GET /streams/ID ------------------------------------------------------------------------------


def test_finished_stream_is_replayed_after_any_event(client: Client) -> None:
    """A replay has the same events, from the beginning or after any event."""
    first = client.chat("count?n=20&gap_ms=3").to_end()
    assert client.follow(first.id).to_end().seen == first.seen
    middle = len(first.seen) // 2
    assert client.follow(first.id, after=middle).to_end().seen == first.seen[middle:]
    replay = client.follow(first.id, Last_Event_ID=str(middle)).to_end()
    assert replay.seen == first.seen[middle:]


def test_last_event_id_wins_over_the_address(client: Client) -> None:
    """Last-Event-ID replaces the number in the address, which an EventSource sends again at each
    reconnect.
    """
    first = client.chat("count?n=20&gap_ms=3").to_end()
    replay = client.follow(first.id, after=2, Last_Event_ID="1").to_end()
    assert replay.seen == first.seen[1:]


def test_replay_after_the_last_event_is_done_alone(client: Client) -> None:
    """A replay after the last event of a finished stream has [DONE] alone."""
    first = client.chat("count?n=5").to_end()
    replay = client.follow(first.id, after=len(first.seen) - 1).to_end()
    assert [m.data for m in replay.seen] == ["[DONE]"]


def test_two_readers_get_every_event_of_a_running_stream(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """Readers may join late and leave early: each gets every event in order."""
    prompt = new_id()
    first = client.chat("stall?n=10&gap_ms=5&rest=10", prompt)
    first.until_text("9 ")
    second = client.follow(first.id).until_text("9 ")
    third = client.follow(first.id, after=3)
    first.close()
    request_record(shared_fake, prompt).release()
    second.to_end()
    third.to_end()
    assert second.text == "".join(f"{n} " for n in range(20))
    assert third.seen == second.seen[3:]


def test_follow_of_an_unknown_id_starts_nothing(client: Client) -> None:
    """A follow of an unknown ID gets 404, the first and the second time."""
    unknown = new_id()
    for _ in range(2):
        refused = client.get(f"/streams/{unknown}")
        assert refused.status == 404
        assert refused.error["code"] == "unknown_stream"


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "٣", "9" * 16])
def test_invalid_offset_is_refused(client: Client, after: str) -> None:
    """An invalid event number gets 400, and the error names the field."""
    stream_id = client.chat("count?n=1").to_end().id
    connection = client.connect()
    client.send(connection, "GET", f"/streams/{stream_id}", headers={"Last-Event-ID": "x"})
    assert connection.getresponse().status == 400
    connection.close()
    quoted_number = "".join(f"%{byte:02x}" for byte in after.encode())
    refused = client.get(f"/streams/{stream_id}?after={quoted_number}")
    assert refused.status == 400
    assert refused.error["field"] == "after"


def test_offset_beyond_the_end_gets_the_end(client: Client, shared_fake: FakeOpenAI) -> None:
    """A reader with a number beyond the end gets the protocol's end, running or finished."""
    prompt = new_id()
    with client.chat("stall?n=3", prompt) as events:
        early_reader = client.follow(events.until_text("2 ").id, after=1000)
        request_record(shared_fake, prompt).release()
        events.to_end()
        for reader in (early_reader, client.follow(events.id, after=1000)):
            assert [event.data for event in reader.to_end().seen] == ["[DONE]"]


def test_offset_of_evicted_events_gets_410(
    small_log_server: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A reader of evicted events gets 410 instead of a gap; a reader of the kept part gets all of
    it.
    """
    client = small_log_server.client()
    client.get("/")  # a session, which can list its streams
    prompt, stream_id = new_id(), new_id()
    # Its own reader leaves: on a slow machine events would be evicted before it reads them.
    client.chat("stall?n=400&gap_ms=3&rest=5", prompt, id=stream_id).close()
    text = "".join(f"{n} " for n in range(405))

    def event_count() -> int:
        """The number of events once all text before the hold is in the log; 0 before."""
        (stream,) = client.get("/streams").json["streams"]
        return int(stream["events"]) if text[: stream["characters"]].endswith("399 ") else 0

    wait_until(event_count, SERVER_TIMEOUT)
    last = event_count()
    refused = client.get(f"/streams/{stream_id}")
    assert refused.status == 410
    assert refused.error["code"] == "offset_lost"
    with client.follow(stream_id, after=last - 2) as reader:
        request_record(shared_fake, prompt).release()
        reader.to_end()
    *events, done = reader.seen
    assert [int(event.id) for event in events] == list(range(last - 1, last - 1 + len(events)))
    assert len(events) > 3
    assert text.endswith(reader.text)
    assert events[-1].json["type"] == "done"
    assert done.data == "[DONE]"


def test_finished_stream_is_replayed_from_the_store(small_log_server: HaltServer) -> None:
    """After HALT_LOG_SECONDS the memory is free, and the store replays every event."""
    client = small_log_server.client()
    first = client.chat("count?n=3").to_end()
    before = [(event.id, event.data) for event in first.seen]
    # The heartbeats of another stream are the clock: at most one comes per second.
    with client.chat("silent_headers") as clock:
        for comment_count in range(1, 4):
            clock.until_comment(comment_count)
            replay = client.follow(first.id).to_end()
            assert [(event.id, event.data) for event in replay.seen] == before


@pytest.mark.parametrize("name", ["evil.example:1", "evil.example", "[", "127.0.0.1.evil.example"])
def test_foreign_host_name_is_refused(halt: HaltServer, name: str) -> None:
    """Without a token a request under a foreign host name, as after DNS rebinding, is refused."""
    refused = halt.client().get("/healthz", Host=name)
    assert refused.status in {400, 403}
    if refused.status == 403:
        assert refused.error["code"] == "unknown_host"


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8000"])
def test_loopback_host_names_are_served(halt: HaltServer, name: str) -> None:
    """Every loopback name is served, with the port of any tunnel or proxy."""
    assert halt.client().get("/healthz", Host=name).status == 200


# --- streams of other sessions --------------------------------------------------------------------


def test_session_stream_is_unknown_to_others(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A session's stream can be neither read nor stopped by others, nor does a response show that
    it exists.
    """
    owner, other_browser, program = halt.client(), halt.client(), halt.client()
    for browser in (owner, other_browser):
        assert browser.get("/").status == 200
        assert browser.cookies
    prompt = new_id()
    with owner.chat("stall?n=3", prompt) as events:
        events.until_text("2 ")
        for other_client in (other_browser, program):
            assert other_client.get(f"/streams/{events.id}").error["code"] == "unknown_stream"
            receipt = other_client.stop(events.id)
            assert (receipt.status, receipt.json["status"]) == (202, "pending")
            assert other_client.post("/stop", {"stream_id": events.id}).json["status"] == "pending"
            page = other_client.get(f"/streams/{events.id}/page")
            assert b"0 1 2" not in page.body
        assert not request_record(shared_fake, prompt).closed.is_set()
        assert owner.follow(events.id).until_text("2 ")
        assert owner.stop(events.id).json["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"


def test_id_of_another_session_is_free(halt: HaltServer) -> None:
    """A start with the ID of another session's stream begins a stream of its own."""
    owner, other_browser, program = halt.client(), halt.client(), halt.client()
    owner.get("/")
    other_browser.get("/")
    stream_id = new_id()
    with owner.chat("stall?n=3", id=stream_id) as events:
        events.until_text("2 ")
        for number, other_client in enumerate((other_browser, program), start=1):
            assert other_client.chat(f"count?n={number}", id=stream_id).to_end().status == 200
        assert other_browser.follow(stream_id).to_end().text == "0 "
        assert program.follow(stream_id).to_end().text == "0 1 "
        assert program.stop(stream_id).json["status"] == "finished"
        assert owner.stop(stream_id).json["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"


def test_program_stream_is_open_to_its_id(halt: HaltServer) -> None:
    """Programs that nothing makes known share their streams: the ID is all that protects one."""
    first, second = halt.client(), halt.client()
    with first.chat("stall?n=3") as events:
        events.until_text("2 ")
        assert second.follow(events.id).until_text("2 ")
        assert second.stop(events.id).json["status"] == "stopped"


def test_server_ids_are_random(client: Client) -> None:
    """IDs that the server makes have 128 random bits: all differ, and none is derived
    from another.
    """
    ids = {client.chat("count?n=1").to_end().id for _ in range(5)}
    assert len(ids) == 5
    assert all(len(stream_id) >= 22 for stream_id in ids)


# --- other sites ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/chat/stream", "/stop", "/stop/0123456789", "/c/12345678/messages"]
)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=lambda headers: "-".join(headers.values()),
)
def test_cross_site_request_is_refused(client: Client, path: str, headers: dict[str, str]) -> None:
    """A browser's request for another site is refused before it is processed."""
    refused = client.post(path, {"messages": HELLO}, **headers)
    assert refused.status == 403
    assert refused.error["code"] == "foreign_site"
    assert "HALT_CORS_ORIGINS" in refused.error["message"]


def test_same_site_request_is_accepted(halt: HaltServer, client: Client) -> None:
    """Requests of the same origin, of a typed address and of programs are accepted."""
    for headers in (
        {"Sec_Fetch_Site": "same-origin", "Origin": halt.url},
        {"Sec_Fetch_Site": "none"},
        {"Origin": halt.url},
        {},
    ):
        assert client.post(f"/stop/{new_id()}", **headers).status == 202


# --- health ---------------------------------------------------------------------------------------


def test_health_has_version_streams_and_upstream(fake: FakeOpenAI, start_halt: StartHalt) -> None:
    """GET /healthz has the version, the open streams and the state of the upstream."""
    client = start_halt(fake).client()
    health = client.get("/healthz")
    assert health.status == 200
    assert health.json["status"] == "ok"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", health.json["version"])
    assert (health.json["open_streams"], health.json["upstream"]) == (0, "reachable")
    with client.chat("stall?n=1") as events:
        events.until_text("0 ")
        assert client.get("/healthz").json["open_streams"] == 1
        client.stop(events.id)
        events.to_end()
    wait_until(lambda: client.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)


def test_health_reports_an_unreachable_model(start_halt: StartHalt) -> None:
    """With an unreachable model GET /healthz is 200 and has the reason."""
    health = start_halt("http://127.0.0.1:9/v1").client().get("/healthz")
    assert health.status == 200
    assert health.json["upstream"] == "unreachable: upstream_refused"
