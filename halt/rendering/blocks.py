"""Incremental Markdown: splits a growing text into finished blocks and one open block.

The result depends on the text so far, never on how it was cut into pieces. The work is linear in
the length of the text.
"""

import html
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import NamedTuple

from halt.rendering import data_urls
from halt.rendering.grammar.formulas import DISPLAY, FORMULA_LINES_MAX, closing_of, ends_formula
from halt.rendering.lines import (
    HEADING,
    LABEL_MAX,
    MARKER,
    MAYBE_OPENING,
    OPENING,
    RULE,
    fence_language,
    indent,
    is_closing,
)
from halt.rendering.open_text import NewlineNormalizer

HEAD_MAX = 120  # characters at a line's start that are examined again while the line grows


@dataclass(frozen=True, slots=True)
class Block:
    """The source of a finished block."""

    lines: list[str]
    is_fence: bool

    @property
    def source(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True, slots=True)
class Patch:
    """The change that brings a page up to date: HTML to append, and the new open tail."""

    finished: str  # HTML of the blocks finished in this step; the page appends it
    replaces_tail: bool  # True: `tail` replaces the open tail; False: it is appended to it
    tail: str  # escaped text, never markup
    form: str  # how the page shows the open tail: "text" or "code"
    language: str = ""  # of the code, not escaped, where `tail` is the beginning of a fence


class BlockStep(NamedTuple):
    """The change that one piece of text makes: a `Patch` whose blocks are not rendered yet."""

    blocks: list[Block]
    replaces_tail: bool
    tail: str
    form: str
    language: str = ""

    def patch(self, finished: Iterable[str]) -> Patch:
        """The patch with `finished`, the HTML of `blocks` in order."""
        return Patch("".join(finished), *self[1:])


