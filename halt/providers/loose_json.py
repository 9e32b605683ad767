"""JSON as model servers write it, which is more than the standard allows.

Read are NaN and Infinity, lone halves of surrogate pairs, bytes that are no UTF-8, raw control
characters within strings, and text behind a value. Given on is JSON of the standard.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
from typing import Any

DEPTH_MAX = 64  # levels of a value that is handed on
TEXT_DEPTH_MAX = 4  # levels at which the text of a part of a message may stand
INTEGER_MAX = 2**63  # what is past it is handed on as a float

_SURROGATE = re.compile("[\ud800-\udfff]")
#: CharacterJoiner that wait for nothing: U+DC80 to U+DCFF stand for single bytes, see `_decoded`.
_ALONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

_BLANK = re.compile(r"[ \t\r\n,]*")
_decoder = json.JSONDecoder(strict=False)
_float_decoder = json.JSONDecoder(strict=False, parse_int=float)


def _decoded(data: bytes) -> str:
    """The text of these bytes. What is no UTF-8 becomes halves of characters, which are not lost.

    A character that is encoded as two surrogates (CESU-8) becomes those; any other byte becomes
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
    """The JSON values that stand in these bytes, one behind the other.

    What comes behind the first value and is none is passed over. Raises ValueError where the bytes
    do not begin with a value.
    """
    text = _decoded(data).lstrip("\ufeff \t\r\n")
    first, end = _value(text, 0)
    out = [first]
    while end < len(text):
        rest = _BLANK.match(text, end)
        assert rest is not None  # noqa: S101 - it matches an empty text
        if text[rest.end() : rest.end() + 1] not in {"{", "["}:
            break
        try:
            value, end = _value(text, rest.end())
        except ValueError:
            break
        out.append(value)
    return out


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
    """The value as the standard's JSON can hold it; None for what it can't, and past DEPTH_MAX."""
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
            return [clean(each, depth + 1) for each in value]
        if isinstance(value, dict):
            return {valid_text(str(name)): clean(each, depth + 1) for name, each in value.items()}
    return None


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def extract_text(value: Any, depth: int = 0) -> str:
    """The text that a value is or holds: text, a number, a part of a message, a list of those."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or depth > TEXT_DEPTH_MAX:
        return ""
    if isinstance(value, int | float):
        number = clean(value)
        return "" if number is None else str(number)
    if isinstance(value, list):
        return "".join([extract_text(each, depth + 1) for each in value])
    if isinstance(value, dict):
        for name in ("text", "content", "value", "summary", "parts"):
            if text := extract_text(value.get(name), depth + 1):
                return text
    return ""


def parse_index(value: Any) -> int | None:
    """The whole number that a value is or spells, None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() and len(value) <= 9 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and 0 <= value < INTEGER_MAX else None


def as_object(value: Any) -> dict[str, Any]:
    """An object, empty where the value is none."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, of an object that stands for a list (PHP), or one alone."""
    if isinstance(value, dict):
        numbered = bool(value) and all(str(name).isdecimal() for name in value)
        value = list(value.values()) if numbered else [value]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def parse_usage(value: Any) -> dict[str, Any] | None:
    """A server's counts, whole numbers as such; None where it reports none."""
    if not isinstance(value, dict) or not value:
        return None
    counts: dict[str, Any] = clean(value)
    for name, count in counts.items():
        if isinstance(count, float | str) and name.endswith("tokens"):
            with contextlib.suppress(ValueError, OverflowError):
                counts[name] = int(float(count))
    return counts


# --- halves of characters -------------------------------------------------------------------------


def is_valid_text(text: str) -> bool:
    """Whether a text holds no half of a character."""
    return text.isascii() or _SURROGATE.search(text) is None


def valid_text(text: str) -> str:
    """The text, with U+FFFD for each half of a character that has no other half."""
    return text if is_valid_text(text) else CharacterJoiner().feed(text, last=True)


class CharacterJoiner:
    """Puts characters together that pieces of a text were cut within.

    A piece may end with one half of a surrogate pair, or with a part of a character's bytes.
    """

    __slots__ = ("_bytes", "_high")

    def __init__(self) -> None:
        self._high = ""  # the first half of a pair
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __bool__(self) -> bool:
        """Whether a half is waiting."""
        return bool(self._high or self._bytes.getstate()[0])

    def feed(self, text: str, *, last: bool = False) -> str:
        """The whole characters so far. `last`: no piece comes behind this one."""
        text = self._high + text
        self._high = ""
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if not last and "\ud800" <= text[-1:] <= "\udbff":
            text, self._high = text[:-1], text[-1:]
        raw = _ALONE.sub("\ufffd", text).encode("utf-8", "surrogateescape")
        return self._bytes.decode(raw, last)
