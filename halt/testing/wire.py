"""One connection of the fake upstream: its socket, the record of a request, and its response.

`Peer` is the accepted socket. Each of its waits (including the one for space in the socket buffer)
is a `poll` that also returns at the client's end of file or reset and when the server closes, which
raise `ClientGone`, and at a wake-up from another thread. A client that shuts down only its sending
half counts as gone.
`Record` holds what a test checks: facts and events, safe to read from any thread.
`Reply` has the operations of which scenarios consist: tokens, silence, the end, a broken end.
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
LONGEST_POLL = 3600.0  # seconds; poll() does not take infinity, and every wait loops

# Without POLLRDHUP (not Linux), the end of a silent client is seen when it has closed both halves.
_CLIENT_LEFT: int = getattr(select, "POLLRDHUP", 0)
_BROKEN: int = _CLIENT_LEFT | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ClientGone(Exception):
    """The client has closed its connection."""


class ServerClosing(ClientGone):
    """The server closes the connection; the client may still be there."""


class Peer:
    """An accepted connection, used by one thread; others may call `wake` and `interrupt`."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self._sock = sock
        self._fd = sock.fileno()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._wake_receiver, select.POLLIN)
        self._received = bytearray()
        self._is_closing = False
        # Held while closing, and by `wake` and `interrupt`: without it they could use a file
        # descriptor that already belongs to another connection.
        self._lock = threading.Lock()

    def secure(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake."""
        with self._lock:
            tls = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
            self._sock = tls
        self._when_readable(tls.do_handshake)

    def read_until(self, pattern: bytes) -> bytes | None:
        """Read up to and including `pattern`; None if the client ends before."""
        while (end := self._received.find(pattern)) < 0:
            if not self._receive():
                return None
        return self._take(end + len(pattern))

    def read_exactly(self, size: int) -> bytes | None:
        """Read `size` bytes; None if the client ends before."""
        while len(self._received) < size:
            if not self._receive():
                return None
        return self._take(size)

    def send(self, data: bytes) -> None:
        """Send all bytes, as fast as the client reads them."""
        view = memoryview(data)
        while view:
            self._poll(select.POLLOUT, LONGEST_POLL)
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                continue
            except OSError as error:
                raise (ServerClosing if self._is_closing else ClientGone) from error

    def wait(self, deadline: float, ready: Callable[[], bool] = lambda: False) -> None:
        """Wait until this monotonic time, or until ready() is true. Resolution: 1 ms."""
        while not ready() and (seconds_left := deadline - time.monotonic()) > 0:
            self._poll(0, seconds_left)

    def check_client(self) -> None:
        """Raise ClientGone if the client has left, without sending or waiting."""
        self._poll(0, 0)

    def wake(self) -> None:
        """Make a waiting thread check its condition again. Thread-safe."""
        with self._lock, suppress(OSError):  # closed, or full of unread wake-ups
            self._wake_sender.send(b"!")

    def interrupt(self) -> None:
        """End the connection, and the current operation of its thread. Thread-safe."""
        with self._lock, suppress(OSError):
            self._is_closing = True
            # Not SSLSocket.shutdown, which removes the cipher while the other thread uses it.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        self.wake()

    def close(self, *, reset: bool = False) -> None:
        """Close with FIN or RST; over TLS without a close_notify in both cases."""
        with self._lock, suppress(OSError):
            if reset:
                linger_zero = struct.pack("ii", 1, 0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        with self._lock:
            for sock in (self._sock, self._wake_receiver, self._wake_sender):
                sock.close()

    def _take(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

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
                raise (ServerClosing if self._is_closing else ClientGone) from error

    def _poll(self, want: int, seconds: float) -> None:
        self._poller.register(self._fd, want | _CLIENT_LEFT)  # replaces the mask of the last call
        ready = dict(self._poller.poll(min(seconds, LONGEST_POLL) * 1000))
        if self._is_closing:
            raise ServerClosing
        if self._wake_receiver.fileno() in ready:
            self._wake_receiver.recv(READ_SIZE)
        # A reader sees the end itself, after it has read the bytes before it.
        if ready.get(self._fd, 0) & _BROKEN and not want & select.POLLIN:
            raise ClientGone


@dataclass(eq=False, repr=False)
class Record:
    """One received request, and the progress of its response. Times are `time.monotonic()`."""

    connection: int  # number of the TCP connection, from 1; equal numbers mean reuse
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # parsed JSON, None without a body, the text if it is not JSON
    received_at: float
    wake: Callable[[], None]
    query: str = ""  # after the question mark of the path
    scenario: str = ""  # the name without arguments; "" if the request is no completion
    args: dict[str, str] = field(default_factory=dict)
    tokens_sent: int = 0  # sent, with reasoning; for a response that is not streamed: produced
    first_token_at: float | None = None
    closed_at: float | None = None
    # By the client, before the end of the response.
    closed: threading.Event = field(default_factory=threading.Event)
    # The whole response was sent.
    finished: threading.Event = field(default_factory=threading.Event)
    # Processing has ended, in any way.
    ended: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    _progress: threading.Condition = field(default_factory=threading.Condition)

    def __repr__(self) -> str:
        state = [n for n in ("closed", "finished", "ended") if getattr(self, n).is_set()]
        request = f"{self.method} {self.path} {self.scenario}".rstrip()
        return f"<Record {request}: {self.tokens_sent} tokens, {', '.join(state) or 'open'}>"

    def release(self) -> None:
        """End the silence of a scenario, now or when it begins."""
        self.released.set()
        self.wake()

    def wait_tokens(self, n: int, timeout: float = 5.0) -> int:
        """Wait until n tokens were sent; return their number. Raises TimeoutError."""
        with self._progress:
            if not self._progress.wait_for(lambda: self.tokens_sent >= n, timeout):
                raise TimeoutError(f"{n} tokens not sent within {timeout} s: {self!r}")
            return self.tokens_sent

    def sent(self, n: int) -> None:
        """Count n more tokens; called by the reply."""
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
    """How the end of a body is marked."""

    CHUNKED = auto()
    LENGTH = auto()
    CLOSE = auto()


@dataclass(frozen=True)
class Pace:
    """Arguments of every scenario. The schedule is absolute, so that delays do not add up."""

    gap_ms: float = 0.0  # between tokens
    rate: float = 0.0  # tokens per second, instead of gap_ms
    first_ms: float = 0.0  # before the first token
    burst: int = 1  # tokens per send
    hold: int = -1  # tokens before a silence that lasts until the record is released; -1: none

    @property
    def gap(self) -> float:
        return 1 / self.rate if self.rate else self.gap_ms / 1000


class Reply:
    """The response to one completion request, streamed or not, as requested.

    A response that is not streamed runs through the same scenario: its tokens are collected at the
    same pace and sent at the end.
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
        self._body = bytearray()  # the body so far, collected for Framing.LENGTH
        self._texts: list[str] = []
        self._paced_count = 0  # tokens that were due so far
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

    # Operations for scenarios

    def open(self, framing: Framing = Framing.CHUNKED) -> None:
        """Send headers and the role chunk, unless sent before."""
        if self.begin(framing):
            self.chunk({"role": "assistant", "content": "", "refusal": None})

    def begin(self, framing: Framing = Framing.CHUNKED) -> bool:
        """Send the headers alone. False: they were sent before."""
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
        """Send tokens at the requested pace."""
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
            self._peer.check_client()
            self._texts += texts if kind == "content" else ()
        self.record.sent(len(texts))

    def finish(self, reason: str = "stop", *, usage: bool = True, end: bool = True) -> None:
        """Send the finish reason, usage if requested, [DONE], and the end of the body.

        [DONE] and the end are sent together, so that the request of a client that closes at [DONE]
        counts as finished, not as closed. The scenario `late_terminator` sends them separately.
        """
        self.open()
        self.hold_once()
        if self.streaming:
            self.chunk({}, reason)
            if usage and self.usage_wanted:
                self.event(as_json(self._common | {"choices": [], "usage": self._usage()}))
            self.event(b"[DONE]", last=end)
        else:
            message = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            answer = self._common | {"object": "chat.completion", "choices": [choice]}
            answer |= {"usage": self._usage()} if usage else {}
            self.write(as_json(answer), last=end)

    def chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> None:
        """Send one chunk object, if the response is streamed."""
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
        """Send bytes of the body, framed: one call makes one chunk and one send."""
        self.open()
        if self._framing is Framing.LENGTH:
            self._peer.check_client()
            self._body += data
            size = {"Content-Length": str(len(self._body))}
            frame = self._head(200, size) + self._body if last else b""
        elif self._framing is Framing.CHUNKED:
            # No chunk without data: an empty chunk is the end of the body.
            frame = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            frame += b"0\r\n\r\n" if last else b""
        else:
            frame = data
        self._peer.send(frame)
        self.complete = last

    def end(self) -> None:
        """End the body correctly, whatever its content."""
        self.write(b"", last=True)

    def drop(self) -> None:
        """Close the connection with FIN at this point."""
        self.keep_alive = False
        self._peer.close()

    def reset(self) -> None:
        """Close the connection with RST at this point."""
        self.keep_alive = False
        self._peer.close(reset=True)

    def whole(
        self,
        status: int,
        content: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a response with this status and body instead of a completion."""
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
        """Send an error response in OpenAI's format."""
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.whole(status, as_json({"error": error}), headers=headers)

    def hold(self, seconds: float = inf) -> None:
        """Be silent until the record is released, at most for `seconds`."""
        self._peer.wait(time.monotonic() + seconds, self.record.released.is_set)

    def hold_once(self) -> None:
        """The silence of `Pace.hold`, once; at the latest before the end of the response."""
        if self.pace.hold >= 0:
            self.pace = replace(self.pace, hold=-1)
            self.hold()

    def pause(self, seconds: float) -> None:
        self._peer.wait(time.monotonic() + seconds)

    def paced(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yield the items in groups of `burst`, each group when it is due."""
        source = iter(items)
        due = time.monotonic() + self.pace.first_ms / 1000
        while group := list(islice(source, max(1, self.pace.burst))):
            if 0 <= self.pace.hold < self._paced_count + len(group):
                self.hold_once()
                due = time.monotonic()
            self._peer.wait(due)
            yield group
            self._paced_count += len(group)
            due += len(group) * self.pace.gap

    # Helpers

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
        """The bytes before and after the text in a token's event."""
        if kind in self._frames:
            return self._frames[kind]
        placeholder = "\x00"
        event = b"data: " + as_json(self.chunk_object({kind: placeholder})) + b"\n\n"
        before, after = event.split(as_json(placeholder))
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
    """JSON on one line, in UTF-8; non-ASCII text is not escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
