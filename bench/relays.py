"""Relays that Halt is compared with: `python -m bench.relays fastapi|bare UPSTREAM`.

`fastapi` is the relay of tutorials: FastAPI, AsyncOpenAI, `async for`, a flag for Stop, one uvicorn
process with default settings (without access log). `bare` copies bytes between two sockets, with
one thread per connection and without parsing: the cost of the network alone in Python.
Both print their port.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel


class ChatBody(BaseModel):
    """The body of a request."""

    model: str
    messages: list[dict[str, str]]
    id: str = ""


def tutorial_app(upstream: str) -> FastAPI:
    """The FastAPI application of the tutorial relay."""
    app = FastAPI()
    client = AsyncOpenAI(base_url=upstream, api_key="fake")
    stopped: set[str] = set()

    @app.post("/chat/stream")
    async def chat(body: ChatBody) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            messages: list[ChatCompletionMessageParam] = [
                {"role": "user", "content": message["content"]} for message in body.messages
            ]
            stream = await client.chat.completions.create(
                model=body.model, messages=messages, stream=True
            )
            async for chunk in stream:
                if body.id in stopped:
                    break
                content = chunk.choices[0].delta.content if chunk.choices else None
                if content:
                    yield f"data: {json.dumps({'type': 'content', 'content': content})}\n\n"
            yield f"data: {json.dumps({'type': 'done', 'done': True})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/stop/{stream_id}")
    async def stop(stream_id: str) -> dict[str, bool]:
        stopped.add(stream_id)
        return {"stopped": True}

    return app


def copy_bytes(listener: socket.socket, upstream: tuple[str, int]) -> None:
    """Accept connections, and copy bytes between each and the upstream."""

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection(upstream) as server:
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(client.recv(65536))
            while data := server.recv(65536):
                client.sendall(data)

    while True:
        client, _ = listener.accept()
        threading.Thread(target=relay, args=(client,), daemon=True).start()


def main() -> None:
    kind, upstream = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    if kind == "fastapi":
        logging.getLogger("asyncio").setLevel(
            "ERROR"
        )  # else it logs every write to a closed connection
        config = uvicorn.Config(tutorial_app(upstream), access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    else:
        url = urlsplit(upstream)
        copy_bytes(listener, (url.hostname or "", url.port or 80))


if __name__ == "__main__":
    main()
