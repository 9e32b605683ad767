"""Malformed WebSocket frames and messages beside a socket that must continue."""

from __future__ import annotations

import json
import random
import socket

import pytest

from tests.support.halt_server import HaltServer, new_id
from tests.support.http_client import READ_TIMEOUT
from tests.support.raw_http import Address, open_websocket, socket_message
from tests.support.websocket_client import WebSocket

SEED = 12
MUTATIONS = 200
#: Numbers beyond a machine's integers, and numbers of the wrong kind.
NUMBERS = [
    *("-1", "-0", "1e3", "1e400", "1.5", "00", "NaN", "-Infinity"),
    *(str(2**bits + more) for bits in (53, 63, 64) for more in (-1, 0)),
    *("9" * digits for digits in (20, 400, 5000)),
    *(f"-{2**bits}" for bits in (63, 64)),
]
#: Messages with a number (#) in each field, whether the field takes numbers or not.
TEMPLATES = [
    '{"type":"stop","id":"%s","seen":#}',
    '{"type":"stop","id":#}',
    '{"type":"follow","id":"%s","after":#}',
    '{"type":"ping","x":#}',
    '{"type":#}',
    '{"type":"start","messages":[{"role":"user","content":"x"}],"max_tokens":#}',
    '{"type":"start","messages":[{"role":"user","content":"x"}],"temperature":#}',
    '{"type":"start","messages":[{"role":"user","content":"x"}],"seed":#}',
    '{"type":"start","messages":[{"role":"user","content":#}]}',
    '{"type":"start","messages":[{"role":"user","content":[{"type":"text","text":#}]}]}',
    '{"type":"start","messages":[{"role":"user","content":"x","n":#}],"model":"count?n=1"}',
    '{"type":"start","messages":#}',
    "#",
    "[#]",
]


def address(server: HaltServer) -> Address:
    return server.host, server.port


@pytest.mark.parametrize("template_text", TEMPLATES)
def test_number_in_any_field_is_answered(halt: HaltServer, template_text: str) -> None:
    """A message with any number in any field is answered, and the socket and its streams
    continue.
    """
    with WebSocket(halt) as ws:
        stream_id = ws.start("stall?n=1")
        template = template_text.replace("%s", stream_id)
        for number in NUMBERS:
            ws.connection.send(template.replace("#", number))
        ws.wait_processed()
        faults = [message["error"] for message in ws.others if message.get("type") == "error"]
        assert all(fault["code"] != "internal" for fault in faults), faults
        assert all("Traceback" not in fault["message"] for fault in faults)
        receipts = [message for message in ws.others if message.get("type") == "receipt"]
        if not receipts:
            assert ws.stop(stream_id)["status"] == "stopped"
        assert ws.to_end(stream_id)["type"] == "cancelled"


def mutated(rng: random.Random, stream_id: str) -> bytes:
    """Three frames with one to six random changes."""
    frames = [
        socket_message(type="ping"),
        socket_message(type="follow", id=stream_id, after=0),
        socket_message(type="stop", id=new_id()),
        socket_message(type="unfollow", id=stream_id),
        b"\x89\x80" + bytes(4),
        b"\x88\x82" + bytes(4) + b"\x03\xe8",
        b"\x01\x83" + bytes(4) + b"abc" + b"\x80\x83" + bytes(4) + b"def",
    ]
    data = bytearray(b"".join(rng.choices(frames, k=3)))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.randint(1, 9)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            case _:
                data[at : at + 10] = b"\x81\xff" + rng.randbytes(8)
        data = data or bytearray(b"\x00")
    return bytes(data)


def test_mutated_frames_affect_their_own_socket_only(halt: HaltServer) -> None:
    """Mutated frames are answered or close their own connection; other sockets and streams
    continue.
    """
    rng = random.Random(SEED)
    with WebSocket(halt) as other_socket:
        stream_id = other_socket.start("count?n=1000000&gap_ms=20")
        for _ in range(MUTATIONS // 20):
            sockets = [open_websocket(address(halt), "/ws") for _ in range(20)]
            for sock in sockets:
                sock.sendall(mutated(rng, stream_id))
                sock.shutdown(socket.SHUT_WR)
            for sock in sockets:
                sock.settimeout(READ_TIMEOUT)
                with sock:
                    while read_or_reset(sock):
                        pass
            other_socket.wait_processed()
        assert other_socket.stop(stream_id)["status"] == "stopped"
        end = other_socket.to_end(stream_id)
        assert end["type"] == "cancelled", json.dumps(end)


def read_or_reset(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65_536)
    except ConnectionResetError:
        return b""
