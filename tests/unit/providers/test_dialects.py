"""Deviations of model servers from the OpenAI and Anthropic APIs, and how the decoders read them.

`play` feeds a decoder as a reply does. Each table is for one kind of deviation: the server's name
where it is known, what it sends, and the expected answer.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.events import Content, Delta, Extra, Reasoning, ToolCall, encode
from halt.errors import CODES, UpstreamError
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.chat_completions import ChatDecoder
from halt.providers.decoder import LINE_MAX, EventDecoder

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
DONE = b"data: [DONE]\n\n"


def js(value: Any) -> bytes:
    """JSON as most servers write it: half a character as an escape, NaN as a bare word."""
    return json.dumps(value).encode()


def data(value: Any) -> bytes:
    """An event; bytes stand for themselves."""
    return b"data: " + (value if isinstance(value, bytes) else js(value)) + b"\n\n"


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat completion; `more` are fields of the chunk."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {"choices": [choice], **more}


def text(content: Any) -> bytes:
    return data(chunk({"content": content}))


FINISH = data(chunk({}, "stop"))
END = FINISH + DONE
A, B = text("A"), text("B")


@dataclass
class Played:
    """What a stream came to."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    code: str | None = None
    message: str = ""
    reason: str | None = None
    usage: dict[str, Any] | None = None


def play(decoder: EventDecoder, pieces: Iterable[bytes]) -> Played:
    """Feed the pieces, then the end of the body, up to the end of the answer or a fault."""
    played, events = Played(), list[Delta]()
    try:
        for piece in pieces:
            part = decoder.feed(piece)
            events += part.events
            played.ended = part.ended
            if part.ended:
                break
        else:
            part = decoder.end()
            events += part.events
            played.ended = part.ended
            decoder.check()
    except UpstreamError as fault:
        played.code, played.message = fault.code, fault.message
    for event in events:
        encode(event)  # everything that is given out can be sent on
        if isinstance(event, Content):
            played.text += event.content
        elif isinstance(event, Reasoning):
            played.thought += event.text
        elif isinstance(event, ToolCall):
            played.calls.append((event.name, event.arguments))
        elif isinstance(event, Extra):
            levels = {"chunk": event.chunk, "choice": event.choice, "delta": event.delta}
            played.extras.append({name: fields for name, fields in levels.items() if fields})
    played.reason, played.usage = decoder.finish_reason, decoder.usage
    return played


def chat(*pieces: bytes) -> Played:
    return play(ChatDecoder(), pieces)


def every_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


# --- a whole answer instead of a stream -----------------------------------------------------------

MESSAGE = {"role": "assistant", "content": "Hello"}
ANSWER: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": USAGE,
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def answer(message: dict[str, Any], **choice: Any) -> bytes:
    return js(ANSWER | {"choices": [{"index": 0, "message": MESSAGE | message, **choice}]})


@pytest.mark.parametrize(
    "body",
    [
        js(ANSWER),
        js(ANSWER) + b"\n",
        b"\xef\xbb\xbf\r\n" + js(ANSWER),
        json.dumps(ANSWER, indent=2).encode(),
        json.dumps(ANSWER, indent="\t").replace("\n", "\r\n").encode() + b"\r\n",
        json.dumps(ANSWER, indent=0).encode(),
        b"data: " + js(ANSWER) + b"\n\n",
        b"data: " + js(ANSWER),
        b"data: " + json.dumps(ANSWER, indent=2).encode() + b"\n\n",
        js([ANSWER]),
        js(ANSWER | {"choices": [*ANSWER["choices"], {"index": 1, "message": {"content": "no"}}]}),
        js(ANSWER | {"choices": ANSWER["choices"][0]}),
        js(ANSWER | {"choices": {"0": ANSWER["choices"][0]}}),
        js({"code": 200, "message": "success", "data": ANSWER}),
        js({"output": ANSWER, "request_id": "x"}),
        answer({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}),
        answer({"tool_calls": None, "refusal": None, "annotations": []}, logprobs=None),
        js(ANSWER | {"choices": [{"message": "Hello", "finish_reason": "stop"}]}),
    ],
)  # fmt: skip
def test_whole_json_answer_is_read(body: bytes) -> None:
    """A JSON document in one piece, in any layout, is read where a stream was requested."""
    whole = chat(body)
    assert (whole.text, whole.ended, whole.code, whole.usage) == ("Hello", True, None, USAGE)
    assert chat(*every_byte(body)) == whole


def test_whole_json_answer_needs_no_finish_reason() -> None:
    """A complete JSON document is complete."""
    played = chat(js({"choices": [{"message": MESSAGE}]}))
    assert (played.text, played.ended, played.reason) == ("Hello", True, None)


def test_whole_json_answer_has_reasoning_calls_and_sources() -> None:
    """All fields of a message are read, as from a stream."""
    source = {"type": "url_citation", "url_citation": {"url": "https://a.example"}}
    message = {"reasoning_content": "hm", "tool_calls": [CALL], "annotations": [source]}
    played = chat(answer(message, finish_reason="tool_calls"))
    assert (played.thought, played.text, played.calls) == ("hm", "Hello", [("add", '{"a":1}')])
    assert (played.extras, played.reason) == ([{"delta": {"annotations": [source]}}], "tool_calls")


