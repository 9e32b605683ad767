"""Limits of runs and servers: streams, readers, times and sizes; and every fault of a provider."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest

from halt.errors import CODES, OVERLOADED
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import WIDE
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, StartHalt, new_id, request_record
from tests.support.http_client import Client, EventStream
from tests.support.page_requests import STREAM_HEADERS
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def numbers(n: int) -> str:
    """The text of the model `count`."""
    return "".join(f"{i} " for i in range(n))


# --- places ---------------------------------------------------------------------------------------


def test_stream_beyond_the_limit_gets_503_and_stop_works(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A stream beyond the limit gets 503 with Retry-After, also with 300 idle connections; an ended
    stream makes room.

    If idle connections held threads, for 5 s each as in gunicorn's own threaded worker, the requests
    would fail: they would wait longer than the client's READ_TIMEOUT.
    """
    server = start_halt(fake, HALT_MAX_STREAMS=5)
    client = server.client()
    with ExitStack() as stack:
        streams: list[EventStream] = []
        for _ in range(5):
            events = stack.enter_context(client.chat("stall?n=1")).until_text("0 ")
            streams.append(events)
        for _ in range(300):
            stack.enter_context(socket.create_connection((server.host, server.port), timeout=10))
        for _ in range(3):
            refused = client.post(
                "/chat/stream", {"messages": [{"role": "user", "content": "one more"}]}
            )
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.error["code"] == "at_capacity"
            assert refused.error["retryable"] is True
        assert len(fake.requests) == 5, "a request without a place reached the provider"
        assert client.get("/healthz").json["open_streams"] == 5
        assert server.client().get("/").status == 200
        assert client.stop(streams[0].id).json["upstream"] == "closed"
        assert streams[0].to_end().terminal["type"] == "cancelled"
        assert client.chat("count?n=3").to_end().text == numbers(3)
        for events in streams[1:]:
            assert client.stop(events.id).json["status"] == "stopped"
            events.to_end()


