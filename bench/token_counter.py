"""Counts the received tokens of each stream when its server dies.

`python -m bench.token_counter JSON` with `address`, `model` and `ids`, the streams to start. It prints
{"ready": true} when each stream has a token, and {ID: tokens} when all connections have ended.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from typing import Any

from tests.support.raw_http import chat, connect

WITHIN = 60.0  # seconds for the first tokens, and for the ends


def read(address: tuple[str, int], model: str, ids: list[str]) -> dict[str, int]:
    """Start the streams, read them until their connections end, and count their tokens."""
    socks: dict[int, tuple[str, socket.socket]] = {}
    poll = select.epoll()
    counts = dict.fromkeys(ids, 0)
    silent = set(ids)
    for stream_id in ids:
        sock = connect(address)
        sock.sendall(chat("/chat/stream", model, stream_id=stream_id))
        socks[sock.fileno()] = (stream_id, sock)
        poll.register(sock, select.EPOLLIN)
    while socks:
        for fd, _ in poll.poll(WITHIN):
            stream_id, sock = socks[fd]
            try:
                data = sock.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                poll.unregister(sock)
                sock.close()
                del socks[fd]
                continue
            # A stamp cut by a read is counted with its first byte.
            counts[stream_id] += data.count(b"@")
            if silent and counts[stream_id]:
                silent.discard(stream_id)
                if not silent:
                    print(json.dumps({"ready": True}), flush=True)
    return counts


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    print(json.dumps(read(tuple(job["address"]), job["model"], job["ids"])), flush=True)
