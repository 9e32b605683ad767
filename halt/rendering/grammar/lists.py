"""Lists that end at a line of text, and items with the lists that models write below them.

In CommonMark a bullet below `1. ` is indented by three blanks, and one below `*   ` by four. Models
write two or three.
"""

from markdown_it.parser_block import ParserBlock
from markdown_it.rules_block import StateBlock

from halt.rendering.grammar.fences import OpenFence, opened_fence
from halt.rendering.lines import HEADING_START, SPACED_RULE, ItemMark, indent, item_mark

NESTED_INDENT = 2  # columns by which a list is indented that belongs to the item above it


def ends_item(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    """Terminator of a paragraph in a list: a line that is not indented.

    In CommonMark such a line belongs to the item above it, because people break long lines. Models
    do not: they go on below the list.
    """
    return silent and state.listIndent >= 0 and state.sCount[line] <= state.listIndent


class ListParser(ParserBlock):
    """The parser of blocks, with this indentation of lists in an item."""

    def tokenize(self, state: StateBlock, start: int, end: int) -> None:
        content = state.blkIndent
        if state.tokens and state.tokens[-1].type == "list_item_open":
            content = _content_column(state, start, end)
        if content == state.blkIndent:
            super().tokenize(state, start, end)
            return
        line_start = state.bMarks[start]
        # The rules cut off as many columns of each line; the first one begins after its mark.
        state.bMarks[start] += state.tShift[start]
        state.tShift[start] = 0
        state.sCount[start] -= state.blkIndent - content
        state.blkIndent = content
        super().tokenize(state, start, end)
        state.bMarks[start] = line_start  # the rule for lists restores the other values


def _content_column(state: StateBlock, start: int, end: int) -> int:
    """The column where the content of an item begins: that of a list in it that is indented less.

    Only the item's own lines are read, so that a text's lines are read once for each level.
    """
    content = state.blkIndent
    first = state.src[state.bMarks[start] : state.eMarks[start]]
    mark_column = max(indent(first), state.listIndent)
    if content - mark_column <= NESTED_INDENT:
        return content
    is_after_blank = False
    open_fence: OpenFence | None = None
    for line in range(start + 1, end):
        if state.isEmpty(line):
            is_after_blank = True
            continue
        column = state.sCount[line]
        if column < mark_column + NESTED_INDENT:
            break
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
        if open_fence:
            open_fence = None if open_fence.closes(text) else open_fence
        elif column >= content:
            open_fence = opened_fence(text)
        elif (mark := item_mark(text)) and is_nested(mark, state.tokens[-1].markup, text):
            content = column
        elif is_after_blank or opened_fence(text) or HEADING_START.match(text) or mark:
            break
        is_after_blank = False
    return content


def is_nested(mark: ItemMark, outer_kind: str, line: str) -> bool:
    """Whether a line with this mark belongs to an item whose mark is of the kind `outer_kind`.

    A number below a number is the next item.
    """
    is_numbered = mark.is_ordered and outer_kind in ".)"
    return not is_numbered and not SPACED_RULE.fullmatch(line)
