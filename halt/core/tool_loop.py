"""Rounds of tools: the model's calls are run here, and it is asked again with the results.

A run begins a round when all of a reply has come, and a round ends with the next request. What is
needed of a toolbox is named here; `halt.core.tools` has one of Python functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from halt.core.events import ToolCall, ToolResult
from halt.core.intake import Intake
from halt.core.live import LiveGeneration
from halt.core.request import Message, Reply, ToolSpec
from halt.errors import UpstreamError


class Round(Protocol):
    """The calls of one answer, under way together."""

    def results(self) -> Iterator[ToolResult]:
        """Start the calls; each result as it comes. Ends early on `abort`, also one before it."""

    def messages(self, said: str, opaque: Any) -> list[Message]:
        """What the model is told of the round: its own message, then the results so far.

        `said` is its text in the round, `opaque` what its provider wants back.
        """

    def abort(self) -> None:
        """Tell all calls to stop, and wait for none. Harmless when repeated."""


class Tools(Protocol):
    """Tools that a model may call."""

    @property
    def specs(self) -> list[ToolSpec]:
        """What a model is told of them."""

    def round(self, calls: list[ToolCall]) -> Round:
        """The calls of one answer, not begun yet."""


class ToolLoop:
    """The rounds of one run. The thread that has the run calls `run`, any thread `abort`."""

    def __init__(
        self, live: LiveGeneration, intake: Intake, tools: Tools | None, rounds: int
    ) -> None:
        self._live = live
        self._intake = intake
        self._tools = tools
        self._most = self._left = rounds
        self._reply: Reply | None = None  # it has brought calls, which are to be run next
        self._round: Round | None = None  # while tools run

    @property
    def is_due(self) -> bool:
        """All calls have come: the next thing is to run them."""
        return self._reply is not None

    @property
    def is_running(self) -> bool:
        return self._round is not None

    def expect(self, reply: Reply) -> None:
        """By the relay: all of a reply with calls has come, and it is closed."""
        self._reply = reply

    def abort(self) -> None:
        """The log has ended: end the round that is under way."""
        if (running := self._round) is not None:
            running.abort()

    def run(self) -> bool:
        """Run what the model asked for, and make the request that asks it again.

        False: the log has ended. Raises UpstreamError, at a limit.
        """
        live, intake = self._live, self._intake
        reply, self._reply = self._reply, None
        calls, intake.calls = intake.calls, []
        if not self._left:
            hint = f"It may do so {self._most} times: HALT_TOOL_ROUNDS."
            raise UpstreamError("too_many_tool_rounds", hint=hint)
        self._left -= 1
        assert self._tools is not None and reply is not None  # noqa: S101, PT018 - `is_due`
        # Known before the log is looked at: either the thread that ends it finds the round and
        # aborts it, or the end is found here, and the round never starts.
        current = self._round = self._tools.round(calls)
        if live.log.ended is not None:
            current.abort()
        for result in current.results():
            if not intake.take_result(result):
                break
        intake.answering = False
        live.meter.tools_ran()  # the limits of a silent model count from here
        self._round = None
        if live.log.ended is not None:
            return False
        told = current.messages(intake.begin_round(), reply.opaque)
        live.request = msgspec.structs.replace(
            live.request,
            messages=[*live.request.messages, *told],
            tool_choice=None,  # what the first round had to call need not be called for ever
        )
        return True
