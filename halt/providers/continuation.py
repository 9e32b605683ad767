"""Continues an unfinished answer: builds the request, and joins the new text to the old one.

    by prefix        the last message is the answer so far, and the server makes the model continue
                     that message
    by instruction   the answer so far is an ordinary message, and a user message tells the model to
                     continue it, beginning with a repeat of its last words

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

#: How a server is made to continue. All but `instruction` are by prefix, with an assistant message
#: at the end: trailing, as it is; switched, with vLLM's two switches; flagged, with the field
#: `prefix`; echoed, the same, but the answer begins with the prefix again.
ContinuationMode = Literal["trailing", "switched", "flagged", "echoed", "instruction"]

#: Services that require the field `prefix`.
HOSTS: dict[str, ContinuationMode] = {
    "api.mistral.ai": "echoed",
    "codestral.mistral.ai": "echoed",
    "api.deepseek.com": "flagged",
}

#: `owned_by` in a server's list of models -> how it continues a message.
MODES_BY_OWNED_BY: dict[str, ContinuationMode] = {"llamacpp": "trailing", "vllm": "switched"}

#: A model must not start to reason in the middle of its answer, and servers refuse a prefix if it
#: would. Chat templates without this switch ignore it.
REASONING_OFF = {"chat_template_kwargs": {"enable_thinking": False}}
CONTINUE_LAST_MESSAGE = {"continue_final_message": True, "add_generation_prompt": False}

INSTRUCTION = """\
Your last message broke off. Go on with it exactly where it ends, in the same language, style and \
format, so that both are one text without a seam.
Begin with a repeat, character for character, of its last words, which are:

{tail}

and go on from there at once, also within a word, a line, a list, a table or a block of code. \
Write no introduction, no comment, no quotation marks and no new code fence; repeat nothing else."""


def continuation_request(request: ChatRequest, text: str) -> ChatRequest:
    """Return the request that continues the answer `text` to `request`.

    Raises RequestError if there is no text to continue.
    """
    if not text.strip():
        raise RequestError("There is no text to continue.", field="messages")
    message = Unfinished(text, data_urls.replace_for_model(text))
    return msgspec.structs.replace(request, messages=[*request.messages, message])


def unfinished_text(request: ChatRequest) -> str:
    """Return the unfinished answer as the model gets it; empty if the request continues none."""
    last = request.messages[-1]
    return last.model_text if isinstance(last, Unfinished) else ""


def by_prefix(request: ChatRequest) -> ChatRequest:
    """Return the request that ends with the unfinished answer as a prefix.

    White space at its end is removed: Anthropic refuses it, some templates drop it, and models
    write worse text after it. The ContinuationJoiner restores it.
    """
    message = Message("assistant", unfinished_text(request).rstrip())
    return msgspec.structs.replace(request, messages=[*request.messages[:-1], message])


def by_instruction(request: ChatRequest) -> ChatRequest:
    """Return the request that ends with an instruction to continue the unfinished answer."""
    text = unfinished_text(request).rstrip()
    instruction = INSTRUCTION.format(tail=last_words(text))
    messages = [Message("assistant", text), Message("user", instruction)]
    return msgspec.structs.replace(request, messages=[*request.messages[:-1], *messages])


def merge_unfinished(messages: list[Message]) -> list[Message]:
    """Return the messages, each unfinished one merged into the assistant message after it.

    Tool calls in a continuation make such a sequence.
    """
    merged: list[Message] = []
    for message in messages:
        previous = merged[-1] if merged else None
        if isinstance(previous, Unfinished) and message.role == "assistant":
            merged[-1] = _appended(previous.model_text, message)
        else:
            merged.append(message)
    return merged


def _appended(text: str, message: Message) -> Message:
    """Return the assistant's message with `text` before its content."""
    merged = copy.copy(message)
    merged["content"] = f"{text} {message.content or ''}".rstrip()
    if isinstance(merged, ToolTurn) and isinstance(merged.opaque, dict):
        merged.opaque = {k: v for k, v in merged.opaque.items() if k != "content"}
    return merged


class ContinuationReply:
    """A Reply whose text is joined to the unfinished answer, without repeats."""

    def __init__(self, reply: Reply, joiner: ContinuationJoiner) -> None:
        self._reply = reply
        self._joiner = joiner
        self._chunks = 0  # chunks whose text the joiner holds back
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
        # Text that the joiner holds back does not count: it may repeat the old text, and the joiner
        # limits it.
        is_counted = self._joiner.is_finished
        try:
            part = self._reply.read()
        except UpstreamError as fault:
            if not (rest := self._joiner.end()):
                raise
            self._fault = fault  # raised by the next read, after the text before it
            part = Part()
            events: list[Delta] = [Content(rest)]
        else:
            events = self._joined(part)
        arrived = part.arrived if is_counted else 0
        chunks = self._chunks + part.chunks
        self._chunks = 0 if events else chunks
        return Part(tuple(events), chunks if events else 0, part.ended, arrived)

    def _joined(self, part: Part) -> list[Delta]:
        """Return the events of a part, with the text that the joiner releases."""
        events: list[Delta] = []
        for event in part.events:
            if isinstance(event, Content):
                text = self._joiner.feed(event.content)
            elif isinstance(event, ReasoningEnd):  # only the text after it continues the old one
                text = self._joiner.end()
                self._joiner = self._joiner.fresh_copy()
            else:  # a tool call ends the text; reasoning and extra fields do not
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
