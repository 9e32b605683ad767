"""The decoders of a model's stream: any bytes, cut anywhere."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from halt.core.events import Content, Reasoning, encode
from halt.errors import UpstreamError
from halt.providers.anthropic.stream import MessagesDecoder
from halt.providers.chat_completions import ChatDecoder
from halt.providers.decoder import EventDecoder
from tests.fuzz.cuts import cuts_of, pieces_of
from tests.fuzz.mutate import TEXTS, altered, any_value, dumped, mutated
from tests.fuzz.target import Finding, Target
from tests.support.halt_server import ROOT

CHAT_KEYS = (
    *(
        "choices",
        "delta",
        "content",
        "role",
        "reasoning",
        "reasoning_content",
        "tool_calls",
        "index",
    ),
    *(
        "id",
        "function",
        "name",
        "arguments",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "model",
        "error",
    ),
    *(
        "message",
        "code",
        "type",
        "text",
        "refusal",
        "citations",
        "annotations",
        "images",
        "logprobs",
    ),
    *(
        "function_call",
        "completion_tokens",
        "detail",
        "object",
        "response",
        "done",
        "extra_content",
    ),
)
MESSAGE_KEYS = (
    *(
        "type",
        "message",
        "content",
        "content_block",
        "delta",
        "index",
        "text",
        "thinking",
        "signature",
    ),
    *(
        "partial_json",
        "input",
        "id",
        "name",
        "usage",
        "input_tokens",
        "output_tokens",
        "stop_reason",
    ),
    *("error", "citations", "citation", "url", "title", "data", "role", "model"),
)


class Decoder(Target):
    """Any bytes become deltas or an UpstreamError, and the same however they are cut."""

    kind: ClassVar[type[EventDecoder]]
    provider: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]

    def check(self, data: bytes) -> None:
        whole_outcome = outcome(self.decoder(data), [data])
        for cuts in cuts_of(data):
            cut_outcome = outcome(self.decoder(data), pieces_of(data, cuts))
            if cut_outcome != whole_outcome:
                raise Finding(
                    "the answer depends on the cut",
                    f"\nwhole: {whole_outcome}\ncut at {cuts[:8]}: {cut_outcome}",
                )

    def decoder(self, _: bytes) -> EventDecoder:
        return self.kind()

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        known_inputs = [
            piece.encode("utf-8", "surrogatepass")
            for case in json.loads((ROOT / "tests/cases/upstream.json").read_text())
            if case["provider"] == self.provider
            for answer in case["upstream"]
            if isinstance(piece := answer.get("body"), str) and piece
        ]
        while True:
            data = rng.choice(known_inputs) if rng.random() < 0.3 else self._stream(rng)
            yield mutated(rng, data)[:4000]

    def events(self, rng: random.Random) -> list[tuple[str, Any]]:
        """The events of an ordinary answer, with their names."""
        raise NotImplementedError

    def _stream(self, rng: random.Random) -> bytes:
        end = rng.choice((b"\n", b"\n", b"\r\n", b"\r"))
        framing = rng.randrange(4)
        stream_lines = [b"\xef\xbb\xbf"] if rng.random() < 0.1 else []
        for name, event in self.events(rng):
            value = altered(rng, event, self.keys) if rng.random() < 0.3 else event
            if isinstance(value, str):
                payload = value.encode("utf-8", "surrogatepass")
            else:
                payload = dumped(rng, value)
            if framing < 3:
                lines = [b"event: " + name.encode()] if name and rng.random() < 0.9 else []
                blank = rng.choice((b" ", b" ", b" ", b"", b"\t"))
                lines += [b"data:" + blank + line for line in payload.split(b"\n")]
                if rng.random() < 0.1:
                    lines.insert(rng.randrange(len(lines) + 1), rng.choice(OTHER_LINES))
                stream_lines += [line + end for line in lines]
                if rng.random() < 0.97:
                    stream_lines.append(end)
            else:
                stream_lines.append(payload + end)
        return b"".join(stream_lines)


OTHER_LINES = (
    *(
        b": comment",
        b"id: 7",
        b"retry: 5",
        b"nonsense",
        b"data",
        b"DATA: {}",
        b" data: {}",
        b"event:",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"  ",
        b"error: no",
        b"Error: {}",
        b"<html><title>No</title>",
        b'{"error": "no"}',
    ),
)


class Chat(Decoder):
    """OpenAI's chat completions."""

    name = "chat"
    kind = ChatDecoder
    provider = "openai"
    keys = CHAT_KEYS

    def decoder(self, data: bytes) -> EventDecoder:
        return ChatDecoder(logprobs=b"logprobs" in data)

    def events(self, rng: random.Random) -> list[tuple[str, Any]]:
        events: list[tuple[str, Any]] = []
        for _ in range(rng.randrange(6)):
            text = rng.choice(TEXTS)
            delta = rng.choice(
                (
                    {"content": text},
                    {"content": text},
                    {"content": text},
                    {"reasoning_content": text},
                    {"reasoning": text},
                    {"role": "assistant", "content": text},
                    {"content": [{"type": "text", "text": text}]},
                    {"tool_calls": [_call(rng)]},
                    {"function_call": {"name": "f", "arguments": text}},
                    {"content": text, "images": [text]},
                    any_value(rng, self.keys),
                )
            )
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            events.append(("", {"model": "m", "choices": [choice]}))
        ends = [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": rng.choice(REASONS)}]},
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
            "[DONE]",
        ]
        if rng.random() < 0.1:
            message = {"role": "assistant", "content": rng.choice(TEXTS)}
            return [("", {"choices": [{"message": message, "finish_reason": "stop"}]})]
        if rng.random() < 0.2:
            ends.insert(rng.randrange(3), {"error": any_value(rng, self.keys)})
        return [*events, *(("", end) for end in ends[: rng.choice((0, 1, 2, 3, 3, 3, 4))])]


