"""A model's stream of bytes to deltas: text, reasoning, tool calls, and fields that have no name.

`EventDecoder` cuts the bytes into the data of Server-Sent Events, or of lines of JSON;
`ChatDecoder` understands those of OpenAI's chat completions, and `halt.providers.anthropic` has one
for Anthropic's messages. A piece as the API has it is decoded by a typed struct, which costs a
fraction of the SDK's objects. What the struct refuses is read liberally: what is needed is taken
from where it stands, and what is not needed cannot fail.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import Content, Extra, Reasoning
from halt.core.finish_reasons import known_reason
from halt.core.json_size import holds_more, open_brackets
from halt.core.request import Part
from halt.errors import UpstreamError
from halt.providers.error_body import page_words, written
from halt.providers.errors import WRAPPERS, error_of
from halt.providers.gathering import Gathering
from halt.providers.loose_json import (
    TEXT_DEPTH_MAX,
    Halves,
    clean,
    index_of,
    is_whole,
    object_of,
    objects_of,
    text_of,
    values,
    whole,
)
from halt.providers.returned import Returned
from halt.providers.think_tags import ThinkSplitter
from halt.providers.tool_calls import CallAssembler

LINE_MAX = 33_554_432  # bytes of one event; a picture in an answer has a few million
LINE_COST = 50  # bytes of memory that a line takes beside its own
WORDS_MAX = 20_000  # bytes that are kept of lines which are no event
NAMES_MAX = 200  # fields of one answer whose last value is remembered
VALUES_MAX = 250_000  # values of one event, and names of fields
OBJECTS_MAX = 10_000  # objects that stand in one event, one behind the other

Kind = type[Content] | type[Reasoning]
#: Data of an event, and the event's name; None: a line of JSON that is not framed as an event.
Framed = tuple[bytes, str | None]

#: What a JSON value, or one as Python writes it, begins with.
_VALUE_BEGINS = frozenset(b'{["-0123456789tfnNI\xef')  # the last begins a byte order mark
_FIELD = re.compile(rb"\s*(data|event|id|retry)\s*(?::\s?|\Z)", re.IGNORECASE)
_PAGE = re.compile(
    rb"\s*+(?:<\?xml[^>]*+>\s*+|<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body|title|meta|h\d)\b",
    re.IGNORECASE | re.DOTALL,
)


class EventDecoder:
    """Bytes of an answer to deltas. `_take` is the provider's part.

    Bytes may be cut anywhere, within a character too: lines are cut as bytes and decoded whole.
    Events are told by the WHATWG's rules. JSON that stands in lines of its own is taken as well:
    a whole answer instead of a stream, an error, a stream of lines (NDJSON).
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model: str | None = None
        self.ended = False
        self.label = ""  # what the response says of its body, where that is no event stream
        self._understood = False  # a part of an answer has come
        self._is_whole = False  # it was a whole answer, so no finish reason has to follow
        self._rest = bytearray()  # the beginning of a line
        self._data: list[bytes] = []  # data lines of the event that is coming in
        self._event = ""  # its name
        self._bare: list[bytes] = []  # lines of a JSON value that is coming in
        self._depth = 0  # its brackets that are open
        self._size = self._bare_size = 0  # bytes of memory of those lines
        self._words = b""  # lines behind the last event that are none
        self._on_page = False  # they are those of a web page
        self._at_start = True  # no line has been seen; it may begin with a byte order mark
        self._is_fresh = False  # nothing is kept of what came before
        self._skip_lf = False  # the last byte was a CR, so an LF that follows belongs to it
        self._cut = False  # the body has ended, so what comes last may be incomplete
        self._halves: dict[Any, Halves] = {}  # a kind of text, or a call -> what waits in it
        self._splitter = ThinkSplitter()
        self._fault: UpstreamError | None = None

    @property
    def opaque(self) -> Any:
        """What the provider wants back with this answer when tools were called."""
        return None

    @property
    def begun(self) -> bool:
        """Whether a part of an answer has come."""
        return self._understood

    @property
    def has_failed(self) -> bool:
        """An UpstreamError came behind text which was returned before: see `check`."""
        return self._fault is not None

    def check(self) -> None:
        """Raise the UpstreamError that came behind text which was returned before, if any."""
        if self._fault is not None:
            raise self._fault

    def feed(self, raw: bytes) -> Part:
        """Decode what has come. Raises UpstreamError, after all text before it was returned."""
        if self._fault is not None:
            raise self._fault
        out = Gathering()
        try:
            is_short = len(raw) <= VALUES_MAX  # so it holds no more values, and is not counted
            if self._is_fresh and is_short and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
                breaks = raw.count(b"\n")
                if breaks == 2 and b"\r" not in raw:  # the usual read
                    self._skip_lf = False
                    self._take(raw[6:-2], "", out)
                else:
                    self._take_all(self._single_lines(raw, breaks) or self._events(raw), out)
            else:
                self._take_all(self._events(raw), out)
        except UpstreamError as fault:
            return self._broken(fault, out)
        if self.ended:
            self._last(out)
        return out.part(ended=self.ended)

    def _single_lines(self, raw: bytes, breaks: int) -> list[Framed]:
        """The events of a read that is whole events of one line each; empty where it is not."""
        pieces = raw[6:-2].split(b"\n\ndata: ")
        if breaks != 2 * len(pieces) or b"\r" in raw:
            return []
        self._skip_lf = False
        return [(data, "") for data in pieces]

    def _take_all(self, events: list[Framed], out: Gathering) -> None:
        for data, event in events:
            if self._words and event is not None:
                self._words = b""
            if holds_more(data, VALUES_MAX):
                self._over("an event with too many values")
            else:
                self._take(data, event, out)
            if self.ended:
                return
        if len(self._rest) + self._size + self._bare_size > LINE_MAX:
            self._over("an event without an end")

    def _over(self, detail: str) -> None:
        """An event is over a limit: the answer's end, with a fault where something is missing."""
        if not self._is_finished:
            raise UpstreamError("upstream_invalid", detail)
        self.ended = True

    def end(self, cause: UpstreamError | None = None) -> Part:
        """The body has ended, in order or by this fault. Raises UpstreamError.

        It is raised where the answer had not ended, after all text was returned.
        """
        self.check()
        self._cut = True
        out = Gathering()
        try:
            self._take_all(self._last_events(), out)
            if not (self.ended or self._is_whole or self.finish_reason is not None):
                raise cause or self._incomplete()
        except UpstreamError as fault:
            return self._broken(fault, out)
        self.ended = True
        self._last(out)
        return out.part(ended=True)

    # --- the provider's part ----------------------------------------------------------------------

    def _take(self, data: bytes, event: str | None, out: Gathering) -> None:
        """Understand one event. Raises UpstreamError."""
        raise NotImplementedError

    def _take_object(self, value: dict[str, Any], event: str | None, out: Gathering) -> None:
        """Understand the JSON object of an unusual event. Raises UpstreamError."""
        raise NotImplementedError

    def _give(self, kind: Kind, text: str, out: Gathering) -> None:
        """Give out text of whole characters, thoughts that are marked in it as such."""
        if not self._splitter.through:
            if kind is Content:
                self._splitter.feed(text, out)
                return
            self._splitter.reasoned(out)
        out.text(kind, text)

    def _give_rest(self, out: Gathering) -> None:
        """Give out the text that is held back."""
        for kind in (Reasoning, Content):
            self._end_half(kind, out)
        self._splitter.end(out)

    def _last(self, out: Gathering) -> None:
        """The answer has ended: give out what was held back."""
        self._give_rest(out)

    # --- what has come of an event ----------------------------------------------------------------

    def _take_unusual(self, data: bytes, event: str | None, out: Gathering) -> None:
        """Understand an event that the typed struct does not take. Raises UpstreamError."""
        data = data.strip()
        while data.startswith(b"data:"):  # framed twice, on the way through a gateway
            data = data[5:].strip()
        if not data:
            return
        if _is_done(data):
            self.ended = True
            return
        if event is None and (self._on_page or (not self._understood and is_page(data))):
            self._take_page(data)
            return
        if not event and data[0] not in _VALUE_BEGINS:
            self._note(data)  # 1 us a line of noise, and 6 us to try it as JSON
            return
        try:
            found = values(data)
        except ValueError as exc:
            self._not_json(data, event, exc)
            return
        for value in found:
            if isinstance(value, list) and len(value) > OBJECTS_MAX:
                self._over("an event with too many objects")
                return
            for each in value if isinstance(value, list) else (value,):
                if isinstance(each, dict):
                    self._take_object(each, event, out)
            if not isinstance(value, dict):
                self._fail_by(value, event)

    def _not_json(self, data: bytes, event: str | None, exc: ValueError) -> None:
        """A piece of an answer that is broken ends it; anything else is noise."""
        self._fail_by(written(data.decode("utf-8", "replace")), event)
        if data.startswith((b"{", b"[{")) and event is not None:
            if not (self._cut or self._is_finished):
                raise UpstreamError("upstream_invalid", str(exc)) from exc
            if b'"error"' not in data[:200]:
                return
        self._note(data)

    def _take_page(self, line: bytes) -> None:
        """A line of a web page. Raises UpstreamError when its title has come."""
        self._on_page = True
        self._note(line)
        if b"</title" in line.lower() or len(self._words) >= WORDS_MAX:
            raise self._web_page()

    def _fail_by(self, value: Any, event: str | None) -> None:
        """Raise the UpstreamError that a value tells, if it tells one.

        Behind its finish reason an answer is complete, and an error takes nothing from it.
        """
        fault = error_of(value, event=event or "")
        if fault is not None and not self._is_finished:
            raise fault

    @property
    def _is_finished(self) -> bool:
        """Whether the model has come to an end, so that nothing more is needed."""
        return self.finish_reason is not None and self.finish_reason.lower() != "error"

    def _say(self, kind: Kind, text: str, out: Gathering) -> None:
        """Give out text, but half a character with its other half."""
        if self._halves:
            self._end_half(Reasoning if kind is Content else Content, out)
        text = self._joined(kind, text)
        if text:
            self._give(kind, text, out)

    def _joined(self, key: Any, text: str) -> str:
        """The whole characters of the text `key` so far; a half at its end waits."""
        halves = self._halves.get(key)
        if halves is None:
            if is_whole(text):
                return text
            halves = Halves()
        text = halves.feed(text)
        if halves:
            self._halves[key] = halves
        else:
            self._halves.pop(key, None)
        return text

    def _end_half(self, kind: Kind, out: Gathering) -> None:
        """No other half came: U+FFFD stands for the character."""
        halves = self._halves.pop(kind, None)
        if halves is not None:
            self._give(kind, halves.feed("", last=True), out)

    # --- how an answer breaks off -----------------------------------------------------------------

    def _broken(self, fault: UpstreamError, out: Gathering) -> Part:
        """What came before this fault. Raises it where that is nothing."""
        self._give_rest(out)
        if not out:
            raise fault
        self._fault = fault
        return out.part(ended=False)

    def _incomplete(self) -> UpstreamError:
        """The fault of a body that ended before its answer did."""
        if self._on_page:
            return self._web_page()
        words = self._said()
        if not self._understood:
            if words and (fault := error_of(words, event="error")):
                return fault
            if self.label:
                return UpstreamError("upstream_invalid", self.label)
        # A single word ("ping") is a sign of life, and says nothing of the end.
        return UpstreamError("upstream_incomplete", words if " " in words else "")

    def _web_page(self) -> UpstreamError:
        return UpstreamError("upstream_web_page", page_words(self._said()))

    def _note(self, line: bytes) -> None:
        """Keep a line that is no event: the last ones may say why there are no more."""
        self._is_fresh = False
        if len(self._words) < WORDS_MAX:
            self._words += line[: WORDS_MAX - len(self._words)] + b"\n"

    def _said(self) -> str:
        """The last lines that were no event, empty where they are no text."""
        text = self._words.decode("utf-8", "replace").strip()
        readable = sum(char.isprintable() or char.isspace() for char in text)
        return text if readable * 10 > len(text) * 9 and "\ufffd" not in text else ""

    # --- lines ------------------------------------------------------------------------------------

    def _events(self, raw: bytes) -> list[Framed]:
        """The events that these bytes complete."""
        if self._skip_lf and raw:
            self._skip_lf = False
            if raw.startswith(b"\n"):
                raw = raw[1:]
        if b"\r" in raw:
            self._skip_lf = raw.endswith(b"\r")
            raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = raw.split(b"\n")
        rest = lines.pop()
        if self._rest:
            self._rest += lines[0] if lines else rest  # not copied by each read of a long line
            if not lines:
                return []
            lines[0] = bytes(self._rest)
            self._rest = bytearray(rest)
        elif rest:
            self._rest = bytearray(rest)
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        out: list[Framed] = []
        self._take_lines(lines, out)
        self._is_fresh = not (
            self._rest or self._data or self._event or self._bare or self._at_start
        )
        return out

    def _last_events(self) -> list[Framed]:
        """What the end of the body completes.

        An event is whole with its empty line; without it, it counts where the answer needs it.
        """
        out: list[Framed] = []
        if self._rest:
            line = bytes(self._rest)
            self._take_lines([line.removeprefix(codecs.BOM_UTF8) if self._at_start else line], out)
            self._rest = bytearray()
        if self._bare:
            out.append((b"\n".join(self._bare_lines()), None))
        if self._data and self.finish_reason is None:
            out.append(self._whole_event())
        return out

    def _take_lines(self, lines: list[bytes], out: list[Framed]) -> None:
        for line in lines:
            if line.startswith(b"data:"):
                if self._bare:
                    self._drop_bare(out)
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line) + LINE_COST
            elif not line:
                if self._data or self._event:
                    out.append(self._whole_event())
            elif line.startswith(b"event: ") and not self._bare:
                self._event = line[7:100].decode("utf-8", "replace")
            else:
                self._take_other_line(line, out)

    def _whole_event(self) -> Framed:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        self._size = 0
        return data[0] if len(data) == 1 else b"\n".join(data), event

    def _take_other_line(self, line: bytes, out: list[Framed]) -> None:
        """A line that is no `data:`, or is written in an unusual way."""
        if line.startswith(b":"):
            return
        field = _FIELD.match(line)
        if self._bare:
            if field is None or line[:1].isspace():
                self._take_bare_line(line, out)
                return
            self._drop_bare(out)
        stripped = line.strip()
        if not stripped:
            if self._data or self._event:
                out.append(self._whole_event())
        elif stripped.startswith((b"{", b"[")):
            self._take_bare_line(line, out)
        elif field is not None:
            name, value = field[1].lower(), line[field.end() :]
            if name == b"data" and value:
                self._data.append(value)
                self._size += len(line) + LINE_COST
            elif name == b"event":
                self._event = value.strip()[:100].decode("utf-8", "replace")
        elif stripped[:6].lower() == b"error:":
            out.append((stripped[6:], "error"))
        elif self._data and self._size < WORDS_MAX and self._is_open():
            self._take_bare_line(line, out)
        else:
            out.append((stripped, None))

    def _is_open(self) -> bool:
        """Whether the event's data is JSON whose further lines have no `data:` before them.

        If so, all its lines are those of a bare value.
        """
        data, self._size = self._data, WORDS_MAX  # it is looked at once
        self._depth = sum(map(open_brackets, data))
        if self._depth <= 0:
            self._depth = 0
            return False
        self._bare, self._data, self._event, self._size = data, [], "", 0
        return True

    def _take_bare_line(self, line: bytes, out: list[Framed]) -> None:
        """A line of a JSON value that is no event's. The value is taken when it is whole."""
        self._depth += open_brackets(line)
        self._bare.append(line)
        self._bare_size += len(line) + LINE_COST
        if self._depth <= 0:
            out.append((b"\n".join(self._bare_lines()), None))

    def _bare_lines(self) -> list[bytes]:
        lines, self._bare = self._bare, []
        self._depth = self._bare_size = 0
        return lines

    def _drop_bare(self, out: list[Framed]) -> None:
        """The lines that began as a JSON value were none."""
        out.append((b"\n".join(self._bare_lines()), None))