def test_lines_of_json_are_a_stream() -> None:
    """Ollama's own API sends a line for each piece, the last one with the counts."""
    lines = [
        {"model": "m", "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "lo"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True,
         "done_reason": "length", "prompt_eval_count": 5, "eval_count": 2, "total_duration": 7},
    ]  # fmt: skip
    stream = b"".join(js(line) + b"\n" for line in lines)
    played = chat(stream)
    assert (played.text, played.thought, played.reason) == ("Hello", "hm", "length")
    assert played.usage == {"prompt_tokens": 5, "completion_tokens": 2}
    assert chat(*every_byte(stream)) == played
    assert chat(js(lines[1]) + b"\n").code == "upstream_incomplete"


def test_chunks_without_data_field_are_a_stream() -> None:
    """Without `data:`, each line is a chunk."""
    played = chat(b"".join(piece[6:-1] for piece in (A, B, FINISH, DONE)))
    assert (played.text, played.reason, played.ended) == ("AB", "stop", True)


@pytest.mark.parametrize(
    "body",
    [
        js({"error": {"message": "Boom 7"}}),
        json.dumps({"error": {"message": "Boom 7"}}, indent=2).encode(),
        js([{"error": {"message": "Boom 7"}}]),
        js({"detail": "Boom 7"}),
        js({"base_resp": {"status_code": 1004, "status_msg": "Boom 7"}}),
        b"Boom 7",
        b"Boom 7\n",
        b'{"error":{"message":"Boom 7',
        b"data: " + js({"error": {"message": "Boom 7"}}),
        b"error: Boom 7\n",
    ],
)
def test_error_instead_of_a_stream_has_its_words(body: bytes) -> None:
    """An error instead of a stream has the server's words, in whatever format they came."""
    for pieces in ([body], every_byte(body)):
        played = chat(*pieces)
        assert played.code is not None
        assert "Boom 7" in played.message


@pytest.mark.parametrize("label", ["", "an answer of type 'text/plain'"])
@pytest.mark.parametrize(
    "page",
    [
        b"<!doctype html><title>Sign in</title><h1>Hello</h1>",
        b"\n<!-- x -->\n<HTML>\n<head>\n<title>Sign in</title>\n</head>\n<body>",
        b"<html><body>data: {}\n\nHello</body></html>",
    ],
)
def test_web_page_is_recognised_whatever_its_label_is(page: bytes, label: str) -> None:
    """An HTML page is upstream_web_page whatever its content type is."""
    decoder = ChatDecoder()
    decoder.label = label
    assert play(decoder, [page]).code == "upstream_web_page"
    assert chat(*every_byte(page)).code == "upstream_web_page"


def test_html_comments_without_a_page_take_bounded_time() -> None:
    """A line of HTML comments takes less than a second of CPU time."""
    start = time.process_time()
    chat(b"<!---->" * 1_000 + b"x\n")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "body",
    [
        data(b'{"error":' + b"[" * 900 + b"]" * 900 + b"}"),
        data(b'{"choices":[{"finish_reason":' + b'{"reason":' * 900 + b"1" + b"}" * 900 + b"}]}"),
    ],
)
def test_deeply_nested_values_end_no_answer(body: bytes) -> None:
    """An error or finish reason of 900 levels does not end the answer."""
    assert chat(body, data(chunk({"content": "a"})), DONE).text == "a"


def test_label_is_reported_for_a_body_without_words() -> None:
    """A body without an answer or words is reported by its content type."""
    decoder = ChatDecoder()
    decoder.label = "an answer of type 'image/png'"
    assert play(decoder, [b"\x89PNG\r\n\x1a\n\x00\x00"]).code == "upstream_invalid"
    assert chat(b"\x89PNG\r\n\x1a\n\x00\x00").code == "upstream_incomplete"


# --- noise ----------------------------------------------------------------------------------------

NOISE = [
    b"data:\n\n",
    b"data: \n\n",
    b"data\n\n",
    b"event: ping\ndata: ping\n\n",
    b"event: ping\n\n",
    b"event: heartbeat\ndata: {}\n\n",
    b"id: 7\n\n",
    b"retry: 3000\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b":\n",
    b"\n\n\n",
    b" \n\t\n",
    b"data: keep-alive\n\n",
    b"data: {}\n\ndata: []\n\ndata: null\n\ndata: 0\n\ndata: true\n\ndata: NaN\n\n",
    b'data: ""\n\ndata: "ping"\n\n',
    b'data: {"type": "ping"}\n\n',
    b'data: {"type": "heartbeat", "content": "x", "message": "alive"}\n\n',
    b'data: {"status": "processing", "message": "queued"}\n\n',
    b'data: {"object": "chat.completion.chunk", "choices": []}\n\n',
    b'data: {"code": 0, "message": "success"}\n\n',
    b"ping\n",
    b"keep-alive: 30\n\n",
    b"[2026-11-28 07:00:00] still thinking\n",
    b"{}\n",
    b'{"queue": {"position": 3}}\n',
    b'{\n  "queue": {\n    "position": 3\n  }\n}\n',
]


def test_stream_that_is_framed_twice_is_read() -> None:
    """A stream that a gateway has framed again, `data: data: {...}`, is read."""
    stream = (A + END).replace(b"data: ", b"data: data: ")
    played = chat(stream)
    assert (played.text, played.code, played.reason) == ("A", None, "stop")
    assert chat(*every_byte(stream)) == played


