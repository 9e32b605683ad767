"""Makes the messages of a request to a model out of a conversation's prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from halt.core.notes import BROKEN, EDITED, STOPPED, are_discussed, before_prompt, without_notes
from halt.core.request import Message
from halt.rendering import data_urls
from halt.store.models import Exchange, State, state_of

#: The note that the next prompt gets after an answer in this state.
_NOTES: dict[State, str] = {"stopped": STOPPED, "error": BROKEN, "interrupted": BROKEN}


class PathMessage(NamedTuple):
    """A message on the path of a conversation."""

    role: str
    state: State
    text: str
    is_edited: bool = False  # the user wrote this answer


def path_messages(path: Iterable[PathMessage], system_prompt: str = "") -> list[Message]:
    """The messages for a path.

    A picture in an answer is replaced by a word. Two prompts in a row (the answer between them has
    failed) become one message, because many models require alternating roles. The prompt after an
    incomplete or edited answer starts with a note about that.
    """
    turns = list(path)
    keeps_notes = are_discussed(turn.text for turn in turns if turn.role == "user")
    out = [Message("system", system_prompt)] if system_prompt else []
    note = ""
    for role, state, text, is_edited in turns:
        if role == "assistant":
            keeps_text = keeps_notes or is_edited or state == "running"
            content = text if keeps_text else without_notes(text)
            if content:
                out.append(Message("assistant", data_urls.replace_for_model(content)))
                note = EDITED if is_edited else _NOTES.get(state, "")
            continue
        content, note = before_prompt(note, text) if note else text, ""
        if out and out[-1].role == "user":
            content = f"{out.pop().content}\n\n{content}"
        out.append(Message("user", content))
    return out


def exchange_messages(exchanges: Iterable[Exchange], system_prompt: str = "") -> list[Message]:
    """The messages for exchanges that are in no store."""

    def path() -> Iterator[PathMessage]:
        for exchange in exchanges:
            yield PathMessage("user", "done", exchange.prompt)
            answer = exchange.answer_for_model()
            if answer.ended is not None:
                state = state_of(answer.ended, answer.answer, answer.steps)
                yield PathMessage("assistant", state, answer.answer, answer.is_edited)

    return path_messages(path(), system_prompt)