def is_page(body: bytes) -> bool:
    """Whether this is the beginning of a web page."""
    return _PAGE.match(body[:WORDS_MAX]) is not None


def _is_done(data: bytes) -> bool:
    """Whether this is OpenAI's mark of the end, in one of its forms."""
    return data[:6].upper() == b"[DONE]" or data[:20].strip(b" \"'[]<|>").upper() == b"DONE"


# --- OpenAI's chat completions --------------------------------------------------------------------

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
_PER_TOKEN = frozenset({"token_id", "token_ids", "seed"})
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
        self._has_begun = False  # something was given out
        self._texts: dict[Kind, list[str]] = {Content: [], Reasoning: []}  # all that came
        self._sizes: dict[Kind, int] = {Content: 0, Reasoning: 0}  # characters of these
        self._last_fields: dict[tuple[str, str], Any] = {}  # as they were handed on
        self._constants: tuple[str | None, str | None, str | None] = (None, None, None)
        self._filters = _NONE  # Azure's verdict on the last piece
        self._waiting: dict[str, dict[str, Any]] = {}  # fields to be handed on with what comes next
        self._figures: dict[str, dict[str, Any]] = {}  # the same with the end
        self._returned = Returned()

    @property
    def opaque(self) -> dict[str, Any] | None:
        """Fields of the message: see `Returned`."""
        thoughts, texts = self._texts[Reasoning], self._texts[Content]
        return self._returned.fields(thoughts, texts, marked=self._splitter.marked)

    # --- the usual chunk --------------------------------------------------------------------------

    def _take(self, data: bytes, event: str | None, out: Gathering) -> None:
        if event or self._halves:
            self._take_unusual(data, event, out)
            return
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            self._take_unusual(data, event, out)
            return
        choices = chunk.choices
        if (chunk.system_fingerprint, chunk.service_tier, chunk.provider) != self._constants or (
            choices and self._is_unusual(choices[0])
        ):
            self._take_unusual(data, event, out)
            return
        if chunk.usage:
            self.usage = usage_of(chunk.usage)
        if self.model is None:
            self.model = chunk.model or None
        for choice in choices or ():
            self._understood = True
            if choice.index:
                continue  # one answer is shown; others are never asked for
            if choice.delta is not None:
                self._take_delta(choice.delta, out)
            if choice.finish_reason:  # some send "" until there is one
                self.finish_reason = known_reason(choice.finish_reason) or self.finish_reason
        if self._waiting and out:
            self._hand_on_waiting(out)

    def _is_unusual(self, choice: _Choice) -> bool:
        """Whether a choice has what is to be handed on, or text outside its delta."""
        if self._wants_logprobs and bytes(choice.logprobs) not in {b"", b"null"}:
            return True
        if choice.content_filter_results != self._filters:
            self._filters = choice.content_filter_results
            return True
        return bool(choice.text) and (choice.delta is None or choice.delta.content != choice.text)

    def _take_delta(self, delta: _Delta, out: Gathering) -> None:
        thought, text = delta.reasoning_content or delta.reasoning, delta.content or delta.refusal
        if thought:
            self._returned.name = "reasoning_content" if delta.reasoning_content else "reasoning"
            self._came(Reasoning, thought, out)
            if not self._splitter.through:
                self._splitter.reasoned(out)
            out.text(Reasoning, thought)
        if text:
            self._came(Content, text, out)
            if self._splitter.through:
                out.text(Content, text)
            else:
                self._splitter.feed(text, out)
        if thought or text:
            self._has_begun = True
            out.chunks += 1
        for call in delta.tool_calls or ():
            told = call.function or _Function()
            self._take_call(call.index, call.id or "", told.name or "", told.arguments or "", out)

    def _came(self, kind: Kind, text: str, out: Gathering) -> None:
        """Keep text as it came."""
        self._texts[kind].append(text)
        self._sizes[kind] += len(text)
        out.arrived += len(text)

    def _take_texts(self, thought: str | None, text: str | None, out: Gathering) -> None:
        """Thoughts and text of one piece."""
        if thought:
            self._came(Reasoning, thought, out)
            self._say(Reasoning, thought, out)
        if text:
            self._came(Content, text, out)
            self._say(Content, text, out)
        if thought or text:
            self._has_begun = True
            out.chunks += 1

    def _take_call(
        self,
        index: int | None,
        id_: str,
        name: str,
        arguments: str,
        out: Gathering,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if not (id_ or name or arguments or extra):
            return
        self._has_begun = self._has_calls = True
        if id_:
            self._call_ids.add(id_)
        out.chunks += 1
        if not self._splitter.through:
            self._splitter.called(out)
        self._calls.fragment(index, id_, name, arguments, out, extra)

    def _last(self, out: Gathering) -> None:
        super()._last(out)
        waiting, self._halves = self._halves, {}
        for key, halves in waiting.items():
            index, id_ = (None, key) if isinstance(key, str) else (key, "")
            self._calls.fragment(index, id_, "", halves.feed("", last=True), out)
        self._calls.finish(out)
        for level, fields in self._figures.items():
            self._waiting.setdefault(level, {}).update(fields)
        self._figures.clear()
        self._hand_on_waiting(out)

    # --- any other chunk, whole answer or line ----------------------------------------------------

    def _take_object(self, value: dict[str, Any], event: str | None, out: Gathering) -> None:
        value = _unwrapped(value)
        choices = objects_of(value.get("choices"))[:OBJECTS_MAX]
        own = _OF_CHUNK
        fault = None
        if event or not choices or value.keys() - _QUIET or any("error" in c for c in choices):
            fault = error_of(value, event=event or "")
        if not choices and fault is None and _is_choice(value):
            choices, own = [value], _OF_LINE
        is_bare = event is None and "done" not in value
        for choice in choices:
            self._understood = True
            if not index_of(choice.get("index")):
                self._take_choice(choice, out, is_bare=is_bare, has_failed=fault is not None)
                self._count(choice.get("usage"))
                if self._wants_logprobs and isinstance(choice.get("logprobs"), dict):
                    out.add(Extra(choice={"logprobs": clean(choice["logprobs"])}))
                if choice is not value:
                    self._hand_on("choice", choice, _OF_CHOICE)
        self._count(value.get("usage"))
        self._count({_COUNTS[name]: value[name] for name in _COUNTS if name in value})
        self._count(object_of(value.get("x_groq")).get("usage"))
        model = value.get("model")
        if self.model is None and isinstance(model, str) and model:
            self.model = whole(model)
        if fault is not None:
            if not self._is_finished:
                # A document instead of a stream is the server's last word where it does not say
                # that the fault will pass.
                is_final = event is None and fault.code == "upstream_error"
                raise fault.once() if is_final else fault
            return
        if not (choices or _is_chunk(value)):
            return  # a sign of life
        self._hand_on("chunk", value, own)
        fixed = (value.get("system_fingerprint"), value.get("service_tier"), value.get("provider"))
        if all(each is None or isinstance(each, str) for each in fixed):
            self._constants = fixed
        if self._waiting and self._has_begun:
            self._hand_on_waiting(out)

    def _take_choice(
        self, choice: dict[str, Any], out: Gathering, *, is_bare: bool, has_failed: bool
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
            self._is_whole = self._is_whole or (is_bare and brought)
        for name in ("text", "content", "response"):
            if not brought and (text := text_of(choice.get(name))):
                brought = True
                self._take_texts(None, text, out)
        if not has_failed and (reason := _reason_in(choice)):
            self.finish_reason = reason

    def _take_part(self, part: dict[str, Any], out: Gathering, *, is_whole: bool = False) -> bool:
        """A delta, or a message. True where it had something of the answer in it."""
        name = next((name for name in THOUGHTS if text_of(part.get(name))), "")
        thought = text_of(part.get(name))
        self._returned.name = name or self._returned.name
        content = part.get("content")
        others: list[Any] = []
        if isinstance(content, list):
            thoughts, text, others = _of_parts(content)
            thought = thoughts or thought
            self._returned.take_parts(clean(content))
        else:
            text = text_of(content)
        text = text or text_of(part.get("text")) or text_of(part.get("refusal"))
        thought = thought or text_of(part.get("reasoning_details"))
        if is_whole:
            thought, text = self._new(Reasoning, thought), self._new(Content, text)
        self._take_texts(thought, text, out)
        has_calls = self._take_calls(part, out, is_whole=is_whole)
        extras = self._extras("delta", part, _OF_DELTA)
        self._returned.take_fields(dict(extras))
        for each in others:
            name = "images" if "image" in str(each.get("type")) else "content_parts"
            extras.setdefault(name, []).append(clean(each))
        if extras:
            self._has_begun = True
            out.add(Extra(delta=extras))
        return bool(thought or text or has_calls or extras)

    def _new(self, kind: Kind, text: str) -> str:
        """What of a whole text has not come yet. Servers repeat all that they sent in pieces."""
        known, size = self._texts[kind], self._sizes[kind]
        if not size or len(text) < size:
            return text
        return text.removeprefix("".join(known))

    def _take_calls(self, part: dict[str, Any], out: Gathering, *, is_whole: bool) -> bool:
        """The tool calls of a delta, or of a message. True where there are any."""
        calls = objects_of(part.get("tool_calls"))
        if isinstance(part.get("function_call"), dict):
            calls.append({"index": 0, "function": part["function_call"]})
        had_calls = self._has_calls
        ids = {whole(text_of(call.get("id"))) for call in calls} if is_whole else set()
        known = ids & self._call_ids
        for call in calls:
            function = call.get("function")
            told = function if isinstance(function, dict) else call
            name = told.get("name", function if isinstance(function, str) else None)
            id_ = whole(text_of(call.get("id")))
            arguments, index = _arguments(told), index_of(call.get("index"))
            if is_whole and (id_ in known or (had_calls and not id_)):
                continue  # it came in pieces
            key = id_ if index is None else index
            extra = self._extras("call", call, _OF_CALL)
            self._take_call(
                index, id_, whole(text_of(name)), self._joined(key, arguments), out, extra
            )
        return bool(calls)

    def _count(self, usage: Any) -> None:
        self.usage = usage_of(usage) or self.usage

    # --- fields that have no event ----------------------------------------------------------------

    def _extras(self, level: str, fields: dict[str, Any], own: frozenset[str]) -> dict[str, Any]:
        """The fields of a part of a chunk that are to be handed on.

        Left out is what is empty, and what was handed on under this name the last time: many fields
        come again with each chunk. Figures that run along with the text are handed on at the end.
        """
        extras: dict[str, Any] = {}
        for name, given in fields.items():
            if name in own or name in _PER_TOKEN or given is None or given in ("", [], {}):
                continue
            value = clean(given)
            if level != "call" and _is_figure(value):
                figures = self._figures.setdefault(level, {})
                if name in figures or len(figures) < NAMES_MAX:
                    figures[whole(name)] = value
                continue
            if level in {"chunk", "choice"} or (level == "delta" and isinstance(value, str | bool)):
                key = level, name
                if self._last_fields.get(key) == value:
                    continue
                if key in self._last_fields or len(self._last_fields) < NAMES_MAX:
                    self._last_fields[key] = value
            extras[whole(name)] = value
        return extras

    def _hand_on(self, level: str, fields: dict[str, Any], own: Iterable[str]) -> None:
        """Keep fields for the next event: before the answer's first piece nothing is given out."""
        extras = self._extras(level, fields, frozenset(own))
        if extras:
            self._waiting.setdefault(level, {}).update(extras)

    def _hand_on_waiting(self, out: Gathering) -> None:
        waiting, self._waiting = self._waiting, {}
        if waiting:
            out.add(
                Extra(waiting.get("chunk", {}), waiting.get("choice", {}), waiting.get("delta", {}))
            )


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """An object with the fields of the answer that it holds, where a gateway has wrapped one."""
    if "choices" in value:
        return value
    for name in WRAPPERS:
        inner = object_of(value.get(name))
        if objects_of(inner.get("choices")):
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


def _is_chunk(value: dict[str, Any]) -> bool:
    """Whether an object without text is a part of an answer all the same."""
    return any(name in value for name in ("choices", "usage", "model"))


def _of_parts(parts: list[Any]) -> tuple[str, str, list[dict[str, Any]]]:
    """Thoughts and text of content that comes as a list, and its other parts."""
    thoughts, texts, others = [], [], []
    for part in parts:
        fields = object_of(part)
        thought = fields.get("thinking") or fields.get("reasoning")
        if thought or str(fields.get("type")) in {"thinking", "reasoning"}:
            thoughts.append(text_of(thought) or text_of(part))
        elif text := text_of(part) or text_of(fields.get("refusal")):
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


def usage_of(value: Any) -> dict[str, Any] | None:
    """A server's counts, whole numbers as such; None where it reports none."""
    if not isinstance(value, dict) or not value:
        return None
    counts: dict[str, Any] = clean(value)
    for name, count in counts.items():
        if isinstance(count, float | str) and name.endswith("tokens"):
            with contextlib.suppress(ValueError, OverflowError):
                counts[name] = int(float(count))
    return counts


def _is_figure(value: Any, depth: int = 0) -> bool:
    """Whether a value is a number, or holds nothing else."""
    if value is None or isinstance(value, bool):
        return depth > 0 and value is None
    if isinstance(value, int | float):
        return True
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or depth > TEXT_DEPTH_MAX:
        return False
    return bool(value) and all(_is_figure(each, depth + 1) for each in value)
