"""Real responses of model servers (`tests/cases/upstream.json`), each with its expected outcome.

All cases are sent at once to a Halt in its own process, each in its own conversation. Each test
checks the outcome of one case.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.case_server import CaseServer, prompt_of
from tests.support.halt_server import HaltServer, new_id

CASES: list[dict[str, Any]] = [
    case
    for file in sorted((Path(__file__).parents[1] / "cases").glob("upstream*.json"))
    for case in json.loads(file.read_text())
]
AT_ONCE = 12  # cases
PAGE = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
TEMPLATE = re.compile(r"<template\b.*?</template>", re.DOTALL)


def settings_of(case: dict[str, Any], base: str) -> dict[str, str]:
    """The environment of the Halt that a case is played against."""
    alone = case.get("alone") or "models" in case or "OPENAI_BASE_URL" in case.get("halt", {})
    server = f"{base}/case/{case['name']}" if alone else base
    settings: dict[str, str | None] = {"HALT_PROVIDER": case["provider"], "HALT_MODEL": "m-1"}
    match case["provider"]:
        case "openai":
            settings |= {"OPENAI_BASE_URL": f"{server}/v1", "OPENAI_API_KEY": "key-of-cases"}
        case "azure":
            settings |= {"AZURE_OPENAI_ENDPOINT": server, "AZURE_OPENAI_API_KEY": "key-of-cases"}
            settings |= {"AZURE_OPENAI_DEPLOYMENT": "m-1"}
        case "anthropic":
            settings |= {"ANTHROPIC_BASE_URL": server, "ANTHROPIC_API_KEY": "key-of-cases"}
    settings |= case.get("halt", {})
    return {k: v.replace("{base}", server) for k, v in settings.items() if v is not None}


class Halts:
    """A Halt for each environment that a case wants."""

    def __init__(self) -> None:
        self._servers: dict[str, concurrent.futures.Future[HaltServer]] = {}
        self._starting = concurrent.futures.ThreadPoolExecutor(3)

    def at(self, env: dict[str, str]) -> HaltServer:
        key = json.dumps(env, sort_keys=True)
        return self._servers[key].result()

    def start(self, env: dict[str, str]) -> None:
        key = json.dumps(env, sort_keys=True)
        if key not in self._servers:
            more = {"HALT_MAX_STREAMS": "100", "HALT_STARTS_PER_MINUTE": "1000"}
            self._servers[key] = self._starting.submit(HaltServer, {**more, **env})

    def close(self) -> None:
        self._starting.shutdown()
        with contextlib.ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(_close, server)


def _close(server: concurrent.futures.Future[HaltServer]) -> None:
    server.result().close()


class Outcome:
    """What came of a case."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.state = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: dict[str, Any] = {}
        self.retry_after: float | None = None
        self.retryable: bool | None = None
        self.status = 200
        self.raw = ""
        self.html = ""
        self.sent: list[str] = []

    @property
    def message(self) -> str:
        """The error's sentence, in lower case."""
        return str(self.error.get("message", "")).lower()

    @property
    def answer_html(self) -> str:
        """The last answer on the page."""
        html = TEMPLATE.sub("", self.html)
        return html[max(0, html.rfind("<article")) :]


def played(case: dict[str, Any], halt: HaltServer, server: CaseServer) -> Outcome:
    """Play a case."""
    via = case.get("via", "chat")
    out = Outcome()
    prompt = prompt_of(case["name"])
    request = case.get("request", {"messages": [{"role": "user", "content": "{case}"}]})
    request = json.loads(json.dumps(request).replace("{case}", prompt))
    client = halt.client()
    if via == "page":
        client.get("/")
        path = f"/c/{new_id()}"
        for turn in case.get("turns", ["{case}"]):
            out = Outcome()
            stream_id = new_id()
            turn_text = turn.replace("{case}", prompt)
            form = urlencode([("prompt", turn_text), ("id", stream_id)]).encode()
            answer = client.request("POST", f"{path}/messages", form, PAGE)
            assert answer.status == 200, answer
            _take_events(out, client.follow(stream_id, 0).to_end().seen)
        out.html = client.get(path).body.decode()
    elif via == "chat":
        with client.stream("POST", "/chat/stream", request) as events:
            out.status = events.status
            if events.status != 200:
                _take_refusal(out, events.answer())
            else:
                _take_events(out, events.to_end().seen)
    else:
        request |= {"model": "m-1", "stream": via == "v1-stream"}
        answer = client.post("/v1/chat/completions", request)
        out.status, out.raw = answer.status, answer.body.decode()
        if answer.status != 200:
            _take_refusal(out, answer)
        elif via == "v1":
            _take_completion(out, answer.json)
        else:
            _take_chunks(out)
    out.sent = server.sent(case["name"])
    return out


