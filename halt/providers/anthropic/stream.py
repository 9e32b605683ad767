"""The events of a message of Anthropic's to the same deltas as those of every provider."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.errors import UpstreamError
from halt.providers.anthropic.request import tool_use
from halt.providers.decoder import EventDecoder, Kind
from halt.providers.errors import parse_error
from halt.providers.finish_reasons import known_reason
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


class _Written:
    """A block of the answer, gathered to be given back as it was."""

    __slots__ = ("id", "json", "kind", "name", "opaque", "signature", "text", "type")

    def __init__(self, block: dict[str, Any]) -> None:
        self.type = str(block.get("type") or "text")
        self.kind: Kind = Reasoning if "thinking" in self.type else Content  # what its text is
        self.id = valid_text(extract_text(block.get("id")))
        self.name = valid_text(extract_text(block.get("name")))
        self.opaque = valid_text(extract_text(block.get("data")))
        self.signature = valid_text(extract_text(block.get("signature")))
        self.text: list[str] = []
        self.json: list[str] = []

    def native(self) -> dict[str, Any] | None:
        """The block in Anthropic's words. None: it must not be given back."""
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
    """The stream of a message of Anthropic's, or a whole message."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[_Written] = []  # in the order in which they began
        self._blocks: dict[int, _Written] = {}  # the server's index -> the block it means now
        self._implied: set[int] = set()  # indexes of thoughts that were never begun
        self._newest = 0  # index of the block that was begun last
        self._into: _Written | None = None  # the block that text was written to last
        self._calls = CallAssembler()
        self._counts: dict[str, Any] = {}

    @property
    def opaque(self) -> list[dict[str, Any]] | None:
        """The whole answer with its signed thoughts, None where there are no thoughts."""
        if not any("thinking" in block.type for block in self._all):
            return None
        return [native for block in self._all if (native := block.native()) is not None]

    def _decode_event(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        try:
            usual = _decode_delta(data)
        except UNREADABLE:
            self._decode_unusual(data, event, out)
            return
        written = self._blocks.get(usual.index)
        piece = usual.delta
        if self._partial_characters or written is None or usual.index in self._implied:
            self._decode_unusual(data, event, out)
        elif text := piece.text or piece.thinking:
            out.chunks += 1
            out.arrived += len(text)
            self._into = written
            self._emit_text(written.kind if piece.text else Reasoning, text, out)
        elif piece.partial_json and written.type == "tool_use":
            self._add_input(usual.index, written, piece.partial_json, out)

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
        # ping, content_block_stop, and what may come in later versions

    @property
    def _next(self) -> int:
        """The index of a block that comes without one."""
        return self._newest + 1 if self._blocks else 0

    def _take_message(self, message: dict[str, Any], out: PartBuilder) -> None:
        """The beginning of a message, or all of it."""
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
        """The reason of the end, and the counts."""
        for name, count in (parse_usage(fields.get("usage")) or {}).items():
            known = self._counts.get(name)
            if not isinstance(known, int):
                self._counts[name] = count
            elif isinstance(count, int):
                self._counts[name] = max(count, known)  # it only grows; some end with zeros
        if reason := known_reason(fields.get("stop_reason")):
            self.finish_reason = reason

    def _begin_block(self, index: int, block: dict[str, Any], out: PartBuilder) -> None:
        self._has_started = True
        if len(self._all) >= BLOCKS_MAX:
            raise UpstreamError("upstream_invalid", "too many blocks")
        written = self._blocks[index] = _Written(block)
        self._implied.discard(index)
        self._all.append(written)
        self._newest = index
        if written.type != "tool_use":
            self._take_piece(written, block, out)
            return
        out.chunks += 1
        self._splitter.note_tool_call(out)
        self._calls.add_fragment(index, written.id, written.name, "", out)
        given = block.get("input")
        if given:  # some servers give the whole input here
            self._add_input(index, written, _json_text(given), out)

    def _take_delta(self, index: int, delta: dict[str, Any], out: PartBuilder) -> None:
        kind = str(delta.get("type"))
        written = self._blocks.get(index)
        if written is None:  # it was never begun
            about_thought = "thinking" in delta or "signature" in delta
            self._begin_block(index, {"type": "thinking" if about_thought else "text"}, out)
            written = self._blocks[index]
            if about_thought:
                self._implied.add(index)
        elif index in self._implied and kind == "text_delta":
            self._begin_block(index, {"type": "text"}, out)
            written = self._blocks[index]
        if kind == "input_json_delta" or "partial_json" in delta:
            if written.type == "tool_use":
                self._add_input(index, written, _json_text(delta.get("partial_json")), out)
            return
        if kind == "signature_delta":
            written.signature += valid_text(extract_text(delta.get("signature")))
            return
        self._take_piece(written, delta, out)

    def _add_input(self, index: int, written: _Written, text: str, out: PartBuilder) -> None:
        text = self._whole_characters(index, text)
        if text:
            out.chunks += 1
            written.json.append(text)
            self._calls.add_fragment(index, "", "", text, out)

    def _take_piece(self, written: _Written, piece: dict[str, Any], out: PartBuilder) -> None:
        """Thoughts, text and sources of a block, or of a piece of one."""
        thought = extract_text(piece.get("thinking"))
        text = extract_text(piece.get("text"))
        if not text and str(piece.get("type", "text")) in {"text", "text_delta"}:
            text = extract_text(piece.get("content"))
        if thought:
            self._write(written, Reasoning, thought, out)
        if text:
            self._write(written, written.kind, text, out)
        sources = [*as_objects(piece.get("citations")), *as_objects(piece.get("citation"))]
        for name, source in map(_source_of, filter(None, sources)):
            out.add_event(Extra(delta={name: [source]}))

    def _write(self, written: _Written, kind: Kind, text: str, out: PartBuilder) -> None:
        out.chunks += 1
        out.arrived += len(text)
        self._into = written
        self._add_text(kind, text, out)

    def _emit_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        if self._into is not None and self._into.kind is kind:
            self._into.text.append(text)
        super()._emit_text(kind, text, out)

    def _flush(self, out: PartBuilder) -> None:
        super()._flush(out)
        waiting, self._partial_characters = self._partial_characters, {}
        for index, joiner in waiting.items():
            self._add_input(index, self._blocks[index], joiner.feed("", last=True), out)
        self._calls.finish(out)


def _json_text(given: Any) -> str:
    """A piece of JSON; some servers give the value itself."""
    if isinstance(given, dict | list):
        return msgspec.json.encode(clean(given)).decode()
    return extract_text(given)


def _kind_of(value: dict[str, Any], event: str | None) -> str:
    """What an event is: by its type, else by its name, else by what it holds."""
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
    """A source of a block's text, under OpenAI's name and in its words where it is an address."""
    source = clean(citation)
    if not isinstance(source.get("url"), str):
        return "citations", source
    told = {"url": source["url"], "title": extract_text(source.get("title"))}
    if quoted := extract_text(source.get("cited_text")):
        told["content"] = quoted
    return "annotations", {"type": "url_citation", "url_citation": told}


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's counts in OpenAI's terms: the prompt includes what came from the cache."""

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
