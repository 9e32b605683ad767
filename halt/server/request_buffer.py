"""The bytes of a connection's requests until one is complete, and its class. Does no I/O.

The class decides which threads serve the request (see `halt.server.thread_pools`). It follows from
the first line, so it is known before a thread has the request.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

import httpx2
from gunicorn.util import split_request_uri

from halt.transport.http1 import Framing

HEAD_MAX = 65_536  # bytes of a head; a longer one is not read to its end
#: Bytes of a body that is waited for, also where requests may be longer: a thread reads a longer
#: one, or refuses it before it has come.
BODY_MAX = 16_777_216
SHORT_BODY_MAX = 65_536  # the same where requests have no text
LENGTH_DIGITS = 15  # of a length; more are not looked at


class Kind(Enum):
    """Classes of requests."""

    STOP = auto()  # Stop alone
    HEALTH = auto()
    QUICK = auto()  # answers from memory: styles and scripts, the login, what is unknown
    PAGE = auto()  # reads or changes conversations
    MODELS = auto()  # asks a model's server
    STREAM = auto()  # lasts as long as a generation, or as its client takes: it has a place
    SOCKET = auto()  # a WebSocket
    UPLOAD = auto()  # has a body that a thread reads bit by bit

    @property
    def is_short(self) -> bool:
        """The response is made as a whole before its client has to take it."""
        return self in _SHORT


_WITHOUT_TEXT = frozenset({Kind.STOP, Kind.HEALTH, Kind.QUICK, Kind.MODELS})
_SHORT = _WITHOUT_TEXT | {Kind.PAGE}

#: Paths that are asked for by POST, and the last parts of those below /c/, whose response lasts.
_STREAMS = frozenset({b"/chat", b"/chat/stream", b"/v1/chat/completions"})
_STREAMS_BELOW_C = frozenset({b"messages", b"regenerate", b"continue"})
#: Those that are asked for by GET; an export is sent while it is read.
_LASTING = frozenset({b"/stream", b"/export"})
_EXPORT = re.compile(rb"/c/[^/]++/export")
_PAGES = (b"/c/", b"/conversations", b"/settings")
_PAGES_EXACTLY = frozenset({b"/", b"/saving", b"/import"})
_MODELS = (b"/models", b"/v1/models", b"/demo")

_LENGTH = re.compile(rb"\r\ncontent-length:([^\r\n]*+)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*+100-continue", re.IGNORECASE)


def kind_of(line: bytes) -> Kind:
    """The class of a request with this first line, of which the server takes the same path."""
    method, _, rest = line.partition(b" ")
    target = rest.partition(b" ")[0].decode("latin-1")
    if not target:
        return Kind.QUICK
    try:  # as gunicorn and werkzeug find it
        path = b"/" + unquote_to_bytes(split_request_uri(target).path).lstrip(b"/")
    except ValueError:
        return Kind.QUICK
    if path in (b"/stop", b"/stop-all") or path.startswith(b"/stop/"):
        return Kind.STOP
    if method == b"POST":
        if path in _STREAMS:
            return Kind.STREAM
        if path.startswith(b"/c/") and path.rpartition(b"/")[2] in _STREAMS_BELOW_C:
            return Kind.STREAM
    elif path == b"/healthz":
        return Kind.HEALTH
    elif path == b"/ws":
        return Kind.SOCKET
    elif path in _LASTING or path.startswith(b"/streams/") or _EXPORT.fullmatch(path):
        return Kind.STREAM
    if path in _PAGES_EXACTLY or path.startswith(_PAGES):
        return Kind.PAGE
    if path.startswith(_MODELS):
        return Kind.MODELS
    return Kind.QUICK


def _codings(head: bytes) -> list[bytes]:
    """The transfer codings that a head names, in their order."""
    named = [each for line in _CODING.findall(head) for each in line.split(b",")]
    return [each.strip(b" \t").lower() for each in named]


class RequestBuffer:
    """The requests of one connection, one after the other. Each byte is looked at once.

    A malformed request is given to gunicorn as it came: this parser decides only when a thread gets
    the request, and which. gunicorn may accept what is malformed here (a long chunk extension) and
    read on; it finds the end of file there, and refuses the request.
    """

    def __init__(self, body_max: int = BODY_MAX) -> None:
        """`body_max`: bytes that a body may have, of a request that has a text."""
        self._most = min(body_max, BODY_MAX)
        self._renew(b"")

    def _renew(self, data: bytes | bytearray) -> None:
        self.kind = Kind.QUICK
        self.awaits_word = False  # the client waits for `100 Continue` before it sends the body
        self._data = bytearray(data)
        self._searched = 0  # bytes in which there is no end of a head
        self._length: int | None = None  # of the whole request, once that is known
        self._chunks: Framing | None = None  # of a body in chunks
        self._is_ready = False

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> bool:
        """Add what has come. Whether a thread can read the request without waiting.

        True also for what is malformed, and for a body that is too long to be waited for: a thread
        reads the rest of these (Kind.UPLOAD).
        """
        self._data += data
        if self._is_ready:
            return True
        if self._chunks is not None:
            self._take_chunks(data)
        elif self._length is not None:
            self._is_ready = len(self._data) >= self._length
        else:
            self._look_for_head()
        return self._is_ready

    @property
    def is_whole(self) -> bool:
        """All of the request is here, and nothing malformed was found in it."""
        return self._length is not None and len(self._data) >= self._length

    def take(self) -> bytes:
        """The bytes of the request that is ready; what came behind it stays here."""
        whole = len(self._data) if self._length is None else self._length
        taken = bytes(memoryview(self._data)[:whole])
        del self._data[:whole]
        return taken

    @property
    def behind(self) -> bytes:
        """What has come behind the request that was taken."""
        return bytes(self._data)

    def begin(self, rest: bytes) -> bool:
        """Begin with the next request: `rest` came before what is here already. As `feed`."""
        data = rest + self._data
        self._renew(b"")
        return bool(data) and self.feed(data)

    def _look_for_head(self) -> None:
        end = self._data.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = len(self._data)
        if end >= 0:
            self._read_head(bytes(self._data[: end + 2]), end + 4)
        elif self._searched >= HEAD_MAX:
            self._is_ready = True

    def _read_head(self, head: bytes, end: int) -> None:
        """`head` has the line break behind its last line; the body begins at `end`."""
        # The server passes over one empty line in front of a request.
        line = head.removeprefix(b"\r\n").partition(b"\r\n")[0]
        self.kind = kind_of(line)
        lengths, codings = _LENGTH.findall(head), _codings(head)
        if not lengths and not codings:
            self._length = end
            self._is_ready = True
        elif not lengths and codings[-1] == b"chunked" and codings.count(b"chunked") == 1:
            self._chunks = Framing({b"transfer-encoding": b"chunked"}, 200)
            self._take_chunks(bytes(self._data[end:]))
        elif len(lengths) == 1 and not codings and (digits := lengths[0].strip(b" \t")).isdigit():
            if len(digits) > LENGTH_DIGITS or int(digits) > self._body_max:
                self._leave_to_thread()
                return
            self._length = end + int(digits)
            self._is_ready = len(self._data) >= self._length
        else:
            self._is_ready = True
        if not self._is_ready and not line.endswith(b"HTTP/1.0"):  # which knows no such word
            self.awaits_word = _EXPECT.search(head) is not None

    def _take_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None  # noqa: S101 - the caller has made it
        try:
            chunks.feed(data)
        except httpx2.RemoteProtocolError:
            self._is_ready = True
            return
        if chunks.complete:
            self._length = len(self._data) - len(chunks.surplus)
            self._is_ready = True
        elif len(self._data) > self._body_max:
            self._leave_to_thread()

    @property
    def _body_max(self) -> int:
        return min(self._most, SHORT_BODY_MAX) if self.kind in _WITHOUT_TEXT else self._most

    def _leave_to_thread(self) -> None:
        self.kind = Kind.UPLOAD
        self._is_ready = True
