"""One contract for every kind of provider, and the peculiarities of each.

Each kind talks to the fake upstream in its own API, and must return the same text, reasoning, calls,
usage and faults, and stop in every phase.
"""

from __future__ import annotations

import itertools
import json
import logging
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.config.providers import Kind, ModelSettings, ProviderSettings
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.decoding import CHAT_REQUEST
from halt.core.events import Content, Delta, Done, Reasoning, ToolCall, ToolCallDelta
from halt.core.request import (
    ChatRequest,
    Message,
    ToolSpec,
    ToolTurn,
    Upstream,
    openai_call,
)
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.tools import Toolbox
from halt.errors import Interrupted, UpstreamError
from halt.providers.anthropic.request import to_messages
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.base import Provider
from halt.providers.factory import make_provider
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record
from halt.transport.pool import Transport
from tests.support.ports import free_port
from tests.support.provider_answers import HI, KEY, read, refusal_of, request_answer
from tests.support.raw_server import OK, RawServer, answering
from tests.support.scripted_upstream import Reader
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

Make = Callable[..., Upstream]

KINDS: tuple[Kind, ...] = ("openai", "azure", "anthropic")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="module")
def trust() -> ssl.SSLContext:
    """A context for all tests: reading all certificates takes longer than a test."""
    return ssl.create_default_context()


@pytest.fixture
def make(fake: FakeOpenAI, trust: ssl.SSLContext) -> Iterator[Make]:
    """Makes providers of any kind, by default at the fake; closes them at the end."""
    upstreams: list[Upstream] = []

    def make(kind: Kind, **settings: Any) -> Upstream:
        base_url = fake.base_url if kind == "openai" else fake.origin
        defaults: dict[str, Any] = {"name": kind, "kind": kind, "base_url": base_url, "key": KEY}
        defaults |= {"api_version": "2024-10-21", "default_model": "echo"}
        transport = Transport(WAIT_TIMEOUT, trust)
        upstreams.append(make_provider(ProviderSettings(**defaults | settings), transport))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        upstream.close()


@pytest.fixture
def upstream(make: Make, kind: Kind) -> Upstream:
    return make(kind)


def test_fields_of_a_request_come_from_the_model_its_provider_and_the_request(
    make: Make, kind: Kind, fake: FakeOpenAI
) -> None:
    """Of fields of one name the request's wins over the provider's, and that over the model's."""
    upstream = make(kind, extra_body={"b": "provider", "c": "provider"})
    assert isinstance(upstream, Provider)
    chosen = {"a": "model", "b": "model", "c": "model"}
    upstream.use_models({"count?n=1": ModelSettings(extra_body=chosen), "echo": ModelSettings()})
    request_answer(upstream, "count?n=1", extra_body={"c": "request"})
    request_answer(upstream, "echo")
    upstream.use_models({})
    request_answer(upstream, "count?n=1")
    sent = [[record.body.get(name, "") for name in "abc"] for record in fake.requests]
    assert sent == [
        ["model", "provider", "request"],
        ["", "provider", "provider"],
        ["", "provider", "provider"],
    ]


def joined(events: list[Delta], of: type[Content] | type[Reasoning]) -> str:
    """Join the text of all events of one type."""
    texts = [event for event in events if isinstance(event, of)]
    return "".join(text.content if isinstance(text, Content) else text.text for text in texts)


def calls(events: list[Delta]) -> list[tuple[str, str]]:
    """Name and arguments of the whole calls, whose pieces must add up to the same."""
    whole = [event for event in events if isinstance(event, ToolCall)]
    assert len({call.id for call in whole}) == len(whole)
    for call in whole:
        pieces = [p for p in events if isinstance(p, ToolCallDelta) and p.id == call.id]
        assert "".join(p.arguments for p in pieces) == call.arguments
        assert len({p.index for p in pieces}) == 1
    return [(call.name, call.arguments) for call in whole]


