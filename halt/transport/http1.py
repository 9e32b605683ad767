"""HTTP/1.1 on a socket: writes requests, reads response heads, and streams response bodies.

`Framing` and `Inflater` do no I/O. `Body` reads a socket that blocks for at most TICK seconds
(SO_RCVTIMEO; over TLS: poll), or does not block after `unblock`. The caller decides how long a
connection may be silent.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator

import httpx2

from halt.core.connection import TICK, NoData, UpstreamConnection

READ_SIZE = 16_384  # bytes of one read; a stream reads once per turn. A TLS record has no more
HEAD_MAX = 65_536  # bytes of a response's status line and headers
REFUSAL_MAX = 1_048_576  # bytes of a body that is read as a whole: errors, the model list
CHUNK_LINE_MAX = 4_096  # bytes of a chunk's size line with its extensions
LENGTH_DIGITS = 18  # digits of a Content-Length
BODILESS = frozenset({204, 304})  # statuses whose responses never have a body, whatever the headers
STATUS = re.compile(rb"[1-9][0-9]{2}(?= |\Z)")
GZIP = b"\x1f\x8b\x08"  # the first bytes of a gzip stream
INFLATED_MAX = 65_536  # decompressed bytes returned by one read; more stays in the inflater


class NoResponse(httpx2.ReadError):
    """The connection failed before the first byte of a response."""

    waited = 0.0  # seconds since the last byte of the request was sent


def serialize(
    request: httpx2.Request, target: bytes | None = None, extra: list[bytes] | None = None
) -> list[bytes]:
    """The bytes of a request in pieces: one piece, unless its body has several.

    `target` replaces its path, `extra` are further header lines.
    """
    stream = request.stream
    assert isinstance(stream, httpx2.SyncByteStream)  # noqa: S101 - for the type checker
    first, *rest = stream
    target = target or request.url.raw_path
    head = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target), *(extra or ())]
    # Compression would delay events: a compressor buffers its input.
    skip = {b"accept-encoding", b"connection"}
    head += [b"%b: %b" % (k, v) for k, v in request.headers.raw if k.lower() not in skip]
    if any(b"\r" in line or b"\n" in line for line in head):
        raise httpx2.LocalProtocolError("a header holds a line break", request=request)
    return [b"\r\n".join((*head, b"Accept-Encoding: identity", b"", first)), *rest]


def read_head(
    connection: UpstreamConnection, sock: socket.socket, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Read status, headers, and the bytes received after them; skips interim (1xx) responses.

    Raises NoResponse if no byte came, httpx2.ReadError, httpx2.RemoteProtocolError, and
    TimeoutError if the socket has a timeout.
    """
    data = bytearray()
    start = searched = 0  # where the head begins, and how far it was searched for its end
    error_type: type[httpx2.ReadError] = NoResponse
    while True:
        end = data.find(b"\r\n\r\n", searched)
        if end >= 0:
            status, headers = _parse_head(bytes(data[start:end]), request)
            start = searched = end + 4
            if status >= 200:
                return status, headers, bytes(data[start:])
            continue
        if start:
            del data[:start]
            start = 0
        searched = max(0, len(data) - 3)
        if len(data) > HEAD_MAX:
            raise httpx2.RemoteProtocolError("the response's head does not end", request=request)
        try:
            received = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            continue  # after TICK seconds; the relay checks the time limits of the run
        except TimeoutError:
            raise  # still connecting, to a slow proxy
        except OSError as exc:
            raise error_type(str(exc), request=request) from exc
        if not received:
            fault = (
                "interrupted" if connection.interrupted else "the server closed without an answer"
            )
            raise error_type(fault, request=request)
        data += received
        error_type = httpx2.ReadError


def _parse_head(
    head: bytes, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]]]:
    first, *lines = head.split(b"\r\n")
    version, _, tail = first.partition(b" ")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not STATUS.match(tail):
        raise httpx2.RemoteProtocolError("the server does not speak HTTP/1.1", request=request)
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise httpx2.RemoteProtocolError("a header is malformed", request=request)
        headers.append((name, value.strip()))
    if version == b"HTTP/1.0":
        headers.append((b"Connection", b"close"))
    return int(tail[:3]), headers


#: Content codings that `Inflater` decodes, and "identity".
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity"})


