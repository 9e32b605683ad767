"""HTTP/1.1 under the openai client: framing in any cut, the pool of connections, TLS.

`Lines` are in test_line.py, proxies in test_proxies.py.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import httpx2
import openai
import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from halt.clock import now
from halt.core.connection import NoData, UpstreamConnection, use_connection
from halt.providers.errors import to_upstream_error
from halt.testing.fake_openai import FakeOpenAI
from halt.transport import dns, http1
from halt.transport import pool as module
from halt.transport.http1 import HEAD_MAX, READ_SIZE, REFUSAL_MAX, Body, readable
from halt.transport.pool import Transport
from tests.support.raw_server import CHUNKED, HELLO, OK, Peer, RawServer, answering
from tests.support.transport_calls import body_of, fetch, get, read_all
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until


@pytest.fixture(scope="session")
def context() -> ssl.SSLContext:
    """Making one takes 20 ms, and no test here changes it."""
    return httpx2.create_ssl_context()


@pytest.fixture
def transport(context: ssl.SSLContext) -> Iterator[Transport]:
    made = Transport(WAIT_TIMEOUT, context)
    yield made
    made.close()


@pytest.fixture
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is told after 20 ms instead of a second."""
    monkeypatch.setattr(http1, "TICK", 0.02)
    monkeypatch.setattr(module, "_TICK_OPTION", struct.pack("ll", 0, 20_000))


def complete(
    transport: Transport, fake: FakeOpenAI, model: str, connection: UpstreamConnection | None = None
) -> httpx2.Response:
    """Ask the fake for a streamed completion."""
    content = json.dumps({"model": model, "messages": [], "stream": True}).encode()
    request = httpx2.Request("POST", f"{fake.base_url}/chat/completions", content=content)
    with use_connection(connection or UpstreamConnection()):
        return transport.handle_request(request)


# --- framing --------------------------------------------------------------------------------------


class CutSocket:
    """What a Body sees of a connection: the pieces as they are, None for a tick of silence."""

    def __init__(self, pieces: list[bytes | None]) -> None:
        self.pieces = deque(pieces)
        self.closed = False
        self.blocks = False

    def setblocking(self, blocks: bool) -> None:
        self.blocks = blocks

    def recv(self, _: int) -> bytes:
        if not self.pieces:
            return b""
        if (piece := self.pieces.popleft()) is None:
            raise BlockingIOError
        return piece

    def close(self) -> None:
        self.closed = True


def unframed(headers: list[tuple[bytes, bytes]], pieces: list[bytes | None]) -> tuple[bytes, bool]:
    """What a body of these pieces says, and whether its connection can be used again."""
    first, *more = [b"", *pieces]
    sock, connection = CutSocket(more), UpstreamConnection()
    given_back: list[object] = []
    make: Any = Body
    request = httpx2.Request("GET", "http://h/")
    body = make(connection, sock, given_back.append, headers, first, request)
    connection.attach(sock)  # type: ignore[arg-type]
    out = b""
    while True:
        with suppress(NoData):
            data = body.read()
            if not data:
                break
            out += data
    body.close()
    assert sock.closed is not bool(given_back)
    assert sock.blocks is bool(given_back), "the next request would not wait for its head"
    return out, bool(given_back)


def cut(stream: bytes, cuts: list[int], silences: set[int]) -> list[bytes | None]:
    """The stream in pieces, with silence before some of them."""
    edges = sorted({0, *(c % (len(stream) + 1) for c in cuts), len(stream)})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    out: list[bytes | None] = []
    for index, piece in enumerate(pieces):
        out += [None, piece] if index in silences else [piece]
    return out


