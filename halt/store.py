"""Conversations, in this process's memory: bounded, the least recently used go first.

A conversation is a list of exchanges: a prompt with its answer, or with the answers of several
models, of which the conversation goes on with the first until another is picked. The answer of a
stream that runs is in its log; it is written here when the stream ends, cut to what the one who
stopped it had seen.

One lock protects everything; it is held for table work only. What is handed out is a copy.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from halt.chat import Message
from halt.errors import HaltError, StreamInUse
from halt.events import Cancelled, Done, Failed, Terminal
from halt.folds import Fold

STOPPED_NOTE = "[The user stopped this answer here.]"
BROKEN_NOTE = "[This answer broke off here.]"
BUSY = "An answer is being written. Stop it first, or wait for its end."
EXCHANGE_OVERHEAD = 2_000  # bytes of an exchange beside its texts


class UnknownConversation(HaltError):
    """No such conversation, or one of another session."""

    code = "unknown_conversation"
    status = 404


class Busy(HaltError):
    """An answer is being written in this conversation already."""

    code = "busy"
    status = 409


@dataclass(frozen=True)
class Exchange:
    """A prompt and its answer. `ended` is None while the stream runs.

    `previous` is the answer that this one is to replace, kept until there is something better.
    """

    prompt: str
    stream_id: str
    answer: str = ""
    model: str = ""
    ended: Terminal | None = None
    previous: Exchange | None = None
    folds: tuple[Fold, ...] = ()  # for the eye: never told to the model
    asked: str = ""  # the model that was chosen, "" for the default one
    rivals: tuple[Exchange, ...] = ()  # answers of other models to the same prompt
    picked: bool = False  # this answer was chosen among its rivals

    def size(self) -> int:
        """Bytes of memory, roughly."""
        folded = sum(EXCHANGE_OVERHEAD + 2 * fold.size() for fold in self.folds)
        own = EXCHANGE_OVERHEAD + 2 * (len(self.prompt) + len(self.answer)) + folded
        return own + sum(each.size() for each in self.rivals)

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
        """It was stopped before it brought any text."""
        return isinstance(self.ended, Cancelled) and not self.answer

    def told(self) -> Exchange:
        """The answer that the conversation goes on with: the first with text, or the picked one."""
        if self.picked or not self.rivals:
            return self if self.ended is None else self.best()
        return next((each for each in self.candidates if each.answer), self)

    def with_candidate(self, new: Exchange) -> Exchange:
        """This exchange with one of its answers replaced, the one of the same stream."""
        if new.stream_id == self.stream_id:
            return new
        rivals = tuple(new if each.stream_id == new.stream_id else each for each in self.rivals)
        return replace(self, rivals=rivals)

    def best(self) -> Exchange:
        """This answer; the one it was to replace, where this one brought no text."""
        return self if self.answer or self.previous is None else self.previous


@dataclass
class Conversation:
    """What was said so far in one conversation of one session."""

    id: str
    owner: str
    exchanges: list[Exchange] = field(default_factory=list)
    model: str = ""  # the one chosen last, "" for the default one

    def size(self) -> int:
        """Bytes of memory, roughly."""
        return EXCHANGE_OVERHEAD + sum(each.size() for each in self.exchanges)

    def messages(self, system_prompt: str) -> list[Message]:
        """What the model is told: everything that was seen, stopped answers marked as such.

        Two prompts in a row (the answer between them failed) go as one message, because many models
        insist on turns.
        """
        out = [Message("system", system_prompt)] if system_prompt else []
        for exchange in self.exchanges:
            last = out[-1] if out else None
            if last is not None and last.role == "user" and isinstance(last.content, str):
                out[-1] = Message("user", f"{last.content}\n\n{exchange.prompt}")
            else:
                out.append(Message("user", exchange.prompt))
            best = exchange.told()
            answer = best.answer
            if not answer:
                continue
            if isinstance(best.ended, Cancelled):
                answer = f"{answer}\n\n{STOPPED_NOTE}"
            elif isinstance(best.ended, Failed):
                answer = f"{answer}\n\n{BROKEN_NOTE}"
            out.append(Message("assistant", answer))
        return out


class MemoryStore:
    """All conversations of this process."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        self._size = 0

    def get(self, conversation_id: str, owner: str) -> Conversation:
        """A copy. Raises UnknownConversation."""
        with self._lock:
            return self._copy(self._find(conversation_id, owner))

    def begin(
        self,
        conversation_id: str,
        owner: str,
        prompt: str,
        stream_id: str,
        model: str = "",
        rivals: Sequence[tuple[str, str]] = (),
    ) -> Conversation:
        """Add a prompt whose answer will come from `stream_id`; makes the conversation if needed.

        `rivals` are further streams, each with its model, that answer the same prompt.
        Raises Busy while another answer is being written, UnknownConversation for another owner's.
        """
        with self._lock:
            found = self._conversations.get(conversation_id)
            if found is None:
                found = Conversation(conversation_id, owner)
            elif found.owner != owner:
                raise UnknownConversation("There is no such conversation.")
            self._refuse(found, stream_id, *(each for each, _ in rivals))
            others = tuple(Exchange(prompt, each, asked=name) for each, name in rivals)
            found.exchanges.append(Exchange(prompt, stream_id, asked=model, rivals=others))
            found.model = model
            self._conversations[conversation_id] = found
            self._weigh(found)
            return self._copy(found)

    def again(
        self, conversation_id: str, owner: str, stream_id: str, model: str = ""
    ) -> Conversation:
        """Ask the last prompt once more, its answer to come from `stream_id`.

        Raises Busy, UnknownConversation (also when there is no prompt).
        """
        with self._lock:
            found = self._find(conversation_id, owner)
            self._refuse(found, stream_id)
            if not found.exchanges:
                raise UnknownConversation("There is nothing to answer again.")
            last = found.exchanges[-1]
            found.exchanges[-1] = Exchange(
                last.prompt,
                stream_id,
                previous=last.best(),
                asked=model,
                rivals=last.rivals,
                picked=bool(last.rivals),
            )
            found.model = model
            self._weigh(found)
            return self._copy(found)

    def finish(
        self,
        conversation_id: str,
        stream_id: str,
        answer: str,
        model: str,
        ended: Terminal,
        folds: tuple[Fold, ...] = (),
    ) -> None:
        """Write down how an answer ended. One that was stopped before any text is taken back."""
        with self._lock:
            found, index = self._locate(conversation_id, stream_id)
            if found is None:
                return
            exchange = found.exchanges[index]
            (asked,) = (each for each in exchange.candidates if each.stream_id == stream_id)
            new = replace(
                asked,
                answer=answer,
                model=model,
                ended=ended,
                folds=folds,
                previous=None if answer or isinstance(ended, Done) else asked.previous,
            )
            exchange = exchange.with_candidate(new)
            if new.withdrawn and (new.previous or all(e.withdrawn for e in exchange.candidates)):
                found.exchanges[index : index + 1] = [new.previous] if new.previous else []
            else:
                found.exchanges[index] = exchange
            self._weigh(found)

    def pick(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Go on with this answer of the last prompt's, and with its model.

        Raises UnknownConversation, Busy.
        """
        with self._lock:
            found = self._find(conversation_id, owner)
            last = found.exchanges[-1] if found.exchanges else None
            chosen = [e for e in last.candidates if e.stream_id == stream_id] if last else []
            if last is None or not chosen or not last.rivals:
                raise UnknownConversation("There is no such answer to go on with.")
            if last.running:
                raise Busy(BUSY)
            rivals = tuple(
                replace(each, rivals=(), picked=False)
                for each in last.candidates
                if each is not chosen[0]
            )
            found.exchanges[-1] = replace(chosen[0], rivals=rivals, picked=True)
            found.model = chosen[0].asked
            return self._copy(found)

    def take_back(self, conversation_id: str, stream_id: str) -> None:
        """As if this stream had never been asked for: an answer that it replaced is there again."""
        with self._lock:
            found, index = self._locate(conversation_id, stream_id)
            if found is not None:
                previous = found.exchanges[index].previous
                found.exchanges[index : index + 1] = [previous] if previous else []
                self._weigh(found)

    def _locate(self, conversation_id: str, stream_id: str) -> tuple[Conversation | None, int]:
        found = self._conversations.get(conversation_id)
        for index, exchange in enumerate(found.exchanges if found else ()):
            if any(each.stream_id == stream_id for each in exchange.candidates):
                return found, index
        return None, 0

    def _find(self, conversation_id: str, owner: str) -> Conversation:
        found = self._conversations.get(conversation_id)
        if found is None or found.owner != owner:
            raise UnknownConversation(
                "There is no such conversation here. A restart of the server forgets them."
            )
        self._conversations.move_to_end(conversation_id)
        return found

    @staticmethod
    def _refuse(conversation: Conversation, *stream_ids: str) -> None:
        used = {each.stream_id for x in conversation.exchanges for each in x.candidates}
        for stream_id in stream_ids:
            if stream_id in used:
                raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")
            used.add(stream_id)
        if conversation.exchanges and conversation.exchanges[-1].running:
            raise Busy(BUSY)

    @staticmethod
    def _copy(conversation: Conversation) -> Conversation:
        return replace(conversation, exchanges=list(conversation.exchanges))

    def _weigh(self, conversation: Conversation) -> None:
        size = conversation.size()
        self._size += size - self._sizes.get(conversation.id, 0)
        self._sizes[conversation.id] = size
        self._conversations.move_to_end(conversation.id)
        while self._size > self._max_bytes and len(self._conversations) > 1:
            old, _ = self._conversations.popitem(last=False)
            self._size -= self._sizes.pop(old)
