"""Texts and blocks as they were written, in linear time: what is shown if rendering takes too long.

Paragraphs keep their line breaks, and code has its box, without colours.
"""

import html
from collections.abc import Iterator

from halt.rendering import data_urls
from halt.rendering.code_box import code_box
from halt.rendering.grammar.fences import OpenFence, opened_fence
from halt.rendering.lines import indent
from halt.rendering.open_text import breakable, normalized
from halt.rendering.streaming.blocks import Block
from halt.rendering.streaming.parts import plain_item, plain_table


def plain(text: str) -> str:
    """The whole text as HTML: paragraphs and fences, each as `plain_block` shows it."""
    return "".join([plain_block(block) for block in _plain_blocks(text)])


def _plain_blocks(text: str) -> Iterator[Block]:
    """The fences of a text, and the lines between them up to a blank one.

    `split_blocks` knows more kinds of blocks, and takes ten times as long.
    """
    lines: list[str] = []
    fence: OpenFence | None = None
    for line in data_urls.replace(normalized(text)).split("\n"):
        bare = line.lstrip(" \t")
        is_mark = bare.startswith(("```", "~~~"))
        opening = opened_fence(bare) if is_mark and fence is None else None
        if fence is not None:
            lines.append(line)
            is_end = is_mark and indent(line) < 4 and fence.closes(bare)
        else:
            is_end = opening is not None or not bare
            if not is_end:
                lines.append(line)
        if is_end:
            if lines:
                yield Block(lines, "fence" if fence else "text")
            lines, fence = [line] if opening else [], opening
    if lines:
        yield Block(lines, "fence" if fence else "text")


def plain_block(block: Block) -> str:
    """A block as escaped text with its line breaks; a fence as uncoloured code."""
    if block.kind in ("item", "loose item"):
        return plain_item(block)
    if block.kind in ("head", "row"):
        return plain_table(block)
    if not block.is_fence:
        lines = breakable(html.escape(block.source.strip("\n"), quote=False))
        return f"<p>{lines}</p>\n".replace("\n", "<br>\n", lines.count("\n")) if lines else ""
    first, *code_lines = block.lines
    margin, fence = indent(first), opened_fence(first.lstrip(" \t"))
    if fence and any(fence.closes(line.lstrip(" \t")) for line in code_lines if indent(line) < 4):
        code_lines.pop()
    code = "".join(f"{line[min(margin, indent(line)) :]}\n" for line in code_lines)
    return code_box(code, fence.info if fence else "", None)
