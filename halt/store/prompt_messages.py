"""Makes the messages of a request to a model out of a conversation's prompts and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from halt.core.events import Failed, Terminal
from halt.core.notes import BROKEN, EDITED, STOPPED, are_discussed, before_prompt, without_notes
from halt.core.request import Message
from halt.rendering import data_urls
from halt.store.models import Attachment, Exchange, State, state_of

#: The note that the next prompt gets after an answer in this state.
_NOTES: dict[State, str] = {"stopped": STOPPED, "error": BROKEN, "interrupted": BROKEN}


#: A message's content: text, or parts in OpenAI's form.
Contents = str | list[dict[str, Any]]
#: Makes the content of a prompt with files.
WithFiles = Callable[[str, tuple[Attachment, ...]], Contents]


class PathMessage(NamedTuple):
    """A message on the path of a conversation."""

    role: str
    state: State
    text: str
    is_edited: bool = False  # the user wrote this answer
    files: tuple[Attachment, ...] = ()  # of a prompt
    requested_model: str = ""  # of an answer; "": the default one
    refused_images: bool = False  # its server refused the images of the prompt


class PromptPath(NamedTuple):
    """What the model gets of a conversation, before it is made into messages."""

    system_prompt: str | None  # of the conversation; None: the server's default
    turns: list[PathMessage]

    @property
    def has_files(self) -> bool:
        return any(turn.files for turn in self.turns)

    def images_refused_by(self, model: str) -> frozenset[str]:
        """The hashes of the images of earlier prompts that this model's server has refused."""
        return frozenset(
            attachment.file.hash
            for prompt, answer in pairwise(self.turns)
            if answer.refused_images and answer.requested_model == model
            for attachment in prompt.files
            if attachment.file.facts.kind == "image"
        )

    def messages(
        self, default_prompt: str = "", with_files: WithFiles | None = None
    ) -> list[Message]:
        """The messages: see `path_messages`. `default_prompt`: the server's system prompt."""
        system_prompt = default_prompt if self.system_prompt is None else self.system_prompt
        return path_messages(self.turns, system_prompt, with_files or names_of)


def refuses_images(ended: Terminal | None) -> bool:
    """Whether an answer ended because the model's server refused the images of the prompt."""
    return isinstance(ended, Failed) and ended.error.code == "images_refused"


def names_of(text: str, files: tuple[Attachment, ...]) -> str:
    """A prompt with the names of its files alone."""
    return "\n\n".join([*(f"[file: {file.name}]" for file in files), *([text] if text else [])])


def path_messages(
    path: Iterable[PathMessage], system_prompt: str = "", with_files: WithFiles = names_of
) -> list[Message]:
    """The messages for a path; `with_files` makes the contents of prompts with files.

    A picture in an answer is replaced by a word. Two prompts in a row (the answer between them has
    failed) become one message, because many models require alternating roles. The prompt after an
    incomplete or edited answer starts with a note about that.
    """
    turns = list(path)
    keeps_notes = are_discussed(turn.text for turn in turns if turn.role == "user")
    out = [Message("system", system_prompt)] if system_prompt else []
    note = ""
    for turn in turns:
        text = turn.text
        if turn.role == "assistant":
            keeps_text = keeps_notes or turn.is_edited or turn.state == "running"
            content = text if keeps_text else without_notes(text)
            if content:
                out.append(Message("assistant", data_urls.replace_for_model(content)))
                note = EDITED if turn.is_edited else _NOTES.get(turn.state, "")
            continue
        prompt, note = before_prompt(note, text) if note else text, ""
        contents = with_files(prompt, turn.files) if turn.files else prompt
        if out and out[-1].role == "user":
            contents = _joined(out.pop().content, contents)
        out.append(Message("user", contents))
    return out


def _joined(first: Contents, second: Contents) -> Contents:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(contents: Contents) -> list[dict[str, Any]]:
    return [{"type": "text", "text": contents}] if isinstance(contents, str) else contents


def exchange_path(exchanges: Iterable[Exchange]) -> Iterator[PathMessage]:
    """The path of exchanges that are in no store."""
    for exchange in exchanges:
        yield PathMessage("user", "done", exchange.prompt, files=exchange.files)
        answer = exchange.answer_for_model()
        if answer.ended is not None:
            state = state_of(answer.ended, answer.answer, answer.steps)
            yield PathMessage("assistant", state, answer.answer, answer.is_edited)
