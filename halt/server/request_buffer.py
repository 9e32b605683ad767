"""Buffers a connection's requests until one is complete, and finds its class: no I/O.

The class decides which pool of threads serves the request (see `halt.server.thread_pools`). It
depends on the first line alone, so it is known before a thread has the request.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

import httpx2
from gunicorn.util import split_request_uri

from halt.transport.http1 import Framing

HEAD_MAX = 65_536  # bytes of a head; a longer one is given to a thread incomplete
#: Bytes of a body that the buffer waits for, also if requests may be longer: a thread reads a
#: longer body, or refuses it before it has arrived.
BODY_MAX = 16_777_216
SHORT_BODY_MAX = 65_536  # the same for classes whose requests have no text
#: The same for files, which may be long: a thread reads the rest of a file whose client has sent
#: this much. So a client that sends slowly holds no thread.
FILE_BODY_MAX = 1_048_576
LENGTH_DIGITS = 15  # of a Content-Length; a longer number is not parsed


class Kind(Enum):
    """Classes of requests."""

    STOP = auto()  # Stop, and nothing else
    HEALTH = auto()
    QUICK = auto()  # served from memory: styles and scripts, the login, unknown paths
    PAGE = auto()  # reads or changes conversations
    MODELS = auto()  # waits for other servers: models' ones, or the provider of sign-ins
    STREAM = (
        auto()
    )  # lasts as long as a generation, or as its client reads; counted in HALT_MAX_STREAMS
    SOCKET = auto()  # a WebSocket
    UPLOAD = auto()  # has a body whose rest a thread reads as it arrives: long ones, and files

    @property
    def is_short(self) -> bool:
        """The whole response is created before the client reads it."""
        return self in _SHORT


_WITHOUT_TEXT = frozenset({Kind.STOP, Kind.HEALTH, Kind.QUICK, Kind.MODELS})
_SHORT = _WITHOUT_TEXT | {Kind.PAGE}

#: Paths of POST requests for streams, and the last parts of such paths below /c/.
_STREAMS = frozenset({b"/chat", b"/chat/stream", b"/v1/chat/completions"})
_STREAMS_BELOW_C = frozenset({b"messages", b"regenerate", b"continue"})
#: Paths of GET requests for streams; exports and files are sent while the store is read.
_LASTING = frozenset({b"/stream", b"/export"})
_SENT_WHILE_READ = re.compile(rb"/c/[^/]++/export|/files/[^/]++/download")
_PAGES = (b"/c/", b"/conversations", b"/settings", b"/files/")
_PAGES_EXACTLY = frozenset({b"/", b"/saving"})
_MODELS = (
    *(b"/models", b"/v1/models", b"/demo", b"/settings/models"),
    *(b"/login/oidc", b"/logout"),
)
_TRIALS = b"/settings/models/try/"
#: Paths of POST requests with files, which wait for what reads these.
_WITH_FILES, _FILES_FOR = frozenset({b"/files", b"/import"}), b"/files/messages/"

_LENGTH = re.compile(rb"\r\ncontent-length:([^\r\n]*+)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*+100-continue", re.IGNORECASE)


def kind_of(line: bytes) -> Kind:
    """The class of a request with this first line. Finds the same path as the server does."""
    method, _, rest = line.partition(b" ")
    target = rest.partition(b" ")[0].decode("latin-1")
    if not target:
        return Kind.QUICK
    try:  # as gunicorn and werkzeug parse it
        path = b"/" + unquote_to_bytes(split_request_uri(target).path).lstrip(b"/")
    except ValueError:
        return Kind.QUICK
    if path in (b"/stop", b"/stop-all") or path.startswith(b"/stop/"):
        return Kind.STOP
    if method == b"POST":
        if path in _STREAMS or path.startswith(_TRIALS):
            return Kind.STREAM
        if path.startswith(b"/c/") and path.rpartition(b"/")[2] in _STREAMS_BELOW_C:
            return Kind.STREAM
        if path in _WITH_FILES or path.startswith(_FILES_FOR):
            return Kind.UPLOAD
    elif path == b"/healthz":
        return Kind.HEALTH
    elif path == b"/ws":
        return Kind.SOCKET
    elif path in _LASTING or path.startswith(b"/streams/") or _SENT_WHILE_READ.fullmatch(path):
        return Kind.STREAM
    if path.startswith(_MODELS):
        return Kind.MODELS
    if path in _PAGES_EXACTLY or path.startswith(_PAGES):
        return Kind.PAGE
    return Kind.QUICK


def _codings(head: bytes) -> list[bytes]:
    """The transfer codings of a head, in order, in lower case."""
    codings = [coding for line in _CODING.findall(head) for coding in line.split(b",")]
    return [coding.strip(b" \t").lower() for coding in codings]


class RequestBuffer:
    """The requests of one connection, one after the other. Each byte is parsed once.

    This parser decides only when a thread gets the request, and which thread: a malformed request
    is given to gunicorn unchanged. If gunicorn accepts a request that is malformed here (a long
    chunk extension) and reads on, it gets end of file and refuses the request.
    """

    def __init__(self, body_max: int = BODY_MAX) -> None:
        """`body_max`: the most bytes of a body, for classes whose requests have a text."""
        self._text_body_max = min(body_max, BODY_MAX)
        self._reset(b"")

    def _reset(self, data: bytes | bytearray) -> None:
        self.kind = Kind.QUICK
        self.awaits_continue = False  # the client waits for `100 Continue` to send the body
        self._data = bytearray(data)
        self._searched = 0  # first bytes, which hold no end of a head
        self._length: int | None = None  # bytes of the whole request, once known
        self._enough = 0  # bytes with which it is ready, at most `_length`
        self._chunks: Framing | None = None  # the parser of a chunked body
        self._is_ready = False

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> bool:
        """Add received bytes. True: the request is ready, a thread can read it without waiting.

        Also True for a malformed request, and for a body that is too long to wait for: a thread
        reads its rest (Kind.UPLOAD).
        """
        self._data += data
        if self._is_ready:
            return True
        if self._chunks is not None:
            self._feed_chunks(data)
        elif self._length is not None:
            self._is_ready = len(self._data) >= self._enough
        else:
            self._find_head()
        return self._is_ready

    @property
    def is_whole(self) -> bool:
        """The whole request has arrived, and it is well-formed."""
        return self._length is not None and len(self._data) >= self._length

    def take(self) -> bytes:
        """Remove and return the bytes of the request that is ready; later bytes stay."""
        size = len(self._data) if self._length is None else self._length
        request = bytes(memoryview(self._data)[:size])
        del self._data[:size]
        return request

    @property
    def bytes_after_request(self) -> bytes:
        """The bytes that have arrived after the request that was taken."""
        return bytes(self._data)

    def begin(self, rest: bytes) -> bool:
        """Begin the next request with `rest`, then the bytes that are here. Returns as `feed`."""
        data = rest + self._data
        self._reset(b"")
        return bool(data) and self.feed(data)

    def _find_head(self) -> None:
        end = self._data.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = len(self._data)
        if end >= 0:
            self._read_head(bytes(self._data[: end + 2]), end + 4)
        elif self._searched >= HEAD_MAX:
            self._is_ready = True

    def _read_head(self, head: bytes, end: int) -> None:
        """`head` ends with the line break of its last line; the body begins at `end`."""
        # The server skips one empty line before a request.
        line = head.removeprefix(b"\r\n").partition(b"\r\n")[0]
        self.kind = kind_of(line)
        lengths, codings = _LENGTH.findall(head), _codings(head)
        if not lengths and not codings:
            self._length = end
            self._is_ready = True
        elif not lengths and codings[-1] == b"chunked" and codings.count(b"chunked") == 1:
            self._chunks = Framing({b"transfer-encoding": b"chunked"}, 200)
            self._feed_chunks(bytes(self._data[end:]))
        elif len(lengths) == 1 and not codings and (digits := lengths[0].strip(b" \t")).isdigit():
            is_file = self.kind is Kind.UPLOAD
            if len(digits) > LENGTH_DIGITS or (not is_file and int(digits) > self._body_max):
                self._leave_to_thread()
                return
            self._length = end + int(digits)
            self._enough = end + min(int(digits), self._body_max)
            self._is_ready = len(self._data) >= self._enough
        else:
            self._is_ready = True
        if not self._is_ready and not line.endswith(b"HTTP/1.0"):  # which has no `100 Continue`
            self.awaits_continue = _EXPECT.search(head) is not None

    def _feed_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None  # noqa: S101 - the caller has set it
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
        if self.kind is Kind.UPLOAD:
            return FILE_BODY_MAX
        limit = self._text_body_max
        return min(limit, SHORT_BODY_MAX) if self.kind in _WITHOUT_TEXT else limit

    def _leave_to_thread(self) -> None:
        self.kind = Kind.UPLOAD
        self._is_ready = True
