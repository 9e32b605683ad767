"""The fake upstream keeps its protocol: what it sends, what it records, and that it always ends."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from halt.testing.fake_openai import FakeOpenAI, Record, scenarios
from halt.testing.scenarios import MARKDOWN, STATUS_ERRORS, WIDE

SOON = 5.0  # seconds; nothing here takes long, so that a test that waits this long has failed
PROMPTLY = 0.5  # seconds within which a close must be seen, also by a busy machine

# Scenarios that never send a byte: every one, and those that are not streamed.
SILENT = {"silent_headers", "drop_headers"}
SILENT_WHEN_WHOLE = {
    "illustrated",
    "think",
    "think_end",
    "silent_first_token",
    "stall",
    "late_terminator",
    "drop",
    "reset",
}

Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def connect(fake: FakeOpenAI) -> Iterator[Connect]:
    """Makes clients of the fake that are closed when the test ends."""
    clients: list[openai.OpenAI] = []

    def make(**options: Any) -> openai.OpenAI:
        settings: dict[str, Any] = {
            "base_url": fake.base_url,
            "api_key": "fake",
            "max_retries": 0,
            "timeout": SOON,
        }
        clients.append(openai.OpenAI(**settings | options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ask(client: openai.OpenAI, model: str, said: str = "Hello there, fake", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": said}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def stream_text(client: openai.OpenAI, model: str, said: str = "Hello there, fake") -> str:
    with ask(client, model, said, stream=True) as stream:
        return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def request_bytes(model: str, *, stream: bool = True) -> bytes:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "a b"}]}
    content = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


def raw(fake: FakeOpenAI, model: str, *, stream: bool = True) -> socket.socket:
    """A socket that has just sent a request."""
    sock = socket.create_connection((fake.host, fake.port), timeout=SOON)
    sock.sendall(request_bytes(model, stream=stream))
    return sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data and (part := sock.recv(65536)):
        data += part
    return data


def test_models_are_the_scenarios_and_echo_is_the_first(connect: Connect) -> None:
    assert [model.id for model in connect().models.list()] == list(scenarios())
    assert next(iter(scenarios())) == "echo"


def test_a_stream_has_the_chunks_openai_sends(fake: FakeOpenAI, connect: Connect) -> None:
    chunks = list(ask(connect(), "count?n=3", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:]] == ["0 ", "1 ", "2 ", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({(c.id, c.object, c.created, c.model) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"


def test_usage_is_sent_only_when_asked_for(connect: Connect) -> None:
    assert all("usage" not in c.model_fields_set for c in ask(connect(), "count", stream=True))


def test_a_whole_answer_plays_the_same_scenario(connect: Connect) -> None:
    answer = ask(connect(), "length?n=2")
    assert answer.choices[0].message.content == "0 1 "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("echo", "Hello there, fake"),
        ("count?n=2", "0 1 "),
        ("long?n=250", "".join(f"{i} " for i in range(250))),
        ("markdown?n=2&piece=3", MARKDOWN * 2),
        ("reasoning?n=1", "0 "),
        ("empty", ""),
        ("half_utf8?n=2", (WIDE + " ") * 2),
        ("odd_frames", "crlf nospace two joined split multiline fields"),
        ("close_delimited?n=2", "0 1 "),
        ("content_length?n=2", "0 1 "),
        ("late_terminator?n=2", "0 1 "),
        ("stall?n=1&rest=1&seconds=0", "0 1 "),
        ("no_done?n=2", "0 1 "),
        ("done_only?n=2", "0 1 "),
        ("no_finish?n=2", "0 1 "),
        ("no_usage_option?n=2", "0 1 "),
    ],
)
def test_text_that_arrives(connect: Connect, model: str, expected: str) -> None:
    assert stream_text(connect(), model) == expected


def test_a_test_can_give_the_text(fake: FakeOpenAI, connect: Connect) -> None:
    fake.texts["mine"] = "some 中文 text\n\nand more"
    assert stream_text(connect(), "text?key=mine&piece=2") == fake.texts["mine"]


def test_a_message_can_choose_the_scenario(fake: FakeOpenAI, connect: Connect) -> None:
    assert stream_text(connect(), "400", "/fake count?n=2") == "0 1 "
    assert stream_text(connect(), "400", "/fake echo?gap_ms=1 as I say") == "as I say"
    assert [(r.scenario, r.args) for r in fake.requests] == [
        ("count", {"n": "2"}),
        ("echo", {"gap_ms": "1"}),
    ]


def test_half_utf8_ends_its_sends_inside_a_character(fake: FakeOpenAI) -> None:
    """Every chunk but the last of an event cannot be decoded on its own."""
    with raw(fake, "half_utf8") as sock:
        data = read_until(sock, b"\r\n0\r\n\r\n")
    sizes_and_parts = data.partition(b"\r\n\r\n")[2].split(b"\r\n")
    broken = [part for part in sizes_and_parts[1::2] if part and part[-1] >= 0xC2]
    assert len(broken) == sum(character > "\x7f" for character in WIDE)


def test_odd_fields_stand_around_events_in_order(fake: FakeOpenAI) -> None:
    with raw(fake, "odd_fields?n=1") as sock:
        data = read_until(sock, b"\r\n0\r\n\r\n")
    parts = data.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
    assert parts[1:3] == [b"retry: 1000\n\n", b"id: 7\n"]
    assert parts[3].startswith(b"data: {")
    assert parts[4] == b"\n: comment\n\n"


@pytest.mark.parametrize("status", list(STATUS_ERRORS))
def test_status_errors(connect: Connect, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(connect(), f"{status}?retry_after=7", stream=True)
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "7"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"] == STATUS_ERRORS[status]["message"]


@pytest.mark.parametrize("style", ["openai", "llamacpp", "vllm"])
def test_too_long_a_context(connect: Connect, style: str) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(connect(), f"context?style={style}", stream=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no_such_model", "does not exist"),
        ("count?m=3", "no such argument: m"),
        ("count?n=many", "invalid literal"),
        ("text?key=none", "has no 'none'"),
        ("silent_connect", "unaccepting"),
    ],
)
def test_what_cannot_be_asked_for(connect: Connect, model: str, message: str) -> None:
    with pytest.raises(openai.APIStatusError, match=message):
        ask(connect(), model, stream=True)


@pytest.mark.parametrize(
    ("model", "received", "reason"),
    [("drop", b"4 ", b""), ("reset", b"4 ", None), ("drop_headers", b"", b"")],
)
def test_broken_ends(fake: FakeOpenAI, model: str, received: bytes, reason: bytes | None) -> None:
    """A drop is an end of file without the last chunk, a reset is a reset."""
    with raw(fake, model) as sock:
        assert received in (data := read_until(sock, received or b"\x00"))
        if reason is None:
            with pytest.raises(ConnectionResetError):
                read_until(sock, b"never")
        else:
            assert b"0\r\n\r\n" not in data + read_until(sock, b"never")
    record = fake.wait_request()
    assert record.ended.wait(SOON)
    assert not record.finished.is_set()
    assert not record.closed.is_set()


def test_errors_in_the_stream(connect: Connect) -> None:
    with pytest.raises(openai.APIError, match="had an error"):
        stream_text(connect(), "error_in_stream")
    with pytest.raises(json.JSONDecodeError):
        stream_text(connect(), "garbage")
    with pytest.raises(UnicodeDecodeError):
        stream_text(connect(), "latin1_garbage")


def test_flaky_fails_as_often_as_told(fake: FakeOpenAI, connect: Connect) -> None:
    client = connect()
    for status, error in [("503", openai.InternalServerError), ("drop", openai.APIConnectionError)]:
        model = f"flaky?times=2&status={status}&key={status}&n=1"
        for _ in range(2):
            with pytest.raises(error):
                stream_text(client, model)
        assert stream_text(client, model) == "0 "


def test_a_provider_without_stream_options(connect: Connect) -> None:
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        ask(connect(), "no_usage_option", stream=True, stream_options={"include_usage": True})


def test_a_connection_is_reused_and_its_number_tells(fake: FakeOpenAI, connect: Connect) -> None:
    client = connect()
    ask(client, "count")
    ask(client, "count")
    ask(connect(), "count")
    assert [record.connection for record in fake.requests] == [1, 1, 2]


def test_a_record_holds_what_was_asked(fake: FakeOpenAI, connect: Connect) -> None:
    before = time.monotonic()
    stream_text(connect(), "count?n=4")
    record = fake.wait_request()
    assert (record.method, record.path) == ("POST", "/v1/chat/completions")
    assert record.headers["authorization"] == "Bearer fake"
    assert record.body["messages"][0]["content"] == "Hello there, fake"
    assert record.finished.wait(SOON)
    assert record.ended.wait(SOON)
    assert record.tokens_sent == 4
    assert record.first_token_at
    assert before <= record.received_at <= record.first_token_at <= time.monotonic()
    assert record.closed_at is None


@pytest.mark.parametrize(
    "model",
    ["silent_headers", "silent_first_token", "stall", "late_terminator", "count?n=9&gap_ms=9999"],
)
@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_a_close_is_seen_during_silence(fake: FakeOpenAI, model: str, how: str) -> None:
    with raw(fake, model) as sock:
        record = fake.wait_request()
        if model != "silent_headers":
            read_until(sock, b"data: ")
        closing_at = time.monotonic()
        if how == "close":
            sock.close()
        else:
            sock.shutdown(socket.SHUT_RDWR)
        assert record.closed.wait(SOON)
        assert record.ended.wait(SOON)
    assert record.closed_at is not None
    assert closing_at <= record.closed_at < closing_at + PROMPTLY
    assert not record.finished.is_set()


@pytest.mark.parametrize("model", ["long?n=10000000", "endless_line", "count?n=100000&gap_ms=1"])
def test_a_close_is_seen_while_tokens_flow(fake: FakeOpenAI, model: str) -> None:
    """Also by an answer that waits for room in the socket's buffer."""
    with raw(fake, model) as sock:
        read_until(sock, b'"content"')
        sock.shutdown(socket.SHUT_WR)
        assert fake.wait_request().closed.wait(SOON)


