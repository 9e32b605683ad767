"""Incremental Markdown: splits a growing text into finished blocks and one open block.

The result depends on the text so far, never on how it was cut into pieces. The work is linear in
the length of the text.
"""

from __future__ import annotations

import sys
from io import StringIO

from halt.rendering import data_urls
from halt.rendering.grammar.fences import OpenFence, fence_language, opened_fence
from halt.rendering.grammar.tables import CORNERS
from halt.rendering.lines import (
    HEAD_MAX,
    HEADING_START,
    LABEL_MAX,
    SPACED_RULE,
    ItemMark,
    indent,
    item_mark,
)
from halt.rendering.open_text import NewlineNormalizer
from halt.rendering.streaming.beginnings import (
    ends_paragraph,
    ends_paragraph_of_item,
    is_undecided,
)
from halt.rendering.streaming.blocks import Block, BlockStep, Kind
from halt.rendering.streaming.formula import OpenFormula, opened_formula
from halt.rendering.streaming.items import OpenList
from halt.rendering.streaming.rows import MAYBE_SEPARATOR, OpenTable, opened_table
from halt.rendering.streaming.tail import OpenTail


class BlockStream:
    """Takes Markdown in pieces and returns each block when it is finished.

    A block is finished at a blank line, at the end of a fence, before a fence, a heading, a rule or
    a list, after a heading and after a rule. An item of a list is a block of its own. It may
    continue after a blank line, as indented code may: it is finished when the first character of
    the next line has arrived and is not indented. The first two lines of a table are a block, and
    so is each row. A fence inside a list item belongs to the item; a formula whose opening mark is
    alone in its line continues after blank lines.

    The beginning of a line that may still become the mark of a block is held back, so that it does
    not flicker in the page. Nothing else is held, but for single marks (see `Provisional`).
    """

    def __init__(self, *, whole_lists: bool = False, whole_tables: bool = False) -> None:
        """A whole list or table is one block, not each of its items or rows."""
        self._whole_lists, self._whole_tables = whole_lists, whole_tables
        self._table: OpenTable | None = None  # the last block belongs to it
        self._normalizer = NewlineNormalizer()
        self._data_urls = data_urls.DataUrlFilter()
        self._lines: list[str] = []  # the open block's complete lines
        self._line = StringIO()  # the incomplete last line; grows without copies
        self._head = ""  # the first characters of that line: decisions use only these
        self._line_is_visible = False  # True: that line is in the tail; False: it is held back
        # What the open block is; at most one of the four:
        self._fence: OpenFence | None = None
        self._list: OpenList | None = None
        self._is_code = False  # indented code
        self._formula: OpenFormula | None = None
        self._fence_indent = 0
        self._after_blank = False  # the open block (a list or code) ends in a blank line
        # Collected for the next step:
        self._finished: list[Block] = []
        self._tail = OpenTail()

    def feed(self, text: str) -> BlockStep:
        """Take the next piece of text; return the change that it makes.

        The time depends on the piece alone, not on the length of the open block or its last line.
        """
        *complete, last = self._data_urls.feed(self._normalizer.feed(text)).split("\n")
        for part in complete:
            self._grow(part)
            self._end_line()
        self._grow(last)
        step = BlockStep(self._finished, *self._tail.take())
        self._finished = []
        return step

    def close(self) -> list[Block]:
        """End the text; return the blocks that are finished by its end."""
        self._grow(self._data_urls.rest())
        if self._line.tell():
            self._end_line()
        elif self._lines:
            self._lines.append("")  # the text ends in a newline
        if self._lines:
            self._finish()
        return self._finished

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

    # --- The incomplete line ----------------------------------------------------------------------

    def _grow(self, part: str) -> None:
        """Add to the line that has no newline yet."""
        if not part:
            return
        self._line.write(part)
        if self._line_is_visible:
            self._tail.add(part)
            return
        self._head += part[: HEAD_MAX - len(self._head)]
        if len(self._head) < HEAD_MAX and self._is_undecided():
            return
        self._begin_line()
        self._line_is_visible = True
        self._show(self._line.getvalue())

    def _is_undecided(self) -> bool:
        """Whether later characters decide to which block this line belongs, or hide it."""
        bare = self._head.lstrip(" \t")
        if self._fence:
            is_mark = not bare.strip(self._fence.mark[0])
            return is_mark and indent(self._head) < 4
        if self._list and self._list.fence:
            return not bare.strip(self._list.fence.mark[0])
        if is_undecided(bare):
            return True
        is_below = bool(self._lines) and "|" in self._lines[-1]
        return is_below and MAYBE_SEPARATOR.fullmatch(bare) is not None

    def _show(self, line: str) -> None:
        """Show the beginning of a line: without its block's marks, which the tail's form shows."""
        if self._fence:
            self._tail.add(line[min(self._fence_indent, indent(line)) :])
        elif self._list:
            self._tail.add_item_line(self._list, line, is_first=not self._lines)
        elif self._is_code or self._formula:
            self._tail.add_literal(line)
        else:
            self._tail.add_text_line(line)

    def _begin_line(self) -> None:
        """Finish the open block if this line cannot belong to it; begin the block of this line.

        The line is not blank. Only its head is read.
        """
        if self._fence or self._formula or (self._list and self._list.fence):
            return
        head, column = self._head, indent(self._head)
        bare = head.lstrip(" \t")
        any_mark = item_mark(head) if self._list or column < 4 else None
        is_item = any_mark and column < 4 and not SPACED_RULE.fullmatch(bare)
        mark = any_mark if is_item else None
        if self._list:
            if any_mark:
                self._list.take_inner_item(any_mark, bare)
            self._begin_line_after_item(self._list, mark, column, bare)
        elif self._is_code:
            if column < 4:
                self._finish()
        elif self._lines and column < 4 and ends_paragraph(self._lines, mark, bare):
            self._finish()
        if not self._lines:
            self._begin_block(mark, column, bare)

    def _begin_block(self, mark: ItemMark | None, column: int, bare: str) -> None:
        """Begin the block of this line."""
        if column >= 4:
            self._is_code = True
        elif mark and not self._list:
            self._list = OpenList(mark)
        if self._list:
            self._tail.begin_item(self._list)
        elif heading := HEADING_START.match(bare) if column < 4 else None:
            self._tail.begin(f"h{len(heading[0].rstrip())}")
        elif bare[:1] == ">" and column < 4:
            self._tail.begin("quote")

    def _begin_line_after_item(
        self, items: OpenList, mark: ItemMark | None, column: int, bare: str
    ) -> None:
        """`_begin_line` while a list is open."""
        is_outside = items.is_outside(column)
        if is_outside and mark and items.continues_with(mark):
            items.is_loose = items.is_loose or self._after_blank
            if not self._whole_lists:
                self._finish()
                self._list = items
            items.begin_item(mark)
        elif self._after_blank:
            if not items.may_continue(self._head):
                self._finish()
        elif is_outside and (
            not items.takes_text(column) or (column < 4 and (mark or ends_paragraph_of_item(bare)))
        ):
            self._finish()

    # --- Complete lines ---------------------------------------------------------------------------

    def _end_line(self) -> None:
        line, is_visible = self._line.getvalue(), self._line_is_visible
        if self._fence:
            self._end_code_line(self._fence, line, is_visible=is_visible)
        elif not line.strip(" \t"):
            self._end_blank_line(line, is_visible=is_visible)
        else:
            if not is_visible:
                self._begin_line()
            self._end_text_line(line, is_visible=is_visible)
        self._line, self._head, self._line_is_visible = StringIO(), "", False

    def _end_code_line(self, fence: OpenFence, line: str, *, is_visible: bool) -> None:
        if indent(line) < 4 and fence.closes(line.lstrip(" \t")):
            self._lines.append(line)
            self._finish()
        else:
            self._keep(line, is_visible=is_visible)

    def _end_blank_line(self, line: str, *, is_visible: bool) -> None:
        if self._formula:
            if self._formula.ends_at(line):
                self._formula = None
            self._keep(line, is_visible=is_visible)
        elif self._lines and (self._list or self._is_code):
            if self._list:
                self._list.take_line(line, after_blank=self._after_blank)
            self._keep(line, is_visible=is_visible)
            self._after_blank = not (self._list and self._list.fence)
        elif self._lines:
            self._finish()
        self._table = None
        if not self._lines and is_visible:  # its spaces were shown as text, but the line is blank
            self._tail.clear()
            self._is_code = False

    def _end_text_line(self, line: str, *, is_visible: bool) -> None:
        formula = self._formula
        if formula and formula.ends_at(line):
            self._formula = None
        column, bare = indent(line), line.lstrip(" \t")
        is_outside = not self._list or (not self._list.fence and self._list.is_outside(column))
        if is_outside and column < 4 and (fence := opened_fence(bare)):
            if self._lines:
                self._finish()
            self._table = None
            self._tail.begin("code", fence_language(fence.info)[:LABEL_MAX])
            self._lines.append(line)
            self._fence, self._fence_indent = fence, column
            self._list, self._is_code, self._formula = None, False, None
            return
        if self._take_row(line) or self._take_separator(line):
            return
        self._keep(line, is_visible=is_visible)
        if self._list:
            self._list.take_line(line, after_blank=self._after_blank)
            self._after_blank = False
        elif self._is_code:
            self._after_blank = False
        elif column < 4 and not self._formula:
            if HEADING_START.match(bare) or SPACED_RULE.fullmatch(bare):
                self._finish()
            elif not formula:
                self._formula = opened_formula(bare)

    def _take_row(self, line: str) -> bool:
        """Take a line of the open table; False if there is none, or the line ends it."""
        row = self._table.row(line) if self._table and not self._lines else None
        is_row = row is not None and not (self._list or self._is_code)
        if row is not None and is_row:
            self._finished.append(Block(row, "row", joins=True))
            self._tail.clear()
        else:
            self._table = None
        return is_row

    def _take_separator(self, line: str) -> bool:
        """Take the separator below the head of a table; False if it is none."""
        if self._whole_tables or not self._lines or self._list or self._is_code or self._formula:
            return False
        if self._lines[0].lstrip(" ").startswith((">", *CORNERS)):
            return False
        self._table = opened_table(self._lines[-1], line)
        if not self._table:
            return False
        head = self._lines.pop()
        if self._lines:
            self._finish()
        self._finished.append(Block([head, line], "head"))
        self._lines = []
        self._tail.clear()
        return True

    def _keep(self, line: str, *, is_visible: bool) -> None:
        # The marks of a fence in an item are not shown.
        if not is_visible and not (self._list and line.lstrip(" \t")[:3] in ("```", "~~~")):
            self._show(line)
        self._tail.end_line()
        self._lines.append(line)

    def _finish(self) -> None:
        """Move the open block to the finished ones and clear the tail."""
        kind: Kind = "fence" if self._fence else "text"
        joins = False
        if self._list and not self._whole_lists:
            kind = "loose item" if self._list.is_loose else "item"
            joins = not self._list.is_first
        self._finished.append(Block(self._lines, kind, joins))
        self._lines, self._fence, self._list, self._is_code = [], None, None, False
        self._after_blank, self._fence_indent, self._formula = False, 0, None
        self._tail.clear()


def split_blocks(text: str) -> list[Block]:
    """The blocks of a whole text, in order."""
    stream = BlockStream(whole_tables=True)
    return [*stream.feed(text).blocks, *stream.close()]
