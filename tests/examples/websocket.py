"""Several answers over one WebSocket, and a Stop on the same connection (package `websockets`).

python websocket.py ws://127.0.0.1:8000/ws "Count to ten." "Name three rivers."
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect


def start(socket: ClientConnection, prompt: str, **options: Any) -> str:
    """Start an answer; its ID, which is ours to choose."""
    stream_id = f"socket-{uuid.uuid4()}"
    messages = [{"role": "user", "content": prompt}]
    socket.send(json.dumps({"type": "start", "id": stream_id, "messages": messages, **options}))
    return stream_id


def stop(socket: ClientConnection, stream_id: str) -> None:
    """Stop it: its `cancelled` event and a receipt come among the other messages."""
    socket.send(json.dumps({"type": "stop", "id": stream_id}))


def events(socket: ClientConnection, *stream_ids: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of these streams as they come, with their stream's ID, to the last one's end."""
    left = set(stream_ids)
    while left:
        message = json.loads(socket.recv())
        if message.get("type") == "error":
            raise RuntimeError(message["error"]["message"])
        if message.get("stream") in left:
            yield message["stream"], message["event"]
            if message["event"].get("done"):
                left.remove(message["stream"])


def main(url: str, *prompts: str) -> None:
    with connect(url) as socket:
        streams = {start(socket, prompt): prompt for prompt in prompts}
        try:
            for stream_id, event in events(socket, *streams):
                print(f"{streams[stream_id]} | {event.get('content') or event['type']}")
        except KeyboardInterrupt:
            for stream_id in streams:
                stop(socket, stream_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
