"""What is wrong with a file that can't be imported, in words for the person who chose it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from halt.store.json_items import items

OWN_ALONE = "Halt reads JSON files that it has exported itself."

#: Fields by which an export of another product is known, of a conversation or of the whole file.
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
_LISTS = ("conversations", "chats", "data", "history", "sessions")  # where other files have theirs


def _key(name: str) -> tuple[str, Any, Any]:
    """A field of `_Known`: what JSON calls `name`, where it is there."""
    default = msgspec.field(default=msgspec.UNSET, name=name)
    return f"key_{name.replace('-', '_')}", msgspec.Raw | msgspec.UnsetType, default


#: The fields of any object that tell whose it is. Others are passed over.
_NAMES = sorted({"format", *_LISTS, *(name for _, names in _PRODUCTS for name in names)})
_Known = msgspec.defstruct("_Known", [_key(name) for name in _NAMES])
_known = msgspec.json.Decoder(_Known)


def _fields(raw: bytes | memoryview) -> dict[str, memoryview]:
    """Those fields of an object, not decoded; nothing of anything else."""
    try:
        values = msgspec.structs.astuple(_known.decode(raw))
    except msgspec.ValidationError:
        return {}
    return {
        name: memoryview(value)
        for name, value in zip(_NAMES, values, strict=True)
        if isinstance(value, msgspec.Raw)
    }


def foreign(data: bytes, own_format: str) -> str:
    """What is wrong with a file of another product; nothing of one of Halt's."""
    try:
        found = _fields(data)
        if bytes(found.get("format", b"")) == msgspec.json.encode(own_format):
            return ""
        for each in _candidates(data, found):
            if product := next((who for who, fields in _PRODUCTS if fields <= each.keys()), ""):
                return (
                    f"This file can't be imported: it looks like an export of {product}. "
                    f"{OWN_ALONE}"
                )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if "format" in found:
        return ""
    return f"This file can't be imported: it is not an export of Halt's. {OWN_ALONE}"


def _candidates(data: bytes, found: dict[str, memoryview]) -> Iterator[dict[str, memoryview]]:
    """Objects that may be a conversation: of the file itself, or the first of a list in it."""
    inner = [memoryview(data), *(found[name] for name in _LISTS if name in found)]
    inner += [
        fields[name]
        for each in inner[1:]
        for fields in [_fields(each)]
        for name in _LISTS
        if name in fields
    ]
    for each in inner:
        yield _fields(next(items(each), each))


_FAULTS = {
    r"Object missing required field `(?P<field>.+)`": "is missing",
    r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`": "must be {wanted}, and is {found}",
    r"Expected `.+` matching regex .*": "must be 8 to 64 letters, digits, - or _",
    r"Expected `.+` >= (?P<least>\S+)": "must be {least} or more",
    r"Expected `.+` <= (?P<most>\S+)": "must be {most} or less",
    r"Expected `.+` of length <= (?P<most>\d+)": "must hold {most} at most",
    r"Expected `str` of length <= 64": "must be 8 to 64 letters, digits, - or _",
    r"(Number|Integer value) out of range": "is a number that is too large",
}
_KINDS = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}


def explained(fault: str, values: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with a file, and where, of what the decoder says: for a person.

    `values`: those that a field may have, where it may not have any.
    """
    what, _, path = fault.rpartition(" - at ")
    *around, field = path.strip("`").lstrip("$").split(".")
    wrong = "has a value that is not known here"
    for pattern, said in _FAULTS.items():
        if found := re.fullmatch(pattern, what, re.DOTALL):
            parts = {
                name: " or ".join(_KINDS.get(each, each) for each in value.split(" | "))
                for name, value in found.groupdict().items()
            }
            if "field" in parts:
                around, field = [*around, field], parts["field"]
            wrong = said.format_map(parts)
    if what.startswith("Invalid enum value") and field in values:
        wrong = f"must be one of {', '.join(values[field])}"
    place = ", ".join(map(_counted, filter(None, around)))
    name = f"the field “{field}”" if field.isidentifier() else _counted(field)
    where = f"in {place}, {name}" if place else name or "it"
    return f"This file can't be imported: {where} {wrong}."


def _counted(part: str) -> str:
    """A part of the decoder's path, which counts from 0, as people count."""
    name, _, index = part.partition("[")
    number = index.rstrip("]")
    if number.isdigit():
        return f"{name.removesuffix('s')} {int(number) + 1}"
    return f"a part of {name}" if index else name
