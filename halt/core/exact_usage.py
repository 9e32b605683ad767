"""Reads the provider's token count of an answer, including a stopped one.

With HALT_EXACT_USAGE a Stop ends the log at once, as always, but leaves the connection open: most
providers send their count only at the end of an answer. The rest of the answer is dropped. Such a
run holds no place for streams. At most as many are read as there are places; above that a Stop
closes the connection, as without this setting. The limits of a run apply, and a shutdown ends all.
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

COUNT_MAX = 2**53  # up to here every JSON parser reads the same whole number

Report = Callable[[dict[str, Any]], None]

logger = logging.getLogger(__name__)


class UsageDrain:
    """The stopped runs of this process whose upstream is read for the usage."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_streams if limits.exact_usage else 0
        self._changed = threading.Condition()  # protects the two below
        self._runs: set[LiveGeneration] = set()
        self._closed = False

    def take(self, run: LiveGeneration) -> bool:
        """Take a place for a run that is about to be stopped. False: interrupt the run instead.

        Also False when a concurrent Stop has taken the run's place.
        """
        with self._changed:
            if self._closed or run in self._runs or len(self._runs) >= self._most:
                return False
            self._runs.add(run)
            return True

    def give_back(self, run: LiveGeneration) -> None:
        """Give back the place of a run that is not read, or no longer read."""
        with self._changed:
            self._runs.discard(run)
            self._changed.notify_all()

    def close(self, timeout: float = 0.0) -> None:
        """Interrupt all, take no more, wait at most `timeout` seconds for the last. Idempotent."""
        with self._changed:
            self._closed = True
            runs = list(self._runs)
        for run in runs:
            run.connection.interrupt()
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, timeout)


class Usage:
    """The usage of one run: the sum of its rounds, and the part that arrives after a Stop.

    Used by the thread that has the run, except `take_place` and `give_place_back`.
    """

    def __init__(
        self,
        live: LiveGeneration,
        usage_drain: UsageDrain | None,
        spawn: Callable[[Callable[[], None]], bool],
        report: Report | None,
    ) -> None:
        """`report` gets the usage of a stopped run, in a thread that `spawn` starts."""
        self._live = live
        self._usage_drain = usage_drain
        self._spawn = spawn
        self._report = report
        self._total: dict[str, Any] | None = {}  # of all rounds; None: a round reported none
        self._counted: Reply | None = None  # the newest reply included in `_total`

    @property
    def total(self) -> dict[str, Any] | None:
        """The sum of all rounds, None if not known."""
        return self._total or None

    def count(self, reply: Reply) -> None:
        """Add a round's usage to that of the rounds before. Idempotent."""
        if self._counted is reply:
            return
        self._counted = reply
        if self._total is not None:
            usage = reply.usage
            self._total = None if usage is None else sum_usage(self._total, cleaned(usage))

    # --- after a Stop -----------------------------------------------------------------------------

    def take_place(self) -> bool:
        """Take a place to read on after a Stop. False: the Stop closes the connection."""
        is_wanted = self._report is not None and self._live.log.ended is None
        return is_wanted and self._usage_drain is not None and self._usage_drain.take(self._live)

    def give_place_back(self) -> None:
        if self._usage_drain is not None:
            self._usage_drain.give_back(self._live)

    def read(self, reply: Reply) -> bool:
        """Read more of a stopped answer. True: reading is finished. Raises as `reply.read`."""
        is_whole = _has_counted(reply)
        if not is_whole:
            ended = reply.read().ended
            self._live.meter.received(0, 0)  # a sign of life, for the limits
            is_whole = ended or _has_counted(reply)
        if is_whole:
            self.count(reply)
        return is_whole

    def end(self, fault: UpstreamError | None) -> Callable[[], None]:
        """Finish reading, with or without a usage. Returns the keeper's work: the report."""
        self._live.reads_usage = False
        return partial(self._deliver, self._report, self.total, fault)

    def _deliver(
        self, report: Report | None, usage: dict[str, Any] | None, fault: UpstreamError | None
    ) -> None:
        """In the keeper: call `report` in a new thread, since it may write to a database."""
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
        """Drop the reply and `report` after the run's end."""
        self._counted = self._report = None


def _has_counted(reply: Reply) -> bool:
    """Whether the provider has sent its usage, which follows the end of the answer."""
    return reply.finish_reason is not None and reply.usage is not None


def cleaned(usage: dict[str, Any]) -> dict[str, Any]:
    """A provider's usage without negative whole numbers and those above COUNT_MAX."""
    return {
        name: cleaned(value) if isinstance(value, dict) else value
        for name, value in usage.items()
        if not isinstance(value, int) or 0 <= value <= COUNT_MAX
    }


def sum_usage(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum of two usages: numbers are added; of other values that of `more` counts."""
    out = dict(total)
    for name, value in more.items():
        before = out.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            out[name] = sum_usage(before, value)
        elif isinstance(value, int | float) and isinstance(before, int | float):
            out[name] = before + value
        elif value is not None or before is None:
            out[name] = value
    return out
