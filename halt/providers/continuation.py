"""Going on with an answer that broke off: how a model is asked to, and how both texts are joined.

    by prefix        the last message is the answer so far, and the server has the model go on in it
    by instruction   the answer so far is a message like others, and the model is told to go on with
                     it, beginning with a repeat of its last words

In both modes a `ContinuationJoiner` joins the two texts. A `ContinuationReply` yields only the new
text, so its reader needs no code for continuations.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import msgspec

from halt.core.events import Content, Delta, Extra, Reasoning, ReasoningEnd
from halt.core.request import ChatRequest, Message, Part, Reply, ToolTurn, Unfinished
from halt.errors import RequestError, UpstreamError
from halt.providers.continuation_joiner import ContinuationJoiner, last_words
from halt.rendering import data_urls

#: How a server is asked. All but the last are by prefix: a last message of the assistant's as it
#: is; that and vLLM's two switches; that, marked with `prefix`; the same, where the answer begins
#: with the prefix again.
ContinuationMode = Literal["trailing", "switched", "flagged", "echoed", "instruction"]

#: Services that want the mark.
HOSTS: dict[str, ContinuationMode] = {
    "api.mistral.ai": "echoed",
    "codestral.mistral.ai": "echoed",
    "api.deepseek.com": "flagged",
}

#: What a server calls itself in its list of models -> how it goes on with a message.
OWNERS: dict[str, ContinuationMode] = {"llamacpp": "trailing", "vllm": "switched"}

#: A model must not begin to think anew in the middle of its answer, and servers refuse a prefix
#: where it would. Templates that know no such switch pass it over.
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
SWITCHES = {"continue_final_message": True, "add_generation_prompt": False}

INSTRUCTION = """\
Your last message broke off. Go on with it exactly where it ends, in the same language, style and \
format, so that both are one text without a joiner.
Begin with a repeat, character for character, of its last words, which are:

{tail}

and go on from there at once, also within a word, a line, a list, a table or a block of code. \
Write no introduction, no comment, no quotation marks and no new code fence; repeat nothing else."""


def continuation_request(request: ChatRequest, text: str) -> ChatRequest:
    """The request that goes on with an answer to this one, whose text was shown so far.

    Raises RequestError where there is no text to go on from.
    """
    if not text.strip():
        raise RequestError("There is no text to go on from.", field="messages")
    message = Unfinished(text, data_urls.replace_for_model(text))
    return msgspec.structs.replace(request, messages=[*request.messages, message])


def unfinished_text(request: ChatRequest) -> str:
    """The text that this request goes on from, as its model is told it; empty: there is none."""
    last = request.messages[-1]
    return last.told if isinstance(last, Unfinished) else ""


def by_prefix(request: ChatRequest) -> ChatRequest:
    """The request whose last message is to be gone on with.

    White space at its end is left out: Anthropic refuses it, some templates drop it, and models
    write worse behind it than with it. The ContinuationJoiner puts both together.
    """
    message = Message("assistant", unfinished_text(request).rstrip())
    return msgspec.structs.replace(request, messages=[*request.messages[:-1], message])


def by_instruction(request: ChatRequest) -> ChatRequest:
    """The request that asks in words to go on with its last message."""
    text = unfinished_text(request).rstrip()
    told = [Message("assistant", text), Message("user", INSTRUCTION.format(tail=last_words(text)))]
    return msgspec.structs.replace(request, messages=[*request.messages[:-1], *told])


def merge_unfinished(messages: list[Message]) -> list[Message]:
    """The messages with each unfinished one as a part of the assistant's message that follows it.

    Tools that were called in a continuation make such a sequence.
    """
    out: list[Message] = []
    for message in messages:
        before = out[-1] if out else None
        if isinstance(before, Unfinished) and message.role == "assistant":
            out[-1] = _appended(before.told, message)
        else:
            out.append(message)
    return out


def _appended(text: str, message: Message) -> Message:
    """The assistant's message that goes on from this text."""
    whole = copy.copy(message)
    whole["content"] = f"{text} {message.content or ''}".rstrip()
    if isinstance(whole, ToolTurn) and isinstance(whole.opaque, dict):
        whole.opaque = {k: v for k, v in whole.opaque.items() if k != "content"}
    return whole


class ContinuationReply:
    """A Reply whose text goes on without a joiner behind the text that was there."""

    def __init__(self, reply: Reply, joiner: ContinuationJoiner) -> None:
        self._reply = reply
        self._joiner = joiner
        self._chunks = 0  # pieces whose text is held back
        self._fault: UpstreamError | None = None

    @property
    def model(self) -> str:
        return self._reply.model

    @property
    def finish_reason(self) -> str | None:
        return self._reply.finish_reason

    @property
    def usage(self) -> dict[str, Any] | None:
        return self._reply.usage

    @property
    def opaque(self) -> Any:
        return self._reply.opaque

    def fileno(self) -> int:
        return self._reply.fileno()

    def unblock(self) -> None:
        self._reply.unblock()

    @property
    def pending(self) -> bool:
        return self._fault is not None or self._reply.pending

    @property
    def complete(self) -> bool:
        return self._reply.complete

    def read(self) -> Part:
        if self._fault is not None:
            raise self._fault
        # What the joiner holds back has a limit of its own, and may be the old text once more.
        counts = self._joiner.is_through
        try:
            part = self._reply.read()
        except UpstreamError as fault:
            if not (rest := self._joiner.end()):
                raise
            self._fault = fault  # text that came before it is delivered first
            part = Part()
            events: list[Delta] = [Content(rest)]
        else:
            events = self._joined(part)
        arrived = part.arrived if counts else 0
        chunks = self._chunks + part.chunks
        self._chunks = 0 if events else chunks
        return Part(tuple(events), chunks if events else 0, part.ended, arrived)

    def _joined(self, part: Part) -> list[Delta]:
        """The events of a part, the text as the joiner lets it through."""
        events: list[Delta] = []
        for event in part.events:
            if isinstance(event, Content):
                text = self._joiner.feed(event.content)
            elif isinstance(event, ReasoningEnd):  # what goes on with the old text comes now
                text = self._joiner.end()
                self._joiner = self._joiner.fresh_copy()
            else:  # thoughts come before the text, fields anywhere, a call behind all of it
                text = "" if isinstance(event, Reasoning | Extra) else self._joiner.end()
            if text:
                events.append(Content(text))
            if not isinstance(event, Content):
                events.append(event)
        if part.ended and (rest := self._joiner.end()):
            events.append(Content(rest))
        return events

    def close(self) -> None:
        self._reply.close()
