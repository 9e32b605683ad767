"""The doctor's findings about unusual or faulty model servers: reason and remedy.

Each server here is a small one whose list of models and answers a test chooses.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.doctor_command import DoctorReport, doctor
from tests.support.simple_model_server import (
    TEXT,
    USAGE,
    Responder,
    list_models,
    refuse_list,
    reply_with,
    serving,
    stream_answer,
)

pytestmark = pytest.mark.slow


def doctor_of_server(
    lists: Responder = list_models,
    answers: Responder = stream_answer,
    end: str = "",
    **settings: str,
) -> DoctorReport:
    """The doctor's findings about a server with these responders; `end` is added to its address."""
    with serving(lists, answers) as url:
        return doctor("--timeout", "20", OPENAI_BASE_URL=url + end, **settings)


@pytest.mark.parametrize(
    ("answers", "reason", "remedy"),
    [
        (
            reply_with({"error": {"message": "CUDA out of memory on device 3"}}, 500),
            "CUDA out of memory on device 3",
            "log of the model's server",
        ),
        (
            reply_with({"detail": "engine core died"}, 502),
            "engine core died",
            "log of the model's server",
        ),
        (
            reply_with("<html><title>504 gateway of Example</title></html>", 504, "text/html"),
            "504 gateway of Example",
            "log of the model's server",
        ),
        (
            reply_with({"error": {"message": "Country, region, or territory not supported"}}, 403),
            "Country, region, or territory not supported",
            "Another key does not help",
        ),
        (
            reply_with(
                {"error": {"message": "This key may not use good", "code": "forbidden"}}, 403
            ),
            "This key may not use good",
            "Use a key that is allowed to do this",
        ),
        (
            reply_with({"error": {"message": "No credit", "code": "insufficient_quota"}}, 429),
            "No credit",
            "Add credit",
        ),
        (
            reply_with({"error": {"message": "model good not found"}}, 404),
            "model good not found",
            "Set HALT_MODEL to a model of this server.",
        ),
        (
            reply_with({"error": {"message": "Loading model", "type": "unavailable_error"}}, 503),
            "Loading model",
            "until the model is loaded",
        ),
        (
            reply_with({"error": {"message": "bad key", "code": "invalid_api_key"}}, 401),
            "bad key",
            "Set OPENAI_API_KEY to a key of this server.",
        ),
    ],
)
def test_refused_answer_has_the_servers_reason_and_its_remedy(
    answers: Responder, reason: str, remedy: str
) -> None:
    """The finding about a refused answer quotes the server and has the remedy for that fault."""
    report = doctor_of_server(answers=answers)
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
    report = doctor_of_server(answers=reply_with(completion))
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
    report = doctor_of_server(answers=lambda request: request.stream(**headers))
    assert report.exit_code == 0, report.text
    assert report.statuses()["streaming"] == "ok"


@pytest.mark.parametrize("end", ["/chat/completions", "/chat/completions/", "/models"])
def test_address_with_a_requests_path_is_a_warning(end: str) -> None:
    """An address with the path of a request is a warning with the address to set; Halt works with
    either.
    """
    report = doctor_of_server(end=end)
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
    report = doctor_of_server(lists=reply_with(value))
    assert report.exit_code == 0, report.text
    assert report.statuses()["models"] == "ok"
    assert "answers" not in report.findings["models"]["text"]
    assert report.findings["answer"]["text"].startswith("good: ")


def test_server_without_a_model_list_needs_halt_model() -> None:
    """For a server without a list the remedy is HALT_MODEL; with it the list is not needed."""
    for lists in (refuse_list, reply_with("Not Found", 404, "text/plain"), reply_with({}, 405)):
        report = doctor_of_server(lists=lists)
        assert report.statuses()["models"] == "fail", report.text
        assert report.remedy("models") == "Set HALT_MODEL to a model that the server has."
        assert "HALT_MODEL" not in report.text_of("models")
        report = doctor_of_server(lists=lists, HALT_MODEL="good")
        assert report.exit_code == 0, report.text
        assert report.statuses()["models"] == "warn"
        assert report.findings["models"]["text"] == "the server has no list of models."
        assert report.remedy("models").startswith("No action is needed")
        assert report.statuses()["answer"] == "ok"


def test_setting_keeps_its_letters_in_the_middle_of_a_remedy() -> None:
    """At an address without /v1 the remedy names both settings as they are written."""
    with serving(refuse_list) as url:
        remedy = doctor(OPENAI_BASE_URL=url.removesuffix("/v1")).remedy("models")
    assert remedy.startswith("Correct OPENAI_BASE_URL: ")
    assert remedy.endswith("If it does: set HALT_MODEL to a model that the server has.")


@pytest.mark.parametrize(
    "lists",
    [
        reply_with({"error": {"message": "the list is broken"}}, 500),
        reply_with({"error": {"message": "the list is for administrators"}}, 403),
        reply_with({"data": []}),
        reply_with({"message": "the list is broken"}),
    ],
)
def test_broken_model_list_hides_no_answer(lists: Responder) -> None:
    """With HALT_MODEL a broken model list is reported, and the answer is checked as well."""
    report = doctor_of_server(lists=lists, HALT_MODEL="good")
    assert report.statuses()["answer"] == "ok", report.text
    assert "fail" not in report.statuses().values()
    assert "warn" in {report.statuses().get("models"), report.statuses().get("key")}


def test_missing_chat_completions_path_is_named() -> None:
    """If only the answer's path is missing, the remedy says that the list of models is at the
    address.
    """
    report = doctor_of_server(answers=reply_with("404 page not found", 404, "text/plain"))
    assert report.statuses()["answer"] == "fail"
    assert "The list of models is at OPENAI_BASE_URL" in report.remedy("answer")


def test_http_proxy_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An HTTP proxy is named without its password; name and connection are then not checked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as url:
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