EVERYWHERE = list(range(500))


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    extension=st.sampled_from([b"", b";a=b", b' ; name="x"', b"  "]),
    trailers=st.lists(st.sampled_from([b"A: b", b"Digest: x"])),
    zeros=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 2_000)),
    silences=st.sets(st.integers(0, 20)),
)
@example([b"hello", b"\r\n", b"0\r\n\r\n"], b"", [], 0, EVERYWHERE, {0, 3, 5})
@example([], b";x", [b"A: b", b"C: d"], 3, EVERYWHERE, set())
def test_chunks_may_be_cut_anywhere(
    chunks: list[bytes],
    extension: bytes,
    trailers: list[bytes],
    zeros: int,
    cuts: list[int],
    silences: set[int],
) -> None:
    """However a chunked body is cut, its bytes are the same, and the connection can be reused."""
    sizes = [b"0" * zeros + b"%x" % len(chunk) for chunk in chunks]
    stream = b"".join(
        b"%b%b\r\n%b\r\n" % (size, extension, chunk)
        for size, chunk in zip(sizes, chunks, strict=True)
    )
    stream += b"0%b\r\n" % extension + b"".join(t + b"\r\n" for t in trailers) + b"\r\n"
    headers = [(b"Transfer-Encoding", b"Chunked")]
    assert unframed(headers, cut(stream, cuts, silences)) == (b"".join(chunks), True)


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 80)), silent=st.booleans())
def test_a_body_of_known_length_ends_there(data: bytes, cuts: list[int], silent: bool) -> None:
    """Content-Length counts, however the bytes come; the connection can be reused."""
    headers = [(b"content-length", b"%d" % len(data))]
    pieces = cut(data, cuts, {0} if silent else set())
    assert unframed(headers, pieces) == (data, True)
    reads_on = unframed(headers, [*pieces, b"unasked for"])[0]
    assert reads_on == data


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 80)))
def test_a_body_without_length_ends_with_its_connection(data: bytes, cuts: list[int]) -> None:
    """Neither chunks nor a length: all that comes is the body, and nothing can follow it."""
    assert unframed([], cut(data, cuts, set())) == (data, False)


@pytest.mark.parametrize(
    "stream",
    [b"xyz\r\n", b"-5\r\nhello\r\n", b"\r\n", b";a\r\n", b"5 5\r\n", b"a" * 5_000, b"5\nhello\n"],
)
def test_a_malformed_chunk_is_refused(stream: bytes) -> None:
    """A size that is none, or that never ends, is a fault of the protocol and not silence."""
    with pytest.raises(httpx2.RemoteProtocolError):
        unframed([(b"Transfer-Encoding", b"chunked")], [stream, *[b"a" * 100] * 100])


@pytest.mark.parametrize(
    ("headers", "piece"),
    [
        ([(b"Transfer-Encoding", b"chunked")], b"5\r\nhel"),
        ([(b"Transfer-Encoding", b"chunked")], b"5\r\nhello\r\n"),
        ([(b"Transfer-Encoding", b"chunked")], b"0\r\n"),
        ([(b"Content-Length", b"9")], b"hello"),
    ],
)
def test_a_body_that_ends_early_is_a_fault(
    headers: list[tuple[bytes, bytes]], piece: bytes
) -> None:
    """A connection that closes in the middle of its body never passes for a complete answer."""
    with pytest.raises(httpx2.ReadError):
        unframed(headers, [piece])


# --- heads ----------------------------------------------------------------------------------------


def test_interim_responses_are_passed_over(transport: Transport) -> None:
    """100 and 103 may come before the answer, also split and in one packet with it."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early", b" Hints\r\nLink: x\r\n\r\n")
        peer.send(HELLO)
        peer.see_leave()

    with RawServer(handle) as server:
        assert fetch(transport, server.url) == b"hello"


def test_a_head_may_be_cut_anywhere(transport: Transport) -> None:
    """A response that comes byte by byte is the same response."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(*(HELLO[i : i + 1] for i in range(len(HELLO))))
        peer.see_leave()

    with RawServer(handle) as server:
        assert fetch(transport, server.url) == b"hello"


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 7\r\n\r\n" + HELLO,
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"\r\n\r\n",
        OK + b"no colon here\r\n\r\n",
        OK + b": no name\r\n\r\n",
        OK + b"Name : blank\r\n\r\n",
        OK + b"Name: x\r\n folded\r\n\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    ],
)
def test_a_malformed_head_is_refused_and_its_connection_closed(
    transport: Transport, head: bytes
) -> None:
    """What is no HTTP/1.1 is a protocol error at once; no socket is left behind."""
    connection = UpstreamConnection()
    with RawServer(answering(head)) as server:
        with pytest.raises(httpx2.RemoteProtocolError):
            fetch(transport, server.url, connection)
        assert connection.wait_closed(0) == "closed"
        server.wait_over(1)


