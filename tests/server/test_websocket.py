"""WebSockets with many streams; the model server records whether a Stop closed its connection."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from halt.testing.fake_openai import FakeOpenAI
from halt.web.websocket.session import MAX_STREAMS
from tests.support.answer_phases import ANSWER_PHASES
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, StartHalt, new_id, request_record
from tests.support.waiting import SERVER_TIMEOUT, wait_until
from tests.support.websocket_client import WebSocket, refused_handshake

TOKEN = "a-token-for-tests"
#: Seconds of HALT_HEARTBEAT: a client that reads nothing is dropped after half of them.
NEVER_TOO_SLOW = 300
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def ws(halt: HaltServer) -> Iterator[WebSocket]:
    with WebSocket(halt) as websocket:
        yield websocket


def numbers(n: int) -> str:
    return "".join(f"{i} " for i in range(n))


@pytest.fixture(scope="module")
def strict_server(shared_fake: FakeOpenAI, request: pytest.FixtureRequest) -> HaltServer:
    """A server with a short heartbeat and grace, and a small limit on messages."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    settings = {"HALT_HEARTBEAT": "4", "HALT_MAX_BODY_BYTES": "20000", "HALT_ORPHAN_GRACE": "2"}
    server = HaltServer({**env, **settings})
    request.addfinalizer(server.close)
    return server


# --- streams --------------------------------------------------------------------------------------


def test_socket_carries_many_streams_at_once(ws: WebSocket, shared_fake: FakeOpenAI) -> None:
    """Twenty concurrent streams on one socket are each whole, in order and without a gap."""
    prompt = new_id()
    ids = [ws.start("stall?n=30&gap_ms=3&rest=30", prompt) for _ in range(20)]
    for stream_id in ids:
        ws.until_text(stream_id, "29 ")
    # All at once, so that the socket is read again before the server's next ping.
    for record in [request_record(shared_fake, prompt, n) for n in range(20)]:
        record.release()
    ws.to_end(*ids)
    for stream_id in ids:
        assert ws.text(stream_id) == numbers(60)
        assert [seq for seq, _ in ws.seen[stream_id]] == list(range(1, len(ws.seen[stream_id]) + 1))
        assert ws.seen[stream_id][-1][1]["type"] == "done"


def test_socket_events_equal_server_sent_events(ws: WebSocket, halt: HaltServer) -> None:
    """A socket gets the same events under the same numbers as a reader over HTTP."""
    stream_id = ws.start("count?n=5", id=new_id())
    ws.to_end(stream_id)
    replay = halt.client().follow(stream_id).to_end().seen[:-1]
    assert [(int(m.id), m.json) for m in replay] == ws.seen[stream_id]


def test_streams_are_shared_between_http_and_sockets(ws: WebSocket, halt: HaltServer) -> None:
    """A stream of HTTP is followed on a socket and the reverse; each gets every event."""
    client = halt.client()
    with client.chat("count?n=80&gap_ms=5") as events:
        events.until_text("5 ")
        ws.send(type="follow", id=events.id)
        ws.until_text(events.id, "40 ")
        assert events.to_end().text == numbers(80)
    ws.to_end(events.id)
    assert ws.text(events.id) == numbers(80)
    stream_id = ws.start("count?n=80&gap_ms=5")
    with client.follow(stream_id) as events:
        events.until_text("20 ")
    ws.to_end(stream_id)
    assert ws.text(stream_id) == numbers(80)


@pytest.mark.parametrize("phase", ANSWER_PHASES)
def test_stop_in_each_phase_closes_stream_and_upstream(
    ws: WebSocket, shared_fake: FakeOpenAI, phase: str
) -> None:
    """In each phase the receipt says stopped and closed, the end comes, and the upstream sees the
    close.
    """
    model, text = ANSWER_PHASES[phase]
    prompt = new_id()
    stream_id = ws.start(model, prompt)
    other_id = ws.start("stall?n=1")
    ws.until_text(stream_id, text)
    record = request_record(shared_fake, prompt)
    receipt = ws.stop(stream_id)
    assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
    assert receipt.keys() == {"type", "id", "status", "upstream", "elapsed_ms"}
    assert record.closed.wait(RECORD_TIMEOUT), "the provider goes on"
    ended = ws.to_end(stream_id)
    assert (ended["type"], ended["reason"]) == ("cancelled", "stop")
    assert ws.stop(stream_id)["status"] == "finished"
    assert ws.stop(other_id)["status"] == "stopped"  # still running
    ws.to_end(other_id)


