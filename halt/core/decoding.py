"""JSON that came with a request to typed values; what does not fit is said by the field's name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Generic, NoReturn, TypeGuard, TypeVar

import msgspec

from halt.core.json_size import holds_more, is_deeper
from halt.core.request import ChatRequest
from halt.errors import RequestError, shortened

T = TypeVar("T")

#: What msgspec raises of JSON that it cannot read.
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

NAME_MAX = 100  # characters of a field's name, as a client sent it, that a refusal repeats
WORDS_MAX = 300  # characters of a refusal that may hold a value of the client's
VALUES_MAX = 100_000  # values of one body, and names of fields
DEPTH_MAX = 200  # levels of lists and objects within one another

_AT = " - at `"
_PATH = re.compile(r" - at `(?:key in )?\$\.?([\w.\[\]]*+)`")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_NAME = "matching regex '^[A-Za-z0-9_-]{8,64}"
_SOME_KEY = "[...]"  # in a path of msgspec's: of a dict, it does not say which
_FIELD = re.compile(r"(?:unknown|missing required) field `")


#: The largest number of an event or a message that clients may name: what JavaScript, and every
#: column and message of Halt, can hold.
NUMBER_MAX = 10**15 - 1

#: The number of an event, 0 for none.
EventNumber = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


def is_id(given: object) -> TypeGuard[str]:
    """Whether this can name a stream or a conversation."""
    return isinstance(given, str) and _ID.fullmatch(given) is not None


def is_number(given: str) -> bool:
    """Whether this is a whole number, 0 or more, as clients send those of events and messages."""
    return given.isascii() and given.isdigit() and len(given) <= len(str(NUMBER_MAX))


def checked_id(given: object, field: str) -> str:
    """A stream's ID as a client sent it. Raises RequestError that names the field."""
    if not is_id(given):
        raise _misnamed(field)
    return given


def _misnamed(field: str) -> RequestError:
    return RequestError(
        f"{field} must be 8 to 64 characters of A-Z, a-z, 0-9, _ and -.", field=field
    )


def _made(kind: Any, value: Any) -> Any:
    """A value of a type that msgspec does not know: one with its own `of`, which checks it."""
    return kind.of(value)


class TypeDecoder(Generic[T]):
    """Decodes JSON to values of one type. Any number of threads may use one decoder at once.

    Make it at import time, before a second thread exists. msgspec builds a type's tables at the
    type's first use and does not guard this with a lock: two threads that are the first ones crash
    the process (docs/msgspec-race.md). The constructor is that first use.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind, dec_hook=_made)

    def decode(self, body: bytes | str, whole: str = "body") -> T:
        """JSON text as a value. Raises RequestError that names the field at fault.

        `whole` is what the data as such is called where no field of it is at fault.
        """
        text = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        if holds_more(text, VALUES_MAX):
            raise RequestError(
                f"The {whole} holds more than {VALUES_MAX:,} values. Send fewer fields and items.",
                field=whole,
            )
        try:
            if is_deeper(text, DEPTH_MAX):
                raise RecursionError
            return self._decoder.decode(body)
        except msgspec.ValidationError as exc:
            _refuse(exc, whole, body)
        except RecursionError:
            raise RequestError(f"The {whole} is nested too deep.", field=whole) from None
        except (msgspec.DecodeError, UnicodeError) as exc:
            raise RequestError(
                f"The {whole} is not valid JSON: {_malformed(body, exc)}.", field=whole
            ) from None

    def convert(self, value: Any, *, words: bool = False) -> T:
        """Decoded JSON as a value, `words`: with numbers as strings. Raises RequestError."""
        try:
            return msgspec.convert(value, self._kind, strict=not words, dec_hook=_made)
        except msgspec.ValidationError as exc:
            _refuse(exc)
        except RecursionError:
            raise RequestError("The body is nested too deep.", field="body") from None


#: Any JSON object.
JSON_OBJECT = TypeDecoder(dict[str, Any])

CHAT_REQUEST = TypeDecoder(ChatRequest)


def _malformed(body: bytes | str, fault: Exception) -> str:
    """What is wrong with JSON that cannot be read."""
    said = str(fault)
    if not body.strip():
        return "it is empty"
    if isinstance(fault, UnicodeError):
        return "it is not UTF-8"
    halved = "surrogate" in said
    if "truncated" in said:  # msgspec says so also of half a pair at the end of a text
        try:
            json.loads(body)
            halved = True
        except (ValueError, RecursionError):
            return "it ends in the middle"
    if halved:
        return r"it holds half of a surrogate pair (\ud800 to \udfff), which is no character"
    return said.removeprefix("JSON is malformed: ")


_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def _field_at_fault(body: bytes | str) -> str:
    """The field of an object that holds a number which is too large, "" where it is none."""
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


def _refuse(
    exc: msgspec.ValidationError, whole: str = "body", body: bytes | str | None = None
) -> NoReturn:
    message, path = _split(str(exc))
    if path.startswith(_SOME_KEY) and body is not None:
        path = shortened(_field_at_fault(body), NAME_MAX) + path.removeprefix(_SOME_KEY)
    path = path.replace(_SOME_KEY, "")
    message, name = _with_short_name(message)
    field = ".".join(part for part in (path, name) if part) or whole
    if _NAME in message:
        raise _misnamed(field) from None
    if field == whole and message.startswith("Expected `object`"):
        raise RequestError(f"The {whole} must be a JSON object.", field=whole) from None
    raise RequestError(f"{field}: {shortened(message, WORDS_MAX)}", field=field) from None


def _split(message: str) -> tuple[str, str]:
    """msgspec's words, and its path to the value at fault; "" where it gives none.

    A name or a value of the client's may stand in the words, with anything in it. So the path is
    looked for once and from the end: it holds names of Halt's own fields alone.
    """
    at = message.rfind(_AT)
    path = _PATH.fullmatch(message, at) if at >= 0 else None
    return (message, "") if path is None else (message[:at], path[1])


def _with_short_name(message: str) -> tuple[str, str]:
    """The words with the name of a field in them cut to NAME_MAX, and that name; "" of none."""
    begun = _FIELD.search(message, 0, WORDS_MAX)
    if begun is None:
        return message, ""
    start = begun.end()
    end = message.find("`", start)
    if end < 0:
        return message, ""
    name = shortened(message[start:end], NAME_MAX)
    return message[:start] + name + message[end:], name
