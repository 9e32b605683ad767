"""The text of a PDF, page by page, until a limit of characters or time."""

from __future__ import annotations

import time
from typing import BinaryIO

import pypdfium2  # type: ignore[import-untyped]

from halt.files import tokens
from halt.files.facts import Facts
from halt.files.protocol import ENOUGH
from halt.files.reading.result import Limits, Refused, Result, cut, plain

PAGES_MAX = 50_000  # a damaged file may claim millions


def read(source: BinaryIO, limits: Limits) -> Result:
    """Read the text of a PDF. Raises Refused."""
    began = time.process_time()
    try:
        document = pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as exc:
        if "password" in str(exc).lower():
            raise Refused("unreadable", "The PDF needs a password. Save it without one.") from exc
        raise Refused("unreadable", "This is no PDF, or it is damaged.") from exc
    with document:
        pages = min(len(document), PAGES_MAX)
        if not pages:
            raise Refused("unreadable", "The PDF has no pages.")
        texts: list[str] = []
        size = 0
        is_cut = False
        for number in range(pages):
            if number and time.process_time() - began > ENOUGH:
                break
            text = _page(document, number)
            headed = f"[Page {number + 1}]\n{text}" if text else ""
            if size + len(headed) > limits.max_chars:
                is_cut = True
                if not number:  # a first page that is too long on its own
                    texts.append(cut(headed, limits.max_chars))
                break
            texts.append(headed)
            size += len(headed) + 2
        used = "\n\n".join(text for text in texts if text)
    whole_pages = 0 if is_cut and len(texts) == 1 and size == 0 else len(texts)
    facts = Facts(
        "pdf",
        "application/pdf",
        "PDF",
        tokens.of_text(used),
        pages=pages,
        text_pages=whole_pages,
        chars=len(used),
        text_chars=len(used),
    )
    return Result(facts, text=used)


def _page(document: pypdfium2.PdfDocument, number: int) -> str:
    """The text of a page; "" for a page that is damaged."""
    try:
        page = document[number]
        try:
            return plain(page.get_textpage().get_text_bounded()).strip()
        finally:
            page.close()
    except pypdfium2.PdfiumError:
        return ""