@pytest.mark.parametrize(
    "model", ["silent_headers?n=2", "silent_first_token?n=2", "stall?n=1&rest=1"]
)
def test_a_silent_answer_goes_on_when_released(fake: FakeOpenAI, model: str) -> None:
    with raw(fake, model) as sock:
        fake.wait_request().release()
        assert b"[DONE]" in read_until(sock, b"\r\n0\r\n\r\n")
    assert fake.wait_request().tokens_sent == 2


@pytest.mark.parametrize("hold", [0, 2, 3, 9])
@pytest.mark.parametrize("pace", ["gap_ms=1", "burst=2"])
def test_hold_keeps_rest_of_answer_until_release(fake: FakeOpenAI, hold: int, pace: str) -> None:
    """No more than `hold` tokens and no end are sent before the release, and all of them after it."""
    with raw(fake, f"count?n=3&hold={hold}&{pace}") as sock:
        record = fake.wait_request()
        before = min(hold, 3)
        if "burst" in pace and before < 3:
            before -= before % 2  # a burst is sent whole
        assert record.wait_tokens(before, SOON) == before
        assert not record.finished.wait(0.05)
        assert record.tokens_sent == before
        record.release()
        assert b"[DONE]" in read_until(sock, b"\r\n0\r\n\r\n")
    assert record.tokens_sent == 3