@pytest.mark.parametrize("noise", NOISE)
def test_noise_between_pieces_changes_nothing(noise: bytes) -> None:
    """Lines that are no piece of an answer count as signs of life, in any place."""
    stream = noise + A + noise + noise + B + noise + FINISH + noise + DONE + noise
    played = chat(stream)
    assert (played.text, played.ended, played.code, played.reason) == ("AB", True, None, "stop")
    assert played.extras == []
    assert chat(*every_byte(stream)) == played


@pytest.mark.parametrize(
    "behind",
    [
        b"data:  [DONE]\n\n",
        b"data: [done]\n\n",
        b'data: "[DONE]"\n\n',
        b"data: DONE\n\n",
        b"[DONE]\n",
        b'data: {"choices":[],"usa\n\ndata: [DONE]\n\n',
        b"data: {not json\n\n",
        b'data: {"error":{"message":"usage is not available"}}\n\n',
        b"event: error\ndata: {}\n\n",
        b"Internal Server Error\n",
        b"<html>\n",
        b'data: {"choices":[{"del',
        b"",
    ],
)
def test_anything_after_the_finish_reason_is_ignored(behind: bytes) -> None:
    """After the finish reason an answer is complete, and anything else is ignored."""
    played = chat(A + FINISH + behind)
    assert (played.text, played.ended, played.code, played.reason) == ("A", True, None, "stop")


@pytest.mark.parametrize("done_form", [b"[DONE]", b"  [DONE]", b"[done] ", b'"[DONE]"', b"DONE"])
def test_done_ends_the_answer_in_every_form(done_form: bytes) -> None:
    """The mark of the end is recognised in each form without a finish reason."""
    decoder = ChatDecoder()
    assert decoder.feed(A + b"data: " + done_form + b"\n\n").ended


@pytest.mark.parametrize("piece", [b"{not json", b'{"choices":[{"delta":{"content":"lost'])
def test_broken_piece_in_the_middle_is_a_fault(piece: bytes) -> None:
    """A broken piece in the middle, where text was lost, is a fault."""
    played = chat(A + data(piece) + B + END)
    assert (played.text, played.code) == ("A", "upstream_invalid")


def test_last_lines_of_a_broken_stream_are_in_the_message() -> None:
    """An incomplete answer's message has the lines after its last piece."""
    decoder = ChatDecoder()
    decoder.feed(b"ping\n\n" + A + b"worker 3 ran out of memory\n")
    with pytest.raises(UpstreamError) as caught:
        decoder.end()
    assert caught.value.code == "upstream_incomplete"
    assert caught.value.message.endswith("It said: worker 3 ran out of memory")
    assert chat(A + b"keep-alive\n").message == CODES["upstream_incomplete"][0]


def test_last_event_without_its_empty_line_is_read_if_needed() -> None:
    """The last event without its empty line is read if the answer is not finished without it."""
    assert chat(A + B[:-1]).text == "AB"
    assert chat(A + FINISH[:-2]).ended
    assert chat(A + FINISH + B[:-1]).text == "A"


# --- half a character -----------------------------------------------------------------------------

KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "content": lambda half: {"content": half},
    "reasoning_content": lambda half: {"reasoning_content": half},
    "part": lambda half: {"content": [{"type": "text", "text": half}]},
    "arguments": lambda half: {
        "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": half}}]
    },
}
HALVES = [
    (["hi \ud83d", "\ude00 yo"], "hi \U0001f600 yo"),
    (["hi \ud83d", " yo"], "hi \ufffd yo"),
    (["\ude00 yo"], "\ufffd yo"),
    (["hi \ud83d"], "hi \ufffd"),
    (["\ud83d", "\ud83d", "\ude00"], "\ufffd\U0001f600"),
    (["\ud83d", "", "\ude00"], "\U0001f600"),
    (["\ud83d\ude00"], "\U0001f600"),
    (["a\ud83d", "\udc80z"], "a\U0001f480z"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pieces", "expected"), HALVES)
def test_half_a_character_waits_for_its_other_half(
    kind: str, pieces: list[str], expected: str
) -> None:
    """In each kind of text a half joins the next piece; one that stays alone becomes U+FFFD."""
    stream = b"".join(data(chunk(KINDS[kind](piece))) for piece in pieces)
    played = chat(stream + END)
    received = played.text + played.thought + "".join(call[1] for call in played.calls)
    assert (received, played.code) == (expected, None)


def test_halves_in_reasoning_and_text_are_not_joined() -> None:
    """Half a character at the end of reasoning is not joined with a half at the text's
    beginning.
    """
    thought = data(chunk({"reasoning_content": "a\ud83d"}))
    played = chat(thought + text("\ude00b") + END)
    assert (played.thought, played.text) == ("a\ufffd", "\ufffdb")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([b"caf\xe9"], "caf\ufffd"),
        ([b"caf\xc3", b"\xa9!"], "caf\xe9!"),
        ([b"\xf0\x9f", b"\x98", b"\x80"], "\U0001f600"),
        ([b"\xf0\x9f", b"x"], "\ufffdx"),
        ([b"\xed\xa0\xbd\xed\xb8\x80"], "\U0001f600"),
        ([b"\xed\xa0\xbd", b"\xed\xb8\x80"], "\U0001f600"),
        ([b"\xff\xfea"], "\ufffd\ufffda"),
        ([b"tab\tand\x01"], "tab\tand\x01"),
    ],
)
def test_invalid_utf8_does_not_end_the_answer(raw: list[bytes], expected: str) -> None:
    """Cuts between bytes are joined; bytes of another encoding become U+FFFD."""
    pieces = [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % r for r in raw]
    played = chat(*pieces, END)
    assert (played.text, played.code) == (expected, None)


