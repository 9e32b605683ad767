"""HTTP/1.1 on a socket: the head of a request, the head of its response, its body as it comes.

`Framing` and `Inflater` do no I/O. `Body` reads a socket that blocks for TICK seconds (SO_RCVTIMEO;
over TLS: poll), or, after `unblock`, one that does not. How long silence may last is not decided
here.
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

from halt.core.connection import TICK, Line, Quiet

READ_SIZE = 16_384  # bytes of one read, which is one turn of a stream; a TLS record has no more
HEAD_MAX = 65_536  # bytes of a response's status line and headers
REFUSAL_MAX = 1_048_576  # bytes of a body that is read as a whole: errors, the list of models
CHUNK_LINE_MAX = 4_096  # bytes of a chunk's size line with its extensions
LENGTH_DIGITS = 18  # of a Content-Length
BODILESS = frozenset({204, 304})  # statuses whose responses have no body, whatever they say
STATUS = re.compile(rb"[1-9][0-9]{2}(?= |\Z)")
GZIP = b"\x1f\x8b\x08"  # the first bytes of a gzip stream
INFLATED_MAX = 65_536  # bytes that one read gives; what is more waits in the inflater


class NoResponse(httpx2.ReadError):
    """The connection failed before the first byte of a response."""

    waited = 0.0  # seconds from the last byte of the request


def serialize(
    request: httpx2.Request, target: bytes | None = None, extra: list[bytes] | None = None
) -> bytes:
    """A request's bytes. `target` stands in for its path, `extra` are further header lines."""
    content = request.read()
    target = target or request.url.raw_path
    head = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target), *(extra or ())]
    # Compressed events would wait for each other in the compressor.
    skip = {b"accept-encoding", b"connection"}
    head += [b"%b: %b" % (k, v) for k, v in request.headers.raw if k.lower() not in skip]
    if any(b"\r" in line or b"\n" in line for line in head):
        raise httpx2.LocalProtocolError("a header holds a line break", request=request)
    return b"\r\n".join((*head, b"Accept-Encoding: identity", b"", content))


