"""The doctor's findings about unusual or faulty model servers: reason and remedy.

Each server here is a small one whose list of models and answers a test chooses.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.doctor_command import DoctorReport, doctor

pytestmark = pytest.mark.slow

TEXTS = [f"{number} " for number in range(1, 21)]
TEXT = "".join(TEXTS)
USAGE = {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}


class Request(BaseHTTPRequestHandler):
    """One request; `reply` and `stream` answer it."""

    protocol_version = "HTTP/1.1"
    lists: Callable[[Request], None]
    answers: Callable[[Request], None]

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
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        for name, value in ({"Content_Type": "text/event-stream"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        for text in TEXTS:
            self._piece({"choices": [{"index": 0, "delta": {"content": text}}]})
            time.sleep(0.005)  # the pace of a model
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
        self._piece(end)
        self.wfile.write(b"data: [DONE]\n\n")

    def _piece(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")


Answer = Callable[[Request], None]


def good_list(request: Request) -> None:
    request.reply({"object": "list", "data": [{"id": "good", "object": "model"}]})


def no_list(request: Request) -> None:
    request.reply({"detail": "Not Found"}, 404)


def good_answer(request: Request) -> None:
    request.stream()


def replies(value: Any, status: int = 200, kind: str = "application/json") -> Answer:
    """A server's answer that is this body."""
    return lambda request: request.reply(value, status, kind)


@contextlib.contextmanager
def served(lists: Answer = good_list, answers: Answer = good_answer) -> Iterator[str]:
    """The address of a server that lists and answers so."""
    handler = type("Handler", (Request,), {"lists": lists, "answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def examined(
    lists: Answer = good_list, answers: Answer = good_answer, end: str = "", **settings: str
) -> DoctorReport:
    """The doctor's findings about such a server."""
    with served(lists, answers) as url:
        return doctor("--timeout", "20", OPENAI_BASE_URL=url + end, **settings)


@pytest.mark.parametrize(
    ("answers", "reason", "remedy"),
    [
        (
            replies({"error": {"message": "CUDA out of memory on device 3"}}, 500),
            "CUDA out of memory on device 3",
            "log of the model's server",
        ),
        (
            replies({"detail": "engine core died"}, 502),
            "engine core died",
            "log of the model's server",
        ),
        (
            replies("<html><title>504 gateway of Example</title></html>", 504, "text/html"),
            "504 gateway of Example",
            "log of the model's server",
        ),
        (
            replies({"error": {"message": "Country, region, or territory not supported"}}, 403),
            "Country, region, or territory not supported",
            "Another key does not help",
        ),
        (
            replies({"error": {"message": "This key may not use good", "code": "forbidden"}}, 403),
            "This key may not use good",
            "Use a key that is allowed to do this",
        ),
        (
            replies({"error": {"message": "No credit", "code": "insufficient_quota"}}, 429),
            "No credit",
            "Add credit",
        ),
        (
            replies({"error": {"message": "model good not found"}}, 404),
            "model good not found",
            "Set HALT_MODEL to a model of this server.",
        ),
        (
            replies({"error": {"message": "Loading model", "type": "unavailable_error"}}, 503),
            "Loading model",
            "until the model is loaded",
        ),
        (
            replies({"error": {"message": "bad key", "code": "invalid_api_key"}}, 401),
            "bad key",
            "Set OPENAI_API_KEY to a key of this server.",
        ),
    ],
)
def test_refused_answer_has_the_servers_reason_and_its_remedy(
    answers: Answer, reason: str, remedy: str
) -> None:
    """The finding about a refused answer quotes the server and has the remedy for that fault."""
    report = examined(answers=answers)
    assert report.statuses()["answer"] == "fail"
    assert reason in report.findings["answer"]["text"]
    assert remedy in report.remedy("answer")
    assert "OPENAI_BASE_URL: it must lead" not in report.text


def test_server_without_streaming_is_a_warning() -> None:
    """A server that sends the whole answer as JSON gets one warning, that it does not stream."""
    completion = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}],
        "usage": USAGE,
    }
    completion["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
    report = examined(answers=replies(completion))
    assert report.exit_code == 0, report.text
    assert report.statuses()["answer"] == "ok"
    assert report.statuses()["streaming"] == "warn"
    assert "the server does not stream" in report.findings["streaming"]["text"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Encoding": "identity"},
        {"Content_Encoding": ""},
        {"Content_Type": "text/plain; charset=utf-8"},
    ],
)
def test_stream_with_other_headers_is_ok(headers: dict[str, str]) -> None:
    """A stream with other headers is ok, since its content decides."""
    report = examined(answers=lambda request: request.stream(**headers))
    assert report.exit_code == 0, report.text
    assert report.statuses()["streaming"] == "ok"


