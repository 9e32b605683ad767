"""The stream of OpenAI's chat completions, as its API and its servers send it, to deltas."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.providers.decoder import OBJECTS_MAX, EventDecoder, Kind
from halt.providers.error_body import WRAPPERS
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
from halt.providers.round_trip import RoundTripFields
from halt.providers.tool_calls import CallAssembler
from halt.providers.unknown_fields import UnknownFields

# The usual chunk: what the API and its servers send with each token. A field that is `None` here is
# understood where it has another value, by the liberal way.


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
    text: str | None = None  # Together, where it is that of the delta
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

#: Names of thoughts beside an answer's text.
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")
#: Fields that say why the model has come to its end; the first that is there counts.
REASONS = ("finish_reason", "finishReason", "done_reason", "finish_details", "stop_reason")

# Fields that Halt has a place for, or that say nothing to anybody; others are handed on.
# fmt: off
_OF_CHUNK = frozenset({
    "id", "object", "created", "model", "choices", "usage", "error", "obfuscation", "p", "nonce",
})
_OF_CHOICE = frozenset({
    "index", "delta", "message", "text", "content", "finish_reason", "finishReason", "usage",
    "logprobs", "error",
})
_OF_DELTA = frozenset({
    "role", "content", "text", "refusal", "tool_calls", "function_call", "error", *THOUGHTS,
})
_OF_CALL = frozenset({"index", "id", "type", "function", "name", "arguments"})
#: A chunk that has a choice and no other field tells no error.
_QUIET = _OF_CHUNK - {"error"} | {"provider", "system_fingerprint", "service_tier"}
#: Ollama's own words -> OpenAI's.
_COUNTS = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
#: Those of an object that is a choice itself.
_OF_LINE = _OF_CHUNK | _OF_CHOICE | _COUNTS.keys() | {
    "created_at", "response", "done", "done_reason", "context", "type", "role", "stop_reason",
}
# fmt: on


class ChatDecoder(EventDecoder):
    """The stream of a chat completion."""

    def __init__(self, *, logprobs: bool = False) -> None:
        """`logprobs`: they were asked for; servers that send them unasked are not listened to."""
        super().__init__()
        self._wants_logprobs = logprobs
        self._calls = CallAssembler()
        self._call_ids: set[str] = set()  # of calls that came
        self._has_calls = False
        self._has_output = False  # something was given out
        self._texts: dict[Kind, list[str]] = {Content: [], Reasoning: []}  # all that came
        self._sizes: dict[Kind, int] = {Content: 0, Reasoning: 0}  # characters of these
        self._constants: tuple[str | None, str | None, str | None] = (None, None, None)
        self._filters = _NONE  # Azure's verdict on the last piece
        self._unknown = UnknownFields()
        self._returned = RoundTripFields()

    @property
    def opaque(self) -> dict[str, Any] | None:
        """Fields of the message: see `RoundTripFields`."""
        thoughts, texts = self._texts[Reasoning], self._texts[Content]
        return self._returned.fields(thoughts, texts, marked=self._splitter.has_tags)

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
                continue  # one answer is shown; others are never asked for
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason:  # some send "" until there is one
                self.finish_reason = known_reason(choice.finish_reason) or self.finish_reason
        if self._unknown.waiting and out:
            self._unknown.emit(out)

    def _is_unusual(self, choice: _Choice) -> bool:
        """Whether a choice has what is to be handed on, or text outside its delta."""
        if self._wants_logprobs and bytes(choice.logprobs) not in {b"", b"null"}:
            return True
        if choice.content_filter_results != self._filters:
            self._filters = choice.content_filter_results
            return True
        return bool(choice.text) and (choice.delta is None or choice.delta.content != choice.text)

    def _take_delta(self, delta: _Delta, out: PartBuilder) -> None:
        thought, text = delta.reasoning_content or delta.reasoning, delta.content or delta.refusal
        if thought:
            self._returned.name = "reasoning_content" if delta.reasoning_content else "reasoning"
            self._came(Reasoning, thought, out)
            if not self._splitter.is_finished:
                self._splitter.note_reasoning(out)
            out.add_text(Reasoning, thought)
        if text:
            self._came(Content, text, out)
            if self._splitter.is_finished:
                out.add_text(Content, text)
            else:
                self._splitter.feed(text, out)
        if thought or text:
            self._has_output = True
            out.chunks += 1
        for call in delta.tool_calls or ():
            told = call.function or _Function()
            self._take_call(call.index, call.id or "", told.name or "", told.arguments or "", out)

    def _came(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Keep text as it came."""
        self._texts[kind].append(text)
        self._sizes[kind] += len(text)
        out.arrived += len(text)

    def _take_texts(self, thought: str | None, text: str | None, out: PartBuilder) -> None:
        """Thoughts and text of one piece."""
        if thought:
            self._came(Reasoning, thought, out)
            self._add_text(Reasoning, thought, out)
        if text:
            self._came(Content, text, out)
            self._add_text(Content, text, out)
        if thought or text:
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
        waiting, self._partial_characters = self._partial_characters, {}
        for key, halves in waiting.items():
            index, id_ = (None, key) if isinstance(key, str) else (key, "")
            self._calls.add_fragment(index, id_, "", halves.feed("", last=True), out)
        self._calls.finish(out)
        self._unknown.end(out)

    # --- any other chunk, whole answer or line ----------------------------------------------------

    def _decode_object(self, value: dict[str, Any], event: str | None, out: PartBuilder) -> None:
        value = _unwrapped(value)
        choices = as_objects(value.get("choices"))[:OBJECTS_MAX]
        own = _OF_CHUNK
        fault = None
        if event or not choices or value.keys() - _QUIET or any("error" in c for c in choices):
            fault = parse_error(value, event=event or "")
        if not choices and fault is None and _is_choice(value):
            choices, own = [value], _OF_LINE
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
                # A document instead of a stream is the server's last word where it does not say
                # that the fault will pass.
                is_final = event is None and fault.code == "upstream_error"
                raise fault.once() if is_final else fault
            return
        if not (choices or value.keys() & {"choices", "usage", "model"}):
            return  # a sign of life
        self._unknown.add("chunk", value, own)
        fixed = (value.get("system_fingerprint"), value.get("service_tier"), value.get("provider"))
        if all(each is None or isinstance(each, str) for each in fixed):
            self._constants = fixed
        if self._unknown.waiting and self._has_output:
            self._unknown.emit(out)

    def _take_choice(
        self, choice: dict[str, Any], out: PartBuilder, *, is_bare: bool, has_failed: bool
    ) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        if not isinstance(delta, dict):
            delta = {"content": delta}
        brought = self._take_part(delta, out)
        if isinstance(message, str):
            message = {"content": message}
        if isinstance(message, dict) and not brought:
            # Ollama's lines hold a piece under this name; elsewhere it is all of the answer.
            brought = self._take_part(message, out, is_whole="done" not in choice)
            self._is_complete_answer = self._is_complete_answer or (is_bare and brought)
        for name in ("text", "content", "response"):
            if not brought and (text := extract_text(choice.get(name))):
                brought = True
                self._take_texts(None, text, out)
        if not has_failed and (reason := _reason_in(choice)):
            self.finish_reason = reason

    def _take_part(self, part: dict[str, Any], out: PartBuilder, *, is_whole: bool = False) -> bool:
        """A delta, or a message. True where it had something of the answer in it."""
        name = next((name for name in THOUGHTS if extract_text(part.get(name))), "")
        thought = extract_text(part.get(name))
        self._returned.name = name or self._returned.name
        content = part.get("content")
        others: list[Any] = []
        if isinstance(content, list):
            thoughts, text, others = _of_parts(content)
            thought = thoughts or thought
            self._returned.take_parts(clean(content))
        else:
            text = extract_text(content)
        text = text or extract_text(part.get("text")) or extract_text(part.get("refusal"))
        thought = thought or extract_text(part.get("reasoning_details"))
        if is_whole:
            thought, text = self._new(Reasoning, thought), self._new(Content, text)
        self._take_texts(thought, text, out)
        has_calls = self._take_calls(part, out, is_whole=is_whole)
        extras = self._unknown.changed_fields("delta", part, _OF_DELTA)
        self._returned.take_fields(dict(extras))
        for each in others:
            name = "images" if "image" in str(each.get("type")) else "content_parts"
            extras.setdefault(name, []).append(clean(each))
        if extras:
            self._has_output = True
            out.add_event(Extra(delta=extras))
        return bool(thought or text or has_calls or extras)

    def _new(self, kind: Kind, text: str) -> str:
        """What of a whole text has not come yet. Servers repeat all that they sent in pieces."""
        known, size = self._texts[kind], self._sizes[kind]
        if not size or len(text) < size:
            return text
        return text.removeprefix("".join(known))

    def _take_calls(self, part: dict[str, Any], out: PartBuilder, *, is_whole: bool) -> bool:
        """The tool calls of a delta, or of a message. True where there are any."""
        calls = as_objects(part.get("tool_calls"))
        if isinstance(part.get("function_call"), dict):
            calls.append({"index": 0, "function": part["function_call"]})
        had_calls = self._has_calls
        ids = {valid_text(extract_text(call.get("id"))) for call in calls} if is_whole else set()
        known = ids & self._call_ids
        for call in calls:
            function = call.get("function")
            told = function if isinstance(function, dict) else call
            name = told.get("name", function if isinstance(function, str) else None)
            id_ = valid_text(extract_text(call.get("id")))
            arguments, index = _arguments(told), parse_index(call.get("index"))
            if is_whole and (id_ in known or (had_calls and not id_)):
                continue  # it came in pieces
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
    """An object with the fields of the answer that it holds, where a gateway has wrapped one."""
    if "choices" in value:
        return value
    for name in WRAPPERS:
        inner = as_object(value.get(name))
        if as_objects(inner.get("choices")):
            return {**{k: v for k, v in value.items() if k != name}, **inner}
    return value


