"""Lists that end at a line of text."""

from markdown_it.rules_block import StateBlock


def ends_item(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    """Terminator of a paragraph in a list: a line that is not indented.

    In CommonMark such a line belongs to the item above it, because people break long lines. Models
    do not: they go on below the list.
    """
    return silent and state.listIndent >= 0 and state.sCount[line] <= state.listIndent
