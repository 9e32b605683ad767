"""Conversations as a file: the JSON that is exported and imported, and Markdown for people.

    {"format": "halt-conversations", "version": 1, "conversations": [
      {"id": "...", "title": "...", "created_at": 1760000000.0, "settings": {"model": "..."},
       "messages": [{"id": 1, "role": "user", "content": "..."},
                    {"id": 2, "parent": 1, "role": "assistant", "content": "...",
                     "state": "done"}],
       "chosen": [1, 2]}]}

`messages` are the whole tree, parents first; `chosen` are those that are the choice among their
siblings; where none of them is, it is the last one. All times are seconds since 1970.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Literal, get_args

import msgspec

from halt.errors import RequestError
from halt.events import Terminal
from halt.folds import Fold
from halt.metrics import NO_FIGURES

FORMAT = "halt-conversations"
VERSION = 1
CONVERSATIONS_MAX = 100_000  # of one file
NUMBERS_MAX = 2**53  # of IDs in a file
FIGURE_MAX = 1e11  # of a figure that says anything: three years in milliseconds

Number = Annotated[int, msgspec.Meta(ge=0, lt=NUMBERS_MAX)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]


Role = Literal["user", "assistant"]
State = Literal["done", "stopped", "withdrawn", "error", "interrupted"]


class PortableMessage(msgspec.Struct, omit_defaults=True):
    """A message of an exported conversation; IDs count within the conversation only."""

    id: Number
    role: Role
    content: str
    parent: Number | None = None
    model: str = ""  # the model that answered
    asked: str = ""  # the model that was chosen
    state: State = "done"
    rivals: Number | None = None  # answers with the same number were asked for together
    picked: bool = False
    created_at: Moment = 0.0
    ended: Terminal | None = None  # how it ended, with its figures
    folds: list[Fold] = msgspec.field(default_factory=list)  # thoughts and tool calls


class PortableSettings(msgspec.Struct, omit_defaults=True):
    """The settings of an exported conversation."""

    model: str = ""
    system_prompt: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None


class PortableConversation(msgspec.Struct, omit_defaults=True):
    """An exported conversation."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{8,64}\Z")]
    title: str
    messages: list[PortableMessage]
    chosen: list[Number] = msgspec.field(default_factory=list)
    settings: PortableSettings = msgspec.field(default_factory=PortableSettings)
    created_at: Moment = 0.0
    updated_at: Moment = 0.0


class _File(msgspec.Struct):
    format: str
    version: int
    conversations: Annotated[list[PortableConversation], msgspec.Meta(max_length=CONVERSATIONS_MAX)]


_encode = msgspec.json.Encoder().encode
_file = msgspec.json.Decoder(_File)


def read(data: bytes) -> list[PortableConversation]:
    """The conversations of a file, each of them checked. Raises RequestError (`file`)."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        found = _file.decode(data)
    except msgspec.ValidationError as fault:
        raise RequestError(_foreign(data) or _explained(str(fault)), field="file") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = "it is not JSON, or not all of it."
        if data.startswith(b"PK"):
            what = f"it is a ZIP archive. {OWN_ALONE}"
        raise RequestError(f"This file can't be imported: {what}", field="file") from None
    if found.format != FORMAT or found.version != VERSION:
        raise RequestError(
            f"This file can't be imported: its format is “{found.format[:40]}”, version "
            f"{found.version}, and must be “{FORMAT}”, version {VERSION}.",
            field="file",
        )
    for each in found.conversations:
        check(each)
        _mend(each)
    return found.conversations


def _mend(given: PortableConversation) -> None:
    """What cannot be so is put right: nothing runs, nothing is of tomorrow, no figure is absurd."""
    at = time.time()
    given.created_at = min(given.created_at, at)
    given.updated_at = min(given.updated_at, at)
    for message in given.messages:
        message.folds = [_ended(fold) for fold in message.folds]
        if message.ended is not None and not all(
            _is_figure(each) for each in msgspec.structs.astuple(message.ended.metrics)
        ):
            message.ended = msgspec.structs.replace(message.ended, metrics=NO_FIGURES)


def _ended(fold: Fold) -> Fold:
    """A fold of an answer that has ended."""
    ms = fold.ms if _is_figure(fold.ms) else None
    state = fold.state
    if state == "running":
        state = "done" if fold.kind == "thought" else "called"
    return replace(fold, state=state, ms=ms)


def _is_figure(value: float | None) -> bool:
    return value is None or 0 <= value <= FIGURE_MAX


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


def _foreign(data: bytes) -> str:
    """What is wrong with a file of another product; nothing of one of Halt's."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if isinstance(found, dict) and found.get("format") == FORMAT:
        return ""
    for each in _candidates(found):
        if product := next((name for name, fields in _PRODUCTS if fields <= each.keys()), ""):
            return f"This file can't be imported: it looks like an export of {product}. {OWN_ALONE}"
    if isinstance(found, dict) and "format" in found:
        return ""
    return f"This file can't be imported: it is not an export of Halt's. {OWN_ALONE}"


