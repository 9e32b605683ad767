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
CONCURRENT_CASES = 12  # cases
PAGE = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
TEMPLATE = re.compile(r"<template\b.*?</template>", re.DOTALL)


def settings_of(case: dict[str, Any], base: str) -> dict[str, str]:
    """The environment of the Halt that plays a case."""
    has_own_server = (
        case.get("alone") or "models" in case or "OPENAI_BASE_URL" in case.get("halt", {})
    )
    server = f"{base}/case/{case['name']}" if has_own_server else base
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
    """The Halt servers, one for each different environment of the cases."""

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
    """The result of a case."""

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


def play_case(case: dict[str, Any], halt: HaltServer, server: CaseServer) -> Outcome:
    """Send the requests of a case to Halt; return the result."""
    via = case.get("via", "chat")
    outcome = Outcome()
    prompt = prompt_of(case["name"])
    request = case.get("request", {"messages": [{"role": "user", "content": "{case}"}]})
    request = json.loads(json.dumps(request).replace("{case}", prompt))
    client = halt.client()
    if via == "page":
        client.get("/")
        path = f"/c/{new_id()}"
        for turn in case.get("turns", ["{case}"]):
            outcome = Outcome()
            stream_id = new_id()
            turn_text = turn.replace("{case}", prompt)
            form = urlencode([("prompt", turn_text), ("id", stream_id)]).encode()
            answer = client.request("POST", f"{path}/messages", form, PAGE)
            assert answer.status == 200, answer
            _take_events(outcome, client.follow(stream_id, 0).to_end().seen)
        outcome.html = client.get(path).body.decode()
    elif via == "chat":
        with client.stream("POST", "/chat/stream", request) as events:
            outcome.status = events.status
            if events.status != 200:
                _take_refusal(outcome, events.answer())
            else:
                _take_events(outcome, events.to_end().seen)
    else:
        request |= {"model": "m-1", "stream": via == "v1-stream"}
        answer = client.post("/v1/chat/completions", request)
        outcome.status, outcome.raw = answer.status, answer.body.decode()
        if answer.status != 200:
            _take_refusal(outcome, answer)
        elif via == "v1":
            _take_completion(outcome, answer.json)
        else:
            _take_chunks(outcome)
    outcome.sent = server.sent(case["name"])
    return outcome


def _take_events(outcome: Outcome, messages: list[Any]) -> None:
    for message in messages:
        if message.data == "[DONE]":
            continue
        event = message.json
        if event["type"] == "reasoning_end":
            outcome.reasoning, outcome.text = outcome.reasoning + outcome.text, ""
            continue
        outcome.text += event["content"]
        match event["type"]:
            case "reasoning":
                outcome.reasoning += event["text"]
            case "tool_call":
                outcome.calls.append(event)
            case "done" | "cancelled" | "error" as state:
                outcome.state = state
                outcome.finish_reason = event.get("finish_reason")
                outcome.usage = event.get("usage")
                outcome.error = event.get("error", {})
                outcome.retryable = outcome.error.get("retryable")
                outcome.retry_after = outcome.error.get("retry_after")


def _take_refusal(outcome: Outcome, answer: Any) -> None:
    outcome.state, outcome.error = "error", json.loads(answer.body)["error"]
    outcome.retryable = answer.headers.get("x-should-retry") == "true"
    if "retry-after" in answer.headers:
        outcome.retry_after = float(answer.headers["retry-after"])


def _take_completion(outcome: Outcome, completion: dict[str, Any]) -> None:
    (choice,) = completion["choices"]
    message = choice["message"]
    outcome.state, outcome.finish_reason = completion["halt"]["state"], choice["finish_reason"]
    outcome.text, outcome.usage = message["content"] or "", completion.get("usage")
    outcome.reasoning = message.get("reasoning_content", "")
    outcome.calls = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls", [])
    ]


