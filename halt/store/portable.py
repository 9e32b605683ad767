"""The format of exported conversations, and its reader; `halt.store.exports` writes it.

    {"format": "halt-conversations", "version": 1, "conversations": [
      {"id": "...", "title": "...", "created_at": 1760000000.0, "settings": {"model": "..."},
       "messages": [{"id": 1, "role": "user", "content": "..."},
                    {"id": 2, "parent": 1, "role": "assistant", "content": "...",
                     "state": "done"}],
       "chosen": [1, 2]}],
     "files": [...]}

`messages` is the whole tree, parents first. `chosen` holds the messages on the shown path among
their siblings; without one the last sibling is shown. All times are seconds since 1970; a pinned
conversation has `pinned_at`, and one in the archive `archived_at`. The file keeps names of the
first version: `folds` are a message's steps, `asked` is the requested model, `rivals` the number
that alternatives share, `picked` marks the selected one. `edited`, which files of earlier versions
do not have, marks an answer that the user has edited. A message's `files` are those of a prompt, or
the images of an answer, by the hashes in the last list, which `halt.store.portable_files` defines.

A file is read item by item (see `halt.store.json_items`), so that other threads are not blocked.
The size of an item is limited.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal, NamedTuple, TypeVar, get_args

import msgspec

from halt.config.settings import SAVED_NAME_MAX
from halt.core.events import Terminal
from halt.core.metrics import NO_FIGURES
from halt.core.steps import Step
from halt.errors import RequestError, TooLarge
from halt.files.names import clean_name
from halt.store.import_faults import AGAIN, OWN_ALONE, explained, foreign_file_fault
from halt.store.json_items import is_list, items
from halt.store.portable_files import EncodedFile, Hash, PortableFile

FORMAT = "halt-conversations"
VERSION = 1
CONVERSATIONS_MAX = 100_000  # of one file
#: Characters of one message, or of all its steps: five answers of Halt's default maximum length,
#: each continuing the one before.
MESSAGE_MAX = 10_000_000
STEPS_MAX = 1_000  # steps of one message
FILES_MAX = 1_000  # files of one message
ENDED_MAX = 1_000_000  # bytes of the terminal event of a message
WHOLE_MAX = 65_536  # bytes of the longest message that is decoded in one call
NAME_MAX = 10_000  # characters of a title, after which it is cut, or of a model's name
NUMBERS_MAX = 2**53  # limit of message IDs in a file
FIGURE_MAX = 1e11  # limit of a plausible figure: three years in milliseconds

Number = Annotated[int, msgspec.Meta(ge=0, lt=NUMBERS_MAX)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
ConversationId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]{8,64}\Z")]

T = TypeVar("T")

Role = Literal["user", "assistant"]
State = Literal["done", "stopped", "withdrawn", "error", "interrupted"]
_VALUES = {"role": get_args(Role), "state": get_args(State)}


class _Message(msgspec.Struct, omit_defaults=True):
    """The fields of a message that are always decoded at once."""

    id: Number
    role: Role
    content: str
    parent: Number | None = None
    model: str = ""  # the model that answered
    requested_model: str = msgspec.field(default="", name="asked")
    state: State = "done"
    #: Answers with the same number were requested together, from several models.
    group: Number | None = msgspec.field(default=None, name="rivals")
    selected: bool = msgspec.field(default=False, name="picked")
    created_at: Moment = 0.0


class PortableMessage(_Message, omit_defaults=True):
    """A message of an exported conversation; IDs count within the conversation only."""

    ended: Terminal | None = None  # with its figures
    steps: list[Step] = msgspec.field(default_factory=list, name="folds")  # thoughts and tool calls
    edited: bool = False  # the user wrote this answer
    files: list[PortableFile] = msgspec.field(default_factory=list)


class PortableSettings(msgspec.Struct, omit_defaults=True):
    """The settings of an exported conversation."""

    model: str = ""
    system_prompt: str | None = None
    prompt_name: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
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
    pinned_at: Moment | None = None
    archived_at: Moment | None = None


class _File(msgspec.Struct):
    format: str
    version: int
    conversations: msgspec.Raw
    files: msgspec.Raw = msgspec.Raw(b"[]")


class _FileItem(msgspec.Struct):
    """A file in a file, with undecoded data."""

    hash: Hash
    data: msgspec.Raw


class _Conversation(msgspec.Struct):
    """A PortableConversation with undecoded lists."""

    id: ConversationId
    title: str
    messages: msgspec.Raw
    chosen: msgspec.Raw = msgspec.Raw(b"[]")
    settings: PortableSettings = msgspec.field(default_factory=PortableSettings)
    created_at: Moment = 0.0
    updated_at: Moment = 0.0
    pinned_at: Moment | None = None
    archived_at: Moment | None = None


class _LargeMessage(_Message):
    """A PortableMessage with undecoded fields."""

    ended: msgspec.Raw = msgspec.Raw(b"null")
    steps: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"[]"), name="folds")
    edited: bool = False
    files: msgspec.Raw = msgspec.Raw(b"[]")


_file = msgspec.json.Decoder(_File)
_conversation = msgspec.json.Decoder(_Conversation)
_message = msgspec.json.Decoder(PortableMessage)
_large_message = msgspec.json.Decoder(_LargeMessage)
_number = msgspec.json.Decoder(Number)
_terminal = msgspec.json.Decoder(Terminal | None)
_step = msgspec.json.Decoder(Step)
_message_file = msgspec.json.Decoder(PortableFile)
_file_item = msgspec.json.Decoder(_FileItem)
_any_list = msgspec.json.Decoder(list[msgspec.Raw])


class _Misfit(Exception):
    """A part of a file is invalid. The text is the decoder's message with the path in the file."""