def python_calls(work: Callable[[], object]) -> int:
    """Count the calls of Python functions in this thread."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "text", "reason"),
    [
        ("count?n=3", "0 1 2 ", "stop"),
        ("echo", "hi", "stop"),
        ("length?n=2", "0 1 ", "length"),
        ("empty", "", "stop"),
        ("no_done?n=2", "0 1 ", "stop"),
        ("close_delimited?n=2", "0 1 ", "stop"),
        ("content_length?n=2", "0 1 ", "stop"),
    ],
)
def test_answer_has_its_text_and_finish_reason(
    upstream: Upstream, model: str, text: str, reason: str
) -> None:
    """Every kind gives the same text, end and finish reason."""
    answer = request_answer(upstream, model)
    assert (answer.text, answer.ended, answer.fault) == (text, True, None)
    assert answer.reply is not None
    assert (answer.reply.finish_reason, answer.reply.model, answer.reply.opaque) == (
        reason,
        model,
        None,
    )


def test_usage_has_openais_names(upstream: Upstream) -> None:
    """Prompt, completion and total tokens have OpenAI's names."""
    answer = request_answer(upstream, "count?n=7")
    assert answer.reply is not None
    usage = answer.reply.usage
    assert usage is not None
    assert usage["completion_tokens"] == answer.chunks == 7
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_opening_a_long_conversation_makes_few_python_calls(upstream: Upstream) -> None:
    """Fewer than 20 Python calls are made for each message.

    The clients' own code looks into every field of every message.
    """

    def calls_to_open(count: int) -> int:
        messages = [Message(("user", "assistant")[n % 2], f"{n}") for n in range(count)]
        request = ChatRequest(messages=[*messages, *HI])
        return python_calls(lambda: upstream.open(request, UpstreamConnection()).close())

    calls_to_open(2)  # sends the requests that are sent once
    assert (calls_to_open(1002) - calls_to_open(2)) / 1000 < 20


def test_request_without_a_model_uses_the_default(upstream: Upstream) -> None:
    """The provider's default model answers; no list is requested."""
    assert request_answer(upstream).text == "hi"


def test_reasoning_is_separate_from_the_answer(upstream: Upstream) -> None:
    """Reasoning is never a part of the text."""
    answer = request_answer(upstream, "reasoning?thoughts=2&n=2")
    assert (joined(answer.events, Reasoning), answer.text) == ("thought0 thought1 ", "0 1 ")


def test_tool_calls_come_in_pieces_and_whole(upstream: Upstream) -> None:
    """Two parallel calls, in pieces or whole, each have their ID, name and arguments."""
    answer = request_answer(upstream, "tools")
    assert calls(answer.events) == [("add", '{"a": 1, "b": 2}'), ("sub", "{}")]
    assert [e.id for e in answer.events if isinstance(e, ToolCall)] == ["call_add", "call_sub"]
    assert answer.reply is not None
    assert answer.reply.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("400", "bad_request"),
        ("401", "unauthorized"),
        ("403", "region_not_supported"),
        ("404", "model_not_found"),
        ("422", "bad_request"),
        ("429", "rate_limited"),
        ("500", "upstream_server_error"),
        ("503", "upstream_server_error"),
        ("529", "upstream_server_error"),
        ("context", "context_too_long"),
        ("context?style=anthropic", "context_too_long"),
        ("html", "upstream_web_page"),
        ("drop_headers", "upstream_dropped"),
        ("garbage?n=3", "upstream_invalid"),
        ("drop?n=3", "upstream_dropped"),
        ("no_finish?n=3", "upstream_incomplete"),
        ("error_in_stream?n=3", "upstream_error"),
        ("error_in_stream?n=3&kind=rate_limit_error", "rate_limited"),
        ("error_in_stream?n=3&kind=overloaded_error", "upstream_server_error"),
        ("endless_line", "upstream_invalid"),
    ],
)
def test_fault_has_the_same_code_for_every_kind(upstream: Upstream, model: str, code: str) -> None:
    """Refusals and faults in the stream have the same codes; text before them is kept."""
    answer = request_answer(upstream, model)
    refusal_of(answer, code)
    assert answer.text == ("0 1 2 " if "n=3" in model else "")


def test_retry_after_comes_with_the_fault(upstream: Upstream) -> None:
    """A Retry-After header is in the fault."""
    assert (
        refusal_of(request_answer(upstream, "429?retry_after=7"), "rate_limited").retry_after == 7.0
    )


@pytest.mark.parametrize(
    ("address", "code"),
    [("http://127.0.0.1:{port}", "upstream_refused"), ("http://halt.invalid", "upstream_dns")],
)
def test_unreachable_server_has_the_same_code_for_every_kind(
    make: Make, kind: Kind, address: str, code: str
) -> None:
    """A failed connection has the same code for an answer and for the health check."""
    upstream = make(kind, base_url=address.format(port=free_port()))
    refusal_of(request_answer(upstream), code)
    with pytest.raises(UpstreamError) as caught:
        upstream.check(UpstreamConnection())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "model",
    ["silent_headers", "silent_first_token", "stall?n=1", "count?n=1000000&gap_ms=1"],
    ids=["headers", "first-token", "stalled", "flowing"],
)
def test_interrupt_closes_the_upstream_in_every_phase(
    upstream: Upstream, fake: FakeOpenAI, model: str
) -> None:
    """The reader gets an error, and the server sees its connection end."""
    connection = UpstreamConnection()

    def run() -> None:
        reply = upstream.open(ChatRequest(HI, model=model), connection)
        fault = read(reply).fault
        assert fault is not None
        raise fault

    blocked = BackgroundCall(run)
    record = fake.wait_request(0)
    if "n=1" in model:
        record.wait_tokens(1)
    connection.interrupt()
    assert isinstance(blocked.end(), (Interrupted, UpstreamError))
    assert record.closed.wait(WAIT_TIMEOUT)
    assert connection.wait_closed(WAIT_TIMEOUT) == "closed"


def test_interrupted_connection_sends_no_request(upstream: Upstream, fake: FakeOpenAI) -> None:
    """An interrupted connection sends no request, whatever is called."""
    connection = UpstreamConnection()
    connection.interrupt()
    for question in (
        lambda: upstream.open(ChatRequest(HI), connection),
        lambda: upstream.check(connection),
    ):
        with pytest.raises((Interrupted, UpstreamError)):
            question()
    assert fake.requests == []


def test_connection_is_reused_after_a_whole_answer(upstream: Upstream, fake: FakeOpenAI) -> None:
    """Answers that were read to their end leave a connection for the next one."""
    for _ in range(3):
        assert request_answer(upstream, "count?n=2").text == "0 1 "
    assert {record.connection for record in fake.requests} == {1}


@pytest.mark.parametrize(
    "model", ["401", "echo", "garbage", "drop", "key_in_stream", "key_in_stream?n=2"]
)
def test_key_is_in_no_error_log_or_repr(
    make: Make, kind: Kind, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    """No error, log or repr holds the key, also if the server quotes it."""
    caplog.set_level(logging.DEBUG)
    upstream = make(kind)
    answer = request_answer(upstream, model)
    texts = [
        repr(upstream),
        repr(answer),
        str(answer.fault),
        repr(ProviderSettings(**provider_fields(kind))),
    ]
    if answer.fault is not None:
        texts += [answer.fault.message, answer.fault.detail]
    texts += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert [text for text in texts if KEY in text] == []


def provider_fields(kind: Kind) -> dict[str, Any]:
    return {"name": "x", "kind": kind, "base_url": "http://127.0.0.1:1", "key": KEY}


@pytest.mark.parametrize("status", [b"400 Bad Request", b"401 Unauthorized", b"500 Oops"])
def test_key_quoted_in_a_refusal_is_masked(make: Make, kind: Kind, status: bytes) -> None:
    """A key that a proxy repeats in its refusal is masked in the message."""
    body = b'{"error":{"type":"x","message":"Invalid key: %b."}}' % KEY.encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n"
    with RawServer(answering(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as server:
        upstream = make(kind, base_url=server.url)
        fault = request_answer(upstream).fault
        upstream.close()
    assert fault is not None
    assert KEY not in f"{fault.message} {fault.detail} {fault!r}"


@pytest.mark.parametrize("body", [b"{}", b"[{}]", b'{"data":[null]}', b"{nope", b""])
def test_malformed_model_list_of_anthropic_is_invalid(make: Make, body: bytes) -> None:
    """A wrong address that answers with something else is upstream_invalid."""
    head = OK + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with RawServer(answering(head + body)) as server:
        upstream = make("anthropic", base_url=server.url)
        with pytest.raises(UpstreamError) as caught:
            upstream.models(UpstreamConnection())
        upstream.close()
    assert caught.value.code == "upstream_invalid"


def test_configured_models_need_no_request(make: Make, kind: Kind) -> None:
    """Configured models need no request for a list, also while the server is down."""
    upstream = make(kind, base_url=f"http://127.0.0.1:{free_port()}", models=("a", "b"))
    assert upstream.models(UpstreamConnection()) == ["a", "b"]


def test_anthropic_address_may_end_in_v1(make: Make, fake: FakeOpenAI) -> None:
    """Anthropic's address may end in `/v1` or not, with or without a slash."""
    for base_url in (fake.origin, fake.origin + "/", fake.base_url, fake.base_url + "/"):
        assert make("anthropic", base_url=base_url).models(UpstreamConnection())[0] == "echo"
    assert {record.path for record in fake.requests} == {"/v1/models"}


# --- with the generations -------------------------------------------------------------------------


@pytest.fixture
def generations(upstream: Upstream) -> Iterator[GenerationService]:
    service = GenerationService(Config(retries=2), upstream, StopRegistry())
    yield service
    service.close()


def completion_records(fake: FakeOpenAI) -> list[Record]:
    return [record for record in fake.requests if record.method == "POST"]


@pytest.mark.parametrize("status", ["503", "drop"])
def test_fault_before_the_first_token_is_retried(
    generations: GenerationService, fake: FakeOpenAI, status: str
) -> None:
    """A fault before the first token is retried, and the retry's answer is complete."""
    run = generations.start(ChatRequest(HI, model=f"flaky?n=2&status={status}"))
    events = Reader(run).finish()
    assert isinstance(events[-1][1], Done)
    assert run.answer()[1] == "0 1 "
    assert len(completion_records(fake)) == 2


def test_tools_are_run_and_their_results_sent(generations: GenerationService, kind: Kind) -> None:
    """Tools are run, and the model gets its calls with their results and answers."""

    def add(a: int, b: int) -> int:
        return a + b

    def sub() -> str:
        return "none"

    run = generations.start(ChatRequest(HI, model="tools"), tools=Toolbox([add, sub]))
    ended = Reader(run).finish()[-1][1]
    assert isinstance(ended, Done), ended
    assert ended.finish_reason == "stop"
    assert run.answer()[1].strip() == "0 1 2"


@pytest.mark.parametrize("kind", ["anthropic"], indirect=True)
def test_signed_reasoning_is_sent_back_before_the_calls(
    generations: GenerationService, fake: FakeOpenAI
) -> None:
    """Signed reasoning is sent back at the beginning of the next round, before the calls,
    in order.
    """

    def add(a: int, b: int) -> int:
        return a + b

    def sub() -> str:
        return ""

    run = generations.start(ChatRequest(HI, model="tools"), tools=Toolbox([add, sub]))
    Reader(run).finish()
    first, second = (record.body for record in completion_records(fake))
    assert [tool["name"] for tool in first["tools"]] == ["add", "sub"]
    assert first["tools"][0]["input_schema"]["properties"].keys() == {"a", "b"}
    assert second["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "thought0 thought1 ", "signature": "signed-0"},
                {"type": "tool_use", "id": "call_add", "name": "add", "input": {"a": 1, "b": 2}},
                {"type": "tool_use", "id": "call_sub", "name": "sub", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_add",
                    "content": [{"type": "text", "text": "3"}],
                },
                {"type": "tool_result", "tool_use_id": "call_sub"},
            ],
        },
    ]


# --- Azure ----------------------------------------------------------------------------------------


def test_azure_request_names_deployment_version_and_key(make: Make, fake: FakeOpenAI) -> None:
    """An Azure request has the deployment in the path, the version in the query, the key in its own
    header.
    """
    upstream = make("azure", models=("count?n=1", "other"), default_model="")
    assert request_answer(upstream).text == "0 "
    record = fake.requests[0]
    assert record.path == "/openai/deployments/count%3Fn=1/chat/completions"
    assert record.query == "api-version=2024-10-21"
    assert record.headers["api-key"] == KEY
    upstream.check(UpstreamConnection())
    assert fake.requests[1].path == "/openai/models"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x"])
def test_deployment_name_that_is_a_path_is_refused(make: Make, fake: FakeOpenAI, name: str) -> None:
    """A deployment name that would lead to another path is refused, and no request is sent."""
    refusal_of(request_answer(make("azure"), name), "model_not_found")
    assert fake.requests == []


# --- shapes of common servers ---------------------------------------------------------------------

HELLO = {"text": "Hello", "thought": "hm", "reason": "stop", "tokens": 2}
PARTIAL = {"text": "Hel", "thought": "", "reason": None, "tokens": None}
CALLED = {"text": "", "thought": "", "reason": "tool_calls", "tokens": None}
ADD_SUB = [("add", '{"a": 1}'), ("sub", '{"b": 2}')]


@pytest.mark.parametrize(
    ("name", "outcome", "expected_calls", "code"),
    [
        ("llamacpp", HELLO, [], None),
        ("vllm", HELLO, [], None),
        ("ollama", HELLO, [], None),
        ("lmstudio", HELLO, [], None),
        ("openrouter", HELLO, [], None),
        ("mistral", HELLO, [], None),
        ("think_tags", HELLO, [], None),
        ("harmony", HELLO, [], None),
        ("both_at_once", HELLO, [], None),
        ("vllm_calls", CALLED, [("add", '{"a": 1}'), ("sub", '{"b": 2}')], None),
        ("ollama_calls", CALLED, ADD_SUB, None),
        ("ollama_old_calls", CALLED | {"reason": "stop"}, ADD_SUB, None),
        ("calls_by_id", CALLED, ADD_SUB, None),
        ("calls_named_often", CALLED, ADD_SUB, None),
        ("calls_as_objects", CALLED, [("add", '{"a":1}'), ("sub", '{"b":2}')], None),
        ("function_call", CALLED | {"reason": "function_call"}, [("add", '{"a": 1}')], None),
        ("azure_filtered", PARTIAL | {"reason": "content_filter"}, [], None),
        ("llamacpp_error", PARTIAL, [], "upstream_error"),
        ("llamacpp_old_error", PARTIAL, [], "upstream_error"),
        ("vllm_error", PARTIAL, [], "upstream_error"),
        ("lmstudio_error", PARTIAL, [], "upstream_error"),
        ("openrouter_error", PARTIAL, [], "upstream_error"),
        ("openrouter_limited", PARTIAL | {"text": ""}, [], "rate_limited"),
    ],
)
def test_common_servers_give_the_same_answer(
    make: Make,
    name: str,
    outcome: dict[str, Any],
    expected_calls: list[tuple[str, str]],
    code: str | None,
) -> None:
    """Text, reasoning, calls and usage are the same from the formats of common servers."""
    answer = request_answer(make("openai"), f"shape?name={name}")
    reply = answer.reply
    assert reply is not None
    usage = reply.usage or {}
    assert (answer.fault.code if answer.fault else None) == code
    assert outcome == {
        "text": answer.text,
        "thought": joined(answer.events, Reasoning),
        "reason": reply.finish_reason,
        "tokens": usage.get("completion_tokens"),
    }
    assert calls(answer.events) == expected_calls
    if answer.fault is not None and code == "upstream_error":
        assert "Boom." in answer.fault.message


# --- Anthropic's requests -------------------------------------------------------------------------

PNG = "data:image/png;base64,AAAA"


def test_messages_are_translated_for_anthropic(make: Make, fake: FakeOpenAI) -> None:
    """System prompts, parts, calls, results and options have their places in the Messages API."""
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a"}},
    ]
    messages = [
        Message("system", "Be brief."),
        Message("user", parts, name="anna"),
        Message("assistant", "I look.", tool_calls=[openai_call(ToolCall("f:1", "look", "{"))]),
        Message("tool", "a cat", tool_call_id="f:1"),
        Message("user", "Thanks."),
        Message("assistant", ""),
        Message("user", "More?"),
        Message("developer", "Be kind."),
    ]
    tool = ToolSpec.of_function("look", "Looks.")
    request_answer(
        make("anthropic", extra_body={"service_tier": "auto"}),
        "count?n=1",
        messages=messages,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        stop="END",
        temperature=0.5,
        top_p=0.9,
        max_tokens=77,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"x": 1}}},
        extra_body={"top_k": 3},
    )
    assert fake.requests[0].body == {
        "model": "count?n=1",
        "stream": True,
        "max_tokens": 77,
        "system": "Be brief.\n\nBe kind.",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "service_tier": "auto",
        "stop_sequences": ["END"],
        "output_config": {"format": {"type": "json_schema", "schema": {"x": 1}}},
        "tools": [
            {
                "name": "look",
                "description": "Looks.",
                "input_schema": {"type": "object", "properties": {}},
            }
        ],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                    {
                        "type": "image",
                        "source": {"type": "url", "url": "https://example.org/a.png"},
                    },
                    {
                        "type": "document",
                        "title": "a",
                        "source": {
                            "type": "base64",
                            "media_type": "application/pdf",
                            "data": "AA",
                        },
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "f_1", "name": "look", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "f_1",
                        "content": [{"type": "text", "text": "a cat"}],
                    },
                    {"type": "text", "text": "Thanks."},
                    {"type": "text", "text": "More?"},
                ],
            },
        ],
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({}, None),
    ],
)
def test_tool_choice_is_translated_for_anthropic(
    make: Make, fake: FakeOpenAI, fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    """Each of OpenAI's tool choices has one of Anthropic's."""
    request_answer(make("anthropic"), tools=[ToolSpec.of_function("look")], **fields)
    assert fake.requests[0].body.get("tool_choice") == expected
    assert fake.requests[0].body["max_tokens"] == 4096


AUDIO = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
ODD_IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
RAW_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}


