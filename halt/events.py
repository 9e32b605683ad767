"""The events of a generation: frozen values with one wire form for the log and for every client.

    {"type":"content","content":"text"}
    {"type":"done","done":true,"content":"","finish_reason":"stop","usage":{...},"metrics":{...}}
    {"type":"cancelled","done":true,"content":"","reason":"stop","metrics":{...}}
    {"type":"error","done":true,"content":"","error":{...},"metrics":{...}}

Framed as Server-Sent Events by the WHATWG's rules: `id: SEQ`, one `data:` line (JSON holds no line
break), an empty line. A terminal event is followed by `data: [DONE]`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.metrics import Metrics

FINAL_FRAME = b"data: [DONE]\n\n"
HEARTBEAT = b":\n\n"

#: Why a run was cancelled: a Stop was pressed, or nobody was watching any more.
CancelReason = Literal["stop", "no_viewer"]


class Content(msgspec.Struct, frozen=True, tag_field="type", tag="content"):
    """Text that arrived together, in the order in which the model wrote it."""

    content: str


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong; `code` is one of `halt.errors.CODES`, `retry_after` is in seconds."""

    code: str
    message: str
    retryable: bool
    retry_after: float | None = None


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """The model finished. `usage` is the provider's own count, None where it reported none."""

    finish_reason: str | None
    metrics: Metrics
    usage: dict[str, Any] | None = None
    done: bool = True
    content: str = ""


class Cancelled(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """The run was stopped on purpose."""

    metrics: Metrics
    reason: CancelReason = "stop"
    done: bool = True
    content: str = ""


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The run failed; what had arrived before stays."""

    error: ErrorInfo
    metrics: Metrics
    done: bool = True
    content: str = ""


Terminal = Done | Cancelled | Failed
Event = Content | Terminal

encode = msgspec.json.Encoder().encode


def sse(seq: int, event: Event) -> bytes:
    """One event as a Server-Sent Event."""
    return b"id: %d\ndata: %b\n\n" % (seq, encode(event))


def sse_html(seq: int, html: str) -> bytes:
    """HTML as an unnamed Server-Sent Event; each line of it gets a `data:` of its own."""
    lines = html.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return b"id: %d\ndata: %b\n\n" % (seq, "\ndata: ".join(lines).encode())
