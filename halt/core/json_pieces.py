"""JSON in pieces: encodes large texts, as the data of images, without holding up other threads.

Encoding 67 MB in one call holds the interpreter's lock for 200 ms, in pieces 1 ms at a time.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

PIECE = 262_144  # characters that are encoded at once


def json_pieces(value: Any) -> list[bytes]:
    """The JSON of a value as `msgspec.json.encode` returns it, cut within its large texts."""
    large_texts: list[str] = []
    mark = secrets.token_hex(16)
    frame = msgspec.json.encode(_without_large(value, mark, large_texts))
    if not large_texts:
        return [frame]
    beginning, *rest = frame.split(mark.encode())
    pieces = [beginning]
    for text, after in zip(large_texts, rest, strict=True):
        pieces += (
            msgspec.json.encode(text[at : at + PIECE])[1:-1] for at in range(0, len(text), PIECE)
        )
        pieces.append(after)
    return pieces


def _without_large(value: Any, mark: str, large_texts: list[str]) -> Any:
    """The value with `mark` in place of large texts; the same object where it has none."""
    match value:
        case str():
            if len(value) <= PIECE:
                return value
            large_texts.append(value)
            return mark
        case dict():
            items = [_without_large(item, mark, large_texts) for item in value.values()]
            if all(new is old for new, old in zip(items, value.values(), strict=True)):
                return value
            return dict(zip(value, items, strict=True))
        case list():
            items = [_without_large(item, mark, large_texts) for item in value]
            is_same = all(new is old for new, old in zip(items, value, strict=True))
            return value if is_same else items
    return value
