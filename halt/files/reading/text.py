"""Any text: sources, Markdown, CSV, logs, SVG; in any encoding that can be told."""

from __future__ import annotations

import codecs
import re
from pathlib import PurePath
from typing import BinaryIO

from charset_normalizer import from_bytes

from halt.files import tokens
from halt.files.facts import Facts
from halt.files.reading.result import Limits, Refused, Result, cut, plain

SAMPLE = 50_000  # bytes by which an encoding is told

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_IN_TEXT = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]")
_WORD = re.compile(r"[A-Za-z0-9+#_-]{1,12}\Z")

_KIND = (
    "Halt reads images (PNG, JPEG, WebP, GIF, AVIF, HEIC), PDF, Word documents (DOCX) and text "
    "files. This is none of them."
)


def read(source: BinaryIO, name: str, limits: Limits) -> Result:
    """Read a text file. Raises Refused for what is no text."""
    data = source.read()
    text = plain(_decoded(data))
    if not text.strip():
        raise Refused("unreadable", "The file has no text.")
    used = cut(text, limits.max_chars)
    facts = Facts(
        "text",
        "text/plain",
        _label(name),
        tokens.of_text(used),
        chars=len(text),
        text_chars=len(used),
    )
    return Result(facts, text=used)


def _decoded(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
    if not encoding and _NOT_IN_TEXT.search(data):
        raise Refused("kind", _KIND)
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as exc:
        if encoding:
            raise Refused("unreadable", "The text is damaged.") from exc
    best = from_bytes(data[:SAMPLE]).best()
    if best is None:
        raise Refused("kind", _KIND)
    return data.decode(best.encoding, "replace")


def _label(name: str) -> str:
    """The ending of a name as a label: "CSV", "PY"; "TXT" where there is none."""
    ending = PurePath(name).suffix[1:]
    return ending.upper() if _WORD.match(ending) else "TXT"
