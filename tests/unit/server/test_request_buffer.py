"""RequestBuffer: where a request ends, however it is cut, and its class."""

from __future__ import annotations

import time

import pytest

from halt.server.request_buffer import (
    BODY_MAX,
    FILE_BODY_MAX,
    HEAD_MAX,
    Kind,
    RequestBuffer,
    kind_of,
)

BODY = b'{"messages":[]}'
POST = b"POST /chat/stream HTTP/1.1\r\nHost: localhost\r\n"
SIZED = POST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = (
    POST + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n" + BODY[:5] + b"\r\na\r\n" + BODY[5:]
) + b"\r\n0\r\nTrailer: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

WHOLE = [
    pytest.param(GET, id="no body"),
    pytest.param(SIZED, id="length"),
    pytest.param(CHUNKED, id="chunks"),
    pytest.param(POST + b"Content-Length: 0\r\n\r\n", id="an empty body"),
    pytest.param(CHUNKED.replace(b": chunked", b": gzip, Chunked", 1), id="two codings"),
    pytest.param(
        CHUNKED.replace(b"Tr", b"Transfer-Encoding: identity\r\nTr", 1), id="codings in two lines"
    ),
    pytest.param(b"\r\n" + SIZED, id="an empty line in front"),
]


@pytest.mark.parametrize("request_", WHOLE)
def test_request_ends_at_the_same_byte_in_any_cut(request_: bytes) -> None:
    """A request is complete with its last byte; the bytes after it begin the next request."""
    for first_size in range(1, len(request_)):
        incoming = RequestBuffer()
        assert not incoming.feed(request_[:first_size])
        assert incoming.feed(request_[first_size:] + GET)
        assert incoming.take() == request_
        assert incoming.begin(b"")
        assert (incoming.take(), len(incoming)) == (GET, 0)
    incoming = RequestBuffer()
    ready = [incoming.feed(request_[offset : offset + 1]) for offset in range(len(request_))]
    assert ready == [False] * (len(request_) - 1) + [True]


