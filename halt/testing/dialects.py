"""Other dialects of the fake upstream: Azure's, and Anthropic's Messages API.

Each is a `Reply`, so that every scenario can be played in each dialect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from halt.testing.wire import Framing, Reply, as_json

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}

FILTERED = {
    name: {"filtered": False, "severity": "safe"}
    for name in ("hate", "self_harm", "sexual", "violence")
}


class AzureReply(Reply):
    """Azure: first the filter results of the prompt, without choices; results with every piece."""

    def open(self, framing: Framing = Framing.CHUNKED) -> None:
        if not self.begin(framing):
            return
        results = {"prompt_index": 0, "content_filter_results": FILTERED}
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        self.event(as_json(first | {"prompt_filter_results": [results]}))
        self.chunk({"role": "assistant", "content": "", "refusal": None})

    def chunk_object(
        self, delta: dict[str, object], finish_reason: str | None = None
    ) -> dict[str, Any]:
        chunk = super().chunk_object(delta, finish_reason)
        results = FILTERED if delta.get("content") else {}
        chunk["choices"][0]["content_filter_results"] = results
        return chunk


class MessagesReply(Reply):
    """Anthropic: named events; blocks of text, thinking and tool calls; no [DONE]."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._block = -1  # index of the open block, -1 before the first
        self._block_kind = ""
        self._call_index: int | None = None

    def chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> None:
        if not self.streaming:
            return
        if delta.get("role"):
            usage = {"input_tokens": self._usage()["prompt_tokens"], "output_tokens": 1}
            fixed = {"id": "msg_fake", "type": "message", "role": "assistant", "content": []}
            message = fixed | {"model": self._common["model"], "stop_reason": None, "usage": usage}
            self._send_event("message_start", message=message)
            self._send_event("ping")
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            self._call(call)
        if finish_reason:
            self._end_block()
            reason = {"stop_reason": STOP_REASONS[finish_reason], "stop_sequence": None}
            usage = {"output_tokens": self._usage()["completion_tokens"]}
            self._send_event("message_delta", delta=reason, usage=usage)

    def token(self, *texts: str, kind: str = "content") -> None:
        self.open()
        if self.streaming:
            self._begin_block("text" if kind == "content" else "thinking")
        super().token(*texts, kind=kind)

    def finish(self, reason: str = "stop", *, usage: bool = True, end: bool = True) -> None:
        self.open()
        self.hold_once()
        self.chunk({}, reason)
        data = as_json({"type": "message_stop"})
        self.write(b"event: message_stop\ndata: " + data + b"\n\n", last=end)

    def event(self, data: bytes, *, last: bool = False) -> None:
        """Convert an event in OpenAI's format, which is an error."""
        error = json.loads(data)["error"]
        self._send_event("error", error={"type": error["type"], "message": error["message"]})
        if last:
            self.end()

    def error(
        self,
        status: int,
        message: str,
        kind: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        error = {"type": ERROR_TYPES.get(status, "api_error"), "message": message}
        content = as_json({"type": "error", "error": error, "request_id": "req_fake"})
        self.whole(status, content, headers=headers)

    def _send_event(self, type_: str, **members: object) -> None:
        data = as_json({"type": type_} | members)
        self.write(b"event: " + type_.encode() + b"\ndata: " + data + b"\n\n")

    def _begin_block(self, kind: str, **members: object) -> None:
        if kind == self._block_kind and kind != "tool_use":
            return
        self._end_block()
        self._block += 1
        self._block_kind = kind
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
        block = {"type": kind} | empty.get(kind, {}) | members
        self._send_event("content_block_start", index=self._block, content_block=block)

    def _end_block(self) -> None:
        if self._block_kind == "thinking":
            signed = {"type": "signature_delta", "signature": f"signed-{self._block}"}
            self._send_event("content_block_delta", index=self._block, delta=signed)
        if self._block_kind:
            self._send_event("content_block_stop", index=self._block)
        self._block_kind = ""

    def _call(self, call: dict[str, Any]) -> None:
        function = call["function"]
        if call["index"] != self._call_index:
            self._call_index = call["index"]
            self._begin_block("tool_use", id=call["id"], name=function["name"], input={})
        if function.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": function["arguments"]}
            self._send_event("content_block_delta", index=self._block, delta=delta)

    def _around(self, kind: str) -> tuple[bytes, bytes]:
        placeholder = "\x00"
        member = "text" if kind == "content" else "thinking"
        delta = {"type": f"{member}_delta", member: placeholder}
        data = as_json({"type": "content_block_delta", "index": self._block, "delta": delta})
        event = b"event: content_block_delta\ndata: " + data + b"\n\n"
        before, after = event.split(as_json(placeholder))
        return before, after


def model_list(names: Iterable[str]) -> dict[str, object]:
    """The model list in Anthropic's format."""
    fixed = {"type": "model", "created_at": "2026-01-01T00:00:00Z"}
    data = [{"id": name, "display_name": name} | fixed for name in names]
    return {"data": data, "has_more": False, "first_id": None, "last_id": None}
