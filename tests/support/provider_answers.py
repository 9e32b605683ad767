"""Requests to a provider, their answers, and the checks that the provider tests share."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from halt.clock import now
from halt.core.connection import NoData, UpstreamConnection
from halt.core.events import Delta
from halt.core.request import ChatRequest, Message, Reply, Upstream
from halt.errors import CODES, OVERLOADED, UpstreamError
from tests.support.waiting import WAIT_TIMEOUT

KEY = "sk-hush-0123456789abcdef"
HI = [Message("user", "hi")]


@dataclass
class Answer:
    """The outcome of a request."""

    text: str = ""
    events: list[Delta] = field(default_factory=list)
    chunks: int = 0
    ended: bool = False
    fault: UpstreamError | None = None
    reply: Reply | None = None


def read(reply: Reply) -> Answer:
    """Read a reply to its end or its fault."""
    answer = Answer(reply=reply)
    try:
        while not answer.ended:
            with suppress(NoData):
                part = reply.read()
                answer.text += part.text
                answer.events += part.events
                answer.chunks += part.chunks
                answer.ended = part.ended
        drain(reply)
    except UpstreamError as fault:
        answer.fault = fault
    finally:
        reply.close()
    return answer


def drain(reply: Reply) -> None:
    """Read the rest of a complete answer's framing, so that its connection can be reused."""
    deadline = now() + WAIT_TIMEOUT
    with suppress(UpstreamError):
        while not reply.complete and now() < deadline:
            with suppress(NoData):
                reply.read()


def request_answer(upstream: Upstream, model: str | None = None, **more: Any) -> Answer:
    request = ChatRequest(**{"messages": HI, "model": model} | more)
    try:
        reply = upstream.open(request, UpstreamConnection())
    except UpstreamError as fault:
        return Answer(fault=fault)
    return read(reply)


def refusal_of(outcome: Answer, code: str) -> UpstreamError:
    """Return the fault, which has this code and its documented sentence."""
    fault = outcome.fault
    assert fault is not None, outcome
    assert (fault.code, fault.retryable) == (code, CODES[code][1]), fault.detail
    assert fault.message.startswith((CODES[code][0], OVERLOADED))
    assert len(fault.message) < 600
    return fault
