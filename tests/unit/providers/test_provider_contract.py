"""One contract for every kind of provider, and what is peculiar to each.

Each kind asks the fake upstream in its own tongue and must bring the same: text, thoughts, calls,
usage, faults, and a Stop in every phase.
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

from halt.config.providers import Kind, ProviderSettings
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
from halt.providers.factory import make_provider
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record
from halt.transport.pool import Transport
from tests.support.provider_answers import HI, KEY, ask, closed_port, read, refused
from tests.support.raw_server import OK, RawServer, answering
from tests.support.scripted_upstream import Reader
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

Make = Callable[..., Upstream]

KINDS: tuple[Kind, ...] = ("openai", "azure", "anthropic")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def trust() -> ssl.SSLContext:
    """Made once, because reading all certificates takes longer than a test."""
    return ssl.create_default_context()


@pytest.fixture
def make(fake: FakeOpenAI, trust: ssl.SSLContext) -> Iterator[Make]:
    """Providers of any kind, at the fake where no address is given; closed at the end."""
    made: list[Upstream] = []

    def make(kind: Kind, **settings: Any) -> Upstream:
        base_url = fake.base_url if kind == "openai" else fake.origin
        defaults: dict[str, Any] = {"name": kind, "kind": kind, "base_url": base_url, "key": KEY}
        defaults |= {"api_version": "2024-10-21", "default_model": "echo"}
        transport = Transport(5.0, trust)
        made.append(make_provider(ProviderSettings(**defaults | settings), transport))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


@pytest.fixture
def upstream(make: Make, kind: Kind) -> Upstream:
    return make(kind)


def joined(events: list[Delta], of: type[Content] | type[Reasoning]) -> str:
    """All text of one sort."""
    texts = [each for each in events if isinstance(each, of)]
    return "".join(each.content if isinstance(each, Content) else each.text for each in texts)


def calls(events: list[Delta]) -> list[tuple[str, str]]:
    """Name and arguments of the whole calls, whose pieces must add up to the same."""
    found = [each for each in events if isinstance(each, ToolCall)]
    assert len({each.id for each in found}) == len(found)
    for each in found:
        pieces = [p for p in events if isinstance(p, ToolCallDelta) and p.id == each.id]
        assert "".join(p.arguments for p in pieces) == each.arguments
        assert len({p.index for p in pieces}) == 1
    return [(each.name, each.arguments) for each in found]


def python_calls(work: Callable[[], object]) -> int:
    """How many functions of Python's are called in this thread."""
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
def test_an_answer_comes_whole_with_its_reason(
    upstream: Upstream, model: str, text: str, reason: str
) -> None:
    """Text, end and finish reason are told in the same words by every kind."""
    got = ask(upstream, model)
    assert (got.text, got.ended, got.fault) == (text, True, None)
    assert got.reply is not None
    assert (got.reply.finish_reason, got.reply.model, got.reply.opaque) == (reason, model, None)


def test_usage_has_one_form(upstream: Upstream) -> None:
    """Prompt, answer and total are counted under OpenAI's names."""
    got = ask(upstream, "count?n=7")
    assert got.reply is not None
    usage = got.reply.usage
    assert usage is not None
    assert usage["completion_tokens"] == got.chunks == 7
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_a_message_of_a_long_conversation_costs_little(upstream: Upstream) -> None:
    """No function looks into every field of every message, as those of the clients do."""

    def opened(count: int) -> int:
        messages = [Message(("user", "assistant")[n % 2], f"{n}") for n in range(count)]
        request = ChatRequest(messages=[*messages, *HI])
        return python_calls(lambda: upstream.open(request, UpstreamConnection()).close())

    opened(2)  # asks for what is asked once
    assert (opened(1002) - opened(2)) / 1000 < 20


def test_a_request_without_a_model_is_answered_by_the_default(upstream: Upstream) -> None:
    """The provider's default model answers; no list is asked for."""
    assert ask(upstream).text == "hi"