def test_tokens_can_be_waited_for(fake: FakeOpenAI) -> None:
    with raw(fake, "stall?n=3"):
        record = fake.wait_request(lambda r: r.scenario == "stall")
        assert record.wait_tokens(3, SOON) == 3
        with pytest.raises(TimeoutError, match="4 tokens not sent"):
            record.wait_tokens(4, 0.01)
    with pytest.raises(TimeoutError, match="no such request"):
        fake.wait_request(1, 0.01)


@pytest.mark.parametrize("pace", ["gap_ms=10", "rate=100", "gap_ms=10&burst=5"])
def test_the_pace_does_not_drift(connect: Connect, pace: str) -> None:
    start = time.monotonic()
    stream_text(connect(), f"count?n=41&first_ms=50&{pace}")
    assert 0.45 <= time.monotonic() - start < 0.45 + PROMPTLY


def test_an_address_that_accepts_nobody() -> None:
    with FakeOpenAI.unaccepting() as base_url:
        port = int(base_url.removesuffix("/v1").rpartition(":")[2])
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.2)


def test_tls() -> None:
    """Streams arrive, and a close is seen, through TLS as well."""
    with FakeOpenAI(tls=True) as fake:
        trust = ssl.create_default_context(cafile=fake.ca_pem_path)
        assert fake.base_url.startswith("https://")
        with (
            openai.DefaultHttpxClient(verify=trust) as http,
            openai.OpenAI(base_url=fake.base_url, api_key="fake", http_client=http) as client,
        ):
            assert stream_text(client, "count?n=2") == "0 1 "
            assert stream_text(client, "close_delimited?n=2") == "0 1 "
        with trust.wrap_socket(
            socket.create_connection((fake.host, fake.port)), server_hostname=fake.host
        ) as sock:
            sock.sendall(request_bytes("stall"))
            record = fake.wait_request(2)
            record.wait_tokens(5)
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
            assert record.closed.wait(SOON)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", scenarios())
