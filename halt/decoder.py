"""A model's stream of bytes to deltas: text, reasoning, tool calls.

`EventDecoder` cuts the bytes into the data of Server-Sent Events; `ChatDecoder` understands those
of OpenAI's chat completions, and `halt.anthropic_upstream` has one for Anthropic's messages.
Decoded with typed structs, because building the SDK's objects costs more than all the rest.
"""

from __future__ import annotations

import codecs
from typing import Any

import msgspec

from halt.chat import Part
from halt.errors import UpstreamError
from halt.events import Content, Reasoning
from halt.faults import error_of
from halt.gathering import Gathering
from halt.think_tags import ThinkSplitter
from halt.tool_calls import CallAssembler

LINE_MAX = 1_048_576  # bytes of one event; no model's piece of an answer is near it


class EventDecoder:
    """Bytes of an event stream to deltas, by the WHATWG's rules. `_take` is the provider's part.

    Bytes may be cut anywhere, within a character too: lines are cut as bytes and decoded whole.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model: str | None = None
        self.ended = False
        self._rest = b""  # the beginning of a line
        self._data: list[bytes] = []  # data lines of the event that is coming in
        self._size = 0  # bytes of those, with their line breaks
        self._at_start = True  # no line has been seen; it may begin with a byte order mark
        self._skip_lf = False  # the last byte was a CR, so an LF that follows belongs to it
        self._fault: UpstreamError | None = None

    @property
    def opaque(self) -> Any:
        """What the provider wants back with this answer when tools were called."""
        return None

    def _take(self, data: bytes, out: Gathering) -> None:
        """Understand one event. Raises UpstreamError."""
        raise NotImplementedError

    def _last(self, out: Gathering) -> None:
        """The answer has ended: give out what was held back."""

    def check(self) -> None:
        """Raise the UpstreamError that came behind text which was returned before, if any."""
        if self._fault is not None:
            raise self._fault

    def feed(self, raw: bytes) -> Part:
        """Decode what has come. Raises UpstreamError, after all text before it was returned."""
        self.check()
        out = Gathering()
        try:
            for data in self._events(raw):
                self._take(data, out)
                if self.ended:
                    self._last(out)
                    break
            if len(self._rest) + self._size > LINE_MAX:
                raise UpstreamError("upstream_invalid", "an event without an end")
        except UpstreamError as fault:
            if not out:
                raise
            self._fault = fault
        return out.part(ended=self.ended)

    def end(self) -> Part:
        """The body has ended. Raises UpstreamError where the answer had not."""
        self.check()
        if self.finish_reason is None:
            raise UpstreamError("upstream_incomplete")
        self.ended = True
        out = Gathering()
        self._last(out)
        return out.part(ended=True)

    def _events(self, raw: bytes) -> list[bytes]:
        if (  # the usual read: one whole event, behind whole events
            raw.startswith(b"data: ")
            and raw.endswith(b"\n\n")
            and raw.count(b"\n") == 2
            and not (self._rest or self._data or self._at_start or b"\r" in raw)
        ):
            self._skip_lf = False
            return [raw[6:-2]]
        if self._skip_lf and raw:
            self._skip_lf = False
            if raw.startswith(b"\n"):
                raw = raw[1:]
        if b"\r" in raw:
            self._skip_lf = raw.endswith(b"\r")
            raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + raw).split(b"\n")
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line) + 1
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        return events


# --- OpenAI's chat completions --------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None

    @property
    def piece(self) -> str:
        """The arguments as text; a few servers send them as an object."""
        if isinstance(self.arguments, dict):
            return msgspec.json.encode(self.arguments).decode()
        return self.arguments or ""


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None  # a list of parts: Mistral's thinking models
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, vLLM, LM Studio
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    error: Any = None
    object: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def _of_parts(parts: list[dict[str, Any]]) -> tuple[str, str]:
    """Thoughts and text of content that comes as a list."""
    thoughts, texts = [], []
    for part in parts:
        inner = part.get("thinking")
        if isinstance(inner, list):
            thoughts += [str(each.get("text", "")) for each in inner if isinstance(each, dict)]
        else:
            texts.append(str(part.get("text") or ""))
    return "".join(thoughts), "".join(texts)


class ChatDecoder(EventDecoder):
    """The stream of a chat completion."""

    def __init__(self) -> None:
        super().__init__()
        self._splitter = ThinkSplitter()
        self._calls = CallAssembler()

    def _take(self, data: bytes, out: Gathering) -> None:
        if data.startswith(b"[DONE]"):
            self.ended = True
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UpstreamError("upstream_invalid", str(exc)) from exc
        if (chunk.error or chunk.object == "error") and (
            error := error_of(msgspec.json.decode(data))
        ):
            raise error
        if chunk.usage is not None:
            self.usage = chunk.usage
        if self.model is None:
            self.model = chunk.model
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one answer is shown; others are never asked for
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason:  # some send "" until there is one
                self.finish_reason = choice.finish_reason

    def _take_delta(self, delta: _Delta, out: Gathering) -> None:
        thought, text = delta.reasoning_content or delta.reasoning, delta.content or delta.refusal
        if isinstance(text, list):
            thought, text = _of_parts(text)
        if thought:
            out.text(Reasoning, thought)
        if text:
            if self._splitter.through:
                out.text(Content, text)
            else:
                self._splitter.feed(text, out)
        if thought or text:
            out.chunks += 1
        for call in delta.tool_calls or ():
            self._take_call(call.index, call.id or "", call.function or _Function(), out)
        if delta.function_call is not None:
            self._take_call(0, "", delta.function_call, out)

    def _take_call(self, index: int | None, id_: str, told: _Function, out: Gathering) -> None:
        out.chunks += 1
        self._calls.fragment(index, id_, told.name or "", told.piece, out)

    def _last(self, out: Gathering) -> None:
        self._splitter.end(out)
        self._calls.finish(out)
