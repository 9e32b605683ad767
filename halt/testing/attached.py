"""The images and files in a request to the fake upstream, in OpenAI's or Anthropic's format."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError


class Attached(NamedTuple):
    """An image or a file; `name` is "" for an image."""

    kind: str  # "image" or "file"
    media_type: str
    name: str
    data: bytes

    def __str__(self) -> str:
        """As in "image/png 64x48" and "application/pdf a.pdf 1234 bytes"."""
        if self.kind == "file":
            return f"{self.media_type} {self.name} {len(self.data)} bytes"
        try:
            with Image.open(io.BytesIO(self.data)) as image:
                return f"{self.media_type} {image.width}x{image.height}"
        except UnidentifiedImageError:
            return f"{self.media_type} unreadable"


def attached(body: dict[str, Any]) -> list[Attached]:
    """The images and files of all messages, in their order."""
    return [
        attachment
        for message in body.get("messages") or ()
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict)
        for attachment in _in_part(part)
    ]


def _in_part(part: dict[str, Any]) -> Iterator[Attached]:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            yield Attached("image", *_of_url(url, ""))
        case {"type": "file", "file": {"filename": str(name), "file_data": str(url)}}:
            yield Attached("file", *_of_url(url, name))
        case {"type": "image" | "document", "source": {"media_type": str(kind), "data": str(data)}}:
            is_image = part["type"] == "image"
            name = "" if is_image else str(part.get("title", ""))
            yield Attached("image" if is_image else "file", kind, name, _decoded(data))


def _of_url(url: str, name: str) -> tuple[str, str, bytes]:
    """The media type, the name and the data of a data: URL; no data of another URL."""
    head, comma, data = url.removeprefix("data:").partition(",")
    return (head.partition(";")[0], name, _decoded(data)) if comma else (url, name, b"")


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return b""
