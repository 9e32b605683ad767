"""One connection of the fake upstream: its socket, what is recorded of a request, and its answer.

`Peer` is the accepted socket. It never blocks out of reach: every wait, also the one for room in
the socket's buffer, is a `poll` that sees the client's end of file or reset, a wake-up from another
thread and the end of the server as well, and then raises `Gone`. A client that shuts down only
its sending half counts as gone.
`Record` is what a test looks at: facts and events, safe to read from any thread.
`Reply` is the vocabulary in which scenarios are written: tokens, silence, the end, a broken end.
"""

import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from http.client import responses
from itertools import islice
from math import inf
from typing import Any, TypeVar

T = TypeVar("T")

READ_SIZE = 65536  # bytes for one recv
LONGEST_POLL = 3600.0  # seconds; poll() takes no infinity, and every wait loops anyway

# Where POLLRDHUP does not exist, a silent client is noticed only when it has closed both halves.
_LEFT: int = getattr(select, "POLLRDHUP", 0)
_BROKEN: int = _LEFT | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Gone(Exception):
    """The client has closed its connection."""


class ServerClosing(Gone):
    """The server closes; whether the client would have stayed is not known."""


class Peer:
    """An accepted connection, used by one thread; `wake` and `interrupt` are for the others."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self._sock = sock
        self._fd = sock.fileno()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._bell, select.POLLIN)
        self._received = bytearray()
        self._ending = False
        # Held to close, and by other threads to reach in: otherwise they could hit
        # a file descriptor that has just been given to another connection.
        self._lock = threading.Lock()

    def secure(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake."""
        with self._lock:
            tls = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
            self._sock = tls
        self._when_readable(tls.do_handshake)

    def read_until(self, mark: bytes) -> bytes | None:
        """Bytes up to and with the mark; None when the client ends before."""
        while (end := self._received.find(mark)) < 0:
            if not self._receive():
                return None
        return self._take(end + len(mark))

    def read_exactly(self, size: int) -> bytes | None:
        while len(self._received) < size:
            if not self._receive():
                return None
        return self._take(size)

    def send(self, data: bytes) -> None:
        """Hand everything to the socket, as fast as the client takes it."""
        view = memoryview(data)
        while view:
            self._poll(select.POLLOUT, LONGEST_POLL)
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                continue
            except OSError as error:
                raise (ServerClosing if self._ending else Gone) from error

    def wait(self, until: float, ready: Callable[[], bool] = lambda: False) -> None:
        """Wait until the monotonic time, or until ready() after a wake-up. Resolution: 1 ms."""
        while not ready() and (left := until - time.monotonic()) > 0:
            self._poll(0, left)

    def look(self) -> None:
        """Only see whether the client has left, where there is nothing to send or to wait for."""
        self._poll(0, 0)

    def wake(self) -> None:
        """Let a waiting thread look at its condition again. From any thread, at any time."""
        with self._lock, suppress(OSError):  # closed, or full of wake-ups not yet heard
            self._rope.send(b"!")

    def interrupt(self) -> None:
        """End the connection and whatever its thread is doing. From any thread, at any time."""
        with self._lock, suppress(OSError):
            self._ending = True
            # Not SSLSocket.shutdown, which drops the cipher under the thread that is using it.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        self.wake()

    def close(self, *, reset: bool = False) -> None:
        """Close with FIN, or with RST; over TLS both without a close_notify."""
        with self._lock, suppress(OSError):
            if reset:
                linger_zero = struct.pack("ii", 1, 0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        with self._lock:
            for sock in (self._sock, self._bell, self._rope):
                sock.close()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self) -> int:
        data: bytes = self._when_readable(lambda: self._sock.recv(READ_SIZE))
        self._received += data
        return len(data)

    def _when_readable(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except (BlockingIOError, ssl.SSLWantReadError):
                self._poll(select.POLLIN, LONGEST_POLL)
            except ssl.SSLWantWriteError:
                self._poll(select.POLLOUT, LONGEST_POLL)
            except OSError as error:
                raise (ServerClosing if self._ending else Gone) from error

    def _poll(self, want: int, seconds: float) -> None:
        self._poller.register(self._fd, want | _LEFT)  # again: it replaces the mask
        ready = dict(self._poller.poll(min(seconds, LONGEST_POLL) * 1000))
        if self._ending:
            raise ServerClosing
        if self._bell.fileno() in ready:
            self._bell.recv(READ_SIZE)
        # Whoever waits to read learns of the end by reading what came before it.
        if ready.get(self._fd, 0) & _BROKEN and not want & select.POLLIN:
            raise Gone


@dataclass(eq=False, repr=False)
class Record:
    """One request as the fake saw it, and how far its answer came. Times are `time.monotonic()`."""

    connection: int  # number of the TCP connection, from 1: equal numbers mean it was reused
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # parsed JSON; None without a body, the text where it is no JSON
    received_at: float
    wake: Callable[[], None]
    query: str = ""  # behind the path's question mark
    scenario: str = ""  # the name without arguments; empty for anything but a completion
    args: dict[str, str] = field(default_factory=dict)
    tokens_sent: int = 0  # handed to the socket, reasoning included; not streamed: produced
    first_token_at: float | None = None
    closed_at: float | None = None
    closed: threading.Event = field(default_factory=threading.Event)  # by the client, in mid-answer
    finished: threading.Event = field(default_factory=threading.Event)  # answered to the last byte
    ended: threading.Event = field(default_factory=threading.Event)  # no longer worked on, anyhow
    released: threading.Event = field(default_factory=threading.Event)
    _progress: threading.Condition = field(default_factory=threading.Condition)

    def __repr__(self) -> str:
        state = [n for n in ("closed", "finished", "ended") if getattr(self, n).is_set()]
        what = f"{self.method} {self.path} {self.scenario}".rstrip()
        return f"<Record {what}: {self.tokens_sent} tokens, {', '.join(state) or 'open'}>"

    def release(self) -> None:
        """Let a silent scenario go on, now or when it comes to its silence."""
        self.released.set()
        self.wake()

    def wait_tokens(self, n: int, timeout: float = 5.0) -> int:
        """Wait until n tokens were sent; their number by then, or TimeoutError."""
        with self._progress:
            if not self._progress.wait_for(lambda: self.tokens_sent >= n, timeout):
                raise TimeoutError(f"{n} tokens not sent within {timeout} s: {self!r}")
            return self.tokens_sent

    def sent(self, n: int) -> None:
        """Called by the answer: n more tokens are on their way."""
        with self._progress:
            if self.first_token_at is None:
                self.first_token_at = time.monotonic()
            self.tokens_sent += n
            self._progress.notify_all()

    def as_json(self) -> dict[str, object]:
        names = "connection method path scenario args body received_at tokens_sent first_token_at"
        facts: dict[str, object] = {name: getattr(self, name) for name in names.split()}
        facts["closed_at"] = self.closed_at
        secret = {"authorization", "api-key", "x-api-key"}
        facts["headers"] = {k: v for k, v in self.headers.items() if k not in secret}
        return facts | {n: getattr(self, n).is_set() for n in ("closed", "finished", "ended")}


class Framing(Enum):
    """How the end of a body is told."""

    CHUNKED = auto()
    LENGTH = auto()
    CLOSE = auto()


@dataclass(frozen=True)
class Pace:
    """Arguments that every scenario takes. The schedule is absolute: lateness does not add up."""

    gap_ms: float = 0.0  # between tokens
    rate: float = 0.0  # tokens per second, instead of gap_ms
    first_ms: float = 0.0  # before the first token
    burst: int = 1  # tokens per send
    hold: int = -1  # tokens before a silence that lasts until the record is released; -1: none

    @property
    def gap(self) -> float:
        return 1 / self.rate if self.rate else self.gap_ms / 1000


class Reply:
    """The answer to one completion request, streamed or whole as the request asks.

    A whole answer goes through the same scenario: its tokens are gathered at the same pace
    and sent when it finishes.
    """

    def __init__(
        self,
        peer: Peer,
        record: Record,
        *,
        serial: int,
        keep_alive: bool,
        texts: Mapping[str, str],
        failures: Callable[[str], int],
    ) -> None:
        self._peer = peer
        self.record = record
        self.keep_alive = keep_alive
        self.complete = False
        self.texts = texts
        self.failures = failures  # counts calls for a key: 1, 2, ... over all requests
        self.pace = Pace()
        self.request: dict[str, Any] = record.body if isinstance(record.body, dict) else {}
        self.streaming = bool(self.request.get("stream"))
        self._framing: Framing | None = None
        self._serial = serial
        self._held = bytearray()  # the body so far where Framing.LENGTH must know all of it
        self._said: list[str] = []
        self._paced = 0  # tokens that had their time so far
        self._frames: dict[str, tuple[bytes, bytes]] = {}
        self._common = {
            "id": f"chatcmpl-fake{serial}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": str(self.request.get("model")),
        }

    @property
    def usage_wanted(self) -> bool:
        options = self.request.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    # What the scenarios say

    def open(self, framing: Framing = Framing.CHUNKED) -> None:
        """Headers and the role chunk. Called by the first token if not before."""
        if self.begin(framing):
            self.chunk({"role": "assistant", "content": "", "refusal": None})

    def begin(self, framing: Framing = Framing.CHUNKED) -> bool:
        """The headers alone. False: they were sent before."""
        if self._framing is not None:
            return False
        whole = not self.streaming and framing is Framing.CHUNKED
        self._framing = Framing.LENGTH if whole else framing
        if self._framing is Framing.CHUNKED:
            self._peer.send(self._head(200, {"Transfer-Encoding": "chunked"}))
        elif self._framing is Framing.CLOSE:
            self.keep_alive = False
            self._peer.send(self._head(200, {}))
        return True

    def tokens(self, texts: Iterable[str], kind: str = "content") -> None:
        """Send tokens at the pace asked for."""
        self.open()
        for group in self.paced(texts):
            self.token(*group, kind=kind)

    def token(self, *texts: str, kind: str = "content") -> None:
        """Send tokens at once, one event each, in one send."""
        self.open()
        if self.record.first_token_at is None:
            self.record.first_token_at = time.monotonic()
        if self.streaming:
            before, after = self._around(kind)
            self.write(b"".join(before + as_json(text) + after for text in texts))
        else:
            self._peer.look()
            self._said += texts if kind == "content" else ()
        self.record.sent(len(texts))

    def finish(self, reason: str = "stop", *, usage: bool = True, end: bool = True) -> None:
        """Finish reason, usage if it was asked for, [DONE], and the end of the body.

        [DONE] and the end leave in one send: a client that closes at [DONE] has had all of it,
        and its request counts as finished, not as closed. `late_terminator` is the other case.
        """
        self.open()
        self.hold_once()
        if self.streaming:
            self.chunk({}, reason)
            if usage and self.usage_wanted:
                self.event(as_json(self._common | {"choices": [], "usage": self._usage()}))
            self.event(b"[DONE]", last=end)
        else:
            message = {"role": "assistant", "content": "".join(self._said), "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            answer = self._common | {"object": "chat.completion", "choices": [choice]}
            answer |= {"usage": self._usage()} if usage else {}
            self.write(as_json(answer), last=end)

    def chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> None:
        """Send one chunk object; a whole answer has none."""
        if self.streaming:
            self.event(as_json(self.chunk_object(delta, finish_reason)))

    def chunk_object(
        self, delta: dict[str, object], finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage: dict[str, object] = {"usage": None} if self.usage_wanted else {}
        return self._common | {"choices": [choice]} | usage

    def event(self, data: bytes, *, last: bool = False) -> None:
        if self.streaming:
            self.write(b"data: " + data + b"\n\n", last=last)
        elif last:
            self.end()

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of the body as they are, framed; one call, one chunk, one send."""
        self.open()
        if self._framing is Framing.LENGTH:
            self._peer.look()
            self._held += data
            size = {"Content-Length": str(len(self._held))}
            frame = self._head(200, size) + self._held if last else b""
        elif self._framing is Framing.CHUNKED:
            # No chunk for no data: an empty one is the end of the body.
            frame = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            frame += b"0\r\n\r\n" if last else b""
        else:
            frame = data
        self._peer.send(frame)
        self.complete = last

    def end(self) -> None:
        """End the body in order, whatever it holds."""
        self.write(b"", last=True)

    def drop(self) -> None:
        """Close with FIN, wherever the answer is."""
        self.keep_alive = False
        self._peer.close()

    def reset(self) -> None:
        """Close with RST, wherever the answer is."""
        self.keep_alive = False
        self._peer.close(reset=True)

    def whole(
        self,
        status: int,
        content: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with this status and body, instead of a completion."""
        more = {"Content-Type": content_type, "Content-Length": str(len(content))}
        self._peer.send(self._head(status, more | dict(headers or {})) + content)
        self.complete = True

    def error(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with an error as OpenAI words it."""
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.whole(status, as_json({"error": error}), headers=headers)

    def hold(self, seconds: float = inf) -> None:
        """Silence, until the record is released or the seconds are over."""
        self._peer.wait(time.monotonic() + seconds, self.record.released.is_set)

    def hold_once(self) -> None:
        """The silence of `Pace.hold`; at the latest it comes before the end of the answer."""
        if self.pace.hold >= 0:
            self.pace = replace(self.pace, hold=-1)
            self.hold()

    def pause(self, seconds: float) -> None:
        self._peer.wait(time.monotonic() + seconds)

    def paced(self, items: Iterable[T]) -> Iterator[list[T]]:
        """The items in groups of `burst`, each group when its time has come."""
        source = iter(items)
        due = time.monotonic() + self.pace.first_ms / 1000
        while group := list(islice(source, max(1, self.pace.burst))):
            if 0 <= self.pace.hold < self._paced + len(group):
                self.hold_once()
                due = time.monotonic()
            self._peer.wait(due)
            yield group
            self._paced += len(group)
            due += len(group) * self.pace.gap

    # How it is put together

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        kind = "text/event-stream; charset=utf-8" if self.streaming else "application/json"
        lines = {
            "Content-Type": kind,
            "x-request-id": f"req_fake{self._serial}",
            "Connection": "keep-alive" if self.keep_alive else "close",
        } | headers
        fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}\r\n{fields}\r\n".encode()

    def _around(self, kind: str) -> tuple[bytes, bytes]:
        """The bytes of a token's event before and after its text."""
        if kind in self._frames:
            return self._frames[kind]
        mark = "\x00"
        event = b"data: " + as_json(self.chunk_object({kind: mark})) + b"\n\n"
        before, after = event.split(as_json(mark))
        self._frames[kind] = before, after
        return before, after

    def _usage(self) -> dict[str, int]:
        prompt = len(json.dumps(self.request.get("messages")).split())
        answer = self.record.tokens_sent
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }


def as_json(value: object) -> bytes:
    """JSON on one line, in UTF-8: text outside ASCII is not escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