def _take_chunks(outcome: Outcome) -> None:
    for line in outcome.raw.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            outcome.state, outcome.error = "error", chunk["error"]
        for choice in chunk.get("choices", []):
            outcome.text += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                outcome.state, outcome.finish_reason = "done", choice["finish_reason"]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, concurrent.futures.Future[Outcome]]]:
    """The outcome of each case by its name."""
    with contextlib.ExitStack() as stack:
        server, halts = CaseServer(CASES), Halts()
        stack.callback(server.close)
        stack.callback(halts.close)
        environments = [settings_of(case, server.base) for case in CASES]
        for env in environments:
            halts.start(env)
        with concurrent.futures.ThreadPoolExecutor(CONCURRENT_CASES) as pool:

            def play_in_pool(case: dict[str, Any], env: dict[str, str]) -> Outcome:
                return play_case(case, halts.at(env), server)

            yield {
                case["name"]: pool.submit(play_in_pool, case, env)
                for case, env in zip(CASES, environments, strict=True)
            }


def _all(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _has(text: str, expected: Any) -> bool:
    return all(check in text for check in _all(expected))


def _lacks(text: str, expected: Any) -> bool:
    return not any(check in text for check in _all(expected))


def _lower(expected: Any) -> list[str]:
    return [check.lower() for check in _all(expected)]


def _calls(calls: list[dict[str, Any]]) -> list[Any]:
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


def _sent(outcome: Outcome, expected: dict[str, Any]) -> bool:
    body = outcome.sent[expected.get("request", 1) - 1]
    return _has(body, expected.get("has", [])) and _lacks(body, expected.get("lacks", []))


#: Key of a case's `expect` -> whether the outcome meets the expected value.
CHECKS: dict[str, Callable[[Outcome, Any], bool]] = {
    "state": lambda outcome, expected: outcome.state in _all(expected),
    "text": lambda outcome, expected: outcome.text == expected,
    "text_has": lambda outcome, expected: _has(outcome.text, expected),
    "text_lacks": lambda outcome, expected: _lacks(outcome.text, expected),
    "reasoning": lambda outcome, expected: outcome.reasoning == expected,
    "finish_reason": lambda outcome, expected: outcome.finish_reason == expected,
    "usage": lambda outcome, expected: expected.items() <= (outcome.usage or {}).items(),
    "tool_calls": lambda outcome, expected: _calls(outcome.calls) == _calls(expected),
    "error_code": lambda outcome, expected: outcome.error.get("code") in _all(expected),
    "error_code_not": lambda outcome, expected: outcome.error.get("code") not in _all(expected),
    "message_contains": lambda outcome, expected: _has(outcome.message, _lower(expected)),
    "message_lacks": lambda outcome, expected: _lacks(outcome.message, _lower(expected)),
    "retryable": lambda outcome, expected: outcome.retryable is expected,
    "retry_after": lambda outcome, expected: (
        expected[0] <= (outcome.retry_after or 0.0) <= expected[1]
    ),
    "requests": lambda outcome, expected: len(outcome.sent) == expected,
    "requests_max": lambda outcome, expected: len(outcome.sent) <= expected,
    "sent": _sent,
    "status": lambda outcome, expected: outcome.status == expected,
    "raw_has": lambda outcome, expected: _has(outcome.raw, expected),
    "html_has": lambda outcome, expected: _has(outcome.answer_html, expected),
    "html_any": lambda outcome, expected: any(
        fragment in outcome.answer_html for fragment in expected
    ),
    "html_lacks": lambda outcome, expected: _lacks(outcome.answer_html, expected),
    "either": lambda outcome, expected: any(
        not _missed(alternative, outcome) for alternative in expected
    ),
}


def _missed(expect: dict[str, Any], outcome: Outcome) -> list[str]:
    return [name for name, expected in expect.items() if not CHECKS[name](outcome, expected)]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_upstream_response_gives_the_expected_outcome(
    case: dict[str, Any], outcomes: dict[str, concurrent.futures.Future[Outcome]]
) -> None:
    """The outcome of each case is the expected one; `why` of the case says why it matters."""
    outcome = outcomes[case["name"]].result(60)
    assert not _missed(case["expect"], outcome), vars(outcome)
