"""Decodes the stream of OpenAI's chat completions, with the variants of all servers, to deltas."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.providers.decoder import OBJECTS_MAX, EventDecoder, Kind
from halt.providers.error_body import WRAPPERS
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
from halt.providers.round_trip import RoundTripFields
from halt.providers.tool_calls import CallAssembler
from halt.providers.unknown_fields import UnknownFields

# The usual chunk: the fields that OpenAI and other servers send with each token. A chunk in which a
# field of type `None` has another value goes to `_decode_unusual`.


_NONE = msgspec.Raw(b"")


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, SGLang, LM Studio
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: None = None
    token_id: msgspec.Raw = _NONE  # Together


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0
    logprobs: msgspec.Raw = _NONE
    native_finish_reason: None = None  # OpenRouter
    stop_reason: None = None  # vLLM
    token_ids: None = None
    matched_stop: None = None  # SGLang
    text: str | None = None  # Together: repeats the text of the delta
    seed: msgspec.Raw = _NONE
    content_filter_results: msgspec.Raw = _NONE  # Azure


class _Chunk(msgspec.Struct, forbid_unknown_fields=True):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    id: msgspec.Raw = _NONE
    object: Literal["chat.completion.chunk", ""] | None = None
    created: msgspec.Raw = _NONE
    error: None = None
    provider: str | None = None  # OpenRouter
    system_fingerprint: str | None = None
    service_tier: str | None = None
    obfuscation: msgspec.Raw = _NONE  # padding


_decode_chunk = msgspec.json.Decoder(_Chunk).decode

#: Names of the fields with reasoning.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")
#: Names of the fields with the finish reason; the first one that is present counts.
REASONS = ("finish_reason", "finishReason", "done_reason", "finish_details", "stop_reason")

# Fields that Halt handles, or that are of no use to clients; others are passed to the client.
# fmt: off
_OF_CHUNK = frozenset({
    "id", "object", "created", "model", "choices", "usage", "error", "obfuscation", "p", "nonce",
})
_OF_CHOICE = frozenset({
    "index", "delta", "message", "text", "content", "finish_reason", "finishReason", "usage",
    "logprobs", "error",
})
_OF_DELTA = frozenset({
    "role", "content", "text", "refusal", "tool_calls", "function_call", "error", *REASONING_FIELDS,
})
_OF_CALL = frozenset({"index", "id", "type", "function", "name", "arguments"})
#: A chunk with a choice and only these fields holds no error.
_NO_ERROR = _OF_CHUNK - {"error"} | {"provider", "system_fingerprint", "service_tier"}
#: Ollama's names of token counts -> OpenAI's.
_COUNTS = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
#: The handled fields of an object that is a choice itself.
_OF_LINE = _OF_CHUNK | _OF_CHOICE | _COUNTS.keys() | {
    "created_at", "response", "done", "done_reason", "context", "type", "role", "stop_reason",
}
# fmt: on


class ChatDecoder(EventDecoder):
    """Decodes the stream of a chat completion, or a complete one."""

    def __init__(self, *, logprobs: bool = False) -> None:
        """`logprobs`: the request asks for them. Otherwise logprobs from the server are dropped."""
        super().__init__()
        self._wants_logprobs = logprobs
        self._calls = CallAssembler()
        self._call_ids: set[str] = set()  # of the calls that have arrived
        self._has_calls = False
        self._has_output = False  # something was emitted
        self._texts: dict[Kind, list[str]] = {Content: [], Reasoning: []}  # all text, as it arrived
        self._sizes: dict[Kind, int] = {Content: 0, Reasoning: 0}  # characters of `_texts`
        # The last (system_fingerprint, service_tier, provider): the same in most chunks.
        self._constants: tuple[str | None, str | None, str | None] = (None, None, None)
        self._filters = _NONE  # Azure's content filter results of the last chunk
        self._unknown = UnknownFields()
        self._round_trip = RoundTripFields()

    @property
    def opaque(self) -> dict[str, Any] | None:
        """Fields of the message: see `RoundTripFields`."""
        reasoning_texts, texts = self._texts[Reasoning], self._texts[Content]
        return self._round_trip.fields(reasoning_texts, texts, marked=self._splitter.has_tags)

    # --- the usual chunk --------------------------------------------------------------------------

    def _decode_event(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        if event or self._partial_characters:
            self._decode_unusual(data, event, out)
            return
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            self._decode_unusual(data, event, out)
            return
        choices = chunk.choices
        if (chunk.system_fingerprint, chunk.service_tier, chunk.provider) != self._constants or (
            choices and self._is_unusual(choices[0])
        ):
            self._decode_unusual(data, event, out)
            return
        if chunk.usage:
            self.usage = parse_usage(chunk.usage)
        if self.model is None:
            self.model = chunk.model or None
        for choice in choices or ():
            self._has_started = True
            if choice.index:
                continue  # only the first answer counts: Halt never requests more
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason:  # some servers send "" before the end
                self.finish_reason = normalise_reason(choice.finish_reason) or self.finish_reason
        if self._unknown.waiting and out:
            self._unknown.emit(out)

    def _is_unusual(self, choice: _Choice) -> bool:
        """Whether a choice has fields to pass to the client, or text outside its delta."""
        if self._wants_logprobs and bytes(choice.logprobs) not in {b"", b"null"}:
            return True
        if choice.content_filter_results != self._filters:
            self._filters = choice.content_filter_results
            return True
        return bool(choice.text) and (choice.delta is None or choice.delta.content != choice.text)

    def _take_delta(self, delta: _Delta, out: PartBuilder) -> None:
        reasoning, text = delta.reasoning_content or delta.reasoning, delta.content or delta.refusal
        if reasoning:
            self._round_trip.name = "reasoning_content" if delta.reasoning_content else "reasoning"
            self._store_text(Reasoning, reasoning, out)
            if not self._splitter.is_finished:
                self._splitter.note_reasoning(out)
            out.add_text(Reasoning, reasoning)
        if text:
            self._store_text(Content, text, out)
            if self._splitter.is_finished:
                out.add_text(Content, text)
            else:
                self._splitter.feed(text, out)
        if reasoning or text:
            self._has_output = True
            out.chunks += 1
        for call in delta.tool_calls or ():
            function = call.function or _Function()
            name, arguments = function.name or "", function.arguments or ""
            self._take_call(call.index, call.id or "", name, arguments, out)

    def _store_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Store text as it arrived, and count its characters."""
        self._texts[kind].append(text)
        self._sizes[kind] += len(text)
        out.arrived += len(text)

    def _take_texts(self, reasoning: str | None, text: str | None, out: PartBuilder) -> None:
        """Add the reasoning and the text of one chunk."""
        if reasoning:
            self._store_text(Reasoning, reasoning, out)
            self._add_text(Reasoning, reasoning, out)
        if text:
            self._store_text(Content, text, out)
            self._add_text(Content, text, out)
        if reasoning or text:
            self._has_output = True
            out.chunks += 1

    def _take_call(
        self,
        index: int | None,
        id_: str,
        name: str,
        arguments: str,
        out: PartBuilder,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if not (id_ or name or arguments or extra):
            return
        self._has_output = self._has_calls = True
        if id_:
            self._call_ids.add(id_)
        out.chunks += 1
        if not self._splitter.is_finished:
            self._splitter.note_tool_call(out)
        self._calls.add_fragment(index, id_, name, arguments, out, extra)

    def _flush(self, out: PartBuilder) -> None:
        super()._flush(out)
        joiners, self._partial_characters = self._partial_characters, {}
        for key, joiner in joiners.items():
            index, id_ = (None, key) if isinstance(key, str) else (key, "")
            self._calls.add_fragment(index, id_, "", joiner.feed("", last=True), out)
        self._calls.finish(out)
        self._unknown.end(out)

    # --- unusual chunks, complete answers, and lines of JSON --------------------------------------

    def _decode_object(self, value: dict[str, Any], event: str | None, out: PartBuilder) -> None:
        value = _unwrapped(value)
        choices = as_objects(value.get("choices"))[:OBJECTS_MAX]
        known_names = _OF_CHUNK
        fault = None
        if event or not choices or value.keys() - _NO_ERROR or any("error" in c for c in choices):
            fault = parse_error(value, event=event or "")
        if not choices and fault is None and _is_choice(value):
            choices, known_names = [value], _OF_LINE
        is_bare = event is None and "done" not in value
        for choice in choices:
            self._has_started = True
            if not parse_index(choice.get("index")):
                self._take_choice(choice, out, is_bare=is_bare, has_failed=fault is not None)
                self._count(choice.get("usage"))
                if self._wants_logprobs and isinstance(choice.get("logprobs"), dict):
                    out.add_event(Extra(choice={"logprobs": clean(choice["logprobs"])}))
                if choice is not value:
                    self._unknown.add("choice", choice, _OF_CHOICE)
        self._count(value.get("usage"))
        self._count({_COUNTS[name]: value[name] for name in _COUNTS if name in value})
        self._count(as_object(value.get("x_groq")).get("usage"))
        model = value.get("model")
        if self.model is None and isinstance(model, str) and model:
            self.model = valid_text(model)
        if fault is not None:
            if not self._is_finished:
                # A document in place of a stream is final, unless its error says that a retry may
                # succeed.
                is_final = event is None and fault.code == "upstream_error"
                raise fault.without_retry() if is_final else fault
            return
        if not (choices or value.keys() & {"choices", "usage", "model"}):
            return  # a keep-alive
        self._unknown.add("chunk", value, known_names)
        constants = (
            value.get("system_fingerprint"),
            value.get("service_tier"),
            value.get("provider"),
        )
        if all(constant is None or isinstance(constant, str) for constant in constants):
            self._constants = constants
        if self._unknown.waiting and self._has_output:
            self._unknown.emit(out)

    def _take_choice(
        self, choice: dict[str, Any], out: PartBuilder, *, is_bare: bool, has_failed: bool
    ) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        if not isinstance(delta, dict):
            delta = {"content": delta}
        has_content = self._take_part(delta, out)
        if isinstance(message, str):
            message = {"content": message}
        if isinstance(message, dict) and not has_content:
            # In Ollama's lines `message` is a piece of the answer; from other servers it is all.
            has_content = self._take_part(message, out, is_whole="done" not in choice)
            self._is_complete_answer = self._is_complete_answer or (is_bare and has_content)
        for name in ("text", "content", "response"):
            if not has_content and (text := extract_text(choice.get(name))):
                has_content = True
                self._take_texts(None, text, out)
        if not has_failed and (reason := _reason_in(choice)):
            self.finish_reason = reason

    def _take_part(self, part: dict[str, Any], out: PartBuilder, *, is_whole: bool = False) -> bool:
        """Decode a delta, or a message. Return True if it held a part of the answer."""
        name = next((name for name in REASONING_FIELDS if extract_text(part.get(name))), "")
        reasoning = extract_text(part.get(name))
        self._round_trip.name = name or self._round_trip.name
        content = part.get("content")
        other_parts: list[Any] = []
        if isinstance(content, list):
            part_reasoning, text, other_parts = _split_parts(content)
            reasoning = part_reasoning or reasoning
            self._round_trip.take_parts(clean(content))
        else:
            text = extract_text(content)
        text = text or extract_text(part.get("text")) or extract_text(part.get("refusal"))
        reasoning = reasoning or extract_text(part.get("reasoning_details"))
        if is_whole:
            reasoning, text = self._new(Reasoning, reasoning), self._new(Content, text)
        self._take_texts(reasoning, text, out)
        has_calls = self._take_calls(part, out, is_whole=is_whole)
        extras = self._unknown.changed_fields("delta", part, _OF_DELTA)
        self._round_trip.take_fields(dict(extras))
        for other_part in other_parts:
            name = "images" if "image" in str(other_part.get("type")) else "content_parts"
            extras.setdefault(name, []).append(clean(other_part))
        if extras:
            self._has_output = True
            out.add_event(Extra(delta=extras))
        return bool(reasoning or text or has_calls or extras)

    def _new(self, kind: Kind, text: str) -> str:
        """Return the new part of a complete text: servers may repeat what they sent in pieces."""
        received_texts, size = self._texts[kind], self._sizes[kind]
        if not size or len(text) < size:
            return text
        return text.removeprefix("".join(received_texts))

    def _take_calls(self, part: dict[str, Any], out: PartBuilder, *, is_whole: bool) -> bool:
        """Add the tool calls of a delta, or of a message. Return True if there are any."""
        calls = as_objects(part.get("tool_calls"))
        if isinstance(part.get("function_call"), dict):
            calls.append({"index": 0, "function": part["function_call"]})
        had_calls = self._has_calls
        ids = {valid_text(extract_text(call.get("id"))) for call in calls} if is_whole else set()
        known_ids = ids & self._call_ids
        for call in calls:
            function = call.get("function")
            fields = function if isinstance(function, dict) else call
            name = fields.get("name", function if isinstance(function, str) else None)
            id_ = valid_text(extract_text(call.get("id")))
            arguments, index = _arguments(fields), parse_index(call.get("index"))
            if is_whole and (id_ in known_ids or (had_calls and not id_)):
                continue  # it arrived in pieces before
            key = id_ if index is None else index
            extra = self._unknown.changed_fields("call", call, _OF_CALL)
            self._take_call(
                index,
                id_,
                valid_text(extract_text(name)),
                self._whole_characters(key, arguments),
                out,
                extra,
            )
        return bool(calls)

    def _count(self, usage: Any) -> None:
        self.usage = parse_usage(usage) or self.usage


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the fields of the chunk that a gateway has wrapped in it, if any."""
    if "choices" in value:
        return value
    for name in WRAPPERS:
        inner = as_object(value.get(name))
        if as_objects(inner.get("choices")):
            return {**{k: v for k, v in value.items() if k != name}, **inner}
    return value


def _is_choice(value: dict[str, Any]) -> bool:
    """Whether an object without `choices` is a choice itself: Ollama's lines, and similar ones."""
    if isinstance(value.get("message"), dict) or isinstance(value.get("delta"), dict):
        return True
    if isinstance(value.get("response"), str) or isinstance(value.get("done"), bool):
        return True
    names = ("content", "text", "finish_reason")
    return "type" not in value and any(isinstance(value.get(name), str) for name in names)


def _split_parts(parts: list[Any]) -> tuple[str, str, list[dict[str, Any]]]:
    """Return the reasoning, the text and the other parts of a `content` that is a list."""
    reasoning_texts, texts, other_parts = [], [], []
    for part in parts:
        fields = as_object(part)
        reasoning = fields.get("thinking") or fields.get("reasoning")
        if reasoning or str(fields.get("type")) in {"thinking", "reasoning"}:
            reasoning_texts.append(extract_text(reasoning) or extract_text(part))
        elif text := extract_text(part) or extract_text(fields.get("refusal")):
            texts.append(text)
        elif len(fields) > 1 and str(fields.get("type")) not in {"text", "output_text"}:
            other_parts.append(fields)
    return "".join(reasoning_texts), "".join(texts), other_parts


def _arguments(fields: dict[str, Any]) -> str:
    """Return a call's arguments as text. Some servers send an object, or PHP's empty list."""
    for name in ("arguments", "parameters", "input"):
        value = fields.get(name)
        if isinstance(value, str) or value is None:
            if value:
                return str(value)
            continue
        if value or fields.get("name"):
            return msgspec.json.encode(clean(value) or {}).decode()
    return ""


def _reason_in(choice: dict[str, Any]) -> str | None:
    """Return the finish reason of a choice, None if the model has not finished."""
    for name in REASONS:
        if reason := normalise_reason(choice.get(name)):
            return reason
    return "stop" if choice.get("done") is True or choice.get("stop") is True else None