def _candidates(found: object) -> Iterator[dict[str, object]]:
    """Objects that may be a conversation: of the file itself, or the first of a list in it."""
    inner = [found]
    if isinstance(found, dict):
        inner += [found[name] for name in _LISTS if name in found]
        inner += [
            each[name]
            for each in inner[1:]
            if isinstance(each, dict)
            for name in _LISTS
            if name in each
        ]
    for each in inner:
        first = each[0] if isinstance(each, list) and each else each
        if isinstance(first, dict):
            yield first


_FAULTS = {
    r"Object missing required field `(?P<field>.+)`": "is missing",
    r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`": "must be {wanted}, and is {found}",
    r"Expected `.+` matching regex .*": "must be 8 to 64 letters, digits, - or _",
    r"Expected `.+` >= (?P<least>\S+)": "must be {least} or more",
    r"Expected `.+` <= (?P<most>\S+)": "must be {most} or less",
    r"Expected `.+` of length <= (?P<most>\d+)": "must hold {most} at most",
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
_VALUES = {"role": get_args(Role), "state": get_args(State)}


def _explained(fault: str) -> str:
    """What is wrong with a file, and where, of what the decoder says: for a person."""
    what, _, path = fault.partition(" - at ")
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
    if what.startswith("Invalid enum value") and field in _VALUES:
        wrong = f"must be one of {', '.join(_VALUES[field])}"
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


def check(given: PortableConversation) -> None:
    """Whether the messages make a tree. Raises RequestError (`file`), which names the message."""
    roles: dict[int, str] = {}
    compared: dict[int, int | None] = {}  # rivals -> the prompt that they answer
    if not given.messages:
        raise RequestError(f"The conversation {given.id!r} holds no message.", field="file")
    for each in given.messages:
        where = f"The message {each.id} of the conversation {given.id!r}"
        if each.id in roles:
            raise RequestError(f"{where} is there twice.", field="file")
        if each.parent is not None and each.parent not in roles:
            raise RequestError(
                f"{where} follows the message {each.parent}, which does not come before it.",
                field="file",
            )
        before = None if each.parent is None else roles[each.parent]
        if each.role == "assistant" and before != "user":
            raise RequestError(f"{where} is an answer and follows no prompt.", field="file")
        if each.rivals is not None and (
            each.role == "user" or compared.setdefault(each.rivals, each.parent) != each.parent
        ):
            raise RequestError(f"{where} is no rival of the others of its number.", field="file")
        roles[each.id] = each.role


def to_json(conversations: Iterable[PortableConversation]) -> Iterator[bytes]:
    """A file of conversations, in pieces of one conversation each."""
    yield b'{"format":"%b","version":%d,"conversations":[' % (FORMAT.encode(), VERSION)
    for number, each in enumerate(conversations):
        yield (b",\n" if number else b"\n") + _encode(each)
    yield b"\n]}\n"


def to_markdown(conversations: Iterable[PortableConversation]) -> Iterator[bytes]:
    """What is shown of the conversations, for people: the chosen path of each."""
    for number, each in enumerate(conversations):
        yield f"{chr(10) if number else ''}# {each.title or 'Conversation'}\n".encode()
        if each.settings.system_prompt:
            yield f"\n## System prompt\n\n{each.settings.system_prompt}\n".encode()
        for message in path(each):
            who = "You" if message.role == "user" else message.model or message.asked or "Answer"
            note = _NOTES.get(message.state, "")
            yield f"\n## {who}\n\n{message.content}\n{note}".encode()


_NOTES = {
    "stopped": "\n*Stopped here.*\n",
    "error": "\n*This answer broke off here.*\n",
    "interrupted": "\n*This answer broke off here.*\n",
}


def path(given: PortableConversation) -> list[PortableMessage]:
    """The messages that are shown, in their order."""
    chosen = set(given.chosen)
    below = {each.parent: each for each in given.messages if each.id in chosen}
    out: list[PortableMessage] = []
    last: int | None = None
    while (found := below.get(last)) is not None:
        out.append(found)
        last = found.id
    return out