def test_held_back_half_is_emitted_when_the_answer_breaks_off() -> None:
    """Held back text is not lost with the connection."""
    played = chat(text("hi \ud83d") + data({"error": {"message": "Boom 7"}}))
    assert (played.text, played.code) == ("hi \ufffd", "upstream_error")
    assert chat(text("<thi")).text == "<thi"


# --- fields of another type -----------------------------------------------------------------------

NOBODY_NEEDS_IT = [
    {"choices": [{"index": None, "delta": {"content": "A"}}]},
    {"choices": [{"index": "0", "delta": {"content": "A"}}]},
    {"choices": [{"index": 0.0, "delta": {"content": "A"}}]},
    {"choices": [{"index": False, "delta": {"content": "A"}}]},
    {"choices": [{"delta": {"content": "A"}, "finish_reason": False}]},
    {"choices": [{"delta": {"content": "A"}, "finish_reason": 0}]},
    {"choices": [{"delta": {"content": "A"}, "finish_reason": "null"}]},
    {"choices": [{"delta": {"content": "A"}, "finish_reason": []}]},
    {"choices": [{"delta": {"content": "A"}, "logprobs": "none"}]},
    {"choices": [None, {"delta": {"content": "A"}}]},
    {"choices": {"index": 0, "delta": {"content": "A"}}},
    {"choices": {"0": {"delta": {"content": "A"}}}},
    chunk({"content": "A", "role": 7}),
    chunk({"content": "A", "tool_calls": {}}),
    chunk({"content": "A", "tool_calls": ""}),
    chunk({"content": "A", "tool_calls": [None, {}, 7, {"index": 0, "function": {}}]}),
    chunk({"content": "A", "function_call": ""}),
    chunk({"content": "A", "function_call": {"name": "", "arguments": ""}}),
    chunk({"content": "A", "refusal": False}),
    chunk({"content": "A", "reasoning_content": []}),
    chunk({"content": "A", "reasoning": {}}),
    chunk({"content": {"type": "text", "text": "A"}}),
    chunk({"content": {"type": "text", "text": {"value": "A", "annotations": []}}}),
    chunk({"content": ["A"]}),
    chunk({"content": [{"text": "A"}]}),
    chunk({"content": [None, {"type": "output_text", "text": "A"}]}),
    chunk({"content": "A"}, usage=""),
    chunk({"content": "A"}, usage=[]),
    chunk({"content": "A"}, usage="unknown"),
    chunk({"content": "A"}, usage={}),
    chunk({"content": "A"}, model=7),
    chunk({"content": "A"}, model=None, id=7, created="now", object=None),
    chunk({"content": "A"}, object="chat.completion"),
    chunk({"content": "A"}, error=None),
    chunk({"content": "A"}, error={}),
    chunk({"content": "A"}, error=False),
    chunk({"content": "A"}, error=[]),
    chunk({"content": "A"}, system_fingerprint=""),
    chunk({"content": "A"}, service_tier=None),
    chunk({"content": "A"}, obfuscation="xyz"),
    chunk({"content": "A"}, base_resp={"status_code": 0, "status_msg": ""}) | {"base_resp": None},
]


@pytest.mark.parametrize("piece", NOBODY_NEEDS_IT)
def test_unused_field_of_any_type_is_ignored(piece: dict[str, Any]) -> None:
    """A field that is not needed may have any type and does not change the text."""
    played = chat(data(piece) + B + END)
    assert (played.text, played.thought, played.code) == ("AB", "", None)
    assert (played.reason, played.usage, played.calls, played.extras) == ("stop", None, [], [])


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000])
def test_numbers_that_json_lacks_end_no_answer(number: bytes) -> None:
    """NaN, which Python servers write, does not end the answer, and the emitted fields are valid
    JSON.
    """
    raw = b'{"choices":[{"index":0,"delta":{"content":"A"}}],"timings":{"x":%b,"y":[%b]}}'
    played = chat(data(raw % (number, number)) + END)
    assert (played.text, played.code) == ("A", None)


@pytest.mark.parametrize("field", [
    {"reasoning": {"content": "hm"}},
    {"reasoning": [{"text": "h"}, {"text": "m"}]},
    {"reasoning_content": {"text": "hm"}},
    {"thinking": "hm"},
    {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    {"content": [{"type": "thinking", "thinking": "hm"}]},
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    {"content": [{"type": "reasoning", "text": "hm"}]},
])  # fmt: skip
def test_reasoning_is_read_from_every_known_field(field: dict[str, Any]) -> None:
    """Reasoning is read as text, as parts, and under each of its names."""
    played = chat(data(chunk(field)) + A + END)
    assert (played.thought, played.text) == ("hm", "A")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": "5", "completion_tokens": 2.0}, {"prompt_tokens": 5, "completion_tokens": 2}),
        ({"prompt_tokens": None, "completion_tokens": 2}, {"prompt_tokens": None, "completion_tokens": 2}),
        (USAGE | {"prompt_tokens_details": None}, USAGE | {"prompt_tokens_details": None}),
        (USAGE | {"cost": 0.01}, USAGE | {"cost": 0.01}),
    ],
)  # fmt: skip
def test_token_counts_become_integers(usage: dict[str, Any], expected: dict[str, Any]) -> None:
    """Strings and floats that are whole numbers become integers; the rest is unchanged."""
    assert chat(A + data({"choices": [], "usage": usage}) + END).usage == expected
    assert chat(A + data({"choices": [{"delta": {}, "usage": usage}]}) + END).usage == expected