class BlockStream:
    """Takes Markdown in pieces and returns each block when it is finished.

    A block is finished at a blank line, at the end of a fence, before a fence, after a heading
    and after a rule. A list or an indented block may continue after a blank line: it is finished
    when the first character of the next line has arrived and is not indented.

    A fence inside a list item belongs to the item. The beginning of a line that may still become
    the ``` of a fence is held back, so that it does not flicker in the page. Nothing else is held.

    A formula whose opening mark is alone in its line continues after blank lines, up to its closing
    mark, a fence, a heading, a rule or FORMULA_LINES_MAX lines.
    """

    def __init__(self) -> None:
        self._normalizer = NewlineNormalizer()
        self._data_urls = data_urls.DataUrlFilter()
        self._lines: list[str] = []  # the open block's complete lines
        self._line = StringIO()  # the incomplete last line; grows without copies
        self._head = ""  # the first characters of that line: decisions use only these
        self._line_is_visible = False  # True: that line is in the tail; False: it is held back
        self._fence = ""  # the open fence's ``` or ~~~; "" outside a fence
        self._fence_indent = 0
        self._item = 0  # column where the content of the open list item begins; 0: no list
        self._formula = ""  # the closing mark of the open formula; "" outside a formula
        self._formula_lines = 0  # lines that the open formula may still have
        self._after_blank = False  # the open block (a list) ends in a blank line
        # Collected for the next step:
        self._finished: list[Block] = []
        self._replaces_tail = True
        self._tail: list[str] = []

    def feed(self, text: str) -> BlockStep:
        """Take the next piece of text; return the change that it makes.

        The time depends on the piece alone, not on the length of the open block or its last line.
        """
        *complete, last = self._data_urls.feed(self._normalizer.feed(text)).split("\n")
        for part in complete:
            self._grow(part)
            self._end_line()
        self._grow(last)
        form = "code" if self._fence else "text"
        tail = html.escape("".join(self._tail))
        language = ""
        if self._fence and self._replaces_tail:
            info = self._lines[0].lstrip(" " + self._fence[0])
            language = fence_language(info)[:LABEL_MAX]
        step = BlockStep(self._finished, self._replaces_tail, tail, form, language)
        self._finished, self._replaces_tail, self._tail = [], False, []
        return step

    def open_block(self) -> Block:
        """The open block as it is if the text ends here. Does not change the stream."""
        line = self._line.getvalue() + self._data_urls.rest()
        return Block([*self._lines, line], bool(self._fence))

    def open_source(self, limit: int | None = None) -> str:
        """The source of the open block, from its end, until it has more than `limit` characters.

        Without a limit: all of it, with the data: URL that is held back, as if the text ended here.
        """
        lines = [self._line.getvalue()]
        if limit is None:
            lines[0] += self._data_urls.rest()
            limit = sys.maxsize
        size = len(lines[0])
        for line in reversed(self._lines):
            if size > limit:
                break
            lines.append(line)
            size += len(line) + 1
        return "\n".join(reversed(lines))

    def _grow(self, part: str) -> None:
        """Add to the line that has no newline yet."""
        if not part:
            return
        self._line.write(part)
        if len(self._head) < HEAD_MAX:
            self._head += part[: HEAD_MAX - len(self._head)]
        if self._after_blank and self._head.strip(" \t"):
            self._after_blank = False
            if indent(self._head) < 2:
                self._finish()
        if self._line_is_visible:
            self._tail.append(part)
        elif not self._is_held_back():
            self._line_is_visible = True
            self._tail.append(self._visible_part(self._line.getvalue()))

    def _is_held_back(self) -> bool:
        if len(self._head) >= HEAD_MAX:
            return False
        if self._fence:
            return indent(self._head) < 4 and not self._head.strip(" \t").strip(self._fence[0])
        return MAYBE_OPENING.fullmatch(self._head) is not None

    def _visible_part(self, line: str) -> str:
        """The line as the page shows it: code without the indentation of its fence."""
        return line[min(self._fence_indent, indent(line)) :] if self._fence else line

    def _end_line(self) -> None:
        line, is_visible = self._line.getvalue(), self._line_is_visible
        self._line, self._head, self._line_is_visible = StringIO(), "", False
        if not self._fence:
            if self._formula:
                self._continue_formula(line)
            if not line.strip(" \t"):
                self._blank(line, is_visible)
                return
            opening = OPENING.fullmatch(line)
            if opening and (not self._item or len(opening[1]) < self._item):
                if self._lines:
                    self._finish()
                self._replaces_tail, self._tail = True, []
                self._lines.append(line)
                self._fence, self._fence_indent = opening[2] or opening[3], len(opening[1])
                return
            if not self._formula:
                self._detect_formula(line)
                self._detect_item(line)
        elif is_closing(line, self._fence):
            self._lines.append(line)
            self._finish()
            return
        first = not self._lines
        self._keep(line, is_visible)
        if not self._fence and (HEADING.fullmatch(line) or (first and RULE.fullmatch(line))):
            self._finish()

    def _keep(self, line: str, is_visible: bool) -> None:
        self._after_blank = False
        self._lines.append(line)
        self._tail.append("\n" if is_visible else self._visible_part(line) + "\n")

    def _blank(self, line: str, is_visible: bool) -> None:
        if self._formula:
            self._keep(line, is_visible)
        elif self._item:
            self._keep(line, is_visible)
            self._after_blank = True
        elif self._lines:
            self._finish()
        elif is_visible:  # its spaces were shown as text, but the line is blank
            self._replaces_tail, self._tail = True, []

    def _detect_formula(self, line: str) -> None:
        bare = line.strip(" \t")
        opening = DISPLAY.fullmatch(bare) if not self._item and indent(line) < 4 else None
        if opening:
            self._formula, self._formula_lines = closing_of(opening), FORMULA_LINES_MAX

    def _continue_formula(self, line: str) -> None:
        self._formula_lines -= 1
        is_over = self._formula_lines <= 0 or ends_formula(line.strip(" \t"))
        if is_over or self._formula in line:
            self._formula = ""

    def _detect_item(self, line: str) -> None:
        marker = MARKER.match(line)
        if not self._lines and indent(line) >= 4:
            self._item = 4  # indented code continues after a blank line, like a list item
        elif marker and (not self._item or len(marker[1]) < self._item):
            self._item = len(marker[0]) if marker[2] else len(marker[0]) + 1

    def _finish(self) -> None:
        """Move the open block to the finished ones and clear the tail."""
        self._finished.append(Block(self._lines, bool(self._fence)))
        self._lines, self._fence, self._item, self._after_blank = [], "", 0, False
        self._fence_indent, self._formula = 0, ""
        self._replaces_tail, self._tail = True, []


def split_blocks(text: str) -> list[Block]:
    """The blocks of a whole text, in order."""
    stream = BlockStream()
    return [*stream.feed(text).blocks, stream.open_block()]