def test_stop_before_the_start_cancels_the_stream(ws: WebSocket) -> None:
    """A Stop of an unknown ID is pending, and a stream that starts with that ID ends at once."""
    stream_id = new_id()
    assert ws.stop(stream_id)["status"] == "pending"
    assert ws.start("count?n=100000&gap_ms=5", id=stream_id) == stream_id
    assert ws.to_end(stream_id)["type"] == "cancelled"


def test_follow_after_a_number_resumes_without_a_gap(ws: WebSocket, halt: HaltServer) -> None:
    """After unfollow, follow resumes on any socket: no event twice, none missing."""
    stream_id = ws.start("count?n=1000000&gap_ms=2")  # it runs until the Stop below
    ws.until_text(stream_id, "5 ")
    for _ in range(3):
        ws.send(type="unfollow", id=stream_id)
        ws.wait_processed()
        terminal = ws.seen[stream_id][-1][0]
        ws.send(type="follow", id=stream_id, after=terminal)
        while ws.seen[stream_id][-1][0] == terminal:
            ws.next()
    terminal = ws.seen[stream_id][-1][0]
    with WebSocket(halt) as second:
        second.send(type="follow", id=stream_id, after=terminal)
        while stream_id not in second.seen:
            second.next()
        assert ws.stop(stream_id)["status"] == "stopped"
        second.to_end(stream_id)
        assert second.seen[stream_id][0][0] == terminal + 1
        ws.to_end(stream_id)
        assert [seq for seq, _ in ws.seen[stream_id]] == list(range(1, len(ws.seen[stream_id]) + 1))
        assert ws.seen[stream_id][terminal:] == second.seen[stream_id]
        text = ws.text(stream_id)
        assert text == numbers(text.count(" "))


def test_follow_behind_the_last_event_repeats_the_end(ws: WebSocket) -> None:
    """A reader that has all events of an ended stream gets the last event again."""
    stream_id = ws.start("count?n=3")
    ws.to_end(stream_id)
    seq, event = ws.seen[stream_id][-1]
    ws.send(type="follow", id=stream_id, after=seq)
    repeated = ws.next()
    assert (repeated["seq"], repeated["event"]) == (seq, event)


def test_long_answer_is_replayed_whole(ws: WebSocket, halt: HaltServer) -> None:
    """An answer of megabytes is replayed whole while another stream runs on the same socket."""
    long_id = ws.start("long?n=100000")
    ws.to_end(long_id)
    with WebSocket(halt) as second:
        live_id = second.start("count?n=100000&gap_ms=2")
        second.send(type="follow", id=long_id)
        second.to_end(long_id)
        assert second.seen[long_id] == ws.seen[long_id]
        assert second.text(long_id) == numbers(100000)
        assert second.stop(live_id)["status"] == "stopped"


def test_follow_of_evicted_events_is_an_error(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """A reader of events that the log no longer has gets the error offset_lost, never a gap."""
    server = start_halt(fake, HALT_LOG_BYTES=20_000)
    with WebSocket(server) as ws:
        stream_id = ws.start("long?n=100000")
        ws.send(type="unfollow", id=stream_id)
        wait_until(
            lambda: server.client().get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT
        )
        ws.send(type="follow", id=stream_id, after=1)
        error = ws.until("error", stream_id)["error"]
        assert (error["code"], error["retryable"]) == ("offset_lost", False)


# --- access ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_server(shared_fake: FakeOpenAI, request: pytest.FixtureRequest) -> HaltServer:
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer({**env, "HALT_TOKEN": TOKEN})
    request.addfinalizer(server.close)
    return server


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"Authorization": "Bearer wrong-token"},
        {"path": f"/ws?token={TOKEN}"},
        {"Cookie": "halt_session_0=eyJsb2dpbiI6InllcyJ9.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"},
    ],
)
def test_handshake_without_the_token_is_refused(
    token_server: HaltServer, more: dict[str, str]
) -> None:
    """Without the token the handshake gets 401; a token in the address does not count."""
    answer = refused_handshake(token_server, **more)
    assert answer.status == 401
    assert answer.error["code"] == "unauthorized"


