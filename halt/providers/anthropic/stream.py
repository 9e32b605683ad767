"""Decodes the stream of Anthropic's Messages API to the deltas that all providers use."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.errors import UpstreamError
from halt.providers.anthropic.request import tool_use
from halt.providers.decoder import EventDecoder, Kind
from halt.providers.errors import parse_error
from halt.providers.finish_reasons import normalise_reason
from halt.providers.loose_json import (
    as_object,
    as_objects,
    clean,
    extract_text,
    parse_index,
    parse_usage,
    valid_text,
)
from halt.providers.part_builder import PartBuilder
from halt.providers.tool_calls import CallAssembler

BLOCKS_MAX = 10_000  # of one answer

# The usual event: a piece of a block.


class _Piece(msgspec.Struct, forbid_unknown_fields=True):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["content_block_delta"]
    index: int
    delta: _Piece


class _Block:
    """A block of the answer, stored to be sent back unchanged."""

    __slots__ = ("id", "json", "kind", "name", "opaque", "signature", "text", "type")

    def __init__(self, block: dict[str, Any]) -> None:
        self.type = str(block.get("type") or "text")
        self.kind: Kind = Reasoning if "thinking" in self.type else Content  # of its text
        self.id = valid_text(extract_text(block.get("id")))
        self.name = valid_text(extract_text(block.get("name")))
        self.opaque = valid_text(extract_text(block.get("data")))
        self.signature = valid_text(extract_text(block.get("signature")))
        self.text: list[str] = []
        self.json: list[str] = []

    def native(self) -> dict[str, Any] | None:
        """Return the block in Anthropic's format, None if it must not be sent back."""
        text = "".join(self.text)
        if self.type == "text":
            return {"type": "text", "text": text} if text.strip() else None
        if self.type == "thinking":
            return {"type": "thinking", "thinking": text, "signature": self.signature}
        if self.type == "redacted_thinking":
            return {"type": "redacted_thinking", "data": self.opaque}
        if self.type == "tool_use":
            return tool_use(self.id, self.name, "".join(self.json))
        return None


_decode_delta = msgspec.json.Decoder(_Delta).decode


