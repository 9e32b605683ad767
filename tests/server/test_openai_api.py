"""OpenAI's own client, pointed at Halt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionToolParam

from halt.testing.fake_openai import FakeOpenAI
from tests.support import raw_server
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    HaltServer,
    StartHalt,
    new_id,
    request_record,
)
from tests.support.http_client import HttpResponse
from tests.support.simple_model_server import reply_with, serving
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PATH = "/v1/chat/completions"

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say how warm it is in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def numbers(n: int) -> str:
    """The text of the model `count`."""
    return "".join(f"{i} " for i in range(n))


def user_message(prompt: str = "Hello") -> Any:
    """A list of one user message."""
    return [{"role": "user", "content": prompt}]


@pytest.fixture(scope="module")
def llm(halt: HaltServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client with Halt's address."""
    with openai.OpenAI(base_url=f"{halt.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def one_stream_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with one place, a token, no retries and a short heartbeat."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_RETRIES": "0",
            "HALT_MAX_STREAMS": "1",
            "HALT_MAX_BODY_BYTES": "8192",
            "HALT_HEARTBEAT": "0.2",
            "HALT_TOKEN": "open-sesame",
        }
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def one_stream_llm(one_stream_server: HaltServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client of `one_stream_server`; its key is the access token."""
    with openai.OpenAI(
        base_url=f"{one_stream_server.url}/v1", api_key="open-sesame", max_retries=0
    ) as client:
        yield client


# --- answers --------------------------------------------------------------------------------------


def test_stream_has_role_text_finish_reason_and_usage(llm: openai.OpenAI) -> None:
    """OpenAI's client gets role, text, finish reason, and usage on request."""
    with llm.chat.completions.create(
        model="count?n=50&gap_ms=1",
        messages=user_message(),
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        stream_id = stream.response.headers["x-stream-id"]
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        chunks = list(stream)
    *answer, last, usage = chunks
    assert {c.id for c in chunks} == {f"chatcmpl-{stream_id}"}
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert {c.model for c in chunks} == {"count?n=50&gap_ms=1"}
    assert answer[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in answer) == numbers(50)
    assert {c.choices[0].finish_reason for c in answer} == {None}
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 50
    fields_of_halt = last.model_extra
    assert fields_of_halt is not None
    assert fields_of_halt["halt"]["state"] == "done"
    assert fields_of_halt["halt"]["metrics"]["tokens"] == 50


def test_stream_without_stream_options_has_no_usage_chunk(llm: openai.OpenAI) -> None:
    """Without stream_options every chunk has a choice."""
    with llm.chat.completions.create(
        model="count?n=3", messages=user_message(), stream=True
    ) as stream:
        chunks = list(stream)
    assert all(len(c.choices) == 1 for c in chunks)
    assert all(c.usage is None for c in chunks)


def test_whole_answer_has_text_and_usage(llm: openai.OpenAI) -> None:
    """OpenAI's client gets the same answer in one response, with usage."""
    raw = llm.chat.completions.with_raw_response.create(model="count?n=50", messages=user_message())
    answer = raw.parse()
    assert answer.id == f"chatcmpl-{raw.headers['x-stream-id']}"
    assert (answer.object, answer.model) == ("chat.completion", "count?n=50")
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert choice.message.content == numbers(50)
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 50


def test_whole_answers_share_a_connection(
    one_stream_llm: openai.OpenAI, shared_fake: FakeOpenAI
) -> None:
    """A whole answer that has arrived gives its place back, and its connection serves the next
    request.
    """
    prompts = [new_id() for _ in range(4)]
    for prompt in prompts:
        one_stream_llm.chat.completions.create(
            model="count?n=5&gap_ms=20", messages=user_message(prompt)
        )
    assert len({request_record(shared_fake, prompt).connection for prompt in prompts}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_sent_as_reasoning_content(llm: openai.OpenAI, stream: bool) -> None:
    """Reasoning is in `reasoning_content`, as in DeepSeek's API, and not in the text."""
    model = "reasoning?thoughts=5&n=5"
    thoughts = "".join(f"thought{i} " for i in range(5))
    if stream:
        with llm.chat.completions.create(
            model=model, messages=user_message(), stream=True
        ) as chunks:
            deltas = [c.choices[0].delta for c in chunks]
        assert "".join(d.content or "" for d in deltas) == numbers(5)
        assert (
            "".join((d.model_extra or {}).get("reasoning_content", "") for d in deltas) == thoughts
        )
    else:
        message = (
            llm.chat.completions.create(model=model, messages=user_message()).choices[0].message
        )
        assert message.content == numbers(5)
        assert message.model_extra is not None
        assert message.model_extra["reasoning_content"] == thoughts


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_without_a_start_tag_is_separated(llm: openai.OpenAI, stream: bool) -> None:
    """Reasoning without a start tag has its own field in a whole answer; in a stream it is a
    paragraph of text.
    """
    model = "shape?name=think_end"
    if stream:
        with llm.chat.completions.create(
            model=model, messages=user_message(), stream=True
        ) as chunks:
            deltas = [c.choices[0].delta for c in chunks if c.choices]
        assert "".join(d.content or "" for d in deltas) == "hm\n\nHello"
    else:
        message = (
            llm.chat.completions.create(model=model, messages=user_message()).choices[0].message
        )
        assert message.content == "Hello"
        assert message.model_extra is not None
        assert message.model_extra["reasoning_content"] == "hm"


def test_max_tokens_gives_finish_reason_length(llm: openai.OpenAI) -> None:
    """An answer that max_tokens cut has the finish reason "length"."""
    answer = llm.chat.completions.create(model="length?n=3", messages=user_message())
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_finish_reason_is_sent_as_length(llm: openai.OpenAI, stream: bool) -> None:
    """An unknown finish reason becomes "length"; the original one is beside it."""
    create: Callable[..., Any] = llm.chat.completions.create
    model = "length?n=3&reason=insufficient_system_resource"
    answer = create(model=model, messages=user_message(), stream=stream)
    last = list(answer)[-1] if stream else answer
    report = last.model_extra["halt"]
    assert (last.choices[0].finish_reason, report["state"]) == ("length", "done")
    assert report["finish_reason"] == "insufficient_system_resource"


# --- tools ----------------------------------------------------------------------------------------


def test_streamed_tool_calls_are_assembled_by_the_client(llm: openai.OpenAI) -> None:
    """OpenAI's helper assembles the fragments of parallel calls, none twice."""
    with llm.chat.completions.stream(
        model="asks_tools?n=2", messages=user_message(), tools=[WEATHER]
    ) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == numbers(2)
    calls = choice.message.tool_calls or []
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        ("call_0", "weather", {"city": "town 0"}),
        ("call_1", "weather", {"city": "town 1"}),
    ]


def test_tool_conversation_continues_with_the_answer(
    llm: openai.OpenAI, shared_fake: FakeOpenAI
) -> None:
    """The answer's message can be sent back unchanged, followed by the results."""
    prompt = new_id()
    messages = user_message(prompt)
    first_answer = llm.chat.completions.create(
        model="asks_tools", messages=messages, tools=[WEATHER]
    )
    message = first_answer.choices[0].message
    assert message.content is None
    assert [c.id for c in message.tool_calls or []] == ["call_0", "call_1"]
    messages.append(message)
    for call in message.tool_calls or []:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees"})
    answer = llm.chat.completions.create(model="asks_tools", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == numbers(3)
    sent = request_record(shared_fake, prompt, nth=1).body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"][1]["function"]["arguments"] == '{"city": "town 1"}'


GREET: Any = {"name": "weather", "description": "Say how warm it is.", "parameters": {}}


def test_functions_are_sent_as_tools(llm: openai.OpenAI, shared_fake: FakeOpenAI) -> None:
    """Old `functions` are sent as tools; the client gets the first call as `function_call`."""
    prompt = new_id()
    create: Callable[..., Any] = llm.chat.completions.create
    answer = create(
        model="asks_tools?calls=2",
        messages=user_message(prompt),
        functions=[GREET],
        function_call={"name": "weather"},
    )
    sent = request_record(shared_fake, prompt).body
    assert sent["tools"] == [{"type": "function", "function": GREET}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert not {"functions", "function_call"} & sent.keys()
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call"
    call = choice.message.function_call
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "town 0"})
    assert choice.message.tool_calls is None


def test_streamed_function_call_has_name_and_arguments(llm: openai.OpenAI) -> None:
    """A streamed function call has its name once, then the first call's arguments and the right
    finish reason.
    """
    create: Callable[..., Any] = llm.chat.completions.create
    with create(
        model="asks_tools?calls=2&n=2", messages=user_message(), functions=[GREET], stream=True
    ) as stream:
        choices = [chunk.choices[0] for chunk in stream]
    calls = [c.delta.function_call for c in choices if c.delta.function_call]
    assert [call.name for call in calls if call.name] == ["weather"]
    assert len(calls) > 1
    assert json.loads("".join(call.arguments or "" for call in calls)) == {"city": "town 0"}
    assert not any(c.delta.tool_calls for c in choices)
    assert "".join(c.delta.content or "" for c in choices) == numbers(2)
    assert choices[-1].finish_reason == "function_call"


def test_function_conversation_continues_as_tools(
    llm: openai.OpenAI, shared_fake: FakeOpenAI
) -> None:
    """Function calls and their results are sent upstream as tools, with matching IDs."""
    prompt = new_id()
    create: Callable[..., Any] = llm.chat.completions.create
    messages: list[Any] = user_message(prompt)
    for degrees in ("21", "22"):
        call = {"name": "weather", "arguments": degrees}
        messages.append({"role": "assistant", "content": None, "function_call": call})
        messages.append({"role": "function", "name": "weather", "content": degrees})
    messages.append({"role": "assistant", "content": "Warm.", "function_call": None})
    messages.append({"role": "user", "content": "Thanks."})
    answer = create(model="echo", messages=messages, functions=[GREET], function_call="auto")
    assert answer.choices[0].finish_reason == "stop"
    (sent,) = [request.body for request in shared_fake.requests if prompt in str(request.body)]
    assert sent["tool_choice"] == "auto"
    rounds = sent["messages"][1:5]
    assert [m["role"] for m in rounds] == ["assistant", "tool"] * 2
    for call_message, result_message, degrees in ((*rounds[:2], "21"), (*rounds[2:], "22")):
        (tool_call,) = call_message["tool_calls"]
        assert tool_call["function"] == {"name": "weather", "arguments": degrees}
        assert (result_message["tool_call_id"], result_message["content"]) == (
            tool_call["id"],
            degrees,
        )
        assert "name" not in result_message
    assert rounds[0]["tool_calls"][0]["id"] != rounds[2]["tool_calls"][0]["id"]
    assert "function_call" not in str(sent["messages"])


# --- what reaches the model's server --------------------------------------------------------------


def test_unknown_options_are_passed_on(llm: openai.OpenAI, shared_fake: FakeOpenAI) -> None:
    """Known and unknown options are sent under their names; Halt's own options are not."""
    prompt = new_id()
    llm.chat.completions.create(
        model="echo",
        messages=user_message(prompt),
        temperature=0.5,
        max_tokens=7,
        user="anna",
        logit_bias={"50256": -100},
        extra_body={"top_k": 40, "chat_template_kwargs": {"enable_thinking": False}},
    )
    sent = request_record(shared_fake, prompt).body
    expected = {
        "temperature": 0.5,
        "max_tokens": 7,
        "user": "anna",
        "logit_bias": {"50256": -100},
        "top_k": 40,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
    }
    assert {name: sent.get(name) for name in expected} == expected
    assert set(sent) == {*expected, "model", "messages", "stream_options"}


USER = {"role": "user", "content": "Go on."}
CALL = {"id": "c1", "type": "function", "function": {"name": "x", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"ttl": 1}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:,"}}]},
        {"role": "user", "content": [{"type": "input_file", "file_id": "f"}, "x", 5, {}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]},
        {"role": "user", "content": [{"type": "file", "file": {"size": 5}}]},
        {"role": "user", "content": []},
        {"role": "user", "content": ""},
        {"role": "user", "content": None},
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "user"},
        {"role": "user", "content": "x", "id": "m1", "timestamp": 1, "name": "An na"},
        {"role": "developer", "content": "x", "cache_control": {"type": "ephemeral"}},
        {"role": "robot", "content": "x", "self": 1, "role_": 2},
        {"role": "function", "name": "x", "content": "1"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "Once", "prefix": True},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "assistant", "content": "x", "reasoning_details": [{"text": "hm"}], "partial": 1},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]},
        {"role": "assistant", "tool_calls": [CALL | {"extra_content": {"google": {"s": "x"}}}]},
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "x"}}, 1]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a.b/c"}}]},
        {"role": "assistant", "content": "x", "annotations": [{"type": "x"}], "refusal": "No."},
    ],
    ids=str,
)
def test_unknown_message_fields_are_passed_on(
    halt: HaltServer, shared_fake: FakeOpenAI, message: dict[str, Any]
) -> None:
    """Fields, parts and roles that Halt does not know reach the model's server."""
    prompt = new_id()
    last = {**USER, "content": prompt}
    answer = halt.client().post(PATH, {"model": "echo", "messages": [message, last]})
    assert answer.status == 200, answer
    assert request_record(shared_fake, prompt).body["messages"] == [message, last]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"max_tokens": "100", "max_completion_tokens": 0},
        {"temperature": 2.5, "top_p": 0, "presence_penalty": 7, "frequency_penalty": "0.5"},
        {"seed": "lucky", "stop": ["a"] * 20, "reasoning_effort": {"budget": 5}},
        {"seed": 2**64, "stop": 5, "parallel_tool_calls": "auto"},
        {"tools": [{"type": "function", "function": {"name": "admin.tools/list", "cache": 1}}]},
        {"tools": [{"type": "web_search"}, {"type": "custom", "custom": {"name": "x"}}]},
        {"tools": [{"type": "mcp", "server_url": "https://a.example"}, {"googleSearch": {}}]},
        {"tools": {"web": True}, "tool_choice": ["x"]},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}, "response_format": "json"},
        {"response_format": {"type": "grammar", "grammar": "x"}, "logprobs": True},
        {"modalities": ["text", "image"], "store": None, "metadata": {"a": 1}},
        {"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"function_call": {"name": "f"}},
        {"functions": "all", "extra_body": {"a": 1}, "id": "mine"},
    ],
    ids=str,
)
def test_unusual_values_are_passed_on(
    halt: HaltServer, shared_fake: FakeOpenAI, fields: dict[str, Any]
) -> None:
    """Values that Halt's own API refuses reach the model's server here."""
    prompt = new_id()
    answer = halt.client().post(PATH, {"model": "echo", "messages": user_message(prompt), **fields})
    assert answer.status == 200, answer
    sent = request_record(shared_fake, prompt).body
    assert {name: sent.get(name, "none") for name in fields} == fields


