"""The text of a Word document: paragraphs, headings and tables in their order, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import docx
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
        text = plain("\n\n".join(_blocks(document, 0))).strip()
    except MemoryError as exc:
        raise Refused("too_large", "The document takes too much memory.") from exc
    except Exception as exc:
        raise Refused("unreadable", "The document is damaged, or needs a password.") from exc
    used = cut(text, limits.max_chars)
    facts = Facts(
        "text", MEDIA_TYPE, "DOCX", tokens.of_text(used), chars=len(text), text_chars=len(used)
    )
    return Result(facts, text=used)


def _blocks(container: Any, depth: int) -> Iterator[str]:
    for block in container.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join(_rows(block, depth))
        elif text := block.text.strip():
            style = block.style.name if block.style is not None else ""
            heading = _HEADING.match(style or "")
            yield f"{'#' * int(heading[1])} {text}" if heading else text


def _rows(table: Table, depth: int) -> Iterator[str]:
    if depth >= DEPTH_MAX:
        return
    for row in table.rows:
        cells: list[str] = []
        seen: list[Any] = []
        for cell in row.cells:  # a merged cell comes once for each column
            if any(cell._tc is other for other in seen):
                continue
            seen.append(cell._tc)
            cells.append(" ".join(" ".join(_blocks(cell, depth + 1)).split()))
        yield f"| {' | '.join(cells)} |"
