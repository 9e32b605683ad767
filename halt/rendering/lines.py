"""Patterns for single lines of Markdown: a heading, a rule, a list item."""

import re
from typing import NamedTuple

#: What begins a heading: also `##Title`, as models write it.
HEADING_START = re.compile(r"#{1,6}(?:[ \t]|\Z)|#{2,6}(?:[^\W_]|\*\*)")
#: A rule, with or without blanks between its marks.
SPACED_RULE = re.compile(r"(?:(?:-[ \t]*+){3,}|(?:\*[ \t]*+){3,}|(?:_[ \t]*+){3,})")
MARKER = re.compile(r"(?:[-+*]|([0-9]{1,9})[.)])(?=[ \t]|$)")

#: Characters at a line's start from which its kind is read.
HEAD_MAX = 120
LABEL_MAX = 24  # characters of a fence's language that are shown


class ItemMark(NamedTuple):
    """The mark of a list item at the start of a line."""

    indent: int  # columns before it
    kind: str  # its last character: items of one list have the same
    number: int  # of an ordered list, else 0
    content: int  # column where the item's content begins
    end: int  # characters up to the content, or up to the line's end

    @property
    def is_ordered(self) -> bool:
        return self.kind in ".)"


def item_mark(line: str, column: int = 0) -> ItemMark | None:
    """The mark that begins a line, which begins in this column; None if there is none.

    Only the first HEAD_MAX characters are read.
    """
    head = line[:HEAD_MAX]
    bare = head.lstrip(" \t")
    before = len(head) - len(bare)
    marker = MARKER.match(bare)
    if not marker:
        return None
    indentation = _width(head[:before], column)
    end = before + marker.end()
    after_mark = indentation + marker.end()
    content = len(head) - len(head[end:].lstrip(" \t"))
    width = _width(head[end:content], after_mark) - after_mark
    if content == len(head):
        width = 1
    elif width > 4:  # the item begins with indented code
        content, width = end + 1, 1
    kind, number = marker[0][-1], int(marker[1] or 0)
    return ItemMark(indentation, kind, number, after_mark + width, content)


def indent(line: str) -> int:
    """Columns of white space at the start of the line; a tab ends at a multiple of 4."""
    bare = line.lstrip(" \t")
    return len(line[: len(line) - len(bare)].expandtabs(4)) if len(bare) < len(line) else 0


def _width(blanks: str, column: int) -> int:
    """The column after blanks that begin in `column`."""
    if "\t" not in blanks:
        return column + len(blanks)
    for blank in blanks:
        column += 4 - column % 4 if blank == "\t" else 1
    return column
