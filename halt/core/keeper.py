"""The keeper: a thread for work that would block the relay, and the relay's watchdog.

It does its work in the order of the calls, mostly the work at the ends of runs. Every KEEPER_TICK
seconds it checks that the relay makes progress. An exception in a piece of work is logged, and
affects no other work.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable, Iterator

from halt.clock import now
from halt.core.capacity import RETRY_AFTER
from halt.core.limits import Limits
from halt.core.relay import STALL_MAX, Relay
from halt.core.run import Run
from halt.core.serial import Serial
from halt.core.storage import Writer
from halt.core.stream_key import StreamKey
from halt.errors import AtCapacity

KEEPER_TICK = 0.25  # seconds
FORGET_STEP = 256  # finished runs that are removed in one hold of the lock
RELAY_FAILED = 70  # exit status of a process whose relay has failed

logger = logging.getLogger(__name__)


class Keeper:
    """See the module. It owns the relay: both threads run or neither does."""

    def __init__(self, on_tick: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """`on_tick` is called every KEEPER_TICK seconds, in the keeper's thread.

        `on_failure` is called in any thread when the relay has ended or hangs, unless
        `ends_process` is set.
        """
        self.relay = Relay(self._relay_failed)
        #: Whether the process ends when its relay has failed, so that its parent starts another.
        self.ends_process = False
        self._on_tick = on_tick
        self._on_failure = on_failure
        self._is_given_up = False
        self._long_turn: float | None = None  # the start of a relay turn above STALL_MAX
        self._starting = threading.Lock()  # held while the two threads are started
        self._thread = Serial("halt-keeper", KEEPER_TICK, self.tick)

    def start(self) -> None:
        """Start relay and keeper if needed. Raises AtCapacity if the system has no thread."""
        threads = (self.relay, self._thread)
        if all(thread.is_running for thread in threads):
            return
        with self._starting:
            try:
                for thread in threads:
                    thread.start()
            except RuntimeError as exc:
                raise AtCapacity(
                    f"The system can start no more threads. Try again in {RETRY_AFTER:g} s.",
                    retry_after=RETRY_AFTER,
                ) from exc

    def put(self, work: Callable[[], None]) -> None:
        """Do `work` in the thread, in the order of the calls; it must not block."""
        self._thread.put(work)

    def work_until(self, is_done: Callable[[], bool], deadline: float) -> None:
        """In the keeper's thread: do its work until `is_done` or `deadline`. Else do nothing."""
        if self._thread.is_current:
            while not is_done() and now() < deadline:
                self._thread.run_next(KEEPER_TICK)

    def close(self, timeout: float) -> None:
        """End the thread after the work given so far; wait at most `timeout` seconds for it."""
        self._thread.close(timeout)

    def tick(self) -> None:
        """The work of each tick: check the relay, call `on_tick`."""
        began = self.relay.turn_began
        if began is None or now() - began <= STALL_MAX:
            self._long_turn = None
        elif began != self._long_turn:
            self._long_turn = began  # if the whole process was paused, it ends before the next tick
        else:
            self._relay_failed(TimeoutError(f"a turn of the relay takes over {STALL_MAX:g} s"))
        self._on_tick()

    def _relay_failed(self, fault: BaseException) -> None:
        if self._is_given_up:
            return
        self._is_given_up = True
        logger.critical("the relay has failed: %r", fault, exc_info=fault)
        faulthandler.dump_traceback(all_threads=True)
        if self.ends_process:
            os._exit(RELAY_FAILED)
        self._on_failure()


class Finished:
    """Runs that have ended and are kept for their readers, in the order of their releases."""

    def __init__(self, limits: Limits, writer: Writer | None) -> None:
        self._limits = limits
        self._writer = writer
        self._lock = threading.Lock()  # protects the two below
        self._runs: dict[StreamKey, Run] = {}
        self._bytes = 0  # memory of these runs

    def add(self, run: Run) -> None:
        """Keep this run for a time."""
        with self._lock:
            self._runs[run.key] = run
            self._bytes += run.size

    def take_old(self) -> Iterator[Run]:
        """Remove and yield the runs over the time or memory limit, the oldest first.

        The cost per run does not depend on how many are kept.
        """
        while old_runs := self._take(now()):
            yield from old_runs
            unsaved = [run.key for run in old_runs if self._is_unsaved(run)]
            if unsaved and self._writer is not None:
                self._writer.drop(unsaved)

    def _take(self, at: float) -> list[Run]:
        """Remove at most FORGET_STEP of those runs."""
        limits, old_runs = self._limits, list[Run]()
        with self._lock:
            for run in self._runs.values():
                fresh = at - (run.ended_at or at) <= limits.log_seconds
                fits = self._bytes <= limits.kept_bytes
                if len(old_runs) == FORGET_STEP or ((fresh or self._is_unsaved(run)) and fits):
                    break
                self._bytes -= run.size
                old_runs.append(run)
            for run in old_runs:
                del self._runs[run.key]
        return old_runs

    def _is_unsaved(self, run: Run) -> bool:
        return self._writer is not None and self._writer.is_pending(run.key)