class MessagesDecoder(EventDecoder):
    """Decodes the stream of a message from Anthropic's API, or a complete message."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[_Block] = []  # in the order in which they started
        self._blocks: dict[int, _Block] = {}  # the server's index -> its current block
        self._implied: set[int] = set()  # indexes of thinking without a content_block_start
        self._newest = 0  # index of the block that started last
        self._current: _Block | None = None  # the block to which text was added last
        self._calls = CallAssembler()
        self._counts: dict[str, Any] = {}

    @property
    def opaque(self) -> list[dict[str, Any]] | None:
        """All blocks of an answer with signed thinking, None if it has no thinking."""
        if not any("thinking" in block.type for block in self._all):
            return None
        return [native for block in self._all if (native := block.native()) is not None]

    def _decode_event(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        try:
            delta = _decode_delta(data)
        except UNREADABLE:
            self._decode_unusual(data, event, out)
            return
        block = self._blocks.get(delta.index)
        piece = delta.delta
        if self._partial_characters or block is None or delta.index in self._implied:
            self._decode_unusual(data, event, out)
        elif text := piece.text or piece.thinking:
            out.chunks += 1
            out.arrived += len(text)
            self._current = block
            self._emit_text(block.kind if piece.text else Reasoning, text, out)
        elif piece.partial_json and block.type == "tool_use":
            self._add_input(delta.index, block, piece.partial_json, out)

    def _decode_object(self, value: dict[str, Any], event: str | None, out: PartBuilder) -> None:
        kind = _kind_of(value, event)
        index = parse_index(value.get("index"))
        delta = value.get("delta")
        if fault := parse_error(value, event=event or ""):
            if not self._is_finished:
                raise fault
            return
        if kind in {"message_start", "message"}:
            message = as_object(value.get("message")) or value
            self._take_message(message, out)
            if kind == "message":
                self._is_complete_answer = True
        elif kind == "content_block_start":
            block = as_object(value.get("content_block"))
            self._begin_block(self._next if index is None else index, block, out)
        elif kind == "content_block_delta":
            fields = delta if isinstance(delta, dict) else {"text": delta or value.get("text")}
            self._take_delta(self._newest if index is None else index, fields, out)
        elif kind in {"message_delta", "message_stop"}:
            self._has_started = True
            fields = as_object(delta)
            self._take_end(fields)
            self._take_end(as_object(value.get("message")))
            self._take_end(value)
            if self._counts:
                self.usage = _usage(self._counts)
            self.ended = kind == "message_stop"
        # ping, content_block_stop and unknown events are ignored

    @property
    def _next(self) -> int:
        """The index for a block that has none."""
        return self._newest + 1 if self._blocks else 0

    def _take_message(self, message: dict[str, Any], out: PartBuilder) -> None:
        """Decode the start of a message, or a complete one."""
        self._has_started = True
        model = message.get("model")
        if isinstance(model, str) and model:
            self.model = valid_text(model)
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for block in as_objects(content):
            self._begin_block(self._next, block, out)
        self._take_end(message)
        if self.finish_reason is not None and self._counts:
            self.usage = _usage(self._counts)

    def _take_end(self, fields: dict[str, Any]) -> None:
        """Take the finish reason and the token counts."""
        for name, count in (parse_usage(fields.get("usage")) or {}).items():
            old_count = self._counts.get(name)
            if not isinstance(old_count, int):
                self._counts[name] = count
            elif isinstance(count, int):
                # Counts only grow; some servers end with 0.
                self._counts[name] = max(count, old_count)
        if reason := normalise_reason(fields.get("stop_reason")):
            self.finish_reason = reason

    def _begin_block(self, index: int, fields: dict[str, Any], out: PartBuilder) -> None:
        self._has_started = True
        if len(self._all) >= BLOCKS_MAX:
            raise UpstreamError("upstream_invalid", "too many blocks")
        block = self._blocks[index] = _Block(fields)
        self._implied.discard(index)
        self._all.append(block)
        self._newest = index
        if block.type != "tool_use":
            self._take_piece(block, fields, out)
            return
        out.chunks += 1
        self._splitter.note_tool_call(out)
        self._calls.add_fragment(index, block.id, block.name, "", out)
        tool_input = fields.get("input")
        if tool_input:  # some servers send the complete input here
            self._add_input(index, block, _json_text(tool_input), out)

    def _take_delta(self, index: int, delta: dict[str, Any], out: PartBuilder) -> None:
        kind = str(delta.get("type"))
        block = self._blocks.get(index)
        if block is None:  # there was no content_block_start
            is_thinking = "thinking" in delta or "signature" in delta
            self._begin_block(index, {"type": "thinking" if is_thinking else "text"}, out)
            block = self._blocks[index]
            if is_thinking:
                self._implied.add(index)
        elif index in self._implied and kind == "text_delta":
            self._begin_block(index, {"type": "text"}, out)
            block = self._blocks[index]
        if kind == "input_json_delta" or "partial_json" in delta:
            if block.type == "tool_use":
                self._add_input(index, block, _json_text(delta.get("partial_json")), out)
            return
        if kind == "signature_delta":
            block.signature += valid_text(extract_text(delta.get("signature")))
            return
        self._take_piece(block, delta, out)

    def _add_input(self, index: int, block: _Block, text: str, out: PartBuilder) -> None:
        text = self._whole_characters(index, text)
        if text:
            out.chunks += 1
            block.json.append(text)
            self._calls.add_fragment(index, "", "", text, out)

    def _take_piece(self, block: _Block, piece: dict[str, Any], out: PartBuilder) -> None:
        """Add the thinking, text and sources of a block, or of a piece of one."""
        reasoning = extract_text(piece.get("thinking"))
        text = extract_text(piece.get("text"))
        if not text and str(piece.get("type", "text")) in {"text", "text_delta"}:
            text = extract_text(piece.get("content"))
        if reasoning:
            self._write(block, Reasoning, reasoning, out)
        if text:
            self._write(block, block.kind, text, out)
        sources = [*as_objects(piece.get("citations")), *as_objects(piece.get("citation"))]
        for name, source in map(_source_of, filter(None, sources)):
            out.add_event(Extra(delta={name: [source]}))

    def _write(self, block: _Block, kind: Kind, text: str, out: PartBuilder) -> None:
        out.chunks += 1
        out.arrived += len(text)
        self._current = block
        self._add_text(kind, text, out)

    def _emit_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        if self._current is not None and self._current.kind is kind:
            self._current.text.append(text)
        super()._emit_text(kind, text, out)

    def _flush(self, out: PartBuilder) -> None:
        super()._flush(out)
        joiners, self._partial_characters = self._partial_characters, {}
        for index, joiner in joiners.items():
            self._add_input(index, self._blocks[index], joiner.feed("", last=True), out)
        self._calls.finish(out)


def _json_text(value: Any) -> str:
    """Return a piece of JSON as text. Some servers send the JSON value in its place."""
    if isinstance(value, dict | list):
        return msgspec.json.encode(clean(value)).decode()
    return extract_text(value)


def _kind_of(value: dict[str, Any], event: str | None) -> str:
    """Return an event's type: by its field `type`, else by its name, else by its fields."""
    for name in (value.get("type"), event):
        if isinstance(name, str) and name:
            return name
    if "content_block" in value:
        return "content_block_start"
    if "delta" in value:
        return (
            "message_delta" if "stop_reason" in as_object(value["delta"]) else "content_block_delta"
        )
    return "message" if "content" in value and "role" in value else ""


def _source_of(citation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and value of the field for a source of a block's text.

    A source with a URL has OpenAI's format.
    """
    source = clean(citation)
    if not isinstance(source.get("url"), str):
        return "citations", source
    url_citation = {"url": source["url"], "title": extract_text(source.get("title"))}
    if quoted := extract_text(source.get("cited_text")):
        url_citation["content"] = quoted
    return "annotations", {"type": "url_citation", "url_citation": url_citation}


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    """Return Anthropic's counts in OpenAI's format: prompt tokens include those from the cache."""

    def count(name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) else 0

    cached = count("cache_read_input_tokens")
    prompt = count("input_tokens") + count("cache_creation_input_tokens") + cached
    answer = count("output_tokens")
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage
