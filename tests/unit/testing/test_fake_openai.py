"""The fake upstream: what it sends, what it records, and that it always ends."""

import base64
import json
import re
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
from halt.testing.scenarios import MARKDOWN, NO_IMAGES, STATUS_ERRORS, WIDE
from halt.testing.wire import Peer
from tests.support.files import image
from tests.support.waiting import wait_until

SOON = 30.0  # seconds after which a wait has failed; a loaded machine may take most of it

# Scenarios that send no byte: in either form, and as a whole answer alone.
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
    """Makes clients of the fake; closes them at the end of the test."""
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


def ask(
    client: openai.OpenAI, model: str, prompt: str = "Hello there, fake", **options: Any
) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model=model, messages=messages, **options)


def stream_text(client: openai.OpenAI, model: str, prompt: str = "Hello there, fake") -> str:
    with ask(client, model, prompt, stream=True) as stream:
        return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def request_bytes(model: str, *, stream: bool = True) -> bytes:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "a b"}]}
    content = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


def raw(fake: FakeOpenAI, model: str, *, stream: bool = True) -> socket.socket:
    """A connection on which the request was sent."""
    sock = socket.create_connection((fake.host, fake.port), timeout=SOON)
    sock.sendall(request_bytes(model, stream=stream))
    return sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data and (part := sock.recv(65536)):
        data += part
    return data


def test_model_list_has_every_scenario_and_echo_first(connect: Connect) -> None:
    """The models are the scenarios, `echo` the first."""
    assert [model.id for model in connect().models.list()] == list(scenarios())
    assert next(iter(scenarios())) == "echo"


def test_list_of_scenarios_has_whole_defaults() -> None:
    """The list has each default as it must be written."""
    descriptions = scenarios()
    assert 'args={"expression":"6*7"}' in " ".join(descriptions.values())
    assert "Sorry about that!, kind=server_error" in descriptions["error_in_stream"]


def test_stream_has_openais_chunks(fake: FakeOpenAI, connect: Connect) -> None:
    """A stream has a role, text, finish reason and usage in chunks of one ID."""
    chunks = list(ask(connect(), "count?n=3", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:]] == ["0 ", "1 ", "2 ", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({(c.id, c.object, c.created, c.model) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"


def test_usage_is_sent_only_on_request(connect: Connect) -> None:
    """Without `include_usage` no chunk has usage."""
    assert all("usage" not in c.model_fields_set for c in ask(connect(), "count", stream=True))


def test_whole_answer_has_text_reason_and_usage(connect: Connect) -> None:
    """A request without `stream` gets the scenario's text, finish reason and usage."""
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
def test_scenario_streams_its_text(connect: Connect, model: str, expected: str) -> None:
    """Each scenario streams the text that it describes."""
    assert stream_text(connect(), model) == expected


def test_text_scenario_streams_the_given_text(fake: FakeOpenAI, connect: Connect) -> None:
    """The `text` scenario streams what the test has put into `texts`."""
    fake.texts["mine"] = "some 中文 text\n\nand more"
    assert stream_text(connect(), "text?key=mine&piece=2") == fake.texts["mine"]


def test_fake_command_in_a_message_selects_the_scenario(fake: FakeOpenAI, connect: Connect) -> None:
    """A message `/fake SCENARIO` selects the scenario whatever the model is."""
    assert stream_text(connect(), "400", "/fake count?n=2") == "0 1 "
    assert stream_text(connect(), "400", "/fake echo?gap_ms=1 as I say") == "as I say"
    assert [(r.scenario, r.args) for r in fake.requests] == [
        ("count", {"n": "2"}),
        ("echo", {"gap_ms": "1"}),
    ]


def test_half_utf8_splits_its_sends_inside_characters(fake: FakeOpenAI) -> None:
    """Every piece but the last of an event ends inside a character."""
    with raw(fake, "half_utf8") as sock:
        data = read_until(sock, b"\r\n0\r\n\r\n")
    sizes_and_parts = data.partition(b"\r\n\r\n")[2].split(b"\r\n")
    split_parts = [part for part in sizes_and_parts[1::2] if part and part[-1] >= 0xC2]
    assert len(split_parts) == sum(character > "\x7f" for character in WIDE)


def test_odd_fields_stand_around_the_events_in_order(fake: FakeOpenAI) -> None:
    """`retry`, `id` and comments stand around the events, in order."""
    with raw(fake, "odd_fields?n=1") as sock:
        data = read_until(sock, b"\r\n0\r\n\r\n")
    parts = data.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
    assert parts[1:3] == [b"retry: 1000\n\n", b"id: 7\n"]
    assert parts[3].startswith(b"data: {")
    assert parts[4] == b"\n: comment\n\n"


@pytest.mark.parametrize("status", list(STATUS_ERRORS))
def test_status_scenario_returns_its_error_and_retry_after(connect: Connect, status: int) -> None:
    """A status scenario returns that status, its error body and Retry-After."""
    with pytest.raises(openai.APIStatusError) as error_info:
        ask(connect(), f"{status}?retry_after=7", stream=True)
    assert error_info.value.status_code == status
    assert error_info.value.response.headers["retry-after"] == "7"
    assert isinstance(error_info.value.body, dict)
    assert error_info.value.body["message"] == STATUS_ERRORS[status]["message"]


@pytest.mark.parametrize("style", ["openai", "llamacpp", "vllm"])
def test_context_scenario_returns_a_bad_request(connect: Connect, style: str) -> None:
    """Each style of the `context` scenario is a 400 that names the context."""
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
def test_unknown_model_or_argument_is_refused_with_its_reason(
    connect: Connect, model: str, message: str
) -> None:
    """An unknown model, argument or value is refused with its reason."""
    with pytest.raises(openai.APIStatusError, match=message):
        ask(connect(), model, stream=True)


@pytest.mark.parametrize(
    ("model", "expected_bytes", "reason"),
    [("drop", b"4 ", b""), ("reset", b"4 ", None), ("drop_headers", b"", b"")],
)
def test_drop_ends_without_the_last_chunk_and_reset_resets(
    fake: FakeOpenAI, model: str, expected_bytes: bytes, reason: bytes | None
) -> None:
    """A drop is an end of file without the last chunk, a reset is a reset."""
    with raw(fake, model) as sock:
        assert expected_bytes in (data := read_until(sock, expected_bytes or b"\x00"))
        if reason is None:
            with pytest.raises(ConnectionResetError):
                read_until(sock, b"never")
        else:
            assert b"0\r\n\r\n" not in data + read_until(sock, b"never")
    record = fake.wait_request()
    assert record.ended.wait(SOON)
    assert not record.finished.is_set()
    assert not record.closed.is_set()


def test_error_scenarios_fail_in_the_client(connect: Connect) -> None:
    """An error event, invalid JSON and invalid UTF-8 fail in the client."""
    with pytest.raises(openai.APIError, match="had an error"):
        stream_text(connect(), "error_in_stream")
    with pytest.raises(json.JSONDecodeError):
        stream_text(connect(), "garbage")
    with pytest.raises(UnicodeDecodeError):
        stream_text(connect(), "latin1_garbage")


def test_flaky_fails_the_given_number_of_times(fake: FakeOpenAI, connect: Connect) -> None:
    """The `flaky` scenario fails `times` times, then answers."""
    client = connect()
    for status, error in [("503", openai.InternalServerError), ("drop", openai.APIConnectionError)]:
        model = f"flaky?times=2&status={status}&key={status}&n=1"
        for _ in range(2):
            with pytest.raises(error):
                stream_text(client, model)
        assert stream_text(client, model) == "0 "


def test_no_usage_option_refuses_stream_options(connect: Connect) -> None:
    """The `no_usage_option` scenario refuses `stream_options`."""
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        ask(connect(), "no_usage_option", stream=True, stream_options={"include_usage": True})


def test_record_has_the_number_of_its_connection(fake: FakeOpenAI, connect: Connect) -> None:
    """Requests on a reused connection have the same connection number."""
    client = connect()
    ask(client, "count")
    ask(client, "count")
    ask(connect(), "count")
    assert [record.connection for record in fake.requests] == [1, 1, 2]


def test_record_has_the_request_and_its_progress(fake: FakeOpenAI, connect: Connect) -> None:
    """A record has the request's line, headers and body, its tokens and its times."""
    start = time.monotonic()
    stream_text(connect(), "count?n=4")
    record = fake.wait_request()
    assert (record.method, record.path) == ("POST", "/v1/chat/completions")
    assert record.headers["authorization"] == "Bearer fake"
    assert record.body["messages"][0]["content"] == "Hello there, fake"
    assert record.finished.wait(SOON)
    assert record.ended.wait(SOON)
    assert record.tokens_sent == 4
    assert record.first_token_at
    assert start <= record.received_at <= record.first_token_at <= time.monotonic()
    assert record.closed_at is None


@pytest.mark.parametrize(
    "model",
    ["silent_headers", "silent_first_token", "stall", "late_terminator", "count?n=9&gap_ms=1e6"],
)
@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_close_is_recorded_during_silence(fake: FakeOpenAI, model: str, end: str) -> None:
    """A client's close is recorded while the scenario is silent, not at its next write."""
    with raw(fake, model) as sock:
        record = fake.wait_request()
        if model != "silent_headers":
            read_until(sock, b"data: ")
        closing_at = time.monotonic()
        if end == "close":
            sock.close()
        else:
            sock.shutdown(socket.SHUT_RDWR)
        assert record.closed.wait(SOON)
        assert record.ended.wait(SOON)
    assert record.closed_at is not None
    assert closing_at <= record.closed_at
    assert not record.finished.is_set()


@pytest.mark.parametrize("model", ["long?n=10000000", "endless_line", "count?n=100000&gap_ms=1"])
def test_close_is_recorded_while_tokens_flow(fake: FakeOpenAI, model: str) -> None:
    """A client's close is recorded also while a send waits for room in the socket's buffer."""
    with raw(fake, model) as sock:
        read_until(sock, b'"content"')
        sock.shutdown(socket.SHUT_WR)
        assert fake.wait_request().closed.wait(SOON)


@pytest.mark.parametrize(
    "model", ["silent_headers?n=2", "silent_first_token?n=2", "stall?n=1&rest=1"]
)
def test_release_continues_a_silent_answer(fake: FakeOpenAI, model: str) -> None:
    """A silent scenario continues when it is released."""
    with raw(fake, model) as sock:
        fake.wait_request().release()
        assert b"[DONE]" in read_until(sock, b"\r\n0\r\n\r\n")
    assert fake.wait_request().tokens_sent == 2


@pytest.mark.parametrize("held_after", [0, 2, 3, 9])
@pytest.mark.parametrize("pace", ["gap_ms=1", "burst=2"])
def test_hold_keeps_the_rest_of_the_answer_until_release(
    fake: FakeOpenAI, held_after: int, pace: str
) -> None:
    """At most `hold` tokens and no end are sent before the release, all of them after it."""
    with raw(fake, f"count?n=3&hold={held_after}&{pace}") as sock:
        record = fake.wait_request()
        tokens_before = min(held_after, 3)
        if "burst" in pace and tokens_before < 3:
            tokens_before -= tokens_before % 2  # a burst is sent whole
        assert record.wait_tokens(tokens_before, SOON) == tokens_before
        assert not record.finished.wait(0.05)
        assert record.tokens_sent == tokens_before
        record.release()
        assert b"[DONE]" in read_until(sock, b"\r\n0\r\n\r\n")
    assert record.tokens_sent == 3


def test_wait_tokens_and_wait_request_time_out(fake: FakeOpenAI) -> None:
    """`wait_tokens` returns the count or times out; so does `wait_request`."""
    with raw(fake, "stall?n=3"):
        record = fake.wait_request(lambda r: r.scenario == "stall")
        assert record.wait_tokens(3, SOON) == 3
        with pytest.raises(TimeoutError, match="4 tokens not sent"):
            record.wait_tokens(4, 0.01)
    with pytest.raises(TimeoutError, match="no such request"):
        fake.wait_request(1, 0.01)


@pytest.mark.parametrize("pace", ["gap_ms=10", "rate=100", "gap_ms=10&burst=5"])
def test_paced_tokens_keep_to_their_schedule(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, pace: str
) -> None:
    """Each token is due at a time that delays of earlier tokens do not shift."""
    due_times: list[float] = []
    original_wait = Peer.wait

    def late_wait(peer: Peer, wait_until: float, *ready: Callable[[], bool]) -> None:
        due_times.append(wait_until)
        original_wait(peer, wait_until + 0.002, *ready)

    monkeypatch.setattr(Peer, "wait", late_wait)
    start = time.monotonic()
    stream_text(connect(), f"count?n=41&first_ms=50&{pace}")
    assert time.monotonic() - start >= 0.45
    step = 0.05 if "burst" in pace else 0.01
    assert [due - due_times[0] for due in due_times] == pytest.approx(
        [index * step for index in range(len(due_times))]
    )
    assert due_times[0] >= start + 0.05
    assert due_times[-1] - due_times[0] == pytest.approx(0.4)


def test_unaccepting_address_times_out() -> None:
    """A connection to the unaccepting address times out."""
    with FakeOpenAI.unaccepting() as base_url:
        port = int(base_url.removesuffix("/v1").rpartition(":")[2])
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.2)


def test_tls_streams_and_records_a_close() -> None:
    """Streams arrive, and a close is recorded, through TLS as well."""
    with FakeOpenAI(tls=True) as fake:
        tls_context = ssl.create_default_context(cafile=fake.ca_pem_path)
        assert fake.base_url.startswith("https://")
        with (
            openai.DefaultHttpxClient(verify=tls_context) as http,
            openai.OpenAI(base_url=fake.base_url, api_key="fake", http_client=http) as client,
        ):
            assert stream_text(client, "count?n=2") == "0 1 "
            assert stream_text(client, "close_delimited?n=2") == "0 1 "
        with tls_context.wrap_socket(
            socket.create_connection((fake.host, fake.port)), server_hostname=fake.host
        ) as sock:
            sock.sendall(request_bytes("stall"))
            record = fake.wait_request(2)
            record.wait_tokens(5)
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
            assert record.closed.wait(SOON)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", scenarios())
def test_closing_the_server_ends_every_scenario(name: str, stream: bool) -> None:
    """Each scenario answers, or is silent on purpose; closing ends its threads.

    The server's own close is not recorded as a client's.
    """
    threads_before = set(threading.enumerate())
    with FakeOpenAI() as fake, raw(fake, name, stream=stream) as sock:
        record = fake.wait_request()
        if name not in SILENT | (set() if stream else SILENT_WHEN_WHOLE):
            assert sock.recv(8) == b"HTTP/1.1"
        fake.close()
        assert record.ended.is_set()
        assert not record.closed.is_set()
        assert fake.open_connections == 0
    wait_until(lambda: set(threading.enumerate()) <= threads_before)


def test_program_serves_its_log_and_release_over_http() -> None:
    """As a program the fake serves its log, a release and a clear over HTTP."""
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


def parts(*more: dict[str, Any]) -> Any:
    """A message with an image of 40 x 30 pixels, these parts, and a text."""
    url = "data:image/png;base64," + base64.b64encode(image(40, 30)).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, *more, {"type": "text", "text": "Look."}]}]


