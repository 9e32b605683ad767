"""The events of a generation: frozen values with one wire form for the log and for every client.

    {"type":"content","content":"text"}
    {"type":"reasoning","text":"...","content":""}
    {"type":"reasoning_end","after":0,"content":"\\n\\n"}
    {"type":"tool_call_delta","index":0,"id":"...","name":"...","arguments":"a piece","content":""}
    {"type":"tool_call","id":"...","name":"...","arguments":"{...}","content":""}
    {"type":"tool_result","id":"...","name":"...","result":"...","ok":true,"duration_ms":1.5,
     "content":""}
    {"type":"extra","chunk":{...},"choice":{...},"delta":{...},"content":""}
    {"type":"done","done":true,"content":"","finish_reason":"stop","usage":{...},"metrics":{...}}
    {"type":"cancelled","done":true,"content":"","reason":"stop","metrics":{...}}
    {"type":"cancelled","done":true,"content":"","reason":"no_viewer","unwatched":60.0,
     "metrics":{...}}
    {"type":"error","done":true,"content":"","error":{...},"metrics":{...}}

Every event has `content`, which is what it adds to the answer's text: a client that appends it and
looks at nothing else has the text. One event takes text back, see `ReasoningEnd`; such a client has
the thought as a paragraph of its own.

Framed as Server-Sent Events by the WHATWG's rules: `id: SEQ`, one `data:` line (JSON holds no line
break), an empty line. A terminal event is followed by `data: [DONE]`. In silence a comment line is
sent without an empty line behind it: clients that follow older libraries take each empty line for
an event once they have seen an ID.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeGuard

import msgspec

from halt.core.metrics import Metrics

FINAL_FRAME = b"data: [DONE]\n\n"
HEARTBEAT = b":\n"

#: Why a run was cancelled: a Stop was pressed, or it had no viewer for too long.
CancelReason = Literal["stop", "no_viewer"]


class Content(msgspec.Struct, frozen=True, tag_field="type", tag="content"):
    """Text that arrived together, in the order in which the model wrote it."""

    content: str


class Reasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What the model thinks before it answers. Never part of the answer, so never `content`."""

    text: str
    content: str = ""


class ReasoningEnd(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_end"):
    """The text of the events above number `after`, up to this one, was reasoning.

    Some models' prompts open the thought, so that only its end is marked. Until that comes, the
    thought cannot be told from an answer, and goes out as one.
    """

    after: int = 0
    content: str = "\n\n"


class ToolCallDelta(msgspec.Struct, frozen=True, tag_field="type", tag="tool_call_delta"):
    """A piece of a tool call that is being written; `index` tells calls of one round apart.

    `id` and `name` are as far as they are known; `arguments` is what has been added. `extra` holds
    fields of the model's server that have no place here (thought signatures), as they came.
    """

    index: int
    id: str
    name: str
    arguments: str
    content: str = ""
    extra: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="tool_call"):
    """A whole tool call. `arguments` is JSON as the model wrote it, which may be broken.

    `extra` is that of all its pieces.
    """

    id: str
    name: str
    arguments: str
    content: str = ""
    extra: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ToolResult(msgspec.Struct, frozen=True, tag_field="type", tag="tool_result"):
    """What a tool said to the model: its result, or why there is none (`ok` is false)."""

    id: str
    name: str
    result: str
    ok: bool
    duration_ms: float
    content: str = ""


class Extra(msgspec.Struct, frozen=True, tag_field="type", tag="extra"):
    """Fields of a chunk of the model's server that Halt has no event for, as they came.

    `chunk` are those beside the choices (citations), `choice` those of the answer's choice, `delta`
    those of its delta (images).
    """

    chunk: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    delta: dict[str, Any] = {}
    content: str = ""


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong; `code` is one of `halt.errors.CODES`, `retry_after` is in seconds.

    `status` is that of the model's server, where Halt answers with the same one.
    """

    code: str
    message: str
    retryable: bool
    retry_after: float | None = None
    status: int | None = None


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """The model finished. `usage` is the provider's own count, None where it reported none."""

    finish_reason: str | None
    metrics: Metrics
    usage: dict[str, Any] | None = None
    done: bool = True
    content: str = ""


class Cancelled(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """The run was stopped on purpose.

    `unwatched`: seconds that it went on without a viewer, where that is the reason.
    """

    metrics: Metrics
    reason: CancelReason = "stop"
    done: bool = True
    content: str = ""
    unwatched: float | msgspec.UnsetType = msgspec.UNSET


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The run failed; what had arrived before stays."""

    error: ErrorInfo
    metrics: Metrics
    done: bool = True
    content: str = ""


#: What a model, or a tool on its behalf, adds to an answer.
Delta = Content | Reasoning | ReasoningEnd | ToolCallDelta | ToolCall | ToolResult | Extra
Terminal = Done | Cancelled | Failed
Event = Delta | Terminal

_TERMINAL = (Done, Cancelled, Failed)


def is_terminal(event: Event) -> TypeGuard[Terminal]:
    """Whether this event ends its generation."""
    return isinstance(event, _TERMINAL)


def text_of(event: Event) -> str:
    """What an event adds to the answer's text."""
    return event.content if isinstance(event, Content) else ""


def answer_of(events: Iterable[tuple[int, Event]]) -> str:
    """The answer's text in these events, which come with their numbers and in order."""
    texts: list[tuple[int, str]] = []
    for number, event in events:
        if isinstance(event, ReasoningEnd):
            while texts and texts[-1][0] > event.after:
                texts.pop()
        elif text := text_of(event):
            texts.append((number, text))
    return "".join(text for _, text in texts)


def size_of(event: Event) -> int:
    """Characters that a model or a tool has added by it."""
    if isinstance(event, Content):
        return len(event.content)
    if isinstance(event, Reasoning):
        return len(event.text)
    if isinstance(event, ToolCallDelta):
        return len(event.arguments)
    if isinstance(event, Extra):
        return len(encode(event))
    return len(event.result) if isinstance(event, ToolResult) else 0  # a call was counted in pieces


encode = msgspec.json.Encoder().encode


def sse(seq: int, event: Event) -> bytes:
    """One event as a Server-Sent Event."""
    return b"id: %d\ndata: %b\n\n" % (seq, encode(event))


def sse_html(seq: int, html: str) -> bytes:
    """HTML as an unnamed Server-Sent Event; each line of it gets a `data:` of its own."""
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in html:
        html = html.replace("\n", "\ndata: ")
    return f"id: {seq}\ndata: {html}\n\n".encode()