def test_thoughts_come_apart_from_the_answer(upstream: Upstream) -> None:
    """Reasoning is never a part of the text."""
    got = ask(upstream, "reasoning?thoughts=2&n=2")
    assert (joined(got.events, Reasoning), got.text) == ("thought0 thought1 ", "0 1 ")


def test_calls_come_in_pieces_and_whole(upstream: Upstream) -> None:
    """Two calls at once: each has its ID, its name and its arguments."""
    got = ask(upstream, "tools")
    assert calls(got.events) == [("add", '{"a": 1, "b": 2}'), ("sub", "{}")]
    assert [e.id for e in got.events if isinstance(e, ToolCall)] == ["call_add", "call_sub"]
    assert got.reply is not None
    assert got.reply.finish_reason == "tool_calls"


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
def test_each_fault_has_its_code(upstream: Upstream, model: str, code: str) -> None:
    """Refusals and faults in the stream have the same codes; text before them is delivered."""
    got = ask(upstream, model)
    refused(got, code)
    assert got.text == ("0 1 2 " if "n=3" in model else "")


def test_a_wait_that_the_server_asks_for_is_told(upstream: Upstream) -> None:
    """Retry-After comes with the fault."""
    assert refused(ask(upstream, "429?retry_after=7"), "rate_limited").retry_after == 7.0


@pytest.mark.parametrize(
    ("address", "code"),
    [("http://127.0.0.1:{port}", "upstream_refused"), ("http://halt.invalid", "upstream_dns")],
)
def test_a_server_that_is_not_there(make: Make, kind: Kind, address: str, code: str) -> None:
    """The way to the server fails with the same codes; asking for models does, too."""
    upstream = make(kind, base_url=address.format(port=closed_port()))
    refused(ask(upstream), code)
    with pytest.raises(UpstreamError) as caught:
        upstream.check(UpstreamConnection())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "model",
    ["silent_headers", "silent_first_token", "stall?n=1", "count?n=1000000&gap_ms=1"],
    ids=["headers", "first-token", "stalled", "flowing"],
)
def test_an_interrupt_closes_the_upstream_in_each_phase(
    upstream: Upstream, fake: FakeOpenAI, model: str
) -> None:
    """The reader comes back with an error, and the server sees its connection end."""
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


def test_a_line_that_was_stopped_asks_nothing(upstream: Upstream, fake: FakeOpenAI) -> None:
    """A Stop that was there first: nothing is sent, whatever is asked for."""
    connection = UpstreamConnection()
    connection.interrupt()
    for question in (
        lambda: upstream.open(ChatRequest(HI), connection),
        lambda: upstream.check(connection),
    ):
        with pytest.raises((Interrupted, UpstreamError)):
            question()
    assert fake.requests == []


def test_a_connection_serves_again(upstream: Upstream, fake: FakeOpenAI) -> None:
    """Answers that were read to their end leave a connection for the next one."""
    for _ in range(3):
        assert ask(upstream, "count?n=2").text == "0 1 "
    assert {record.connection for record in fake.requests} == {1}


