"""A model's server that sends the responses of the cases in `tests/cases/upstream.json`.

Each case has a list of answers: each POST gets the next one, and the last one is repeated. A
request names its case by `/case/NAME` at the beginning of its path, or by `case NAME.` in its
prompt.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMED = re.compile(r"case ([a-z0-9.-]+[a-z0-9])\.")


def prompt_of(name: str) -> str:
    """The text in a prompt that names its case."""
    return f"case {name}."


@dataclass
class CaseState:
    """The progress of a case. Access needs the server's lock."""

    case: dict[str, Any]
    next: int = 0
    sent: list[str] = field(default_factory=list)  # compact JSON of each POST


class CaseServer:
    """The server; call `close` at the end."""

    def __init__(self, cases: list[dict[str, Any]]) -> None:
        self._lock = threading.Lock()  # protects the state of each case
        self._playing = {case["name"]: CaseState(case) for case in cases}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client may leave at any time

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def sent(self, name: str) -> list[str]:
        """The compact JSON of each POST of a case, in order."""
        with self._lock:
            return list(self._playing[name].sent)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        payload = json.loads(body) if body else {}
        compact = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
        path = handler.path.partition("?")[0]
        if match := re.match(r"/case/([^/]+)(/.*)", path):
            name, path = match[1], match[2]
        else:
            named = NAMED.findall(compact)
            if not named:
                self._send(handler, {"status": 404, "body": '{"error":{"message":"no case"}}'})
                return
            name = named[-1]
        with self._lock:
            playing = self._playing[name]
            if handler.command == "GET" and path.endswith("/models"):
                answer = playing.case.get("models", {"status": 404, "body": "{}"})
            else:
                if handler.command == "POST":
                    playing.sent.append(compact)
                answer = self._next(playing, compact, path, handler.command)
        self._send(handler, answer)

    def _next(self, playing: CaseState, compact: str, path: str, method: str) -> dict[str, Any]:
        answers: list[dict[str, Any]] = playing.case["upstream"]
        answer = answers[min(playing.next, len(answers) - 1)]
        needs = answer.get("needs", {})
        met = (
            all(text in compact for text in _list(needs.get("has")))
            and not any(text in compact for text in _list(needs.get("lacks")))
            and needs.get("path", path) == path
            and needs.get("method", method) == method
        )
        if not met:
            refusal: dict[str, Any] = answer.get("else", {"status": 404, "body": "{}"})
            return refusal
        playing.next += 1
        return answer

    def _send(self, handler: BaseHTTPRequestHandler, answer: dict[str, Any]) -> None:
        if wait := answer.get("wait"):
            time.sleep(wait)  # the delay is part of the case
        status = answer.get("status", 200)
        pieces = answer.get("pieces", [answer.get("body", "")])
        kind = "text/event-stream" if status == 200 else "application/json"
        headers = {"Content-Type": kind} | answer.get("headers", {})
        handler.send_response(status)
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, self._filled(value))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for piece in pieces:
            if isinstance(piece, (int, float)):
                time.sleep(piece)
                continue
            text = piece["repeat"] * piece["times"] if isinstance(piece, dict) else piece
            handler.wfile.write(text.encode())
            handler.wfile.flush()

    def _filled(self, value: str) -> str:
        value = value.replace("{base}", self.base)
        if match := re.search(r"\{date\+(\d+)\}", value):
            when = formatdate(time.time() + int(match[1]), usegmt=True)
            value = value.replace(match[0], when)
        return value


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
