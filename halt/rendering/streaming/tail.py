"""What the page shows of the open block: its text so far, in the form that the block will have."""

from __future__ import annotations

import html
import re
from typing import cast

from halt.rendering.lines import indent, item_mark
from halt.rendering.streaming.blocks import Form
from halt.rendering.streaming.items import OpenList
from halt.rendering.streaming.provisional import Provisional

_HEADING_MARK = re.compile(r" {0,3}#{1,6}[ \t]*")
_QUOTE_MARK = re.compile(r" {0,3}>[ \t]?")
#: Of an item in an item.
INDENT, BULLET = "\u2002", "\u25e6 "


class OpenTail:
    """Collects the change of the open tail. Its text is given line by line, a line in pieces."""

    def __init__(self) -> None:
        self._replaces = True  # the next change replaces what the page shows
        self._out: list[str] = []
        self.clear()

    def clear(self) -> None:
        """Begin an empty tail."""
        self.begin("text")

    def begin(self, form: str, language: str = "") -> None:
        """Begin a tail of this form."""
        self._form = cast(Form, form)
        self._language = language
        self._number: int | None = None
        self._is_close = False
        self._replaces, self._out = True, []
        self._text = Provisional()
        self._is_literal = form == "code"
        self._line_ends = 0  # newlines that come before the next text

    def begin_item(self, items: OpenList) -> None:
        """Begin the tail of a list's open item."""
        self.begin("item")
        self._number = items.number if items.mark.is_ordered else None
        self._is_close = items.is_close

    def take(self) -> tuple[bool, str, Form, str, int | None, bool]:
        """The change since the last call, as the fields of a `BlockStep`."""
        replaces, html_text = self._replaces, "".join(self._out)
        self._replaces, self._out = False, []
        if not replaces:
            return False, html_text, self._form, "", None, False
        return True, html_text, self._form, self._language, self._number, self._is_close

    def add(self, text: str) -> None:
        """Add the next piece of the line."""
        if self._form == "code":
            self._out.append(html.escape(text))
        elif text:
            text, self._line_ends = "\n" * self._line_ends + text, 0
            feed = self._text.literal if self._is_literal else self._text.feed
            self._out.append(feed(text))

    def add_literal(self, line: str) -> None:
        """Begin a line in which no mark has a meaning."""
        self._is_literal = True
        self.add(line)

    def add_text_line(self, line: str) -> None:
        """Begin a line of a paragraph, heading or quote."""
        self._is_literal = False
        if self._form[0] == "h":
            line = line[_mark_end(_HEADING_MARK, line) :]
        elif self._form == "quote":
            line = line[_mark_end(_QUOTE_MARK, line) :]
        self.add(line)

    def add_item_line(self, items: OpenList, line: str, *, is_first: bool) -> None:
        """Begin a line of a list item: its first one without the mark, others unindented."""
        self._is_literal = items.fence is not None
        if is_first:
            self.add(line[items.mark.end :])
            return
        self._line_ends = min(self._line_ends, 1)
        line = line[min(indent(line), items.mark.content, len(line) - len(line.lstrip(" "))) :]
        mark = None if self._is_literal else item_mark(line)
        if mark:
            start = len(line) - len(line.lstrip(" \t"))
            sign = line[start : mark.end] if mark.is_ordered else BULLET
            line = line[:start] + INDENT + sign + line[mark.end :]
        self.add(line)

    def end_line(self) -> None:
        """End the line. A newline is shown when text follows it."""
        if self._form == "code":
            self._out.append("\n")
        else:
            self._line_ends += 1


def _mark_end(pattern: re.Pattern[str], line: str) -> int:
    match = pattern.match(line)
    return match.end() if match else 0