def test_empty_usage_does_not_replace_a_count() -> None:
    """A later usage without counts does not replace the first one."""
    usage_chunk = data({"choices": [], "usage": USAGE})
    assert chat(A + usage_chunk + data(chunk({}, "stop", usage={}))).usage == USAGE


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"index": 0, "id": 1, "function": {"name": "x", "arguments": '{"a":1}'}}, '{"a":1}'),
        ({"index": "0", "id": None, "function": {"name": "x", "arguments": '{"a":1}'}}, '{"a":1}'),
        ({"index": None, "id": "c", "function": {"name": "x", "arguments": {"a": 1}}}, '{"a":1}'),
        ({"id": "c", "function": {"name": "x", "arguments": []}}, "{}"),
        ({"id": "c", "function": {"name": "x", "arguments": {}}}, "{}"),
        ({"id": "c", "function": {"name": "x", "arguments": None}}, "{}"),
        ({"id": "c", "function": {"name": "x"}}, "{}"),
        ({"id": "c", "function": {"name": "x", "parameters": {"a": 1}}}, '{"a":1}'),
        ({"id": "c", "name": "x", "arguments": '{"a":1}'}, '{"a":1}'),
        ({"id": "c", "type": None, "function": {"name": "x", "arguments": '{"a":1}'}}, '{"a":1}'),
    ],
)
def test_tool_call_needs_a_name_and_arguments_alone(call: dict[str, Any], expected: str) -> None:
    """A tool call with any other oddity runs with the model's arguments."""
    for calls in ([call], call):
        played = chat(data(chunk({"tool_calls": calls})) + data(chunk({}, "tool_calls")) + DONE)
        assert (played.calls, played.code) == ([("x", expected)], None)


# --- a message where a delta should be ------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [{"message": {"role": "assistant", "content": "Hello"}}],
        [{"message": {"content": "Hel"}}, {"message": {"content": "lo"}}],
        [{"message": {"content": "Hel"}}, {"message": {"content": "Hello"}}],
        [{"delta": {"content": "Hel"}}, {"delta": {"content": "lo"}}, {"message": {"content": "Hello"}}],
        [{"delta": {"content": "Hel"}}, {"delta": {}, "message": {"content": "Hello"}}],
        [{"delta": {"content": "Hel"}, "message": {"content": "Hel"}}, {"delta": {"content": "lo"}}],
        [{"text": "Hel"}, {"text": "lo"}],
        [{"delta": {"text": "Hel"}}, {"delta": {"text": "lo"}}],
        [{"delta": "Hel"}, {"delta": "lo"}],
        [{"content": "Hel"}, {"content": "lo"}],
        [{"delta": None, "message": {"content": "Hello"}}],
        [{"delta": {"role": "assistant"}, "text": "Hello"}],
        [{"delta": {"content": "Hel", "token_id": 1}, "text": "Hel"}, {"delta": {"content": "lo"}, "text": "lo"}],
    ],
)  # fmt: skip
def test_text_is_read_from_every_known_field(pieces: list[dict[str, Any]]) -> None:
    """Text is read once from a message, the older API's text, and text beside the delta."""
    stream = b"".join(data({"choices": [{"index": 0, **piece}]}) for piece in pieces)
    played = chat(stream + END)
    assert (played.text, played.code, played.extras) == ("Hello", None, [])


def test_calls_repeated_in_a_final_message_count_once() -> None:
    """Calls that a final message repeats count once."""
    pieces = data(chunk({"tool_calls": [CALL | {"index": 0}]}))
    whole = data(
        {"choices": [{"message": MESSAGE | {"tool_calls": [CALL]}, "finish_reason": "tool_calls"}]}
    )
    assert chat(pieces + whole).calls == [("add", '{"a":1}')]
    assert chat(whole).calls == [("add", '{"a":1}')]


@pytest.mark.parametrize(
    "line",
    [
        {"response": "A", "done": False},
        {"delta": {"content": "A"}},
        {"message": {"content": "A"}, "done": False},
        {"content": "A", "stop": False},
    ],
)
def test_piece_without_choices_is_read(line: dict[str, Any]) -> None:
    """Pieces in Ollama's and llama.cpp's own formats, without choices, are read."""
    played = chat(data(line) + B + END)
    assert (played.text, played.code) == ("AB", None)


# --- errors in the stream -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        b'{"error":{"message":"Boom 7"}}\n',
        b'{\n "error": {\n  "message": "Boom 7"\n }\n}\n',
        b'error: {"code":500,"message":"Boom 7"}\n\n',
        b"error: Boom 7\n\n",
        b"Error: Boom 7\n",
        b'event: error\ndata: {"message":"Boom 7"}\n\n',
        b"event: error\ndata: Boom 7\n\n",
        b'event: error\ndata: "Boom 7"\n\n',
        b'data: {"error":"Boom 7"}\n\n',
        b'data: {"error":{"message":"Boom 7"},"choices":[]}\n\n',
        b'data: [{"error":{"message":"Boom 7"}}]\n\n',
        b'data: {"object":"error","message":"Boom 7"}\n\n',
        b'data: {"type":"error","error":{"message":"Boom 7"}}\n\n',
        b'data: {"detail":"Boom 7"}\n\n',
        b'data: {"choices":null,"base_resp":{"status_code":1013,"status_msg":"Boom 7"}}\n\n',
        b'data: {"choices":[{"index":0,"error":{"message":"Boom 7"},"finish_reason":"error"}]}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"error"}],"error":{"message":"Boom 7"}}\n\n',
        b'data: {"error":{"message":"Boom 7"}}',
        b"data: {'error': {'message': 'Boom 7'}}\n\n",
    ],
)
def test_error_in_the_stream_comes_after_its_text(error: bytes) -> None:
    """An error in the stream has the server's words in every format, and comes after all text
    before it.
    """
    stream = A + text("<th") + error
    played = chat(stream)
    assert played.text == "A<th"
    assert played.code is not None
    assert "Boom 7" in played.message
    assert chat(*every_byte(stream)) == played


