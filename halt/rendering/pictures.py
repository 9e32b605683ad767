"""Finds the pictures in the text of an answer, and puts others or words in their places."""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from halt.rendering.data_urls import DataUrlFilter, label_of, replace

PART = 100_000  # characters that are read at a time, so that other threads come in between
_DECODED = 262_144  # characters of base64 that are decoded at a time; a multiple of four
_URL_SAFE = str.maketrans("-_", "+/")


class Picture(NamedTuple):
    """A picture in a text: a data: URL, alone or as Markdown's image."""

    alt: str
    media_type: str
    data: str
    is_base64: bool = True
    is_complete: bool = True

    @property
    def label(self) -> str:
        """Its label without brackets: `Picture (PNG, 450 kB): a cat`."""
        kind = "base64" if self.is_base64 else "charset=utf-8"
        label = replace(f"![{self.alt}](data:{self.media_type};{kind},{self.data})").strip()
        return label.removeprefix("[").removesuffix("]")

    def content(self) -> Iterator[bytes]:
        """Its bytes, in pieces. Raises ValueError if they are not base64."""
        if not self.is_base64:
            yield unquote_to_bytes(self.data)
            return
        data = unquote_to_bytes(self.data).decode() if "%" in self.data else self.data
        data = data.translate(_URL_SAFE).rstrip("=")
        for at in range(0, len(data), _DECODED):
            piece = data[at : at + _DECODED]
            try:
                yield base64.b64decode(piece + "=" * (-len(piece) % 4))
            except binascii.Error as exc:
                raise ValueError("the data is not base64") from exc


#: Returns the text that replaces a picture; None leaves it as it is.
Swap = Callable[[Picture], str | None]


def picture_of(url: str) -> Picture | None:
    """The picture in a data: URL, None if it is another kind of address or data."""
    head, comma, data = url.partition(",")
    kind, *parameters = head.removeprefix("data:").split(";")
    if not comma or not url.startswith("data:") or not kind.lower().startswith("image/"):
        return None
    return Picture("", kind.lower(), data, is_base64="base64" in parameters)


def has_data(text: str) -> bool:
    """Whether a text may have pictures as data: URLs."""
    return "data:image/" in text or "data:image/" in text.lower()


def swapped(text: str, swap: Swap) -> str:
    """The text with the pictures replaced by what `swap` returns for each, in order.

    Those in code stay. One that the text breaks off in is passed with `is_complete` false.
    """
    if not has_data(text):
        return text
    swapper = _Swapper(swap)
    for at in range(0, len(text), PART):
        swapper.take(text[at : at + PART])
    return swapper.finished()


class _Swapper(DataUrlFilter):
    """A filter that keeps all data, and asks what is put in its place."""

    def __init__(self, swap: Swap) -> None:
        super().__init__()
        self._swap = swap
        self._out: list[str] = []
        self._is_swapped = False  # the data: URL that is arriving is not in code
        self._shown_max = 0  # data up to this many characters is no picture, but text

    def take(self, text: str) -> None:
        """Take the next piece of the text."""
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text):
            if self._in_data:
                at = self._take_data(text, at, self._out)
            else:
                at = self._take_text(text, at, self._out)

    def finished(self) -> str:
        """The whole result; the text ends here."""
        if self._in_data:
            self._end_data(self._out, keep=True, is_complete=not self._source)
        return "".join(self._out) + self._held

    def _begin_data(self, media_type: str, kept_max: int) -> None:
        self._is_swapped, self._shown_max = not self._in_code, kept_max
        super()._begin_data(media_type, sys.maxsize)

    def _end_data(
        self, out: list[str], *, keep: bool, after: str = "", is_complete: bool = True
    ) -> None:
        new = None
        is_picture = self._media_type.lower().startswith("image/")
        if is_picture and self._is_swapped and self._data_length > self._shown_max:
            is_whole = is_complete and bool(after or not self._source)
            new = self._swapped(is_whole) if is_whole or not is_complete else None
        if new is None:
            super()._end_data(out, keep=True, after=after)
            self._separator = ""
            return
        self._in_data = False
        if not self._source:
            _cut(out, self._bare_head)
        out.append(new)
        self._record(new)

    def _swapped(self, is_complete: bool) -> str | None:
        data = "".join(self._kept_pieces)
        is_base64 = not self._source or self._source.rstrip(",").lower().endswith(";base64")
        picture = Picture(self._alt.strip(), self._media_type.lower(), data, is_base64, is_complete)
        return self._swap(picture)

    @property
    def _bare_head(self) -> int:
        """Characters of a bare data: URL before its data, which are in the output already."""
        return len(self._line_end) - self._line_end.lower().rindex("data:")


def _cut(pieces: list[str], size: int) -> None:
    """Remove the last `size` characters of a text in pieces."""
    while size > 0 and pieces:
        last = pieces.pop()
        if len(last) > size:
            pieces.append(last[:-size])
        size -= len(last)


def incomplete_label(picture: Picture) -> str:
    """The label in place of a picture that broke off."""
    size = len(picture.data) * 3 // 4 if picture.is_base64 else len(picture.data)
    return f"[{label_of(picture.media_type, size, whole=False)}]"
