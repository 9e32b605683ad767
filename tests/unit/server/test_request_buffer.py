"""Requests on their way in: where each ends, however it is cut, and its class."""

from __future__ import annotations

import time

import pytest

from halt.server.request_buffer import BODY_MAX, HEAD_MAX, Kind, RequestBuffer, kind_of

BODY = b'{"messages":[]}'
POST = b"POST /chat/stream HTTP/1.1\r\nHost: localhost\r\n"
SIZED = POST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = (
    POST + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n" + BODY[:5] + b"\r\na\r\n" + BODY[5:]
) + b"\r\n0\r\nTrailer: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

WHOLE = [
    pytest.param(GET, id="no body"),
    pytest.param(SIZED, id="a length"),
    pytest.param(CHUNKED, id="chunks"),
    pytest.param(POST + b"Content-Length: 0\r\n\r\n", id="an empty body"),
    pytest.param(CHUNKED.replace(b": chunked", b": gzip, Chunked", 1), id="two codings"),
    pytest.param(
        CHUNKED.replace(b"Tr", b"Transfer-Encoding: identity\r\nTr", 1), id="codings in two lines"
    ),
    pytest.param(b"\r\n" + SIZED, id="an empty line in front"),
]


@pytest.mark.parametrize("request_", WHOLE)
def test_a_request_ends_in_the_same_place_however_it_is_cut(request_: bytes) -> None:
    """It is ready with its last byte, and what came behind it is the beginning of the next one."""
    for cut in range(1, len(request_)):
        incoming = RequestBuffer()
        assert not incoming.feed(request_[:cut])
        assert incoming.feed(request_[cut:] + GET)
        assert incoming.take() == request_
        assert incoming.begin(b"")
        assert (incoming.take(), len(incoming)) == (GET, 0)
    incoming = RequestBuffer()
    ready = [incoming.feed(request_[at : at + 1]) for at in range(len(request_))]
    assert ready == [False] * (len(request_) - 1) + [True]


def test_bytes_that_the_server_gave_back_come_first() -> None:
    """What gunicorn has not used of a request belongs to the next one."""
    incoming = RequestBuffer()
    assert incoming.feed(GET + GET[9:])
    assert incoming.take() == GET
    assert incoming.begin(GET[:9])
    assert incoming.take() == GET
    assert not incoming.begin(b"")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two lengths"),
        pytest.param(
            POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", id="length, chunks"
        ),
        pytest.param(POST + b"Content-Length: +5\r\n\r\n", id="a signed length"),
        pytest.param(POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", id="two codings"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", id="no size"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5_000, id="a long extension"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + bytes(HEAD_MAX), id="a long head"),
        pytest.param(b"\r\n\r\n", id="nothing"),
        pytest.param(b"garbage\r\n\r\n", id="garbage"),
    ],
)
def test_what_is_malformed_is_given_to_the_server_at_once(bad: bytes) -> None:
    """The server's own reading decides what becomes of it.

    It may take some of them and read on: it finds the end of file (`ClientSocket.give`).
    """
    incoming = RequestBuffer()
    assert incoming.feed(bad)
    assert incoming.kind is not Kind.UPLOAD  # whose threads wait for the client
    assert not incoming.is_whole or bad.startswith((b"garbage", b"\r\n"))
    assert incoming.take() == bad


def test_a_long_body_is_read_by_a_thread() -> None:
    """Also one whose length is not told.

    So is one that is longer than its route allows: a thread refuses it before it has come.
    """
    incoming = RequestBuffer(body_max=100_000)
    assert incoming.feed(POST + b"Content-Length: 100001\r\n\r\n")
    assert incoming.kind is Kind.UPLOAD
    incoming = RequestBuffer()
    assert incoming.feed(b"POST /stop HTTP/1.1\r\nContent-Length: 65537\r\n\r\n")
    assert incoming.kind is Kind.UPLOAD
    for long in (
        POST + b"Content-Length: %d\r\n\r\n" % (BODY_MAX + 1),
        POST + b"Content-Length: 18446744073709551621\r\n\r\n12345",
        POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % BODY_MAX + bytes(BODY_MAX),
    ):
        incoming = RequestBuffer()
        assert incoming.feed(long)
        assert incoming.kind is Kind.UPLOAD
        assert not incoming.is_whole
        assert incoming.take() == long


