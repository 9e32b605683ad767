"""A model's stream of bytes to deltas: text, reasoning, tool calls, and fields that have no name.

`EventDecoder` is what the decoders of all APIs have in common. A piece as its API has it is decoded
by a typed struct, which costs a fraction of the SDK's objects. What the struct refuses is read
liberally: what is needed is taken from where it stands, and what is not needed cannot fail.
"""

from __future__ import annotations

from typing import Any

from halt.core.events import Content, Reasoning
from halt.core.json_size import holds_more
from halt.core.request import Part
from halt.errors import UpstreamError
from halt.providers.error_body import python_value
from halt.providers.errors import parse_error
from halt.providers.loose_json import CharacterJoiner, is_valid_text, parse_values
from halt.providers.part_builder import PartBuilder
from halt.providers.sse import EventParser, Framed, single_lines
from halt.providers.stray_text import StrayText, is_done, is_page
from halt.providers.think_tags import ThinkSplitter

LINE_MAX = 33_554_432  # bytes of one event; a picture in an answer has a few million
VALUES_MAX = 250_000  # values of one event, and names of fields
OBJECTS_MAX = 10_000  # objects that stand in one event, one behind the other

Kind = type[Content] | type[Reasoning]

#: What a JSON value, or one as Python writes it, begins with.
_VALUE_BEGINS = frozenset(b'{["-0123456789tfnNI\xef')  # the last begins a byte order mark


