"""JSON that came with a request to typed values; what does not fit is said by the field's name."""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from halt.errors import RequestError

T = TypeVar("T")

_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.*?)`|missing required field `(.*?)`")


def decode(body: bytes, kind: type[T]) -> T:
    """A body's JSON as this type. Raises RequestError that names the field at fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        _refuse(exc)
    except RecursionError:
        raise RequestError("The body is nested too deep.", field="body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError(f"The body is not valid JSON: {exc}", field="body") from None


def convert(value: Any, kind: type[T], *, words: bool = False) -> T:
    """Decoded JSON as this type, `words`: with numbers as strings. Raises RequestError."""
    try:
        return msgspec.convert(value, kind, strict=not words)
    except msgspec.ValidationError as exc:
        _refuse(exc)
    except RecursionError:
        raise RequestError("The body is nested too deep.", field="body") from None


def _refuse(exc: msgspec.ValidationError) -> NoReturn:
    message = str(exc)
    path = _PATH.search(message)
    name = _UNKNOWN.search(message)
    parts = [path[1] if path else "", (name[1] or name[2]) if name else ""]
    field = ".".join(part for part in parts if part) or "body"
    raise RequestError(f"{field}: {_PATH.sub('', message)}", field=field) from None
