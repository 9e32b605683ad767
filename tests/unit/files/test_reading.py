"""What is read of files, and which files are refused, in real reading processes."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from docx import Document
from PIL import Image, ImageCms

from halt.files.faults import FileError, FileTooLarge, UnknownKind, Unreadable
from halt.files.readers import Readers, temporary_file
from halt.files.reading.images import PIXELS_MAX, SIDE_MAX, THUMBNAIL_MAX
from tests.support.files import Read, docx, huge_png, image, packed, pdf, with_reading

# --- images ---------------------------------------------------------------------------------------


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("kind", "mode", "label", "media_type"),
    [
        ("PNG", "RGB", "PNG", "image/png"),
        ("PNG", "RGBA", "PNG", "image/png"),
        ("PNG", "I;16", "PNG", "image/png"),
        ("PNG", "1", "PNG", "image/png"),
        ("JPEG", "RGB", "JPEG", "image/jpeg"),
        ("JPEG", "CMYK", "JPEG", "image/jpeg"),
        ("JPEG", "L", "JPEG", "image/jpeg"),
        ("WEBP", "RGB", "WebP", "image/png"),
        ("GIF", "P", "GIF", "image/png"),
        ("AVIF", "RGB", "AVIF", "image/jpeg"),
    ],
)
def test_image_becomes_jpeg_or_png(
    read: Read, kind: str, mode: str, label: str, media_type: str
) -> None:
    """Every kind becomes one that all models take, whatever the file's name says."""
    file = read(image(kind=kind, mode=mode), "photo.txt")
    assert (file.facts.kind, file.facts.label, file.facts.media_type) == (
        "image",
        label,
        media_type,
    )
    assert (file.facts.width, file.facts.height) == opened(file.content).size == (40, 30)
    assert file.hash == hashlib.sha256(file.content).hexdigest()
    assert opened(file.thumbnail).size == (40, 30)
    assert file.text == b""


def test_one_of_anything_is_singular(read: Read) -> None:
    """A card says "1 character", not "1 characters"."""
    assert read(b"a", name="a.txt").facts.detail == "1 character · about 1 token"
    assert read(pdf(["Hi"])).facts.extent == "1 page"


def test_heic_needs_its_package(read: Read, tmp_path: Path) -> None:
    """With the extra `heic` an iPhone's photo is read; without it the user is told what to do."""
    heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (40, 30), "red")).save(out)
    file = read(out.getvalue())
    assert (file.facts.label, file.facts.media_type) == ("HEIC", "image/jpeg")
    assert opened(file.content).getpixel((20, 15)) == pytest.approx((255, 0, 0), abs=9)
    without = Readers(with_reading("sys.modules['pillow_heif'] = None"))
    with temporary_file(tmp_path) as source, temporary_file(tmp_path) as kept:
        source.write(out.getvalue())
        source.flush()
        with pytest.raises(UnknownKind, match=r"^photo\.heic: HEIC .* `halt-chat\[heic\]`"):
            without.read(source, kept, "photo.heic", max_chars=1, max_bytes=1)
    without.close()


def with_trailer(data: bytes) -> bytes:
    return data + b"Anna"


def with_comment(data: bytes) -> bytes:
    """A JPEG with a comment after its first segment."""
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"\xff\xfe\x00\x06Anna" + data[end:]


def with_text(data: bytes) -> bytes:
    """A PNG with a text chunk after its head."""
    chunk = b"tEXt" + b"Author\0Anna"
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + whole + data[33:]


NOISE = Image.effect_noise((300, 200), 60)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("JPEG", "RGB", {"quality": 50}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
    ],
)
def test_image_without_metadata_is_kept_as_it_came(
    read: Read, kind: str, mode: str, options: dict[str, Any]
) -> None:
    """An export that is imported again has the same images; anything more is left out."""
    picture = NOISE.convert(mode)
    if mode == "RGBA":
        picture.putalpha(NOISE)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    data = out.getvalue()
    file = read(data)
    assert (file.content, file.facts.media_type) == (data, f"image/{kind.lower()}")
    for change in (with_trailer, with_comment if kind == "JPEG" else with_text):
        changed = change(data)
        assert opened(changed).size == (300, 200)
        assert b"Anna" in changed
        assert b"Anna" not in read(changed).content


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_image_that_was_made_smaller_is_kept_the_next_time(read: Read, kind: str) -> None:
    """What was written once is not written again."""
    out = io.BytesIO()
    NOISE.convert("RGB").resize((3000, 2000)).save(out, kind)
    once = read(out.getvalue())
    assert read(once.content).content == once.content