def _take_events(out: Outcome, messages: list[Any]) -> None:
    for message in messages:
        if message.data == "[DONE]":
            continue
        event = message.json
        if event["type"] == "reasoning_end":
            out.reasoning, out.text = out.reasoning + out.text, ""
            continue
        out.text += event["content"]
        match event["type"]:
            case "reasoning":
                out.reasoning += event["text"]
            case "tool_call":
                out.calls.append(event)
            case "done" | "cancelled" | "error" as state:
                out.state = state
                out.finish_reason, out.usage = event.get("finish_reason"), event.get("usage")
                out.error = event.get("error", {})
                out.retryable = out.error.get("retryable")
                out.retry_after = out.error.get("retry_after")


def _take_refusal(out: Outcome, answer: Any) -> None:
    out.state, out.error = "error", json.loads(answer.body)["error"]
    out.retryable = answer.headers.get("x-should-retry") == "true"
    if "retry-after" in answer.headers:
        out.retry_after = float(answer.headers["retry-after"])


def _take_completion(out: Outcome, completion: dict[str, Any]) -> None:
    (choice,) = completion["choices"]
    message = choice["message"]
    out.state, out.finish_reason = completion["halt"]["state"], choice["finish_reason"]
    out.text, out.usage = message["content"] or "", completion.get("usage")
    out.reasoning = message.get("reasoning_content", "")
    out.calls = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls", [])
    ]


def _take_chunks(out: Outcome) -> None:
    for line in out.raw.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            out.state, out.error = "error", chunk["error"]
        for choice in chunk.get("choices", []):
            out.text += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                out.state, out.finish_reason = "done", choice["finish_reason"]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, concurrent.futures.Future[Outcome]]]:
    """All cases, played."""
    with contextlib.ExitStack() as stack:
        server, halts = CaseServer(CASES), Halts()
        stack.callback(server.close)
        stack.callback(halts.close)
        environments = [settings_of(case, server.base) for case in CASES]
        for env in environments:
            halts.start(env)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:

            def play(case: dict[str, Any], env: dict[str, str]) -> Outcome:
                return played(case, halts.at(env), server)

            yield {
                case["name"]: pool.submit(play, case, env)
                for case, env in zip(CASES, environments, strict=True)
            }


def _all(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _has(text: str, want: Any) -> bool:
    return all(check in text for check in _all(want))


def _lacks(text: str, want: Any) -> bool:
    return not any(check in text for check in _all(want))


def _lower(want: Any) -> list[str]:
    return [check.lower() for check in _all(want)]


def _calls(calls: list[dict[str, Any]]) -> list[Any]:
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def _sent(out: Outcome, want: dict[str, Any]) -> bool:
    body = out.sent[want.get("request", 1) - 1]
    return _has(body, want.get("has", [])) and _lacks(body, want.get("lacks", []))


#: What a case may expect -> whether it came so.
CHECKS: dict[str, Callable[[Outcome, Any], bool]] = {
    "state": lambda out, want: out.state in _all(want),
    "text": lambda out, want: out.text == want,
    "text_has": lambda out, want: _has(out.text, want),
    "text_lacks": lambda out, want: _lacks(out.text, want),
    "reasoning": lambda out, want: out.reasoning == want,
    "finish_reason": lambda out, want: out.finish_reason == want,
    "usage": lambda out, want: want.items() <= (out.usage or {}).items(),
    "tool_calls": lambda out, want: _calls(out.calls) == _calls(want),
    "error_code": lambda out, want: out.error.get("code") in _all(want),
    "error_code_not": lambda out, want: out.error.get("code") not in _all(want),
    "message_contains": lambda out, want: _has(out.message, _lower(want)),
    "message_lacks": lambda out, want: _lacks(out.message, _lower(want)),
    "retryable": lambda out, want: out.retryable is want,
    "retry_after": lambda out, want: want[0] <= (out.retry_after or 0.0) <= want[1],
    "requests": lambda out, want: len(out.sent) == want,
    "requests_max": lambda out, want: len(out.sent) <= want,
    "sent": _sent,
    "status": lambda out, want: out.status == want,
    "raw_has": lambda out, want: _has(out.raw, want),
    "html_has": lambda out, want: _has(out.answer_html, want),
    "html_any": lambda out, want: any(each in out.answer_html for each in want),
    "html_lacks": lambda out, want: _lacks(out.answer_html, want),
    "either": lambda out, want: any(not _missed(one, out) for one in want),
}


def _missed(expect: dict[str, Any], out: Outcome) -> list[str]:
    return [name for name, want in expect.items() if not CHECKS[name](out, want)]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_upstream_response_gives_the_expected_outcome(
    case: dict[str, Any], outcomes: dict[str, concurrent.futures.Future[Outcome]]
) -> None:
    """The outcome of each case is the expected one; `why` of the case says why it matters."""
    out = outcomes[case["name"]].result(60)
    assert not _missed(case["expect"], out), vars(out)
