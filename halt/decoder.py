"""A chat completion's stream of bytes to text.

Decoded with typed structs, because building the SDK's objects costs more than all the rest.
"""

from __future__ import annotations

import codecs
from typing import Any

import msgspec

from halt.chat import Part
from halt.errors import UpstreamError
from halt.faults import error_object

LINE_MAX = 1_048_576  # bytes of one event; no model's piece of an answer is near it


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """Bytes of a chat completion stream to text, by the WHATWG's rules for event streams.

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

    def check(self) -> None:
        """Raise the UpstreamError that came behind text which was returned before, if any."""
        if self._fault is not None:
            raise self._fault

    def feed(self, raw: bytes) -> Part:
        """Decode what has come. Raises UpstreamError, after all text before it was returned."""
        self.check()
        text: list[str] = []
        try:
            for data in self._events(raw):
                self._take(data, text)
                if self.ended:
                    break
            if len(self._rest) + self._size > LINE_MAX:
                raise UpstreamError("upstream_invalid", "an event without an end")
        except UpstreamError as fault:
            if not text:
                raise
            self._fault = fault
        return Part("".join(text), len(text), self.ended)

    def end(self) -> Part:
        """The body has ended. Raises UpstreamError where the answer had not."""
        self.check()
        if self.finish_reason is None:
            raise UpstreamError("upstream_incomplete")
        self.ended = True
        return Part(ended=True)

    def _events(self, raw: bytes) -> list[bytes]:
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

    def _take(self, data: bytes, text: list[str]) -> None:
        if data.startswith(b"[DONE]"):
            self.ended = True
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UpstreamError("upstream_invalid", str(exc)) from exc
        if chunk.error:
            raise error_object(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if self.model is None:
            self.model = chunk.model
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one answer is shown; others are never asked for
            if choice.delta is not None and choice.delta.content:
                text.append(choice.delta.content)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
