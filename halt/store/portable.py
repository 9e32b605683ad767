"""Conversations as a file: the JSON that is exported and imported, and Markdown for people.

    {"format": "halt-conversations", "version": 1, "conversations": [
      {"id": "...", "title": "...", "created_at": 1760000000.0, "settings": {"model": "..."},
       "messages": [{"id": 1, "role": "user", "content": "..."},
                    {"id": 2, "parent": 1, "role": "assistant", "content": "...",
                     "state": "done"}],
       "chosen": [1, 2]}]}

`messages` are the whole tree, parents first; `chosen` are those that are the choice among their
siblings; where none of them is, it is the last one. All times are seconds since 1970.

A file is read item by item (see `halt.store.json_items`), so that other threads go on meanwhile.
What one item may hold is limited.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal, TypeVar, get_args

import msgspec

from halt.core.events import Terminal
from halt.core.metrics import NO_FIGURES
from halt.core.steps import Step
from halt.errors import RequestError, TooLarge
from halt.store.import_faults import OWN_ALONE, explained, foreign
from halt.store.json_items import is_list, items

FORMAT = "halt-conversations"
VERSION = 1
CONVERSATIONS_MAX = 100_000  # of one file
#: Characters of one message, or of all its steps. Five of the longest answers that Halt writes by
#: default, one continued by the other.
MESSAGE_MAX = 10_000_000
STEPS_MAX = 1_000  # steps of one message
ENDED_MAX = 1_000_000  # bytes of how a message ended
PIECE = 200  # messages that are encoded in one call
WHOLE_MAX = 65_536  # bytes of a message that is decoded in one call
NAME_MAX = 10_000  # characters of a title or a model's name that are looked at
NUMBERS_MAX = 2**53  # of IDs in a file
FIGURE_MAX = 1e11  # of a figure that says anything: three years in milliseconds

Number = Annotated[int, msgspec.Meta(ge=0, lt=NUMBERS_MAX)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
ConversationId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]{8,64}\Z")]

T = TypeVar("T")

Role = Literal["user", "assistant"]
State = Literal["done", "stopped", "withdrawn", "error", "interrupted"]
_VALUES = {"role": get_args(Role), "state": get_args(State)}


class _Message(msgspec.Struct, omit_defaults=True):
    """What a message has that is decoded in any case."""

    id: Number
    role: Role
    content: str
    parent: Number | None = None
    model: str = ""  # the model that answered
    requested_model: str = msgspec.field(default="", name="asked")  # the model that was chosen
    state: State = "done"
    #: Answers with the same number were requested together, from several models.
    group: Number | None = msgspec.field(default=None, name="rivals")
    selected: bool = msgspec.field(default=False, name="picked")
    created_at: Moment = 0.0


class PortableMessage(_Message, omit_defaults=True):
    """A message of an exported conversation; IDs count within the conversation only."""

    ended: Terminal | None = None  # how it ended, with its figures
    steps: list[Step] = msgspec.field(default_factory=list, name="folds")  # thoughts and tool calls


class PortableSettings(msgspec.Struct, omit_defaults=True):
    """The settings of an exported conversation."""

    model: str = ""
    system_prompt: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None


class PortableConversation(msgspec.Struct, omit_defaults=True):
    """An exported conversation."""

    id: ConversationId
    title: str
    messages: list[PortableMessage]
    chosen: list[Number] = msgspec.field(default_factory=list)
    settings: PortableSettings = msgspec.field(default_factory=PortableSettings)
    created_at: Moment = 0.0
    updated_at: Moment = 0.0


class _File(msgspec.Struct):
    format: str
    version: int
    conversations: msgspec.Raw


class _Conversation(msgspec.Struct):
    """A PortableConversation whose lists are not decoded yet."""

    id: ConversationId
    title: str
    messages: msgspec.Raw
    chosen: msgspec.Raw = msgspec.Raw(b"[]")
    settings: PortableSettings = msgspec.field(default_factory=PortableSettings)
    created_at: Moment = 0.0
    updated_at: Moment = 0.0


class _LargeMessage(_Message):
    """A PortableMessage of which two fields are not decoded yet."""

    ended: msgspec.Raw = msgspec.Raw(b"null")
    steps: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"[]"), name="folds")


_encode = msgspec.json.Encoder().encode
_file = msgspec.json.Decoder(_File)
_conversation = msgspec.json.Decoder(_Conversation)
_message = msgspec.json.Decoder(PortableMessage)
_large_message = msgspec.json.Decoder(_LargeMessage)
_number = msgspec.json.Decoder(Number)
_ended_as = msgspec.json.Decoder(Terminal | None)
_step = msgspec.json.Decoder(Step)
_no_list = msgspec.json.Decoder(list[msgspec.Raw])


class _Misfit(Exception):
    """A part of a file is not as it must be: the decoder's words, with the path in the file."""