def test_begin_puts_returned_bytes_first() -> None:
    """Bytes of a request that gunicorn has not used belong to the next request."""
    incoming = RequestBuffer()
    assert incoming.feed(GET + GET[9:])
    assert incoming.take() == GET
    assert incoming.begin(GET[:9])
    assert incoming.take() == GET
    assert not incoming.begin(b"")


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two lengths"),
        pytest.param(
            POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="length and chunks",
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
def test_malformed_request_goes_to_the_server_at_once(malformed: bytes) -> None:
    """The server's own parser decides about a malformed request.

    It may accept some of them and read on: it gets the end of file (`ClientSocket.give`).
    """
    incoming = RequestBuffer()
    assert incoming.feed(malformed)
    assert incoming.kind is not Kind.UPLOAD  # whose threads wait for the client
    assert not incoming.is_whole or malformed.startswith((b"garbage", b"\r\n"))
    assert incoming.take() == malformed


def test_long_body_is_an_upload() -> None:
    """A body beyond the limit is read by a thread, also one of unknown length.

    So is one that is longer than its route allows: a thread refuses it before it has arrived.
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


@pytest.mark.parametrize("size", [0, 5, FILE_BODY_MAX, FILE_BODY_MAX + 1, 10**12])
def test_thread_gets_a_file_when_much_of_it_is_here(size: int) -> None:
    """So a client that sends a file slowly holds no thread; a short file is whole by then."""
    head = b"POST /files?name=a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    body = bytes(min(size, FILE_BODY_MAX))
    incoming = RequestBuffer(body_max=1024)
    if body:
        assert not incoming.feed(head + body[:-1])
        assert incoming.feed(body[-1:])
    else:
        assert incoming.feed(head)
    assert incoming.kind is Kind.UPLOAD
    assert incoming.is_whole == (size <= FILE_BODY_MAX)
    assert incoming.take() == head + body


def test_thread_gets_a_file_of_unknown_length_when_much_of_it_is_here() -> None:
    """As one with a length."""
    head = b"POST /files?name=a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    incoming = RequestBuffer()
    assert not incoming.feed(head + b"%x\r\n" % (2 * FILE_BODY_MAX))
    assert not incoming.feed(bytes(FILE_BODY_MAX - 200))
    assert incoming.feed(bytes(1000))
    assert not incoming.is_whole
    incoming = RequestBuffer()
    assert incoming.feed(head + b"5\r\nabcde\r\n0\r\n\r\n")
    assert incoming.is_whole


def test_expect_100_continue_is_reported_until_the_body_comes() -> None:
    """`Expect: 100-continue` is reported while the body has not arrived, for HTTP/1.1 alone."""
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


def test_empty_line_before_a_request_changes_no_class() -> None:
    """An empty line before a request, which the server skips, does not change its class."""
    for request in (SIZED, b"POST /chat HTTP/1.1\r\n\r\n"):
        incoming = RequestBuffer()
        assert incoming.feed(b"\r\n" + request)
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
        ("POST /files?name=a.png HTTP/1.1", Kind.UPLOAD),
        ("POST /files/messages/some_conversation HTTP/1.1", Kind.UPLOAD),
        ("POST /import HTTP/1.1", Kind.UPLOAD),
        ("GET /files/some_hash HTTP/1.1", Kind.PAGE),
        ("GET /files/some_hash/thumbnail HTTP/1.1", Kind.PAGE),
        ("GET /files/some_hash/download?name=a.png HTTP/1.1", Kind.STREAM),
        ("GET /ws HTTP/1.1", Kind.SOCKET),
        ("GET /ws#fragment HTTP/1.1", Kind.SOCKET),
        ("POST other://localhost/chat/stream HTTP/1.1", Kind.STREAM),
        ("POST http://[ HTTP/1.1", Kind.QUICK),
        ("GET / HTTP/1.1", Kind.PAGE),
        ("GET http://localhost HTTP/1.1", Kind.PAGE),
        ("GET /c/some_conversation HTTP/1.1", Kind.PAGE),
        ("GET /v1/models HTTP/1.1", Kind.MODELS),
        ("GET /settings HTTP/1.1", Kind.PAGE),
        ("GET /settings/models HTTP/1.1", Kind.MODELS),
        ("POST /settings/models/add/groq HTTP/1.1", Kind.MODELS),
        ("POST /settings/models/try/add/groq HTTP/1.1", Kind.STREAM),
        ("GET /login HTTP/1.1", Kind.QUICK),
        ("GET /login/oidc/callback?code=x HTTP/1.1", Kind.MODELS),
        ("GET /static/js/main.js HTTP/1.1", Kind.QUICK),
        ("POST //chat/stream HTTP/1.1", Kind.STREAM),
        ("POST /chat/stream#part HTTP/1.1", Kind.STREAM),
        ("GET http://[::1/ HTTP/1.1", Kind.QUICK),
        ("GET", Kind.QUICK),
        ("", Kind.QUICK),
    ],
)
def test_kind_of_follows_the_request_line(line: str, kind: Kind) -> None:
    """The class of a request, which decides its threads, follows from its first line."""
    assert kind_of(line.encode()) is kind


def test_every_streaming_route_has_a_streaming_class(
    app_routes: list[tuple[str, str, bool]],
) -> None:
    """A route has no class of short responses if it streams or reads files, and the reverse."""
    for method, path, is_lasting in app_routes:
        kind = kind_of(f"{method} {path} HTTP/1.1".encode())
        assert kind.is_short is not is_lasting, (method, path)


@pytest.fixture
def app_routes() -> list[tuple[str, str, bool]]:
    """Method and path of each route, and whether it streams its response or reads files."""
    lasting = {
        "files.download",
        "files.send_with_files",
        "files.upload",
        "plain.chat",
        "plain.stream",
        "providers.try_changed",
        "providers.try_new",
        "streams.chat_stream",
        "streams.follow",
        "pages.send",
        "pages.regenerate",
        "pages.continue_",
        "pages.pictures",  # waits until they are kept
        "pages.stream",
        "sidebar.export",
        "sidebar.export_all",
        "sidebar.import_",
        "openai_api.completions",
        "sockets.talk",
        "sockets.plain",
    }
    from app import app  # noqa: PLC0415

    assert lasting <= {rule.endpoint for rule in app.url_map.iter_rules()}
    return [
        (method, str(rule).replace("<", "").replace(">", ""), rule.endpoint in lasting)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]


def test_head_in_single_bytes_takes_linear_time() -> None:
    """A head of 60,000 single bytes takes less than a second of CPU time.

    A look at all bytes so far for each of them would take several.
    """
    incoming = RequestBuffer()
    head = b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000
    start = time.thread_time()
    for offset in range(len(head)):
        incoming.feed(head[offset : offset + 1])
    assert time.thread_time() - start < 1
