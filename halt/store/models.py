"""The values that readers of a conversation get, all frozen, and the errors of its changes.

A conversation is a tree of messages. An edited prompt is a sibling of the original prompt, a
regenerated or edited answer a sibling of the answer before it; the answers of several models to one
prompt are siblings too. The page shows, and the model gets, one path through the tree: each message
stores which of its children is the next one.

The page reads the path as exchanges, a window of them at a time. An exchange is a prompt with the
answer that is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from halt.core.events import Cancelled, Done, Terminal
from halt.core.finish_reasons import is_good, unusual_end_note
from halt.core.steps import Step
from halt.errors import HaltError
from halt.files.facts import Facts, Role

BUSY = "An answer is still being written. Stop it first, or wait until it is complete."
MOVED = "Another tab or device has added messages to this conversation. Reload the page."

T = TypeVar("T")

#: Exchanges of a window by default.
WINDOW = 40

#: State of an answer. `withdrawn`: the user stopped it before any of it was shown; it is kept only
#: beside alternatives. `interrupted`: its Halt process stopped or died.
State = Literal["running", "done", "stopped", "withdrawn", "error", "interrupted"]


class UnknownConversation(HaltError):
    """The conversation or message does not exist, or belongs to another person."""

    code = "unknown_conversation"
    status = 404


class UnknownFile(HaltError):
    """There is no such file of this person: it was removed, or it is another person's."""

    code = "unknown_file"
    status = 404


class Busy(HaltError):
    """An answer is being written in this conversation already."""

    code = "busy"
    status = 409


class Moved(HaltError):
    """The conversation's last prompt is not the one that the client has named."""

    code = "conversation_moved"
    status = 409


@dataclass(frozen=True)
class Versions:
    """A message and its siblings, oldest first, for the page's version switcher."""

    ids: tuple[int, ...] = ()  # message IDs; `Turns.show` shows one of them
    shown_id: int = 0  # of the one that is shown

    @property
    def number(self) -> int:
        """Position of the shown version, from 1; 0 if there are no versions."""
        return self.ids.index(self.shown_id) + 1 if self.shown_id in self.ids else 0

    @property
    def earlier(self) -> int | None:
        """The ID of the version before the shown one."""
        return self.ids[self.number - 2] if self.number > 1 else None

    @property
    def later(self) -> int | None:
        """The ID of the version after the shown one."""
        return self.ids[self.number] if 0 < self.number < len(self.ids) else None


@dataclass(frozen=True)
class Usage:
    """Token counts; unknown ones count as 0."""

    prompt_tokens: int = 0  # as providers report them, never estimated
    completion_tokens: int = 0
    estimated: bool = False  # some of the completion tokens are estimated


@dataclass(frozen=True)
class Settings:
    """A conversation's settings for answers. None, or "" for the model: the server's default."""

    model: str = ""  # the model that was selected last
    system_prompt: str | None = None
    prompt_name: str | None = None  # of the named prompt that `system_prompt` is a copy of
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class NamedPrompt:
    """A system prompt with a name."""

    name: str
    content: str


