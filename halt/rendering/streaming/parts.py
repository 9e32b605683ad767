"""The HTML of a block that is a part: a list with one item, a table with one row."""

from __future__ import annotations

import html
from collections.abc import Sequence

from markdown_it.token import Token

from halt.rendering.lines import item_mark
from halt.rendering.open_text import breakable
from halt.rendering.streaming.blocks import BODY, BODY_END, TABLE, TABLE_END, Block


def is_one_item(tokens: Sequence[Token]) -> bool:
    """Whether these tokens of a parser are one list with one item."""
    return sum(token.level == 1 and token.type == "list_item_open" for token in tokens) == 1 and (
        sum(token.level == 0 for token in tokens) == 2  # the list's start and end
    )


def loosen(tokens: Sequence[Token]) -> None:
    """Give the item's paragraphs their distance."""
    for token in tokens:
        if token.level == 2 and token.type in ("paragraph_open", "paragraph_close"):
            token.hidden = False


def plain_item(block: Block) -> str:
    """The item as escaped text with its line breaks."""
    mark = item_mark(block.lines[0])
    text = block.source[mark.end :] if mark else block.source
    tag, start = "ul", ""
    if mark and mark.is_ordered:
        tag, start = "ol", f' start="{mark.number}"' if mark.number != 1 else ""
    lines = breakable(html.escape(text.strip("\n"), quote=False)).replace("\n", "<br>\n")
    return f"<{tag}{start}>\n<li>{lines}</li>\n</{tag}>\n"


def is_one_table(tokens: Sequence[Token]) -> bool:
    """Whether these tokens of a parser are one table."""
    return bool(tokens) and tokens[0].type == "table_open" and tokens[-1].type == "table_close"


def plain_table(block: Block) -> str:
    """The head or the row as the escaped text of one cell."""
    lines = block.lines[:1] if block.kind == "head" else block.lines[2:]
    text = breakable(html.escape("\n".join(lines), quote=False))
    start = TABLE.format(attributes="")
    if block.kind == "head":
        return f"{start}<thead>\n<tr>\n<th>{text}</th>\n</tr>\n</thead>\n{TABLE_END}"
    return f"{start}{BODY}<tr>\n<td>{text}</td>\n</tr>\n{BODY_END}"
