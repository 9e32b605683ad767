"""Send a fresh server its first requests of every kind at once; report the unanswered ones.

All connections are made first. Then one thread sends every request within about a millisecond, so
that the server's threads run concurrently through all code that a first request initialises.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from typing import Any

from tests.support.halt_server import HaltServer, new_id

READ_TIMEOUT = 30.0  # seconds without a byte, after which an answer is missing
MESSAGES = [{"role": "user", "content": "one two three"}]
SITE = {"Accept": "text/html", "User-Agent": "Mozilla/5.0", "Sec-Fetch-Site": "same-origin"}
HTMX = {**SITE, "HX-Request": "true"}
FORM = {**HTMX, "Content-Type": "application/x-www-form-urlencoded"}
TEXT_FRAME, MASKED = 0x81, 0x80


class MissingAnswer(Exception):
    """A request without the expected response."""


def _head(method: str, path: str, headers: dict[str, str], size: int | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if size is not None:
        lines.append(f"Content-Length: {size}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class BurstRequest:
    """One request: `connect`, `send` and `finish` are called one after the other."""

    def __init__(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        status: int = 200,
        holds: str = "",
    ) -> None:
        """A body of bytes is sent unchanged, any other as JSON. The response must contain `holds`."""
        self.name = f"{method} {path}"
        more = {**(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            more.setdefault("Content-Type", "application/json")
        size = None if body is None else len(body)
        self._request = _head(method, path, more, size) + (body or b"")
        self._status, self._holds = status, holds
        self.sock = socket.socket()
        self.cookie = ""

    def connect(self, host: str, port: int) -> None:
        self.sock.settimeout(READ_TIMEOUT)
        self.sock.connect((host, port))

    def send(self) -> None:
        self.sock.sendall(self._request)

    def finish(self) -> None:
        """Read the response. Raises Lost, OSError, HTTPException."""
        response = HTTPResponse(self.sock)
        response.begin()
        body = response.read().decode()
        if response.status != self._status or self._holds not in body:
            raise MissingAnswer(f"{response.status} {body[:300]!r}")
        self.cookie = response.headers.get("Set-Cookie", "").partition(";")[0]


class PagePrompt(BurstRequest):
    """A prompt of the page, followed by the page's request for the answer's stream."""

    def __init__(self) -> None:
        self._id = new_id()
        path, form = (
            f"/c/{new_id()}/messages",
            f"id={self._id}&prompt=one+two+three&model=count%3Fn=3",
        )
        super().__init__("POST", path, form.encode(), FORM, holds="answer")
        self._address = ("", 0)

    def connect(self, host: str, port: int) -> None:
        self._address = (host, port)
        super().connect(host, port)

    def finish(self) -> None:
        super().finish()
        path = f"/streams/{self._id}/page"
        follow = BurstRequest(
            "GET", path, headers={**HTMX, "Cookie": self.cookie}, holds="</article>"
        )
        with contextlib.closing(follow.sock):
            follow.connect(*self._address)
            follow.send()
            follow.finish()


class SocketStream(BurstRequest):
    """A WebSocket with one stream."""

    def __init__(self) -> None:
        super().__init__("GET", "/ws")
        key = base64.b64encode(b"sixteen bytes 16").decode()
        self._request = _head(
            "GET",
            "/ws",
            {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": key,
            },
            None,
        )

    def finish(self) -> None:
        received = self._until(b"\r\n\r\n", b"")
        head, _, rest = received.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise MissingAnswer(repr(received[:300]))
        start = {"type": "start", "messages": MESSAGES, "model": "count?n=3"}
        text = json.dumps(start).encode()
        size = bytes([len(text) | MASKED]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
        self.sock.sendall(bytes([TEXT_FRAME]) + size + bytes(4) + text)  # a mask of zeros
        self._until(b'"type":"done"', rest)

    def _until(self, mark: bytes, received: bytes) -> bytes:
        while mark not in received:
            data = self.sock.recv(65_536)
            if not data:
                raise MissingAnswer(f"ended after {received[-300:]!r}")
            received += data
        return received


def _imported() -> bytes:
    conversation = {
        "id": new_id(),
        "title": "A talk",
        "messages": [
            {"id": 1, "parent": None, "role": "user", "content": "Hi", "created_at": 1.0},
            {"id": 2, "parent": 1, "role": "assistant", "content": "Hello", "created_at": 2.0},
        ],
        "chosen": [1, 2],
        "created_at": 1.0,
        "updated_at": 2.0,
    }
    file = {"format": "halt-conversations", "version": 1, "conversations": [conversation]}
    head = 'Content-Disposition: form-data; name="file"; filename="a.json"'
    return f"--line\r\n{head}\r\n\r\n{json.dumps(file)}\r\n--line--\r\n".encode()


def _kinds() -> Iterator[tuple[int, Callable[[], BurstRequest]]]:
    """Number and factory of each kind of request; 50 requests in all."""
    chat = {"messages": MESSAGES, "model": "count?n=3"}
    yield 6, lambda: BurstRequest("POST", "/chat/stream", {**chat, "id": new_id()}, holds="[DONE]")
    yield (
        2,
        lambda: BurstRequest("POST", "/chat", {"prompt": "one two", "model": "echo"}, holds="two"),
    )
    yield (
        2,
        lambda: BurstRequest(
            "POST", "/chat", chat, {"Accept": "application/json"}, holds='"state":"done"'
        ),
    )
    yield 2, lambda: BurstRequest("GET", "/stream?prompt=one&model=echo", holds='"done":true')
    yield (
        3,
        lambda: BurstRequest(
            "POST", "/v1/chat/completions", {**chat, "stream": True}, holds="[DONE]"
        ),
    )
    yield (
        3,
        lambda: BurstRequest("POST", "/v1/chat/completions", chat, holds='"finish_reason":"stop"'),
    )
    yield 2, lambda: BurstRequest("GET", "/v1/models", holds='echo"')
    yield 2, lambda: BurstRequest("POST", f"/stop/{new_id()}", status=202, holds="pending")
    yield (
        1,
        lambda: BurstRequest("POST", "/stop", {"stream_id": new_id()}, status=202, holds="pending"),
    )
    yield 4, SocketStream
    yield 4, PagePrompt
    yield (
        2,
        lambda: BurstRequest(
            "POST",
            "/import",
            _imported(),
            {**HTMX, "Content-Type": "multipart/form-data; boundary=line"},
            holds="imported",
        ),
    )
    yield 2, lambda: BurstRequest("GET", "/conversations/search?q=talk", headers=HTMX)
    yield 1, lambda: BurstRequest("GET", "/conversations", headers=HTMX)
    yield 1, lambda: BurstRequest("GET", "/models", headers=HTMX, holds="<option")
    yield 1, lambda: BurstRequest("GET", "/export", headers=SITE, holds="halt-conversations")
    yield 1, lambda: BurstRequest("GET", "/settings", headers=HTMX)
    yield 1, lambda: BurstRequest("GET", "/openapi.json", holds='"openapi"')
    yield 1, lambda: BurstRequest("GET", "/docs", headers=SITE, holds="</html>")
    yield 1, lambda: BurstRequest("GET", "/healthz", holds='"status":"ok"')
    yield 1, lambda: BurstRequest("GET", "/static/css/base.css")
    yield 1, lambda: BurstRequest("GET", "/nowhere", headers=SITE, status=404, holds="</html>")
    yield 5, lambda: BurstRequest("GET", "/", headers=SITE, holds="</html>")
    yield 1, lambda: BurstRequest("POST", "/chat/stream", b"{", status=400, holds="invalid_request")


def requests() -> list[BurstRequest]:
    """All requests, ordered by kind, so that requests of one kind run the same code concurrently."""
    return [make_request() for count, make_request in _kinds() for _ in range(count)]


def send_burst(host: str, port: int) -> tuple[int, list[str]]:
    """Send all requests at once; return their number and the unanswered ones."""
    missing_answers: list[str] = []
    all_requests = requests()
    try:
        for request in all_requests:
            request.connect(host, port)
        for request in all_requests:
            with contextlib.suppress(OSError):  # `finish` reports it
                request.send()
        for request in all_requests:
            try:
                request.finish()
            except (MissingAnswer, OSError, HTTPException) as fault:
                missing_answers.append(f"{request.name}: {type(fault).__name__}: {fault}")
            finally:
                request.sock.close()
    finally:
        for request in all_requests:
            request.sock.close()
    return len(all_requests), missing_answers


def send_bursts(starts: int, upstream: str) -> Iterator[tuple[int, list[str]]]:
    """The results of `send_burst` for `starts` fresh servers; the next server starts meanwhile."""
    env = {"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "fake", "HALT_MAX_STREAMS": "60"}
    with ThreadPoolExecutor(1) as pool:
        pending: Future[HaltServer] | None = pool.submit(HaltServer, env)
        try:
            for number in reversed(range(starts)):
                assert pending is not None
                server = pending.result()
                pending = pool.submit(HaltServer, env) if number else None
                try:
                    count, missing_answers = send_burst(server.host, server.port)
                    if died := re.search("Worker .* was sent SIG.*", server.printed):
                        missing_answers.append(died[0])
                finally:
                    server.kill()  # an orderly exit would double the time
                    server.close()
                yield count, missing_answers
        finally:
            if pending is not None:
                pending.result().kill()
                pending.result().close()
