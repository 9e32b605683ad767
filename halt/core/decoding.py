"""Decodes the JSON of requests to typed values; errors name the field at fault."""

from __future__ import annotations

import json
import re
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NoReturn,
    TypeGuard,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from halt.core.json_size import holds_more, is_deeper
from halt.core.request import ChatRequest
from halt.errors import RequestError, shortened

T = TypeVar("T")

#: The exceptions that msgspec raises for JSON that it cannot read.
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

NAME_MAX = 100  # characters of a client's field name that an error message repeats
MESSAGE_MAX = 300  # characters of an error message that may quote a client's value
VALUES_MAX = 100_000  # values and field names in one body
DEPTH_MAX = 200  # levels of nested lists and objects

_AT = " - at `"
_PATH = re.compile(r" - at `(?:key in )?\$\.?([\w.\[\]]*+)`")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_ID_PATTERN_TEXT = "matching regex '^[A-Za-z0-9_-]{8,64}"
_SOME_KEY = "[...]"  # in msgspec's paths: an unnamed key of a dict
_FIELD = re.compile(r"(?:unknown|missing required) field `")


#: The largest number of an event or a message in requests: JavaScript, every SQL column and every
#: message between workers can hold it.
NUMBER_MAX = 10**15 - 1

#: The number of an event, 0 for none.
EventNumber = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


def is_id(value: object) -> TypeGuard[str]:
    """Whether `value` is valid as an ID of a stream or a conversation."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_number(text: str) -> bool:
    """Whether `text` is a whole number from 0 on, valid for an event or a message."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(NUMBER_MAX))


def checked_id(value: object, field: str) -> str:
    """A client's value as a stream's ID. Raises RequestError that names the field."""
    if not is_id(value):
        raise _invalid_id(field)
    return value


def _invalid_id(field: str) -> RequestError:
    return RequestError(
        f"{field} must be 8 to 64 characters of A-Z, a-z, 0-9, _ and -.", field=field
    )


def _convert(kind: Any, value: Any) -> Any:
    """Convert a value to a type that msgspec does not know, by the type's own `of`."""
    return kind.of(value)


class TypeDecoder(Generic[T]):
    """Decodes JSON to values of one type. Any number of threads may use one decoder at once.

    Make it at import time, before a second thread exists. msgspec builds a type's tables at the
    type's first use and does not guard this with a lock: two threads that are the first ones crash
    the process (docs/msgspec-race.md). The constructor is that first use.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind, dec_hook=_convert)

    def decode(self, body: bytes | str, subject: str = "body") -> T:
        """JSON text as a value. Raises RequestError that names the field at fault.

        `subject` names the data in errors that concern no single field.
        """
        text = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        if holds_more(text, VALUES_MAX):
            raise RequestError(
                f"The {subject} holds more than {VALUES_MAX:,} values. "
                "Send fewer fields and items.",
                field=subject,
            )
        try:
            if is_deeper(text, DEPTH_MAX):
                raise RecursionError
            return self._decoder.decode(body)
        except msgspec.ValidationError as exc:
            _refuse(exc, self._kind, subject, body)
        except RecursionError:
            raise RequestError(f"The {subject} is nested too deep.", field=subject) from None
        except (msgspec.DecodeError, UnicodeError) as exc:
            raise RequestError(
                f"The {subject} is not valid JSON: {_malformed(body, exc)}.", field=subject
            ) from None

    def convert(self, value: Any, *, from_strings: bool = False) -> T:
        """Decoded JSON as a value. Raises RequestError.

        `from_strings`: values may be strings, as query parameters are.
        """
        try:
            return msgspec.convert(value, self._kind, strict=not from_strings, dec_hook=_convert)
        except msgspec.ValidationError as exc:
            _refuse(exc, self._kind)
        except RecursionError:
            raise RequestError("The body is nested too deep.", field="body") from None


#: Any JSON object.
JSON_OBJECT = TypeDecoder(dict[str, Any])

CHAT_REQUEST = TypeDecoder(ChatRequest)


def _malformed(body: bytes | str, fault: Exception) -> str:
    """The reason why JSON text is invalid, as the end of a sentence."""
    message = str(fault)
    if not body.strip():
        return "it is empty"
    if isinstance(fault, UnicodeError):
        return "it is not UTF-8"
    halved = "surrogate" in message
    if "truncated" in message:  # msgspec reports this also for half a pair at the end of a text
        try:
            json.loads(body)
            halved = True
        except (ValueError, RecursionError):
            return "it ends in the middle"
    if halved:
        return r"it holds half of a surrogate pair (\ud800 to \udfff), which is no character"
    return message.removeprefix("JSON is malformed: ")


_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def _field_at_fault(body: bytes | str) -> str:
    """The name of the field with a number that is too large, "" if there is none."""
    try:
        fields = _raw_fields.decode(body)
    except UNREADABLE:
        return ""
    for name, raw in fields.items():
        try:
            _anything.decode(raw)
        except UNREADABLE:
            return name
    return ""


def unknown_field(name: str) -> RequestError:
    """The error for a field that a request must not have."""
    name = shortened(name, NAME_MAX)
    return RequestError(f"{name}: unknown field", field=name)


def _allowed_values(kind: Any, field: str) -> list[str]:
    """The allowed values of a struct's Literal field as JSON, empty for every other field."""
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return []
    hint = get_type_hints(kind).get(field)
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return [json.dumps(value) for literal in literals for value in get_args(literal)]


def _refuse(
    exc: msgspec.ValidationError,
    kind: Any,
    subject: str = "body",
    body: bytes | str | None = None,
) -> NoReturn:
    message, path = _split(str(exc))
    if path.startswith(_SOME_KEY) and body is not None:
        path = shortened(_field_at_fault(body), NAME_MAX) + path.removeprefix(_SOME_KEY)
    path = path.replace(_SOME_KEY, "")
    message, name = _with_short_name(message)
    field = ".".join(part for part in (path, name) if part) or subject
    if _ID_PATTERN_TEXT in message:
        raise _invalid_id(field) from None
    if field == subject and message.startswith("Expected `object`"):
        raise RequestError(f"The {subject} must be a JSON object.", field=subject) from None
    if message.startswith("Object missing required field"):
        raise RequestError(f"{field} is missing.", field=field) from None
    if message.startswith("Object contains unknown field"):
        message = "unknown field"
    elif message.startswith("Invalid enum value") and (values := _allowed_values(kind, field)):
        raise RequestError(f"{field} must be {' or '.join(values)}.", field=field) from None
    raise RequestError(f"{field}: {shortened(message, MESSAGE_MAX)}", field=field) from None


def _split(message: str) -> tuple[str, str]:
    """msgspec's message, and its path to the value at fault, "" without one.

    The message may quote a client's name or value with any content. So the path is searched once,
    from the end: it holds names of Halt's own fields alone.
    """
    at = message.rfind(_AT)
    path = _PATH.fullmatch(message, at) if at >= 0 else None
    return (message, "") if path is None else (message[:at], path[1])


def _with_short_name(message: str) -> tuple[str, str]:
    """The message with the field's name cut to NAME_MAX, and that name, "" without one."""
    begun = _FIELD.search(message, 0, MESSAGE_MAX)
    if begun is None:
        return message, ""
    start = begun.end()
    end = message.find("`", start)
    if end < 0:
        return message, ""
    name = shortened(message[start:end], NAME_MAX)
    return message[:start] + name + message[end:], name
