"""A fake model server that sends the responses of the cases in `tests/cases/upstream.json`.

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
        self._states = {case["name"]: CaseState(case) for case in cases}
        case_server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                case_server.answer(self)

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
            return list(self._states[name].sent)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        payload = json.loads(body) if body else {}
        body_text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
        path = handler.path.partition("?")[0]
        if match := re.match(r"/case/([^/]+)(/.*)", path):
            name, path = match[1], match[2]
        else:
            names = NAMED.findall(body_text)
            if not names:
                self._send(handler, {"status": 404, "body": '{"error":{"message":"no case"}}'})
                return
            name = names[-1]
        with self._lock:
            state = self._states[name]
            if handler.command == "GET" and path.endswith("/models"):
                answer = state.case.get("models", {"status": 404, "body": "{}"})
            else:
                if handler.command == "POST":
                    state.sent.append(body_text)
                answer = self._next(state, body_text, path, handler.command)
        self._send(handler, answer)

    def _next(self, state: CaseState, body_text: str, path: str, method: str) -> dict[str, Any]:
        answers: list[dict[str, Any]] = state.case["upstream"]
        answer = answers[min(state.next, len(answers) - 1)]
        conditions = answer.get("needs", {})
        meets_conditions = (
            all(text in body_text for text in _list(conditions.get("has")))
            and not any(text in body_text for text in _list(conditions.get("lacks")))
            and conditions.get("path", path) == path
            and conditions.get("method", method) == method
        )
        if not meets_conditions:
            refusal: dict[str, Any] = answer.get("else", {"status": 404, "body": "{}"})
            return refusal
        state.next += 1
        return answer

    def _send(self, handler: BaseHTTPRequestHandler, answer: dict[str, Any]) -> None:
        if delay := answer.get("wait"):
            time.sleep(delay)  # the delay is part of the case
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
            date = formatdate(time.time() + int(match[1]), usegmt=True)
            value = value.replace(match[0], date)
        return value


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
