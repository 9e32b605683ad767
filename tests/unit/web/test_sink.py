"""Responses written by the relay: the same bytes as a thread writes, also for slow clients.

The first part uses one socket and its reader, the second a real gunicorn.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from halt.config.settings import Config
from halt.core import relay as relay_module
from halt.core.events import Event
from halt.core.relay import Departure, Timer
from halt.core.request import ChatRequest
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.testing.fake_openai import FakeOpenAI
from halt.web import sink
from halt.web.event_stream import EventStream, json_frames
from halt.web.sink import GROUP_CHARS, Sink
from tests.support.faulty_server import FaultyServer
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.scripted_upstream import HI, ScriptedReply, ScriptedUpstream
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, BackgroundCall, wait_until
from tests.support.watched_selector import start_watched

FRAME = "x" * 1000  # the text of one event
BIG = "Good morning! " * 600_000
LATE = 2_000  # events, more than the buffers of a client that does not read hold


class SinkHarness:
    """A service, and clients whose sockets its relay writes to."""

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream()
        config = Config(orphan_grace=1e9, max_answer_chars=10**9)
        self.generations = GenerationService(config, self.upstream, StopRegistry())
        self.selector = start_watched(self.generations.relay)
        self.generations.frame_thread.start()  # as a server does
        self._sockets: list[socket.socket] = []
        self.streams: list[EventStream] = []

    def start(self) -> tuple[Run, ScriptedReply]:
        number = len(self.upstream.opened)
        run = self.generations.start(ChatRequest(HI))
        return run, self.upstream.reply(number)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection with small buffers: the server's, the client's."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.settimeout(WAIT_TIMEOUT)
        self._sockets += [server, client]
        return server, client

    def serve(
        self, run: Run, present: Callable[[list[tuple[int, Event]]], bytes] = json_frames
    ) -> ServedClient:
        """Let the relay write a run's events to a new client."""
        server, client = self.connect()
        stream = EventStream(self.generations, run, server, 0, present)
        self.streams.append(stream)
        response = SimpleNamespace(sock=server, sent=0)
        sink_of_reader = Sink(stream, response)
        return ServedClient(
            sink_of_reader, client, response, stream, BackgroundCall(sink_of_reader.wait)
        )

    def close(self) -> None:
        self.generations.close()
        self.upstream.dispose()
        for stream in self.streams:
            stream.close()
        for sock in self._sockets:
            sock.close()


@dataclass
class ServedClient:
    """A client and its server side. `waiting_call` is the request's thread."""

    sink: Sink
    client: socket.socket
    response: Any
    stream: EventStream
    waiting_call: BackgroundCall


@pytest.fixture
def harness() -> Iterator[SinkHarness]:
    sink_harness = SinkHarness()
    yield sink_harness
    sink_harness.close()


def read_to_end(client: socket.socket) -> bytes:
    """The bytes up to the end of the last event."""
    raw = b""
    while not raw.endswith(b"data: [DONE]\n\n\r\n"):
        data = client.recv(65_536)
        assert data, f"the connection ends behind {raw[-100:]!r}"
        raw += data
    return raw


def chunks(raw: bytes) -> list[bytes]:
    """The chunks of a body; asserts that each is whole."""
    out = []
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        length = int(size, 16)
        out.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n", raw[:200]
        raw = rest[length + 2 :]
    return out


def text_of(body: bytes) -> str:
    contents = re.findall(rb'"content":"([^"]*)"', body)
    return b"".join(contents).decode()


# --- one socket -----------------------------------------------------------------------------------


def test_slow_reader_gets_its_last_frame_before_its_request_goes_on(harness: SinkHarness) -> None:
    """The request's thread goes on when the kernel has all bytes and the relay has left
    the socket.

    Bytes that the server writes afterwards follow them.
    """
    run, reply = harness.start()
    reader = harness.serve(run)
    reply.feed(*[FRAME] * LATE)
    reply.end()
    wait_until(lambda: run.log.ended is not None)
    assert reader.waiting_call.is_alive()
    assert harness.selector.watches(reader.response.sock)
    raw = read_to_end(reader.client)
    assert reader.waiting_call.end() is None
    assert reader.waiting_call.result is True
    assert not harness.selector.watches(reader.response.sock)
    reader.response.sock.sendall(b"0\r\n\r\n")
    assert reader.client.recv(100) == b"0\r\n\r\n"
    bodies = chunks(raw)
    assert all(body.endswith(b"\n\n") for body in bodies)
    assert bodies[-1].endswith(b"data: [DONE]\n\n")
    assert text_of(b"".join(bodies)) == FRAME * LATE
    assert reader.response.sent == sum(map(len, bodies))