@pytest.mark.parametrize(
    "model", ["401", "echo", "garbage", "drop", "key_in_stream", "key_in_stream?n=2"]
)
def test_the_key_is_never_told(
    make: Make, kind: Kind, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    """No error, log or repr holds the key, also where the server quotes it."""
    caplog.set_level(logging.DEBUG)
    upstream = make(kind)
    got = ask(upstream, model)
    told = [repr(upstream), repr(got), str(got.fault), repr(ProviderSettings(**plain(kind)))]
    if got.fault is not None:
        told += [got.fault.message, got.fault.detail]
    told += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert [text for text in told if KEY in text] == []


def plain(kind: Kind) -> dict[str, Any]:
    return {"name": "x", "kind": kind, "base_url": "http://127.0.0.1:1", "key": KEY}


@pytest.mark.parametrize("status", [b"400 Bad Request", b"401 Unauthorized", b"500 Oops"])
def test_a_refusal_that_quotes_the_key_is_not_quoted(make: Make, kind: Kind, status: bytes) -> None:
    """Some proxies repeat the key that they refuse: no kind passes it on."""
    said = b'{"error":{"type":"x","message":"Invalid key: %b."}}' % KEY.encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n"
    with RawServer(answering(head + b"Content-Length: %d\r\n\r\n" % len(said) + said)) as server:
        upstream = make(kind, base_url=server.url)
        fault = ask(upstream).fault
        upstream.close()
    assert fault is not None
    assert KEY not in f"{fault.message} {fault.detail} {fault!r}"


@pytest.mark.parametrize("body", [b"{}", b"[{}]", b'{"data":[null]}', b"{nope", b""])
def test_a_list_of_models_that_is_none_is_told(make: Make, body: bytes) -> None:
    """Anthropic's client, too, meets wrong addresses that answer with something."""
    head = OK + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with RawServer(answering(head + body)) as server:
        upstream = make("anthropic", base_url=server.url)
        with pytest.raises(UpstreamError) as caught:
            upstream.models(UpstreamConnection())
        upstream.close()
    assert caught.value.code == "upstream_invalid"


def test_models_that_are_configured_are_not_asked_for(make: Make, kind: Kind) -> None:
    """A list in the settings is the list, also while the server is down."""
    upstream = make(kind, base_url=f"http://127.0.0.1:{closed_port()}", models=("a", "b"))
    assert upstream.models(UpstreamConnection()) == ["a", "b"]


def test_anthropics_address_may_be_written_in_both_ways(make: Make, fake: FakeOpenAI) -> None:
    """With and without `/v1`, as the addresses of other kinds are written."""
    for base_url in (fake.origin, fake.origin + "/", fake.base_url, fake.base_url + "/"):
        assert make("anthropic", base_url=base_url).models(UpstreamConnection())[0] == "echo"
    assert {record.path for record in fake.requests} == {"/v1/models"}


# --- with the generations -------------------------------------------------------------------------


@pytest.fixture
def generations(upstream: Upstream) -> Iterator[GenerationService]:
    service = GenerationService(Config(retries=2), upstream, StopRegistry())
    yield service
    service.close()


def asked_for(fake: FakeOpenAI) -> list[Record]:
    return [record for record in fake.requests if record.method == "POST"]


@pytest.mark.parametrize("status", ["503", "drop"])
def test_a_fault_before_the_first_token_is_tried_again(
    generations: GenerationService, fake: FakeOpenAI, status: str
) -> None:
    """A server that fails once and then answers has answered."""
    run = generations.start(ChatRequest(HI, model=f"flaky?n=2&status={status}"))
    events = Reader(run).finish()
    assert isinstance(events[-1][1], Done)
    assert run.answer()[1] == "0 1 "
    assert len(asked_for(fake)) == 2


def test_tools_are_run_and_their_results_told(generations: GenerationService, kind: Kind) -> None:
    """A round of tools: the model is asked again with its calls and their results, and answers."""

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
def test_signed_thoughts_go_back_with_the_calls(
    generations: GenerationService, fake: FakeOpenAI
) -> None:
    """The next round begins with the thoughts as they were signed, then the calls, in order."""

    def add(a: int, b: int) -> int:
        return a + b

    def sub() -> str:
        return ""

    run = generations.start(ChatRequest(HI, model="tools"), tools=Toolbox([add, sub]))
    Reader(run).finish()
    first, second = (record.body for record in asked_for(fake))
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


def test_azure_is_asked_for_a_deployment(make: Make, fake: FakeOpenAI) -> None:
    """The deployment stands in the path, the version in the query, the key in its own header."""
    upstream = make("azure", models=("count?n=1", "other"), default_model="")
    assert ask(upstream).text == "0 "
    record = fake.requests[0]
    assert record.path == "/openai/deployments/count%3Fn=1/chat/completions"
    assert record.query == "api-version=2024-10-21"
    assert record.headers["api-key"] == KEY
    upstream.check(UpstreamConnection())
    assert fake.requests[1].path == "/openai/models"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x"])
def test_a_deployment_is_never_another_path(make: Make, fake: FakeOpenAI, name: str) -> None:
    """A model's name that would lead elsewhere is refused here."""
    refused(ask(make("azure"), name), "model_not_found")
    assert fake.requests == []


# --- shapes of common servers ---------------------------------------------------------------------

HELLO = {"text": "Hello", "thought": "hm", "reason": "stop", "tokens": 2}
PARTIAL = {"text": "Hel", "thought": "", "reason": None, "tokens": None}
CALLED = {"text": "", "thought": "", "reason": "tool_calls", "tokens": None}
ADD_SUB = [("add", '{"a": 1}'), ("sub", '{"b": 2}')]


@pytest.mark.parametrize(
    ("name", "outcome", "called", "code"),
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
def test_the_shapes_of_common_servers(
    make: Make,
    name: str,
    outcome: dict[str, Any],
    called: list[tuple[str, str]],
    code: str | None,
) -> None:
    """What is peculiar to a server changes nothing of what the user gets."""
    got = ask(make("openai"), f"shape?name={name}")
    reply = got.reply
    assert reply is not None
    usage = reply.usage or {}
    assert (got.fault.code if got.fault else None) == code
    assert outcome == {
        "text": got.text,
        "thought": joined(got.events, Reasoning),
        "reason": reply.finish_reason,
        "tokens": usage.get("completion_tokens"),
    }
    assert calls(got.events) == called
    if got.fault is not None and code == "upstream_error":
        assert "Boom." in got.fault.message


# --- Anthropic's requests -------------------------------------------------------------------------

PNG = "data:image/png;base64,AAAA"


def test_messages_are_put_into_anthropics_words(make: Make, fake: FakeOpenAI) -> None:
    """System prompts, parts, calls, results, options: each has its place in the Messages API."""
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
    ask(
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
    ("given", "wanted"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({}, None),
    ],
)
def test_the_choice_of_tools(
    make: Make, fake: FakeOpenAI, given: dict[str, Any], wanted: dict[str, Any] | None
) -> None:
    """Each of OpenAI's words for the choice has one of Anthropic's."""
    ask(make("anthropic"), tools=[ToolSpec.of_function("look")], **given)
    assert fake.requests[0].body.get("tool_choice") == wanted
    assert fake.requests[0].body["max_tokens"] == 4096


AUDIO = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
ODD_IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
RAW_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}


CACHED = {"cache_control": {"type": "ephemeral"}}


def test_what_is_anthropics_own_goes_to_anthropic(make: Make, fake: FakeOpenAI) -> None:
    """Marks for its cache in parts, messages and tools; parts, tools and choices of its own kinds."""
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
    ask(make("anthropic"), **_fields(messages=messages, **fields))
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
    """The fields of a request, checked as those of a client's."""
    request = CHAT_REQUEST.convert(fields)
    return {name: getattr(request, name) for name in fields}


@pytest.mark.parametrize(
    ("more", "said"),
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
def test_what_anthropic_does_not_take_is_refused_in_words(
    make: Make, fake: FakeOpenAI, more: dict[str, Any], said: str
) -> None:
    """What can't be translated is a bad request that says what is allowed; nothing is sent."""
    request = CHAT_REQUEST.convert({"messages": [{"role": "user", "content": "hi"}]} | more)
    with pytest.raises(UpstreamError) as caught:
        make("anthropic").open(request, UpstreamConnection())
    assert caught.value.code == "bad_request"
    assert said in caught.value.message
    assert fake.requests == []


def test_effort_becomes_thinking(make: Make, fake: FakeOpenAI) -> None:
    """Effort is passed on as it is where the model takes it; room for the thoughts is added."""
    upstream = make("anthropic")
    ask(upstream, "count?n=1", reasoning_effort="high")
    ask(upstream, "count?n=1", reasoning_effort="high", max_tokens=5000)
    ask(upstream, "count?n=1", reasoning_effort="none")
    first, limited, none = (record.body for record in fake.requests)
    assert first["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert first["output_config"] == {"effort": "high"}
    assert (first["max_tokens"], limited["max_tokens"]) == (4096 + 16_384, 5000)
    assert none.keys() & {"thinking", "output_config"} == set()


def test_a_model_without_efforts_is_given_a_budget(make: Make, fake: FakeOpenAI) -> None:
    """The refusal is met once for each model; then its thoughts are limited in tokens."""
    upstream = make("anthropic")
    for limit in (None, 5000, 1500):
        got = ask(upstream, "budgeted", reasoning_effort="medium", max_tokens=limit)
        assert got.fault is None
    asked = [record.body for record in fake.requests]
    assert [each.get("thinking", {}).get("type") for each in asked] == [
        "adaptive",
        "enabled",
        "enabled",
        None,
    ]
    budgets = [(each["max_tokens"], each["thinking"]["budget_tokens"]) for each in asked[1:3]]
    assert budgets == [(4096 + 8192, 8192), (5000, 2500)]


def test_no_thinking_begins_behind_calls_whose_thoughts_are_lost(
    make: Make, fake: FakeOpenAI
) -> None:
    """A client that runs its own tools has no signed thoughts: the API would refuse the request."""
    call = ToolCall("c1", "look", "{}")
    lost = Message("assistant", None, tool_calls=[openai_call(call)])
    kept = ToolTurn(None, [call], [{"type": "thinking", "thinking": "", "signature": "s"}])
    result = Message("tool", "a cat", tool_call_id="c1")
    upstream = make("anthropic")
    for turn in (lost, kept):
        ask(upstream, messages=[*HI, turn, result], reasoning_effort="low")
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
    """What a stream of Anthropic's comes to."""
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
def test_no_cut_changes_what_anthropic_says(cuts: list[int]) -> None:
    """Every block becomes what it is, however the network cuts the bytes."""
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
    ("said", "reason"),
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
def test_reasons_are_told_in_openais_terms(said: str, reason: str) -> None:
    """Whoever reads a finish reason need not know which provider answered."""
    decoder = MessagesDecoder()
    decoder.feed(event("message_delta", delta={"stop_reason": said}))
    assert decoder.end().ended
    assert decoder.finish_reason == reason


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (event("error", error={"type": "overloaded_error", "message": "Busy."}), "upstream_server_error"),
        (event("error", error={"type": "api_error", "message": "Oops."}), "upstream_error"),
        (event("error"), "upstream_error"),
        (b"data: {nope\n\n", "upstream_invalid"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_anthropics_stream(bad: bytes, code: str) -> None:
    """Text comes first, then the fault with its code."""
    decoder = MessagesDecoder()
    part = decoder.feed(start(0, "text", text="kept") + bad)
    assert part.text == "kept"
    with pytest.raises(UpstreamError) as caught:
        decoder.end()
    assert caught.value.code == code


def test_an_answer_that_ends_without_a_reason_is_incomplete() -> None:
    """A body that ends in the middle is a fault, and its tokens so far are no usage."""
    decoder = MessagesDecoder()
    decoder.feed(WHOLE.partition(b"event: message_delta")[0])
    assert decoder.usage is None
    with pytest.raises(UpstreamError) as caught:
        decoder.end()
    assert caught.value.code == "upstream_incomplete"


def test_a_conversation_may_begin_with_nothing_said() -> None:
    """Messages without words are left out: the API refuses empty ones."""
    assert to_messages([Message("system", " "), Message("user", "")]) == ("", [])
