"""What the beginning of a line means: which blocks it begins, and which open ones it ends.

`bare` is a line, or as much of it as has arrived, without its indentation.
"""

from __future__ import annotations

import re

from halt.rendering.grammar.headings import UNDERLINE_MIN
from halt.rendering.lines import HEADING_START, SPACED_RULE, ItemMark

_UNDECIDED = re.compile(
    r"(?:`{0,2}|`{3,}+[^`]*|~{0,2}|~{3,}+.*|#{1,6}\*|>[ \t]?"
    r"|[0-9]{1,9}|(?:#{1,6}|[-+*]|[0-9]{1,9}[.)])[ \t]*"
    r"|(?:-[ \t]*+)+|(?:\*[ \t]*+)+|(?:_[ \t]*+)+)"
)
#: A block other than a list or a fence that ends the paragraph of an item without a blank line.
_OTHER = re.compile(rf"{HEADING_START.pattern}|>|{SPACED_RULE.pattern}\Z")


def is_undecided(bare: str) -> bool:
    """Whether a line may still become a fence, a heading, a quote, an item or a rule."""
    return _UNDECIDED.fullmatch(bare) is not None


def ends_paragraph_of_item(bare: str) -> bool:
    """Whether a line that is not indented begins a block other than a list below an item."""
    return _OTHER.match(bare) is not None


def ends_paragraph(lines: list[str], mark: ItemMark | None, bare: str) -> bool:
    """Whether a line with this mark of an item begins a block below an open paragraph or quote.

    `lines`: of that paragraph or quote.
    """
    is_quote = lines[0].lstrip(" ")[:1] == ">"
    if mark:
        return is_quote or _interrupts(mark, bare)
    if not SPACED_RULE.fullmatch(bare):
        return HEADING_START.match(bare) is not None
    dashes = bare.rstrip()
    if is_quote or dashes.strip("-"):
        return True
    # Long dashes make a line a heading. Below a pipe they may be a table's separator.
    is_underline = len(lines) == 1 and len(dashes) >= UNDERLINE_MIN
    return not is_underline and "|" not in lines[-1]


def _interrupts(mark: ItemMark, bare: str) -> bool:
    """Whether an item with this mark may follow a paragraph without a blank line."""
    has_content = bool(bare[mark.end - mark.indent :].strip(" \t"))
    return has_content and (not mark.is_ordered or mark.number == 1)
