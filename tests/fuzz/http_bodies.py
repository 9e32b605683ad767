"""HTTP/1.1 responses of a model's server, compared with Python's http.client on the same bytes.

Where the two may differ (`may_differ`):
    a head that breaks HTTP/1.1 (lines that end with LF alone, folded headers, lines
    without a colon, another version): Halt refuses it, http.client mends it or cuts it off
    a Content-Length that is not digits alone: Halt refuses it, http.client reads `+5` and `1_0`, and
    up to the end of file for a negative one
    two lengths or codings that differ: the last one counts for Halt, the first for http.client
    a list of transfer codings: for http.client only `chunked` alone is chunked
    101, which Halt never requests and skips like 100
    chunks with 204 and 304: these have no body for Halt, http.client looks for one
    chunks that break the standard, have lines of 4,000 bytes, or end early: either may refuse them,
    but if both read a body, the bodies are equal
"""

from __future__ import annotations

import contextlib
import http.client
import io
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2

from halt.core.connection import UpstreamConnection
from halt.transport.http1 import (
    CHUNK_LINE_MAX,
    GZIP,
    HEAD_MAX,
    INFLATED_MAX,
    READ_SIZE,
    Body,
    read_head,
)
from tests.fuzz.cuts import cuts_of, pieces_of
from tests.fuzz.mutate import mutated
from tests.fuzz.target import Finding, Target

REFUSED = "refused"
#: Heads that follow the standard, which both read the same way.
STRICT = re.compile(
    rb"HTTP/1\.[01] [1-9][0-9][0-9](?: [\x20-\x7e]*)?\r\n(?:[!#-'*+.0-9A-Z^-z|~-]+:[\x20-\x7e]*\r\n)*\r\n"
)


HEADER = re.compile(rb"\n([^:\r]*):([^\r]*)")


class PiecesSocket:
    """A socket that returns given pieces, then the end of file."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.reads_at_end = 0

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            self.reads_at_end += 1
            if self.reads_at_end > 3:
                raise Finding("it reads on behind the end of file")
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def shutdown(self, _: int) -> None: ...

    def close(self) -> None: ...

    def setblocking(self, _: bool) -> None: ...


class WholeSocket:
    """A socket for http.client, with all bytes of a response."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


Result = tuple[int, bytes] | str


def read_by_halt(pieces: list[bytes]) -> Result:
    """Status and body as Halt reads them, or REFUSED."""
    sock: Any = PiecesSocket(pieces)
    connection = UpstreamConnection()
    body_parts: list[bytes] = []
    try:
        status, headers, rest = read_head(connection, sock, None)
        body = Body(connection, sock, lambda _: None, headers, rest, status)
        while data := body.read():
            if len(data) > max(INFLATED_MAX, HEAD_MAX + READ_SIZE):
                raise Finding("a read gives too much", f"{len(data)} bytes")
            body_parts.append(data)
        body.close()
    except (httpx2.ReadError, httpx2.RemoteProtocolError):
        return REFUSED
    return status, b"".join(body_parts)


def read_by_http_client(data: bytes) -> tuple[Result, http.client.HTTPResponse]:
    """The result of http.client for the same bytes, its body as sent."""
    response = http.client.HTTPResponse(WholeSocket(data), method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ValueError, OSError, OverflowError):
        return REFUSED, response
    return (response.status, body), response


class Http1(Target):
    """A response is read as http.client reads it, or refused; the same at every cut."""

    name = "http1"

    def check(self, data: bytes) -> None:
        result = read_by_halt([data])
        reference, response = read_by_http_client(data)
        compressed = _is_compressed(reference, response)
        for cuts in cuts_of(data):
            cut_result = read_by_halt(pieces_of(data, cuts))
            # A body that only begins like a compressed one is passed on as it is.
            if cut_result != result and not (compressed == "unlabelled"):
                raise Finding(
                    "the body depends on the cut", f"{result!r}\ncut at {cuts[:8]}: {cut_result!r}"
                )
        if compressed:
            assert not isinstance(reference, str)
            plain_body = _decompressed(reference[1])
            if compressed == "unlabelled" or plain_body is None:
                return
            reference = reference[0], plain_body
        if result != reference and not may_differ(data, REFUSED in {result, reference}):
            kind = f"http.client: {_kind(reference)}, Halt: {_kind(result)}"
            raise Finding(kind, f"\n{reference!r}\n{result!r}")

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            yield mutated(rng, response_of(rng), 3)


def _kind(result: Result) -> str:
    return REFUSED if isinstance(result, str) else "read"


def _is_compressed(result: Result, response: http.client.HTTPResponse) -> str:
    """Whether Halt undoes a compression: "", "labelled" or "unlabelled"."""
    if isinstance(result, str):
        return ""
    label = (response.getheader("Content-Encoding") or "").lower()
    body = result[1]
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    if body.startswith(GZIP) or ("deflate" in label and is_zlib):
        return "labelled" if label else "unlabelled"
    return ""


def _decompressed(body: bytes) -> bytes | None:
    """The decompressed members of a body; None if it is truncated or malformed."""
    plain_body = b""
    while body:
        member = zlib.decompressobj(wbits=47)
        with contextlib.suppress(zlib.error):
            plain_body += member.decompress(body) + member.flush()
            if member.eof:
                body = member.unused_data
                if body[:1] != GZIP[:1]:
                    return plain_body
                continue
        return None
    return plain_body


