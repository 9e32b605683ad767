"""Rounds of tools: runs the model's calls and adds the results to the next request.

A round begins when all of a reply has arrived, and ends with the next request. The protocols of a
toolbox are here; `halt.core.tools` implements them for Python functions.
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
    """The calls of one reply, which run in parallel."""

    def results(self) -> Iterator[ToolResult]:
        """Start the calls and yield results as they come. `abort`, also before, ends it early."""

    def messages(self, text: str, opaque: Any) -> list[Message]:
        """The round's messages for the next request: the model's own, then the results so far.

        `text` is the model's text in the round, `opaque` the `Reply.opaque` of its reply.
        """

    def abort(self) -> None:
        """Signal all calls to stop, without waiting. Idempotent."""


class Tools(Protocol):
    """Tools that a model may call."""

    @property
    def specs(self) -> list[ToolSpec]:
        """The tools' descriptions for the request."""

    def round(self, calls: list[ToolCall]) -> Round:
        """A round of these calls, not started yet."""


class ToolLoop:
    """The rounds of one run. The thread that has the run calls `run`, any thread `abort`."""

    def __init__(
        self, live: LiveGeneration, intake: Intake, tools: Tools | None, rounds: int
    ) -> None:
        self._live = live
        self._intake = intake
        self._tools = tools
        self._most = self._left = rounds
        self._reply: Reply | None = None  # a closed reply whose calls are to run next
        self._round: Round | None = None  # while tools run

    @property
    def is_due(self) -> bool:
        """Whether the next step of the run is a round of tools."""
        return self._reply is not None

    @property
    def is_running(self) -> bool:
        return self._round is not None

    def expect(self, reply: Reply) -> None:
        """In the relay: make a round of tools due. The reply with the calls is closed."""
        self._reply = reply

    def abort(self) -> None:
        """End the round under way, since the log has ended."""
        if (running := self._round) is not None:
            running.abort()

    def run(self) -> bool:
        """Run the model's calls, and put the results into the run's next request.

        False: the log has ended. Raises UpstreamError at a limit.
        """
        live, intake = self._live, self._intake
        reply, self._reply = self._reply, None
        calls, intake.calls = intake.calls, []
        if not self._left:
            hint = f"The limit is {self._most} rounds: HALT_TOOL_ROUNDS."
            raise UpstreamError("too_many_tool_rounds", hint=hint)
        self._left -= 1
        assert self._tools is not None and reply is not None  # noqa: S101, PT018 - `is_due`
        # Set before the check of the log: either the thread that ends the log finds the round and
        # aborts it, or the check here sees the end, and the round never starts.
        current = self._round = self._tools.round(calls)
        if live.log.ended is not None:
            current.abort()
        for result in current.results():
            if not intake.take_result(result):
                break
        intake.answering = False
        live.meter.note_tool_activity()  # the limit of silence counts from here
        self._round = None
        if live.log.ended is not None:
            return False
        messages = current.messages(intake.begin_round(), reply.opaque)
        live.request = msgspec.structs.replace(
            live.request,
            messages=[*live.request.messages, *messages],
            tool_choice=None,  # a required call is required in the first round alone
        )
        return True