def read_head(
    line: Line, sock: socket.socket, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and the bytes that came behind them; interim (1xx) responses are skipped.

    Raises NoResponse where no byte came, httpx2.ReadError, httpx2.RemoteProtocolError, TimeoutError
    while the socket has a timeout.
    """
    data = bytearray()
    start = seen = 0  # where the head begins, and how far its end was looked for
    broken: type[httpx2.ReadError] = NoResponse
    while True:
        end = data.find(b"\r\n\r\n", seen)
        if end >= 0:
            status, headers = _parse_head(bytes(data[start:end]), request)
            start = seen = end + 4
            if status >= 200:
                return status, headers, bytes(data[start:])
            continue
        if start:
            del data[:start]
            start = 0
        seen = max(0, len(data) - 3)
        if len(data) > HEAD_MAX:
            raise httpx2.RemoteProtocolError("the response's head does not end", request=request)
        try:
            more = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            continue  # after TICK seconds; the relay watches the run's limits
        except TimeoutError:
            raise  # still connecting: the proxy is slow
        except OSError as exc:
            raise broken(str(exc), request=request) from exc
        if not more:
            fault = "interrupted" if line.interrupted else "the server closed without an answer"
            raise broken(fault, request=request)
        data += more
        broken = httpx2.ReadError


def _parse_head(
    head: bytes, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]]]:
    first, *lines = head.split(b"\r\n")
    version, _, tail = first.partition(b" ")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not STATUS.match(tail):
        raise httpx2.RemoteProtocolError("the server does not speak HTTP/1.1", request=request)
    headers = []
    for item in lines:
        name, colon, value = item.partition(b":")
        if not colon or not name or name != name.strip():
            raise httpx2.RemoteProtocolError("a header is malformed", request=request)
        headers.append((name, value.strip()))
    if version == b"HTTP/1.0":
        headers.append((b"Connection", b"close"))
    return int(tail[:3]), headers


#: Codings that `Inflater` undoes, and labels for none.
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity"})


class Inflater:
    """Undoes gzip and zlib where a body begins with them, whatever its label says.

    We ask for no compression; some servers and proxies compress all the same, and others only say
    so. Each piece is undone as it comes; what only begins like a compressed body, and is not called
    one, is given as it is.
    """

    def __init__(self, label: bytes) -> None:
        self._label = label
        self._begun = b""  # all bytes so far, until something has come of them
        self._stream: zlib._Decompress | None = None
        self._rest = b""  # bytes that are to be undone
        self.is_plain = False  # the body is not compressed, or what is left of it is not

    @property
    def pending(self) -> bool:
        """More can be had by `feed(b"")`."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """What these bytes stand for, perhaps nothing yet, INFLATED_MAX bytes of it at most.

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
        """The rest, where the body has ended."""
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
        # A zlib header is no text either, but by chance.
        is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
        return b"deflate" in self._label and is_zlib


class Framing:
    """Takes the framing from a body's bytes: chunks, a length, or none. Does no I/O."""

    def __init__(self, fields: dict[bytes, bytes], status: int) -> None:
        """`fields` are the head's, in lower case. Raises httpx2.RemoteProtocolError."""
        self._partial = b""  # the beginning of a size line, to which the next read adds
        self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
        length = fields.get(b"content-length")
        if status in BODILESS:
            self._chunked = False
            length = b"0"
        self._left: int | None  # bytes to come of the chunk or of the body; None: not known
        if self._chunked:
            self._left = 0
        elif length is not None:
            if not length.isdigit() or len(length) > LENGTH_DIGITS:
                raise httpx2.RemoteProtocolError("the length is malformed")
            self._left = int(length)
        else:
            self._left = None  # until the end of file
        self._gap = 0  # bytes of the line break behind a chunk that are still to come
        self._trailer = False
        self.ends_with_connection = self._left is None
        self.complete = self._left == 0 and not self._chunked
        self.surplus = b""  # bytes that came behind the body

    def feed(self, raw: bytes) -> bytes:
        """The body's own bytes in these. Raises httpx2.RemoteProtocolError."""
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
                step = min(self._gap, end - at)
                at += step
                self._gap -= step
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
                if not size:  # the empty line behind the last chunk and its trailers
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
    """A response's body as it comes: what one read of the socket brought, without its framing.

    Used by one thread at a time. `close` is safe at any point and closes the connection unless the
    body was read to its end.
    """

    def __init__(
        self,
        line: Line,
        sock: socket.socket,
        return_connection: Callable[[socket.socket], None],
        headers: list[tuple[bytes, bytes]],
        rest: bytes,
        status: int = 200,
    ) -> None:
        """`rest` are bytes that came with the head. Raises httpx2.RemoteProtocolError."""
        fields = {name.lower(): value.lower() for name, value in headers}
        self._line, self._return_connection = line, return_connection
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
        """As httpx2 reads a body: see `_pieces`."""
        return self._pieces(REFUSAL_MAX)

    def read_all(self, most: int) -> bytes | None:
        """All of it, through silence; None where it has more than `most` bytes.

        Raises httpx2.ReadError and httpx2.RemoteProtocolError when the connection fails, as it does
        for a line that is interrupted.
        """
        data = b"".join(self._pieces(most))
        return data if len(data) <= most else None

    def _pieces(self, most: int) -> Iterator[bytes]:
        """What comes, through silence, to its end or past `most` bytes."""
        while most >= 0:
            with contextlib.suppress(Quiet):
                data = self.read()
                if not data:
                    return
                most -= len(data)
                yield data

    def fileno(self) -> int:
        """The socket's descriptor. Raises OSError after `close`."""
        if self._sock is None:
            raise OSError("the connection is closed")
        return self._sock.fileno()

    def unblock(self) -> None:
        """From now on `read` waits for nothing: a selector does. `close` undoes it."""
        if self._sock is not None:
            self._sock.setblocking(False)
            self._blocks = False

    @property
    def complete(self) -> bool:
        """The body was read to its end."""
        return self._framing.complete

    @property
    def pending(self) -> bool:
        """`read` has something to say now, whether or not more can be read from the socket."""
        return (
            self._framing.complete
            or bool(self._rest)
            or (self._coding is not None and self._coding.pending)
            or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)
        )

    def read(self) -> bytes:
        """What comes next; b"" at the end of the body.

        Raises Quiet when nothing has come (after TICK seconds where the socket blocks),
        httpx2.ReadError and httpx2.RemoteProtocolError when the connection fails.
        """
        framing, data, received = self._framing, b"", False
        while not data:
            coding = self._coding
            if coding is not None and coding.pending:
                data = self._undone(coding, b"")
            elif not framing.complete:
                if received and not self._blocks:
                    raise Quiet  # trailers, padding: there may be no end of what brings nothing
                received = True
                raw, self._rest = self._rest, b""
                data = framing.feed(raw or self._receive())
                if data and coding is not None:
                    data = self._undone(coding, data)
            else:
                return b"" if coding is None else self._undone(coding, None)
        return data

    def _undone(self, coding: Inflater, data: bytes | None) -> bytes:
        """The data as it was before it was compressed; None: its end."""
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
        # Over TLS Python waits through SO_RCVTIMEO, so poll does the waiting there.
        if self._blocks and isinstance(sock, ssl.SSLSocket) and not readable(sock, TICK):
            raise Quiet
        try:
            raw = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise Quiet from None
        except OSError as exc:
            raise httpx2.ReadError(str(exc)) from exc
        if not raw:
            if self._framing.ends_with_connection and not self._line.interrupted:
                self._framing.complete = True
            else:
                raise httpx2.ReadError("the body ended early")
        return raw

    def close(self) -> None:
        """Give the connection back if it can be used again, else close it."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        framing = self._framing
        if (
            framing.complete
            and self._is_reusable
            and not (framing.surplus or self._rest or self._line.interrupted)
        ):
            # An interrupt that comes right here finds a shut socket in the pool at worst, and the
            # next run sees its end of file before it uses it.
            self._line.detach()
            sock.setblocking(True)
            self._return_connection(sock)
        else:
            self._line.close(sock)


def readable(sock: socket.socket, timeout: float) -> bool:
    """Whether a read would return at once, waiting at most `timeout` seconds for it."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poller = select.poll()  # not select.select: it fails for descriptors above 1023
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
