"""The time limits of a run: total time, silence of the model, time without a viewer."""

from __future__ import annotations

from halt.clock import now
from halt.core.intake import Intake
from halt.core.limits import Limits
from halt.core.live import LiveGeneration
from halt.core.tool_loop import ToolLoop
from halt.errors import UpstreamError

CHECK_MIN, CHECK_MAX = 0.02, 1.0  # seconds between two checks of a run's limits
REMOTE_VIEWER_WAIT = 2.0  # seconds in which a viewer of another process must follow the run
FIRST_VIEW = 10.0  # seconds for the first viewer to come, even with a shorter grace


class Deadlines:
    """The limits of one run. Used by the relay; any thread may call `expect_viewer`."""

    def __init__(
        self,
        live: LiveGeneration,
        intake: Intake,
        tool_loop: ToolLoop,
        limits: Limits,
        grace: float | None,
    ) -> None:
        """`grace`: seconds without a viewer, None for the configured time."""
        self._live = live
        self._intake = intake
        self._tool_loop = tool_loop
        self._limits = limits
        self._grace = limits.orphan_grace if grace is None else grace
        self._expected_until = 0.0  # until then a viewer of another process may come

    def expect_viewer(self) -> None:
        """Do not end the run because it has no viewer in the next REMOTE_VIEWER_WAIT seconds."""
        self._expected_until = now() + REMOTE_VIEWER_WAIT

    @property
    def grace(self) -> float:
        """Seconds that the run may go on without a viewer."""
        return self._grace if self._live.was_watched else max(FIRST_VIEW, self._grace)

    @property
    def _unwatched_until(self) -> float:
        """The time until which the run may go on without a viewer."""
        return max(self._live.watched_at + self.grace, self._expected_until)

    def is_abandoned(self, at: float) -> bool:
        """Whether at this time the run has been without a viewer for too long."""
        return not self._live.is_watched and at >= self._unwatched_until

    def next_check(self, at: float) -> float:
        """The time of the next check: the next possible limit, but CHECK_MIN to CHECK_MAX away."""
        limits, live = self._limits, self._live
        silence = limits.gap_timeout if self._intake.answering else limits.first_byte_timeout
        limit = min(live.meter.started_at + limits.run_timeout, live.meter.last_at + silence)
        if not live.is_watched and live.log.ended is None:
            limit = min(limit, self._unwatched_until)
        return min(max(limit, at + CHECK_MIN), at + CHECK_MAX)

    def error_if_exceeded(self, at: float) -> UpstreamError | None:
        """The error for the limit that is exceeded at this time, None if none is."""
        limits, meter = self._limits, self._live.meter
        if at - meter.started_at > limits.run_timeout:
            hint = (
                f"It may take at most {limits.run_timeout:g} s: HALT_RUN_TIMEOUT sets this limit."
            )
            return UpstreamError("run_too_long", hint=hint)
        if self._tool_loop.is_running:  # tools have limits of their own
            return None
        code, limit, setting = (
            ("stalled", limits.gap_timeout, "HALT_GAP_TIMEOUT")
            if self._intake.answering
            else ("first_byte_timeout", limits.first_byte_timeout, "HALT_FIRST_BYTE_TIMEOUT")
        )
        if at - meter.last_at <= limit:
            return None
        hint = f"The provider sent nothing for {limit:g} s: {setting} sets this limit."
        return UpstreamError(code, hint=hint)