def test_token_or_login_opens_a_socket(token_server: HaltServer) -> None:
    """A program opens a socket with the token as a header, a browser with its login cookie."""
    with WebSocket(token_server, Authorization=f"Bearer {TOKEN}") as ws:
        ws.to_end(ws.start("count?n=1"))
    browser = token_server.client()
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with WebSocket(token_server, origin=token_server.url, Cookie=cookie) as ws:
        ws.to_end(ws.start("count?n=1"))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_handshake_of_another_origin_is_refused(halt: HaltServer, origin: str) -> None:
    """A handshake with another origin is refused with 403, though it carries cookies."""
    answer = refused_handshake(halt, origin=origin)
    assert answer.status == 403
    assert answer.error["code"] == "foreign_site"


def test_handshake_of_the_own_origin_is_accepted(halt: HaltServer) -> None:
    """The page's own Origin is accepted; a foreign Sec-Fetch-Site is not."""
    with WebSocket(halt, origin=halt.url, Sec_Fetch_Site="same-origin") as ws:
        ws.wait_processed()
    assert refused_handshake(halt, origin=halt.url, Sec_Fetch_Site="cross-site").status == 403


def test_streams_of_a_session_are_unknown_to_others(halt: HaltServer) -> None:
    """No other socket can follow or stop a stream of a session."""
    browser = halt.client()
    browser.get("/")
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with WebSocket(halt, Cookie=cookie) as owner, WebSocket(halt) as other:
        stream_id = owner.start("stall?n=2")
        owner.until_text(stream_id, "1 ")
        other.send(type="follow", id=stream_id)
        assert other.until("error", stream_id)["error"]["code"] == "unknown_stream"
        assert other.stop(stream_id)["status"] == "pending"
        assert owner.stop(stream_id)["status"] == "stopped"


# --- invalid messages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "field", "stream_id"),
    [
        ("{", "message", None),
        ("[]", "message", None),
        (b"\x00\x01", "message", None),
        (b'{"type":"ping"}', "message", None),
        ('{"id":"0123456789"}', "type", "0123456789"),
        ('{"type":"dance","id":"0123456789"}', "type", "0123456789"),
        ('{"type":"start","id":"0123456789"}', "messages", "0123456789"),
        ('{"type":"start","messages":[]}', "messages", None),
        ('{"type":"start","messages":[{"role":"user","content":"x"}],"id":"short"}', "id", None),
        (
            '{"type":"start","messages":[{"role":"user","content":"x"}],"temperature":9}',
            "temperature",
            None,
        ),
        ('{"type":"start","messages":[{"role":1,"content":"x"}]}', "messages[0].role", None),
        ('{"type":"start","messages":[{"role":"user","content":"x"}],"x":1}', "x", None),
        ('{"type":"stop"}', "id", None),
        ('{"type":"stop","id":"0123456789","seen":-1}', "seen", "0123456789"),
        ('{"type":"follow","id":"0123456789","after":"x"}', "after", "0123456789"),
        ('{"type":"follow","id":7}', "id", None),
        ("[" * 100_000, "message", None),
    ],
    ids=[
        "half JSON",
        "list",
        "binary bytes",
        "binary JSON",
        "no type",
        "unknown type",
        "start without messages",
        "start without a message",
        "start with a short ID",
        "start with a temperature of 9",
        "start with a role that is a number",
        "start with an unknown field",
        "stop without an ID",
        "stop with a negative number",
        "follow after a letter",
        "follow with an ID that is a number",
        "nested 100000 times",
    ],
)
def test_invalid_message_gets_an_error_and_the_socket_stays(
    ws: WebSocket, message: str | bytes, field: str, stream_id: str | None
) -> None:
    """An invalid message gets an error with its field and stream, and the socket stays open."""
    ws.connection.send(message)
    answer = ws.until("error")
    assert answer.get("id") == stream_id
    assert answer["error"]["code"] == "invalid_request"
    assert answer["error"]["field"] == field
    assert answer["error"]["retryable"] is False
    ws.wait_processed()