def test_readers_beyond_the_limit_are_refused_and_stop_works(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Readers without a place get an error, and Stop answers."""
    client = start_halt(fake, HALT_MAX_STREAMS=3).client()
    with ExitStack() as stack:
        events = stack.enter_context(client.chat("stall?n=1")).until_text("0 ")
        readers = [stack.enter_context(client.follow(events.id)) for _ in range(40)]
        statuses = [reader.status for reader in readers]
        assert statuses.count(200) == 2
        assert statuses.count(503) == 38
        assert client.stop(events.id).json["upstream"] == "closed"
        events.to_end()


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"P", id="one byte"),
        pytest.param(b"POST /stop/01234567 HTTP/1.1\r\nHost: localhost\r\n", id="half a head"),
        pytest.param(b"POST /stop HTTP/1.1\r\nContent-Length: 20\r\n\r\nhalf", id="half a body"),
    ],
)
def test_incomplete_requests_take_no_thread_from_stop(
    start_halt: StartHalt, fake: FakeOpenAI, part: bytes
) -> None:
    """Many connections that send a part of a request do not delay a Stop."""
    server = start_halt(fake, HALT_MAX_STREAMS=1)
    client = server.client()
    with ExitStack() as stack:
        events = stack.enter_context(client.chat("stall?n=1")).until_text("0 ")
        for _ in range(50):
            slow = stack.enter_context(
                socket.create_connection((server.host, server.port), timeout=10)
            )
            slow.sendall(part)
        assert client.stop(events.id).json["upstream"] == "closed"
        events.to_end()


# --- viewers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_grace_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server that ends a run half a second after its last viewer has left."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer({**env, "HALT_ORPHAN_GRACE": "0.5", "HALT_MAX_STREAMS": "20"})
    yield server
    server.close()


def test_clients_that_do_not_close_delay_no_request(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Clients that never close their end do not delay other requests, two seconds each."""
    client = start_halt(fake).client(Connection="close")
    body = {"messages": [{"role": "user", "content": "x"}], "model": "silent_first_token"}
    with ExitStack() as stack:
        streams = []
        for _ in range(30):
            connection = client.connect()
            stack.enter_context(connection.sock.dup())  # open until the test is over
            client.send(connection, "POST", "/chat/stream", body)
            streams.append(stack.enter_context(EventStream(connection)))
        wait_until(lambda: len(fake.requests) == len(streams), SERVER_TIMEOUT)
        fake.release()
        for events in streams:
            events.to_end()
        assert client.get("/healthz").status == 200  # one by one, it would be answered after 60 s


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token", "stall?n=3"])
def test_run_without_viewers_is_cancelled_in_silence(
    short_grace_server: HaltServer, shared_fake: FakeOpenAI, model: str
) -> None:
    """A silent run whose viewer has left is cancelled after the grace."""
    client = short_grace_server.client()
    prompt = new_id()
    with client.chat(model, prompt) as events:
        if model.startswith("stall"):
            events.until_text("2 ")
        record = request_record(shared_fake, prompt)
    assert record.closed.wait(RECORD_TIMEOUT)
    cancelled = client.follow(events.id).to_end().terminal
    assert (cancelled["type"], cancelled["reason"]) == ("cancelled", "no_viewer")


def test_run_without_viewers_is_cancelled_while_flowing(
    short_grace_server: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A run without viewers is cancelled also while the model writes."""
    client = short_grace_server.client()
    prompt = new_id()
    with client.chat("count?n=100000&gap_ms=5", prompt) as events:
        events.until_text("5 ")
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)
    assert client.follow(events.id).to_end().terminal["reason"] == "no_viewer"


def test_viewer_back_within_the_grace_keeps_the_run(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Leaving and returning several times loses no event and ends no run."""
    client = halt.client()
    prompt = new_id()
    # Without an ID of the client the run would end with its reader.
    events = client.chat("count?n=400&gap_ms=5", prompt, id=new_id())
    text = ""
    for goal in ("60 ", "120 ", "180 ", "240 "):
        events.until_text(goal)
        text += events.text
        events.close()
        events = client.follow(events.id, after=int(events.seen[-1].id))
    text += events.to_end().text
    assert text == numbers(400)
    assert events.terminal["type"] == "done"
    wait_until(request_record(shared_fake, prompt).finished.is_set, SERVER_TIMEOUT)


def test_reader_that_does_not_read_delays_no_other(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A reader that does not read delays its own response alone: the run continues, another reader
    gets everything.
    """
    client = halt.client()
    prompt = new_id()
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "model": "long?n=200000"}
    with client.stream("POST", "/chat/stream", body, receive_buffer=2048) as unread:
        with client.follow(unread.id) as reader:
            assert reader.to_end().text == numbers(200_000)
            assert reader.terminal["type"] == "done"
        assert request_record(shared_fake, prompt).finished.wait(RECORD_TIMEOUT)
        assert client.get("/healthz").json["status"] == "ok"
        assert unread.to_end().text == numbers(200_000)  # a late reader still gets all of it


# --- limits ---------------------------------------------------------------------------------------


#: A small value of each limit on a run. A server has one of them, so that no other is reached first.
RUN_LIMITS = {
    "first byte": {"HALT_FIRST_BYTE_TIMEOUT": "2"},
    "gap": {"HALT_GAP_TIMEOUT": "2"},
    "run": {"HALT_RUN_TIMEOUT": "2"},
    "length": {"HALT_MAX_ANSWER_CHARS": "2000"},
}


@pytest.fixture(scope="module")
def limited_server(shared_fake: FakeOpenAI) -> Iterator[Callable[[str], HaltServer]]:
    """A server for each of RUN_LIMITS, started when a test needs it."""
    servers: dict[str, HaltServer] = {}
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", "HALT_RETRIES": "0"}

    def server_with(limit: str) -> HaltServer:
        if limit not in servers:
            servers[limit] = HaltServer({**env, **RUN_LIMITS[limit]})
        return servers[limit]

    yield server_with
    for server in servers.values():
        server.close()


@pytest.fixture(scope="module")
def strict_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with small limits on requests."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_MAX_PROMPT_CHARS": "1000",
            "HALT_MAX_MESSAGES": "4",
            "HALT_MAX_BODY_BYTES": "8192",
            "HALT_RETRIES": "0",
        }
    )
    yield server
    server.close()


@pytest.mark.parametrize(
    ("limit", "model", "code", "text"),
    [
        ("first byte", "silent_headers", "first_byte_timeout", ""),
        ("first byte", "silent_first_token", "first_byte_timeout", ""),
        ("run", "reasoning?thoughts=100000&gap_ms=80", "run_too_long", ""),
        ("gap", "stall?n=7", "stalled", numbers(7)),
        ("run", "count?n=100000&gap_ms=100", "run_too_long", None),
        ("length", "count?n=100000&gap_ms=1", "answer_too_long", None),
        ("length", "long?n=10000000", "answer_too_long", None),
    ],
)
def test_run_limit_ends_with_its_own_error(
    limited_server: Callable[[str], HaltServer],
    shared_fake: FakeOpenAI,
    limit: str,
    model: str,
    code: str,
    text: str | None,
) -> None:
    """A run at one of its limits ends with the error of that limit; the earlier text is kept."""
    client = limited_server(limit).client()
    prompt = new_id()
    events = client.chat(model, prompt).to_end()
    assert events.terminal["type"] == "error"
    assert events.terminal["error"]["code"] == code
    assert events.terminal["error"]["message"]
    if text is None:
        assert events.text
        assert numbers(len(events.text)).startswith(events.text)
    else:
        assert events.text == text
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


def test_reasoning_satisfies_the_first_byte_limit(
    limited_server: Callable[[str], HaltServer],
) -> None:
    """Reasoning that lasts longer than the first-byte limit does not end the run."""
    events = (
        limited_server("first byte").client().chat("reasoning?thoughts=70&gap_ms=40&n=5").to_end()
    )
    assert events.text == numbers(5)
    assert events.terminal["type"] == "done"


def test_request_over_a_limit_is_refused_by_field(strict_server: HaltServer) -> None:
    """Too many messages, too long a prompt and too large a body are refused with the field."""
    client = strict_server.client()
    message = {"role": "user", "content": "Hello"}
    refused = client.post("/chat/stream", {"messages": [message] * 5})
    assert (refused.status, refused.error["field"]) == (400, "messages")
    refused = client.post("/chat/stream", {"messages": [{"role": "user", "content": "x" * 1001}]})
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    refused = client.post("/chat/stream", {"messages": [{"role": "user", "content": "x" * 9000}]})
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    assert refused.error["field"] == "body"
    longest_messages = [{"role": "user", "content": "x" * 250}] * 4
    assert (
        client.post("/chat/stream", {"messages": longest_messages, "model": "count"}).status == 200
    )


def test_unaccepted_connection_ends_after_connect_timeout(
    start_halt: StartHalt,
) -> None:
    """A connection that the server does not accept ends after HALT_CONNECT_TIMEOUT with its own
    code.
    """
    with FakeOpenAI.unaccepting() as address:
        client = start_halt(address, HALT_CONNECT_TIMEOUT=0.3, HALT_RETRIES=0).client()
        error = client.chat("echo").to_end().terminal["error"]
    assert error["code"] == "upstream_connect_timeout"
    assert error["retryable"] is True


# --- faults of the provider -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault of the provider, and the error that the client gets."""

    model: str
    code: str
    retryable: bool
    text: str = ""


FIVE_NUMBERS = numbers(5)
FAULTS = [
    Fault("drop_headers", "upstream_dropped", True),
    Fault("drop?n=5&gap_ms=10", "upstream_dropped", True, FIVE_NUMBERS),
    Fault("drop?n=0", "upstream_dropped", True),
    Fault("reset?n=5&gap_ms=10", "upstream_dropped", True, FIVE_NUMBERS),
    Fault("no_finish?n=5", "upstream_incomplete", True, FIVE_NUMBERS),
    Fault("error_in_stream?n=5", "upstream_error", True, FIVE_NUMBERS),
    Fault("error_in_stream?n=0", "upstream_error", True),
    Fault(
        "error_in_stream?n=2&code=context_length_exceeded", "context_too_long", False, numbers(2)
    ),
    Fault("garbage?n=5", "upstream_invalid", True, FIVE_NUMBERS),
    Fault("html", "upstream_web_page", False),
    Fault("endless_line", "upstream_invalid", True),
    Fault("400", "bad_request", False),
    Fault("401", "unauthorized", False),
    Fault("403", "region_not_supported", False),
    Fault("404", "model_not_found", False),
    Fault("422", "bad_request", False),
    Fault("429", "rate_limited", True),
    Fault("500", "upstream_server_error", True),
    Fault("503", "upstream_server_error", True),
    Fault("context", "context_too_long", False),
    Fault("context?style=llamacpp", "context_too_long", False),
    Fault("context?style=vllm", "context_too_long", False),
]


@pytest.fixture(scope="module")
def no_retries_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server without retries."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer({**env, "HALT_RETRIES": "0"})
    yield server
    server.close()


def only_error(events: EventStream) -> dict[str, Any]:
    """Read to the end; check and return the error that ended the stream."""
    terminal = events.to_end().terminal
    assert terminal["type"] == "error"
    assert terminal["content"] == ""
    error = terminal["error"]
    assert isinstance(error, dict)
    assert error["message"].startswith((CODES[error["code"]][0], OVERLOADED))
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.model)
def test_upstream_fault_is_one_error_with_a_code(
    no_retries_server: HaltServer, fault: Fault
) -> None:
    """Each fault of the upstream is one error event with a documented code; the earlier text is
    kept.
    """
    events = no_retries_server.client().chat(fault.model)
    error = only_error(events)
    assert (error["code"], error["retryable"]) == (fault.code, fault.retryable)
    assert events.text == fault.text


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("no_done?n=5", FIVE_NUMBERS),
        ("done_only?n=5", FIVE_NUMBERS),
        ("late_terminator?n=5", FIVE_NUMBERS),
        ("close_delimited?n=5", FIVE_NUMBERS),
        ("content_length?n=5", FIVE_NUMBERS),
        ("half_utf8?n=2", f"{WIDE} " * 2),
        ("odd_frames", "crlf nospace two joined split multiline fields"),
        ("odd_fields?n=5", FIVE_NUMBERS),
        ("no_usage_option?n=5", FIVE_NUMBERS),
        ("length?n=5", FIVE_NUMBERS),
        ("empty", ""),
    ],
)
def test_unusual_but_complete_answer_is_no_error(
    no_retries_server: HaltServer, model: str, text: str
) -> None:
    """An unusual but complete answer arrives complete, to the last character."""
    events = no_retries_server.client().chat(model).to_end()
    assert events.terminal["type"] == "done"
    assert events.text == text
    if model.startswith("length"):
        assert events.terminal["finish_reason"] == "length"


