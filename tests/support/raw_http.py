"""HTTP requests as bytes and responses read from sockets, with little overhead."""

from __future__ import annotations

import base64
import json
import re
import secrets
import socket
import time
from typing import NamedTuple
from urllib.parse import urlencode

Address = tuple[str, int]
TIMEOUT = 20.0  # seconds for one response


class RawAnswer(NamedTuple):
    """A whole response, and the time of its last byte (`time.monotonic()`)."""

    status: int
    head: str
    body: bytes
    at: float

    def header(self, name: str) -> str:
        """A header's value; "" without the header."""
        match = re.search(rf"^{name}:\s*(.*?)\s*$", self.head, re.MULTILINE | re.IGNORECASE)
        return match[1] if match else ""


def connect(address: Address) -> socket.socket:
    """A TCP connection with TCP_NODELAY, as browsers make it."""
    sock = socket.create_connection(address, TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(
    method: str, path: str, body: bytes = b"", kind: str = "application/json", more: str = ""
) -> bytes:
    """A request; `more` holds header lines with their line breaks."""
    size = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{size}{more}\r\n".encode() + body


def chat(
    path: str, model: str, prompt: str = "hello", stream_id: str = "", **more: object
) -> bytes:
    """A request for a streamed answer as JSON events."""
    fields: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        **more,
    }
    header = ""
    if stream_id and path.startswith("/v1/"):
        header = f"X-Stream-Id: {stream_id}\r\n"
    elif stream_id:
        fields["id"] = stream_id
    return request("POST", path, json.dumps(fields).encode(), more=header)


def event_source(path: str, model: str, prompt: str = "hello", stream_id: str = "") -> bytes:
    """A request for a streamed answer, as an EventSource sends it."""
    fields = {"prompt": prompt, "model": model} | ({"id": stream_id} if stream_id else {})
    return request("GET", f"{path}?{urlencode(fields)}")


def open_websocket(address: Address, path: str) -> socket.socket:
    """Open a WebSocket; return the connection after the handshake."""
    sock = connect(address)
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    lines = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n"
    sock.sendall(request("GET", path, more=f"{lines}Sec-WebSocket-Version: 13\r\n"))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(1)
    if b" 101 " not in answer.split(b"\r\n")[0]:
        raise RuntimeError(f"no socket: {answer!r}")
    return sock


def socket_message(**fields: object) -> bytes:
    """A client's WebSocket message, masked with zeros."""
    data = json.dumps(fields).encode()
    size = bytes([128 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


def form(path: str, more: str = "", **fields: str) -> bytes:
    """A request with a form, as the page sends it."""
    body = urlencode(fields).encode()
    kind = "application/x-www-form-urlencoded"
    return request("POST", path, body, kind, f"HX-Request: true\r\n{more}")


def stop(stream_id: str) -> bytes:
    """A request that stops a stream."""
    return request("POST", f"/stop/{stream_id}", b"{}")


def complete(data: bytes) -> tuple[str, bytes] | None:
    """Head and body of a response with a length; None while bytes are missing."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    match = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    if match is None:
        raise ValueError(f"an answer without a length: {head!r}")
    return (head.decode("latin-1"), body) if len(body) >= int(match[1]) else None


def receive(sock: socket.socket) -> RawAnswer:
    """Read one response with a length."""
    data = b""
    while (parts := complete(data)) is None:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError(f"the server left in mid-answer: {data[:200]!r}")
        data += more
    at = time.monotonic()
    head, body = parts
    return RawAnswer(int(head.split(" ", 2)[1]), head, body, at)


def fetch(address: Address, message: bytes) -> RawAnswer:
    """Send one request on a new connection; return the response."""
    with connect(address) as sock:
        sock.sendall(message)
        return receive(sock)