def may_differ(data: bytes, is_refused: bool) -> bool:
    """Whether the two may differ about this response. `is_refused`: by one of them."""
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not (end and STRICT.fullmatch(head + end)) or head[9:12] == b"101":
            return True
        if head[9:10] != b"1":  # no interim response
            break
        data = rest
    fields: dict[bytes, set[bytes]] = {}
    for name, value in HEADER.findall(head):
        fields.setdefault(name.lower(), set()).add(value.strip().lower())
    codings = fields.get(b"transfer-encoding", {b""})
    lengths = fields.get(b"content-length", {b"0"})
    if codings - {b"", b"chunked"} or len(lengths) > 1 or len(codings) > 1:
        return True
    if codings != {b"chunked"}:
        return not all(re.fullmatch(rb"[0-9]{1,18}", length) for length in lengths)
    if head[9:12] in {b"204", b"304"}:
        return True
    return is_refused and not _is_strictly_chunked(rest)


CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\x20-\x7e]{0,4000})?\r\n")
END = re.compile(
    rb"0{1,15}(?:;[\x20-\x7e]{0,4000})?\r\n(?:[\x21-\x7e][\x20-\x7e]{0,4000}\r\n)*\r\n"
)


def _is_strictly_chunked(body: bytes) -> bool:
    at = 0
    while not END.match(body, at):
        size = CHUNK.match(body, at)
        if size is None:
            return False
        at = size.end() + int(size[1], 16) + 2
        if at > len(body):
            return False
    return True


def response_of(rng: random.Random) -> bytes:
    """A response, well-formed for the most part."""
    body = rng.choice(
        (b"", b"hello", b"data: {}\n\n" * 3, rng.randbytes(40), b"0\r\n\r\n", b"\x1f\x8b")
    )
    head = [rng.choice((b"HTTP/1.1 200 OK",) * 6 + STATUSES)]
    if rng.random() < 0.2:
        head.insert(0, b"HTTP/1.1 100 Continue\r\nA: b\r\n")
    if rng.random() < 0.25:
        packed = _packed(rng, body)
        if rng.random() < 0.8:
            label = rng.choice((b"gzip", b"gzip", b"deflate", b"x-gzip", b"identity", b"br"))
            head.append(b"Content-Encoding: " + label)
        body = packed
    kind = rng.randrange(5)
    if kind < 2:
        head.append(b"Content-Length: " + rng.choice((b"%d" % len(body),) * 4 + LENGTHS))
    if kind in {1, 2, 3}:
        head.append(b"Transfer-Encoding: " + rng.choice((b"chunked",) * 6 + CODINGS))
        body = _chunked(rng, body)
    head += rng.sample((b"Connection: close", b"X: y", b"x:", b"Content-Type: text/plain"), 2)
    if rng.random() < 0.1:
        body += b"HTTP/1.1 200 OK\r\n\r\n"
    return b"\r\n".join(head) + b"\r\n\r\n" + body


STATUSES = (
    *(b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not", b"HTTP/1.1 500 No"),
    *(
        b"HTTP/1.1 200",
        b"HTTP/1.1 099 x",
        b"HTTP/1.1 101 Switching",
        b"HTTP/2 200",
        b"HTTP/1.1 2000 x",
    ),
)
LENGTHS = (
    *(
        b"0",
        b"-1",
        b"+5",
        b"5 ",
        b"5, 5",
        b"0x5",
        b"1_0",
        b"",
        b"99",
        b"9" * 30,
        b"\xb2",
        b"5\tx",
        b"05",
    ),
)
CODINGS = (b"Chunked", b"identity", b"gzip, chunked", b"chunked, gzip", b"xchunked", b"chunked;q=1")
SIZES = (
    *(
        b"0",
        b"-1",
        b"+5",
        b"5 ",
        b" 5",
        b"0x5",
        b"1_0",
        b"",
        b"z",
        b"5;a=b",
        b"5 ;a",
        b'5;a="\n"',
        b"05",
    ),
    *(b"ffffffffffffffffff", b"5\r", b"5\n", b"\x0c5", b"5;" + b"x" * CHUNK_LINE_MAX),
)


def _chunked(rng: random.Random, body: bytes) -> bytes:
    pieces = []
    while body:
        size = rng.randrange(1, len(body) + 1)
        size_line = rng.choice((b"%x" % size, b"%X" % size) * 8 + SIZES)
        pieces.append(size_line + b"\r\n" + body[:size] + b"\r\n")
        body = body[size:]
    pieces.append(
        rng.choice((b"0\r\n\r\n",) * 5 + (b"0\r\nA: b\r\n\r\n", b"0\r\n", b"000\r\n\r\n", b""))
    )
    return b"".join(pieces)


def _packed(rng: random.Random, body: bytes) -> bytes:
    """The body compressed: in one or two members, with padding, truncated, or a bomb."""
    wbits = rng.choice((31, 31, 31, 15, -15))
    if rng.random() < 0.05:
        body = bytes(2_000_000)
    members = []
    for part in (body, body) if rng.random() < 0.2 else (body,):
        packer = zlib.compressobj(wbits=wbits)
        members.append(packer.compress(part) + packer.flush())
    packed = b"".join(members)
    return rng.choice(
        (packed, packed, packed, packed + bytes(8), packed[:-4], packed[: len(packed) // 2])
    )
