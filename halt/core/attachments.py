"""Finds pictures, other inline data and sources that a provider sends beside the text.

Providers name these fields differently, so they are recognised by their values:

    media       a data: URL of any type; base64 beside a media type, or beginning like a picture
                file; an address in a field whose name contains image, picture or photo
    a source    an http(s) address in a list, or beside a title

Fields whose names contain icon, logo, thumb or avatar are ignored.

Texts name a source by its place in the provider's list: `[2]` is the second item of `citations`.
So an address that a list repeats counts again, as does a text in a list of addresses. In
`annotations` each item is a place in the text; there an address counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from halt.core.events import Extra

DEPTH_MAX = 8  # levels of objects and lists that are searched
TITLE_MAX = 200  # characters
ATTACHMENTS_MAX = 1_000  # media and sources of one event
OUTSIDE = -1  # `Source.repeats` of a source whose list is not known yet

_ADDRESS = re.compile(r"https?://[^\s<>\"\\]{1,2000}", re.IGNORECASE)
_DATA = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?[^,\s]{0,200},", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_PICTURE_FIELD = re.compile(r"image|picture|photo", re.IGNORECASE)
_IGNORED_FIELD = re.compile(r"icon|logo|thumb|avatar", re.IGNORECASE)
_ADDRESS_FIELD = re.compile(r"(?:url|uri|link|href)$|^source$", re.IGNORECASE)
_TITLE_FIELDS = ("title", "name", "site_name", "siteName", "source_title")
_TYPE_FIELDS = ("mime_type", "mimeType", "media_type", "content_type")

_PLACES_FIELDS = ("annotations",)  # their items are places in the text
_DATA_FIELDS = ("data", "base64", "b64_json")

#: The first characters of picture files in base64.
_MAGIC = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "AAAAIGZ0eXBhdmlm": "image/avif",
    "PHN2Zy": "image/svg+xml",
}


class Media(NamedTuple):
    """A picture, or other data such as text/plain. `url` is a data: URL or an address."""

    media_type: str
    url: str


class Source(NamedTuple):
    """A page that the answer is based on; the title may be empty, as may the address beside one."""

    url: str
    title: str
    repeats: int = 0  # earlier items of its list with the same address


def attachments_of(extra: Extra) -> Iterator[Media | Source]:
    """The media and sources of an event in its order, at most ATTACHMENTS_MAX."""
    walk = _walk([extra.chunk, extra.choice, extra.delta], "", False, 0)
    for attachment in islice(walk, ATTACHMENTS_MAX):
        if isinstance(attachment, Source) and attachment.repeats == OUTSIDE:
            yield attachment._replace(repeats=0)
        else:
            yield attachment


def _walk(value: Any, name: str, is_in_list: bool, depth: int) -> Iterator[Media | Source]:
    """The attachments in a value, the field `name`. `is_in_list`: the value is in a list."""
    if depth > DEPTH_MAX or _IGNORED_FIELD.search(name):
        return
    if isinstance(value, list):
        yield from _walk_list(value, name, is_in_list or depth > 0, depth + 1)
    elif isinstance(value, dict):
        if media := _data_of(value):
            yield media
            return
        title = _title_of(value)
        for key, item in value.items():
            path = f"{name}.{key}" if _PICTURE_FIELD.search(name) else str(key)
            if _is_address(key, item) and not _PICTURE_FIELD.search(path):
                if is_in_list or title:
                    yield Source(item, _short(title), OUTSIDE)
                continue
            # A string under another name is no source, even where its object is in a list.
            yield from _walk(item, path, is_in_list and not isinstance(item, str), depth + 1)
    elif isinstance(value, str):
        yield from _attachments_of_text(value, name, is_in_list)


def _walk_list(
    items: list[Any], name: str, is_in_list: bool, depth: int
) -> Iterator[Media | Source]:
    """The attachments in a list; each source with its `repeats` in the innermost list."""
    counts: Counter[str] = Counter()
    kinds = {type(item) for item in items if _has_address(item)}  # text, objects
    for item in items:
        item_urls: set[str] = set()
        is_empty = True
        for attachment in _walk(item, name, is_in_list, depth):
            is_empty = False
            if isinstance(attachment, Source) and attachment.repeats == OUTSIDE:
                item_urls.add(attachment.url)
                repeats = 0 if name in _PLACES_FIELDS else counts[attachment.url]
                yield attachment._replace(repeats=repeats)
            else:
                yield attachment
        counts.update(item_urls)
        # One without an address keeps its place, since the text counts them.
        if is_empty and type(item) in kinds and not _PICTURE_FIELD.search(name):
            title = _short(item if isinstance(item, str) else _title_of(item))
            if title:
                yield Source("", title, 0 if name in _PLACES_FIELDS else counts[title])
                counts[title] += 1


def _has_address(item: Any) -> bool:
    """Whether an item of a list is an address, or an object with one."""
    if isinstance(item, dict):
        return any(_is_address(key, value) for key, value in item.items())
    return isinstance(item, str) and bool(_ADDRESS.fullmatch(item))


def _title_of(value: dict[str, Any]) -> str:
    texts = (value.get(key) for key in _TITLE_FIELDS)
    return next((text for text in texts if isinstance(text, str) and text), "")


def _short(title: str) -> str:
    return " ".join(title.split())[:TITLE_MAX]


def _is_address(key: str, value: Any) -> bool:
    return (
        isinstance(value, str)
        and bool(_ADDRESS_FIELD.search(key))
        and bool(_ADDRESS.fullmatch(value))
    )


def _attachments_of_text(text: str, name: str, is_in_list: bool) -> Iterator[Media | Source]:
    if data := _DATA.match(text):
        untyped = "image" if _PICTURE_FIELD.search(name) else "text/plain"
        yield Media((data[1] or untyped).lower(), text)
    elif _ADDRESS.fullmatch(text):
        if _PICTURE_FIELD.search(name):
            yield Media("image", text)
        elif is_in_list:
            yield Source(text, "", OUTSIDE)
    elif media_type := _picture_type(text):
        yield Media(media_type, f"data:{media_type};base64,{text}")


def _picture_type(text: str) -> str:
    """The media type of a picture file in base64; "" for other text."""
    kind = next((kind for begin, kind in _MAGIC.items() if text.startswith(begin)), "")
    return kind if kind and _BASE64.match(text) else ""


def _data_of(value: dict[str, Any]) -> Media | None:
    """The data of an object like `{"mime_type": "image/png", "data": "iVBOR..."}`."""
    kind = next(
        (t for key in _TYPE_FIELDS if isinstance(t := value.get(key), str) and "/" in t), ""
    )
    data = next((d for key in _DATA_FIELDS if isinstance(d := value.get(key), str)), "")
    if not kind or not data or data.startswith("data:"):
        return None
    return Media(kind.lower(), f"data:{kind.lower()};base64,{data}")