def test_an_endless_head_is_refused(transport: Transport) -> None:
    """Headers are read up to a limit, then the connection is closed."""
    sent = 0

    def handle(peer: Peer) -> None:
        nonlocal sent
        peer.request()
        peer.send(OK)
        while True:  # until the client has had enough
            peer.send(b"X: " + b"x" * 1_000 + b"\r\n")
            sent += 1_000

    with RawServer(handle) as server:
        with pytest.raises(httpx2.RemoteProtocolError, match="does not end"):
            get(transport, server.url)
        server.wait_over(1)
    assert sent >= HEAD_MAX - READ_SIZE


def test_a_response_that_can_have_no_body_has_none(transport: Transport) -> None:
    """204 has neither body nor length: it is over at once, not when the connection is."""
    with RawServer(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        body = body_of(get(transport, server.url))
        try:
            assert body.read() == b""
        finally:
            body.close()


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_refusal_is_read_up_to_a_limit(transport: Transport, framing: bytes) -> None:
    """An error's body is read as a whole, but never without an end; then its server is left."""
    chunk = (b"2710\r\n" if b"chunked" in framing else b"") + b"x" * 10_000
    chunk += b"\r\n" if b"chunked" in framing else b""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 400 Bad Request\r\n", framing, b"\r\n\r\n")
        while True:  # until the client has had enough
            peer.send(chunk)

    with RawServer(handle) as server:
        client = httpx2.Client(transport=transport)
        response = client.get(server.url)
        server.wait_over(1)
    assert response.status_code == 400
    assert REFUSAL_MAX <= len(response.content) <= REFUSAL_MAX + READ_SIZE


def test_a_request_is_sent_as_it_was_built(transport: Transport) -> None:
    """Method, path, query, headers and body arrive; events are never asked for compressed."""
    seen: list[bytes] = []

    def handle(peer: Peer) -> None:
        seen.append(peer.request())
        peer.send(HELLO)

    with RawServer(handle) as server:
        client = httpx2.Client(transport=transport)
        client.post(f"{server.url}/a%20b?c=d", headers={"X-Own": "yes"}, content=b"body")
    head, _, content = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/a%20b?c=d HTTP/1.1"
    assert b"X-Own: yes" in lines
    assert b"Accept-Encoding: identity" in lines
    assert f"host: 127.0.0.1:{server.port}".encode() in [line.lower() for line in lines]
    assert content == b"body"


def test_no_header_smuggles_another(transport: Transport) -> None:
    """A line break in a header is refused before anything is sent."""
    with RawServer(answering(HELLO)) as server:
        request = httpx2.Request("GET", server.url, headers={"X": "a\r\nY: b"})
        with pytest.raises(httpx2.LocalProtocolError):
            transport.handle_request(request)
        assert server.accepted == 0


# --- the pool -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["count?n=5", "content_length?n=5", "400", "html"])
def test_a_connection_is_used_again(transport: Transport, fake: FakeOpenAI, model: str) -> None:
    """After an answer that was read to its end, also a refusal, its connection serves the next."""
    for _ in range(3):
        body = body_of(complete(transport, fake, model))
        read_all(body)
        body.close()
    assert [record.connection for record in fake.requests] == [1, 1, 1]


def test_two_requests_at_once_have_two_connections(transport: Transport, fake: FakeOpenAI) -> None:
    """A connection serves one answer at a time."""
    first = body_of(complete(transport, fake, "stall?n=1"))
    second = body_of(complete(transport, fake, "count?n=1"))
    assert b"[DONE]" in read_all(second)
    second.close()
    fake.requests[0].release()
    assert b"[DONE]" in read_all(first)
    first.close()
    assert [record.connection for record in fake.requests] == [1, 2]


def test_an_answer_that_was_left_takes_its_connection_along(
    transport: Transport, fake: FakeOpenAI
) -> None:
    """Closing in mid-answer closes the connection: the server notices, nothing more is written."""
    body = body_of(complete(transport, fake, "stall?n=1"))
    body.read()
    body.close()
    body.close()
    assert fake.wait_request(0).closed.wait(WAIT_TIMEOUT)
    fetch(transport, f"{fake.base_url}/models")
    assert fake.requests[1].connection == 2


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Connection: Keep-Alive, Close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        HELLO + b"and more than that",
    ],
    ids=["close", "close-among-others", "http-1.0", "too-much"],
)
def test_some_connections_are_not_used_again(transport: Transport, response: bytes) -> None:
    """A server that says it closes, or that sends what nobody asked for, is left."""
    with RawServer(answering(response)) as server:
        for _ in range(2):
            assert fetch(transport, server.url) == b"hello"
        assert server.accepted == 2