REASONS = ("stop", "length", "tool_calls", "error", "", None, 3, "content_filter")


def _call(rng: random.Random) -> dict[str, Any]:
    function = {"name": rng.choice(("f", "", None)), "arguments": rng.choice(TEXTS)}
    return {"index": rng.randrange(3), "id": rng.choice(("c", "", None)), "function": function}


class Messages(Decoder):
    """Anthropic's messages."""

    name = "anthropic"
    kind = MessagesDecoder
    provider = "anthropic"
    keys = MESSAGE_KEYS

    def events(self, rng: random.Random) -> list[tuple[str, Any]]:
        message = {"role": "assistant", "model": "m", "content": [], "usage": {"input_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
        for index in range(rng.randrange(4)):
            kind = rng.choice(("text", "text", "thinking", "tool_use", "redacted_thinking", "odd"))
            block = {"type": kind, "id": "c", "name": "f", "text": "", "input": {}, "data": "d"}
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            for _ in range(rng.randrange(4)):
                text = rng.choice(TEXTS)
                delta = rng.choice(
                    (
                        {"type": "text_delta", "text": text},
                        {"type": "thinking_delta", "thinking": text},
                        {"type": "input_json_delta", "partial_json": text},
                        {"type": "signature_delta", "signature": text},
                        {"type": "citations_delta", "citation": {"url": text}},
                        any_value(rng, self.keys),
                    )
                )
                events.append({"type": "content_block_delta", "index": index, "delta": delta})
            events.append({"type": "content_block_stop", "index": index})
        usage = {"output_tokens": 3}
        end = {"stop_reason": rng.choice(("end_turn", "max_tokens", "tool_use", None))}
        events.append({"type": "message_delta", "delta": end, "usage": usage})
        events.append({"type": "message_stop"})
        if rng.random() < 0.2:
            events.insert(
                rng.randrange(len(events)), {"type": "error", "error": any_value(rng, self.keys)}
            )
        if rng.random() < 0.1:
            blocks = [{"type": "text", "text": rng.choice(TEXTS)}]
            return [("", {**message, "type": "message", "content": blocks, **end})]
        return [(str(event["type"]), event) for event in events]


MADE_ID = re.compile(r"call_[0-9a-f]{16}")  # of a call that the model sent without an ID


def outcome(decoder: EventDecoder, pieces: Iterable[bytes]) -> list[str]:
    """The decoded deltas, end and facts of pieces, fed as `Run` feeds them.

    Consecutive text of one kind is joined: its grouping depends on the cut.
    """
    outcome_items: list[Any] = []
    chunks, ended, fault = 0, False, ""
    try:
        for piece in pieces:
            part = decoder.feed(piece)
            _gather(outcome_items, part.events)
            chunks += part.chunks
            ended = part.ended
            if ended:
                break
        if not ended:
            part = decoder.end()
            _gather(outcome_items, part.events)
            chunks += part.chunks
            ended = part.ended
        decoder.check()
    except UpstreamError as exc:
        fault = f"{exc.code}: {exc.message}"
        chunks = 0  # chunks of the failed read are not reported if they had no text
    msgspec.json.encode((decoder.finish_reason, decoder.usage, decoder.model, decoder.opaque))
    facts = (decoder.finish_reason, decoder.usage, decoder.model, decoder.opaque)
    lines = [*map(repr, outcome_items), f"{chunks} {ended} {fault} {facts!r}"]
    return [MADE_ID.sub("call_made", line) for line in lines]


def _gather(outcome_items: list[Any], events: Iterable[Any]) -> None:
    for event in events:
        encode(event)  # must not raise
        last = outcome_items[-1] if outcome_items else None
        if isinstance(event, Content) and isinstance(last, Content):
            outcome_items[-1] = Content(last.content + event.content)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            outcome_items[-1] = Reasoning(last.text + event.text)
        else:
            outcome_items.append(event)
