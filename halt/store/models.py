"""What a conversation is, as its readers get it: frozen values, and the errors of its changes.

A conversation is a tree of messages. An edited prompt is a sibling of the prompt it was made from,
a regenerated answer a sibling of the answer before it, and so are the answers of several models to
one prompt. What is shown, and told to the model, is one path through the tree: each message knows
which of its successors the conversation goes on with.

The page sees the path as exchanges: a prompt with the answer that is shown, a window of them at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from halt.core.events import Cancelled, Done, Terminal
from halt.core.finish_reasons import broken_off, is_good
from halt.core.steps import Step
from halt.errors import HaltError

BUSY = "An answer is still being written. Stop it first, or wait until it is complete."
MOVED = "This conversation went on in another tab or on another device. Load the page anew."

T = TypeVar("T")

#: Exchanges of a window, where the reader does not say how many.
WINDOW = 40

#: State of an answer. `withdrawn`: stopped by its user before any of it was shown; kept only beside
#: answers of rivals. `interrupted`: its server went away, or died.
State = Literal["running", "done", "stopped", "withdrawn", "error", "interrupted"]


class UnknownConversation(HaltError):
    """No such conversation, or message in it, or one of another session."""

    code = "unknown_conversation"
    status = 404


class Busy(HaltError):
    """An answer is being written in this conversation already."""

    code = "busy"
    status = 409


class Moved(HaltError):
    """The conversation no longer ends where the one who goes on with it believes."""

    code = "conversation_moved"
    status = 409


@dataclass(frozen=True)
class Versions:
    """The siblings of a message, oldest first, itself among them: what a switcher offers."""

    ids: tuple[int, ...] = ()  # of messages; `Turns.show` goes to one
    shown_id: int = 0  # the one of them that is shown

    @property
    def number(self) -> int:
        """Place of the one that is shown, from 1; 0 where there are none."""
        return self.ids.index(self.shown_id) + 1 if self.shown_id in self.ids else 0

    @property
    def earlier(self) -> int | None:
        """The version before the one that is shown."""
        return self.ids[self.number - 2] if self.number > 1 else None

    @property
    def later(self) -> int | None:
        """The version after the one that is shown."""
        return self.ids[self.number] if 0 < self.number < len(self.ids) else None


@dataclass(frozen=True)
class Usage:
    """Tokens, as far as they are known."""

    prompt_tokens: int = 0  # as providers reported them; they are never estimated
    completion_tokens: int = 0
    estimated: bool = False  # some of the completion tokens were estimated


@dataclass(frozen=True)
class Settings:
    """How a conversation's answers are asked for. None, or "" for the model: the server's own."""

    model: str = ""  # the one chosen last
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Exchange:
    """A prompt and the answer to it that is shown. `ended` is None while the stream runs.

    `previous` is the version before this one, where this one does not stand for itself (yet).
    """

    prompt: str
    stream_id: str  # of the generation that writes the answer, or wrote last on it
    answer: str = ""  # while it is being written: "", or what a Continue goes on from
    model: str = ""  # the model that answered, as it names itself
    ended: Terminal | None = None
    previous: Exchange | None = None
    steps: tuple[Step, ...] = ()  # for the eye: never told to the model
    requested_model: str = ""  # the model that was chosen, "" for the default one
    alternatives: tuple[Exchange, ...] = ()  # answers of other models to the same prompt
    selected: bool = False  # the user selected this answer among its alternatives
    prompt_id: int = 0  # the messages' IDs
    answer_id: int = 0
    prompts: Versions = field(default_factory=Versions)  # of the prompt: edits
    versions: Versions = field(default_factory=Versions)  # of the answer: regenerations
    state: State = "running"
    usage: Usage = field(default_factory=Usage)  # of the answer, all its generations together

    @property
    def prefix(self) -> str:
        """The text from which a Continue that is running goes on."""
        return self.answer if self.ended is None else ""

    @property
    def candidates(self) -> tuple[Exchange, ...]:
        """This answer and its alternatives."""
        return (self, *self.alternatives)

    @property
    def running(self) -> bool:
        """An answer is being written."""
        return any(each.ended is None for each in self.candidates)

    @property
    def withdrawn(self) -> bool:
        """Its user stopped it before any of it was shown."""
        return self._state_now == "withdrawn"

    @property
    def _state_now(self) -> State:
        """Its state, also where the store does not know of its end yet."""
        ended = self.ended
        return "running" if ended is None else state_of(ended, self.answer, self.steps)

    def answer_for_model(self) -> Exchange:
        """The answer that the conversation goes on with: the first with text, or the picked one."""
        if self.selected or not self.alternatives:
            return self if self.ended is None else self.best()
        return next((each for each in self.candidates if each.answer), self)

    def best(self) -> Exchange:
        """This answer; the version before it, where this one does not stand for itself."""
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
    usage: Usage = field(default_factory=Usage)  # of everything that was ever answered in it
    created_at: float = 0.0  # seconds since 1970
    updated_at: float = 0.0
    named: bool = False  # the title is the user's or the model's, not the first words

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
    """A conversation in the list."""

    id: str
    title: str
    updated_at: float  # seconds since 1970
    running: bool = False  # an answer is being written in it


@dataclass(frozen=True)
class Hit:
    """A message that a search has found."""

    conversation_id: str
    title: str
    message_id: int
    role: Literal["user", "assistant"]
    snippet: tuple[tuple[str, bool], ...]  # pieces of its text, and whether each was searched for
    created_at: float  # seconds since 1970


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a long list. `cursor`, given back, brings what follows; None: that was all."""

    items: tuple[T, ...] = ()
    cursor: str | None = None


def state_of(ended: Terminal, answer: str, steps: Sequence[Step]) -> State:
    """The state in which an answer is after this end, with what was shown of it.

    One that its model's server broke off, or that brought nothing at all, has failed.
    """
    if isinstance(ended, Done):
        nothing = not steps and (not answer or answer.isspace()) and is_good(ended.finish_reason)
        return "error" if nothing or broken_off(ended.finish_reason) else "done"
    if isinstance(ended, Cancelled):  # whoever was not there can't be given the prompt back
        return "withdrawn" if ended.reason == "stop" and not (answer or steps) else "stopped"
    return "interrupted" if ended.error.code == "interrupted" else "error"


def stands(state: State, text: object, steps: object) -> bool:
    """The answer is shown itself, and not the version with text before it.

    One with text; and one that was stopped when there were thoughts or tool calls alone.
    """
    return bool(text or (state == "stopped" and steps))