def test_a_connection_that_was_closed_while_idle_is_replaced(transport: Transport) -> None:
    """A server may close a kept connection at any time: the next request never notices."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)

    with RawServer(once) as server:
        for number in range(1, 4):
            assert fetch(transport, server.url) == b"hello"
            server.wait_over(number)
        assert server.accepted == 3


def close_at_second_request(peer: Peer) -> None:
    """Keep the connection, and close it only when it is used again."""
    peer.request()
    peer.send(HELLO)
    peer.request()


def test_a_connection_that_closes_as_it_is_used_is_replaced_once(transport: Transport) -> None:
    """The race between a server's close and our next request is won by asking once more."""
    with RawServer(close_at_second_request, answering(HELLO)) as server:
        assert fetch(transport, server.url) == b"hello"
        assert fetch(transport, server.url) == b"hello"
        assert server.accepted == 2


def test_a_request_is_not_sent_again_after_a_silence(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection that breaks later than at once may have been worked on: no second POST."""
    monkeypatch.setattr(module, "RESEND_WITHIN", -1.0)  # any time is too late
    with RawServer(close_at_second_request, answering(HELLO)) as server:
        assert fetch(transport, server.url) == b"hello"
        with pytest.raises(httpx2.ReadError):
            fetch(transport, server.url)
        assert server.accepted == 1


def test_a_request_is_not_sent_again_after_a_byte(transport: Transport) -> None:
    """A kept connection that breaks within a response's head was answered: no second POST."""

    def begins_to_answer(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)
        peer.request()
        peer.send(HELLO[:20])

    with RawServer(begins_to_answer, answering(HELLO)) as server:
        assert fetch(transport, server.url) == b"hello"
        with pytest.raises(httpx2.ReadError):
            fetch(transport, server.url)
        assert server.accepted == 1


def never_answers(peer: Peer) -> None:
    """Take a request and close."""
    peer.request()


def test_a_new_connection_that_closes_is_not_replaced(transport: Transport) -> None:
    """The second attempt is the last one: a server that never answers is told as such."""
    with RawServer(close_at_second_request, never_answers) as server:
        fetch(transport, server.url)
        with pytest.raises(httpx2.ReadError):
            fetch(transport, server.url)
        assert server.accepted == 2


def test_idle_connections_are_few_and_fresh(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool holds a bounded number of connections, none older than its time."""
    clock = 0.0
    monkeypatch.setattr(module, "now", lambda: clock)
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    with RawServer(answering(*[HELLO] * 9)) as server:
        bodies = [body_of(get(transport, server.url)) for _ in range(4)]
        for body in bodies:
            read_all_now(body)
            body.close()
        server.wait_over(2)  # the oldest two went
        clock += module.IDLE_SECONDS
        body = body_of(get(transport, server.url))
        read_all_now(body)
        body.close()
        server.wait_over(4)
        assert server.accepted == 5


def read_all_now(body: Body) -> None:
    while body.read():
        pass


def test_closing_the_transport_closes_its_idle_connections(transport: Transport) -> None:
    """At the end no connection is left open, and closing twice is harmless."""
    with RawServer(answering(HELLO)) as server:
        fetch(transport, server.url)
        transport.close()
        transport.close()
        server.wait_over(1)


def test_another_server_never_gets_a_kept_connection(transport: Transport) -> None:
    """Connections are kept by scheme, host and port."""
    with RawServer(answering(HELLO)) as one, RawServer(answering(HELLO)) as other:
        fetch(transport, one.url)
        fetch(transport, other.url)
        fetch(transport, f"http://localhost:{other.port}/")
        assert (one.accepted, other.accepted) == (1, 2)


# --- silence, and the end -------------------------------------------------------------------------


@pytest.mark.usefixtures("short_ticks")
def test_silence_is_told_and_loses_nothing(transport: Transport) -> None:
    """After a tick of silence `read` says so; what comes later is there in full."""
    speak = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"5\r\nhel")
        speak.wait(WAIT_TIMEOUT)
        peer.send(b"lo\r\n0\r\n\r\n")
        peer.see_leave()

    with RawServer(handle) as server:
        body = body_of(get(transport, server.url))
        assert body.read() == b"hel"
        for _ in range(2):
            with pytest.raises(NoData):
                body.read()
        speak.set()
        assert read_all(body) == b"lo"
        body.close()


@pytest.mark.usefixtures("short_ticks")
def test_a_silent_head_outlasts_the_ticks(transport: Transport, fake: FakeOpenAI) -> None:
    """Waiting for headers is not limited here: whoever has the limits interrupts the line."""
    asked = BackgroundCall(lambda: complete(transport, fake, "silent_headers?seconds=0.2&n=1"))
    assert asked.end() is None
    assert isinstance(asked.result, httpx2.Response)
    assert b"[DONE]" in read_all(body_of(asked.result))
    body_of(asked.result).close()


def test_what_a_selector_waits_for_waits_for_nothing(transport: Transport) -> None:
    """After `unblock` a read is NoData at once, and the connection goes back as it came."""
    speak = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"3\r\nhel\r\n")
        speak.wait(WAIT_TIMEOUT)
        peer.send(b"2\r\nlo\r\n0\r\n\r\n")
        peer.request()
        speak.wait(WAIT_TIMEOUT)
        peer.send(HELLO)
        peer.see_leave()

    with RawServer(handle) as server:
        body = body_of(get(transport, server.url))
        assert body.read() == b"hel"
        body.unblock()
        for _ in range(100):
            with pytest.raises(NoData):
                body.read()
        assert not body.pending
        speak.set()
        with socket.socket(fileno=os.dup(body.fileno())) as same:
            assert readable(same, WAIT_TIMEOUT)
        assert body.read() == b"lo"
        assert read_all(body) == b""
        assert body.complete
        body.close()
        speak.clear()
        asked = BackgroundCall(lambda: (fetch(transport, server.url), time.thread_time()))
        asked.join(0.5)  # for which a head that is waited for in a loop would cost a core
        speak.set()
        assert asked.end() is None
        assert isinstance(asked.result, tuple)
        text, spent = asked.result
        assert (text, server.accepted) == (b"hello", 1)
        assert spent < 0.1


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("kind", ["trailers", "padding", "members"])
def test_what_brings_nothing_for_ever_is_read_in_turns(
    transport: Transport, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a selector waits, a read ends after one piece of it: other streams have their turn."""
    packed = gzip.compress(b"hel")
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(packed)
    begin, piece = {
        "trailers": (CHUNKED + chunk(b"hel") + b"0\r\n", b"a: b\r\n" * READ_SIZE),
        "padding": (head, chunk(bytes(4 * READ_SIZE))),
        "members": (head, chunk(gzip.compress(b"") * READ_SIZE)),
    }[kind]
    over = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(begin)
        with suppress(OSError):
            while not over.is_set():
                peer.send(piece)

    with RawServer(handle) as server:
        body = body_of(get(transport, server.url))
        assert body.read() == b"hel"
        body.unblock()
        received, receive = [0], Body._receive

        def counted(self: Body) -> bytes:
            received[-1] += 1
            assert received[-1] == 1, "a read takes no second piece"
            return receive(self)

        monkeypatch.setattr(Body, "_receive", counted)
        while sum(received) < 100:
            received.append(0)
            assert body.pending or readable(body._sock, WAIT_TIMEOUT)  # type: ignore[arg-type]  # it is open
            with pytest.raises(NoData):
                body.read()
        over.set()
        body.close()


def test_the_openai_client_works_on_it(transport: Transport, fake: FakeOpenAI) -> None:
    """The official client streams, reads whole answers and refusals through this transport."""
    client = openai.OpenAI(
        base_url=fake.base_url,
        api_key="k",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )
    ask = client.chat.completions.create
    messages: Any = [{"role": "user", "content": "hi"}]
    with ask(model="count?n=3", messages=messages, stream=True) as stream:
        said = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert said == "0 1 2 "
    whole = ask(model="count?n=3", messages=messages)
    assert whole.choices[0].message.content == "0 1 2 "
    with pytest.raises(openai.RateLimitError):
        ask(model="429", messages=messages)


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls_fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(tls=True) as server:
        yield server


@pytest.fixture
def tls(tls_fake: FakeOpenAI) -> Iterator[Transport]:
    """A transport that trusts the fake."""
    made = Transport(WAIT_TIMEOUT, ssl.create_default_context(cafile=tls_fake.ca_pem_path))
    yield made
    made.close()


def test_tls_connections_are_used_again(tls: Transport, tls_fake: FakeOpenAI) -> None:
    """Over TLS a long answer comes whole, and its connection serves the next."""
    for _ in range(3):
        body = body_of(complete(tls, tls_fake, "count?n=5000&burst=100"))
        assert read_all(body).count(b"data: ") > 5_000
        body.close()
    assert [record.connection for record in tls_fake.requests] == [1, 1, 1]


def test_a_new_tls_connection_resumes_an_earlier_session(tls_fake: FakeOpenAI) -> None:
    """Its handshake has no certificates. Sessions with other names are left alone."""
    context = ssl.create_default_context(cafile=tls_fake.ca_pem_path)
    with closing(Transport(WAIT_TIMEOUT, context)) as tls:
        for host in ("localhost", "localhost", "127.0.0.1", "localhost"):
            url = f"https://{host}:{tls_fake.port}/v1/models"
            body_of(get(tls, url)).close()  # not read, so its connection is not used again
    assert [record.connection for record in tls_fake.requests] == [1, 2, 3, 4]
    assert context.session_stats()["hits"] == 2


def test_a_session_is_dropped_where_tls_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next connection begins with a whole handshake."""
    monkeypatch.setattr(module, "IDLE_MAX", 0)
    authority, servers = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(servers)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())

    def secure(peer: Peer) -> None:
        peer.sock = servers.wrap_socket(peer.sock, server_side=True)
        answering(HELLO)(peer)

    def leave(_: Peer) -> None:
        pass

    with (
        RawServer(secure, leave, secure) as server,
        closing(Transport(WAIT_TIMEOUT, context)) as tls,
    ):
        url = server.url.replace("http:", "https:")
        fetch(tls, url)
        with pytest.raises(httpx2.ConnectError):
            get(tls, url)
        fetch(tls, url)
        assert context.session_stats()["hits"] == 0
        fetch(tls, url)
        assert context.session_stats()["hits"] == 1


@pytest.mark.usefixtures("short_ticks")
def test_silence_is_told_over_tls_too(tls: Transport, tls_fake: FakeOpenAI) -> None:
    """A tick of silence ends a read over TLS as well, so that heartbeats can be sent."""
    connection = UpstreamConnection()
    body = body_of(complete(tls, tls_fake, "stall?n=1", connection))
    while b'"0 "' not in body.read():
        pass
    reading = BackgroundCall(body.read)
    reading.join(WAIT_TIMEOUT / 4)
    connection.interrupt()
    assert isinstance(reading.end(), NoData)
    body.close()


def test_an_interrupt_ends_a_read_over_tls(tls: Transport, tls_fake: FakeOpenAI) -> None:
    """A Stop closes a TLS connection in mid-answer; the reader wakes, the server notices."""
    connection = UpstreamConnection()
    body = body_of(complete(tls, tls_fake, "stall?n=1", connection))
    reading = BackgroundCall(lambda: read_all(body))
    tls_fake.requests[0].wait_tokens(1)
    connection.interrupt()
    assert isinstance(reading.end(), httpx2.ReadError)
    body.close()
    assert connection.wait_closed(0) == "closed"
    assert tls_fake.requests[0].closed.wait(WAIT_TIMEOUT)


def test_an_unknown_authority_is_not_trusted(transport: Transport, tls_fake: FakeOpenAI) -> None:
    """Without its CA a server's certificate is refused, and nothing is sent to it."""
    with pytest.raises(httpx2.ConnectError) as caught:
        complete(transport, tls_fake, "echo")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    wait_until(lambda: not tls_fake.open_connections)
    assert tls_fake.requests == []


# --- names ----------------------------------------------------------------------------------------


def test_a_resolver_that_is_silent_is_waited_for_as_long_as_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time to connect includes the name's, and however many wait, it is asked for once."""
    asked: list[object] = []
    answer = threading.Event()

    def look_up(*name: object) -> list[object]:
        asked.append(name)
        answer.wait(WAIT_TIMEOUT)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    transport = Transport(0.1)
    try:
        for _ in range(2):
            with pytest.raises(httpx2.ConnectTimeout):
                get(transport, "http://silent.example/v1/models")
        assert len(asked) == 1
    finally:
        answer.set()
        transport.close()


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that are looked up from now on: none of `.invalid` is known, others are this machine's."""
    hosts: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any) -> Any:
        hosts.append(host)
        return real(host if host.endswith(".invalid") else "127.0.0.1", port, *more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


def test_a_name_is_looked_up_anew_after_a_while(
    transport: Transport, look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its addresses serve further connections for CACHE_SECONDS."""
    clock = 0.0
    monkeypatch.setattr(dns, "now", lambda: clock)
    monkeypatch.setattr(module, "IDLE_MAX", 0)
    with RawServer(*[answering(HELLO)] * 4) as server:
        for clock in (0.0, dns.CACHE_SECONDS - 1, dns.CACHE_SECONDS, dns.CACHE_SECONDS + 1):  # noqa: B007
            fetch(transport, f"http://model.example:{server.port}/")
        assert server.accepted == 4
    assert look_ups == ["model.example"] * 2


def test_an_address_that_cannot_be_reached_is_not_kept(
    transport: Transport, look_ups: list[str]
) -> None:
    """A server may have moved: the next attempt asks the resolver."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, f"http://model.example:{port}/")
    assert look_ups == ["model.example"] * 2


def test_an_address_where_tls_fails_is_not_kept(
    transport: Transport, tls_fake: FakeOpenAI, look_ups: list[str]
) -> None:
    """Another server may be there by now."""
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, f"https://model.example:{tls_fake.port}/")
    assert look_ups == ["model.example"] * 2


def test_a_failed_look_up_is_not_kept(transport: Transport, look_ups: list[str]) -> None:
    """A resolver that failed is asked again by the next request."""
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, "http://model.invalid/")
    assert look_ups == ["model.invalid"] * 2


def test_few_names_are_kept(look_ups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first; one that is looked up again is the newest."""
    monkeypatch.setattr(dns, "CACHE_MAX", 2)
    kept = dns.Resolver()
    for host in ("a.example", "b.example", "c.example", "b.example", "a.example"):
        kept.addresses(host, 80, now() + WAIT_TIMEOUT)
    assert [name[0] for name in look_ups] == ["a", "b", "c", "a"]


def test_what_is_no_name_is_not_found(transport: Transport) -> None:
    """A part of a name that is too long is a fault of the address, not of ours."""
    with pytest.raises(httpx2.ConnectError) as caught:
        get(transport, f"http://{'x' * 64}.example/v1/models")
    assert to_upstream_error(caught.value, "").code == "upstream_dns"