def test_a_client_that_waits_for_a_word_is_told() -> None:
    """`Expect: 100-continue`, as long as the body has not come."""
    head = POST + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n"
    incoming = RequestBuffer()
    assert not incoming.feed(head)
    assert incoming.awaits_continue
    assert incoming.feed(BODY)
    incoming = RequestBuffer()
    assert incoming.feed(head + BODY)
    assert not incoming.awaits_continue
    incoming = RequestBuffer()
    assert not incoming.feed(head.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert not incoming.awaits_continue


def test_an_empty_line_in_front_changes_no_class() -> None:
    """The server passes over it."""
    incoming = RequestBuffer()
    assert incoming.feed(b"\r\n" + SIZED)
    assert incoming.kind is Kind.STREAM


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("POST /stop HTTP/1.1", Kind.STOP),
        ("POST /stop?stream_id=x HTTP/1.1", Kind.STOP),
        ("POST /stop/some_stream?seen=3 HTTP/1.1", Kind.STOP),
        ("POST /%73top/some_stream HTTP/1.1", Kind.STOP),
        ("POST http://localhost:8000/stop/some_stream HTTP/1.1", Kind.STOP),
        ("OPTIONS /stop/some_stream HTTP/1.1", Kind.STOP),
        ("POST /stop-all HTTP/1.1", Kind.STOP),
        ("POST /stopper HTTP/1.1", Kind.QUICK),
        ("GET /healthz HTTP/1.1", Kind.HEALTH),
        ("POST /chat/stream HTTP/1.1", Kind.STREAM),
        ("POST /chat%2Fstream HTTP/1.1", Kind.STREAM),
        ("POST /chat HTTP/1.1", Kind.STREAM),
        ("POST /v1/chat/completions HTTP/1.1", Kind.STREAM),
        ("GET /stream?prompt=x HTTP/1.1", Kind.STREAM),
        ("GET /streams/some_stream/page HTTP/1.1", Kind.STREAM),
        ("GET /streams HTTP/1.1", Kind.QUICK),
        ("POST /c/some_conversation/messages HTTP/1.1", Kind.STREAM),
        ("POST /c/some_conversation/pick HTTP/1.1", Kind.PAGE),
        ("GET /ws HTTP/1.1", Kind.SOCKET),
        ("GET /ws#fragment HTTP/1.1", Kind.SOCKET),
        ("POST other://localhost/chat/stream HTTP/1.1", Kind.STREAM),
        ("POST http://[ HTTP/1.1", Kind.QUICK),
        ("GET / HTTP/1.1", Kind.PAGE),
        ("GET http://localhost HTTP/1.1", Kind.PAGE),
        ("GET /c/some_conversation HTTP/1.1", Kind.PAGE),
        ("GET /v1/models HTTP/1.1", Kind.MODELS),
        ("GET /static/halt.js HTTP/1.1", Kind.QUICK),
        ("POST //chat/stream HTTP/1.1", Kind.STREAM),
        ("POST /chat/stream#part HTTP/1.1", Kind.STREAM),
        ("GET http://[::1/ HTTP/1.1", Kind.QUICK),
        ("GET", Kind.QUICK),
        ("", Kind.QUICK),
    ],
)
def test_the_class_follows_from_the_first_line(line: str, kind: Kind) -> None:
    """Threads are given by it."""
    assert kind_of(line.encode()) is kind


def test_an_empty_line_before_a_request_changes_no_class() -> None:
    """The server passes over one."""
    incoming = RequestBuffer()
    assert incoming.feed(b"\r\nPOST /chat HTTP/1.1\r\n\r\n")
    assert incoming.kind is Kind.STREAM


def test_every_route_has_a_class(app_routes: list[tuple[str, str, bool]]) -> None:
    """A route whose response lasts is none of those that are answered as a whole."""
    for method, path, lasts in app_routes:
        kind = kind_of(f"{method} {path} HTTP/1.1".encode())
        assert kind.is_short is not lasts, (method, path)


@pytest.fixture
def app_routes() -> list[tuple[str, str, bool]]:
    """Method, path and whether the response lasts, of what the views say themselves."""
    lasting = {
        "plain.chat",
        "plain.stream",
        "streams.chat_stream",
        "streams.follow",
        "pages.send",
        "pages.regenerate",
        "pages.continue_",
        "pages.stream",
        "sidebar.export",
        "sidebar.export_all",
        "openai_api.completions",
        "sockets.talk",
        "sockets.plain",
    }
    from app import app  # noqa: PLC0415

    return [
        (method, str(rule).replace("<", "").replace(">", ""), rule.endpoint in lasting)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]


def test_a_head_that_comes_byte_by_byte_costs_what_it_is_long() -> None:
    """60,000 bytes one by one: a look at all that came for each byte would take seconds."""
    incoming = RequestBuffer()
    head = b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000
    began = time.process_time()
    for at in range(len(head)):
        incoming.feed(head[at : at + 1])
    assert time.process_time() - began < 1
