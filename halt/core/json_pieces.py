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
    """The value with `mark` in place of large texts; the same object where it has none.

    A text costs no call of Python: a long conversation has thousands.
    """
    if isinstance(value, str):
        if len(value) <= PIECE:
            return value
        large_texts.append(value)
        return mark
    if not isinstance(value, dict | list):
        return value
    changed: Any = None  # a copy, from the first difference on
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, str) and len(item) <= PIECE:
            continue
        new = _without_large(item, mark, large_texts)
        if new is not item:
            changed = value.copy() if changed is None else changed
            changed[key] = new
    return value if changed is None else changed