CACHED = {"cache_control": {"type": "ephemeral"}}


def test_anthropic_fields_are_passed_on_unchanged(make: Make, fake: FakeOpenAI) -> None:
    """Cache marks, and Anthropic's own parts, tools and choices are passed on."""
    search = {"type": "web_search_20250305", "name": "web_search"}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    video = {"type": "video_url", "video_url": {"url": "data:,"}}
    image = {"type": "image_url", "image_url": {"url": PNG}, **CACHED}
    messages = [
        {"role": "system", "content": "Be brief.", **CACHED},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": ["x", {"type": "text", "text": "y", **CACHED}, image, video]},
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "z"}], "id": "m1"},
        {"role": "tool", "tool_call_id": "c1", "content": "1", **CACHED},
        {"role": "robot", "content": {"type": "text", "text": "x"}["text"], "timestamp": 1},
    ]
    tools = [{"function": {"name": "f"}, **CACHED}, search]
    fields = {"tools": tools, "tool_choice": {"type": "tool", "name": "web_search"}}
    request_answer(make("anthropic"), **_fields(messages=messages, **fields))
    sent = fake.requests[0].body
    assert sent["system"] == [
        {"type": "text", "text": "Be brief.", **CACHED},
        {"type": "text", "text": "Be kind."},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    result = {"type": "tool_result", "tool_use_id": "c1"}
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "text", "text": "y", **CACHED},
                {"type": "image", "source": source, **CACHED},
                video,
            ],
        },
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "z"}]},
        {
            "role": "user",
            "content": [{**result, "content": [{"type": "text", "text": "1"}], **CACHED}],
        },
        {"role": "robot", "content": [{"type": "text", "text": "x"}]},
    ]
    schema = {"type": "object", "properties": {}}
    assert sent["tools"] == [{"name": "f", **CACHED, "input_schema": schema}, search]
    assert sent["tool_choice"] == {"type": "tool", "name": "web_search"}


