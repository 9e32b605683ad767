"""A model's server whose faults quote the secrets of each request, as debugging gateways do.

It is well until `fault` names one of FAULTS. It knows each of the three kinds of API.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "x-team")
JSON, SSE = "application/json", "text/event-stream"
Fault = Callable[["QuotingRequest", str], None]


class QuotingRequest(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    place: QuotingServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer(lambda: self.reply({"object": "list", "data": [{"id": "good"}]}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self._well)

    @property
    def quoted(self) -> str:
        """All secrets of this request."""
        given = {name.lower(): value for name, value in self.headers.items()}
        return " ".join(f"{name}: {given[name]}" for name in SECRET_HEADERS if name in given)

    def reply(self, value: Any, status: int = 200, kind: str = JSON, **headers: str) -> None:
        """Send this text or these bytes, or this value as JSON."""
        body = (
            value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else b""
        )
        body = body or json.dumps(value).encode()
        self.send_response(status, headers.pop("reason", None))
        fields = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
        for name, text in (fields | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def raw(self, text: str) -> None:
        """Send this text in place of a response."""
        self.wfile.write(text.encode())
        self.close_connection = True

    def events(self, *values: Any) -> None:
        """Send an answer that begins well, then these values as events; the connection ends."""
        lines = [f"data: {json.dumps(value)}\n\n" for value in (*self._begin(), *values)]
        self.reply("".join(lines), kind=SSE)

    def _answer(self, well: Callable[[], object]) -> None:
        with contextlib.suppress(ConnectionError):
            if self.place.fault:
                FAULTS[self.place.fault](self, self.quoted)
            else:
                well()

    def _begin(self) -> list[Any]:
        if self.path.endswith("/messages"):
            start = {"type": "content_block_start", "index": 0}
            return [
                {"type": "message_start", "message": {"model": "good", "usage": {}}},
                start | {"content_block": {"type": "text", "text": "Well"}},
            ]
        return [{"model": "good", "choices": [{"index": 0, "delta": {"content": "Well"}}]}]

    def _well(self) -> None:
        if self.path.endswith("/messages"):
            end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}
            self.events(end, {"type": "message_stop"})
        else:
            self.events({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


class QuotingServer:
    """`fault`: what happens to each request from now on; "" for none."""

    def __init__(self) -> None:
        self.url = ""
        self.fault = ""


@contextlib.contextmanager
def quoting_server() -> Iterator[QuotingServer]:
    """Serve in threads."""
    place = QuotingServer()
    handler = type("Handler", (QuotingRequest,), {"place": place})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    place.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield place
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _error(text: str) -> dict[str, Any]:
    return {"error": {"message": f"Refused: {text}", "type": "some_error"}}


def _redirect(request: QuotingRequest, address: str) -> None:
    request.reply("", 307, Location=address)


def _gzip(request: QuotingRequest, text: str) -> None:
    request.reply(gzip.compress(json.dumps(_error(text)).encode()), 403, Content_Encoding="gzip")


def _cut(text: str) -> str:
    return f"{text[:-4]}"


FAULTS: dict[str, Fault] = {
    "401": lambda r, text: r.reply(_error(f"Incorrect API key provided: {text}."), 401),
    "500 as text": lambda r, text: r.reply(f"Traceback: headers = {text}", 500, "text/plain"),
    "500 as a repr": lambda r, text: r.reply(f"failed: {{'h': {text!r}}}", 500, "text/plain"),
    "502 as a page": lambda r, text: r.reply(
        f"<html><title>Bad {html.escape(text)}</title></html>", 502, "text/html"
    ),
    "400 in nested JSON": lambda r, text: r.reply(_error(json.dumps(_error(text))), 400),
    "400 with escapes": lambda r, text: r.reply(
        '{"error": {"message": "' + "".join(f"\\u{ord(c):04x}" for c in text) + '"}}', 400
    ),
    "404 as a URL": lambda r, text: r.reply(_error(f"No /v1?key={quote(text, safe='')}"), 404),
    "403 compressed": _gzip,
    "429 with headers": lambda r, text: r.reply(
        _error("wait"), 429, Retry_After=text, X_Error=text, WWW_Authenticate=text
    ),
    "reason phrase": lambda r, text: r.reply("", 418, reason=text),
    "label": lambda r, text: r.reply({"error": {"code": text.split()[-1], "type": text}}, 400),
    "cut": lambda r, text: r.reply(_error(_cut(text)), 400),
    "cut before other words": lambda r, text: r.reply(_error(f"{_cut(text)}... is wrong"), 400),
    "cut with an ellipsis": lambda r, text: r.reply(_error(f"{_cut(text)}..."), 400),
    "redirect elsewhere": lambda r, text: _redirect(r, f"http://127.0.0.1:9/{quote(text)}"),
    "redirect here": lambda r, text: _redirect(r, f"/v1/{quote(text)}?key={quote(text)}"),
    "redirect to nonsense": lambda r, text: _redirect(r, f"http://[{text}"),
    "content type": lambda r, text: r.reply("x", kind=f"text/x; a={text}"),
    "encoding": lambda r, text: r.reply("x", Content_Encoding=text),
    "length": lambda r, text: r.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {text}\r\n\r\n"),
    "status line": lambda r, text: r.raw(f"{text}\r\n\r\n"),
    "header line": lambda r, text: r.raw(f"HTTP/1.1 200 OK\r\n{text.split()[-1]}\r\n\r\n"),
    "chunk": lambda r, text: r.raw(
        f"HTTP/1.1 200 OK\r\nContent-Type: {SSE}\r\nTransfer-Encoding: chunked\r\n\r\n{text}\r\n"
    ),
    "no JSON": lambda r, text: r.reply(f"[{text}", 200),
    "no event": lambda r, text: r.reply(f"data: {text}\n\n", kind=SSE),
    "named event": lambda r, text: r.reply(f"event: error\ndata: {text}\n\n", kind=SSE),
    "event": lambda r, text: r.events(_error(text)),
    "Anthropic's event": lambda r, text: r.events({"type": "error"} | _error(text)),
}
