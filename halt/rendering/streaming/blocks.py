"""Finished blocks of a text, and the change of a page that each piece of text makes.

An item of a list is a block of its own: its HTML is a list with one item. A page shows it in the
list that the block before it began. The same applies to the rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: What a block is. A "loose" item has the distance of paragraphs; see CommonMark. A "head" is the
#: beginning of a table, a "row" a table with one row below an empty head.
Kind = Literal["text", "fence", "item", "loose item", "head", "row"]
#: What the open block looks like so far.
Form = Literal["text", "code", "item", "quote", "h1", "h2", "h3", "h4", "h5", "h6"]


@dataclass(frozen=True, slots=True)
class Block:
    """The source of a finished block."""

    lines: list[str]
    kind: Kind = "text"
    joins: bool = False  # True: a part of the list or table that the block before it belongs to

    @property
    def source(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_fence(self) -> bool:
        return self.kind == "fence"


@dataclass(frozen=True, slots=True)
class Patch:
    """The change that brings a page up to date: HTML to append, and the new open tail."""

    finished: str  # HTML of the blocks finished in this step; the page appends it
    replaces_tail: bool  # True: `tail` replaces the open tail; False: it is appended to it
    tail: str  # escaped text, some of it in closed elements of emphasis and code
    form: Form  # how the page shows the open tail
    language: str = ""  # of the code, not escaped, where `tail` is the beginning of a fence
    number: int | None = None  # of the item, where `tail` is the beginning of one in an `ol`
    #: `tail` is the beginning of an item, without distance to the item above.
    is_close: bool = False
    parts: str = ""  # HTML of items or rows; before all else the page appends it to its last block
    are_rows: bool = False  # `parts` are rows of a table


class BlockStep(NamedTuple):
    """The change that one piece of text makes: a `Patch` whose blocks are not rendered yet."""

    blocks: list[Block]
    replaces_tail: bool
    tail: str
    form: Form
    language: str = ""
    number: int | None = None
    is_close: bool = False

    def patch(self, finished: Iterable[str]) -> Patch:
        """The patch with `finished`, the HTML of `blocks` in order."""
        parts, rest = joined(self.blocks, finished)
        are_rows = bool(parts) and self.blocks[0].kind == "row"
        return Patch(rest, *self[1:], parts=parts, are_rows=are_rows)


#: What page_parser writes around a table, and around its rows.
TABLE, TABLE_END = '<div class="table" tabindex="0"{attributes}><table>\n', "</table></div>\n"
BODY = "<tbody>\n"
BODY_END = f"</tbody>\n{TABLE_END}"


def joined(blocks: Sequence[Block], rendered: Iterable[str]) -> tuple[str, str]:
    """The HTML of blocks in order: parts of the page's last block, and what follows that block."""
    parts: list[str] = []
    rest: list[str] = []
    end = ""  # closes the list or table that `rest` ends in
    for block, html in zip(blocks, rendered, strict=True):
        if block.kind in ("text", "fence"):
            rest += (end, html)
            end = ""
            continue
        # A list with one item: "<ul>\n<li>...</li>\n</ul>\n".
        if block.kind == "row":
            first, last = html.index(BODY) + len(BODY), html.rindex(BODY_END)
        elif block.kind == "head":
            html = html.removesuffix(TABLE_END) + BODY + BODY_END  # noqa: PLW2901
            first, last = 0, len(html) - len(BODY_END)
        else:
            first, last = html.index("\n") + 1, html.rindex("</")
        if not block.joins:
            rest += (end, html[:last])
            end = html[last:]
        elif end:
            rest.append(html[first:last])
        else:
            parts.append(html[first:last])
    return "".join(parts), "".join([*rest, end])
