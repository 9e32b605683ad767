"""A WebSocket client for tests, based on the package `websockets`: JSON messages.

Reading raises TimeoutError after READ_TIMEOUT seconds without a message.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Protocol, Self

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.support.http_client import READ_TIMEOUT, HttpResponse


class SocketClosed(Exception):
    """The server has closed the socket, with this code (1006: without a close frame) and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class ServerAddress(Protocol):
    """The address of Halt, or of a proxy in front of it."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


class WebSocket:
    """One socket. `seen` has for each stream its numbered events, in order of arrival."""

    def __init__(
        self,
        server: ServerAddress,
        *,
        origin: str | None = None,
        receive_buffer: int | None = None,
        path: str = "/ws",
        connected: socket.socket | None = None,
        **headers: str,
    ) -> None:
        sock = connected or socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(READ_TIMEOUT)
        if connected is None:
            sock.connect((server.host, server.port))
        self.address = sock.getsockname()
        try:
            self._context = connect(
                f"ws://{server.host}:{server.port}{path}",
                sock=sock,
                origin=None if origin is None else Origin(origin),
                additional_headers={k.replace("_", "-"): v for k, v in headers.items()},
                ping_interval=None,
                max_queue=4,
                max_size=None,
                close_timeout=2,
            )
            self.connection = self._context.__enter__()
        except BaseException:
            sock.close()
            raise
        self.seen: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.others: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.connection.send(json.dumps(message))

    def next(self) -> dict[str, Any]:
        """The next message. Raises SocketClosed."""
        try:
            text = self.connection.recv(READ_TIMEOUT)
        except ConnectionClosed as closed:
            received = closed.rcvd
            if received is None:
                raise SocketClosed(1006, f"{closed} ({closed.__cause__!r})") from None
            raise SocketClosed(received.code, received.reason) from None
        assert isinstance(text, str)
        message = json.loads(text)
        assert isinstance(message, dict)
        if "event" in message:
            assert message.keys() == {"stream", "seq", "event"}
            self.seen.setdefault(message["stream"], []).append((message["seq"], message["event"]))
        else:
            self.others.append(message)
        return message

    def until(self, kind: str, stream_id: str | None = None) -> dict[str, Any]:
        """Read until a message of this type, about this stream if one is given."""
        while True:
            message = self.next()
            if message.get("type") == kind and stream_id in {None, message.get("id")}:
                return message

    def text(self, stream_id: str) -> str:
        """The text of a stream so far."""
        return "".join(event.get("content", "") for _, event in self.seen.get(stream_id, []))

    def until_text(self, stream_id: str, text: str) -> None:
        """Read until the stream's text contains this text."""
        while text not in self.text(stream_id):
            self.next()

    def to_end(self, *stream_ids: str) -> dict[str, Any]:
        """Read until all these streams have ended; the terminal event of the last argument."""
        terminal: dict[str, Any] = {}
        for stream_id in stream_ids:
            while not (self.seen.get(stream_id) and self.seen[stream_id][-1][1].get("done")):
                self.next()
            terminal = self.seen[stream_id][-1][1]
        return terminal

    def start(self, model: str, prompt: str = "Hello", **fields: Any) -> str:
        """Start a stream; return its ID."""
        messages = [{"role": "user", "content": prompt}]
        self.send(type="start", messages=messages, model=model, **fields)
        message = self.next()
        while message.get("type") not in {"started", "error"}:
            message = self.next()
        assert message["type"] == "started", message
        stream_id = message["id"]
        assert isinstance(stream_id, str)
        return stream_id

    def stop(self, stream_id: str, **fields: Any) -> dict[str, Any]:
        """Send a Stop; return its receipt."""
        self.send(type="stop", id=stream_id, **fields)
        return self.until("receipt", stream_id)

    def wait_processed(self) -> None:
        """Wait until the server has processed all earlier messages."""
        self.send(type="ping")
        self.until("pong")

    def read_to_close(self) -> SocketClosed:
        """Read until the socket is closed; return code and reason."""
        try:
            while True:
                self.next()
        except SocketClosed as end:
            return end


def refused_handshake(server: ServerAddress, **more: Any) -> HttpResponse:
    """The response to a handshake that the server refuses."""
    try:
        socket_ = WebSocket(server, **more)
    except InvalidStatus as refusal:
        response = refusal.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        return HttpResponse(response.status_code, headers, bytes(response.body or b""))
    with socket_:
        raise AssertionError("the socket was accepted")