PDF = {
    "type": "file",
    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
}


def test_vision_tells_what_it_got(connect: Connect) -> None:
    """The answer has the images with their pixels, the files, and the prompt."""
    create = connect().chat.completions.create
    answer = create(model="vision", messages=parts(PDF)).choices[0].message.content
    assert answer == "1 image: image/png 40x30. 1 file: application/pdf a.pdf 5 bytes. Look."
    assert stream_text(connect(), "vision", "Look.") == "No images. Look."


@pytest.mark.parametrize(("style", "error"), NO_IMAGES.items())
def test_no_images_refuses_as_a_server_does(
    connect: Connect, style: str, error: tuple[int, str]
) -> None:
    """It refuses with the words of a server, and answers without an image."""
    status, words = error
    with pytest.raises(openai.APIStatusError, match=re.escape(words)) as refusal:
        connect().chat.completions.create(model=f"no_images?style={style}", messages=parts())
    assert refusal.value.status_code == status
    assert stream_text(connect(), f"no_images?style={style}", "Hm") == "No images. Hm"


def test_no_files_refuses_a_file_alone(connect: Connect) -> None:
    """It reads the same message without the file."""
    create = connect().chat.completions.create
    with pytest.raises(openai.BadRequestError, match="Invalid value: 'file'"):
        create(model="no_files", messages=parts(PDF))
    answer = create(model="no_files", messages=parts()).choices[0].message.content
    assert answer == "1 image: image/png 40x30. Look."


def test_record_repr_shows_its_state(fake: FakeOpenAI, connect: Connect) -> None:
    """A record's repr shows scenario, tokens and state."""
    stream_text(connect(), "count?n=1")
    record: Record = fake.wait_request()
    assert record.ended.wait(SOON)
    assert repr(record) == "<Record POST /v1/chat/completions count: 1 tokens, finished, ended>"
