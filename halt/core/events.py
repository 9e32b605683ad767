"""The events of a generation: frozen values with one JSON form for the log and all clients.

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

Every event has `content`. A client that appends every `content` and ignores the rest shows the
answer. After a `reasoning_end` it also shows the reasoning, as a separate paragraph; see
`ReasoningEnd`.

Server-Sent Events (WHATWG HTML standard) are `id: SEQ`, one `data:` line (JSON has no line breaks)
and an empty line. A terminal event is followed by `data: [DONE]`. The heartbeat in silence is a
comment line without an empty line: some older client libraries treat every empty line as an event
once they have seen an ID.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeGuard

import msgspec

from halt.core.metrics import Metrics

FINAL_FRAME = b"data: [DONE]\n\n"
HEARTBEAT = b":\n"

#: Why a run was cancelled: by a Stop, or because it had no viewer for too long.
CancelReason = Literal["stop", "no_viewer"]


class Content(msgspec.Struct, frozen=True, tag_field="type", tag="content"):
    """Text of the answer, as one read brought it."""

    content: str


class Reasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """The model's reasoning. It is never part of the answer, so its `content` is empty."""

    text: str
    content: str = ""


class ReasoningEnd(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_end"):
    """The text of the events after number `after`, up to this one, was reasoning, not answer.

    Some models' prompt templates open the reasoning, so that only its end is marked. Until the end
    arrives, Halt cannot distinguish the reasoning from an answer, and sends it as Content.
    """

    after: int = 0
    content: str = "\n\n"


class ToolCallDelta(msgspec.Struct, frozen=True, tag_field="type", tag="tool_call_delta"):
    """A piece of an incomplete tool call; `index` identifies the call in its round.

    `id` and `name` are as known so far; `arguments` is the added text. `extra` holds the provider's
    other fields (thought signatures) unchanged.
    """

    index: int
    id: str
    name: str
    arguments: str
    content: str = ""
    extra: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="tool_call"):
    """A complete tool call. `arguments` is JSON as the model wrote it, which may be invalid.

    `extra` holds the extra fields of all its pieces.
    """

    id: str
    name: str
    arguments: str
    content: str = ""
    extra: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ToolResult(msgspec.Struct, frozen=True, tag_field="type", tag="tool_result"):
    """A tool's result for the model, or with `ok` false the reason why there is none."""

    id: str
    name: str
    result: str
    ok: bool
    duration_ms: float
    content: str = ""


class Extra(msgspec.Struct, frozen=True, tag_field="type", tag="extra"):
    """Fields of a provider's chunk that Halt has no event for, unchanged.

    `chunk`: fields beside the choices (citations). `choice`: fields of the answer's choice.
    `delta`: fields of its delta (images).
    """

    chunk: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    delta: dict[str, Any] = {}
    content: str = ""


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error. `code` is one that docs/api.md lists, `retry_after` is in seconds.

    `status` is the provider's HTTP status, if Halt responds with the same one. The parts of
    `message`, for a page: `detail` is the model server's own words, at most 5,000 characters, and
    `hint` the sentence after them. `upstream_status` is the HTTP status of the server's refusal;
    `request_id` names the request in Halt's log.
    """

    code: str
    message: str
    retryable: bool
    retry_after: float | None = None
    status: int | None = None
    detail: str = ""
    hint: str = ""
    upstream_status: int | None = None
    request_id: str = ""


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """The model finished. `usage` is the provider's token count, null if it reported none."""

    finish_reason: str | None
    metrics: Metrics
    usage: dict[str, Any] | None = None
    done: bool = True
    content: str = ""


class Cancelled(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """The run was stopped, or had no viewer.

    `unwatched`: with the reason "no_viewer" the seconds that it ran without a viewer.
    """

    metrics: Metrics
    reason: CancelReason = "stop"
    done: bool = True
    content: str = ""
    unwatched: float | msgspec.UnsetType = msgspec.UNSET


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The run failed; the events before stay valid."""

    error: ErrorInfo
    metrics: Metrics
    done: bool = True
    content: str = ""


#: The events that a model, or a tool that it called, adds to an answer.
Delta = Content | Reasoning | ReasoningEnd | ToolCallDelta | ToolCall | ToolResult | Extra
Terminal = Done | Cancelled | Failed
Event = Delta | Terminal

_TERMINAL = (Done, Cancelled, Failed)


def is_terminal(event: Event) -> TypeGuard[Terminal]:
    """Whether this event ends its generation."""
    return isinstance(event, _TERMINAL)


def text_of(event: Event) -> str:
    """The text of an event with text of the answer, else ""."""
    return event.content if isinstance(event, Content) else ""


def answer_of(events: Iterable[tuple[int, Event]]) -> str:
    """The answer's text in these events, given with their numbers and in order."""
    texts: list[tuple[int, str]] = []
    for number, event in events:
        if isinstance(event, ReasoningEnd):
            while texts and texts[-1][0] > event.after:
                texts.pop()
        elif text := text_of(event):
            texts.append((number, text))
    return "".join(text for _, text in texts)


def approximate_size(event: Event) -> int:
    """The number of characters that a model or a tool has added; of Extra the bytes of its JSON."""
    if isinstance(event, Content):
        return len(event.content)
    if isinstance(event, Reasoning):
        return len(event.text)
    if isinstance(event, ToolCallDelta):
        return len(event.arguments)
    if isinstance(event, Extra):
        return len(encode(event))
    return len(event.result) if isinstance(event, ToolResult) else 0  # a call's pieces were counted


encode = msgspec.json.Encoder().encode


def sse(seq: int, event: Event) -> bytes:
    """One event as a Server-Sent Event."""
    return b"id: %d\ndata: %b\n\n" % (seq, encode(event))


def sse_html(seq: int, html: str) -> bytes:
    """HTML as an unnamed Server-Sent Event, with a `data:` field for each line."""
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in html:
        html = html.replace("\n", "\ndata: ")
    return f"id: {seq}\ndata: {html}\n\n".encode()