@dataclass(frozen=True)
class Preset:
    """Sampling settings with a name. None: the model's default."""

    name: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file of a person."""

    hash: str  # SHA-256 of the content, hexadecimal
    facts: Facts
    sizes: Mapping[Role, int]  # bytes


@dataclass(frozen=True)
class Attachment:
    """A file of a message, under the name that it has there."""

    name: str
    file: StoredFile


@dataclass(frozen=True)
class Exchange:
    """A prompt and the answer that is shown. `ended` is None while the stream runs.

    `previous` is the version before this one, set while that one may have to be shown instead (see
    `stands`).
    """

    prompt: str
    stream_id: str  # of the generation that writes the answer, or wrote to it last
    answer: str = ""  # while the stream runs: "", or the text before a Continue
    model: str = ""  # the model that answered, as it names itself
    ended: Terminal | None = None
    previous: Exchange | None = None
    steps: tuple[Step, ...] = ()  # shown to the user, never sent to the model
    requested_model: str = ""  # "" for the default model
    alternatives: tuple[Exchange, ...] = ()  # answers of other models to the same prompt
    selected: bool = False  # the user selected this answer among its alternatives
    prompt_id: int = 0  # the messages' IDs
    answer_id: int = 0
    prompts: Versions = field(default_factory=Versions)  # of the prompt: edits
    versions: Versions = field(default_factory=Versions)  # of the answer: regenerations
    state: State = "running"
    usage: Usage = field(default_factory=Usage)  # of the answer, all its generations together
    is_edited: bool = False  # the user wrote this answer: a version that no generation wrote
    files: tuple[Attachment, ...] = ()  # of the prompt
    images: tuple[Attachment, ...] = ()  # of the answer, which its text refers to

    @property
    def prefix(self) -> str:
        """The text to which a running Continue appends; "" otherwise."""
        return self.answer if self.ended is None else ""

    @property
    def candidates(self) -> tuple[Exchange, ...]:
        """This answer and its alternatives."""
        return (self, *self.alternatives)

    @property
    def is_running(self) -> bool:
        """Whether this answer or an alternative is being written."""
        return any(exchange.ended is None for exchange in self.candidates)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the user stopped it before any of it was shown."""
        return self._state_now == "withdrawn"

    @property
    def _state_now(self) -> State:
        """Its state, also while its end is not in the store yet."""
        ended = self.ended
        return "running" if ended is None else state_of(ended, self.answer, self.steps)

    def answer_for_model(self) -> Exchange:
        """The answer that later requests send to the model.

        Of alternatives: the selected one, or the first one with text. Otherwise: this answer while
        it is being written, then `shown_version`.
        """
        if self.selected or not self.alternatives:
            return self if self.ended is None else self.shown_version()
        return next((exchange for exchange in self.candidates if exchange.answer), self)

    def shown_version(self) -> Exchange:
        """This answer, or the version before it if that one is shown instead (see `stands`)."""
        if self.previous is None:
            return self
        return self if stands(self._state_now, self.answer, self.steps) else self.previous


@dataclass(frozen=True)
class Conversation:
    """A conversation of one session, and a window of its exchanges, oldest first."""

    id: str
    owner: str
    exchanges: tuple[Exchange, ...] = ()
    title: str = ""
    settings: Settings = field(default_factory=Settings)
    has_earlier: bool = False  # more exchanges come before `first`, the window's first prompt
    has_later: bool = False  # and after `last`
    usage: Usage = field(default_factory=Usage)  # of all answers ever generated in it
    created_at: float = 0.0  # seconds since 1970
    updated_at: float = 0.0
    is_named: bool = False  # the title is from the user or a model, not the first words
    is_pinned: bool = False
    is_archived: bool = False

    @property
    def first(self) -> int | None:
        """`before=first` gives the window before this one."""
        return self.exchanges[0].prompt_id if self.exchanges else None

    @property
    def last(self) -> int | None:
        """`after=last` gives the window after this one."""
        return self.exchanges[-1].prompt_id if self.exchanges else None


@dataclass(frozen=True)
class Summary:
    """A conversation in the list of conversations."""

    id: str
    title: str
    updated_at: float  # seconds since 1970
    is_running: bool = False  # an answer is being written in it
    is_pinned: bool = False
    is_archived: bool = False


@dataclass(frozen=True)
class Hit:
    """A message that matches a search."""

    conversation_id: str
    title: str
    message_id: int
    role: Literal["user", "assistant"]
    snippet: tuple[tuple[str, bool], ...]  # pieces of its text; True: it matches
    created_at: float  # seconds since 1970
    is_archived: bool = False  # the conversation is in the archive


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a long list. `cursor` requests the next page; None: this is the last one."""

    items: tuple[T, ...] = ()
    cursor: str | None = None


def state_of(ended: Terminal, answer: str, steps: Sequence[Step]) -> State:
    """The state of an answer after this end, with the text and steps that were shown.

    An answer that the model's server cut off, or without any text and steps, has failed.
    """
    if isinstance(ended, Done):
        empty = not steps and (not answer or answer.isspace()) and is_good(ended.finish_reason)
        return "error" if empty or unusual_end_note(ended.finish_reason) else "done"
    if isinstance(ended, Cancelled):  # without a Stop no user is there to get the prompt back
        return "withdrawn" if ended.reason == "stop" and not (answer or steps) else "stopped"
    return "interrupted" if ended.error.code == "interrupted" else "error"


def stands(state: State, text: object, steps: object) -> bool:
    """Whether an answer is shown itself; otherwise the version with text before it is shown.

    True for an answer with text, and for one that was stopped during its thoughts or tool calls.
    """
    return bool(text or (state == "stopped" and steps))
