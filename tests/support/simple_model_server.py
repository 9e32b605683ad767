"""A model's server whose list of models and whose answers a test gives as functions."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXTS = [f"{number} " for number in range(1, 21)]
TEXT = "".join(TEXTS)
USAGE = {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}


class ModelRequest(BaseHTTPRequestHandler):
    """One request; `reply` and `stream` answer it."""

    protocol_version = "HTTP/1.1"
    lists: Callable[[ModelRequest], None]
    answers: Callable[[ModelRequest], None]

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        if self.path.endswith("/v1/models"):
            type(self).lists(self)
        else:
            self.reply({"error": {"message": "There is no such path."}}, 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with contextlib.suppress(ConnectionError):  # Stop
            if self.path.endswith("/v1/chat/completions"):
                type(self).answers(self)
            else:
                self.reply({"error": {"message": "There is no such path."}}, 404)

    def reply(self, value: Any, status: int = 200, kind: str = "application/json") -> None:
        """Send this text, or this value as JSON."""
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, **headers: str) -> None:
        """Send TEXTS as a stream of events, with further header fields."""
        self.send_response(200)
        self.send_header("Connection", "close")
        for name, value in ({"Content_Type": "text/event-stream"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        for text in TEXTS:
            self._piece({"choices": [{"index": 0, "delta": {"content": text}}]})
            time.sleep(0.005)  # the pace of a model; no test depends on its length
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
        self._piece(end)
        self.wfile.write(b"data: [DONE]\n\n")

    def _piece(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")


Responder = Callable[[ModelRequest], None]


def list_models(request: ModelRequest) -> None:
    """Answer with a list of one model."""
    request.reply({"object": "list", "data": [{"id": "good", "object": "model"}]})


def refuse_list(request: ModelRequest) -> None:
    """Answer as a server without a list of models."""
    request.reply({"detail": "Not Found"}, 404)


def stream_answer(request: ModelRequest) -> None:
    """Answer with a stream."""
    request.stream()


def reply_with(value: Any, status: int = 200, kind: str = "application/json") -> Responder:
    """A function that answers a request with this body."""
    return lambda request: request.reply(value, status, kind)


@contextlib.contextmanager
def serving(lists: Responder = list_models, answers: Responder = stream_answer) -> Iterator[str]:
    """Serve requests for the list and for answers with these functions; yield the base URL."""
    handler = type("Handler", (ModelRequest,), {"lists": lists, "answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