def test_rate_limit_error_has_retry_after(no_retries_server: HaltServer) -> None:
    """A rate limit error has the provider's Retry-After."""
    error = only_error(no_retries_server.client().chat("429?retry_after=17"))
    assert (error["code"], error["retry_after"]) == ("rate_limited", 17)


def test_fault_before_the_first_token_is_retried(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A fault before the first token is retried twice by default."""
    client = halt.client()
    for status in ("503", "drop"):
        prompt = new_id()
        events = client.chat(f"flaky?times=1&status={status}&key={prompt}&n=4", prompt).to_end()
        assert events.text == numbers(4)
        assert events.terminal["type"] == "done"
        request_record(shared_fake, prompt, nth=1)


def test_fault_after_the_first_token_is_not_retried(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """After the first token no request is repeated."""
    prompt = new_id()
    events = halt.client().chat("drop?n=5", prompt)
    assert only_error(events)["code"] == "upstream_dropped"
    assert events.text == FIVE_NUMBERS
    assert len([r for r in shared_fake.requests if prompt in str(r.body)]) == 1


@pytest.mark.parametrize(
    ("address", "code", "retryable"),
    [
        ("http://127.0.0.1:9/v1", "upstream_refused", True),
        ("http://halt-test.invalid/v1", "upstream_dns", True),
    ],
)
def test_unreachable_provider_has_its_own_code(
    start_halt: StartHalt, address: str, code: str, retryable: bool
) -> None:
    """A refused connection and an unknown host name have different error codes."""
    error = only_error(start_halt(address, HALT_RETRIES=0).client().chat("echo"))
    assert (error["code"], error["retryable"]) == (code, retryable)


def test_link_local_address_is_refused_in_words(start_halt: StartHalt) -> None:
    """The API and the page say what the address resolves to, and which setting allows it."""
    words = (
        "2852039166 resolves to the link-local address 169.254.169.254, to which Halt does not "
        "connect. HALT_ALLOW_LINK_LOCAL=1 allows it."
    )
    client = start_halt("http://2852039166/v1", HALT_MODEL="echo").client()
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    answer = client.post("/v1/chat/completions", body)
    assert answer.status == 502
    assert answer.error["code"] == "address_refused"
    assert answer.error["message"].startswith(words)
    chat = f"/c/{new_id()}/messages"
    form = urlencode({"prompt": "hello", "id": new_id()}).encode()
    page = client.request("POST", chat, form, STREAM_HEADERS)
    assert words in unescape(page.body.decode())


def test_untrusted_certificate_is_refused(start_halt: StartHalt) -> None:
    """A server with an untrusted certificate gets neither key nor prompt."""
    with FakeOpenAI(tls=True) as fake:
        error = only_error(start_halt(fake, HALT_RETRIES=0).client().chat("echo"))
        assert fake.requests == []
    assert (error["code"], error["retryable"]) == ("upstream_tls", False)


def test_first_listed_model_is_the_default(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """Without HALT_MODEL the first model of /models is used; the list is requested once."""
    client: Client = start_halt(fake).client()
    for _ in range(2):
        body = {"messages": [{"role": "user", "content": "same again"}]}
        assert client.stream("POST", "/chat/stream", body).to_end().text == "same again"
    assert [r.path for r in fake.requests].count("/v1/models") == 1
    wait_until(lambda: all(r.finished.is_set() for r in fake.requests), SERVER_TIMEOUT)