def read(data: bytes, longest: int = MESSAGE_MAX) -> list[PortableConversation]:
    """The conversations of a file, each of them checked. Raises RequestError (`file`).

    `longest`: characters that one message may have.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        file = _part(_file, data, "$")
        found: list[PortableConversation] = []
        for place, raw in _items(file.conversations, "$.conversations"):
            if len(found) == CONVERSATIONS_MAX:
                most = f"Expected `array` of length <= {CONVERSATIONS_MAX}"
                raise _Misfit(f"{most} - at `$.conversations`")
            found.append(_read(raw, place, longest))
    except _Misfit as fault:
        raise RequestError(
            foreign(data, FORMAT) or explained(str(fault), _VALUES), field="file"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = "it is not JSON, or not all of it."
        if data.startswith(b"PK"):
            what = f"it is a ZIP archive. {OWN_ALONE}"
        raise RequestError(f"This file can't be imported: {what}", field="file") from None
    if file.format != FORMAT or file.version != VERSION:
        raise RequestError(
            f"This file can't be imported: its format is “{file.format[:40]}”, version "
            f"{file.version}, and must be “{FORMAT}”, version {VERSION}.",
            field="file",
        )
    for each in found:
        check(each)
        _mend(each)
    return found


Raw = bytes | memoryview | msgspec.Raw


def _part(decoder: msgspec.json.Decoder[T], raw: Raw, place: str) -> T:
    """A part of a file. Raises _Misfit, MsgspecError, UnicodeDecodeError, RecursionError."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as fault:
        # The path stands last; what comes before it may quote the file.
        what, _, path = str(fault).rpartition(" - at `$")
        if not what:
            what, path = str(fault), "`"
        raise _Misfit(f"{what[:200]} - at `{place}{path}") from None


def _items(raw: msgspec.Raw, place: str) -> Iterator[tuple[str, memoryview]]:
    """The items of a list, each with its path. Raises _Misfit where it is none."""
    data = memoryview(raw)
    if not is_list(data):
        _part(_no_list, data, place)
    for number, each in enumerate(items(data)):
        yield f"{place}[{number}]", each


