"""Decodes a model's stream of bytes to deltas: text, reasoning, tool calls, and unknown fields.

`EventDecoder` is the base class of the decoders of all APIs. A regular event is decoded to a typed
struct, which costs a fraction of the SDK's objects. An event that the struct refuses is decoded as
plain JSON: the needed fields are taken from wherever they are, and other fields cannot fail.
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

LINE_MAX = 33_554_432  # bytes of one event; an image in an answer has a few million
VALUES_MAX = 250_000  # values and field names of one event
OBJECTS_MAX = 10_000  # consecutive objects in one event

Kind = type[Content] | type[Reasoning]

#: First bytes of a JSON value, or of a Python literal.
_VALUE_BEGINS = frozenset(b'{["-0123456789tfnNI\xef')  # the last one starts a byte order mark


class EventDecoder:
    """Decodes the bytes of an answer to deltas.

    Subclasses implement `_decode_event` and `_decode_object`.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model: str | None = None
        self.ended = False
        self.label = ""  # type or encoding of a body that is no event stream, for error messages
        self._has_started = False  # a part of an answer has arrived
        self._is_complete_answer = False  # one object held the answer: needs no finish reason
        self._parser = EventParser()
        self._stray = StrayText()  # after the last event
        self._is_fresh = False  # neither the parser nor `_stray` holds earlier bytes
        self._cut = False  # the body has ended, so the last event may be incomplete
        # A kind of text, or a call -> the joiner that holds its partial character.
        self._partial_characters: dict[Any, CharacterJoiner] = {}
        self._splitter = ThinkSplitter()
        self._fault: UpstreamError | None = None

    @property
    def opaque(self) -> Any:
        """Data that the provider needs back with this answer if it called tools."""
        return None

    @property
    def has_started(self) -> bool:
        """Whether a part of an answer has arrived."""
        return self._has_started

    @property
    def has_failed(self) -> bool:
        """Whether an UpstreamError arrived after text that was returned before: see `check`."""
        return self._fault is not None

    def check(self) -> None:
        """Raise the UpstreamError that arrived after text that was returned before, if any."""
        if self._fault is not None:
            raise self._fault

    def feed(self, raw: bytes) -> Part:
        """Decode new bytes. Raises UpstreamError, once all text before it has been returned."""
        if self._fault is not None:
            raise self._fault
        out = PartBuilder()
        try:
            is_short = len(raw) <= VALUES_MAX  # then it cannot hold more values: do not count them
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
        """End the answer because an event is over a limit. Raises UpstreamError if unfinished."""
        if not self._is_finished:
            raise UpstreamError("upstream_invalid", detail)
        self.ended = True

    def end(self, cause: UpstreamError | None = None) -> Part:
        """End the body; `cause`: the error that ended it, if any. Return the last Part.

        Raises UpstreamError if the answer is incomplete, once all text has been returned.
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

    # --- implemented by subclasses ----------------------------------------------------------------

    def _decode_event(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        """Decode one event. Raises UpstreamError."""
        raise NotImplementedError

    def _decode_object(self, value: dict[str, Any], event: str | None, out: PartBuilder) -> None:
        """Decode the JSON object of an unusual event. Raises UpstreamError."""
        raise NotImplementedError

    def _emit_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Emit text of complete characters. Text in think tags is emitted as reasoning."""
        if not self._splitter.is_finished:
            if kind is Content:
                self._splitter.feed(text, out)
                return
            self._splitter.note_reasoning(out)
        out.add_text(kind, text)

    def _emit_held_text(self, out: PartBuilder) -> None:
        """Emit the text that is held back."""
        for kind in (Reasoning, Content):
            self._flush_partial_character(kind, out)
        self._splitter.end(out)

    def _flush(self, out: PartBuilder) -> None:
        """Emit everything that is held back, at the end of the answer."""
        self._emit_held_text(out)

    # --- unusual events ---------------------------------------------------------------------------

    def _decode_unusual(self, data: bytes, event: str | None, out: PartBuilder) -> None:
        """Decode an event that the typed struct refuses. Raises UpstreamError."""
        data = data.strip()
        while data.startswith(b"data:"):  # framed twice by a gateway
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
            self._keep_stray_line(data)  # 1 us per line; to try it as JSON takes 6 us
            return
        try:
            json_values = parse_values(data)
        except ValueError as exc:
            self._handle_invalid_json(data, event, exc)
            return
        for value in json_values:
            if isinstance(value, list) and len(value) > OBJECTS_MAX:
                self._end_over_limit("an event with too many objects")
                return
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, dict):
                    self._decode_object(item, event, out)
            if not isinstance(value, dict):
                self._raise_if_error(value, event)

    def _handle_invalid_json(self, data: bytes, event: str | None, exc: ValueError) -> None:
        """Raise UpstreamError for a broken piece of an answer; store any other line."""
        self._raise_if_error(python_value(data.decode("utf-8", "replace")), event)
        if data.startswith((b"{", b"[{")) and event is not None:
            if not (self._cut or self._is_finished):
                raise UpstreamError("upstream_invalid", str(exc)) from exc
            if b'"error"' not in data[:200]:
                return
        self._keep_stray_line(data)

    def _raise_if_error(self, value: Any, event: str | None) -> None:
        """Raise the UpstreamError that a value holds, if any.

        After its finish reason an answer is complete, and an error is ignored.
        """
        fault = parse_error(value, event=event or "")
        if fault is not None and not self._is_finished:
            raise fault

    @property
    def _is_finished(self) -> bool:
        """Whether the finish reason has arrived, so that the answer is complete."""
        return self.finish_reason is not None and self.finish_reason.lower() != "error"

    def _add_text(self, kind: Kind, text: str, out: PartBuilder) -> None:
        """Emit text; hold back a partial character at its end until the rest arrives."""
        if self._partial_characters:
            self._flush_partial_character(Reasoning if kind is Content else Content, out)
        text = self._whole_characters(kind, text)
        if text:
            self._emit_text(kind, text, out)

    def _whole_characters(self, key: Any, text: str) -> str:
        """Return the complete characters of the text `key`; hold a partial one at its end."""
        joiner = self._partial_characters.get(key)
        if joiner is None:
            if is_valid_text(text):
                return text
            joiner = CharacterJoiner()
        text = joiner.feed(text)
        if joiner:
            self._partial_characters[key] = joiner
        else:
            self._partial_characters.pop(key, None)
        return text

    def _flush_partial_character(self, kind: Kind, out: PartBuilder) -> None:
        """Emit U+FFFD for a partial character whose rest did not arrive."""
        joiner = self._partial_characters.pop(kind, None)
        if joiner is not None:
            self._emit_text(kind, joiner.feed("", last=True), out)

    # --- errors in a stream -----------------------------------------------------------------------

    def _defer_fault(self, fault: UpstreamError, out: PartBuilder) -> Part:
        """Return the Part before this error and keep the error; raise it if the Part is empty."""
        self._emit_held_text(out)
        if not out:
            raise fault
        self._fault = fault
        return out.build(ended=False)

    def _keep_stray_line(self, line: bytes) -> None:
        """Store a line that is no event."""
        self._is_fresh = False
        self._stray.add(line)
