"""HTTP/1.1 below the openai client: framing in any cut, the connection pool, TLS and DNS.

Proxies are in test_proxies.py.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import select
import socket
import ssl
import struct
import threading
import time
import zlib
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
from halt.transport.http1 import (
    HEAD_MAX,
    INFLATED_MAX,
    READ_SIZE,
    REFUSAL_MAX,
    Body,
    Inflater,
    readable,
)
from halt.transport.pool import Transport
from tests.support.ports import free_port
from tests.support.raw_server import CHUNKED, HELLO, OK, Peer, RawServer, answering
from tests.support.transport_calls import body_of, fetch, get, read_all
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until


@pytest.fixture(scope="session")
def context() -> ssl.SSLContext:
    """A context for all tests: loading it takes 20 ms, and no test changes it."""
    return httpx2.create_ssl_context()


@pytest.fixture
def transport(context: ssl.SSLContext) -> Iterator[Transport]:
    new_transport = Transport(WAIT_TIMEOUT, context)
    yield new_transport
    new_transport.close()


@pytest.fixture
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read raises NoData after 20 ms of silence instead of a second."""
    monkeypatch.setattr(http1, "TICK", 0.02)
    monkeypatch.setattr(module, "TICK_OPTION", struct.pack("ll", 0, 20_000))


def complete(
    transport: Transport, fake: FakeOpenAI, model: str, connection: UpstreamConnection | None = None
) -> httpx2.Response:
    """Request a streamed completion of the fake."""
    content = json.dumps({"model": model, "messages": [], "stream": True}).encode()
    request = httpx2.Request("POST", f"{fake.base_url}/chat/completions", content=content)
    with use_connection(connection or UpstreamConnection()):
        return transport.handle_request(request)


# --- framing --------------------------------------------------------------------------------------


class CutSocket:
    """A socket that returns these pieces, and raises as in silence for None."""

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
    """Return the bytes of a body of these pieces, and whether its connection can be reused."""
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
    assert sock.blocks is bool(given_back), "the next request would not block until its head"
    return out, bool(given_back)


def cut(stream: bytes, cuts: list[int], silences: set[int]) -> list[bytes | None]:
    """Return the stream in pieces, with None before the pieces of these numbers."""
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
def test_chunked_body_is_the_same_in_any_cut(
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
def test_body_with_content_length_ends_there(data: bytes, cuts: list[int], silent: bool) -> None:
    """Content-Length ends a body in any cut, and the connection can be reused."""
    headers = [(b"content-length", b"%d" % len(data))]
    pieces = cut(data, cuts, {0} if silent else set())
    assert unframed(headers, pieces) == (data, True)
    reads_on = unframed(headers, [*pieces, b"unasked for"])[0]
    assert reads_on == data


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 80)))
def test_body_without_length_ends_with_its_connection(data: bytes, cuts: list[int]) -> None:
    """Without chunks or a length, all bytes up to the close are the body."""
    assert unframed([], cut(data, cuts, set())) == (data, False)


@pytest.mark.parametrize(
    "stream",
    [b"xyz\r\n", b"-5\r\nhello\r\n", b"\r\n", b";a\r\n", b"5 5\r\n", b"a" * 5_000, b"5\nhello\n"],
)
def test_malformed_chunk_is_a_protocol_error(stream: bytes) -> None:
    """A malformed or endless chunk size is a protocol error."""
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
def test_body_that_ends_early_is_a_read_error(
    headers: list[tuple[bytes, bytes]], piece: bytes
) -> None:
    """A connection that closes in the middle of its body never counts as a complete answer."""
    with pytest.raises(httpx2.ReadError):
        unframed(headers, [piece])


# --- content coding ------------------------------------------------------------------------------

