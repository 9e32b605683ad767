"""An HTTP client for tests: JSON bodies, and Server-Sent Events as they arrive.

Reading raises TimeoutError after READ_TIMEOUT seconds without a byte.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any, Self

READ_TIMEOUT = 40.0  # seconds without a byte, after which a test has failed


@dataclass(frozen=True)
class ServerEvent:
    """One event as sent; `id` and `event` are empty if the event has none."""

    id: str
    event: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        """The data, which must be a JSON object."""
        value = json.loads(self.data)
        assert isinstance(value, dict)
        return value


@dataclass(frozen=True)
class HttpResponse:
    """A whole response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object of that content type."""
        assert self.headers.get("content-type") == "application/json", self
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, Any]:
        """The error object of an error response."""
        value = self.json["error"]
        assert isinstance(value, dict)
        assert isinstance(value["code"], str)
        assert value["message"]
        assert "Traceback" not in value["message"]
        return value


class EventStream:
    """A response of type text/event-stream, read event by event; `comments` counts comments."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        try:
            self._response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        self._buffer = b""
        self._fields: dict[str, list[str]] = {}  # of the block that is being read
        self._waiting: list[ServerEvent] = []
        self.status = self._response.status
        self.headers = _lower(self._response)
        self.comments = 0
        self.seen: list[ServerEvent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_response"):
            self.close()  # a dropped reader closes its connection

    @property
    def id(self) -> str:
        """The stream's ID."""
        return self.headers["x-stream-id"]

    @property
    def text(self) -> str:
        """The text of all events read so far."""
        return "".join(
            m.json["content"] for m in self.seen if m.data != "[DONE]" and "content" in m.json
        )

    @property
    def terminal(self) -> dict[str, Any]:
        """The terminal event among those read so far; there must be exactly one."""
        ends = [m.json for m in self.seen if m.data != "[DONE]" and m.json.get("done")]
        assert len(ends) == 1, self.seen
        return ends[0]

    def answer(self) -> HttpResponse:
        """The whole response, if it is an error and no stream."""
        return HttpResponse(self.status, self.headers, self._response.read())

    def __iter__(self) -> Iterator[ServerEvent]:
        return iter(self.next, None)

    def next(self) -> ServerEvent | None:
        """The next event, None at the end of the response."""
        while not self._waiting:
            if not self._read():
                return None
        message = self._waiting.pop(0)
        self.seen.append(message)
        return message

    def until_text(self, text: str) -> Self:
        """Read until the text so far contains `text`."""
        while text not in self.text:
            assert self.next() is not None, f"ended without {text!r}: {self.seen[-3:]}"
        return self

    def until_comment(self, count: int) -> Self:
        """Read until `count` comments have arrived."""
        while self.comments < count:
            assert self._read(), "the response has ended"
        return self

    def to_end(self) -> Self:
        """Read to the end of the response, which must be [DONE]."""
        for _ in self:
            pass
        assert self.seen
        assert self.seen[-1].data == "[DONE]", self.seen[-3:]
        self.close()
        return self

    def close(self) -> None:
        """Close the connection, also in the middle of the stream."""
        self._response.close()
        self._connection.close()

    def _read(self) -> bool:
        piece = self._response.read1(65536)
        if not piece:
            half = self._buffer or self._fields
            assert not half, f"half an event at the end: {half!r}"
            return False
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            self._take(line.decode())
        return True

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name:
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return
        if line:
            self.comments += 1
            return
        fields, self._fields = self._fields, {}
        if "data" in fields:
            self._waiting.append(
                ServerEvent(
                    "".join(fields.get("id", [])),
                    "".join(fields.get("event", [])),
                    "\n".join(fields["data"]),
                )
            )


class Client:
    """One user agent: keeps cookies and opens one connection per request."""

    def __init__(self, host: str, port: int, **headers: str) -> None:
        self.address = (host, port)
        self.headers = headers
        self.cookies: dict[str, str] = {}

    def connect(self, receive_buffer: int | None = None) -> http.client.HTTPConnection:
        """A connection; with a small buffer the server soon waits until the client reads."""
        connection = http.client.HTTPConnection(*self.address, timeout=READ_TIMEOUT)
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(READ_TIMEOUT)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        connection.sock = sock
        return connection

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request on a connection; bytes are sent unchanged, other bodies as JSON."""
        more = {**self.headers, **(headers or {})}
        if self.cookies:
            more["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            more.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, more)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """Send a request; return the whole response."""
        connection = self.connect()
        try:
            self.send(connection, method, path, body, headers)
            response = connection.getresponse()
            answer = HttpResponse(response.status, _lower(response), response.read())
        finally:
            connection.close()
        cookies: SimpleCookie = SimpleCookie(answer.headers.get("set-cookie", ""))
        self.cookies.update({name: morsel.value for name, morsel in cookies.items()})
        return answer

    def get(self, path: str, **headers: str) -> HttpResponse:
        """GET; underscores in header names stand for hyphens."""
        return self.request("GET", path, headers=_hyphens(headers))

    def post(self, path: str, body: Any = None, **headers: str) -> HttpResponse:
        """POST; underscores in header names stand for hyphens."""
        return self.request("POST", path, body, headers=_hyphens(headers))

    def stream(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> EventStream:
        """Send a request; return the response as an event stream."""
        connection = self.connect(receive_buffer)
        try:
            self.send(connection, method, path, body, headers)
        except OSError:
            connection.close()
            raise
        return EventStream(connection)

    def chat(self, model: str, prompt: str = "Hello", **fields: Any) -> EventStream:
        """Start a stream: one prompt to a model. Returns with the first bytes of the response."""
        messages = [{"role": "user", "content": prompt}]
        return self.stream("POST", "/chat/stream", {"messages": messages, "model": model, **fields})

    def follow(self, stream_id: str, after: int | None = None, **headers: str) -> EventStream:
        """Replay and follow a stream, from the event after `after`."""
        path = f"/streams/{stream_id}" + ("" if after is None else f"?after={after}")
        return self.stream("GET", path, headers=_hyphens(headers))

    def stop(self, stream_id: str) -> HttpResponse:
        """Send a Stop; return its receipt."""
        return self.post(f"/stop/{stream_id}")


def _lower(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _hyphens(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
