"""Servers with every known response to GET /v1/models, from model servers and from other ones."""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.support.raw_server import OK, Handler, Peer

JSON = b"Content-Type: application/json\r\n"


def models(*names: str, owner: str = "x", **more: Any) -> dict[str, Any]:
    """A list of models in OpenAI's shape."""
    items = [{"id": name, "object": "model", "owned_by": owner, **more} for name in names]
    return {"object": "list", "data": items}


def response(value: object, status: bytes = b"200 OK", more: bytes = JSON) -> bytes:
    """A whole response with this value as JSON, or these bytes, as its body."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    size = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"HTTP/1.1 %b\r\n%b%b%b" % (status, more, size, body)


CHAT = (
    OK + b"Content-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    b'data: {"choices":[{"index":0,"delta":{"content":"%b answers."}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


def serving(paths: dict[str, bytes]) -> Handler:
    """A server with a response for each path; a chat's answer has the name of its model."""

    def handle(peer: Peer) -> None:
        while request := peer.request():
            method, path, _ = request.decode().split(" ", 2)
            if method == "POST":
                model = json.loads(request.partition(b"\r\n\r\n")[2])["model"]
                peer.send(CHAT % model.encode())
                return
            peer.send(paths.get(path, response({"error": "not found"}, b"404 Not Found")))

    return handle


def listing(value: object, **more: object) -> Handler:
    """A server that lists these models; `more` are the JSON answers of other paths."""
    paths = {f"/{path.replace('__', '/')}": response(value) for path, value in more.items()}
    return serving({"/v1/models": response(value), **paths})


def refusing(status: bytes, body: object = b"", more: bytes = JSON) -> Handler:
    """A server with the same response for every request."""

    def handle(peer: Peer) -> None:
        while peer.request():
            peer.send(response(body, status, more))

    return handle


def _silent(peer: Peer) -> None:
    peer.wait_client_left()


def _drip(peer: Peer) -> None:
    peer.request()
    peer.send(OK + JSON + b'Content-Length: 100000\r\n\r\n{"data": [')
    pause = threading.Event()
    while not pause.wait(0.02):
        peer.send(b" ")


def _endless(peer: Peer) -> None:
    peer.request()
    peer.send(OK + JSON + b'\r\n{"data": [')
    pause = threading.Event()
    while not pause.wait(0.001):
        peer.send(b'{"id": "m"},' * 5000)


OLLAMA = listing(
    models("nomic-embed-text:latest", "llama3.2:latest", "qwen3:8b", owner="library"),
    api__ps={"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "context_length": 4096}]},
)
LM_STUDIO = listing(
    models("text-embedding-nomic", "qwen2-vl", "gpt-oss", owner="organization_owner"),
    api__v0__models={
        "data": [
            {"id": "text-embedding-nomic", "type": "embeddings", "state": "loaded"},
            {"id": "qwen2-vl", "type": "vlm", "state": "not-loaded", "max_context_length": 32768},
            {"id": "gpt-oss", "type": "llm", "state": "loaded", "capabilities": ["tool_use"]},
        ]
    },
)
ROUTER = listing(
    {
        "object": "list",
        "data": [
            {"id": "a", "owned_by": "llamacpp", "status": {"value": "unloaded"}},
            {"id": "b", "owned_by": "llamacpp", "status": {"value": "loaded", "args": []}},
        ],
    }
)

#: Servers whose models are offered.
OFFERED: dict[str, Handler] = {
    "ollama": OLLAMA,
    "empty-ollama": listing({"object": "list", "data": None}),
    "llama.cpp": listing({"models": [{"name": "g"}], **models("gemma.gguf", owner="llamacpp")}),
    "router": ROUTER,
    "vllm": listing(models("meta/llama", owner="vllm", max_model_len=4096)),
    "lmstudio": LM_STUDIO,
    "koboldcpp": listing(models("koboldcpp/dolphin", owner="koboldcpp")),
    "other": listing(models("text-embedding-3", "m", owner="user")),
}
#: Other servers that may listen on the ports of model servers.
NOT_OFFERED: dict[str, Handler] = {
    "airplay": refusing(b"403 Forbidden", more=b"Server: AirTunes/760.20.1\r\n"),
    "html": refusing(
        b"200 OK", b"<!doctype html><title>An app</title>", b"Content-Type: text/html\r\n"
    ),
    "html-401": refusing(b"401 Unauthorized", b"<h1>Log in</h1>", b"Content-Type: text/html\r\n"),
    "other-json": refusing(b"200 OK", {"data": {"id": "m"}}),
    "no-models": refusing(b"200 OK", {"data": [1, 2]}),
    "array": refusing(b"200 OK", [{"id": "m"}]),
    "deep": refusing(b"200 OK", b"[" * 200_000),
    "redirect": refusing(b"302 Found", more=b"Location: /v1/other\r\nSet-Cookie: a=b\r\n"),
    "halt": listing(models("a", owner="halt")),
    "halt-token": refusing(
        b"401 Unauthorized", {"error": {"message": "An access token is needed."}}
    ),
    "halt-loop": refusing(b"508 Loop Detected", {"error": {"message": "This Halt ..."}}),
    "silence": _silent,
    "drip": _drip,
    "endless": _endless,
    "garbage": lambda peer: peer.send(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "hang-up": lambda peer: None,
}
LOCKED = refusing(b"401 Unauthorized", {"error": {"message": "Invalid API key"}})
LOADING = refusing(b"503 Service Unavailable", {"error": {"message": "Loading model"}})
KINDS = {**OFFERED, **NOT_OFFERED, "locked": LOCKED, "loading": LOADING}
