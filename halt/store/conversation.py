"""What a conversation is, and what a store of conversations does.

A conversation is a tree of messages. An edited prompt is a sibling of the prompt it was made from,
a regenerated answer a sibling of the answer before it, and so are the answers of several models to
one prompt. What is shown, and told to the model, is one path through the tree: each message knows
which of its successors the conversation goes on with.

The page sees the path as exchanges: a prompt with the answer that is shown, a window of them at a
time. Structure (`begin`, `again`, `show`, ...) is written at once, by the request that asks for it;
what a generation produces is written behind, in batches, by `write`. Everything handed out is a
frozen copy. Every method raises StoreUnavailable where the database can't be reached, is locked,
read-only or full; then nothing of what was asked for has happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from halt.core.events import Cancelled, Done, Event, Terminal
from halt.core.finish_reasons import broken_off, is_good
from halt.core.notes import BROKEN, STOPPED, are_discussed, before_prompt, without_notes
from halt.core.request import Message
from halt.core.steps import Fold
from halt.errors import HaltError
from halt.rendering import data_urls
from halt.store.portable import PortableConversation

BUSY = "An answer is being written. Stop it first, or wait for its end."
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

    ids: tuple[int, ...] = ()  # of messages; `Store.show` goes to one
    shown: int = 0  # the one of them that is shown

    @property
    def number(self) -> int:
        """Place of the one that is shown, from 1; 0 where there are none."""
        return self.ids.index(self.shown) + 1 if self.shown in self.ids else 0

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

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )


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
    folds: tuple[Fold, ...] = ()  # for the eye: never told to the model
    asked: str = ""  # the model that was chosen, "" for the default one
    rivals: tuple[Exchange, ...] = ()  # answers of other models to the same prompt
    picked: bool = False  # this answer was chosen among its rivals
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
        """This answer and its rivals."""
        return (self, *self.rivals)

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
        return "running" if ended is None else state_of(ended, self.answer, self.folds)

    def told(self) -> Exchange:
        """The answer that the conversation goes on with: the first with text, or the picked one."""
        if self.picked or not self.rivals:
            return self if self.ended is None else self.best()
        return next((each for each in self.candidates if each.answer), self)

    def best(self) -> Exchange:
        """This answer; the version before it, where this one does not stand for itself."""
        if self.previous is None:
            return self
        return self if stands(self._state_now, self.answer, self.folds) else self.previous


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
    def model(self) -> str:
        """The model chosen last, "" for the default one."""
        return self.settings.model

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


@dataclass(frozen=True)
class Begun:
    """A generation to be written down. Those of conversations are so already, by `begin`."""

    stream_id: str
    owner: str | None  # None: anyone who knows the ID may read it
    worker: str
    asked: str = ""  # the model that was chosen
    started_at: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Chunk:
    """Consecutive events of a generation. Times are milliseconds since it began."""

    stream_id: str
    first_seq: int
    events: Sequence[tuple[float, Event]]


@dataclass(frozen=True)
class Ended:
    """How a generation ended. The terminal event itself comes in the last `Chunk`, too."""

    stream_id: str
    ended: Terminal
    ended_at: float  # seconds since 1970
    last_seq: int
    answer: str = ""  # all of the message's text, cut to what was seen, with a Continue's prefix
    model: str = ""  # as it names itself
    folds: tuple[Fold, ...] = ()  # of this generation
    seen: int | None = None  # the last event that the one who stopped it had seen


@dataclass(frozen=True)
class Batch:
    """What all generations of a process have produced since the last one: written as one.

    `worker`: whose generations they are. One that the store has as another worker's is not written
    to. None: it is not looked at.
    """

    begun: tuple[Begun, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    ended: tuple[Ended, ...] = ()
    worker: str | None = None


@dataclass(frozen=True)
class Recorded:
    """A generation that has ended, with everything that it produced."""

    stream_id: str
    owner: str | None
    conversation_id: str | None
    message_id: int | None
    worker: str
    asked: str
    model: str
    state: State
    prefix: str  # the text from which it went on, where it was a Continue
    started_at: float  # seconds since 1970
    ended_at: float
    last_seq: int
    seen: int | None
    events: tuple[tuple[int, float, Event], ...]  # number, milliseconds since the start, event


class Store(Protocol):
    """Conversations and the logs of generations. Safe to use from any thread and process."""

    # -- reading

    def get(
        self,
        conversation_id: str,
        owner: str,
        *,
        around: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = WINDOW,
    ) -> Conversation:
        """The last `limit` exchanges; or those around, before or after a message of the path.

        A message that is not on the path (any more) counts as none given. Raises
        UnknownConversation.
        """

    def told(self, conversation_id: str, owner: str, system_prompt: str = "") -> list[Message]:
        """What the model is told: everything on the path, stopped and broken answers marked so.

        `system_prompt` is used where the conversation has none of its own. An answer that is
        continued comes last, as it is, without a mark. Raises UnknownConversation.
        """

    def summaries(
        self, owner: str, cursor: str | None = None, limit: int = WINDOW
    ) -> Page[Summary]:
        """The owner's conversations, the one used last first. Raises RequestError (`cursor`)."""

    def has_any(self) -> bool:
        """Whether any owner has a conversation that is not deleted."""

    def search(
        self, owner: str, query: str, cursor: str | None = None, limit: int = 20
    ) -> Page[Hit]:
        """Messages that hold all words of the query, or words beginning so; the newest first.

        No word, no hit; no character of the query has a meaning of its own. Raises RequestError.
        """

    def summary(self, conversation_id: str, owner: str) -> Summary:
        """A conversation's entry in the list. Raises UnknownConversation."""

    def totals(self, conversation_id: str, owner: str) -> Usage:
        """Tokens of everything that was answered in it. Raises UnknownConversation."""

    # -- asking

    def begin(
        self,
        conversation_id: str,
        owner: str,
        prompt: str,
        answers: Sequence[tuple[str, str]],
        *,
        worker: str,
        edit_of: int | None = None,
        after: int | None = None,
    ) -> Conversation:
        """Add a prompt at the end of the path; makes the conversation if needed.

        `answers` are the streams that will answer it, each with the model asked for. `edit_of`
        names a prompt of the conversation which this one is another version of. `after` names
        the prompt that is the path's last one as far as the asker knows, 0 where there is none.
        Returns the conversation with this exchange alone. Raises Busy while another answer is
        being written, Moved where `after` is wrong, StreamInUse, UnknownConversation for another
        owner's.
        """

    def again(
        self,
        conversation_id: str,
        owner: str,
        stream_id: str,
        model: str = "",
        *,
        worker: str,
        prompt_id: int | None = None,
    ) -> Conversation:
        """Answer a prompt once more, the last one where none is given; the path then ends there.

        Returns the conversation with this exchange alone. Raises Busy, StreamInUse,
        UnknownConversation (also when there is no prompt).
        """

    def extend(
        self, conversation_id: str, owner: str, answer_id: int, stream_id: str, *, worker: str
    ) -> Conversation:
        """Go on with the path's last answer, in the same message, by a new stream.

        The exchange's `prefix` is what there was. Returns the conversation with this exchange
        alone. Raises Busy, StreamInUse, UnknownConversation (also for an answer that is not the
        last one, or holds no text).
        """

    def take_back(self, conversation_id: str, stream_id: str) -> None:
        """As if this stream, which has not begun, had never been asked for, nor its rivals."""

    # -- moving

    def show(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        """Let the path lead through this message: another version of it, or one that was found.

        Returns the window around it. Raises Busy, UnknownConversation.
        """

    def pick(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Go on with this answer of the last prompt's, and with its model.

        Returns the conversation with this exchange alone. Raises UnknownConversation, Busy.
        """

    def discard(self, conversation_id: str, owner: str, answer_id: int) -> str | None:
        """Remove an answer that nothing follows.

        Another version is shown instead (None); where there is none the prompt goes too, and its
        text is returned. Raises Busy, UnknownConversation, RequestError.
        """

    # -- keeping

    def rename(self, conversation_id: str, owner: str, title: str) -> Summary:
        """Give it a title of the user's. Raises UnknownConversation, RequestError."""

    def is_listed(self, conversation_id: str) -> bool:
        """Whether there is such a conversation, whosever it is, and it has not been deleted."""

    def title_from_model(self, conversation_id: str, owner: str | None, title: str) -> bool:
        """Give it a title of the model's; False where the user has named or deleted it.

        None for the owner: whosever it is.
        """

    def set_settings(self, conversation_id: str, owner: str, settings: Settings) -> Conversation:
        """Settings of all further answers; makes the conversation if needed.

        Raises UnknownConversation for another owner's.
        """

    def delete(self, conversation_id: str, owner: str) -> list[str]:
        """It is gone, and can be brought back for a day. Raises UnknownConversation.

        Returns the streams that are still writing in it, and are to be stopped. A prompt whose
        answer has no text by then stays, other than in `write`.
        """

    def undelete(self, conversation_id: str, owner: str) -> Summary:
        """Bring it back. Raises UnknownConversation."""

    def export(
        self, owner: str, conversation_id: str | None = None
    ) -> Iterator[PortableConversation]:
        """One conversation, or all of the owner's, one at a time. Raises UnknownConversation."""

    def import_(self, owner: str, conversations: Iterable[PortableConversation]) -> list[str]:
        """Add exported conversations, all of them or none; returns their IDs.

        Those whose ID is taken get a new one. Raises RequestError.
        """

    # -- recording

    def write(self, batch: Batch) -> None:
        """Write down what generations produced, in one transaction.

        What is already there is not written twice, so a batch may be tried again. A generation
        that is not known, or that has ended, is passed over. An answer stopped before anything
        leaves no message, nor does its prompt where it has no other answer.
        """

    def count(self, stream_id: str, usage: Mapping[str, Any]) -> None:
        """What the provider has counted for a generation, told after its end; no estimate any more.

        A generation that is not known, or has not ended, is passed over.
        """

    def recorded(self, stream_id: str, requester: str | None) -> Recorded | None:
        """A generation that has ended, and may be read by the requester; None: there is none.

        Nor is there one when its events have gone, HALT_EVENTS_DAYS after its end.
        """

    def state(self, stream_id: str, requester: str | None) -> State | None:
        """How a generation is that the requester may read; None: there is none."""

    def exists(self, stream_id: str) -> bool:
        """Whether a generation has this ID, of whomever, running or ended."""

    def workers_running(self) -> dict[str, float]:
        """The workers that have generations which have not ended, and when the last of them began.

        In seconds since 1970.
        """

    def running_of(self, worker: str) -> list[str]:
        """Its generations that have not ended."""

    def interrupt(self, stream_id: str) -> bool:
        """End a generation whose worker is gone with what was written of it.

        True for the one caller who did; False where it had ended, or is not known.
        """

    def sweep(self, now: float) -> int:
        """Let go what is kept for a time only; `now` in seconds since 1970. Returns how much.

        Conversations a day after their deletion; events of finished generations, and generations
        of programs, after HALT_EVENTS_DAYS. Bounded work: call again while it returns some.
        """

    def close(self) -> None:
        """Close all connections to the database."""


def state_of(ended: Terminal, answer: str, folds: Sequence[Fold]) -> State:
    """The state in which an answer is after this end, with what was shown of it.

    One that its model's server broke off, or that brought nothing at all, has failed.
    """
    if isinstance(ended, Done):
        nothing = not folds and (not answer or answer.isspace()) and is_good(ended.finish_reason)
        return "error" if nothing or broken_off(ended.finish_reason) else "done"
    if isinstance(ended, Cancelled):  # whoever was not there can't be given the prompt back
        return "withdrawn" if ended.reason == "stop" and not (answer or folds) else "stopped"
    return "interrupted" if ended.error.code == "interrupted" else "error"


def stands(state: State, text: object, folds: object) -> bool:
    """The answer is shown itself, and not the version with text before it.

    One with text; and one that was stopped when there were thoughts or tool calls alone.
    """
    return bool(text or (state == "stopped" and folds))


#: What the user's next message says of an answer in this state.
_NOTES: dict[State, str] = {"stopped": STOPPED, "error": BROKEN, "interrupted": BROKEN}


def as_told(path: Iterable[tuple[str, State, str]], system_prompt: str = "") -> list[Message]:
    """A path's (role, state, text) as messages.

    A word stands for a picture in an answer. Two prompts in a row (the answer between them failed)
    go as one message, because many models insist on turns. That an answer is not whole is said in
    the prompt behind it.
    """
    said = list(path)
    discussed = are_discussed(text for role, _, text in said if role == "user")
    out = [Message("system", system_prompt)] if system_prompt else []
    note = ""
    for role, state, text in said:
        if role == "assistant":
            told = text if discussed or state == "running" else without_notes(text)
            if told:
                out.append(Message("assistant", data_urls.told(told)))
                note = _NOTES.get(state, "")
            continue
        told, note = before_prompt(note, text) if note else text, ""
        if out and out[-1].role == "user":
            told = f"{out.pop().content}\n\n{told}"
        out.append(Message("user", told))
    return out


def exchanges_told(exchanges: Iterable[Exchange], system_prompt: str = "") -> list[Message]:
    """What a model is told of exchanges that are in no store."""

    def path() -> Iterator[tuple[str, State, str]]:
        for each in exchanges:
            yield "user", "done", each.prompt
            best = each.told()
            if best.ended is not None:
                state = state_of(best.ended, best.answer, best.folds)
                yield "assistant", state, best.answer

    return as_told(path(), system_prompt)
