"""Conversations, in this process's memory: bounded, the least recently used go first.

A conversation is a list of exchanges, a prompt with its answer. The answer of a stream that runs is
in its log; it is written here when the stream ends, cut to what the one who stopped it had seen.

One lock protects everything; it is held for table work only. What is handed out is a copy.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from halt.chat import Message
from halt.errors import HaltError, StreamInUse
from halt.events import Cancelled, Failed, Terminal
from halt.folds import Fold

STOPPED_NOTE = "[The user stopped this answer here.]"
BROKEN_NOTE = "[This answer broke off here.]"
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

    def size(self) -> int:
        """Bytes of memory, roughly."""
        folded = sum(EXCHANGE_OVERHEAD + 2 * fold.size() for fold in self.folds)
        return EXCHANGE_OVERHEAD + 2 * (len(self.prompt) + len(self.answer)) + folded

    def best(self) -> Exchange:
        """This answer; the one it was to replace, where this one brought no text."""
        return self if self.answer or self.previous is None else self.previous


@dataclass
class Conversation:
    """What was said so far in one conversation of one session."""

    id: str
    owner: str
    exchanges: list[Exchange] = field(default_factory=list)

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
            best = exchange if exchange.ended is None else exchange.best()
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

    def begin(self, conversation_id: str, owner: str, prompt: str, stream_id: str) -> Conversation:
        """Add a prompt whose answer will come from `stream_id`; makes the conversation if needed.

        Raises Busy while another answer is being written, UnknownConversation for another owner's.
        """
        with self._lock:
            found = self._conversations.get(conversation_id)
            if found is None:
                found = Conversation(conversation_id, owner)
            elif found.owner != owner:
                raise UnknownConversation("There is no such conversation.")
            self._refuse(found, stream_id)
            found.exchanges.append(Exchange(prompt, stream_id))
            self._conversations[conversation_id] = found
            self._weigh(found)
            return self._copy(found)

    def again(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Ask the last prompt once more, its answer to come from `stream_id`.

        Raises Busy, UnknownConversation (also when there is no prompt).
        """
        with self._lock:
            found = self._find(conversation_id, owner)
            self._refuse(found, stream_id)
            if not found.exchanges:
                raise UnknownConversation("There is nothing to answer again.")
            last = found.exchanges[-1]
            found.exchanges[-1] = Exchange(last.prompt, stream_id, previous=last.best())
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
        if isinstance(ended, Cancelled) and not answer:
            self.take_back(conversation_id, stream_id)
            return
        with self._lock:
            found, index = self._locate(conversation_id, stream_id)
            if found is not None:
                asked = found.exchanges[index]
                found.exchanges[index] = replace(
                    asked,
                    answer=answer,
                    model=model,
                    ended=ended,
                    folds=folds,
                    previous=asked.previous if isinstance(ended, Failed) and not answer else None,
                )
                self._weigh(found)

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
            if exchange.stream_id == stream_id:
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
    def _refuse(conversation: Conversation, stream_id: str) -> None:
        if any(each.stream_id == stream_id for each in conversation.exchanges):
            raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")
        if conversation.exchanges and conversation.exchanges[-1].ended is None:
            raise Busy("An answer is being written. Stop it first, or wait for its end.")

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
