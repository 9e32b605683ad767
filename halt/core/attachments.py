"""Finds the pictures and sources that a provider sends beside an answer's text.

Providers name these fields differently, so they are recognised by their values:

    a picture   a data: URL; base64 beside a media type, or beginning like a picture file;
                an address in a field whose name speaks of images
    a source    an http(s) address in a list, or beside a title

Fields whose names speak of icons, logos, thumbnails or avatars are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from halt.core.events import Extra

DEPTH_MAX = 8  # levels of objects and lists that are searched
TITLE_MAX = 200  # characters
ATTACHMENTS_MAX = 1_000  # pictures and sources of one event

_ADDRESS = re.compile(r"https?://[^\s<>\"\\]{1,2000}", re.IGNORECASE)
_DATA = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?[^,\s]{0,200},", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_PICTURED = re.compile(r"image|picture|photo", re.IGNORECASE)
_DECORATION = re.compile(r"icon|logo|thumb|avatar", re.IGNORECASE)
_ADDRESSES = re.compile(r"(?:url|uri|link|href)$|^source$", re.IGNORECASE)
_TITLES = ("title", "name", "site_name", "siteName", "source_title")
_TYPES = ("mime_type", "mimeType", "media_type", "content_type")

_DATAS = ("data", "base64", "b64_json")

#: The first characters of picture files in base64.
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
    """A page that the answer is based on; the title may be empty."""

    url: str
    title: str


def attachments_of(extra: Extra) -> Iterator[Picture | Source]:
    """The pictures and sources of an event in its order, at most ATTACHMENTS_MAX."""
    walk = _walk([extra.chunk, extra.choice, extra.delta], "", False, 0)
    for count, attachment in enumerate(walk):
        if count >= ATTACHMENTS_MAX:
            return
        yield attachment


def _walk(value: Any, name: str, listed: bool, depth: int) -> Iterator[Picture | Source]:
    """The attachments in a value. `name`: its field's name; `listed`: the value is in a list."""
    if depth > DEPTH_MAX or _DECORATION.search(name):
        return
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, name, listed or depth > 0, depth + 1)
    elif isinstance(value, dict):
        if picture := _typed_data(value):
            yield picture
            return
        title = next((t for key in _TITLES if isinstance(t := value.get(key), str) and t), "")
        for key, item in value.items():
            path = f"{name}.{key}" if _PICTURED.search(name) else str(key)
            if _is_address(key, item) and not _PICTURED.search(path):
                if listed or title:
                    yield Source(item, " ".join(title.split())[:TITLE_MAX])
                continue
            # A string under another name is no source, even where its object is in a list.
            yield from _walk(item, path, listed and not isinstance(item, str), depth + 1)
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
    elif media_type := _picture_type(text):
        yield Picture(media_type, f"data:{media_type};base64,{text}")


def _picture_type(text: str) -> str:
    """The media type of a picture file in base64; "" for other text."""
    kind = next((kind for begin, kind in _MAGIC.items() if text.startswith(begin)), "")
    return kind if kind and _BASE64.match(text) else ""


def _typed_data(value: dict[str, Any]) -> Picture | None:
    """The picture of an object like `{"mime_type": "image/png", "data": "iVBOR..."}`."""
    kind = next((t for key in _TYPES if isinstance(t := value.get(key), str) and "/" in t), "")
    data = next((d for key in _DATAS if isinstance(d := value.get(key), str)), "")
    if not kind or not data or data.startswith("data:"):
        return None
    return Picture(kind.lower(), f"data:{kind.lower()};base64,{data}")
