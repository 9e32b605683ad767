"""A list while it is written: which line begins its next item, and which are code in an item."""

from __future__ import annotations

from halt.rendering.grammar.fences import OpenFence, opened_fence
from halt.rendering.grammar.lists import NESTED_INDENT, is_nested
from halt.rendering.lines import HEADING_START, ItemMark, indent, item_mark


class OpenList:
    """A list of the outermost level. Its open item takes its lines one by one."""

    def __init__(self, mark: ItemMark) -> None:
        self.mark = mark  # of the open item
        self.number = mark.number  # of the open item, as the page counts
        self.is_first = True  # the open item is the list's first one
        #: A blank line between two items gives every item the distance of paragraphs. The items
        #: before it are finished and keep theirs until the answer's end.
        self.is_loose = False
        self.fence: OpenFence | None = None  # open in the item
        #: The item before ends in a line of its own text, so it has no distance below.
        self.is_close = False
        self._content = mark.content  # the column that belongs to the item
        self._columns: list[int] = []  # where the content of the item and those in it begins
        self._has_content = False
        self.is_paragraph = False  # the item's last line is one of a paragraph

    def continues_with(self, mark: ItemMark) -> bool:
        """Whether a line with this mark begins the next item, not another list."""
        return mark.kind == self.mark.kind and mark.indent < 4

    def begin_item(self, mark: ItemMark) -> None:
        """Begin the next item."""
        has_text_alone = self.is_paragraph or not self._has_content
        self.is_close = has_text_alone and len(self._columns) <= 1 and not self.is_loose
        self.mark, self.is_first, self._content = mark, False, mark.content
        self.number += 1
        self._columns, self._has_content, self.is_paragraph = [], False, False

    def is_outside(self, column: int) -> bool:
        """Whether a block that begins in this column is outside of the item."""
        return column < self._content

    def take_inner_item(self, mark: ItemMark, line: str) -> None:
        """An item that is indented less than the content may still belong to the open item."""
        if mark.indent >= self.mark.indent + NESTED_INDENT and is_nested(
            mark, self.mark.kind, line
        ):
            self._content = min(self._content, mark.indent)

    def takes_text(self, column: int) -> bool:
        """Whether a line of text in this column, outside of the item, continues its paragraph."""
        return self.is_paragraph and column > 0 and len(self._columns) == 1

    def may_continue(self, head: str) -> bool:
        """Whether a line after a blank line belongs to the item."""
        return self._has_content and not self.is_outside(indent(head))

    def take_line(self, line: str, *, after_blank: bool) -> None:
        """Take the next line, which belongs to the item."""
        column = indent(line)
        bare = line.lstrip(" \t")
        if self.fence:
            if column - self._columns[-1] < 4 and self.fence.closes(bare):
                self.fence = None
            return
        if not bare:
            return
        self.is_paragraph = False
        if not self._columns:
            self._columns.append(self.mark.content)
            at = self.mark.end
            column += self.mark.content - self.mark.indent
            bare = line[at:]
            if bare[:1] in (" ", "\t"):  # indented code
                self._has_content = True
                return
        elif after_blank and (len(self._columns) == 1 or column < self._columns[1]):
            self.is_loose = True
        self._has_content = self._has_content or bool(bare)
        while mark := item_mark(bare, column):
            if not self._leave(mark.indent):
                return
            self._columns.append(mark.content)
            bare, column = bare[mark.end :], mark.content
            if bare[:1] in (" ", "\t"):
                return
        if bare[:3] in ("```", "~~~") and self._leave(column):
            self.fence = opened_fence(bare)
        self.is_paragraph = bool(bare) and not self.fence and not HEADING_START.match(bare)

    def _leave(self, column: int) -> bool:
        """Leave the inner items that end before a block in this column; False if it is text."""
        while len(self._columns) > 1 and self._columns[-1] > column:
            self._columns.pop()
        return column - self._columns[-1] < 4