@pytest.mark.parametrize("end", ["/chat/completions", "/chat/completions/", "/models"])
def test_address_with_a_requests_path_is_a_warning(end: str) -> None:
    """An address with the path of a request is a warning with the address to set; Halt works with
    either.
    """
    report = examined(end=end)
    assert report.exit_code == 0, report.text
    assert report.statuses()["address"] == "warn"
    assert end in report.findings["address"]["text"]
    assert report.remedy("address").startswith(
        "Remove it: set OPENAI_BASE_URL to http://127.0.0.1:"
    )
    assert report.remedy("address").endswith("/v1.")


@pytest.mark.parametrize(
    "value",
    [
        [{"id": "good"}, {"id": "other"}],
        ["good", "other"],
        {"models": [{"name": "good"}]},
        {"object": "list", "data": [{"id": "text-embedding-3-small"}, {"id": "good"}]},
        {"data": [{"id": "first", "type": "embedding"}, {"id": "good", "type": "chat"}]},
    ],
)
def test_model_list_in_another_shape_is_read(value: Any) -> None:
    """From a list in another shape the first model for conversations is used."""
    report = examined(lists=replies(value))
    assert report.exit_code == 0, report.text
    assert report.statuses()["models"] == "ok"
    assert "answers" not in report.findings["models"]["text"]
    assert report.findings["answer"]["text"].startswith("good: ")


def test_server_without_a_model_list_needs_halt_model() -> None:
    """For a server without a list the remedy is HALT_MODEL; with it the list is not needed."""
    for lists in (no_list, replies("Not Found", 404, "text/plain"), replies({}, 405)):
        report = examined(lists=lists)
        assert report.statuses()["models"] == "fail", report.text
        assert report.remedy("models") == "Set HALT_MODEL to a model that the server has."
        report = examined(lists=lists, HALT_MODEL="good")
        assert report.exit_code == 0, report.text
        assert report.statuses()["models"] == "warn"
        assert report.findings["models"]["text"] == "the server has no list of models."
        assert report.remedy("models").startswith("No action is needed")
        assert report.statuses()["answer"] == "ok"


@pytest.mark.parametrize(
    "lists",
    [
        replies({"error": {"message": "the list is broken"}}, 500),
        replies({"error": {"message": "the list is for administrators"}}, 403),
        replies({"data": []}),
        replies({"message": "the list is broken"}),
    ],
)
def test_broken_model_list_hides_no_answer(lists: Answer) -> None:
    """With HALT_MODEL a broken model list is reported, and the answer is checked as well."""
    report = examined(lists=lists, HALT_MODEL="good")
    assert report.statuses()["answer"] == "ok", report.text
    assert "fail" not in report.statuses().values()
    assert "warn" in {report.statuses().get("models"), report.statuses().get("key")}


def test_missing_chat_completions_path_is_named() -> None:
    """If only the answer's path is missing, the remedy says that the list of models is at the
    address.
    """
    report = examined(answers=replies("404 page not found", 404, "text/plain"))
    assert report.statuses()["answer"] == "fail"
    assert "The list of models is at OPENAI_BASE_URL" in report.remedy("answer")


def test_http_proxy_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An HTTP proxy is named without its password; name and connection are then not checked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served() as url:
        address = url.removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", address.replace("http://", "http://me:hidden-word@"))
        report = doctor(OPENAI_BASE_URL="http://model.invalid/v1")
        assert report.exit_code == 0, report.text
        assert (
            f"requests to model.invalid go through {address} " in report.findings["proxy"]["text"]
        )
        assert "hidden-word" not in report.text
        assert "me:" not in report.text
        assert not {"name", "connection"} & set(report.findings)
        monkeypatch.setenv("NO_PROXY", "192.168.0.0/16, model.invalid")
        report = doctor(OPENAI_BASE_URL="http://model.invalid/v1")
        assert "proxy" not in report.findings
        assert report.statuses()["name"] == "fail"