def test_reader_that_takes_no_byte_is_dropped_and_can_resume(
    harness: SinkHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STUCK_MAX seconds the reader is dropped with one frame unsent, and the run goes on."""
    monkeypatch.setattr(sink, "STUCK_MAX", 0.5)
    run, reply = harness.start()
    reader = harness.serve(run)
    reply.feed(*[FRAME] * LATE)
    wait_until(lambda: run.log.last == LATE)
    assert reader.waiting_call.end() is None
    assert reader.waiting_call.result is False
    assert run.state == "running"
    raw = b""
    while data := reader.client.recv(65_536):
        raw += data
    assert reader.response.sent - len(raw) < 3 * GROUP_CHARS
    newest = max(map(int, re.findall(rb"^id: (\d+)$", raw, re.MULTILINE)))
    assert newest < LATE
    reply.end()
    wait_until(lambda: run.log.ended is not None)
    later_events = run.log.read(newest)
    assert [seq for seq, _ in later_events] == list(range(newest + 1, LATE + 2))


def test_slow_reader_sets_few_timers_of_the_relay(
    harness: SinkHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few timers are set, however often the network was full."""
    timers, set_timer = list[Timer](), harness.generations.relay.at

    def noting_at(time: float, work: Callable[[], None]) -> Timer:
        timers.append(set_timer(time, work))
        return timers[-1]

    monkeypatch.setattr(harness.generations.relay, "at", noting_at)
    run, reply = harness.start()
    reader = harness.serve(run)
    reply.feed(*[FRAME] * LATE, "the last")
    raw = b""
    while b"the last" not in raw[-1000:]:
        raw += reader.client.recv(4096)
    assert 0 < len(timers) < 20
    assert run.state == "running"


def test_pipelined_bytes_cause_no_relay_turns_and_a_close_is_noticed(
    harness: SinkHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes behind a request cause no turns of the relay and are left for the server; a close is
    noticed.
    """
    monkeypatch.setattr(sink, "PIPELINED_LOOK", 0.2)
    run, reply = harness.start()
    reader = harness.serve(run)
    reply.feed("a")
    turns_before = harness.selector.turns
    reader.client.sendall(b"GET / HTTP/1.1\r\n")
    wait_until(lambda: harness.selector.turns > turns_before)
    turns_before = harness.selector.turns
    threading.Event().wait(0.5)
    assert harness.selector.turns - turns_before < 20
    assert reader.response.sock.recv(100, socket.MSG_PEEK) == b"GET / HTTP/1.1\r\n"
    assert run.state == "running"
    reply.feed("b")
    raw = b""
    while b'"b"' not in raw:
        raw += reader.client.recv(65_536)
    reader.client.close()
    assert reader.waiting_call.end() is None
    assert reader.waiting_call.result is False


def test_pipelined_bytes_are_no_departure(
    harness: SinkHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes behind a request do not count as the departure of a reader that follows the
    log itself.
    """
    monkeypatch.setattr(relay_module, "PIPELINED_LOOK", 0.2)
    harness.start()
    server, client = harness.connect()
    has_left = threading.Event()
    turns_before = harness.selector.turns
    departure = Departure(harness.generations.relay, server, has_left.set)
    client.sendall(b"GET / HTTP/1.1\r\n")
    wait_until(lambda: harness.selector.turns > turns_before)
    turns_before = harness.selector.turns
    assert not has_left.wait(0.5)
    assert harness.selector.turns - turns_before < 20
    client.close()
    assert has_left.wait(WAIT_TIMEOUT)
    departure.cancel()


def test_exception_in_a_frame_drops_its_reader_alone(
    harness: SinkHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a frame is logged and drops its reader; the run and its other
    readers go on.
    """

    def raise_fault(events: list[tuple[int, Event]]) -> bytes:
        raise ZeroDivisionError("in a frame")

    run, reply = harness.start()
    failing_reader, working_reader = harness.serve(run, raise_fault), harness.serve(run)
    reply.feed("a")
    assert failing_reader.waiting_call.end() is None
    assert failing_reader.waiting_call.result is False
    reply.end()
    assert text_of(b"".join(chunks(read_to_end(working_reader.client)))) == "a"
    assert working_reader.waiting_call.end() is None
    assert working_reader.waiting_call.result is True
    wait_until(lambda: "ZeroDivisionError: in a frame" in caplog.text)


def test_reader_that_leaves_during_silence_is_noticed(harness: SinkHarness) -> None:
    """A closed connection ends its reader's request although no event is written."""
    run, _ = harness.start()
    reader = harness.serve(run)
    reader.client.close()
    assert reader.waiting_call.end() is None
    assert reader.waiting_call.result is False
    assert run.viewers() == []


def test_relay_close_ends_every_waiting_request(harness: SinkHarness) -> None:
    """Closing the relay ends the wait of every request."""
    run, _ = harness.start()
    readers = [harness.serve(run) for _ in range(3)]
    harness.generations.relay.close(WAIT_TIMEOUT)
    for reader in readers:
        assert reader.waiting_call.end() is None
        assert reader.waiting_call.result is False


# --- a real server --------------------------------------------------------------------------------


LOGGED = {"GUNICORN_CMD_ARGS": "--access-logfile - --access-logformat 'took %(B)s of %(r)s'"}


@pytest.fixture(scope="module")
def servers_by_writer(shared_fake: FakeOpenAI) -> Iterator[dict[str, HaltServer]]:
    """Two servers by HALT_RELAY_WRITES: the relay of the first, threads of the second write."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", **LOGGED}
    servers = {writes: HaltServer({**env, "HALT_RELAY_WRITES": writes}) for writes in ("1", "0")}
    yield servers
    for server in servers.values():
        server.close()


def request(path: str, body: Any = None, version: str = "1.1", **headers: str) -> bytes:
    """The bytes of a request; the body is sent as JSON, or as a form where it is bytes."""
    content = b"" if body is None else body
    kind = "application/x-www-form-urlencoded"
    if not isinstance(content, bytes):
        content, kind = json.dumps(body).encode(), "application/json"
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/{version}",
        "Host: 127.0.0.1",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        *([f"Content-Type: {kind}", f"Content-Length: {len(content)}"] if content else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


class RawConnection:
    """A connection whose bytes a test reads."""

    def __init__(self, server: HaltServer, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(4 * WAIT_TIMEOUT)
        self.sock.connect((server.host, server.port))
        self._buffer = b""

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def head(self) -> dict[str, str]:
        """The head of a response: its fields, and its status line under ""."""
        first, *lines = self._until(b"\r\n\r\n").decode().split("\r\n")
        pairs = [line.partition(": ") for line in lines]
        return {"": first, **{name.lower(): value for name, _, value in pairs}}

    def chunks(self) -> list[bytes]:
        """The chunks of a body, up to the empty one."""
        out = []
        while length := int(self._until(b"\r\n"), 16):
            out.append(self.take(length))
            assert self.take(2) == b"\r\n"
        assert self.take(2) == b"\r\n"
        return out

    def read_to_close(self) -> bytes:
        """The bytes until the server closes the connection."""
        out, self._buffer = self._buffer, b""
        while data := self.sock.recv(65_536):
            out += data
        return out

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        data, _, self._buffer = self._buffer.partition(end)
        return data

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        out, self._buffer = self._buffer[:size], self._buffer[size:]
        return out

    def _more(self) -> None:
        data = self.sock.recv(65_536)
        assert data, f"the connection ends behind {self._buffer!r}"
        self._buffer += data


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """The body of a request for a stream."""
    messages = [{"role": "user", "content": "Good morning, how are you today?"}]
    return {"messages": messages, "model": model, **fields}


@pytest.fixture
def big(shared_fake: FakeOpenAI) -> str:
    """A model whose answer exceeds all buffers between server and client."""
    shared_fake.texts["big"] = BIG
    return "text?key=big&piece=10000"


def wait_over(server: HaltServer, stream_id: str) -> None:
    """Wait until a stream has ended, with a reader that receives its end alone."""
    with server.client().follow(stream_id, LATE) as events:
        wait_until(lambda: events.next() is None, SERVER_TIMEOUT)


def test_slow_client_gets_the_whole_answer_and_the_http_end(
    servers_by_writer: dict[str, HaltServer], big: str
) -> None:
    """A large answer read after its end has whole frames and the end of HTTP."""
    stream_id = new_id()
    with RawConnection(servers_by_writer["1"], receive_buffer=4096) as raw:
        raw.sock.sendall(request("/chat/stream", chat(big, id=stream_id)))
        head = raw.head()
        assert head["transfer-encoding"] == "chunked"
        wait_over(servers_by_writer["1"], stream_id)
        first, *bodies = raw.chunks()
    assert first == b":\n"
    assert all(body.endswith(b"\n\n") for body in bodies)
    assert bodies[-1].endswith(b"data: [DONE]\n\n")
    assert sum(body.count(b"[DONE]") for body in bodies) == 1
    assert text_of(b"".join(bodies)) == BIG


@pytest.mark.parametrize("writes", ["1", "0"], ids=["relay", "threads"])
def test_http_1_0_client_gets_no_chunks(
    servers_by_writer: dict[str, HaltServer], writes: str
) -> None:
    """For HTTP/1.0 the body has no chunks and ends with the connection."""
    with RawConnection(servers_by_writer[writes]) as raw:
        raw.sock.sendall(request("/chat/stream", chat("echo"), version="1.0"))
        head, body = raw.head(), raw.read_to_close()
    assert "transfer-encoding" not in head
    assert all(re.match(rb"id: |data: |event: |:|$", line) for line in body.split(b"\n")), body
    assert body.endswith(b"data: [DONE]\n\n")
    with RawConnection(servers_by_writer[writes]) as raw:
        raw.sock.sendall(request("/chat", chat("echo"), version="1.0", Accept="text/plain"))
        raw.head()
        assert raw.read_to_close() == b"Good morning, how are you today?"


PLACE, STREAM = new_id(), new_id()
SHORT = "text?key=short&piece=100"  # in one piece, so that it is one event
PAGE_PROMPT = f"A page's prompt {STREAM}"  # its answer is held until the test releases it
PROMPT = urlencode({"prompt": PAGE_PROMPT, "id": STREAM, "model": "silent_first_token?n=3"})

#: Each way to read an answer as it comes, or again. Some need the ones before.
FLOWS: dict[str, bytes] = {
    "stream": request("/chat/stream", chat(SHORT, id="the-stream-of-all")),
    "error in mid-stream": request("/chat/stream", chat("error_in_stream?n=1")),
    "error": request("/chat/stream", chat("401")),
    "again": request("/streams/the-stream-of-all"),
    "from its middle": request("/streams/the-stream-of-all?after=2"),
    "nothing new": request("/streams/the-stream-of-all?after=10000"),
    "text": request("/chat", chat(SHORT), Accept="text/plain"),
    "openai": request("/v1/chat/completions", chat(SHORT, stream=True)),
    "eventsource": request("/stream?" + urlencode({"prompt": "Good day", "model": SHORT})),
    "prompt of a page": request(
        f"/c/{PLACE}/messages",
        PROMPT.encode(),
        HX_Request="true",
        Accept="text/html, text/event-stream",
    ),
    "page": request(f"/streams/{STREAM}/page"),
}


def without_varying_parts(body: bytes, names: dict[str, str]) -> bytes:
    """A body without its varying parts: times, figures and random IDs."""
    for name in ("x-stream-id", "x-request-id"):
        if name in names:
            body = body.replace(names[name].encode(), b"ID")
    body = re.sub(rb"chatcmpl-[\w-]+", b"ID", body)
    body = re.sub(rb"\d+(\.\d+)?|null", b"N", body)
    return body.replace("N\xa0ms".encode(), "N\xa0s".encode())  # a slow machine


def test_relay_and_thread_write_the_same_bytes(
    servers_by_writer: dict[str, HaltServer], shared_fake: FakeOpenAI
) -> None:
    """With HALT_RELAY_WRITES on and off all routes send the same status and body."""
    shared_fake.texts["short"] = "Good **evening**!"
    responses: dict[str, dict[str, tuple[str, bytes]]] = {}
    for writes, server in servers_by_writer.items():
        cookie = server.client()
        cookie.get("/")
        cookies = "; ".join(f"{name}={value}" for name, value in cookie.cookies.items())
        for name, flow in FLOWS.items():
            request_bytes = flow.replace(b"\r\n", b"\r\nCookie: " + cookies.encode() + b"\r\n", 1)
            if name == "page":  # a page that reconnects and gets the whole answer
                wait_until(
                    lambda: b"[DONE]" in cookie.get(f"/streams/{STREAM}").body, SERVER_TIMEOUT
                )
            with RawConnection(server) as raw:
                raw.sock.sendall(request_bytes)
                head = raw.head()
                if name == "prompt of a page":
                    request_record(
                        shared_fake, PAGE_PROMPT, list(servers_by_writer).index(writes)
                    ).release()
                if head.get("transfer-encoding") == "chunked":
                    body = b"".join(raw.chunks())
                else:
                    body = raw.take(int(head["content-length"]))
            if name == "prompt of a page":  # the messages before the last depend on timing
                body = body.strip().rpartition(b"\n\n")[2]
            responses.setdefault(name, {})[writes] = (head[""], without_varying_parts(body, head))
    for name, answers in responses.items():
        assert answers["1"] == answers["0"], name
        assert answers["1"][1], name
        assert answers["1"][0].split()[1] in {"200", "204"}, (name, answers["1"])


@pytest.mark.parametrize("writes", ["1", "0"], ids=["relay", "threads"])
def test_access_log_counts_the_bytes_of_the_body(
    servers_by_writer: dict[str, HaltServer], writes: str
) -> None:
    """The access log counts the bytes of the body without framing, and the connection serves the
    next request.
    """
    with RawConnection(servers_by_writer[writes]) as raw:
        for number in range(3):
            raw.sock.sendall(request(f"/chat/stream?log={writes}{number}", chat("echo")))
            assert raw.head()[""].startswith("HTTP/1.1 200 ")
            size = sum(map(len, raw.chunks()))
            servers_by_writer[writes].wait_printed(
                f"took {size} of POST /chat/stream.log={writes}{number} "
            )
        raw.sock.sendall(request("/healthz"))
        head = raw.head()
        assert head[""].startswith("HTTP/1.1 200 ")
        raw.take(int(head["content-length"]))
        raw.sock.sendall(request("/chat/stream", chat("echo"), Connection="close"))
        assert raw.head()["connection"] == "close"
        assert raw.chunks()[-1].endswith(b"[DONE]\n\n")
        assert raw.read_to_close() == b""


def test_pipelined_request_is_answered_after_the_stream(
    servers_by_writer: dict[str, HaltServer],
) -> None:
    """A request sent before the end of a stream is answered behind it."""
    with RawConnection(servers_by_writer["1"]) as raw:
        raw.sock.sendall(request("/chat/stream", chat("echo")) + request("/healthz"))
        raw.head()
        assert raw.chunks()[-1].endswith(b"[DONE]\n\n")
        head = raw.head()
        assert head[""].startswith("HTTP/1.1 200 ")
        assert json.loads(raw.take(int(head["content-length"])))


class WrappedServer(HaltServer):
    """Halt behind a middleware."""

    command = ("-m", "gunicorn", "tests.support.wrapped_app:app")


@pytest.mark.parametrize("gzip_setting", ["", "1"], ids=["plain", "gzip"])
def test_middleware_around_the_body_gets_every_piece(
    shared_fake: FakeOpenAI, gzip_setting: str
) -> None:
    """A middleware that wraps the body gets every piece of it."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = WrappedServer({**env, "TEST_ZIPPED": gzip_setting})
    try:
        with RawConnection(server) as raw:
            raw.sock.sendall(request("/chat/stream", chat("count?n=100")))
            head = raw.head()
            body = b"".join(raw.chunks())
        if gzip_setting:
            assert head["content-encoding"] == "gzip"
            body = gzip.decompress(body)
        assert text_of(body) == "".join(f"{n} " for n in range(100))
        assert body.endswith(b"data: [DONE]\n\n")
    finally:
        server.close()


def test_stuck_client_is_dropped_and_resumes(shared_fake: FakeOpenAI, big: str) -> None:
    """A stuck client is dropped without the end of HTTP and resumes behind its last event."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", **LOGGED}
    server = FaultyServer({**env, "TEST_STUCK_MAX": "0.5"})
    stream_id = new_id()
    try:
        with RawConnection(server, receive_buffer=4096) as raw:
            raw.sock.sendall(request("/chat/stream", chat(big, id=stream_id)))
            raw.head()
            wait_over(server, stream_id)
            server.wait_printed("took [0-9]+ of POST /chat/stream ")
            received = raw.read_to_close()
        assert not received.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in received
        # A part of an event at the end of the last frame is no event.
        newest = max(map(int, re.findall(rb"^id: (\d+)\n.*\n\n", received, re.MULTILINE)))
        resumed_stream = server.client().follow(stream_id, newest).to_end()
        assert int(resumed_stream.seen[0].id) == newest + 1
        assert BIG.endswith(resumed_stream.text)
    finally:
        server.close()