def _fields(**fields: Any) -> dict[str, Any]:
    """Validate the fields of a request as a client's."""
    request = CHAT_REQUEST.convert(fields)
    return {name: getattr(request, name) for name in fields}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"messages": [{"role": "user", "content": [AUDIO]}]}, "takes text, images and PDF"),
        ({"messages": [{"role": "user", "content": [ODD_IMAGE]}]}, "neither a data: URL"),
        ({"messages": [{"role": "user", "content": [RAW_IMAGE]}]}, "not in base64"),
        ({"messages": [{"role": "user", "content": 5}]}, "neither a text nor a list"),
        ({"messages": [{"role": "user", "content": [5]}]}, "is not an object"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "no function with a name"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "no function with a name"),
        ({"reasoning_effort": "huge"}, "none or one of minimal, low"),
        ({"response_format": {"type": "json_object"}}, "text or a json_schema"),
        ({"tools": [{"function": {"name": "f"}}], "tool_choice": "f"}, "'f' is unknown"),
    ],
)
def test_untranslatable_request_is_a_bad_request_with_its_reason(
    make: Make, fake: FakeOpenAI, more: dict[str, Any], words: str
) -> None:
    """A request that has no translation is a bad request with what is allowed, and is not sent."""
    request = CHAT_REQUEST.convert({"messages": [{"role": "user", "content": "hi"}]} | more)
    with pytest.raises(UpstreamError) as caught:
        make("anthropic").open(request, UpstreamConnection())
    assert caught.value.code == "bad_request"
    assert words in caught.value.message
    assert fake.requests == []


