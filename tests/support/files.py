"""Files of tests: stored ones, and the bytes of images and documents."""

from __future__ import annotations

import hashlib
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docx import Document
from PIL import Image
from sqlalchemy import func, select

from halt.files.facts import Facts, Role
from halt.store.files import PART
from halt.store.models import StoredFile
from halt.store.store import Store
from halt.store.tables import file_parts, files

PLENTY = 10**9  # bytes


def save(
    store: Store, content: bytes = b"content", owner: str = "anna", max_bytes: int = PLENTY
) -> StoredFile:
    """Save a text file with this content."""
    facts = Facts("text", "text/plain", "TXT", 3, chars=len(content), text_chars=len(content))
    data: dict[Role, bytes] = {"content": content, "text": content[:100], "thumbnail": b""}
    file = StoredFile(
        hashlib.sha256(content).hexdigest(), facts, {role: len(d) for role, d in data.items()}
    )

    def parts(role: Role) -> Iterator[bytes]:
        for at in range(0, len(data[role]), PART):
            yield data[role][at : at + PART]

    return store.files.save(owner, file, parts, max_bytes=max_bytes)


def row_counts(store: Store) -> tuple[int, int]:
    """The numbers of files and of their parts, of all people."""
    with store.database.reading() as connection:
        counts = [
            connection.scalar(select(func.count()).select_from(t)) for t in (files, file_parts)
        ]
    return counts[0] or 0, counts[1] or 0


def image(
    width: int = 40, height: int = 30, kind: str = "PNG", mode: str = "RGB", **options: Any
) -> bytes:
    """An image of one colour."""
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, kind, **options)
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pdf(pages: Sequence[str]) -> bytes:
    """A PDF with a page for each text; its lines are ASCII without parentheses."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {count}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(pages):
        lines = " ".join(f"({line}) Tj T*" for line in text.split("\n"))
        stream = f"BT /F1 9 Tf 12 TL 40 800 Td {lines} ET"
        objects += [
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {5 + 2 * number} 0 R>>",
            f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, item in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{item}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode()
    return bytes(out)


def docx(paragraphs: Sequence[str]) -> bytes:
    """A Word document with these paragraphs."""
    document = Document()
    for text in paragraphs:
        document.add_paragraph(text)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A ZIP with these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def with_reading(body: str) -> tuple[str, ...]:
    """A reading process whose `reading.read(source, name, limits)` has this body."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from halt.files import process, reading\n"
        "usual_read = reading.read\n"
        f"def read(source, name, limits):\n    {body}\n"
        "    source.seek(0)\n    return usual_read(source, name, limits)\n"
        "reading.read = read; process.main()"
    )
    return (sys.executable, "-c", program, str(Path(__file__).parents[2]))


class ReadBytes(NamedTuple):
    """A file that was read, with all that is kept of it."""

    facts: Facts
    hash: str
    content: bytes
    text: bytes
    thumbnail: bytes


Read = Callable[..., ReadBytes]