def test_text_in_the_chunk_of_an_error_is_kept() -> None:
    """Text in the chunk of an error is kept."""
    played = chat(A + data(chunk({"content": "B"}, "error", error={"message": "Boom 7"})))
    assert (played.text, played.code) == ("AB", "upstream_error")


# --- fields that are handed on --------------------------------------------------------------------


def test_unknown_fields_are_passed_on_once_and_on_change() -> None:
    """Unknown fields, such as sources in each chunk, are emitted with the first text and when they
    change.
    """
    first_citations, both_citations = (
        ["https://a.example/one"],
        ["https://a.example/one", "https://a.example/two"],
    )
    stream = [
        chunk(
            {"role": "assistant", "content": ""}, citations=first_citations, service_tier="default"
        ),
        chunk({"content": "Paris"}, citations=first_citations, service_tier="default"),
        chunk({"content": "[1]"}, citations=first_citations, service_tier="default"),
        chunk(
            {"content": "."}, citations=both_citations, service_tier="default", empty=[], none=None
        ),
    ]
    pieces = [data(piece) for piece in stream]
    decoder = ChatDecoder()
    parts = [decoder.feed(piece) for piece in pieces]
    assert parts[0].events == ()  # a role alone is a sign of life
    assert parts[1].events == (
        Content("Paris"), Extra(chunk={"citations": first_citations, "service_tier": "default"})
    )  # fmt: skip
    assert parts[2].events == (Content("[1]"),)
    assert parts[3].events == (Content("."), Extra(chunk={"citations": both_citations}))


def test_unknown_fields_keep_their_level() -> None:
    """Unknown fields of the chunk, of the choice and of the delta are emitted separately."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    choice = {"index": 0, "delta": {"content": "A", "images": [image]}, "native_finish_reason": "x"}
    played = chat(data({"choices": [choice], "x_groq": {"id": "req"}}) + END)
    assert played.extras == [
        {"delta": {"images": [image]}},
        {"chunk": {"x_groq": {"id": "req"}}, "choice": {"native_finish_reason": "x"}},
    ]


def test_equal_pieces_of_a_delta_are_all_passed_on() -> None:
    """Equal pieces of a delta, such as reasoning details, are emitted each time, since
    they add up.
    """
    detail = {"type": "reasoning.text", "text": "ha", "index": 0}
    piece = data(chunk({"reasoning": "ha", "reasoning_details": [detail]}))
    played = chat(piece + piece + END)
    assert played.thought == "haha"
    assert played.extras == [{"delta": {"reasoning_details": [detail]}}] * 2


def test_image_in_content_parts_is_passed_on() -> None:
    """An image part is emitted under `images`, another part under `content_parts`."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    reference = {"type": "reference", "reference_ids": [1]}
    played = chat(text([{"type": "text", "text": "A"}, image, reference]) + END)
    assert played.text == "A"
    assert played.extras == [{"delta": {"images": [image], "content_parts": [reference]}}]


def test_running_figures_are_passed_on_at_the_end() -> None:
    """Figures that come with each token, such as llama.cpp's timings, are emitted once at
    the end.
    """
    stream = b"".join(data(chunk({"content": "a"}, timings={"n": n})) for n in range(5))
    assert chat(stream + END).extras == [{"chunk": {"timings": {"n": 4}}}]


def test_content_filter_results_are_passed_on_when_they_change() -> None:
    """Azure's content filter results are emitted when they change, not with each piece."""
    safe, unsafe = {"hate": {"filtered": False}}, {"hate": {"filtered": True}}
    stream = b"".join(
        data(
            {"choices": [{"index": 0, "delta": {"content": "a"}, "content_filter_results": value}]}
        )
        for value in (safe, safe, unsafe, {}, unsafe)
    )
    played = chat(stream + END)
    assert played.text == "aaaaa"
    assert [extra["choice"] for extra in played.extras] == [
        {"content_filter_results": safe}, {"content_filter_results": unsafe}
    ]  # fmt: skip


def test_unknown_field_of_a_call_stays_with_it() -> None:
    """An unknown field of a call, such as Gemini's signature, comes with the fragment of
    its call.
    """
    signed = {"google": {"thought_signature": "c2lnbmVk"}}
    call = CALL | {"index": 0, "extra_content": signed}
    decoder = ChatDecoder()
    events = decoder.feed(data(chunk({"tool_calls": [call]})) + END).events
    (whole,) = [event for event in events if isinstance(event, ToolCall)]
    assert whole.extra == {"extra_content": signed}


# --- Anthropic's API, almost ----------------------------------------------------------------------


def event(kind: str, **members: Any) -> bytes:
    payload = js({"type": kind} | members)
    return b"event: " + kind.encode() + b"\ndata: " + payload + b"\n\n"