PLAIN = b"data: one\n\ndata: two\n\n"
RAW_ZLIB = zlib.compress(PLAIN)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_inflater_gives_the_same_bytes_in_any_cut(size: int) -> None:
    """Compressed bytes are inflated equally in any cut; several gzip members may follow another."""
    packed = gzip.compress(b"one ") + gzip.compress(b"two")
    for label, data, expected in ((b"", packed, b"one two"), (b"deflate", RAW_ZLIB, PLAIN),
                              (b"deflate", b"x", b"x"), (b"", b"\x1f", b"\x1f"), (b"gzip", b"hi", b"hi")):  # fmt: skip
        inflater, out = Inflater(label), b""
        for start in range(0, len(data), size):
            out += inflater.feed(data[start : start + size])
            while inflater.pending:
                out += inflater.feed(b"")
        assert out + inflater.end() == expected


@pytest.mark.parametrize("label", [b"gzip", b""])
def test_inflater_output_of_one_read_is_bounded(label: bytes) -> None:
    """One read inflates to INFLATED_MAX bytes at most; the rest follows without the network."""
    bomb = gzip.compress(b"\0" * (20 * INFLATED_MAX), 9)
    assert len(bomb) < INFLATED_MAX
    inflater = Inflater(label)
    pieces = [inflater.feed(bomb)]
    while inflater.pending:
        pieces.append(inflater.feed(b""))
    assert max(map(len, pieces)) == INFLATED_MAX
    assert b"".join(pieces) + inflater.end() == b"\0" * (20 * INFLATED_MAX)


# --- heads ----------------------------------------------------------------------------------------


def test_interim_responses_are_skipped(transport: Transport) -> None:
    """Responses 100 and 103 before the response are skipped, also split or in one packet
    with it.
    """

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early", b" Hints\r\nLink: x\r\n\r\n")
        peer.send(HELLO)
        peer.wait_client_left()

    with RawServer(handle) as server:
        assert fetch(transport, server.url) == b"hello"


def test_response_in_single_bytes_is_read(transport: Transport) -> None:
    """A response that comes in single bytes is read as any other."""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(*(HELLO[i : i + 1] for i in range(len(HELLO))))
        peer.wait_client_left()

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
def test_malformed_head_is_a_protocol_error_and_closes_the_connection(
    transport: Transport, head: bytes
) -> None:
    """A head that is not HTTP/1.1 is a protocol error at once; no socket is left open."""
    connection = UpstreamConnection()
    with RawServer(answering(head)) as server:
        with pytest.raises(httpx2.RemoteProtocolError):
            fetch(transport, server.url, connection)
        assert connection.wait_closed(0) == "closed"
        server.wait_over(1)


def test_endless_head_is_refused_after_head_max(transport: Transport) -> None:
    """An endless head is refused after HEAD_MAX bytes, and the connection is closed."""
    sent_size = 0

    def handle(peer: Peer) -> None:
        nonlocal sent_size
        peer.request()
        peer.send(OK)
        while True:  # until the client closes
            peer.send(b"X: " + b"x" * 1_000 + b"\r\n")
            sent_size += 1_000

    with RawServer(handle) as server:
        with pytest.raises(httpx2.RemoteProtocolError, match="does not end"):
            get(transport, server.url)
        server.wait_over(1)
    assert sent_size >= HEAD_MAX - READ_SIZE