class EventDecoder:
    """Decodes the bytes of an answer to deltas.

    Subclasses implement `_decode_event` and `_decode_object`.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model: str | None = None
        self.ended = False
        self.label = ""  # what the response says of its body, where that is no event stream
        self._has_started = False  # a part of an answer has come
        self._is_complete_answer = False  # it was a whole answer, so no finish reason has to follow
        self._parser = EventParser()
        self._stray = StrayText()  # behind the last event
        self._is_fresh = False  # nothing is kept of what came before, in neither
        self._cut = False  # the body has ended, so what comes last may be incomplete
        self._partial_characters: dict[
            Any, CharacterJoiner
        ] = {}  # a kind of text, or a call -> what waits in it
        self._splitter = ThinkSplitter()
        self._fault: UpstreamError | None = None

    @property
    def opaque(self) -> Any:
        """What the provider wants back with this answer when tools were called."""
        return None

    @property
    def has_started(self) -> bool:
        """Whether a part of an answer has come."""
        return self._has_started

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
        out = PartBuilder()
        try:
            is_short = len(raw) <= VALUES_MAX  # so it holds no more values, and is not counted
            if self._is_fresh and is_short and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
                breaks = raw.count(b"\n")
                if breaks == 2 and b"\r" not in raw:  # the usual read
                    self._decode_event(raw[6:-2], "", out)
                else:
                    self._decode_events(single_lines(raw, breaks) or self._events(raw), out)
            else:
                self._decode_events(self._events(raw), out)
        except UpstreamError as fault:
            return self._defer_fault(fault, out)
        if self.ended:
            self._flush(out)
        return out.build(ended=self.ended)

    def _decode_events(self, events: list[Framed], out: PartBuilder) -> None:
        for data, event in events:
            if self._stray.words and event is not None:
                self._stray.words = b""
            if holds_more(data, VALUES_MAX):
                self._end_over_limit("an event with too many values")
            else:
                self._decode_event(data, event, out)
            if self.ended:
                return
        if self._parser.size > LINE_MAX:
            self._end_over_limit("an event without an end")

    def _end_over_limit(self, detail: str) -> None:
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
        out = PartBuilder()
        try:
            events = self._parser.end(is_needed=self.finish_reason is None)
            self._decode_events(events, out)
            if not (self.ended or self._is_complete_answer or self.finish_reason is not None):
                raise cause or self._stray.incomplete(
                    understood=self._has_started, label=self.label
                )
        except UpstreamError as fault:
            return self._defer_fault(fault, out)
        self.ended = True
        self._flush(out)
        return out.build(ended=True)

    def _events(self, raw: bytes) -> list[Framed]:
        events = self._parser.feed(raw)
        self._is_fresh = self._parser.is_fresh
        return events

    # --- the provider's part ----------------------------------------------------------------------

    def _decode_event(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        """Understand one event. Raises UpstreamError."""
        raise NotImplementedError

    def _decode_object(self, value: dict[str, Any], event: str | None, out: PartBuilder) -> None:
        """Understand the JSON object of an unusual event. Raises UpstreamError."""
        raise NotImplementedError

    def _emit_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Give out text of whole characters, thoughts that are marked in it as such."""
        if not self._splitter.is_finished:
            if kind is Content:
                self._splitter.feed(text, out)
                return
            self._splitter.note_reasoning(out)
        out.add_text(kind, text)

    def _emit_held_text(self, out: PartBuilder) -> None:
        """Give out the text that is held back."""
        for kind in (Reasoning, Content):
            self._flush_partial_character(kind, out)
        self._splitter.end(out)

    def _flush(self, out: PartBuilder) -> None:
        """The answer has ended: give out what was held back."""
        self._emit_held_text(out)

    # --- what has come of an event ----------------------------------------------------------------

    def _decode_unusual(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        """Understand an event that the typed struct does not take. Raises UpstreamError."""
        data = data.strip()
        while data.startswith(b"data:"):  # framed twice, on the way through a gateway
            data = data[5:].strip()
        if not data:
            return
        if is_done(data):
            self.ended = True
            return
        if event is None and (self._stray.is_page or (not self._has_started and is_page(data))):
            self._is_fresh = False
            self._stray.add_of_page(data)
            return
        if not event and data[0] not in _VALUE_BEGINS:
            self._keep_stray_line(data)  # 1 us a line of noise, and 6 us to try it as JSON
            return
        try:
            found = parse_values(data)
        except ValueError as exc:
            self._handle_invalid_json(data, event, exc)
            return
        for value in found:
            if isinstance(value, list) and len(value) > OBJECTS_MAX:
                self._end_over_limit("an event with too many objects")
                return
            for each in value if isinstance(value, list) else (value,):
                if isinstance(each, dict):
                    self._decode_object(each, event, out)
            if not isinstance(value, dict):
                self._raise_if_error(value, event)

    def _handle_invalid_json(self, data: bytes, event: str | None, exc: ValueError) -> None:
        """A piece of an answer that is broken ends it; anything else is noise."""
        self._raise_if_error(python_value(data.decode("utf-8", "replace")), event)
        if data.startswith((b"{", b"[{")) and event is not None:
            if not (self._cut or self._is_finished):
                raise UpstreamError("upstream_invalid", str(exc)) from exc
            if b'"error"' not in data[:200]:
                return
        self._keep_stray_line(data)

    def _raise_if_error(self, value: Any, event: str | None) -> None:
        """Raise the UpstreamError that a value tells, if it tells one.

        Behind its finish reason an answer is complete, and an error takes nothing from it.
        """
        fault = parse_error(value, event=event or "")
        if fault is not None and not self._is_finished:
            raise fault

    @property
    def _is_finished(self) -> bool:
        """Whether the model has come to an end, so that nothing more is needed."""
        return self.finish_reason is not None and self.finish_reason.lower() != "error"

    def _add_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Give out text, but half a character with its other half."""
        if self._partial_characters:
            self._flush_partial_character(Reasoning if kind is Content else Content, out)
        text = self._whole_characters(kind, text)
        if text:
            self._emit_text(kind, text, out)

    def _whole_characters(self, key: Any, text: str) -> str:
        """The whole characters of the text `key` so far; a half at its end waits."""
        halves = self._partial_characters.get(key)
        if halves is None:
            if is_valid_text(text):
                return text
            halves = CharacterJoiner()
        text = halves.feed(text)
        if halves:
            self._partial_characters[key] = halves
        else:
            self._partial_characters.pop(key, None)
        return text

    def _flush_partial_character(self, kind: Kind, out: PartBuilder) -> None:
        """No other half came: U+FFFD stands for the character."""
        halves = self._partial_characters.pop(kind, None)
        if halves is not None:
            self._emit_text(kind, halves.feed("", last=True), out)

    # --- how an answer breaks off -----------------------------------------------------------------

    def _defer_fault(self, fault: UpstreamError, out: PartBuilder) -> Part:
        """What came before this fault. Raises it where that is nothing."""
        self._emit_held_text(out)
        if not out:
            raise fault
        self._fault = fault
        return out.build(ended=False)

    def _keep_stray_line(self, line: bytes) -> None:
        """Keep a line that is no event."""
        self._is_fresh = False
        self._stray.add(line)
