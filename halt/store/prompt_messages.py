"""What a model is told of a conversation: its prompts and answers as messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from halt.core.notes import BROKEN, STOPPED, are_discussed, before_prompt, without_notes
from halt.core.request import Message
from halt.rendering import data_urls
from halt.store.models import Exchange, State, state_of

#: What the user's next message says of an answer in this state.
_NOTES: dict[State, str] = {"stopped": STOPPED, "error": BROKEN, "interrupted": BROKEN}


def path_messages(path: Iterable[tuple[str, State, str]], system_prompt: str = "") -> list[Message]:
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
                out.append(Message("assistant", data_urls.replace_for_model(told)))
                note = _NOTES.get(state, "")
            continue
        told, note = before_prompt(note, text) if note else text, ""
        if out and out[-1].role == "user":
            told = f"{out.pop().content}\n\n{told}"
        out.append(Message("user", told))
    return out


def exchange_messages(exchanges: Iterable[Exchange], system_prompt: str = "") -> list[Message]:
    """What a model is told of exchanges that are in no store."""

    def path() -> Iterator[tuple[str, State, str]]:
        for each in exchanges:
            yield "user", "done", each.prompt
            best = each.answer_for_model()
            if best.ended is not None:
                state = state_of(best.ended, best.answer, best.steps)
                yield "assistant", state, best.answer

    return path_messages(path(), system_prompt)