def test_response_204_has_no_body(transport: Transport) -> None:
    """A response 204 has neither body nor length: it ends at once, not with the connection."""
    with RawServer(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        body = body_of(get(transport, server.url))
        try:
            assert body.read() == b""
        finally:
            body.close()


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_body_of_an_error_response_is_read_up_to_refusal_max(
    transport: Transport, framing: bytes
) -> None:
    """An error's body is read up to REFUSAL_MAX bytes, then the connection is closed."""
    chunk = (b"2710\r\n" if b"chunked" in framing else b"") + b"x" * 10_000
    chunk += b"\r\n" if b"chunked" in framing else b""

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 400 Bad Request\r\n", framing, b"\r\n\r\n")
        while True:  # until the client closes
            peer.send(chunk)

    with RawServer(handle) as server:
        client = httpx2.Client(transport=transport)
        response = client.get(server.url)
        server.wait_over(1)
    assert response.status_code == 400
    assert REFUSAL_MAX <= len(response.content) <= REFUSAL_MAX + READ_SIZE


def test_request_is_sent_as_it_was_built(transport: Transport) -> None:
    """Method, path, query, headers and body arrive; compression is never requested."""
    received_requests: list[bytes] = []

    def handle(peer: Peer) -> None:
        received_requests.append(peer.request())
        peer.send(HELLO)

    with RawServer(handle) as server:
        client = httpx2.Client(transport=transport)
        client.post(f"{server.url}/a%20b?c=d", headers={"X-Own": "yes"}, content=b"body")
    head, _, content = received_requests[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/a%20b?c=d HTTP/1.1"
    assert b"X-Own: yes" in lines
    assert b"Accept-Encoding: identity" in lines
    assert f"host: 127.0.0.1:{server.port}".encode() in [line.lower() for line in lines]
    assert content == b"body"


def test_line_break_in_a_request_header_is_refused(transport: Transport) -> None:
    """A line break in a header is refused before anything is sent."""
    with RawServer(answering(HELLO)) as server:
        request = httpx2.Request("GET", server.url, headers={"X": "a\r\nY: b"})
        with pytest.raises(httpx2.LocalProtocolError):
            transport.handle_request(request)
        assert server.accepted == 0


# --- the pool -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["count?n=5", "content_length?n=5", "400", "html"])
def test_connection_is_reused_after_a_response_was_read(
    transport: Transport, fake: FakeOpenAI, model: str
) -> None:
    """After a response was read to its end, also an error, its connection serves the next."""
    for _ in range(3):
        body = body_of(complete(transport, fake, model))
        read_all(body)
        body.close()
    assert [record.connection for record in fake.requests] == [1, 1, 1]


def test_concurrent_requests_use_separate_connections(
    transport: Transport, fake: FakeOpenAI
) -> None:
    """Concurrent requests use separate connections: each serves one response at a time."""
    first = body_of(complete(transport, fake, "stall?n=1"))
    second = body_of(complete(transport, fake, "count?n=1"))
    assert b"[DONE]" in read_all(second)
    second.close()
    fake.requests[0].release()
    assert b"[DONE]" in read_all(first)
    first.close()
    assert [record.connection for record in fake.requests] == [1, 2]


def test_closing_a_body_early_closes_its_connection(transport: Transport, fake: FakeOpenAI) -> None:
    """Closing in mid-response closes the connection; the server sees it."""
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
def test_unreusable_connections_are_replaced(transport: Transport, response: bytes) -> None:
    """A connection with `close`, of HTTP/1.0 or with bytes after its body is not reused."""
    with RawServer(answering(response)) as server:
        for _ in range(2):
            assert fetch(transport, server.url) == b"hello"
        assert server.accepted == 2


def test_idle_connection_closed_by_the_server_is_replaced(transport: Transport) -> None:
    """A server may close an idle connection at any time: the next request succeeds."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.send(HELLO)

    with RawServer(once) as server:
        for number in range(1, 4):
            assert fetch(transport, server.url) == b"hello"
            server.wait_over(number)
        assert server.accepted == 3


def close_at_second_request(peer: Peer) -> None:
    """Keep the connection open, and close it at its second request."""
    peer.request()
    peer.send(HELLO)
    peer.request()


def test_reused_connection_that_closes_at_once_is_replaced(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request on a reused connection that closes without a byte is sent again."""
    monkeypatch.setattr(module, "RESEND_WITHIN", WAIT_TIMEOUT)  # the server may be slow to close
    with RawServer(close_at_second_request, answering(HELLO)) as server:
        assert fetch(transport, server.url) == b"hello"
        assert fetch(transport, server.url) == b"hello"
        assert server.accepted == 2


def test_request_is_not_resent_after_resend_within(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a reused connection closes later than RESEND_WITHIN, no second POST is sent."""
    monkeypatch.setattr(module, "RESEND_WITHIN", -1.0)  # any time is too late
    with RawServer(close_at_second_request, answering(HELLO)) as server:
        assert fetch(transport, server.url) == b"hello"
        with pytest.raises(httpx2.ReadError):
            fetch(transport, server.url)
        assert server.accepted == 1


def test_request_is_not_resent_after_a_byte_of_the_response(transport: Transport) -> None:
    """If a reused connection breaks within a response's head, no second POST is sent."""

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


def test_new_connection_that_closes_is_a_read_error(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new connection that closes is a read error: a request is sent twice at most."""
    monkeypatch.setattr(module, "RESEND_WITHIN", WAIT_TIMEOUT)  # the server may be slow to close
    with RawServer(close_at_second_request, never_answers) as server:
        fetch(transport, server.url)
        with pytest.raises(httpx2.ReadError):
            fetch(transport, server.url)
        assert server.accepted == 2


def test_pool_bounds_number_and_age_of_idle_connections(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool keeps IDLE_MAX idle connections at most, each for IDLE_SECONDS at most."""
    clock = 0.0
    monkeypatch.setattr(module, "now", lambda: clock)
    monkeypatch.setattr(module, "IDLE_MAX", 2)
    with RawServer(answering(*[HELLO] * 9)) as server:
        bodies = [body_of(get(transport, server.url)) for _ in range(4)]
        for body in bodies:
            read_all_now(body)
            body.close()
        server.wait_over(2)  # the oldest two were closed
        clock += module.IDLE_SECONDS
        body = body_of(get(transport, server.url))
        read_all_now(body)
        body.close()
        server.wait_over(4)
        assert server.accepted == 5


def read_all_now(body: Body) -> None:
    while body.read():
        pass


def test_transport_close_closes_idle_connections(transport: Transport) -> None:
    """Closing the transport leaves no connection open, and closing twice is harmless."""
    with RawServer(answering(HELLO)) as server:
        fetch(transport, server.url)
        transport.close()
        transport.close()
        server.wait_over(1)


def test_idle_connections_are_kept_by_scheme_host_and_port(transport: Transport) -> None:
    """An idle connection is used only for its scheme, host and port."""
    with RawServer(answering(HELLO)) as first_server, RawServer(answering(HELLO)) as second_server:
        fetch(transport, first_server.url)
        fetch(transport, second_server.url)
        fetch(transport, f"http://localhost:{second_server.port}/")
        assert (first_server.accepted, second_server.accepted) == (1, 2)


# --- silence, and the end -------------------------------------------------------------------------


@pytest.mark.usefixtures("short_ticks")
def test_read_raises_no_data_in_silence_and_loses_no_bytes(transport: Transport) -> None:
    """After a tick of silence `read` raises NoData; later bytes are read in full."""
    speak = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"5\r\nhel")
        speak.wait(WAIT_TIMEOUT)
        peer.send(b"lo\r\n0\r\n\r\n")
        peer.wait_client_left()

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
def test_wait_for_the_head_outlasts_the_ticks(transport: Transport, fake: FakeOpenAI) -> None:
    """The transport does not limit the wait for the head."""
    request = BackgroundCall(lambda: complete(transport, fake, "silent_headers?seconds=0.2&n=1"))
    assert request.end() is None
    assert isinstance(request.result, httpx2.Response)
    assert b"[DONE]" in read_all(body_of(request.result))
    body_of(request.result).close()


def test_unblocked_read_returns_at_once(transport: Transport) -> None:
    """After `unblock` a read is NoData at once, and the connection is reused as a blocking one."""
    speak = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED, b"3\r\nhel\r\n")
        speak.wait(WAIT_TIMEOUT)
        peer.send(b"2\r\nlo\r\n0\r\n\r\n")
        peer.request()
        speak.wait(WAIT_TIMEOUT)
        peer.send(HELLO)
        peer.wait_client_left()

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
        request = BackgroundCall(lambda: (fetch(transport, server.url), time.thread_time()))
        request.join(0.5)  # in which a busy loop would use a whole core
        speak.set()
        assert request.end() is None
        assert isinstance(request.result, tuple)
        text, spent = request.result
        assert (text, server.accepted) == (b"hello", 1)
        assert spent < 0.1


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("kind", ["trailers", "padding", "members"])
def test_unblocked_read_without_data_takes_one_piece(
    transport: Transport, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `unblock` a read without data ends after one piece, so that other streams proceed."""
    packed = gzip.compress(b"hel")
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(packed)
    first_data, piece = {
        "trailers": (CHUNKED + chunk(b"hel") + b"0\r\n", b"a: b\r\n" * READ_SIZE),
        "padding": (head, chunk(bytes(4 * READ_SIZE))),
        "members": (head, chunk(gzip.compress(b"") * READ_SIZE)),
    }[kind]
    test_over = threading.Event()

    def handle(peer: Peer) -> None:
        peer.request()
        peer.send(first_data)
        with suppress(OSError):
            while not test_over.is_set():
                peer.send(piece)

    with RawServer(handle) as server:
        body = body_of(get(transport, server.url))
        assert body.read() == b"hel"
        body.unblock()
        receive_counts, receive = [0], socket.socket.recv

        def count_receive(sock: socket.socket, *args: int) -> bytes:
            if sock.fileno() == body.fileno():
                receive_counts[-1] += 1
                assert receive_counts[-1] == 1, "a read received a second piece"
            return receive(sock, *args)

        poller = select.poll()
        poller.register(body.fileno(), select.POLLIN)
        monkeypatch.setattr(socket.socket, "recv", count_receive)
        while sum(receive_counts) < 100:
            receive_counts.append(0)
            assert body.pending or poller.poll(WAIT_TIMEOUT * 1000)
            with pytest.raises(NoData):
                body.read()
        test_over.set()
        body.close()


def test_openai_client_works_on_the_transport(transport: Transport, fake: FakeOpenAI) -> None:
    """The official client streams, reads whole answers and errors through this transport."""
    client = openai.OpenAI(
        base_url=fake.base_url,
        api_key="k",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )
    create = client.chat.completions.create
    messages: Any = [{"role": "user", "content": "hi"}]
    with create(model="count?n=3", messages=messages, stream=True) as stream:
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == "0 1 2 "
    whole = create(model="count?n=3", messages=messages)
    assert whole.choices[0].message.content == "0 1 2 "
    with pytest.raises(openai.RateLimitError):
        create(model="429", messages=messages)


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls_fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(tls=True) as server:
        yield server


@pytest.fixture
def tls(tls_fake: FakeOpenAI) -> Iterator[Transport]:
    """A transport that trusts the fake."""
    new_transport = Transport(WAIT_TIMEOUT, ssl.create_default_context(cafile=tls_fake.ca_pem_path))
    yield new_transport
    new_transport.close()


def test_tls_connection_is_reused(tls: Transport, tls_fake: FakeOpenAI) -> None:
    """Over TLS a long answer comes whole, and its connection serves the next."""
    for _ in range(3):
        body = body_of(complete(tls, tls_fake, "count?n=5000&burst=100"))
        assert read_all(body).count(b"data: ") > 5_000
        body.close()
    assert [record.connection for record in tls_fake.requests] == [1, 1, 1]


def test_new_tls_connection_resumes_the_session_of_its_host(tls_fake: FakeOpenAI) -> None:
    """A new connection's handshake has no certificates; other host names' sessions are not used."""
    context = ssl.create_default_context(cafile=tls_fake.ca_pem_path)
    with closing(Transport(WAIT_TIMEOUT, context)) as tls:
        for host in ("localhost", "localhost", "127.0.0.1", "localhost"):
            url = f"https://{host}:{tls_fake.port}/v1/models"
            body_of(get(tls, url)).close()  # not read, so its connection is not used again
    assert [record.connection for record in tls_fake.requests] == [1, 2, 3, 4]
    assert context.session_stats()["hits"] == 2


def test_tls_session_is_dropped_after_a_failed_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed handshake the next connection begins with a whole one."""
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
def test_read_over_tls_raises_no_data_in_silence(tls: Transport, tls_fake: FakeOpenAI) -> None:
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


def test_interrupt_ends_a_read_over_tls(tls: Transport, tls_fake: FakeOpenAI) -> None:
    """A Stop closes a TLS connection in mid-answer: the reader wakes, the server sees the close."""
    connection = UpstreamConnection()
    body = body_of(complete(tls, tls_fake, "stall?n=1", connection))
    reading = BackgroundCall(lambda: read_all(body))
    tls_fake.wait_request(0).wait_tokens(1)
    connection.interrupt()
    assert isinstance(reading.end(), httpx2.ReadError)
    body.close()
    assert connection.wait_closed(0) == "closed"
    assert tls_fake.requests[0].closed.wait(WAIT_TIMEOUT)


def test_certificate_of_an_unknown_authority_is_refused(
    transport: Transport, tls_fake: FakeOpenAI
) -> None:
    """Without its CA a server's certificate is refused, and no request is sent to it."""
    with pytest.raises(httpx2.ConnectError) as caught:
        complete(transport, tls_fake, "echo")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    wait_until(lambda: not tls_fake.open_connections)
    assert tls_fake.requests == []


# --- DNS ------------------------------------------------------------------------------------------


def test_silent_resolver_ends_with_the_connect_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A silent resolver ends with the connect timeout, and one look-up serves several callers."""
    names: list[object] = []
    go_on = threading.Event()

    def look_up(*name: object) -> list[object]:
        names.append(name)
        go_on.wait(WAIT_TIMEOUT)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    transport = Transport(0.1)
    try:
        for _ in range(2):
            with pytest.raises(httpx2.ConnectTimeout):
                get(transport, "http://silent.example/v1/models")
        wait_until(lambda: bool(names))  # its thread may start late
        assert len(names) == 1
    finally:
        go_on.set()
        transport.close()


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all look-ups: `.invalid` is unknown, any other name is this machine."""
    hosts: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *options: Any) -> Any:
        hosts.append(host)
        return real(host if host.endswith(".invalid") else "127.0.0.1", port, *options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


def test_name_is_looked_up_again_after_cache_seconds(
    transport: Transport, look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name's addresses serve further connections for CACHE_SECONDS."""
    clock = 0.0
    monkeypatch.setattr(dns, "now", lambda: clock)
    monkeypatch.setattr(module, "IDLE_MAX", 0)
    with RawServer(*[answering(HELLO)] * 4) as server:
        for clock in (0.0, dns.CACHE_SECONDS - 1, dns.CACHE_SECONDS, dns.CACHE_SECONDS + 1):  # noqa: B007
            fetch(transport, f"http://model.example:{server.port}/")
        assert server.accepted == 4
    assert look_ups == ["model.example"] * 2


def test_unreachable_address_is_not_cached(transport: Transport, look_ups: list[str]) -> None:
    """An unreachable address is not cached: the next attempt looks the name up again."""
    port = free_port()
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, f"http://model.example:{port}/")
    assert look_ups == ["model.example"] * 2


def test_address_with_a_failed_tls_handshake_is_not_cached(
    transport: Transport, tls_fake: FakeOpenAI, look_ups: list[str]
) -> None:
    """An address with a failed TLS handshake is not cached: another server may have it now."""
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, f"https://model.example:{tls_fake.port}/")
    assert look_ups == ["model.example"] * 2


def test_failed_look_up_is_not_cached(transport: Transport, look_ups: list[str]) -> None:
    """After a failed look-up the next request looks the name up again."""
    for _ in range(2):
        with pytest.raises(httpx2.ConnectError):
            get(transport, "http://model.invalid/")
    assert look_ups == ["model.invalid"] * 2


def test_resolver_keeps_the_newest_names(
    look_ups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest name is dropped first; a repeated look-up makes a name the newest."""
    monkeypatch.setattr(dns, "CACHE_MAX", 2)
    resolver = dns.Resolver()
    for host in ("a.example", "b.example", "c.example", "b.example", "a.example"):
        resolver.addresses(host, 80, now() + WAIT_TIMEOUT)
    assert [name[0] for name in look_ups] == ["a", "b", "c", "a"]


def test_overlong_host_name_is_an_upstream_dns_error(transport: Transport) -> None:
    """An overlong label in a host name is upstream_dns, not an internal error."""
    with pytest.raises(httpx2.ConnectError) as caught:
        get(transport, f"http://{'x' * 64}.example/v1/models")
    assert to_upstream_error(caught.value, ()).code == "upstream_dns"