START_PREFIX = '{"type":"start","messages":[{"role":"user","content":"x"}],'


@pytest.mark.parametrize(
    "number",
    [str(2**63), str(2**64), str(2**70), "-1", "1e400", "1.5", "9" * 5000],
    ids=["2**63", "2**64", "2**70", "-1", "1e400", "1.5", "5000 digits"],
)
def test_invalid_number_gets_an_error_and_the_socket_stays(ws: WebSocket, number: str) -> None:
    """An invalid number gets an error with its field; messages before and after it are handled."""
    stream_id = ws.start("stall?n=1")
    invalid_messages = [
        (f'{{"type":"stop","id":"{stream_id}","seen":{number}}}', "seen"),
        (f'{{"type":"follow","id":"{stream_id}","after":{number}}}', "after"),
        (f'{START_PREFIX}"max_tokens":{number}}}', "max_tokens"),
    ]
    if number != "-1":
        invalid_messages.append((f'{START_PREFIX}"seed":{number}}}', "seed"))
    for message, field in invalid_messages:
        ws.connection.send(message)
        error = ws.until("error")["error"]
        assert (error["code"], error["field"]) == ("invalid_request", field)
    assert ws.stop(stream_id, seen=10**15 - 1)["status"] == "stopped"
    assert ws.to_end(stream_id)["type"] == "cancelled"


def test_refused_start_or_follow_names_the_id(ws: WebSocket) -> None:
    """A used ID and an unknown stream get the error codes of the HTTP API, and the ID."""
    stream_id = ws.start("count?n=1", id=new_id())
    ws.send(type="start", id=stream_id, messages=[{"role": "user", "content": "again"}])
    assert ws.until("error", stream_id)["error"]["code"] == "stream_in_use"
    unknown_id = new_id()
    ws.send(type="follow", id=unknown_id)
    assert ws.until("error", unknown_id)["error"]["code"] == "unknown_stream"


def test_socket_follows_at_most_max_streams(ws: WebSocket) -> None:
    """A socket's stream beyond the limit is refused at once; an ended stream makes room."""
    ids = [ws.start("stall?n=1") for _ in range(MAX_STREAMS)]
    refused_id = new_id()
    ws.send(type="start", id=refused_id, messages=[{"role": "user", "content": "one more"}])
    error = ws.until("error", refused_id)["error"]
    assert (error["code"], error["retryable"]) == ("at_capacity", True)
    assert error["retry_after"] > 0
    assert ws.stop(ids[0])["status"] == "stopped"
    ws.to_end(ids[0])
    ws.to_end(ws.start("count?n=1"))
    for stream_id in ids[1:]:
        assert ws.stop(stream_id)["status"] == "stopped"


def test_too_large_message_closes_with_1009(strict_server: HaltServer) -> None:
    """A message above the limit closes the socket with 1009; one below is handled."""
    with WebSocket(strict_server) as ws:
        ws.to_end(ws.start("echo", "x" * 19_000))
        ws.connection.send("x" * 3_000_000)
        assert ws.read_to_close().code == 1009
    assert strict_server.client().get("/healthz").status == 200


def test_invalid_utf8_closes_with_1007(ws: WebSocket) -> None:
    """Text that is not UTF-8 closes the socket with 1007."""
    ws.connection.send(b"caf\xe9", text=True)
    assert ws.read_to_close().code == 1007


def raw_handshake(server: HaltServer, **headers: str | None) -> socket.socket:
    """Send a handshake; None leaves a header out. The socket has a small receive buffer."""
    handshake_headers = {
        "Host": f"{server.host}:{server.port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(
        f"{name}: {value}\r\n" for name, value in handshake_headers.items() if value is not None
    )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect((server.host, server.port))
    sock.sendall(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
    return sock


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Version": "8"},
        {"Sec_WebSocket_Version": None},
        {"Upgrade": None},
        {"Connection": "keep-alive"},
    ],
)
def test_invalid_handshake_is_a_bad_request(
    halt: HaltServer, headers: dict[str, str | None]
) -> None:
    """An invalid handshake gets 400 as JSON; it causes no traceback and keeps no place."""
    with raw_handshake(halt, **headers) as sock, http.client.HTTPResponse(sock) as response:
        response.begin()
        assert response.status == 400
        assert json.loads(response.read())["error"]["code"] in {"invalid_request", "bad_request"}
    assert "Traceback" not in halt.printed


