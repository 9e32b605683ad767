"""Markdown in pieces: the blocks that are finished, and the text of the one still open.

What a page shows is a function of the text so far, never of how it was cut into pieces, and the
work is linear in the text.
"""

import html
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import NamedTuple

from halt.rendering import data_urls
from halt.rendering.formulas import DISPLAY, FORMULA_LINES_MAX, closing_of, ends_formula
from halt.rendering.lines import HEADING, MARKER, MAYBE_OPENING, OPENING, RULE, indent, is_closing
from halt.rendering.open_text import NewlineNormalizer

HEAD_MAX = 120  # characters at a line's start that are looked at again while the line grows


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
    """What a page that shows everything before must do to show the text so far."""

    finished: str  # HTML of blocks that are finished now, to be appended after the earlier ones
    replaces_tail: bool  # True: `tail` replaces the open tail; False: it is appended to it
    tail: str  # escaped text, never markup
    form: str  # "text" or "code": how the open tail is to be shown


class BlockStep(NamedTuple):
    """What a piece of text has changed: a `Patch` whose finished blocks are not rendered yet."""

    blocks: list[Block]
    replaces_tail: bool
    tail: str
    form: str

    def patch(self, finished: Iterable[str]) -> Patch:
        """The same with the blocks' HTML."""
        return Patch("".join(finished), self.replaces_tail, self.tail, self.form)


class BlockStream:
    """Markdown in pieces, finished blocks out.

    A block is finished at a blank line, at the end of a fence, before a fence, after a heading
    and after a rule. A list or an indented block may go on past a blank line: it is finished when
    the first character of the next line is there and is not indented.

    A fence inside a list item belongs to the item. A line's beginning that may still become a
    fence's ``` is held back, so that it never flickers in the page; nothing else is.

    A formula whose opening mark is alone in its line goes on past a blank line, up to its closing
    mark, a fence, a heading, a rule or FORMULA_LINES_MAX.
    """

    def __init__(self) -> None:
        self._normal = NewlineNormalizer()
        self._pictures = data_urls.DataUrlFilter()
        self._lines: list[str] = []  # the open block's complete lines
        self._line = StringIO()  # the line without its newline; grows without copies
        self._head = ""  # that line's first characters: all decisions on an incomplete line
        self._is_visible = False  # is that line in the tail, or held back?
        self._fence = ""  # the open fence's ``` or ~~~, "" outside
        self._fence_indent = 0
        self._item = 0  # the column where the content of the open list's item begins, 0: no list
        self._formula = ""  # the closing mark of the open formula, "" outside
        self._formula_lines = 0  # that it may still have
        self._after_blank = False  # the open block (a list) has a blank line last
        # What the next step tells.
        self._finished: list[Block] = []
        self._replaces_tail = True
        self._tail: list[str] = []

    def feed(self, text: str) -> BlockStep:
        """Take the next piece of text and tell what it changes.

        Takes time for the piece alone, however long the open block and its last line are.
        """
        *complete, last = self._pictures.feed(self._normal.feed(text)).split("\n")
        for part in complete:
            self._grow(part)
            self._end_line()
        self._grow(last)
        form = "code" if self._fence else "text"
        tail = html.escape("".join(self._tail))
        step = BlockStep(self._finished, self._replaces_tail, tail, form)
        self._finished, self._replaces_tail, self._tail = [], False, []
        return step

    def open_block(self) -> Block:
        """The open block, as if the text ended here."""
        line = self._line.getvalue() + self._pictures.rest()
        return Block([*self._lines, line], bool(self._fence))

    def open_source(self, limit: int | None = None) -> str:
        """The open block's source; of one longer than `limit` characters, its last lines.

        Without a limit as if the text ended here.
        """
        lines = [self._line.getvalue()]
        if limit is None:
            lines[0] += self._pictures.rest()
            limit = sys.maxsize
        size = len(lines[0])
        for line in reversed(self._lines):
            if size > limit:
                break
            lines.append(line)
            size += len(line) + 1
        return "\n".join(reversed(lines))

    def _grow(self, part: str) -> None:
        """More of the line that has no newline yet."""
        if not part:
            return
        self._line.write(part)
        if len(self._head) < HEAD_MAX:
            self._head += part[: HEAD_MAX - len(self._head)]
        if self._after_blank and self._head.strip(" \t"):
            self._after_blank = False
            if indent(self._head) < 2:
                self._finish()
        if self._is_visible:
            self._tail.append(part)
        elif not self._held():
            self._is_visible = True
            self._tail.append(self._visible(self._line.getvalue()))

    def _held(self) -> bool:
        if len(self._head) >= HEAD_MAX:
            return False
        if self._fence:
            return indent(self._head) < 4 and not self._head.strip(" \t").strip(self._fence[0])
        return MAYBE_OPENING.fullmatch(self._head) is not None

    def _visible(self, line: str) -> str:
        """The line as the page shows it: code without the indentation of its fence."""
        return line[min(self._fence_indent, indent(line)) :] if self._fence else line

    def _end_line(self) -> None:
        line, shown = self._line.getvalue(), self._is_visible
        self._line, self._head, self._is_visible = StringIO(), "", False
        if not self._fence:
            if self._formula:
                self._go_on_with_formula(line)
            if not line.strip(" \t"):
                self._blank(line, shown)
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
                self._watch_for_formulas(line)
                self._watch_for_items(line)
        elif is_closing(line, self._fence):
            self._lines.append(line)
            self._finish()
            return
        first = not self._lines
        self._keep(line, shown)
        if not self._fence and (HEADING.fullmatch(line) or (first and RULE.fullmatch(line))):
            self._finish()

    def _keep(self, line: str, shown: bool) -> None:
        self._after_blank = False
        self._lines.append(line)
        self._tail.append("\n" if shown else self._visible(line) + "\n")

    def _blank(self, line: str, shown: bool) -> None:
        if self._formula:
            self._keep(line, shown)
        elif self._item:
            self._keep(line, shown)
            self._after_blank = True
        elif self._lines:
            self._finish()
        elif shown:  # spaces enough to be shown, and now they are only a blank line
            self._replaces_tail, self._tail = True, []

    def _watch_for_formulas(self, line: str) -> None:
        bare = line.strip(" \t")
        opening = DISPLAY.fullmatch(bare) if not self._item and indent(line) < 4 else None
        if opening:
            self._formula, self._formula_lines = closing_of(opening), FORMULA_LINES_MAX

    def _go_on_with_formula(self, line: str) -> None:
        self._formula_lines -= 1
        over = self._formula_lines <= 0 or ends_formula(line.strip(" \t"))
        if over or self._formula in line:
            self._formula = ""

    def _watch_for_items(self, line: str) -> None:
        marker = MARKER.match(line)
        if not self._lines and indent(line) >= 4:
            self._item = 4  # indented code goes on past a blank line, as an item does
        elif marker and (not self._item or len(marker[1]) < self._item):
            self._item = len(marker[0]) if marker[2] else len(marker[0]) + 1

    def _finish(self) -> None:
        """The open block is complete, and nothing of it is in the tail any more."""
        self._finished.append(Block(self._lines, bool(self._fence)))
        self._lines, self._fence, self._item, self._after_blank = [], "", 0, False
        self._fence_indent, self._formula = 0, ""
        self._replaces_tail, self._tail = True, []


def split_blocks(text: str) -> list[Block]:
    """The blocks of a whole text."""
    stream = BlockStream()
    return [*stream.feed(text).blocks, stream.open_block()]
