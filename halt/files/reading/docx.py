"""The text of a Word document: paragraphs, headings and tables in their order, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import docx
from docx.document import Document
from docx.enum.style import WD_STYLE_TYPE
from docx.table import Table

from halt.files import tokens
from halt.files.facts import Facts
from halt.files.reading.result import Limits, Refused, Result, cut, plain

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
DEPTH_MAX = 5  # of tables in tables

_HEADING = re.compile(r"Heading ([1-6])")


def read(source: BinaryIO, limits: Limits) -> Result:
    """Read the text of a Word document. Raises Refused."""
    try:
        document = docx.Document(source)
        text = plain("\n\n".join(_blocks(document, _headings(document), 0))).strip()
    except MemoryError as exc:
        raise Refused("too_large", "The document takes too much memory.") from exc
    except Exception as exc:
        raise Refused("unreadable", "The document is damaged, or needs a password.") from exc
    used = cut(text, limits.max_chars)
    facts = Facts(
        "text", MEDIA_TYPE, "DOCX", tokens.of_text(used), chars=len(text), text_chars=len(used)
    )
    return Result(facts, text=used)


def _headings(document: Document) -> dict[str, int]:
    """The levels of the styles that are headings, by their IDs."""
    matches = {
        style.style_id: _HEADING.match(style.name or "")
        for style in document.styles
        if style.type == WD_STYLE_TYPE.PARAGRAPH
    }
    return {style_id: int(match[1]) for style_id, match in matches.items() if match}


def _blocks(container: Any, headings: Mapping[str, int], depth: int) -> Iterator[str]:
    for block in container.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join(_rows(block, headings, depth))
        elif text := block.text.strip():
            # Not `block.style`, which searches the styles: 1 ms for each paragraph.
            level = headings.get(block._p.style or "", 0)
            yield f"{'#' * level} {text}" if level else text


def _rows(table: Table, headings: Mapping[str, int], depth: int) -> Iterator[str]:
    if depth >= DEPTH_MAX:
        return
    for row in table.rows:
        cells: list[str] = []
        last: Any = None
        for cell in row.cells:  # a merged cell comes once for each column
            if cell._tc is last:
                continue
            last = cell._tc
            cells.append(" ".join(" ".join(_blocks(cell, headings, depth + 1)).split()))
        yield f"| {' | '.join(cells)} |"
