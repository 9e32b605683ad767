"""What a server sends beside an answer's text: its pictures, and the sources that it names.

No two servers name these fields alike, so they are known by what they hold:

    a picture   a data: URL; base64 beside its media type, or that begins as a picture's file does;
                an address under a name that speaks of images
    a source    an http(s) address in a list, or beside a title

Addresses of icons and of the like are neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from halt.core.events import Extra

DEPTH_MAX = 8  # levels of objects and lists that are looked into
TITLE_MAX = 200  # characters
FOUND_MAX = 1_000  # pictures and sources of one event

_ADDRESS = re.compile(r"https?://[^\s<>\"\\]{1,2000}", re.IGNORECASE)
_DATA = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?[^,\s]{0,200},", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_PICTURED = re.compile(r"image|picture|photo", re.IGNORECASE)
_DECORATION = re.compile(r"icon|logo|thumb|avatar", re.IGNORECASE)
_ADDRESSES = re.compile(r"(?:url|uri|link|href)$|^source$", re.IGNORECASE)
_TITLES = ("title", "name", "site_name", "siteName", "source_title")
_TYPES = ("mime_type", "mimeType", "media_type", "content_type")

_DATAS = ("data", "base64", "b64_json")

#: How files of pictures begin, in base64.
_MAGIC = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "AAAAIGZ0eXBhdmlm": "image/avif",
    "PHN2Zy": "image/svg+xml",
}


class Picture(NamedTuple):
    """A picture or other data: `url` is a data: URL or an address."""

    media_type: str
    url: str


class Source(NamedTuple):
    """A page on which the answer stands; the title may be empty."""

    url: str
    title: str


def found(extra: Extra) -> Iterator[Picture | Source]:
    """The pictures and sources of an event, in its order."""
    for count, each in enumerate(_walk([extra.chunk, extra.choice, extra.delta], "", False, 0)):
        if count >= FOUND_MAX:
            return
        yield each


def _walk(value: Any, name: str, listed: bool, depth: int) -> Iterator[Picture | Source]:
    """`name`: of the field that holds it; `listed`: it is in a list of the server's."""
    if depth > DEPTH_MAX or _DECORATION.search(name):
        return
    if isinstance(value, list):
        for each in value:
            yield from _walk(each, name, listed or depth > 0, depth + 1)
    elif isinstance(value, dict):
        if picture := _beside_its_type(value):
            yield picture
            return
        title = next((t for key in _TITLES if isinstance(t := value.get(key), str) and t), "")
        for key, each in value.items():
            under = f"{name}.{key}" if _PICTURED.search(name) else str(key)
            if _is_address(key, each) and not _PICTURED.search(under):
                if listed or title:
                    yield Source(each, " ".join(title.split())[:TITLE_MAX])
                continue
            # A text under another name is no source, whatever the list is that its object is in.
            yield from _walk(each, under, listed and not isinstance(each, str), depth + 1)
    elif isinstance(value, str):
        yield from _of_text(value, name, listed)


def _is_address(key: str, value: Any) -> bool:
    return (
        isinstance(value, str) and bool(_ADDRESSES.search(key)) and bool(_ADDRESS.fullmatch(value))
    )


def _of_text(text: str, name: str, listed: bool) -> Iterator[Picture | Source]:
    if data := _DATA.match(text):
        untyped = "image" if _PICTURED.search(name) else "text/plain"
        yield Picture((data[1] or untyped).lower(), text)
    elif _ADDRESS.fullmatch(text):
        if _PICTURED.search(name):
            yield Picture("image", text)
        elif listed:
            yield Source(text, "")
    elif media_type := _begins(text):
        yield Picture(media_type, f"data:{media_type};base64,{text}")


def _begins(text: str) -> str:
    """The media type of a picture whose file this is in base64; "" where it is none."""
    kind = next((kind for begin, kind in _MAGIC.items() if text.startswith(begin)), "")
    return kind if kind and _BASE64.match(text) else ""


def _beside_its_type(value: dict[str, Any]) -> Picture | None:
    """`{"mime_type": "image/png", "data": "iVBOR..."}`."""
    kind = next((t for key in _TYPES if isinstance(t := value.get(key), str) and "/" in t), "")
    data = next((d for key in _DATAS if isinstance(d := value.get(key), str)), "")
    if not kind or not data or data.startswith("data:"):
        return None
    return Picture(kind.lower(), f"data:{kind.lower()};base64,{data}")
