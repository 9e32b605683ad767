"""What the doctor says of a model's server that has a habit or a fault: the reason, and its remedy.

Each server here is a small one that gives its list of models and its answers as a test says.
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

WORDS = [f"{number} " for number in range(1, 21)]
TEXT = "".join(WORDS)
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
        for word in WORDS:
            self._piece({"choices": [{"index": 0, "delta": {"content": word}}]})
            time.sleep(0.005)  # as a model does
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
    ("answers", "said", "remedy"),
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
def test_a_refused_answer_is_told_with_its_reason(answers: Answer, said: str, remedy: str) -> None:
    """The finding has the server's own words, and the remedy is for that fault."""
    found = examined(answers=answers)
    assert found.statuses()["answer"] == "fail"
    assert said in found.findings["answer"]["text"]
    assert remedy in found.remedy("answer")
    assert "OPENAI_BASE_URL: it must lead" not in found.text


def test_a_server_that_does_not_stream_works() -> None:
    """The whole answer as JSON is an answer; the one thing to say is that it does not stream."""
    whole = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}],
        "usage": USAGE,
    }
    whole["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
    found = examined(answers=replies(whole))
    assert found.exit_code == 0, found.text
    assert found.statuses()["answer"] == "ok"
    assert found.statuses()["streaming"] == "warn"
    assert "the server does not stream" in found.findings["streaming"]["text"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Encoding": "identity"},
        {"Content_Encoding": ""},
        {"Content_Type": "text/plain; charset=utf-8"},
    ],
)
def test_labels_of_a_good_stream_are_no_fault(headers: dict[str, str]) -> None:
    """What the stream holds counts, not what its headers call it."""
    found = examined(answers=lambda request: request.stream(**headers))
    assert found.exit_code == 0, found.text
    assert found.statuses()["streaming"] == "ok"


@pytest.mark.parametrize("end", ["/chat/completions", "/chat/completions/", "/models"])
def test_the_path_of_a_request_in_the_address_is_named(end: str) -> None:
    """It works without it; the address to set is said."""
    found = examined(end=end)
    assert found.exit_code == 0, found.text
    assert found.statuses()["address"] == "warn"
    assert end in found.findings["address"]["text"]
    assert found.remedy("address").startswith("Remove it: set OPENAI_BASE_URL to http://127.0.0.1:")
    assert found.remedy("address").endswith("/v1.")


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
def test_a_list_in_another_shape_is_read(value: Any) -> None:
    """The first model that holds a conversation answers."""
    found = examined(lists=replies(value))
    assert found.exit_code == 0, found.text
    assert found.statuses()["models"] == "ok"
    assert "answers" not in found.findings["models"]["text"]
    assert found.findings["answer"]["text"].startswith("good: ")


def test_a_server_without_a_list_needs_a_model() -> None:
    """HALT_MODEL is to be set; where it is, the list is not needed."""
    for lists in (no_list, replies("Not Found", 404, "text/plain"), replies({}, 405)):
        found = examined(lists=lists)
        assert found.statuses()["models"] == "fail", found.text
        assert found.remedy("models") == "Set HALT_MODEL to a model that the server has."
        found = examined(lists=lists, HALT_MODEL="good")
        assert found.exit_code == 0, found.text
        assert found.statuses()["models"] == "warn"
        assert found.findings["models"]["text"] == "the server has no list of models."
        assert found.remedy("models").startswith("No action is needed")
        assert found.statuses()["answer"] == "ok"


@pytest.mark.parametrize(
    "lists",
    [
        replies({"error": {"message": "the list is broken"}}, 500),
        replies({"error": {"message": "the list is for administrators"}}, 403),
        replies({"data": []}),
        replies({"message": "the list is broken"}),
    ],
)
def test_a_broken_list_hides_no_answer(lists: Answer) -> None:
    """With HALT_MODEL the answer is asked for all the same."""
    found = examined(lists=lists, HALT_MODEL="good")
    assert found.statuses()["answer"] == "ok", found.text
    assert "fail" not in found.statuses().values()
    assert "warn" in {found.statuses().get("models"), found.statuses().get("key")}


def test_chat_completions_that_are_missing_are_named() -> None:
    """The list has come, so the address is not wrong as a whole."""
    found = examined(answers=replies("404 page not found", 404, "text/plain"))
    assert found.statuses()["answer"] == "fail"
    assert "The list of models is at OPENAI_BASE_URL" in found.remedy("answer")


def test_the_proxy_on_the_way_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The requests are asked of it; nothing else is looked at on the way."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served() as url:
        address = url.removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", address.replace("http://", "http://me:hidden-word@"))
        found = doctor(OPENAI_BASE_URL="http://model.invalid/v1")
        assert found.exit_code == 0, found.text
        assert f"requests to model.invalid go through {address} " in found.findings["proxy"]["text"]
        assert "hidden-word" not in found.text
        assert "me:" not in found.text
        assert not {"name", "connection"} & set(found.findings)
        monkeypatch.setenv("NO_PROXY", "192.168.0.0/16, model.invalid")
        found = doctor(OPENAI_BASE_URL="http://model.invalid/v1")
        assert "proxy" not in found.findings
        assert found.statuses()["name"] == "fail"
