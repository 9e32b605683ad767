"""Requests that two servers could parse in two ways: a request hidden in them is never executed.

The hidden request is a Stop. A stream that is started with its ID afterwards shows whether it was
executed: an earlier Stop ends the stream at once.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, new_id, settings

INSIDE = b"POST /stop/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
POST = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt that only this file uses."""
    server = HaltServer(settings(shared_fake))
    yield server
    server.close()


def two_lengths(transfer_encoding: bytes) -> bytes:
    """A length that covers the request inside, and chunks that end before it."""
    return POST + b"Content-Length: %(all)d\r\n" + transfer_encoding + b"\r\n" + END + b"%(in)b"


def length(line: bytes) -> bytes:
    """A Content-Length that is invalid or ambiguous."""
    return POST + line + b"\r\n12345%(in)b"


def chunk(size: bytes, after: bytes = b"\r\n") -> bytes:
    """A chunk whose size is invalid or ambiguous."""
    return POST + CHUNKED + b"\r\n" + size + after + b"12345\r\n" + END + b"%(in)b"


def head(lines: bytes) -> bytes:
    """A head whose end or whose lines are ambiguous."""
    return lines + b"%(in)b"


#: Name of the case -> bytes. %(in)b stands for the request inside, %(all)d for a length that covers it.
CASES: dict[str, bytes] = {
    # Two lengths.
    "length and chunks": two_lengths(CHUNKED),
    "chunks and length": POST
    + CHUNKED
    + b"Content-Length: 4\r\n\r\n5\r\n12345\r\n"
    + END
    + b"%(in)b",
    "blank before colon": two_lengths(b"Transfer-Encoding : chunked\r\n"),
    "tab before colon": two_lengths(b"Transfer-Encoding\t: chunked\r\n"),
    "blank before name": two_lengths(b" Transfer-Encoding: chunked\r\n"),
    "tab before name": two_lengths(b"\tTransfer-Encoding: chunked\r\n"),
    "tab before value": two_lengths(b"Transfer-Encoding:\tchunked\r\n"),
    "no blank": two_lengths(b"Transfer-Encoding:chunked\r\n"),
    "folded": two_lengths(b"Transfer-Encoding:\r\n chunked\r\n"),
    "folded behind": two_lengths(b"Transfer-Encoding: chunked\r\n , identity\r\n"),
    "other name": two_lengths(b"Transfer-Encoding: xchunked\r\n"),
    "capitals": two_lengths(b"TRANSFER-ENCODING: CHUNKED\r\n"),
    "underscore": two_lengths(b"Transfer_Encoding: chunked\r\n"),
    "identity last": two_lengths(b"Transfer-Encoding: chunked, identity\r\n"),
    "identity first": two_lengths(b"Transfer-Encoding: identity, chunked\r\n"),
    "chunked twice": two_lengths(b"Transfer-Encoding: chunked, chunked\r\n"),
    "two lines": two_lengths(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
    "two lines turned": two_lengths(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"
    ),
    "gzip": two_lengths(b"Transfer-Encoding: gzip, chunked\r\n"),
    "quoted": two_lengths(b'Transfer-Encoding: "chunked"\r\n'),
    "parameter": two_lengths(b"Transfer-Encoding: chunked;q=1\r\n"),
    "empty": two_lengths(b"Transfer-Encoding:\r\n"),
    "vertical tab": two_lengths(b"Transfer-Encoding: \x0bchunked\r\n"),
    "vertical tab behind": two_lengths(b"Transfer-Encoding: chunked\x0b\r\n"),
    "nul": two_lengths(b"Transfer-Encoding: chunked\x00\r\n"),
    "nul in the name": two_lengths(b"Transfer-Encoding\x00: chunked\r\n"),
    "behind a bare LF": two_lengths(b"X: x\nTransfer-Encoding: chunked\r\n"),
    "behind a bare CR": two_lengths(b"X: x\rTransfer-Encoding: chunked\r\n"),
    "high bytes": two_lengths(b"Transfer-Encoding: chunked\xff\r\n"),
    "hop by hop": two_lengths(b"Connection: content-length\r\nTransfer-Encoding: chunked\r\n"),
    "of HTTP/1.0": two_lengths(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"),
    # Invalid lengths.
    "two lengths": length(b"Content-Length: 5\r\nContent-Length: %(all)d\r\n"),
    "two lengths turned": length(b"Content-Length: %(all)d\r\nContent-Length: 5\r\n"),
    "list of lengths": length(b"Content-Length: 5, %(all)d\r\n"),
    "plus": length(b"Content-Length: +5\r\n"),
    "minus": length(b"Content-Length: -5\r\n"),
    "hexadecimal": length(b"Content-Length: 0x5\r\n"),
    "two numbers": length(b"Content-Length: 5 5\r\n"),
    "underscores": length(b"Content-Length: 0_5\r\n"),
    "not ASCII": length("Content-Length: \uff15\r\n".encode()),
    "superscript": length(b"Content-Length: \xb2\r\n"),
    "exponent": length(b"Content-Length: 5e0\r\n"),
    "fraction": length(b"Content-Length: 5.0\r\n"),
    "no number": length(b"Content-Length: \r\n"),
    "length, blank before colon": length(b"Content-Length : 5\r\n"),
    "length, blank before name": length(b" Content-Length: 5\r\n"),
    "length, folded": length(b"Content-Length:\r\n 5\r\n"),
    "length, vertical tab": length(b"Content-Length: \x0b5\r\n"),
    "length, nul": length(b"Content-Length: 5\x00\r\n"),
    "2 to the 64th": length(b"Content-Length: 18446744073709551621\r\n"),
    # Sizes of chunks.
    "chunk 0x": chunk(b"0x5"),
    "chunk plus": chunk(b"+5"),
    "chunk minus": chunk(b"-5"),
    "chunk underscore": chunk(b"0_5"),
    "chunk blank before": chunk(b" 5"),
    "chunk vertical tab": chunk(b"5\x0b"),
    "chunk nul": chunk(b"5\x00"),
    "chunk bare LF": chunk(b"5", b"\n"),
    "chunk bare CR": chunk(b"5", b"\r"),
    "chunk LF in an extension": chunk(b"5;a\nb"),
    "chunk CR in an extension": chunk(b"5;a\rb"),
    "chunk no size": chunk(b""),
    "chunk no hexadecimal": chunk(b"5g"),
    "chunk not ASCII": chunk("\uff15".encode()),
    "chunk 2 to the 64th": chunk(b"10000000000000005"),
    "chunk too short": POST + CHUNKED + b"\r\n4\r\n12345\r\n" + END + b"%(in)b",
    "chunk without an end": POST + CHUNKED + b"\r\n5\r\n12345" + END + b"%(in)b",
    "chunk ended by LF": POST + CHUNKED + b"\r\n5\r\n12345\n" + END + b"%(in)b",
    "last chunk ended by LF": POST + CHUNKED + b"\r\n0\n\n%(in)b",
    "trailer without colon": POST + CHUNKED + b"\r\n0\r\nX\r\n\r\n%(in)b",
    "trailer with bare LF": POST + CHUNKED + b"\r\n0\r\nX: y\n\r\n%(in)b",
    # Lines and heads.
    "bare LF": head(b"GET /healthz HTTP/1.1\nHost: localhost\n\n"),
    "bare LF at the end": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\n"),
    "bare CR": head(b"GET /healthz HTTP/1.1\rHost: localhost\r\r"),
    "no colon": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n"),
    "empty name": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n: b\r\n\r\n"),
    "blank in a name": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX Y: b\r\n\r\n"),
    "nul in a value": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n"),
    "folded line": head(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: y\r\n z\r\n\r\n"),
    "folded first line": head(b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n"),
    "two blanks": head(b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "tab": head(b"GET\t/healthz\tHTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "blank in the path": head(b"GET /health z HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "line in the path": head(b"GET /healthz?\r HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "no version": head(b"GET /healthz\r\nHost: localhost\r\n\r\n"),
    "version in small letters": head(b"GET /healthz http/1.1\r\nHost: localhost\r\n\r\n"),
    "version 1.10": head(b"GET /healthz HTTP/1.10\r\nHost: localhost\r\n\r\n"),
    "version 9.9": head(b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n"),
    "method in small letters": head(b"get /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "method with a colon": head(b"GET: /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "no HTTP": head(b"\x00\x01\x02\x03\r\n\r\n"),
}

#: Valid requests whose body looks like another request.
BODIES: dict[str, bytes] = {
    "a body of a GET": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "an unread body": POST + b"Content-Length: %(len)d\r\n\r\n%(in)b",
    "unread chunks": POST + CHUNKED + b"\r\n%(len)x\r\n%(in)b\r\n" + END,
    "a body of an unknown route": b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "a body that is refused": b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "a body behind Expect": b"POST /stop HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "a body of an upgrade": b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "h2c": b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: %(len)d\r\n\r\n%(in)b",
    "a long body": b"POST /stop HTTP/1.1\r\nHost: localhost\r\nContent-Length: %(more)d\r\n\r\n"
    + b" " * 70_000
    + b"%(in)b",
}


@pytest.mark.parametrize("name", [*CASES, *BODIES])
def test_smuggled_request_is_never_executed(server: HaltServer, name: str) -> None:
    """A request inside another one is not executed and has no response, whether the outer one is
    refused or not.
    """
    stop_id = new_id()
    inside = INSIDE % stop_id.encode()
    values = {b"in": inside, b"all": len(END + inside), b"len": len(inside)}
    request = {**CASES, **BODIES}[name] % (values | {b"more": 70_000 + len(inside)})
    for path in (b"/healthz", b"/stop", b"/chat"):  # /healthz takes no body
        answers = statuses(raw_answer(server, request.replace(b"POST /healthz", b"POST " + path)))
        assert len(answers) <= 1, (path, answers)
        if name in CASES:
            assert not answers or 400 <= answers[0] < 600, (path, answers)
    with server.client().chat("count?n=2", id=stop_id) as events:
        assert events.to_end().terminal["type"] == "done", "the request inside was executed"


def raw_answer(server: HaltServer, request: bytes) -> bytes:
    """Send the request and half-close; all bytes of the server's answer."""
    with socket.create_connection((server.host, server.port), timeout=10) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        try:
            while piece := sock.recv(65_536):
                data += piece
        except ConnectionResetError:
            pass
    return data


def statuses(data: bytes) -> list[int]:
    """The status of each final answer."""
    numbers = [int(number) for number in re.findall(rb"HTTP/1\.[01] (\d\d\d) ", data)]
    return [status for status in numbers if status >= 200]


def test_pipelined_requests_are_both_executed(server: HaltServer) -> None:
    """Both of two validly pipelined requests are executed, so the tests above can fail."""
    stop_id = new_id()
    both = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + INSIDE % stop_id.encode()
    assert statuses(raw_answer(server, both)) == [200, 202]
    with server.client().chat("count?n=2", id=stop_id) as events:
        assert events.to_end().terminal["type"] == "cancelled"


@pytest.mark.parametrize(
    "refused", [b"Host: elsewhere", b"Origin: http://elsewhere", b"Expect: 100-continue"]
)
def test_request_refused_before_its_body_has_one_answer(server: HaltServer, refused: bytes) -> None:
    """A broken body of a refused request gets no answer of its own."""
    line = refused + b"\r\n" + (b"" if refused.startswith(b"Host") else b"Host: localhost\r\n")
    request = b"POST /stop HTTP/1.1\r\n" + line + CHUNKED + b"\r\nzz\r\n12345\r\n" + END
    assert len(statuses(raw_answer(server, request))) == 1