def _is_choice(value: dict[str, Any]) -> bool:
    """Whether an object without choices is one itself: Ollama's lines, and similar ones."""
    if isinstance(value.get("message"), dict) or isinstance(value.get("delta"), dict):
        return True
    if isinstance(value.get("response"), str) or isinstance(value.get("done"), bool):
        return True
    names = ("content", "text", "finish_reason")
    return "type" not in value and any(isinstance(value.get(name), str) for name in names)


def _of_parts(parts: list[Any]) -> tuple[str, str, list[dict[str, Any]]]:
    """Thoughts and text of content that comes as a list, and its other parts."""
    thoughts, texts, others = [], [], []
    for part in parts:
        fields = as_object(part)
        thought = fields.get("thinking") or fields.get("reasoning")
        if thought or str(fields.get("type")) in {"thinking", "reasoning"}:
            thoughts.append(extract_text(thought) or extract_text(part))
        elif text := extract_text(part) or extract_text(fields.get("refusal")):
            texts.append(text)
        elif len(fields) > 1 and str(fields.get("type")) not in {"text", "output_text"}:
            others.append(fields)
    return "".join(thoughts), "".join(texts), others


def _arguments(told: dict[str, Any]) -> str:
    """A call's arguments as text; a few servers send them as an object, or as PHP's empty list."""
    for name in ("arguments", "parameters", "input"):
        value = told.get(name)
        if isinstance(value, str) or value is None:
            if value:
                return str(value)
            continue
        if value or told.get("name"):
            return msgspec.json.encode(clean(value) or {}).decode()
    return ""


def _reason_in(choice: dict[str, Any]) -> str | None:
    """Why the model has come to its end, None where it has not."""
    for name in REASONS:
        if reason := known_reason(choice.get(name)):
            return reason
    return "stop" if choice.get("done") is True or choice.get("stop") is True else None