def test_compression_is_not_negotiated(ws: WebSocket) -> None:
    """An offer of compression is not accepted, because of its CPU time."""
    response = ws.connection.response
    assert response is not None
    assert "Sec-WebSocket-Extensions" not in response.headers


# --- readers that are slow or gone ----------------------------------------------------------------


def test_slow_reader_is_closed_with_4008_and_resumes(strict_server: HaltServer) -> None:
    """A slow reader gets the close code 4008 after its last event, and can follow from there."""
    dropped = strict_server.printed.count("too slow")
    with WebSocket(strict_server, receive_buffer=4096) as slow_reader:
        stream_id = slow_reader.start("count?n=50000&burst=10")
        wait_until(lambda: strict_server.printed.count("too slow") > dropped, SERVER_TIMEOUT)
        end = slow_reader.read_to_close()
        assert (end.code, "follow" in end.reason) == (4008, True)
    earlier_events = slow_reader.seen[stream_id]
    assert not earlier_events[-1][1].get("done")
    with WebSocket(strict_server) as ws:
        ws.send(type="follow", id=stream_id, after=earlier_events[-1][0])
        ws.to_end(stream_id)
        assert [seq for seq, _ in earlier_events + ws.seen[stream_id]] == list(
            range(1, ws.seen[stream_id][-1][0] + 1)
        )
        assert slow_reader.text(stream_id) + ws.text(stream_id) == numbers(50000)


def test_stop_of_a_reader_that_does_not_read_works(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """A Stop works though not even its receipt can be sent to the client."""
    server = start_halt(fake, HALT_HEARTBEAT=NEVER_TOO_SLOW)
    with WebSocket(server, receive_buffer=4096) as ws:
        prompt = new_id()
        stream_id = ws.start("long?n=100000000", prompt)
        record = request_record(fake, prompt)
        record.wait_tokens(100_000, RECORD_TIMEOUT)
        ws.send(type="stop", id=stream_id)
        assert record.closed.wait(RECORD_TIMEOUT)
        assert ws.to_end(stream_id)["type"] == "cancelled"


def test_unread_answers_are_bounded(strict_server: HaltServer) -> None:
    """A client that sends messages and never reads is dropped as too slow; no queue grows."""
    invalid_message = b'{"type":"none"}'  # its answer is longer than itself
    message_count = 50_000  # their answers exceed the socket buffers
    dropped = strict_server.printed.count("too slow")
    with raw_handshake(strict_server) as sock:
        assert b" 101 " in sock.recv(65536)
        with contextlib.suppress(
            ConnectionError
        ):  # the server may close it before the last message
            sock.sendall(
                (b"\x81%c\0\0\0\0%b" % (128 | len(invalid_message), invalid_message))
                * message_count
            )
        # The client reads nothing before that.
        wait_until(lambda: strict_server.printed.count("too slow") > dropped, SERVER_TIMEOUT)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                received += piece
    assert 0 < received.count(b'"type":"error"') < message_count
    with WebSocket(strict_server) as ws:
        ws.wait_processed()


def test_many_messages_at_once_are_all_answered(ws: WebSocket) -> None:
    """A client that reads gets an answer to each of 5000 messages sent at once."""
    ws.connection.socket.sendall(b'\x81\x8f\0\0\0\0{"type":"ping"}' * 5000)
    for _ in range(5000):
        assert ws.next() == {"type": "pong"}


@pytest.mark.parametrize("model", ["silent_headers", "count?n=100000&gap_ms=5"])
def test_client_gone_ends_its_streams_after_the_grace(
    strict_server: HaltServer, shared_fake: FakeOpenAI, model: str
) -> None:
    """The streams of a client that left run for HALT_ORPHAN_GRACE and are then cancelled."""
    prompt = new_id()
    with WebSocket(strict_server) as ws:
        stream_id = ws.start(model, prompt)
        if "silent" not in model:
            ws.until_text(stream_id, "2 ")
        ws.connection.socket.shutdown(socket.SHUT_RDWR)
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)
    ended = strict_server.client().follow(stream_id).to_end().terminal
    assert (ended["type"], ended["reason"]) == ("cancelled", "no_viewer")