def test_answers_have_the_fields_of_openai(halt: HaltServer) -> None:
    """A whole answer and each chunk have exactly OpenAI's fields, and Halt's own in `halt`."""
    request = {"model": "count?n=2", "messages": user_message()}
    whole = halt.client().post(PATH, request).json
    assert whole.keys() == {"id", "object", "created", "model", "choices", "usage", "halt"}
    (choice,) = whole["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"] == {"role": "assistant", "content": numbers(2), "refusal": None}
    data = halt.client().post(PATH, {**request, "stream": True}).body.decode()
    chunks = [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == numbers(2)  # in one chunk or in two, as the tokens arrive
    for chunk in chunks:
        assert chunk.keys() - {"halt"} == {"id", "object", "created", "model", "choices"}
        (choice,) = chunk["choices"]
        assert choice.keys() == {"index", "delta", "logprobs", "finish_reason"}
        assert choice["delta"].keys() <= {"role", "content"}


def test_request_without_a_model_uses_the_default(halt: HaltServer) -> None:
    """A request without a model is answered by the default one, as llama.cpp does."""
    answer = halt.client().post(PATH, {"model": "", "messages": user_message()})
    assert answer.status == 200
    assert answer.json["model"]


def test_stream_options_are_passed_on(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """Usage is always requested upstream; the client gets its chunk only on request."""
    prompt = new_id()
    options = {"include_obfuscation": False}
    body = {"model": "count?n=2", "messages": user_message(prompt), "stream": True}
    with halt.client().stream("POST", PATH, body | {"stream_options": options}) as events:
        events.to_end()
    assert request_record(shared_fake, prompt).body["stream_options"] == {
        **options,
        "include_usage": True,
    }
    assert all(m.json["choices"] for m in events.seen[:-1])


@pytest.mark.parametrize(
    ("functions", "choice", "expected_choice"),
    [
        ([{"name": "a.b"}], {"name": "a.b"}, {"type": "function", "function": {"name": "a.b"}}),
        ([{"name": "f"}], "perhaps", "perhaps"),
        ([{"title": "f"}], None, None),
    ],
)
def test_functions_of_any_shape_are_passed_on(
    halt: HaltServer, shared_fake: FakeOpenAI, functions: Any, choice: Any, expected_choice: Any
) -> None:
    """Functions of any shape are passed on: the model's server decides whether they are valid."""
    prompt = new_id()
    fields = {"functions": functions, "function_call": choice}
    answer = halt.client().post(PATH, {"model": "echo", "messages": user_message(prompt), **fields})
    assert answer.status == 200, answer
    sent = request_record(shared_fake, prompt).body
    assert sent["tools"] == [{"type": "function", "function": function} for function in functions]
    assert sent.get("tool_choice") == expected_choice


SIGNED = {"extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}
SOURCES = ["https://a.example/one", "https://a.example/two"]
PICTURES = [{"image_url": {"url": f"data:,{number}"}} for number in range(2)]
UNKNOWN_FIELDS = [{"token": word, "logprob": -0.5} for word in ("Paris", "[1]")]


@pytest.mark.parametrize("logprobs", [True, False])
def test_unknown_chunk_fields_keep_their_place(halt: HaltServer, logprobs: bool) -> None:
    """Unknown fields of chunk, choice and delta keep their place; Halt's own fields keep their
    values.
    """
    body = {"model": "beside", "messages": user_message(), "stream": True, "logprobs": logprobs}
    with halt.client().stream("POST", PATH, body) as events:
        events.to_end()
    chunks = [message.json for message in events.seen[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks]
    deltas = [choice["delta"] for choice in choices]
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{events.id}"}
    assert [c["citations"] for c in chunks if "citations" in c] == [SOURCES[:1], SOURCES]
    assert [c["halt"]["state"] for c in chunks if "halt" in c] == ["done"]
    assert [c["verdict"] for c in choices if "verdict" in c] == [{"harm": "none"}]
    unknown_fields = [token for c in choices if c["logprobs"] for token in c["logprobs"]["content"]]
    assert unknown_fields == (UNKNOWN_FIELDS if logprobs else [])
    assert [image for d in deltas for image in d.get("images", ())] == PICTURES
    assert [d["reasoning_signature"] for d in deltas if "reasoning_signature" in d] == ["s"]
    call, *rest = [tool_call for d in deltas for tool_call in d.get("tool_calls", ())]
    assert {name: call.get(name) for name in SIGNED} == SIGNED
    pieces = [tool_call["function"]["arguments"] for tool_call in (call, *rest)]
    assert "".join(pieces) == "{}"
    assert "".join(d.get("content") or "" for d in deltas) == "Paris[1]"


def test_whole_answer_merges_unknown_chunk_fields(halt: HaltServer) -> None:
    """Unknown lists in message and choice are joined; beside the choices the last value counts."""
    body = {"model": "beside", "messages": user_message(), "logprobs": True, "top_logprobs": 2}
    answer = halt.client().post(PATH, body).json
    (choice,) = answer["choices"]
    message = choice["message"]
    assert answer["citations"] == SOURCES
    assert answer["halt"]["state"] == "done"
    assert (choice["verdict"], choice["logprobs"]) == (
        {"harm": "none"},
        {"content": UNKNOWN_FIELDS},
    )
    assert (message["content"], message["images"]) == ("Paris[1]", PICTURES)
    assert message["reasoning_signature"] == "s"
    assert message["tool_calls"][0]["extra_content"] == SIGNED["extra_content"]


def test_unknown_chunk_fields_are_events(halt: HaltServer) -> None:
    """Unknown chunk fields are events of Halt's own protocol, also in a replay."""
    client = halt.client()
    stream = client.chat("beside").to_end()
    for reader in (stream, client.follow(stream.id).to_end()):
        events = [message.json for message in reader.seen[:-1]]
        extras = [event for event in events if event["type"] == "extra"]
        assert [image for e in extras for image in e["delta"].get("images", ())] == PICTURES
        assert [e["chunk"]["citations"] for e in extras if "citations" in e["chunk"]][-1] == SOURCES
        (call,) = [event for event in events if event["type"] == "tool_call"]
        assert call["extra"] == SIGNED
        assert {extra["content"] for extra in extras} == {""}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_sent_back_to_the_upstream(
    halt: HaltServer, shared_fake: FakeOpenAI, field: str
) -> None:
    """Reasoning in a program's messages reaches servers such as DeepSeek and Gemini."""
    call = {**CALL, "extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}
    message = {"role": "assistant", "content": None, field: "hm, six", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    body = {"model": f"wants_back?field={field}", "messages": [*user_message(), message, result]}
    answer = halt.client().post(PATH, body)
    assert answer.status == 200, answer
    assert answer.json["choices"][0]["message"]["content"] == "The tools said: 42"


def test_reasoning_is_dropped_after_a_refusal(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """After one refusal later requests omit reasoning; other refused fields are an error."""
    model = f"wants_back?refuses=1&name={new_id()}"
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "mine": 1}
    for requests in (2, 1):
        prompt = new_id()
        messages = [message, *user_message(prompt)]
        answer = halt.client().post(PATH, {"model": model, "messages": messages})
        assert answer.status == 200, answer
        bodies = [request.body for request in shared_fake.requests if prompt in str(request.body)]
        assert len(bodies) == requests
        assert bodies[-1]["messages"][0] == {"role": "assistant", "content": "Hi", "mine": 1}
    refusing_model = f"wants_back?refuses=1&field=mine&name={new_id()}"
    refused = halt.client().post(
        PATH, {"model": refusing_model, "messages": [message, *user_message()]}
    )
    assert (refused.status, openai_error(refused)["code"]) == (400, "bad_request")
    assert "property 'mine' is unsupported" in openai_error(refused)["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": "x"}, "n"),
        ({"model": 5}, "model"),
        ({"on_disconnect": "dance"}, "on_disconnect"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
    ],
    ids=str,
)
def test_invalid_request_names_its_param(
    halt: HaltServer, fields: dict[str, Any], param: str
) -> None:
    """An invalid request gets 400 in OpenAI's shape with `param`, and none reaches the model."""
    refused = halt.client().post(PATH, {"model": "echo", "messages": user_message(), **fields})
    assert refused.status == 400, refused
    error = openai_error(refused)
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_body_that_is_no_object_is_refused(halt: HaltServer, body: bytes) -> None:
    """A body that is no JSON object gets 400, and the error names the body."""
    refused = halt.client().post(PATH, body)
    assert refused.status == 400
    assert openai_error(refused)["param"] == "body"


def openai_error(answer: HttpResponse) -> dict[str, Any]:
    """The error object, in OpenAI's shape."""
    error = answer.json["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# --- errors ---------------------------------------------------------------------------------------

FAULTS: list[tuple[str, int, str, type[openai.APIStatusError]]] = [
    ("400", 400, "bad_request", openai.BadRequestError),
    ("401", 502, "unauthorized", openai.InternalServerError),
    ("403", 502, "region_not_supported", openai.InternalServerError),
    ("404", 404, "model_not_found", openai.NotFoundError),
    ("429?retry_after=17", 429, "rate_limit_exceeded", openai.RateLimitError),
    ("500", 502, "upstream_server_error", openai.InternalServerError),
    ("context", 400, "context_length_exceeded", openai.BadRequestError),
    ("drop?n=0", 502, "upstream_dropped", openai.InternalServerError),
    ("error_in_stream?n=0", 502, "upstream_error", openai.InternalServerError),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_fault_before_the_first_token_has_its_status(
    one_stream_llm: openai.OpenAI,
    fault: tuple[str, int, str, type[openai.APIStatusError]],
    stream: bool,
) -> None:
    """A fault before the first token raises the client's exception for its status; Retry-After is
    passed on.
    """
    model, status, code, kind = fault
    create: Callable[..., Any] = one_stream_llm.chat.completions.create
    with pytest.raises(kind) as raised:
        create(model=model, messages=user_message(), stream=stream)
    assert raised.value.status_code == status
    assert raised.value.code == code
    headers: httpx2.Headers = raised.value.response.headers
    assert headers["x-stream-id"]
    assert headers.get("retry-after") == ("17" if status == 429 else None)
    retryable = status == 429 or code.startswith("upstream_")
    assert headers.get("x-should-retry") == (None if retryable else "false")


def test_fault_in_mid_stream_is_an_error_object(one_stream_llm: openai.OpenAI) -> None:
    """A fault in mid-stream ends the stream by an error object after the text so far, without
    [DONE].
    """
    texts: list[str] = []
    with one_stream_llm.chat.completions.create(
        model="error_in_stream?n=5&gap_ms=10", messages=user_message(), stream=True
    ) as stream:
        pieces = (chunk.choices[0].delta.content or "" for chunk in stream)
        with pytest.raises(openai.APIError) as raised:
            texts.extend(pieces)
    assert "".join(texts) == numbers(5)
    assert raised.value.code == "upstream_error"
    assert raised.value.type == "server_error"


def test_fault_in_a_whole_answer_has_its_status(
    one_stream_server: HaltServer, one_stream_llm: openai.OpenAI
) -> None:
    """A fault in a whole answer is an error, never a partial answer; its text can be read by the
    stream's ID.
    """
    with pytest.raises(openai.InternalServerError) as raised:
        one_stream_llm.chat.completions.create(model="drop?n=5&gap_ms=10", messages=user_message())
    assert raised.value.status_code == 502
    stream_id = raised.value.response.headers["x-stream-id"]
    client = one_stream_server.client(Authorization="Bearer open-sesame")
    assert client.follow(stream_id).to_end().text == numbers(5)


def test_silent_model_delays_headers_by_one_heartbeat(one_stream_server: HaltServer) -> None:
    """The headers of a silent model's stream come after HALT_HEARTBEAT, then comments; its error
    comes inside it.
    """
    client = one_stream_server.client(Authorization="Bearer open-sesame")
    body = {"model": "silent_first_token", "messages": user_message(), "stream": True}
    with client.stream("POST", PATH, body) as events:
        assert events.until_comment(2).status == 200
        assert client.stop(events.id).json["status"] == "stopped"
        events.to_end()
    assert [m.json["choices"][0]["finish_reason"] for m in events.seen[:-1]] == [None, "stop"]


def test_server_errors_have_the_openai_shape(one_stream_server: HaltServer) -> None:
    """Errors 401, 403, 404, 405 and 413 have OpenAI's shape."""
    program = one_stream_server.client(Authorization="Bearer open-sesame")
    body = {"model": "echo", "messages": user_message()}
    foreign_request = program.post(PATH, body, Sec_Fetch_Site="cross-site")
    too_large = program.post(PATH, {"model": "echo", "messages": user_message("x" * 9000)})
    for answer, status, code in (
        (one_stream_server.client().post(PATH, body), 401, "invalid_api_key"),
        (
            one_stream_server.client(Authorization="Bearer wrong").post(PATH, body),
            401,
            "invalid_api_key",
        ),
        (foreign_request, 403, "foreign_site"),
        (program.get("/v1/nothing"), 404, "unknown_path"),
        (program.get(PATH), 405, "method_not_allowed"),
        (too_large, 413, "too_large"),
    ):
        assert (answer.status, openai_error(answer)["code"]) == (status, code)
    assert set(program.get(PATH).headers["allow"].split(", ")) == {"POST", "OPTIONS"}


PATHS = "GET /v1/models, GET /v1/models/ID, POST /v1/chat/completions"


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/responses", "/v1/", "/v1", "/v1/v1/models", "/v1/chat"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path_lists_the_known_ones(halt: HaltServer, method: str, path: str) -> None:
    """An unknown path gets a 404 with its own code, which no client takes for a missing model."""
    refused = halt.client().request(method, path, headers={"Accept": "text/html"})
    error = openai_error(refused)
    assert (refused.status, error["code"]) == (404, "unknown_path")
    assert error["message"].startswith(f"There is no route {path}. Routes: {PATHS}. (request ID:")


def test_unknown_model_has_the_code_of_openai(halt: HaltServer) -> None:
    """An unknown model has the code that clients know, and the address of the list."""
    error = openai_error(halt.client().get("/v1/models/no/such-model"))
    assert error["code"] == "model_not_found"
    assert "GET /v1/models" in error["message"]


def test_request_id_is_known_to_the_openai_client(one_stream_llm: openai.OpenAI) -> None:
    """`_request_id` of an answer and `request_id` of an error are set; the message has the ID."""
    answer = one_stream_llm.chat.completions.create(model="count?n=1", messages=user_message())
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")
    headers = {"X-Request-Id": "mine-1"}
    with pytest.raises(openai.BadRequestError) as raised:
        one_stream_llm.chat.completions.create(
            model="400", messages=user_message(), extra_headers=headers
        )
    assert raised.value.request_id == "mine-1"
    assert raised.value.message.count("(request ID: mine-1)") == 1
    with one_stream_llm.chat.completions.create(
        model="error_in_stream?n=5&gap_ms=10",
        messages=user_message(),
        stream=True,
        extra_headers=headers,
    ) as stream:
        assert stream.response.headers["x-request-id"] == "mine-1"
        with pytest.raises(openai.APIError, match=r" \(request ID: mine-1\)$"):
            list(stream)


def test_request_beyond_the_limit_has_retry_after(
    one_stream_server: HaltServer, one_stream_llm: openai.OpenAI
) -> None:
    """A request beyond the limit gets 503 with Retry-After; a client that leaves makes room."""
    with one_stream_llm.chat.completions.create(
        model="stall?n=1", messages=user_message(), stream=True
    ) as stream:
        next(stream)
        with pytest.raises(openai.InternalServerError) as raised:
            one_stream_llm.chat.completions.create(model="count?n=1", messages=user_message())
    assert raised.value.status_code == 503
    assert raised.value.code == "at_capacity"
    assert int(raised.value.response.headers["retry-after"]) >= 1
    program = one_stream_server.client(Authorization="Bearer open-sesame")
    wait_until(lambda: program.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)
    answer = one_stream_llm.chat.completions.create(model="count?n=1", messages=user_message())
    assert answer.choices[0].message.content == "0 "


# --- Stop -----------------------------------------------------------------------------------------


def read_until(stream: openai.Stream[ChatCompletionChunk], text: str) -> None:
    """Read until the received text contains `text`."""
    received = ""
    while text not in received:
        received += next(stream).choices[0].delta.content or ""


def test_closed_client_stream_stops_the_model_at_once(
    llm: openai.OpenAI, shared_fake: FakeOpenAI
) -> None:
    """A stream that OpenAI's client closes stops the model at once, without the grace."""
    prompt = new_id()
    with llm.chat.completions.create(
        model="count?n=100000&gap_ms=5", messages=user_message(prompt), stream=True
    ) as stream:
        read_until(stream, "5 ")
    assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)


@pytest.mark.parametrize("stream", [False, True])
def test_client_gone_during_silence_stops_the_model(
    halt: HaltServer, shared_fake: FakeOpenAI, stream: bool
) -> None:
    """A client that leaves before the first token stops the model, streamed or not."""
    client, prompt = halt.client(), new_id()
    connection = client.connect()
    body = {"model": "silent_first_token", "messages": user_message(prompt), "stream": stream}
    client.send(connection, "POST", PATH, body)
    record = request_record(shared_fake, prompt)
    connection.close()
    assert record.closed.wait(RECORD_TIMEOUT)


def test_run_with_another_reader_continues(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A run with another reader ends when its last reader leaves."""
    client, prompt = halt.client(), new_id()
    body = {"model": "stall?n=3", "messages": user_message(prompt), "stream": True}
    first = client.stream("POST", PATH, body)
    first.next()
    with client.follow(first.id).until_text("2 ") as second:
        first.close()
        wait_until(lambda: client.get("/healthz").json["open_streams"] >= 1, SERVER_TIMEOUT)
        record = request_record(shared_fake, prompt)
        record.release()
        assert second.to_end().terminal["type"] == "done"
    wait_until(record.finished.is_set, SERVER_TIMEOUT)


@pytest.mark.parametrize("stream", [False, True])
def test_stream_id_header_chooses_the_id_for_stop(
    halt: HaltServer, llm: openai.OpenAI, shared_fake: FakeOpenAI, stream: bool
) -> None:
    """X-Stream-Id chooses the ID; a stopped answer ends in order and says so."""
    stream_id, prompt = new_id(), new_id()
    events = BackgroundCompletion(llm, prompt, stream_id, stream=stream)
    request_record(shared_fake, prompt).wait_tokens(3, RECORD_TIMEOUT)
    wait_until(
        lambda: numbers(3) in halt.client().follow(stream_id).until_text("2 ").text, SERVER_TIMEOUT
    )
    receipt = halt.client().stop(stream_id)
    assert (receipt.json["status"], receipt.json["upstream"]) == ("stopped", "closed")
    text, finish, report = events.finish()
    assert (text, finish) == (numbers(3), "stop")
    assert (report["state"], report["reason"], report["id"]) == ("cancelled", "stop", stream_id)
    repeated = halt.client().post(PATH, {"messages": user_message()}, X_Stream_Id=stream_id)
    assert (repeated.status, openai_error(repeated)["code"]) == (409, "stream_in_use")
    invalid = halt.client().post(PATH, {"messages": user_message()}, X_Stream_Id="../x")
    assert (invalid.status, openai_error(invalid)["param"]) == (400, "X-Stream-Id")


class BackgroundCompletion:
    """A request for a completion, in its own thread."""

    def __init__(self, llm: openai.OpenAI, prompt: str, stream_id: str, *, stream: bool) -> None:
        self._create: Callable[..., Any] = llm.chat.completions.create
        self._fields = {
            "model": "stall?n=3",
            "messages": user_message(prompt),
            "extra_headers": {"X-Stream-Id": stream_id},
            "stream": stream,
        }
        self._result: tuple[str, str, dict[str, Any]] = ("", "", {})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        answer = self._create(**self._fields)
        if not self._fields["stream"]:
            choice = answer.choices[0]
            self._result = choice.message.content, choice.finish_reason, answer.model_extra["halt"]
            return
        chunks = list(answer)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        self._result = text, chunks[-1].choices[0].finish_reason, chunks[-1].model_extra["halt"]

    def finish(self) -> tuple[str, str, dict[str, Any]]:
        """Wait for the end; return the text, the finish reason and Halt's report of the run."""
        self._thread.join(RECORD_TIMEOUT)
        assert not self._thread.is_alive()
        return self._result


# --- models ---------------------------------------------------------------------------------------


def test_models_are_listed_and_found_by_name(llm: openai.OpenAI) -> None:
    """All models of the model's server are listed, and each is found by its name."""
    names = [model.id for model in llm.models.list()]
    assert names[0] == "echo"
    assert "count" in names
    assert llm.models.retrieve("count").id == "count"
    with pytest.raises(openai.NotFoundError) as raised:
        llm.models.retrieve("org/nothing")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nnot found",
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"a": 1}',
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"data": []}',
        b"HTTP/1.1 405 No\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno",
    ],
    ids=["status 404", "no data field", "empty list", "status 405"],
)
def test_models_without_a_list_are_the_configured_one(
    start_halt: StartHalt, response: bytes
) -> None:
    """Without a list /v1/models has the configured model, and the page reports it."""
    with raw_server.RawServer(raw_server.answering(*[response] * 9)) as server:
        client = start_halt(server.url, HALT_MODEL="m-1").client()
        assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["m-1"]
        assert client.get("/v1/models/m-1").status == 200
        assert client.get("/v1/models/m-2").status == 404
        page = client.get("/models").body.decode()
        assert 'label="The server provides no list of models."' in page
        assert "Default: m-1" in page


def test_names_that_no_request_may_have_are_not_listed(start_halt: StartHalt) -> None:
    """A hostile list cannot make the response long, nor reorder the text around a name."""
    names = ["good", "x" * 201, "y" * 1_000_000, "\u202emorf", "two\nlines"]
    with serving(reply_with({"data": [{"id": name} for name in names]})) as address:
        response = start_halt(address).client().get("/v1/models")
        assert [model["id"] for model in response.json["data"]] == ["good"]


def test_models_of_an_unreachable_server_are_an_error(start_halt: StartHalt) -> None:
    """A list of models that cannot be read is an error with the status of its fault."""
    refused = start_halt("http://127.0.0.1:9/v1").client().get("/v1/models")
    assert (refused.status, openai_error(refused)["code"]) == (502, "upstream_refused")