def piece(index: Any, kind: str, **members: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **members})


def started(index: Any, kind: str, **members: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **members})


BEGIN = event(
    "message_start", message={"model": "c", "usage": {"input_tokens": 3, "output_tokens": 1}}
)
TEXT = started(0, "text", text="")
STOP = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
STOP += event("message_stop")
SAID = piece(0, "text_delta", text="A")


def claude(*pieces: bytes) -> Played:
    return play(MessagesDecoder(), pieces)


@pytest.mark.parametrize(
    "stream",
    [
        BEGIN + TEXT + SAID + STOP,
        BEGIN + SAID + STOP,
        SAID + STOP,
        TEXT + SAID + STOP,
        BEGIN + TEXT + event("content_block_delta", delta={"type": "text_delta", "text": "A"}) + STOP,
        BEGIN + event("content_block_start", content_block={"type": "text", "text": "A"}) + STOP,
        BEGIN + TEXT + piece("0", "text_delta", text="A") + STOP,
        BEGIN + TEXT + piece(None, "text_delta", text="A") + STOP,
        BEGIN + TEXT + event("content_block_delta", index=0, delta={"text": "A"}) + STOP,
        BEGIN + TEXT + event("content_block_delta", index=0, delta="A") + STOP,
        BEGIN + started(0, "answer") + SAID + STOP,
        BEGIN + started(0, "text", text=None, citations=None) + SAID + STOP,
        BEGIN + TEXT + SAID.replace(b"event: content_block_delta\n", b"") + STOP,
        BEGIN + TEXT + SAID.replace(b'"type": "content_block_delta", ', b"") + STOP,
        BEGIN + TEXT + SAID + event("message_delta", stop_reason="end_turn") + DONE,
        BEGIN + TEXT + SAID + event("message_delta", delta={"stop_reason": "end_turn"}) + DONE,
        BEGIN + TEXT + SAID + event("message_stop", message={"stop_reason": "end_turn"}),
        BEGIN + TEXT + SAID + event("message_delta", delta={"stop_reason": "end_turn"}, usage=""),
        BEGIN + started(0, "text", text="A") + event("ping") + b"event: ping\ndata:\n\n" + STOP,
        event("message_start", message=None) + TEXT + SAID + STOP,
        js({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "A"}], "stop_reason": "end_turn"}),
        json.dumps({"type": "message", "content": "A", "stop_reason": "end_turn"}, indent=1).encode(),
        js({"role": "assistant", "content": [{"type": "text", "text": "A"}], "stop_reason": "end_turn"}),
        BEGIN + TEXT + SAID + STOP[: STOP.index(b"event: message_stop")] + event("error", error={"message": "late"}),
    ],
)  # fmt: skip
def test_near_anthropic_stream_is_an_answer(stream: bytes) -> None:
    """A stream close to Anthropic's (unannounced blocks, missing indexes and names, another end
    mark) is read.
    """
    played = claude(stream)
    assert (played.text, played.thought, played.code) == ("A", "", None)
    assert (played.ended, played.reason) == (True, "stop")
    assert claude(*every_byte(stream)) == played


@pytest.mark.parametrize(("pieces", "expected"), HALVES)
def test_half_a_character_waits_in_an_anthropic_stream(pieces: list[str], expected: str) -> None:
    """Halves join in text, reasoning and a tool's input; blocks that are sent back are whole."""
    text_events = b"".join(piece(0, "text_delta", text=part) for part in pieces)
    assert claude(BEGIN + TEXT + text_events + STOP).text == expected
    thought = b"".join(piece(0, "thinking_delta", thinking=part) for part in pieces)
    decoder = MessagesDecoder()
    assert play(decoder, [BEGIN + started(0, "thinking") + thought + STOP]).thought == expected
    assert decoder.opaque == [{"type": "thinking", "thinking": expected, "signature": ""}]
    input_events = b"".join(piece(0, "input_json_delta", partial_json=part) for part in pieces)
    tool_start = started(0, "tool_use", id="t", name="look", input={})
    assert claude(BEGIN + tool_start + input_events + STOP).calls == [("look", expected)]


@pytest.mark.parametrize(
    "error",
    [
        event("error", error={"type": "api_error", "message": "Boom 7"}),
        event("error", error="Boom 7"),
        event("error", message="Boom 7"),
        b"event: error\ndata: Boom 7\n\n",
        b'event: error\ndata: {"message": "Boom 7"}\n\n',
        data({"error": {"message": "Boom 7"}}),
        js({"error": {"message": "Boom 7"}}) + b"\n",
        js([{"error": {"message": "Boom 7"}}]),
    ],
)
def test_error_in_an_anthropic_stream_has_its_words(error: bytes) -> None:
    """An error in an Anthropic stream has its words, in Anthropic's format and in those of
    gateways.
    """
    played = claude(BEGIN + TEXT + SAID + error)
    assert played.text == "A"
    assert played.code is not None
    assert "Boom 7" in played.message


def test_anthropic_citations_become_openai_annotations() -> None:
    """A URL citation becomes an annotation; a place in a document is left out."""
    web = {
        "type": "web_search_result_location",
        "url": "https://a.example",
        "title": "One",
        "cited_text": "Paris",
    }
    page = {"type": "page_location", "document_title": "Two", "start_page_number": 3}
    played = claude(
        BEGIN + TEXT + SAID
        + piece(0, "citations_delta", citation=web)
        + piece(0, "citations_delta", citation=page)
        + STOP
    )  # fmt: skip
    citation = {"url": "https://a.example", "title": "One", "content": "Paris"}
    assert played.extras == [
        {"delta": {"annotations": [{"type": "url_citation", "url_citation": citation}]}},
        {"delta": {"citations": [page]}},
    ]