@pytest.mark.parametrize("departure", ["unfollow", "close", "breaks"])
@pytest.mark.parametrize("model", ["silent_first_token", "count?n=100000&gap_ms=5"])
def test_on_disconnect_stop_ends_with_the_last_reader(
    halt: HaltServer, shared_fake: FakeOpenAI, model: str, departure: str
) -> None:
    """`on_disconnect: "stop"` ends the stream at once, silent or not, however its reader leaves."""
    prompt = new_id()
    with WebSocket(halt) as ws:
        stream_id = ws.start(model, prompt, on_disconnect="stop")
        other_id = ws.start("stall?n=1")
        record = request_record(shared_fake, prompt)
        if departure == "unfollow":
            ws.send(type="unfollow", id=stream_id)
            assert record.closed.wait(RECORD_TIMEOUT)
            assert ws.stop(other_id)["status"] == "stopped"  # the socket and its other stream go on
        elif departure == "breaks":
            ws.connection.socket.shutdown(socket.SHUT_RDWR)
    assert record.closed.wait(RECORD_TIMEOUT)
    ended = halt.client().follow(stream_id).to_end().terminal
    assert (ended["type"], ended["reason"]) == ("cancelled", "no_viewer")


def test_on_disconnect_stop_survives_a_second_follow(
    ws: WebSocket, shared_fake: FakeOpenAI
) -> None:
    """A follow that replaces a follow ends no stream; no event of the earlier one comes later."""
    prompt = new_id()
    stream_id = ws.start("stall?n=30&rest=30", prompt, on_disconnect="stop")
    ws.until_text(stream_id, "5 ")
    ws.send(type="follow", id=stream_id, after=0)
    ws.wait_processed()
    request_record(shared_fake, prompt).release()
    assert ws.to_end(stream_id)["type"] == "done"
    numbers_seen = [seq for seq, _ in ws.seen[stream_id]]
    second_start = numbers_seen.index(1, 1)
    assert numbers_seen == [*range(1, second_start + 1), *range(1, numbers_seen[-1] + 1)]


def test_refused_handshake_returns_the_request_id(halt: HaltServer) -> None:
    """The client's own request ID is in the header and in the error of a refused handshake."""
    answer = refused_handshake(halt, origin="https://evil.example", X_Request_Id="socket-1")
    assert (answer.status, answer.headers["x-request-id"]) == (403, "socket-1")
    assert answer.error["request_id"] == "socket-1"


def test_client_back_within_the_grace_keeps_its_stream(halt: HaltServer) -> None:
    """A lost connection changes nothing for the run if the client returns in time."""
    with WebSocket(halt) as ws:
        stream_id = ws.start("count?n=300&gap_ms=2")
        ws.until_text(stream_id, "5 ")
        ws.connection.socket.shutdown(socket.SHUT_RDWR)
    with WebSocket(halt) as ws:
        ws.send(type="follow", id=stream_id)
        assert ws.to_end(stream_id)["type"] == "done"
        assert ws.text(stream_id) == numbers(300)


def test_idle_socket_stays_while_pings_are_answered(strict_server: HaltServer) -> None:
    """A client that answers pings stays connected; one that does not is closed."""
    with WebSocket(strict_server) as ws, raw_handshake(strict_server) as raw_socket:
        received = b""
        while piece := raw_socket.recv(65536):
            received += piece
        assert received.count(b"\x89\x00") >= 1  # a ping
        ws.wait_processed()
        ws.to_end(ws.start("count?n=1"))


# --- places and shutdown --------------------------------------------------------------------------