def test_every_scenario_ends_when_the_server_closes(name: str, stream: bool) -> None:
    """It answers, or is silent on purpose; closing ends its threads, and is no client's close."""
    before = set(threading.enumerate())
    with FakeOpenAI() as fake, raw(fake, name, stream=stream) as sock:
        record = fake.wait_request()
        if name not in SILENT | (set() if stream else SILENT_WHEN_WHOLE):
            assert sock.recv(8) == b"HTTP/1.1"
        fake.close()
        assert record.ended.is_set()
        assert not record.closed.is_set()
        assert fake.open_connections == 0
    assert set(threading.enumerate()) <= before


def test_it_runs_as_a_program() -> None:
    """Its log can be read and its silence be ended from another process."""
    program = [sys.executable, "-m", "halt.testing.fake_openai", "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().split()[3].strip(",")
            root = base_url.removesuffix("/v1")
            with openai.OpenAI(base_url=base_url, api_key="fake", max_retries=0) as client:
                stream = iter(ask(client, "any-model", "/fake stall?n=1", stream=True))
                assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "0 "]
                assert call(f"{root}/_release", "POST") == {"released": 1}
                assert len(list(stream)) == 6
            (entry,) = call(f"{root}/_log")
            assert (entry["scenario"], entry["tokens_sent"]) == ("stall", 6)
            assert "authorization" not in entry["headers"]
            call(f"{root}/_clear", "POST")
            assert call(f"{root}/_log") == []
        finally:
            process.terminate()
    assert process.returncode == 0


def call(url: str, method: str = "GET") -> Any:
    with urlopen(Request(url, method=method), timeout=SOON) as response:
        return json.load(response)


def test_a_record_shows_its_state(fake: FakeOpenAI, connect: Connect) -> None:
    stream_text(connect(), "count?n=1")
    record: Record = fake.wait_request()
    record.ended.wait(SOON)
    shown = "<Record POST /v1/chat/completions count: 1 tokens, finished, ended>"
    assert repr(record) == shown
