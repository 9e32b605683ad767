"""Parses Server-Sent Events from bytes that may be cut anywhere, also within a character.

It splits lines as bytes and follows WHATWG's rules for events. It also accepts JSON in lines
without `data:`: a complete answer in place of a stream, an error, a stream of lines (NDJSON).
"""

from __future__ import annotations

import codecs
import re

from halt.core.json_size import open_brackets

LINE_COST = 50  # bytes of memory that a line takes in addition to its content
OPEN_MAX = 20_000  # bytes of data that are checked for JSON that continues without `data:`

#: Data of an event, and the event's name; None: a line of JSON that is not framed as an event.
Framed = tuple[bytes, str | None]

_FIELD = re.compile(rb"\s*(data|event|id|retry)\s*(?::\s?|\Z)", re.IGNORECASE)


def single_lines(raw: bytes, breaks: int) -> list[Framed]:
    """Return the events of a read that consists of complete one-line events; empty for any other.

    `raw` begins with `data: ` and ends with an empty line; `breaks` is its number of line breaks.
    """
    pieces = raw[6:-2].split(b"\n\ndata: ")
    if breaks != 2 * len(pieces) or b"\r" in raw:
        return []
    return [(data, "") for data in pieces]


class EventParser:
    """Assembles events from the bytes of a body."""

    def __init__(self) -> None:
        self.is_fresh = False  # no earlier bytes are held
        self._rest = bytearray()  # the beginning of an incomplete line
        self._data: list[bytes] = []  # data lines of the incomplete event
        self._event = ""  # its name
        self._bare: list[bytes] = []  # lines of an incomplete JSON value without `data:`
        self._depth = 0  # its open brackets
        self._size = self._bare_size = 0  # bytes of memory of the lines in `_data` and `_bare`
        self._at_start = True  # no line has ended; the first may begin with a byte order mark
        self._skip_lf = False  # the last byte was a CR, so an LF that follows belongs to it

    @property
    def size(self) -> int:
        """Bytes of memory that it holds."""
        return len(self._rest) + self._size + self._bare_size

    def feed(self, raw: bytes) -> list[Framed]:
        """Add bytes; return the events that they complete."""
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
            self._rest += lines[0] if lines else rest  # in place: reads of a long line copy nothing
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
        self.is_fresh = not (
            self._rest or self._data or self._event or self._bare or self._at_start or self._skip_lf
        )
        return out

    def end(self, *, is_needed: bool) -> list[Framed]:
        """Return the events that the end of the body completes.

        An event without its final empty line counts only if `is_needed`.
        """
        out: list[Framed] = []
        if self._rest:
            line = bytes(self._rest)
            self._take_lines([line.removeprefix(codecs.BOM_UTF8) if self._at_start else line], out)
            self._rest = bytearray()
        if self._bare:
            out.append(self._whole_bare())
        if self._data and is_needed:
            out.append(self._whole_event())
        return out

    def _take_lines(self, lines: list[bytes], out: list[Framed]) -> None:
        for line in lines:
            if line.startswith(b"data:"):
                if self._bare:
                    out.append(self._whole_bare())  # it is no complete JSON value
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line) + LINE_COST
            elif not line:
                if self._data or self._event:
                    out.append(self._whole_event())
            elif line.startswith(b"event: ") and not self._bare:
                self._event = line[7:100].decode("utf-8", "replace")
            else:
                self._take_unusual(line, out)

    def _whole_event(self) -> Framed:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        self._size = 0
        return data[0] if len(data) == 1 else b"\n".join(data), event

    def _take_unusual(self, line: bytes, out: list[Framed]) -> None:
        """Parse a line that does not begin with `data:` or `event: `."""
        if line.startswith(b":"):
            return
        field = _FIELD.match(line)
        if self._bare:
            if field is None or line[:1].isspace():
                self._add_bare(line, out)
                return
            out.append(self._whole_bare())  # it is no complete JSON value
        stripped = line.strip()
        if not stripped:
            if self._data or self._event:
                out.append(self._whole_event())
        elif stripped.startswith((b"{", b"[")):
            self._add_bare(line, out)
        elif field is not None:
            name, value = field[1].lower(), line[field.end() :]
            if name == b"data" and value:
                self._data.append(value)
                self._size += len(line) + LINE_COST
            elif name == b"event":
                self._event = value.strip()[:100].decode("utf-8", "replace")
        elif stripped[:6].lower() == b"error:":
            out.append((stripped[6:], "error"))
        elif self._data and self._size < OPEN_MAX and self._is_open():
            self._add_bare(line, out)
        else:
            out.append((stripped, None))

    def _is_open(self) -> bool:
        """Whether the event's data is JSON that continues in lines without `data:`.

        If so, all its lines move to `_bare`.
        """
        data, self._size = self._data, OPEN_MAX  # so that this is checked once
        self._depth = sum(map(open_brackets, data))
        if self._depth <= 0:
            self._depth = 0
            return False
        self._bare, self._data, self._event, self._size = data, [], "", 0
        return True

    def _add_bare(self, line: bytes, out: list[Framed]) -> None:
        """Add a line of a JSON value without `data:`; emit the value when it is complete."""
        self._depth += open_brackets(line)
        self._bare.append(line)
        self._bare_size += len(line) + LINE_COST
        if self._depth <= 0:
            out.append(self._whole_bare())

    def _whole_bare(self) -> Framed:
        lines, self._bare = self._bare, []
        self._depth = self._bare_size = 0
        return b"\n".join(lines), None
