"""The provider's own count of an answer's tokens, also of one that was stopped.

With HALT_EXACT_USAGE a Stop ends the log at once, as ever, but leaves the model writing: most
providers count only at the end of an answer. What comes is thrown away. No place of a stream's is
held; there are at most as many such readers as places, and beyond that a Stop closes the connection
as it does without this setting. The limits of a run hold, and a shutdown ends them all at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from halt.core.limits import Limits
from halt.core.live import LiveGeneration
from halt.core.request import Reply
from halt.errors import UpstreamError

COUNT_MAX = 2**53  # what every reader of JSON takes for the same number

Report = Callable[[dict[str, Any]], None]

logger = logging.getLogger(__name__)


class UsageDrain:
    """The runs of one process that are read on."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_streams if limits.exact_usage else 0
        self._changed = threading.Condition()  # protects the two below
        self._runs: set[LiveGeneration] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, run: LiveGeneration) -> bool:
        """Take a place for a run that is about to be stopped. False: interrupt it instead.

        Also where another Stop, at the same time, has taken it.
        """
        with self._changed:
            if self._closed or run in self._runs or len(self._runs) >= self._most:
                return False
            self._runs.add(run)
            return True

    def give_back(self, run: LiveGeneration) -> None:
        """The run is not, or no longer, read on."""
        with self._changed:
            self._runs.discard(run)
            self._changed.notify_all()

    def close(self, timeout: float = 0.0) -> None:
        """Interrupt all, take no more, and wait so many seconds for the last. May be repeated."""
        with self._changed:
            self._closed = True
            runs = list(self._runs)
        for run in runs:
            run.connection.interrupt()
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, timeout)


class Usage:
    """The usage of one run: the sum of its rounds, and what comes of it behind a Stop.

    Used by the thread that has the run, but for `take_place` and `give_place_back`.
    """

    def __init__(
        self,
        live: LiveGeneration,
        usage_drain: UsageDrain | None,
        spawn: Callable[[Callable[[], None]], bool],
        report: Report | None,
    ) -> None:
        """`report` is called, in a thread that `spawn` starts, with the usage of a stopped run."""
        self._live = live
        self._usage_drain = usage_drain
        self._spawn = spawn
        self._report = report
        self._total: dict[str, Any] | None = {}  # of all rounds; None: one of them told none
        self._counted: Reply | None = None  # the newest reply whose usage is in there

    @property
    def total(self) -> dict[str, Any] | None:
        """The sum of all rounds, None where it is not known."""
        return self._total or None

    def count(self, reply: Reply) -> None:
        """Add a round's usage to that of the rounds before. Harmless when repeated."""
        if self._counted is reply:
            return
        self._counted = reply
        if self._total is not None:
            usage = reply.usage
            self._total = None if usage is None else summed(self._total, cleaned(usage))

    # --- behind a Stop ----------------------------------------------------------------------------

    def take_place(self) -> bool:
        """Whether a run that is about to be stopped shall be read on; it has a place for that."""
        wants = self._report is not None and self._live.log.ended is None
        return wants and self._usage_drain is not None and self._usage_drain.take(self._live)

    def give_place_back(self) -> None:
        if self._usage_drain is not None:
            self._usage_drain.give_back(self._live)

    def read(self, reply: Reply) -> bool:
        """Read some more of a stopped answer. True: no more is needed. Raises as `reply.read`."""
        is_whole = _has_counted(reply)
        if not is_whole:
            ended = reply.read().ended
            self._live.meter.received(0, 0)  # a sign of life, for the limits
            is_whole = ended or _has_counted(reply)
        if is_whole:
            self.count(reply)
        return is_whole

    def end(self, fault: UpstreamError | None) -> Callable[[], None]:
        """The usage is known, or will not be. Returns what the keeper is to do then."""
        self._live.reads_usage = False
        return partial(self._deliver, self._report, self.total, fault)

    def _deliver(
        self, report: Report | None, usage: dict[str, Any] | None, fault: UpstreamError | None
    ) -> None:
        """By the keeper: `report` has a thread of its own, since it may write to a database."""
        if fault is not None:
            logger.info("stream %s: no usage after its Stop: %s", self._live.id, fault.code)

        def work(report: Report, usage: dict[str, Any]) -> None:
            try:
                report(usage)
            except Exception:
                logger.exception("stream %s, usage after its Stop", self._live.id)
            finally:
                self.give_place_back()

        if report is None or usage is None or not self._spawn(partial(work, report, usage)):
            self.give_place_back()

    def forget(self) -> None:
        """The run is over: let go of its reply, and of what `report` holds."""
        self._counted = self._report = None


def _has_counted(reply: Reply) -> bool:
    """The provider has sent its usage, which stands behind the end of the answer."""
    return reply.finish_reason is not None and reply.usage is not None


def cleaned(usage: dict[str, Any]) -> dict[str, Any]:
    """A server's usage without whole numbers that are no counts: negative, or above COUNT_MAX."""
    return {
        name: cleaned(value) if isinstance(value, dict) else value
        for name, value in usage.items()
        if not isinstance(value, int) or 0 <= value <= COUNT_MAX
    }


def summed(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two usages as one: numbers are added, any other value is that of `more`."""
    out = dict(total)
    for name, value in more.items():
        before = out.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            out[name] = summed(before, value)
        elif isinstance(value, int | float) and isinstance(before, int | float):
            out[name] = before + value
        elif value is not None or before is None:
            out[name] = value
    return out
