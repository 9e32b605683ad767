"""The fake upstream's other tongues: Azure's, and Anthropic's Messages API.

Each is a `Reply`, so that every scenario can be played in each of them.
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
    """Azure's: first the verdict on the prompt, without choices; a verdict with every piece."""

    def open(self, framing: Framing = Framing.CHUNKED) -> None:
        if not self.begin(framing):
            return
        verdict = {"prompt_index": 0, "content_filter_results": FILTERED}
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        self.event(as_json(first | {"prompt_filter_results": [verdict]}))
        self.chunk({"role": "assistant", "content": "", "refusal": None})

    def chunk_object(
        self, delta: dict[str, object], finish_reason: str | None = None
    ) -> dict[str, Any]:
        chunk = super().chunk_object(delta, finish_reason)
        verdict = FILTERED if delta.get("content") else {}
        chunk["choices"][0]["content_filter_results"] = verdict
        return chunk


class MessagesReply(Reply):
    """Anthropic's: named events, blocks of text, thought and calls, no [DONE]."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
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
            self._say("message_start", message=message)
            self._say("ping")
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            self._call(call)
        if finish_reason:
            self._end_block()
            reason = {"stop_reason": STOP_REASONS[finish_reason], "stop_sequence": None}
            usage = {"output_tokens": self._usage()["completion_tokens"]}
            self._say("message_delta", delta=reason, usage=usage)

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
        """An event that a scenario has written in OpenAI's words: an error."""
        error = json.loads(data)["error"]
        self._say("error", error={"type": error["type"], "message": error["message"]})
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

    def _say(self, type_: str, **members: object) -> None:
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
        self._say("content_block_start", index=self._block, content_block=block)

    def _end_block(self) -> None:
        if self._block_kind == "thinking":
            signed = {"type": "signature_delta", "signature": f"signed-{self._block}"}
            self._say("content_block_delta", index=self._block, delta=signed)
        if self._block_kind:
            self._say("content_block_stop", index=self._block)
        self._block_kind = ""

    def _call(self, call: dict[str, Any]) -> None:
        told = call["function"]
        if call["index"] != self._call_index:
            self._call_index = call["index"]
            self._begin_block("tool_use", id=call["id"], name=told["name"], input={})
        if told.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": told["arguments"]}
            self._say("content_block_delta", index=self._block, delta=delta)

    def _around(self, kind: str) -> tuple[bytes, bytes]:
        mark = "\x00"
        member = "text" if kind == "content" else "thinking"
        delta = {"type": f"{member}_delta", member: mark}
        data = as_json({"type": "content_block_delta", "index": self._block, "delta": delta})
        event = b"event: content_block_delta\ndata: " + data + b"\n\n"
        before, after = event.split(as_json(mark))
        return before, after


def listed(names: Iterable[str]) -> dict[str, object]:
    """The list of models as Anthropic gives it."""
    fixed = {"type": "model", "created_at": "2026-01-01T00:00:00Z"}
    data = [{"id": name, "display_name": name} | fixed for name in names]
    return {"data": data, "has_more": False, "first_id": None, "last_id": None}