class Export(NamedTuple):
    """What an exported file has."""

    conversations: list[PortableConversation]
    files: dict[str, EncodedFile]  # by their hashes


def read(data: bytes | memoryview, longest: int = MESSAGE_MAX) -> Export:
    """The checked conversations of a file, and its files, whose data is not read yet.

    `longest` is the limit of characters of one message. Raises RequestError (`file`), TooLarge
    (`file`).
    """
    head = bytes(data[:3])
    if head == codecs.BOM_UTF8:
        data = memoryview(data)[3:]
    try:
        file = _part(_file, data, "$")
        conversations: list[PortableConversation] = []
        for place, raw in _items(file.conversations, "$.conversations"):
            if len(conversations) == CONVERSATIONS_MAX:
                message = f"Expected `array` of length <= {CONVERSATIONS_MAX}"
                raise _Misfit(f"{message} - at `$.conversations`")
            conversations.append(_read(raw, place, longest))
        files = dict(_read_files(file.files))
    except _Misfit as fault:
        raise RequestError(
            foreign_file_fault(data, FORMAT) or explained(str(fault), _VALUES), field="file"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        reason = f"it is not JSON, or it is incomplete. {AGAIN}"
        if head.startswith(b"PK"):
            reason = f"it is a ZIP archive. {OWN_ALONE}"
        raise RequestError(f"This file can't be imported: {reason}", field="file") from None
    if file.format != FORMAT or file.version != VERSION:
        step = OWN_ALONE if file.format != FORMAT else "Another version of Halt made it."
        raise RequestError(
            f"This file can't be imported: its format is “{file.format[:40]}”, version "
            f"{file.version}, and must be “{FORMAT}”, version {VERSION}. {step}",
            field="file",
        )
    for conversation in conversations:
        check(conversation)
        _correct(conversation)
    return Export(conversations, files)


def _read_files(raw: msgspec.Raw) -> Iterator[tuple[str, EncodedFile]]:
    """The files with their hashes. Raises the exceptions of `_part`."""
    for path, item in _items(raw, "$.files"):
        file = _part(_file_item, item, path)
        try:
            yield file.hash, EncodedFile.from_json(file.hash, memoryview(file.data))
        except msgspec.ValidationError as fault:
            raise _Misfit(f"{fault} - at `{path}.data`") from None


Raw = bytes | memoryview | msgspec.Raw


def _part(decoder: msgspec.json.Decoder[T], raw: Raw, place: str) -> T:
    """A decoded part. Raises _Misfit, MsgspecError, UnicodeDecodeError, RecursionError."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as fault:
        # The path is at the end; the text before it may quote the file.
        message, _, path = str(fault).rpartition(" - at `$")
        if not message:
            message, path = str(fault), "`"
        raise _Misfit(f"{message[:200]} - at `{place}{path}") from None


def _items(raw: msgspec.Raw, place: str) -> Iterator[tuple[str, memoryview]]:
    """The items of a list with their paths. Raises _Misfit for any other value."""
    data = memoryview(raw)
    if not is_list(data):
        _part(_any_list, data, place)  # raises
    for number, item in enumerate(items(data)):
        yield f"{place}[{number}]", item


def _read(raw: memoryview, place: str, longest: int) -> PortableConversation:
    """One conversation. Raises TooLarge and the exceptions of `_part`."""
    conversation = _part(_conversation, raw, place)
    title = conversation.title[:NAME_MAX]
    name = f"conversation “{' '.join(title.split())[:60] or conversation.id}”"

    def refuse(part: str, problem: str) -> None:
        raise TooLarge(
            f"This file can't be imported: in the {name}, {part} {problem}.", field="file"
        )

    def checked(message: PortableMessage) -> PortableMessage:
        part = f"the message {message.id}"
        if len(message.content) > longest:
            refuse(part, f"is longer than {longest:,} characters")
        if max(len(message.model), len(message.requested_model)) > NAME_MAX:
            refuse(part, f"has a model name of more than {NAME_MAX:,} characters")
        if len(message.steps) > STEPS_MAX:
            refuse(part, f"has more than {STEPS_MAX:,} thoughts and tool calls")
        if sum(step.size() for step in message.steps) > longest:
            refuse(part, f"has thoughts and tool calls of more than {longest:,} characters")
        if len(message.files) > FILES_MAX:
            refuse(part, f"has more than {FILES_MAX:,} files")
        return message

    def decoded(raw: memoryview, at: str) -> PortableMessage:
        if len(raw) <= WHOLE_MAX:
            return _part(_message, raw, at)
        message = _part(_large_message, raw, at)
        if len(memoryview(message.ended)) > ENDED_MAX:
            refuse(f"the message {message.id}", f"has an end of more than {ENDED_MAX:,} bytes")
        values = msgspec.structs.asdict(message)
        values["ended"] = _part(_terminal, message.ended, f"{at}.ended")
        steps = islice(_items(message.steps, f"{at}.folds"), STEPS_MAX + 1)
        values["steps"] = [_part(_step, step, path) for path, step in steps]
        files = islice(_items(message.files, f"{at}.files"), FILES_MAX + 1)
        values["files"] = [_part(_message_file, file, path) for path, file in files]
        return PortableMessage(**values)

    messages = [
        checked(decoded(item, path))
        for path, item in _items(conversation.messages, f"{place}.messages")
    ]
    if len(conversation.settings.system_prompt or "") > longest:
        refuse("the system prompt", f"is longer than {longest:,} characters")
    if len(conversation.settings.model) > NAME_MAX:
        refuse("the model's name", f"is longer than {NAME_MAX:,} characters")
    return PortableConversation(
        conversation.id,
        title,
        messages,
        [
            _part(_number, item, path)
            for path, item in _items(conversation.chosen, f"{place}.chosen")
        ],
        conversation.settings,
        conversation.created_at,
        conversation.updated_at,
        conversation.pinned_at,
        conversation.archived_at,
    )


def _correct(conversation: PortableConversation) -> None:
    """Correct implausible values: running steps, times in the future, figures beyond limits.

    Names of files become single lines. A name of a prompt is cut to its limit; without a system
    prompt it is removed.
    """
    settings = conversation.settings
    name = (settings.prompt_name or "") if settings.system_prompt else ""
    settings.prompt_name = name[:SAVED_NAME_MAX].strip() or None
    at = time.time()
    conversation.created_at = min(conversation.created_at, at)
    conversation.updated_at = min(conversation.updated_at, at)
    if conversation.pinned_at is not None:
        conversation.pinned_at = min(conversation.pinned_at, at)
    if conversation.archived_at is not None:
        conversation.archived_at = min(conversation.archived_at, at)
    for message in conversation.messages:
        message.steps = [_with_end(step) for step in message.steps]
        for file in message.files:
            file.name = clean_name(file.name)
        if message.ended is not None and not all(
            _is_plausible(figure) for figure in msgspec.structs.astuple(message.ended.metrics)
        ):
            message.ended = msgspec.structs.replace(message.ended, metrics=NO_FIGURES)


def _with_end(step: Step) -> Step:
    """The step with an end, as the answer has ended."""
    ms = step.ms if _is_plausible(step.ms) else None
    state = step.state
    if state == "running":
        state = "done" if step.kind == "thought" else "called"
    return replace(step, state=state, ms=ms)


def _is_plausible(value: float | None) -> bool:
    return value is None or 0 <= value <= FIGURE_MAX


def check(conversation: PortableConversation) -> None:
    """Raise RequestError (`file`) with the ID of the first message that does not fit the tree."""
    roles: dict[int, str] = {}
    prompts: dict[int, int | None] = {}  # group of alternatives -> the prompt that they answer
    if not conversation.messages:
        raise _refusal(f"the conversation {conversation.id!r} holds no message")
    for message in conversation.messages:
        name = f"the message {message.id} of the conversation {conversation.id!r}"
        if message.id in roles:
            raise _refusal(f"{name} is there twice")
        parent = message.parent
        if parent is not None and parent not in roles:
            raise _refusal(f"{name} follows the message {parent}, which does not come before it")
        parent_role = None if parent is None else roles[parent]
        if message.role == "assistant" and parent_role != "user":
            raise _refusal(f"{name} is an answer and follows no prompt")
        if message.group is not None and (
            message.role == "user" or prompts.setdefault(message.group, parent) != parent
        ):
            raise _refusal(
                f"{name} must answer the same prompt as the others with its number in “rivals”"
            )
        roles[message.id] = message.role


def _refusal(reason: str) -> RequestError:
    return RequestError(f"This file can't be imported: {reason}.", field="file")
