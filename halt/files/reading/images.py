"""Images, as models take them: JPEG or PNG, upright, in sRGB, at most SIDE_MAX, no metadata.

Models take no other formats: llama.cpp reads no WebP, Anthropic no AVIF. The metadata of a photo
has the place where it was taken. An image that is so already is kept as it came: one that was
exported and imported again has the same hash, and no JPEG loses more each time.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import BinaryIO

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from halt.files import tokens
from halt.files.facts import Facts
from halt.files.reading.bare import is_bare
from halt.files.reading.result import Refused, Result

SIDE_MAX = 2_048  # pixels; models scale larger ones down themselves
PIXELS_MAX = 100_000_000  # of an image as it comes: 300 MB in memory
THUMBNAIL_MAX = 320  # pixels
#: Bytes: Anthropic takes at most 5 MB of base64. A PNG above the second number becomes a JPEG, if
#: it has no transparent pixels.
BYTES_MAX, PNG_MAX = 3_700_000, 1_500_000
QUALITIES = (90, 80, 65, 50)  # of JPEG, tried in this order until it fits BYTES_MAX
PNG_LEVEL = 4  # of compression: 6 takes twice the time for 3 % fewer bytes of a screenshot

_SRGB = ImageCms.createProfile("sRGB")
_ISO_MEDIA = re.compile(rb"....ftyp(....)", re.DOTALL)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIF"
)
_PREFIXES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}

_HEIC_NEEDED = (
    "HEIC images need one more package: install `halt-chat[heic]`, or send the photo as JPEG "
    "(iPhone: Settings, Camera, Formats, Most Compatible)."
)


def format_of(head: bytes) -> str:
    """Pillow's name for the format of an image that begins so, "" for none that is read."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if media := _ISO_MEDIA.match(head):
        kind = _BRANDS.get(media[1], "")
        return "AVIF" if kind == "HEIF" and b"avif" in head[16:64] else kind
    return next((kind for prefix, kind in _PREFIXES.items() if head.startswith(prefix)), "")


def read(source: BinaryIO, kind: str) -> Result:
    """Read an image of this format. Of an animation, the first picture. Raises Refused."""
    if kind == "HEIF":
        _load_heic()
    Image.MAX_IMAGE_PIXELS = None  # checked here, where the user is told the size
    try:
        with Image.open(source, formats=[kind]) as opened:
            _check_size(*opened.size)
            before = opened.size, opened.mode
            image = _prepared(opened)
    except Refused:
        raise
    except UnidentifiedImageError as exc:
        raise Refused("unreadable", f"This is no {_label(kind)} image, or it is damaged.") from exc
    except (MemoryError, Image.DecompressionBombError) as exc:
        raise Refused("too_large", "The image takes too much memory.") from exc
    except Exception as exc:
        raise Refused("unreadable", "The image is damaged.") from exc
    if before == (image.size, image.mode) and _is_kept(source, kind, image.mode):
        content, media_type = b"", f"image/{kind.lower()}"
    else:
        content, media_type = _encoded(image, prefers_png=kind in {"PNG", "GIF", "WEBP"})
    small = image.copy()
    small.thumbnail((THUMBNAIL_MAX, THUMBNAIL_MAX), Image.Resampling.BICUBIC)
    facts = Facts(
        "image",
        media_type,
        _label(kind),
        tokens.of_image(*image.size),
        width=image.width,
        height=image.height,
        thumbnail_type="image/png" if image.mode == "RGBA" else "image/jpeg",
    )
    thumbnail = _png(small) if image.mode == "RGBA" else _jpeg(small, 80)
    return Result(facts, content, thumbnail=thumbnail)


def _label(kind: str) -> str:
    return {"HEIF": "HEIC", "WEBP": "WebP"}.get(kind, kind)


def _load_heic() -> None:
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise Refused("kind", _HEIC_NEEDED) from exc
    register_heif_opener(thumbnails=False)


def _check_size(width: int, height: int) -> None:
    if width * height > PIXELS_MAX:
        raise Refused(
            "too_large",
            f"The image has {width:,} x {height:,} pixels; at most {PIXELS_MAX // 10**6} million "
            "are read.",
        )
    if not width or not height:
        raise Refused("unreadable", "The image has no pixels.")


def _prepared(image: Image.Image) -> Image.Image:
    """The image as RGB, RGBA or L, upright and at most SIDE_MAX, without metadata."""
    profile = image.info.get("icc_profile")
    image.draft(None, (SIDE_MAX, SIDE_MAX))  # a JPEG is decoded at half of its size, where enough
    image.load()
    upright = ImageOps.exif_transpose(image)
    out = _eight_bits(upright)
    out.thumbnail((SIDE_MAX, SIDE_MAX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = _in_srgb(out, profile)
    if out.mode == "RGBA" and out.getchannel("A").getextrema() == (255, 255):
        out = out.convert("RGB")
    out.info = {}
    return out


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow can make smaller well."""
    if image.mode.startswith("I"):  # 16 bits of grey; `convert` would cut them at 255
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in {"RGB", "RGBA", "L", "CMYK", "LAB"}:
        return image.copy() if image.mode != "LAB" else image.convert("RGB")
    has_alpha = image.has_transparency_data
    return image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in {"RGB", "RGBA", "L", "CMYK"}:
        target = "RGB" if image.mode in {"L", "CMYK"} else image.mode
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), _SRGB, outputMode=target
            )
            if converted is not None:
                return converted
    return image.convert("RGB") if image.mode == "CMYK" else image


def _is_kept(source: BinaryIO, kind: str, mode: str) -> bool:
    """Whether an image with the right pixels is also written as `_encoded` would write it."""
    if kind not in {"PNG", "JPEG"}:
        return False
    most = PNG_MAX if kind == "PNG" and mode != "RGBA" else BYTES_MAX
    source.seek(0)
    data = source.read(most + 1)
    return len(data) <= most and is_bare(data)


def _encoded(image: Image.Image, *, prefers_png: bool) -> tuple[bytes, str]:
    """The image's bytes and their media type."""
    if image.mode == "RGBA" or prefers_png:
        data = _png(image)
        if len(data) <= (BYTES_MAX if image.mode == "RGBA" else PNG_MAX):
            return data, "image/png"
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    for quality in QUALITIES:
        data = _jpeg(image, quality)
        if len(data) <= BYTES_MAX:
            break
    return data, "image/jpeg"


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
