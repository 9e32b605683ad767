"""Parses JSON from model servers, which may break the standard, and turns it into valid JSON.

It accepts NaN and Infinity, lone surrogates, bytes that are no UTF-8, raw control characters within
strings, and text after a value.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
from typing import Any

DEPTH_MAX = 64  # levels of a value that `clean` keeps
TEXT_DEPTH_MAX = 4  # levels of a message's part in which its text is searched
INTEGER_MAX = 2**63  # larger integers become floats

_SURROGATE = re.compile("[\ud800-\udfff]")
#: Surrogates that stand for no byte: U+DC80 to U+DCFF stand for bytes, see `_decoded`.
_ALONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

_BLANK = re.compile(r"[ \t\r\n,]*")
_decoder = json.JSONDecoder(strict=False)
_float_decoder = json.JSONDecoder(strict=False, parse_int=float)


def _decoded(data: bytes) -> str:
    """Decode bytes to text. Bytes that are no UTF-8 become surrogates, so that none is lost.

    A character that is encoded as two surrogates (CESU-8) becomes those two; any other byte becomes
    one of U+DC80 to U+DCFF, since the next piece may hold the rest of its character.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def parse_values(data: bytes) -> list[Any]:
    """Return the consecutive JSON values of these bytes.

    Other text after the first value is ignored. Raises ValueError if the bytes do not begin with a
    value.
    """
    text = _decoded(data).lstrip("\ufeff \t\r\n")
    first, end = _value(text, 0)
    json_values = [first]
    while end < len(text):
        rest = _BLANK.match(text, end)
        assert rest is not None  # noqa: S101 - it matches an empty text
        if text[rest.end() : rest.end() + 1] not in {"{", "["}:
            break
        try:
            value, end = _value(text, rest.end())
        except ValueError:
            break
        json_values.append(value)
    return json_values


def _value(text: str, start: int) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError as exc:
        raise ValueError("too many levels") from exc
    except ValueError:  # an integer of thousands of digits
        return _float_decoder.raw_decode(text, start)


def clean(value: Any, depth: int = 0) -> Any:
    """Return the value as valid JSON; invalid values, and those below DEPTH_MAX, become None."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < INTEGER_MAX else _finite(value)
    if isinstance(value, float):
        return _finite(value)
    if depth < DEPTH_MAX:
        if isinstance(value, list):
            return [clean(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {valid_text(str(name)): clean(item, depth + 1) for name, item in value.items()}
    return None


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def extract_text(value: Any, depth: int = 0) -> str:
    """Return the text of a value: a string, a number, a part of a message, or a list of those."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or depth > TEXT_DEPTH_MAX:
        return ""
    if isinstance(value, int | float):
        number = clean(value)
        return "" if number is None else str(number)
    if isinstance(value, list):
        return "".join([extract_text(item, depth + 1) for item in value])
    if isinstance(value, dict):
        for name in ("text", "content", "value", "summary", "parts"):
            if text := extract_text(value.get(name), depth + 1):
                return text
    return ""


def parse_index(value: Any) -> int | None:
    """Return the integer of a number or a string of digits, None if the value is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() and len(value) <= 9 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and 0 <= value < INTEGER_MAX else None


def as_object(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, else an empty object."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, or a single object as a list.

    An object with numbers as its names is a list (PHP).
    """
    if isinstance(value, dict):
        is_numbered = bool(value) and all(str(name).isdecimal() for name in value)
        value = list(value.values()) if is_numbered else [value]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def parse_usage(value: Any) -> dict[str, Any] | None:
    """Return a server's token usage with its counts as integers; None if it reports none."""
    if not isinstance(value, dict) or not value:
        return None
    counts: dict[str, Any] = clean(value)
    for name, count in counts.items():
        if isinstance(count, float | str) and name.endswith("tokens"):
            with contextlib.suppress(ValueError, OverflowError):
                counts[name] = int(float(count))
    return counts


# --- partial characters ---------------------------------------------------------------------------


def is_valid_text(text: str) -> bool:
    """Whether a text has no surrogates, which stand for partial characters."""
    return text.isascii() or _SURROGATE.search(text) is None


def valid_text(text: str) -> str:
    """Return the text with surrogate pairs joined, and U+FFFD for each partial character."""
    return text if is_valid_text(text) else CharacterJoiner().feed(text, last=True)


class CharacterJoiner:
    """Joins characters that were cut between two pieces of a text.

    A piece may end with the first half of a surrogate pair, or with some of a character's bytes.
    """

    __slots__ = ("_bytes", "_high")

    def __init__(self) -> None:
        self._high = ""  # the first half of a pair
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __bool__(self) -> bool:
        """Whether a partial character is held."""
        return bool(self._high or self._bytes.getstate()[0])

    def feed(self, text: str, *, last: bool = False) -> str:
        """Add a piece; return the complete characters. `last`: no piece follows."""
        text = self._high + text
        self._high = ""
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if not last and "\ud800" <= text[-1:] <= "\udbff":
            text, self._high = text[:-1], text[-1:]
        raw = _ALONE.sub("\ufffd", text).encode("utf-8", "surrogateescape")
        return self._bytes.decode(raw, last)
