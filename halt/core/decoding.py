"""Decodes the JSON of requests to typed values; errors name the field at fault."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Container, Iterable
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
_FIELD = re.compile(r"(?:unknown|missing required|invalid) field `")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[a-z |]+)`(?:, got `(?P<actual>[a-z]+)`)?")

#: msgspec's names of the kinds of JSON values, in the words of error messages.
KIND_WORDS = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
_ACTUAL_WORDS = {**KIND_WORDS, "int": "a number", "bool": "a boolean"}

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
    """A client's value as the ID of a stream or a conversation.

    Raises RequestError that names the field.
    """
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

        Of several faults an unknown field is named, because a missing field may be a misspelt one.
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
            _refuse_unknown_field(self._kind, _undecoded_fields(body))
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
            _refuse_unknown_field(self._kind, value if isinstance(value, dict) else {})
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


def _undecoded_fields(body: bytes | str) -> dict[str, Any]:
    """The fields of a JSON object, with undecoded values; empty if the text is no valid object."""
    try:
        return dict(_raw_fields.decode(body))
    except UNREADABLE:
        return {}


def _field_at_fault(body: bytes | str) -> str:
    """The name of the field with a number that is too large, "" if there is none."""
    for name, raw in _undecoded_fields(body).items():
        try:
            _anything.decode(raw)
        except UNREADABLE:
            return name
    return ""


def unknown_field(name: str) -> RequestError:
    """The error for a field that a request must not have; without a name it is the body's error."""
    if not name:
        return RequestError("The body has a field with an empty name.", field="body")
    name = shortened(name, NAME_MAX)
    return RequestError(f"{name}: unknown field", field=name)


def check_names(fields: Iterable[str], allowed: Container[object]) -> None:
    """Raise RequestError for the first of these fields' names that is not allowed."""
    for name in fields:
        if name not in allowed:
            raise unknown_field(name) from None


def _refuse_unknown_field(kind: Any, fields: dict[str, Any]) -> None:
    """Raise RequestError for the first field that the struct of this type does not have.

    The struct of a union is the one with the tag in `fields`. A struct may allow unknown fields.
    """
    for struct in _structs(kind):
        config = struct.__struct_config__
        if not config.forbid_unknown_fields or not _has_tag(config, fields):
            continue
        check_names(fields, (*struct.__struct_encode_fields__, config.tag_field))


def _has_tag(config: Any, fields: dict[str, Any]) -> bool:
    """Whether a struct with this configuration has no tag, or the tag that is in `fields`."""
    tag = fields.get(config.tag_field)
    if isinstance(tag, msgspec.Raw):
        try:
            tag = _anything.decode(tag)
        except UNREADABLE:
            return False
    return bool(tag == config.tag)


def _hint(kind: Any, field: str) -> Any:
    """The type of a field of a struct, or of the structs of a union; None if there is none."""
    return next((hints[field] for hints in map(_hints, _structs(kind)) if field in hints), None)


@functools.cache
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    types = get_args(kind) or (kind,)
    return [item for item in types if isinstance(item, type) and issubclass(item, msgspec.Struct)]


def _meta(hint: Any) -> msgspec.Meta | None:
    """The bounds of a field of this type, which may be optional; None if it has none."""
    for part in (hint, *get_args(hint)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                return meta
    return None


def _allowed_values(kind: Any, field: str) -> list[str]:
    """The allowed values of a field as JSON: of a Literal or a union's tag, else empty."""
    tags = [
        struct.__struct_config__.tag
        for struct in _structs(kind)
        if struct.__struct_config__.tag_field == field
    ]
    hint = _hint(kind, field)
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    values = [value for literal in literals for value in get_args(literal)]
    return [json.dumps(value) for value in tags or values]


def _alternatives(items: list[str]) -> str:
    """The items as "A", "A or B" or "A, B or C"."""
    *first_items, last = items
    return f"{', '.join(first_items)} or {last}" if first_items else last


def _requirement(message: str, hint: Any) -> str:
    """The kind and the range that a field must have, as the end of a sentence; "" if unknown.

    `message` is msgspec's, `hint` the field's type, which has both ends of the range.
    """
    fault = _EXPECTED.match(message)
    if fault is None:
        return ""
    kinds = fault["kinds"].split(" | ")
    if len(kinds) > 1:
        kinds = [kind for kind in kinds if kind != "null"]  # it counts as an absent field
    text = _alternatives([KIND_WORDS.get(kind, kind) for kind in kinds])
    if (meta := _meta(hint)) is not None and len(kinds) == 1:
        text += _range(meta)
    actual = fault["actual"]
    are_numbers = actual in {"int", "float"} and kinds[0] in {"int", "float"}
    if actual is None or are_numbers or text.endswith("empty"):
        return text
    return f"{text}, not {_ACTUAL_WORDS.get(actual, actual)}"


def _range(meta: msgspec.Meta) -> str:
    """The range of a number or the number of a text's characters, "" if it has no bounds."""
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:,} to {meta.le:,}"
    if meta.min_length == 1 and meta.max_length is None:
        return " that is not empty"
    if meta.min_length is not None and meta.max_length is not None:
        return f" of {meta.min_length:,} to {meta.max_length:,} characters"
    return ""


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
    if field == subject and message.startswith("Expected `object`"):
        raise RequestError(f"The {subject} must be a JSON object.", field=subject) from None
    if message.startswith("Object missing required field"):
        raise RequestError(f"{field} is missing.", field=field) from None
    if message.startswith("Object contains unknown field"):
        if not name:
            raise unknown_field(name) from None
        raise RequestError(f"{field}: unknown field", field=field) from None
    if message.endswith("out of range"):
        raise RequestError(f"{field} is a number that is too large.", field=field) from None
    hint = _hint(kind, field)
    meta = _meta(hint)
    if _ID_PATTERN_TEXT in message or (meta is not None and meta.pattern is not None):
        raise _invalid_id(field) from None
    values = _allowed_values(kind, field)
    message = message.removeprefix(f"invalid field `{name}`: ")
    requirement = _alternatives(values) if values else _requirement(message, hint)
    if requirement:
        raise RequestError(f"{field} must be {requirement}.", field=field) from None
    message = message.replace(f" field `{name}`", " field", 1)
    raise RequestError(f"{field}: {shortened(message, MESSAGE_MAX)}", field=field) from None


def _split(message: str) -> tuple[str, str]:
    """msgspec's message, and its path to the value at fault, "" without one.

    The message may quote a client's name or value with any content. So the path is searched once,
    from the end: it holds names of Halt's own fields alone.
    """
    path_start = message.rfind(_AT)
    path_match = _PATH.fullmatch(message, path_start) if path_start >= 0 else None
    return (message, "") if path_match is None else (message[:path_start], path_match[1])


def _with_short_name(message: str) -> tuple[str, str]:
    """The message with the field's name cut to NAME_MAX, and that name, "" without one."""
    field_match = _FIELD.search(message, 0, MESSAGE_MAX)
    if field_match is None:
        return message, ""
    start = field_match.end()
    end = message.find("`", start)
    if end < 0:
        return message, ""
    name = shortened(message[start:end], NAME_MAX)
    return message[:start] + name + message[end:], name