def test_reasoning_effort_becomes_adaptive_thinking(make: Make, fake: FakeOpenAI) -> None:
    """Reasoning effort becomes adaptive thinking if the model takes it, with more tokens for the
    reasoning.
    """
    upstream = make("anthropic")
    request_answer(upstream, "count?n=1", reasoning_effort="high")
    request_answer(upstream, "count?n=1", reasoning_effort="high", max_tokens=5000)
    request_answer(upstream, "count?n=1", reasoning_effort="none")
    first, limited, without_effort = (record.body for record in fake.requests)
    assert first["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert first["output_config"] == {"effort": "high"}
    assert (first["max_tokens"], limited["max_tokens"]) == (4096 + 16_384, 5000)
    assert without_effort.keys() & {"thinking", "output_config"} == set()


def test_model_without_effort_levels_gets_a_token_budget(make: Make, fake: FakeOpenAI) -> None:
    """A model that refuses effort levels gets a budget of tokens for its reasoning, after one
    refusal.
    """
    upstream = make("anthropic")
    for limit in (None, 5000, 1500):
        answer = request_answer(upstream, "budgeted", reasoning_effort="medium", max_tokens=limit)
        assert answer.fault is None
    bodies = [record.body for record in fake.requests]
    assert [body.get("thinking", {}).get("type") for body in bodies] == [
        "adaptive",
        "enabled",
        "enabled",
        None,
    ]
    budgets = [(body["max_tokens"], body["thinking"]["budget_tokens"]) for body in bodies[1:3]]
    assert budgets == [(4096 + 8192, 8192), (5000, 2500)]


def test_top_p_is_left_out_for_a_model_that_refuses_it_with_a_temperature(
    make: Make, fake: FakeOpenAI
) -> None:
    """A model that refuses top_p together with a temperature gets the temperature alone, after one
    refusal. Any other refusal is reported.
    """
    upstream = make("anthropic")
    for model in ("one_sampling", "one_sampling", "count?n=1"):
        answer = request_answer(upstream, model, temperature=1.5, top_p=0.9)
        assert answer.fault is None
    assert request_answer(upstream, "one_sampling", top_p=0.9).fault is None
    sent = [(record.body.get("temperature"), record.body.get("top_p")) for record in fake.requests]
    assert sent == [(1, 0.9), (1, None), (1, None), (1, 0.9), (None, 0.9)]
    assert request_answer(upstream, "shape?name=none", temperature=1, top_p=0.9).fault is not None


def test_thinking_is_off_after_calls_without_signed_reasoning(make: Make, fake: FakeOpenAI) -> None:
    """Thinking is off after a client's own tool calls, whose missing signature the API would
    refuse.
    """
    call = ToolCall("c1", "look", "{}")
    unsigned_turn = Message("assistant", None, tool_calls=[openai_call(call)])
    signed_turn = ToolTurn(None, [call], [{"type": "thinking", "thinking": "", "signature": "s"}])
    result = Message("tool", "a cat", tool_call_id="c1")
    upstream = make("anthropic")
    for message in (unsigned_turn, signed_turn):
        request_answer(upstream, messages=[*HI, message, result], reasoning_effort="low")
    assert ["thinking" in record.body for record in fake.requests] == [False, True]


# --- Anthropic's stream ---------------------------------------------------------------------------


def event(type_: str, **members: Any) -> bytes:
    data = json.dumps({"type": type_} | members, ensure_ascii=False)
    return f"event: {type_}\ndata: {data}\n\n".encode()


def delta(index: int, type_: str, **members: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": type_} | members)


def start(index: int, type_: str, **members: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": type_} | members)


WHOLE = b"".join(
    [
        event(
            "message_start",
            message={
                "model": "claude",
                "usage": {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 5,
                    "cache_creation_input_tokens": 2,
                    "output_tokens": 1,
                },
            },
        ),
        event("ping"),
        start(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Ich weiß "),
        delta(0, "thinking_delta", thinking="👩\u200d👧"),
        delta(0, "signature_delta", signature="sig"),
        event("content_block_stop", index=0),
        start(1, "redacted_thinking", data="opaque"),
        start(2, "text", text=""),
        delta(2, "text_delta", text="Ja — "),
        delta(2, "text_delta", text="中文"),
        delta(2, "citations_delta", citation={}),
        start(3, "server_tool_use", id="srv", name="web_search", input={}),
        delta(3, "input_json_delta", partial_json='{"q": 1}'),
        start(4, "tool_use", id="t1", name="look", input={}),
        delta(4, "input_json_delta", partial_json=""),
        delta(4, "input_json_delta", partial_json='{"city": "Os'),
        delta(4, "input_json_delta", partial_json='lo"}'),
        start(5, "tool_use", id="t2", name="now", input={"zone": "UTC"}),
        start(6, "tool_use", id="t3", name="quit", input={}),
        event("something_new", index=9),
        event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7}),
        event("message_stop"),
    ]
)


def decoded(pieces: list[bytes]) -> tuple[Any, ...]:
    """Decode a stream of Anthropic's."""
    decoder = MessagesDecoder()
    events: list[Delta] = []
    for piece in pieces:
        events += decoder.feed(piece).events
    return (
        joined(events, Reasoning),
        joined(events, Content),
        calls(events),
        decoder.ended,
        decoder.finish_reason,
        decoder.usage,
        decoder.model,
        decoder.opaque,
    )


@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=8))
def test_anthropic_stream_is_the_same_in_any_cut(cuts: list[int]) -> None:
    """Any cut of the bytes gives the same blocks."""
    edges = [0, *sorted(set(cuts)), len(WHOLE)]
    pieces = [WHOLE[a:b] for a, b in itertools.pairwise(edges)]
    assert decoded(pieces) == (
        "Ich weiß 👩\u200d👧",
        "Ja — 中文",
        [("look", '{"city": "Oslo"}'), ("now", '{"zone":"UTC"}'), ("quit", "{}")],
        True,
        "tool_calls",
        {
            "prompt_tokens": 17,
            "completion_tokens": 7,
            "total_tokens": 24,
            "prompt_tokens_details": {"cached_tokens": 5},
        },
        "claude",
        [
            {"type": "thinking", "thinking": "Ich weiß 👩\u200d👧", "signature": "sig"},
            {"type": "redacted_thinking", "data": "opaque"},
            {"type": "text", "text": "Ja — 中文"},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "t2", "name": "now", "input": {"zone": "UTC"}},
            {"type": "tool_use", "id": "t3", "name": "quit", "input": {}},
        ],
    )


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "pause_turn"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "something_new"),
    ],
)
def test_anthropic_stop_reason_becomes_openais_finish_reason(
    stop_reason: str, finish_reason: str
) -> None:
    """Anthropic's stop reason becomes OpenAI's finish reason."""
    decoder = MessagesDecoder()
    decoder.feed(event("message_delta", delta={"stop_reason": stop_reason}))
    assert decoder.end().ended
    assert decoder.finish_reason == finish_reason


