"""Explains to the user why a file can't be imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from halt.core.decoding import KIND_WORDS
from halt.store.json_items import items

OWN_ALONE = "Choose the JSON file that “Export all as JSON” made."
AGAIN = "Export the chats again, then import that file."

#: Fields that identify an export of another product, in a conversation or in the whole file.
_PRODUCTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("DeepSeek", frozenset({"mapping", "inserted_at"})),
    ("ChatGPT", frozenset({"mapping"})),
    ("Claude", frozenset({"chat_messages"})),
    ("Open WebUI", frozenset({"chat"})),
    ("LibreChat", frozenset({"conversationId"})),
    ("Grok", frozenset({"conversation", "responses"})),
    ("LM Studio", frozenset({"messages", "usePerChatPredictionConfig"})),
    ("Chatbox", frozenset({"chat-sessions-list"})),
    ("big-AGI", frozenset({"messages", "systemPurposeId"})),
    ("Gemini", frozenset({"header", "products"})),
)
_LISTS = (
    "conversations",
    "chats",
    "data",
    "history",
    "sessions",
)  # fields with conversations


def _key(name: str) -> tuple[str, Any, Any]:
    """The definition of a field of `_Known` for the JSON field `name`; it may be missing."""
    default = msgspec.field(default=msgspec.UNSET, name=name)
    return f"key_{name.replace('-', '_')}", msgspec.Raw | msgspec.UnsetType, default


#: The fields of an object that identify its product. Other fields are skipped.
_NAMES = sorted({"format", *_LISTS, *(name for _, names in _PRODUCTS for name in names)})
_Known = msgspec.defstruct("_Known", [_key(name) for name in _NAMES])
_known = msgspec.json.Decoder(_Known)


def _fields(raw: bytes | memoryview) -> dict[str, memoryview]:
    """The fields in `_NAMES` of an object, not decoded; {} for any other value."""
    try:
        values = msgspec.structs.astuple(_known.decode(raw))
    except msgspec.ValidationError:
        return {}
    return {
        name: memoryview(value)
        for name, value in zip(_NAMES, values, strict=True)
        if isinstance(value, msgspec.Raw)
    }


def foreign_file_fault(data: bytes | memoryview, own_format: str) -> str:
    """The error message for a file of another product; "" for a file of Halt or damaged JSON."""
    try:
        fields = _fields(data)
        if bytes(fields.get("format", b"")) == msgspec.json.encode(own_format):
            return ""
        for candidate in _candidates(data, fields):
            matches = (name for name, names in _PRODUCTS if names <= candidate.keys())
            if product := next(matches, ""):
                return (
                    f"This file can't be imported: it looks like an export of {product}. "
                    f"{OWN_ALONE}"
                )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return f"This file can't be imported: it is not an export of Halt. {OWN_ALONE}"


def _candidates(
    data: bytes | memoryview, fields: dict[str, memoryview]
) -> Iterator[dict[str, memoryview]]:
    """The fields of objects that may be a conversation: the file, or the first item of a list."""
    values = [memoryview(data), *(fields[name] for name in _LISTS if name in fields)]
    values += [
        inner_fields[name]
        for value in values[1:]
        for inner_fields in [_fields(value)]
        for name in _LISTS
        if name in inner_fields
    ]
    for value in values:
        yield _fields(next(items(value), value))


_FAULTS = {
    r"Object missing required field `(?P<field>.+)`": "is missing",
    r"Expected `(?P<expected>.+)`, got `(?P<actual>.+)`": "must be {expected}, and is {actual}",
    r"Expected `.+` matching regex .*": "must be 8 to 64 letters, digits, - or _",
    r"Expected `.+` >= (?P<least>\S+)": "must be {least} or more",
    r"Expected `.+` <= (?P<most>\S+)": "must be {most} or less",
    r"Expected `.+` of length <= (?P<most>\d+)": "must have {most} items at most",
    r"Expected `str` of length <= 64": "must be 8 to 64 letters, digits, - or _",
    r"(Number|Integer value) out of range": "is a number that is too large",
}


def explained(fault: str, values: Mapping[str, Sequence[str]]) -> str:
    """The error message for a decoder's error: what is wrong with the file, and where.

    `values` are the allowed values of fields that are enumerations.
    """
    message, _, path = fault.rpartition(" - at ")
    *parents, field = path.strip("`").lstrip("$").split(".")
    problem = "has an unknown value"
    for pattern, template in _FAULTS.items():
        if match := re.fullmatch(pattern, message, re.DOTALL):
            parts = {
                name: " or ".join(KIND_WORDS.get(kind, kind) for kind in value.split(" | "))
                for name, value in match.groupdict().items()
            }
            if "field" in parts:
                parents, field = [*parents, field], parts["field"]
            problem = template.format_map(parts)
    if message.startswith("Invalid enum value") and field in values:
        problem = f"must be one of {', '.join(values[field])}"
    place = ", ".join(map(_counted, filter(None, parents)))
    if field == "hash" and "matching regex" in message:
        problem = "must be 64 digits from 0 to f"
    name = f"the field “{field}”" if field.isidentifier() else _counted(field)
    where = f"in {place}, {name}" if place else name or "it"
    return f"This file can't be imported: {where} {problem}. {AGAIN}"


def _counted(part: str) -> str:
    """A part of the decoder's path with its index counted from 1: "messages[0]" is "message 1".

    A step has another name in the file, which follows: "step 1 (folds[0])".
    """
    name, _, index = part.partition("[")
    number = index.rstrip("]")
    if name == "folds" and number.isdigit():
        return f"step {int(number) + 1} ({part})"
    if number.isdigit():
        return f"{name.removesuffix('s')} {int(number) + 1}"
    return f"a part of {name}" if index else name