class Inflater:
    """Decompresses a body that begins like gzip or zlib data, whatever its Content-Encoding.

    Halt requests no compression, but some servers and proxies compress all the same, and others
    only claim to. Each piece is decompressed as it arrives. A body that begins like compressed
    data, turns out not to be, and has no Content-Encoding is passed through unchanged.
    """

    def __init__(self, label: bytes) -> None:
        self._label = label
        self._begun = b""  # all bytes so far, until the first output
        self._stream: zlib._Decompress | None = None
        self._rest = b""  # bytes still to be decompressed
        self.is_plain = False  # the body, or the rest of it, is not compressed

    @property
    def pending(self) -> bool:
        """True if `feed(b"")` returns more."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """Decompress bytes; returns at most INFLATED_MAX bytes, perhaps none yet.

        Raises zlib.error.
        """
        if self._stream is None:
            data = self._begun + data
            if len(data) < len(GZIP) and (b"deflate" in self._label or GZIP.startswith(data)):
                self._begun = data
                return b""
            if not self._is_compressed(data):
                self.is_plain = True
                return data
            self._stream = zlib.decompressobj(wbits=47)
            self._begun = b""
        elif not self._begun:
            return self._inflated(data)
        self._begun += data
        try:
            inflated = self._inflated(data)
        except zlib.error:
            if self._label:
                raise
            self._rest = b""
            return self.end()
        if inflated or len(self._begun) > READ_SIZE:
            self._begun = b""
        return inflated

    def end(self) -> bytes:
        """The remaining output at the end of the body."""
        self.is_plain = True
        if self._stream is None or (self._begun and not self._stream.eof):
            return self._begun
        return self._stream.flush()

    def _inflated(self, data: bytes) -> bytes:
        stream = self._stream
        assert stream is not None  # noqa: S101 - the caller has made it
        data = self._rest + data
        if stream.eof:
            if data[:1] != GZIP[:1]:
                self._rest = b""  # padding
                return b""
            stream = self._stream = zlib.decompressobj(wbits=47)
        inflated = stream.decompress(data, INFLATED_MAX)
        self._rest = stream.unconsumed_tail or stream.unused_data
        return inflated

    def _is_compressed(self, data: bytes) -> bool:
        if data.startswith(GZIP):
            return True
        # Text begins like a zlib header only by chance.
        is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
        return b"deflate" in self._label and is_zlib


class Framing:
    """Removes the framing of a body: chunks, a length, or none. Does no I/O."""

    def __init__(self, fields: dict[bytes, bytes], status: int) -> None:
        """`fields` are the headers, in lower case. Raises httpx2.RemoteProtocolError."""
        self._partial = b""  # the beginning of a chunk's size line, continued by the next read
        self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
        length = fields.get(b"content-length")
        if status in BODILESS:
            self._chunked = False
            length = b"0"
        self._left: int | None  # bytes left of the chunk or the body; None: unknown
        if self._chunked:
            self._left = 0
        elif length is not None:
            if not length.isdigit() or len(length) > LENGTH_DIGITS:
                raise httpx2.RemoteProtocolError("the length is malformed")
            self._left = int(length)
        else:
            self._left = None  # until the end of file
        self._gap = 0  # bytes left of the line break after a chunk
        self._trailer = False
        self.ends_with_connection = self._left is None
        self.complete = self._left == 0 and not self._chunked
        self.surplus = b""  # bytes received after the body

    def feed(self, raw: bytes) -> bytes:
        """The bytes of the body in `raw`. Raises httpx2.RemoteProtocolError."""
        if not self._chunked:
            if self._left is not None:
                raw, self.surplus = raw[: self._left], raw[self._left :]
                self._left -= len(raw)
                self.complete = self._left == 0
            return raw
        if self._partial:
            raw, self._partial = self._partial + raw, b""
        return self._unchunked(raw)

    def _unchunked(self, raw: bytes) -> bytes:
        out = []
        at, end = 0, len(raw)
        while at < end:
            if self._left:
                piece = raw[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._gap = 2
                continue
            if self._gap:
                skipped = min(self._gap, end - at)
                at += skipped
                self._gap -= skipped
                continue
            stop = raw.find(b"\r\n", at)
            if (end if stop < 0 else stop) - at > CHUNK_LINE_MAX:
                raise httpx2.RemoteProtocolError("bad chunk")
            if stop < 0:
                self._partial = raw[at:]
                break
            size = raw[at:stop]
            at = stop + 2
            if self._trailer:
                if not size:  # the empty line after the last chunk and its trailers
                    self.complete = True
                    self.surplus = raw[at:]
                    break
                continue
            try:
                self._left = int(size.partition(b";")[0].strip(), 16)
            except ValueError:
                self._left = -1
            if self._left < 0:
                self._left = 0
                raise httpx2.RemoteProtocolError("bad chunk")
            self._trailer = self._left == 0
        return out[0] if len(out) == 1 else b"".join(out)


class Body(httpx2.SyncByteStream):
    """A response body, read piece by piece: each `read` returns what one socket read brought.

    Used by one thread at a time. `close` is safe at any point; it closes the connection unless the
    body was read to its end.
    """

    def __init__(
        self,
        connection: UpstreamConnection,
        sock: socket.socket,
        return_connection: Callable[[socket.socket], None],
        headers: list[tuple[bytes, bytes]],
        rest: bytes,
        status: int = 200,
    ) -> None:
        """`rest`: bytes received together with the head. Raises httpx2.RemoteProtocolError."""
        fields = {name.lower(): value.lower() for name, value in headers}
        self._connection, self._return_connection = connection, return_connection
        self._sock: socket.socket | None = sock
        self._rest = rest
        self._framing = Framing(fields, status)
        self._coding: Inflater | None = Inflater(fields.get(b"content-encoding", b""))
        self._is_reusable = (
            b"close" not in fields.get(b"connection", b"")
            and not self._framing.ends_with_connection
        )
        self._blocks = True

    def __iter__(self) -> Iterator[bytes]:
        """How httpx2 reads a body; see `_pieces`."""
        return self._pieces(REFUSAL_MAX)

    def read_all(self, limit: int) -> bytes | None:
        """Read the whole body, waiting through silence; None if it has more than `limit` bytes.

        Raises httpx2.ReadError and httpx2.RemoteProtocolError when the connection fails or is
        interrupted.
        """
        data = b"".join(self._pieces(limit))
        return data if len(data) <= limit else None

    def _pieces(self, limit: int) -> Iterator[bytes]:
        """The pieces of the body, up to its end or until there are more than `limit` bytes."""
        while limit >= 0:
            with contextlib.suppress(NoData):
                data = self.read()
                if not data:
                    return
                limit -= len(data)
                yield data

    def fileno(self) -> int:
        """The socket's descriptor. Raises OSError after `close`."""
        if self._sock is None:
            raise OSError("the connection is closed")
        return self._sock.fileno()

    def unblock(self) -> None:
        """Make `read` non-blocking, for use with a selector. `close` undoes it."""
        if self._sock is not None:
            self._sock.setblocking(False)
            self._blocks = False

    @property
    def complete(self) -> bool:
        """The body was read to its end."""
        return self._framing.complete

    @property
    def pending(self) -> bool:
        """True if `read` returns or raises without reading from the socket."""
        return (
            self._framing.complete
            or bool(self._rest)
            or (self._coding is not None and self._coding.pending)
            or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)
        )

    def read(self) -> bytes:
        """The next bytes of the body; b"" at its end.

        Raises NoData when nothing has come (after TICK seconds where the socket blocks),
        httpx2.ReadError and httpx2.RemoteProtocolError when the connection fails.
        """
        framing, data, received = self._framing, b"", False
        while not data:
            coding = self._coding
            if coding is not None and coding.pending:
                data = self._decoded(coding, b"")
            elif not framing.complete:
                if received and not self._blocks:
                    raise NoData  # trailers, padding: input without output may go on for long
                received = True
                raw, self._rest = self._rest, b""
                data = framing.feed(raw or self._receive())
                if data and coding is not None:
                    data = self._decoded(coding, data)
            else:
                return b"" if coding is None else self._decoded(coding, None)
        return data

    def _decoded(self, coding: Inflater, data: bytes | None) -> bytes:
        """The decompressed data; `data` None: the end of the body."""
        try:
            data = coding.end() if data is None else coding.feed(data)
        except zlib.error as exc:
            message = f"the compressed body is malformed: {exc}"
            raise httpx2.RemoteProtocolError(message) from exc
        if coding.is_plain:
            self._coding = None
        return data

    def _receive(self) -> bytes:
        sock = self._sock
        if sock is None:
            raise httpx2.ReadError("closed")
        # Over TLS, Python retries after SO_RCVTIMEO, so poll waits there.
        if self._blocks and isinstance(sock, ssl.SSLSocket) and not readable(sock, TICK):
            raise NoData
        try:
            raw = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise NoData from None
        except OSError as exc:
            raise httpx2.ReadError(str(exc)) from exc
        if not raw:
            if self._framing.ends_with_connection and not self._connection.interrupted:
                self._framing.complete = True
            else:
                raise httpx2.ReadError("the body ended early")
        return raw

    def close(self) -> None:
        """Return the connection to the pool if it can be reused, else close it."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        framing = self._framing
        if (
            framing.complete
            and self._is_reusable
            and not (framing.surplus or self._rest or self._connection.interrupted)
        ):
            # If an interrupt comes right here, the pool has a socket that is shut down; the next
            # request sees its end of file before it uses it.
            self._connection.detach()
            sock.setblocking(True)
            self._return_connection(sock)
        else:
            self._connection.close(sock)


def readable(sock: socket.socket, timeout: float) -> bool:
    """Wait at most `timeout` seconds until the socket is readable; True if it is."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poller = select.poll()  # not select.select: it fails for descriptors above 1023
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def body_of(response: httpx2.Response) -> Body:
    """The response's body as Halt's transport made it."""
    body = response.extensions["halt.body"]
    assert isinstance(body, Body)  # noqa: S101
    return body
