"""JSON that came with a request to typed values; what does not fit is said by the field's name."""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeGuard, TypeVar

import msgspec

from halt.errors import RequestError

T = TypeVar("T")

_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_UNKNOWN = re.compile(r"unknown field `(.*?)`|missing required field `(.*?)`")


def is_id(given: object) -> TypeGuard[str]:
    """Whether this can name a stream or a conversation."""
    return isinstance(given, str) and _ID.fullmatch(given) is not None


def is_number(given: str) -> bool:
    """Whether this is a whole number, 0 or more, as clients send those of events and messages."""
    return given.isascii() and given.isdigit() and len(given) <= 15


def checked_id(given: object, field: str) -> str:
    """A stream's ID as a client sent it. Raises RequestError that names the field."""
    if not is_id(given):
        raise RequestError(
            f"{field} must be 8 to 64 characters of A-Z, a-z, 0-9, _ and -.", field=field
        )
    return given


def decode(body: bytes | str, kind: type[T], whole: str = "body") -> T:
    """JSON as this type. Raises RequestError that names the field at fault.

    `whole` is what the data as such is called where no field of it is at fault.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        _refuse(exc, whole)
    except RecursionError:
        raise RequestError(f"The {whole} is nested too deep.", field=whole) from None
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise RequestError(f"The {whole} is not valid JSON: {exc}", field=whole) from None


def convert(value: Any, kind: type[T], *, words: bool = False) -> T:
    """Decoded JSON as this type, `words`: with numbers as strings. Raises RequestError."""
    try:
        return msgspec.convert(value, kind, strict=not words)
    except msgspec.ValidationError as exc:
        _refuse(exc)
    except RecursionError:
        raise RequestError("The body is nested too deep.", field="body") from None


def _refuse(exc: msgspec.ValidationError, whole: str = "body") -> NoReturn:
    message = str(exc)
    path = _PATH.search(message)
    name = _UNKNOWN.search(message)
    parts = [path[1] if path else "", (name[1] or name[2]) if name else ""]
    field = ".".join(part for part in parts if part) or whole
    raise RequestError(f"{field}: {_PATH.sub('', message)}", field=field) from None