@pytest.mark.parametrize(
    ("broken_data", "code"),
    [
        (event("error", error={"type": "overloaded_error", "message": "Busy."}), "upstream_server_error"),
        (event("error", error={"type": "api_error", "message": "Oops."}), "upstream_error"),
        (event("error"), "upstream_error"),
        (b"data: {nope\n\n", "upstream_invalid"),
    ],
)  # fmt: skip
def test_fault_in_anthropics_stream_comes_after_its_text(broken_data: bytes, code: str) -> None:
    """A fault in Anthropic's stream comes after its text, with its code."""
    decoder = MessagesDecoder()
    part = decoder.feed(start(0, "text", text="kept") + broken_data)
    assert part.text == "kept"
    with pytest.raises(UpstreamError) as caught:
        decoder.end()
    assert caught.value.code == code


def test_anthropic_stream_without_a_stop_reason_is_incomplete() -> None:
    """An Anthropic stream that ends without a stop reason is a fault, and its tokens so far are no
    usage.
    """
    decoder = MessagesDecoder()
    decoder.feed(WHOLE.partition(b"event: message_delta")[0])
    assert decoder.usage is None
    with pytest.raises(UpstreamError) as caught:
        decoder.end()
    assert caught.value.code == "upstream_incomplete"


def test_empty_messages_are_left_out_for_anthropic() -> None:
    """Messages without text are left out, since the API refuses them."""
    assert to_messages([Message("system", " "), Message("user", "")]) == ("", [])