def _read(raw: memoryview, place: str, longest: int) -> PortableConversation:
    """One conversation. Raises _Misfit, TooLarge, and as `_part`."""
    given = _part(_conversation, raw, place)
    title = given.title[:NAME_MAX]
    name = f"conversation “{' '.join(title.split())[:60] or given.id}”"

    def refuse(which: str, what: str) -> None:
        raise TooLarge(f"This file can't be imported: in the {name}, {which} {what}.", field="file")

    def checked(message: PortableMessage) -> PortableMessage:
        which = f"the message {message.id}"
        if len(message.content) > longest:
            refuse(which, f"is longer than {longest:,} characters")
        if max(len(message.model), len(message.requested_model)) > NAME_MAX:
            refuse(which, f"names a model in more than {NAME_MAX:,} characters")
        if len(message.steps) > STEPS_MAX:
            refuse(which, f"has more than {STEPS_MAX:,} thoughts and tool calls")
        if sum(step.size() for step in message.steps) > longest:
            refuse(which, f"has thoughts and tool calls of more than {longest:,} characters")
        return message

    def decoded(raw: memoryview, at: str) -> PortableMessage:
        if len(raw) <= WHOLE_MAX:
            return _part(_message, raw, at)
        message = _part(_large_message, raw, at)
        if len(memoryview(message.ended)) > ENDED_MAX:
            refuse(
                f"the message {message.id}", f"says in more than {ENDED_MAX:,} bytes how it ended"
            )
        values = msgspec.structs.asdict(message)
        values["ended"] = _part(_ended_as, message.ended, f"{at}.ended")
        steps = islice(_items(message.steps, f"{at}.folds"), STEPS_MAX + 1)
        values["steps"] = [_part(_step, one, where) for where, one in steps]
        return PortableMessage(**values)

    messages = [
        checked(decoded(each, at)) for at, each in _items(given.messages, f"{place}.messages")
    ]
    if len(given.settings.system_prompt or "") > longest:
        refuse("the system prompt", f"is longer than {longest:,} characters")
    if len(given.settings.model) > NAME_MAX:
        refuse("the model's name", f"is longer than {NAME_MAX:,} characters")
    return PortableConversation(
        given.id,
        title,
        messages,
        [_part(_number, each, at) for at, each in _items(given.chosen, f"{place}.chosen")],
        given.settings,
        given.created_at,
        given.updated_at,
    )


def _mend(given: PortableConversation) -> None:
    """What cannot be so is put right: nothing runs, nothing is of tomorrow, no figure is absurd."""
    at = time.time()
    given.created_at = min(given.created_at, at)
    given.updated_at = min(given.updated_at, at)
    for message in given.messages:
        message.steps = [_ended(step) for step in message.steps]
        if message.ended is not None and not all(
            _is_figure(each) for each in msgspec.structs.astuple(message.ended.metrics)
        ):
            message.ended = msgspec.structs.replace(message.ended, metrics=NO_FIGURES)


def _ended(step: Step) -> Step:
    """A step of an answer that has ended."""
    ms = step.ms if _is_figure(step.ms) else None
    state = step.state
    if state == "running":
        state = "done" if step.kind == "thought" else "called"
    return replace(step, state=state, ms=ms)


def _is_figure(value: float | None) -> bool:
    return value is None or 0 <= value <= FIGURE_MAX


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
        if each.group is not None and (
            each.role == "user" or compared.setdefault(each.group, each.parent) != each.parent
        ):
            raise RequestError(f"{where} is no rival of the others of its number.", field="file")
        roles[each.id] = each.role


def to_json(conversations: Iterable[PortableConversation]) -> Iterator[bytes]:
    """A file of conversations, in pieces of some messages each."""
    yield b'{"format":"%b","version":%d,"conversations":[' % (FORMAT.encode(), VERSION)
    for number, each in enumerate(conversations):
        # A quote inside a text is escaped, so that the list is where this stands first.
        empty = _encode(msgspec.structs.replace(each, messages=[]))
        head, _, rest = empty.partition(b'"messages":[]')
        piece = (b",\n" if number else b"\n") + head + b'"messages":['
        for first in range(0, len(each.messages), PIECE):
            some = _encode(each.messages[first : first + PIECE])
            yield piece + (b"," if first else b"") + some[1:-1]
            piece = b""
        yield piece + b"]" + rest
    yield b"\n]}\n"


def to_markdown(conversations: Iterable[PortableConversation]) -> Iterator[bytes]:
    """What is shown of the conversations, for people: the chosen path of each."""
    for number, each in enumerate(conversations):
        yield f"{chr(10) if number else ''}# {each.title or 'Conversation'}\n".encode()
        if each.settings.system_prompt:
            yield f"\n## System prompt\n\n{each.settings.system_prompt}\n".encode()
        for message in path(each):
            author = message.model or message.requested_model or "Answer"
            if message.role == "user":
                author = "You"
            note = _NOTES.get(message.state, "")
            yield f"\n## {author}\n\n{message.content}\n{note}".encode()


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