def test_text_after_unannounced_reasoning_is_text() -> None:
    """Text after unannounced reasoning with the same index is distinguished by its type."""
    thought = piece(0, "thinking_delta", thinking="hm")
    played = claude(BEGIN, thought, thought, SAID, SAID, STOP)
    assert (played.thought, played.text, played.code) == ("hmhm", "AA", None)


def test_token_count_is_not_replaced_by_an_empty_one() -> None:
    """A token count is not replaced by null, zeros or strings at the end."""
    for prompt in (None, 0, "", "3"):
        usage = {"input_tokens": prompt, "output_tokens": "5"}
        end = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        final_usage = claude(BEGIN + TEXT + SAID + end + event("message_stop")).usage or {}
        assert (final_usage["prompt_tokens"], final_usage["completion_tokens"]) == (3, 5)


def test_tool_input_as_an_object_is_read() -> None:
    """Tool input is read as an object, where the API itself sends pieces of JSON as text."""
    tool_start = started(0, "tool_use", id="t", name="add", input={})
    played = claude(BEGIN, tool_start, piece(0, "input_json_delta", partial_json={"a": 1}), STOP)
    assert played.calls == [("add", '{"a":1}')]


def test_blocks_of_one_index_are_both_sent_back() -> None:
    """Blocks of one index, from a server that numbers none, are both sent back with their
    reasoning.
    """
    decoder = MessagesDecoder()
    stream = started(0, "thinking", thinking="hm", signature="s") + started(0, "text", text="A")
    assert play(decoder, [BEGIN + stream + STOP]).text == "A"
    assert decoder.opaque == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "A"},
    ]


# --- for every stream -----------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud83d", "\ude00", "error", "stop", "0", "thinking", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["content", "text", "type", "message", "error", "delta", "index", "id", "x", "code"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
WHOLE_CHUNK = chunk(
    {
        "role": "assistant",
        "content": "A",
        "reasoning_content": "hm",
        "refusal": None,
        "images": [],
        "tool_calls": [{"index": 0, "extra": 1} | CALL],
    },
    usage=USAGE,
    model="m",
    error=None,
    citations=[],
    object="chat.completion.chunk",
)
WHOLE_EVENTS = [
    {"type": "message_start", "message": {"model": "c", "content": [], "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", "citations": []}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "A"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "n", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place of a JSON value: what holds it, and under which name."""
    citations = []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, inner in items:
        citations.append((value, name))
        citations += places(inner)
    return citations


@given(
    values=st.lists(ANYTHING, min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    cut=st.integers(1, 200),
)
def test_random_values_give_an_answer_or_an_upstream_error(
    values: list[Any], seed: int, cut: int
) -> None:
    """Random JSON anywhere in a chunk gives an answer or an UpstreamError.

    Any cut of the bytes gives the same outcome.
    """
    chosen = random.Random(seed)
    pieces, events = copy.deepcopy(([WHOLE_CHUNK, WHOLE_CHUNK], WHOLE_EVENTS))
    for value in values:
        for tree in (pieces, events):
            holder, name = chosen.choice(places(tree))
            holder[name] = copy.deepcopy(value)
    chat_stream = b"".join(data(payload) for payload in pieces) + END
    claude_stream = b"".join(data(payload) for payload in events) + STOP
    for make, stream in ((ChatDecoder, chat_stream), (MessagesDecoder, claude_stream)):
        whole = play(make(), [stream])
        parts = [stream[at : at + cut] for at in range(0, len(stream), cut)]
        split = play(make(), parts)
        assert split == whole


@given(words=st.lists(st.sampled_from([*NOISE, A, B, text("\ud83d"), text("\ude00"), text("<think>"), FINISH,
                                       b"{\n", b"}\n", b'{"a":\n', b"data: {", b"\r", b"\n", b"event: x\n", b"<p>",
                                       js(ANSWER), b'error: {}\n']), max_size=12),
       cuts=st.lists(st.integers(0, 2000), max_size=6))  # fmt: skip
def test_random_stream_is_the_same_in_any_cut(words: list[bytes], cuts: list[int]) -> None:
    """Events, noise and lines of JSON in any order give the same outcome in any cut."""
    stream = b"".join(words)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(stream)}), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert chat(*pieces) == chat(stream)


def test_line_of_8_megabytes_is_one_piece_of_text() -> None:
    """A line of 8 MB, such as an image, is one piece of text, in reads of 64 kB."""
    picture = "iVBORw0K" * 1_000_000
    stream = text(picture) + END
    pieces = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
    assert chat(*pieces).text == picture


@pytest.mark.parametrize("line", [b"{", b"[", b'{"a":"', b"x", b": "])
def test_endless_line_of_any_kind_is_refused(line: bytes) -> None:
    """An endless line of any kind is refused, so that memory is bounded."""
    played = chat(line, *[b"a" * 65_536] * (LINE_MAX // 65_536 + 1))
    assert played.code == "upstream_invalid"


def test_json_in_endless_lines_is_refused() -> None:
    """JSON that is never closed is refused, so that memory is bounded."""
    line = b"1" * 200 + b",\n"
    assert chat(b"[\n", *[line * 1000] * 170).code == "upstream_invalid"
