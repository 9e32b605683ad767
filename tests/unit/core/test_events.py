"""Events on the wire: the JSON that programs depend on, in frames that any SSE reader can parse.

`parse` is a reader written from the WHATWG's rules, independent of Halt's code.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.events import (
    FINAL_FRAME,
    HEARTBEAT,
    Cancelled,
    Content,
    Done,
    ErrorInfo,
    Event,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    answer_of,
    encode,
    sse,
    sse_html,
    text_of,
)
from halt.core.metrics import Metrics

METRICS = Metrics(
    ttft_ms=12.5,
    duration_ms=100.0,
    tokens=7,
    tokens_estimated=False,
    tokens_per_second=80.0,
    characters=21,
    chunks=7,
    streaming_ms=75.0,
    reasoning_ms=None,
    characters_per_second=280.0,
    gap_p50_ms=12.0,
    gap_p99_ms=20.0,
)
METRICS_JSON = {
    "ttft_ms": 12.5,
    "duration_ms": 100.0,
    "tokens": 7,
    "tokens_estimated": False,
    "tokens_per_second": 80.0,
    "characters": 21,
    "chunks": 7,
    "streaming_ms": 75.0,
    "reasoning_ms": None,
    "characters_per_second": 280.0,
    "gap_p50_ms": 12.0,
    "gap_p99_ms": 20.0,
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}

#: Every text that JSON in UTF-8 can hold: no lone surrogates.
json_texts = st.text(st.characters(codec="utf-8"))


class Message(NamedTuple):
    id: str
    event: str
    data: str


def parse(stream: bytes) -> list[Message]:
    """The messages that an EventSource dispatches for these bytes (WHATWG HTML, 9.2.6)."""
    lines = re.split("\r\n|\r|\n", stream.decode("utf-8-sig"))
    lines.pop()  # text without a line break behind it is no line
    out: list[Message] = []
    last_id, event, data = "", "", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                out.append(Message(last_id, event or "message", data[:-1]))
            event, data = "", ""
        elif name == "data":
            data += value + "\n"
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return out


def wire(event: Event) -> Any:
    """The JSON object of an event."""
    return json.loads(encode(event))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(
            Content("Grüße\n👋"), {"type": "content", "content": "Grüße\n👋"}, id="content"
        ),
        pytest.param(
            Reasoning("hm"), {"type": "reasoning", "text": "hm", "content": ""}, id="reasoning"
        ),
        pytest.param(
            ReasoningEnd(3),
            {"type": "reasoning_end", "after": 3, "content": "\n\n"},
            id="reasoning-end",
        ),
        pytest.param(
            ToolCallDelta(1, "c", "add", '{"a"'),
            {
                "type": "tool_call_delta",
                "index": 1,
                "id": "c",
                "name": "add",
                "arguments": '{"a"',
                "content": "",
            },
            id="tool-call-delta",
        ),
        pytest.param(
            ToolCall("c", "add", "{}"),
            {"type": "tool_call", "id": "c", "name": "add", "arguments": "{}", "content": ""},
            id="tool-call",
        ),
        pytest.param(
            ToolCall("c", "add", "{}", extra={"extra_content": {"x": 1}}),
            {
                "type": "tool_call",
                "id": "c",
                "name": "add",
                "arguments": "{}",
                "content": "",
                "extra": {"extra_content": {"x": 1}},
            },
            id="signed-tool-call",
        ),
        pytest.param(
            Extra(chunk={"citations": ["a"]}, delta={"images": [1]}),
            {
                "type": "extra",
                "chunk": {"citations": ["a"]},
                "choice": {},
                "delta": {"images": [1]},
                "content": "",
            },
            id="extra",
        ),
        pytest.param(
            ToolResult("c", "add", "3", True, 1.5),
            {
                "type": "tool_result",
                "id": "c",
                "name": "add",
                "result": "3",
                "ok": True,
                "duration_ms": 1.5,
                "content": "",
            },
            id="tool-result",
        ),
        pytest.param(
            Done("stop", METRICS, USAGE),
            {
                "type": "done",
                "done": True,
                "content": "",
                "finish_reason": "stop",
                "usage": USAGE,
                "metrics": METRICS_JSON,
            },
            id="done",
        ),
        pytest.param(
            Cancelled(METRICS),
            {
                "type": "cancelled",
                "done": True,
                "content": "",
                "reason": "stop",
                "metrics": METRICS_JSON,
            },
            id="cancelled",
        ),
        pytest.param(
            Failed(ErrorInfo("stalled", "It stalled.", True), METRICS),
            {
                "type": "error",
                "done": True,
                "content": "",
                "error": {"code": "stalled", "message": "It stalled.", "retryable": True},
                "metrics": METRICS_JSON,
            },
            id="error",
        ),
    ],
)
def test_encode_gives_each_event_its_documented_json(
    event: Event, expected: dict[str, Any]
) -> None:
    """Each event has exactly the documented keys: `type` first, `done` and `content`."""
    assert wire(event) == expected
    assert next(iter(wire(event))) == "type"


def test_encode_error_has_retry_after_only_if_known() -> None:
    """The error object has `retry_after` if the upstream sent one, and lacks the key otherwise."""
    error_with_delay = Failed(ErrorInfo("rate_limited", "Slow down.", True, 2.5), METRICS)
    unknown = Failed(ErrorInfo("rate_limited", "Slow down.", True), METRICS)
    assert wire(error_with_delay)["error"]["retry_after"] == 2.5
    assert "retry_after" not in wire(unknown)["error"]


def test_encode_done_without_usage_has_null() -> None:
    """Without a reported usage `usage` is null; the metrics hold the estimate."""
    assert wire(Done("stop", METRICS))["usage"] is None


def test_event_is_frozen() -> None:
    """No reader can change an event in the log."""
    event = Content("as it was")
    with pytest.raises(AttributeError):
        event.content = "changed"  # type: ignore[misc]


@given(st.lists(json_texts, min_size=1))
def test_sse_text_arrives_unchanged_under_its_number(contents: list[str]) -> None:
    """Property: a reader gets every text unchanged, under the same number."""
    stream = b"".join(sse(seq, Content(text)) for seq, text in enumerate(contents, 1))
    messages = parse(stream)
    assert [m.id for m in messages] == [str(n) for n in range(1, len(contents) + 1)]
    assert [json.loads(m.data)["content"] for m in messages] == contents
    assert {m.event for m in messages} == {"message"}


@given(json_texts)
def test_sse_event_is_one_line_of_data(text: str) -> None:
    """Each event is `id`, one `data` line and an empty line, since JSON has no line break."""
    frame = sse(7, Content(text))
    assert re.fullmatch(rb"id: 7\ndata: [^\r\n]*\n\n", frame)


def test_final_frame_keeps_the_id_and_heartbeat_is_no_message() -> None:
    """After the terminal event comes `[DONE]` with the same ID; a heartbeat is no message."""
    stream = HEARTBEAT + sse(3, Done("stop", METRICS)) + HEARTBEAT + FINAL_FRAME + HEARTBEAT
    done_message, final_message = parse(stream)
    assert json.loads(done_message.data)["done"] is True
    assert final_message == Message("3", "message", "[DONE]")


@pytest.mark.parametrize(
    "html",
    ["", "\n", "<p>a</p>", "a\r\nb\rc\nd", "\r", "\r\n\r\n", "a\n\n", ": no comment", "data: x"],
)
def test_sse_html_keeps_lines_of_any_line_ending(html: str) -> None:
    """HTML with CR, LF or CRLF arrives as one message with LF; no line becomes a field."""
    (message,) = parse(sse_html(4, html))
    assert message == Message("4", "message", html.replace("\r\n", "\n").replace("\r", "\n"))


@given(st.lists(st.sampled_from(["\r", "\n", "\r\n", "<b>", "é", " ", ":", "id: 9", "\u2028"])))
def test_sse_html_stays_in_one_frame(parts: list[str]) -> None:
    """Property: a fragment with any lines is one message with its own number, and nothing else."""
    html = "".join(parts)
    (message,) = parse(sse_html(1, html))
    assert message.id == "1"
    assert message.data == html.replace("\r\n", "\n").replace("\r", "\n")


def test_event_saved_without_content_is_decoded() -> None:
    """Thoughts and calls that an older Halt saved without `content` give the same events."""
    decode = msgspec.json.Decoder(Event).decode
    for event in (
        Reasoning("hm"),
        ToolCallDelta(1, "c", "add", "{"),
        ToolCall("c", "add", "{}"),
        ToolResult("c", "add", "3", True, 1.5),
        Extra({"citations": ["a"]}),
    ):
        older = encode(event).replace(b',"content":""', b"")
        assert b"content" not in older
        assert decode(older) == event
        assert text_of(event) == ""


def test_encoded_event_decodes_to_the_same_event() -> None:
    """Log and client share one form: decoding it by its type gives the event again."""
    decode = msgspec.json.Decoder(Content | Done | Cancelled | Failed).decode
    for event in (
        Content("x"),
        Done("length", METRICS, USAGE),
        Cancelled(METRICS, "no_viewer"),
        Failed(ErrorInfo("stalled", "It stalled.", True, 1.0), METRICS),
    ):
        assert decode(encode(event)) == event


def test_answer_of_leaves_out_text_declared_as_reasoning() -> None:
    """A ReasoningEnd removes its round's earlier text; earlier rounds and later text stay."""
    events: list[Event] = [Content("a"), Content("b"), Content("c"), ReasoningEnd(1), Content("d")]
    assert answer_of(enumerate(events, 1)) == "ad"
    assert answer_of(enumerate(events[:3], 1)) == "abc"