def test_large_photo_is_made_smaller_upright_and_without_its_place(read: Read) -> None:
    """A photo is turned as its camera says; the metadata, with the place, are not kept."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "Camera of Anna"
    file = read(image(4000, 3000, "JPEG", exif=exif))
    assert opened(file.content).size == (SIDE_MAX * 3 // 4, SIDE_MAX)
    assert opened(file.thumbnail).size == (THUMBNAIL_MAX * 3 // 4, THUMBNAIL_MAX)
    assert not opened(file.content).getexif()
    assert b"Anna" not in file.content + file.thumbnail


def test_image_is_kept_in_srgb(read: Read) -> None:
    """The colours of another profile are converted; no profile is kept."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}  # of its red and its green
    green_for_red = re.sub(rb"[rg]XYZ", lambda name: names[name[0]], srgb)
    for icc_profile, colour in ((green_for_red, (0, 255, 0)), (b"no profile", (255, 0, 0))):
        out = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(out, "PNG", icc_profile=icc_profile)
        kept = opened(read(out.getvalue()).content)
        assert kept.getpixel((0, 0)) == colour
        assert "icc_profile" not in kept.info


def test_grey_of_16_bits_keeps_its_brightness(read: Read) -> None:
    """16 bits become 8, instead of white."""
    out = io.BytesIO()
    Image.new("I;16", (4, 4), 128 * 256).save(out, "PNG")
    assert opened(read(out.getvalue()).content).getpixel((0, 0)) == 128


def test_animation_becomes_its_first_picture(read: Read) -> None:
    """Models read one picture."""
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    file = opened(read(out.getvalue()).content)
    assert getattr(file, "n_frames", 1) == 1
    assert file.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (huge_png(50_000, 50_000), FileTooLarge, "50,000 x 50,000 pixels"),
        (huge_png(PIXELS_MAX + 1, 1), FileTooLarge, "at most 100 million"),
        (huge_png(400, 300), Unreadable, "damaged"),
        (image(400, 300, "JPEG")[:700], Unreadable, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, Unreadable, "no PNG image|damaged"),
        (b"GIF89a", Unreadable, "no GIF image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", Unreadable, "no WebP image|damaged"),
    ],
    ids=["50,000 x 50,000", "long", "lies", "cut", "no PNG", "no GIF", "no WebP"],
)
def test_bad_image_is_refused(
    read: Read, content: bytes, error: type[FileError], words: str
) -> None:
    """The user is told what is wrong; the message begins with the file's name."""
    with pytest.raises(error, match=words) as refusal:
        read(content, "bad.png")
    assert refusal.value.message.startswith("bad.png: ")


# --- documents ------------------------------------------------------------------------------------


def test_pdf_has_the_text_of_its_pages(read: Read) -> None:
    """Each page is headed by its number; the file is kept as it came."""
    content = pdf(["First page\nwith two lines", "", "Third page"])
    file = read(content)
    assert file.text.decode() == "[Page 1]\nFirst page\nwith two lines\n\n[Page 3]\nThird page"
    assert (file.facts.kind, file.facts.pages, file.facts.extent) == ("pdf", 3, "3 pages")
    assert file.content == content
    assert not file.facts.is_cut


def test_pdf_is_cut_after_whole_pages(read: Read) -> None:
    """The pages that fit are used, and it is said which."""
    file = read(pdf(["word " * 18] * 212), max_chars=4_200)
    assert file.facts.extent == "pages 1 to 41 of 212"
    assert file.facts.is_cut
    assert file.text.count(b"[Page ") == 41
    assert len(file.text) <= 4_200


def test_first_page_that_is_too_long_is_cut(read: Read) -> None:
    file = read(pdf(["word " * 18] * 2), max_chars=50)
    assert file.facts.extent == "a part of page 1 of 2"
    assert len(file.text) == 50


