"""WebSocket frames to a real server: any bytes after a valid handshake."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis.strategies import SearchStrategy

from halt.web.api.document import document
from tests.fuzz.mutate import NUMBERS, altered, dumped, mutated
from tests.fuzz.schemas import fitting
from tests.fuzz.server import ANSWER_TIMEOUT, ServerTarget, spoiled
from tests.fuzz.target import Finding, examples
from tests.support.halt_server import HaltServer

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
KEYS = ("type", "id", "seen", "after", "messages", "model", "on_disconnect", "extra_body")
#: Codes with which the server may close; 1011 would report a fault of the server.
CLOSES = frozenset({1000, 1001, 1002, 1003, 1007, 1009, 4008})
_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{8,12}$"}
_NUMBER = {"type": "integer", "minimum": 0}
#: The client's messages other than `start`, as halt.web.websocket.messages takes them.
OTHER_MESSAGES: dict[str, dict[str, Any]] = {
    "stop": {"type": "object", "properties": {"id": _ID, "seen": _NUMBER}, "required": ["id"]},
    "follow": {"type": "object", "properties": {"id": _ID, "after": _NUMBER}, "required": ["id"]},
    "unfollow": {"type": "object", "properties": {"id": _ID}, "required": ["id"]},
    "ping": {"type": "object", "properties": {"type": {"const": "ping"}}},
}
MASK = b"\x01\x02\x03\x04"


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, mask: bool = True) -> bytes:
    """A client's frame."""
    size, bit = len(payload), 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


def _messages(name: str, schema: dict[str, Any], shapes: dict[str, Any]) -> SearchStrategy[bytes]:
    """Valid messages of one type."""
    return fitting(schema, shapes).map(lambda value: json.dumps({**value, "type": name}).encode())


class Frames(ServerTarget):
    """The server answers with frames by the protocol, closes in time, and serves requests
    afterwards.
    """

    name = "websocket"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        shapes = document(token=False)["components"]["schemas"]
        sources = [
            examples(_messages(name, schema, shapes), rng)
            for name, schema in {"start": shapes["ChatRequest"], **OTHER_MESSAGES}.items()
        ]
        while True:
            frames = [
                self._message(rng, next(rng.choice(sources))) for _ in range(rng.randrange(1, 5))
            ]
            if rng.random() < 0.3:
                frames.append(frame(rng.choice(LAST), 8))
            data = b"".join(frames)
            yield mutated(rng, data) if rng.random() < 0.4 else data

    def _message(self, rng: random.Random, text: bytes) -> bytes:
        kind = rng.randrange(8)
        if kind < 3:
            value = altered(rng, json.loads(text), KEYS)
            if isinstance(value, dict) and rng.random() < 0.4:
                value[rng.choice(("seen", "after", "seed", "max_tokens"))] = rng.choice(NUMBERS)
            text = dumped(rng, value)
        elif kind == 3:
            text = spoiled(rng, text)
        elif kind == 4:
            text = mutated(rng, text)
        shape = rng.randrange(8)
        if shape == 0 and len(text) > 1:
            at = rng.randrange(1, len(text))
            between = frame(b"hi", 9) if rng.random() < 0.5 else b""
            return frame(text[:at], fin=False) + between + frame(text[at:], 0)
        if shape == 1:
            return frame(
                text[:100], rng.randrange(16), fin=rng.random() < 0.8, mask=rng.random() < 0.9
            )
        return frame(text, rng.choice((1, 1, 1, 1, 2)))

    def send(self, server: HaltServer, data: bytes) -> None:
        with socket.create_connection((server.host, server.port), ANSWER_TIMEOUT) as sock:
            sock.sendall(HANDSHAKE % f"{server.host}:{server.port}".encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += _received(sock, answer)
            head, _, answer = answer.partition(b"\r\n\r\n")
            if b" 101 " not in head:
                raise Finding("a handshake is refused", f"{head!r}")
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the server has closed after an earlier frame
            while piece := _received(sock, b"", at_end=b""):
                answer += piece
        for message in messages(answer):
            self._check_message(message)

    def _check_message(self, message: dict[str, Any]) -> None:
        fault = message.get("error")
        if not isinstance(fault, dict):
            return
        if fault["code"] == "internal":
            raise Finding("an internal error is reported", f"{message!r}")
        if fault["code"] in {"invalid_request", "too_large"} and not fault.get("field"):
            raise Finding("a refusal names no field", f"{message!r}")


LAST = (
    b"",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x00",
    b"\x00\x00",
    b"\x03\xed",
    b"\x13\x88",
    b"\x03\xe8\xff",
    b"\x03\xe8" + b"a" * 200,
)


def _received(sock: socket.socket, before: bytes, at_end: bytes | None = None) -> bytes:
    try:
        piece = sock.recv(65_536)
    except TimeoutError:
        raise Finding("the server does not close", f"after {ANSWER_TIMEOUT:g} s") from None
    except ConnectionError:
        piece = b""
    if not piece and at_end is None:
        raise Finding("the connection ends in the handshake", f"{before!r}")
    return piece


def messages(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON of a server's frames. Raises Finding for a break of the protocol."""
    closed = False
    while data:
        if len(data) < 2:
            return  # a connection that is reset may end anywhere
        size, at = data[1], 2
        if size & 0x80 or data[0] & 0x70 or closed:
            raise Finding("a frame breaks the protocol", f"{data[:20]!r}")
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + wide]), 2 + wide
        if len(data) < at + size:
            return
        opcode, payload, data = data[0], data[at : at + size], data[at + size :]
        if opcode == 0x81:
            value = json.loads(payload)
            if not isinstance(value, dict):
                raise Finding("a message is no object", f"{payload[:200]!r}")
            yield value
        elif opcode == 0x88:
            closed = True
            if payload and int.from_bytes(payload[:2]) not in CLOSES:
                raise Finding(f"closed with {int.from_bytes(payload[:2])}", f"{payload!r}")
        elif opcode not in {0x89, 0x8A}:
            raise Finding("a frame of an unknown kind", hex(opcode))