def test_sockets_beyond_the_limit_are_refused_and_stop_works(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Above the limit a handshake gets 503 and Stop still works; a closed socket makes
    room.

    A failed handshake takes no place.
    """
    server = start_halt(fake, HALT_MAX_STREAMS=3)
    client = server.client()
    for _ in range(3):
        with raw_handshake(server, Sec_WebSocket_Key=None) as sock:
            assert b" 400 " in sock.recv(65536)
    with ExitStack() as stack:
        sockets = [stack.enter_context(WebSocket(server)) for _ in range(3)]
        stream_id = sockets[0].start("stall?n=1")
        for _ in range(40):
            answer = refused_handshake(server)
            assert answer.status == 503
            assert answer.error["code"] == "at_capacity"
            assert int(answer.headers["retry-after"]) >= 1
        assert client.stop(stream_id).json["upstream"] == "closed"
        sockets[1].connection.close()
        wait_until(lambda: accepts_socket(server), SERVER_TIMEOUT)


def accepts_socket(server: HaltServer) -> bool:
    with raw_handshake(server) as sock:
        return b" 101 " in sock.recv(65536).split(b"\r\n")[0]


def test_shutdown_ends_streams_and_closes_sockets_with_1001(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Each stream gets its terminal event, each socket 1001; idle clients delay nothing.

    A reader whose network is full finds the close behind what it was sent, also after the end.
    """
    server = start_halt(fake, HALT_HEARTBEAT=NEVER_TOO_SLOW)
    with ExitStack() as stack:
        streaming, idle_socket = (stack.enter_context(WebSocket(server)) for _ in range(2))
        raw_socket = stack.enter_context(raw_handshake(server))
        full_socket = stack.enter_context(WebSocket(server, receive_buffer=4096))
        prompt = new_id()
        flood_id = full_socket.start("long?n=100000000", prompt)
        request_record(fake, prompt).wait_tokens(100_000, RECORD_TIMEOUT)
        ids = [
            streaming.start(text) for text in ("silent_headers", "stall?n=2", "long?n=100000000")
        ]
        streaming.until_text(ids[1], "1 ")
        assert b" 101 " in raw_socket.recv(65536)
        server.terminate()
        for stream_id in ids:
            terminal = streaming.to_end(stream_id)
            assert (terminal["type"], terminal["error"]["code"]) == ("error", "interrupted")
        assert [streaming.read_to_close().code, idle_socket.read_to_close().code] == [1001, 1001]
        assert server.wait() == 0
        assert full_socket.read_to_close().code == 1001
        numbers_seen = [seq for seq, _ in full_socket.seen[flood_id]]
        assert numbers_seen == list(range(1, len(numbers_seen) + 1))
    wait_until(lambda: server.gone, SERVER_TIMEOUT)
    assert "Traceback" not in server.printed


def test_shutdown_waits_for_streams_after_many_sockets(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """After many sockets of every kind of end, a shutdown still waits for the open stream."""
    server = start_halt(fake)
    for n in range(60):
        if n % 3 == 2:
            with raw_handshake(server) as sock:
                sock.recv(65536)
            continue
        with WebSocket(server) as ws:
            if n % 3:
                ws.connection.socket.shutdown(socket.SHUT_RDWR)
            else:
                ws.wait_processed()
    client = server.client()
    assert client.get("/healthz").json["status"] == "ok"
    with client.chat("stall?n=1") as events:
        events.until_text("0 ")
        server.terminate()
        assert events.to_end().terminal["error"]["code"] == "interrupted"
    assert server.wait() == 0
    assert "Traceback" not in server.printed


def test_any_json_message_gets_an_error(ws: WebSocket) -> None:
    """Every JSON value as a message gets an error, and the socket stays open."""
    values: list[Any] = [
        None,
        0,
        "x",
        [],
        {},
        {"type": None},
        {"type": ["ping"]},
        {"type": "Ping"},
    ]
    for message in values:
        ws.connection.send(json.dumps(message))
        assert ws.until("error")["error"]["code"] == "invalid_request"
    ws.wait_processed()


def test_message_sent_with_the_handshake_is_handled(halt: HaltServer) -> None:
    """A message sent in one packet with the handshake is handled."""
    data = b'{"type":"ping"}'
    head = (
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection((halt.host, halt.port), RECORD_TIMEOUT) as client:
        client.sendall(head + bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data)
        answer = b""
        while not answer.endswith(b'{"type":"pong"}'):
            part = client.recv(4096)
            assert part, answer
            answer += part