def test_word_document_has_its_text(read: Read) -> None:
    """Paragraphs are kept in their order."""
    content = docx(["One.", "Two."])
    file = read(content)
    assert file.text == b"One.\n\nTwo."
    assert (file.facts.kind, file.facts.label) == ("text", "DOCX")
    assert file.content == content


def test_long_document_is_read(read: Read) -> None:
    """Twenty-five thousand paragraphs take far less than the limit of time."""
    paragraph, count = "<w:p><w:r><w:t>Some words.</w:t></w:r></w:p>", 25_000
    with zipfile.ZipFile(io.BytesIO(docx(["Some words."]))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    body = files["word/document.xml"]
    files["word/document.xml"] = body.replace(
        b"<w:sectPr", paragraph.encode() * count + b"<w:sectPr"
    )
    found = read(packed(files), max_bytes=10**8)
    assert found.facts.chars == len("Some words.\n\n") * (count + 1) - 2


def test_headings_and_tables_of_a_document_are_markdown(read: Read) -> None:
    """A merged cell comes once; neighbours with the same text both come."""
    document = Document()
    document.add_heading("Plans", 2)
    document.add_paragraph("Words.")
    table = document.add_table(2, 3)
    for row in table.rows:
        for cell in row.cells:
            cell.text = "x"
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    out = io.BytesIO()
    document.save(out)
    text = read(out.getvalue()).text.decode()
    assert text == "## Plans\n\nWords.\n\n| wide | x |\n| x | x | x |"


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"%PDF-1.7 and nothing else", Unreadable, "no PDF"),
        (pdf(["x"])[:100], Unreadable, "no PDF|no pages"),
        (packed({"word/document.xml": b"0" * 10**7}), FileTooLarge, "too many bytes"),
        (packed({"word/document.xml": b"<x>"}), Unreadable, "damaged"),
        (packed({"a.txt": b"x"}), UnknownKind, "ZIP archives"),
        (packed({"xl/workbook.xml": b"x"}), UnknownKind, "CSV"),
        (packed({"a.txt": b"x"})[:-10], Unreadable, "damaged"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100, UnknownKind, "DOCX"),
    ],
    ids=["no PDF", "cut PDF", "bomb", "no DOCX", "ZIP", "XLSX", "cut ZIP", "DOC"],
)
def test_bad_document_is_refused(
    read: Read, content: bytes, error: type[FileError], words: str
) -> None:
    """The user is told what is wrong and, where there is one, a way out."""
    with pytest.raises(error, match=words):
        read(content, max_bytes=10**6)


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text", "label"),
    [
        (b"a,b\r\n1,2\r\n", "a,b\n1,2\n", "CSV"),
        ("Größe".encode("utf-16"), "Größe", "CSV"),
        (b"\xef\xbb\xbfx", "x", "CSV"),
        ("Größe überall, schöne Grüße. ".encode("latin-1") * 20, "Größe überall", "CSV"),
        (b"<svg><script>alert(1)</script></svg>", "<svg><script>alert(1)</script></svg>", "CSV"),
    ],
    ids=["lines", "UTF-16", "mark", "Latin-1", "SVG"],
)
def test_text_file_is_read_in_its_encoding(
    read: Read, content: bytes, text: str, label: str
) -> None:
    """The text has `\\n` as line end; an SVG is text, never an image."""
    file = read(content, "table.csv")
    assert file.text.decode().startswith(text)
    assert (file.facts.kind, file.facts.label, file.facts.media_type) == (
        "text",
        label,
        "text/plain",
    )
    assert file.content == content


def test_long_text_is_cut_at_a_line(read: Read) -> None:
    file = read(b"0123456789\n" * 1000, max_chars=1000)
    assert file.facts.extent == "the first 989 of 11,000 characters"
    assert len(file.text) == 989


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", Unreadable),
        (b" \n", Unreadable),
        (b"MZ\x90\0\3\0\0\0", UnknownKind),
        (b"\x7fELF\2\1\1\0", UnknownKind),
        (bytes(range(128, 256)) * 40 + b"\1", UnknownKind),
    ],
)
def test_what_is_no_text_is_refused(read: Read, content: bytes, error: type[FileError]) -> None:
    """A name with the ending of a text does not make a program one."""
    with pytest.raises(error):
        read(content, "program.txt")
