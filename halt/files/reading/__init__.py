"""Reads a file by its content, whatever its name says: called in the reading process alone.

images      turned upright, made smaller, without metadata
pdf         the text of its pages
docx        the text of a Word document
text        any text or source file
result      what the readers return and raise
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO

from halt.files.reading import docx, images, pdf, text
from halt.files.reading.result import Limits, Refused, Result

_HEAD = 1024  # bytes in which the beginning of a PDF may be
_DOCX = "word/document.xml"

#: The files that a ZIP of this kind has, and what the user is told.
_PACKED = {
    "xl/workbook.xml": "Excel files are not read. Save the sheet as CSV and attach that.",
    "ppt/presentation.xml": "PowerPoint files are not read. Save it as PDF and attach that.",
    "content.xml": "OpenDocument files are not read. Save it as PDF or DOCX and attach that.",
    "META-INF/container.xml": "E-books are not read. Save it as PDF or text and attach that.",
}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read(source: BinaryIO, name: str, limits: Limits) -> Result:
    """Read a file from its beginning. Raises Refused."""
    head = source.read(_HEAD)
    source.seek(0)
    if not head:
        raise Refused("unreadable", "The file is empty.")
    if kind := images.format_of(head):
        return images.read(source, kind)
    if b"%PDF-" in head:
        return pdf.read(source, limits)
    if head.startswith(b"PK\x03\x04"):
        return _packed(source, limits)
    if head.startswith(_OLE):
        raise Refused(
            "kind", "Files of old Office versions are not read. Save it as DOCX, PDF or CSV."
        )
    return text.read(source, name, limits)


def _packed(source: BinaryIO, limits: Limits) -> Result:
    try:
        with zipfile.ZipFile(source) as archive:
            names = frozenset(archive.namelist())
            unpacked = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as exc:
        raise Refused("unreadable", "The file is damaged.") from exc
    source.seek(0)
    if _DOCX in names:
        if unpacked > limits.max_bytes:
            raise Refused("too_large", "The document unpacks to too many bytes.")
        return docx.read(source, limits)
    reason = next((reason for item, reason in _PACKED.items() if item in names), "")
    raise Refused("kind", reason or "ZIP archives are not read. Attach the files in it.")
