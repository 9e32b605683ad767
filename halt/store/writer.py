"""Writes down what the generations of this process produce, behind them, in batches.

One thread looks at the log of every generation once in a period and hands what is new to the
store, all of it in one transaction. An end is written as soon as it happens, in a transaction of
the ends alone: a turn of all for each end took half of the store writer's time at 22 ends a second.
Generations know nothing of it: a store that is slow, locked, full or gone costs them nothing. What
could not be written is still in their logs, so it is simply taken from there again, at growing
intervals, until the store is well.

What is lost when the process is killed is what came since the last transaction: a quarter of a
second at most, while the store takes at most 50 ms for a transaction.

Threads: `_changed` protects the table and the flags, and is held for table work only. What stands
in an entry beside its recording belongs to the store writer's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from halt.clock import now
from halt.core.generation import Generation
from halt.errors import StoreUnavailable
from halt.store.batches import BatchPart, PendingGeneration, batch_of, batch_part
from halt.store.generations import Generations
from halt.store.lookups import LOOKUP_WAIT, Lookups

PERIOD = 0.1  # seconds from the beginning of a turn to that of the next
SHARE = 0.01  # of the time is for turns; what takes more makes the period longer
PERIOD_MAX = 0.15  # seconds from the beginning of a turn to the end of the next
PAUSE = 0.02  # seconds between two turns, however long they take
BACKOFF_MAX = 2.0  # seconds between two attempts, where the store is not well
BEHIND = 2.0  # seconds that anything may wait to be written before it is said
BATCH_EVENTS = 20_000  # of one transaction; what is more goes into the next, at once
GIVEN_UP_MAX = 10_000  # generations that are remembered after they were given up, the newest
INTERRUPT_TRIES = 3  # attempts to end one of them in a store that is well
SWEEP_EVERY = 3600.0  # seconds between two looks for what is kept for a time only
LATER = 60.0  # seconds until the next look after one for which the store was not well
CLOSE_WAIT = 3.0  # seconds that leaving waits for the store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """How saving goes. `behind`: something has waited for BEHIND seconds; `failed`: in vain."""

    state: Literal["saved", "behind", "failed"] = "saved"
    reason: str = ""


class StoreWriter:
    """All generations of this process that are not in the store as a whole."""

    def __init__(self, store: Generations, worker: str, lookups: Lookups | None = None) -> None:
        """`worker` is this process's ID; it may change until the first generation begins."""
        self.worker = worker
        self._store = store
        self._lookups = lookups or Lookups()
        self._changed = threading.Condition(threading.Lock())
        self._entries: dict[str, PendingGeneration] = {}
        self._hurry = False  # something has ended
        self._idle = False  # the thread waits for something to do
        self._due = 0.0  # when the next turn begins
        self._closing_until: float | None = None
        self._thread: threading.Thread | None = None
        self._clean_at = now()  # whatever came before has been written
        self._fault = ""  # why the last attempt failed
        self._failures = 0  # since the last success
        self._given_up: list[str] = []  # let go of before they could be written
        #: Of those whose end in the store went wrong: attempts so far, and the time of the next.
        self._broken: dict[str, tuple[int, float]] = {}
        self._sweep_at = now()

    # --- what generations and their readers use ---------------------------------------------------

    def start(self) -> None:
        """Start the thread now, and not with the first generation: what is kept for a time only is
        removed from the store also while nothing is generated. Harmless when repeated."""
        self._lookups.start()
        with self._changed:
            self._wake()

    def add(self, recording: Generation) -> None:
        """Write this one down from now on."""
        with self._changed:
            if not self._entries:
                self._clean_at = now()
                self._due = max(self._due, now() + PERIOD)
            self._entries[recording.id] = PendingGeneration(recording)
            if self._idle or self._thread is None:
                self._wake()

    def notify_end(self) -> None:
        """A generation has ended: it is written down at once."""
        with self._changed:
            self._hurry = True
            self._wake()

    def interrupt(self, stream_ids: Iterable[str]) -> None:
        """The store believes that these run, and they do not: they are ended there."""
        with self._changed:
            self._given_up = [*self._given_up, *stream_ids][-GIVEN_UP_MAX:]
            self._wake()

    def exists(self, stream_id: str) -> bool:
        """The store has a generation with this ID; False also where it does not answer in time.

        One that fails is not asked: no start waits for it.
        """
        if self.is_failing:
            return False
        return bool(self._lookups.ask(partial(self._store.exists, stream_id)))

    @property
    def is_failing(self) -> bool:
        """The last attempt to write was in vain: whoever can do without the store asks it not."""
        return bool(self._fault)

    def is_pending(self, stream_id: str) -> bool:
        """It is not in the store as a whole: whoever lets go of it loses some of it."""
        return stream_id in self._entries

    def wait_written(self, stream_id: str, timeout: float) -> bool:
        """Wait until a generation that has ended is in the store as a whole; False: not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: stream_id not in self._entries, timeout)

    def drop(self, stream_ids: Iterable[str]) -> None:
        """Memory is short: these are let go of. The store gets what it has of them, and no more."""
        with self._changed:
            lost = [each for each in stream_ids if self._entries.pop(each, None)]
            first = lost and not self._given_up
            self._given_up = [*self._given_up, *lost][-GIVEN_UP_MAX:]
            self._changed.notify_all()
        if first:
            logger.error("no memory is left for what could not be saved: answers are being lost")

    @property
    def saving(self) -> Saving:
        """How it goes."""
        if not self._entries or now() - self._clean_at < BEHIND:
            return Saving()
        return Saving("failed", self._fault) if self._fault else Saving("behind")

    def close(self, timeout: float = CLOSE_WAIT) -> bool:
        """Write what there is and end the thread; False: not all of it within `timeout` seconds."""
        with self._changed:
            if self._closing_until is None:
                self._closing_until = now() + timeout
                self._hurry = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        self._lookups.close(LOOKUP_WAIT)
        with self._changed:
            left = self._unwritten()
        if left:
            logger.error("%d answers could not be saved as a whole: %s", left, self._fault)
        return not left

    # --- the thread -------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let the thread look; start it where there is none. The lock is held."""
        if self._thread is None and self._closing_until is None:
            thread = threading.Thread(target=self._run, name="halt-writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: the next event tries again
                logger.exception("the store writer failed")
                return
            self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        while self._await_turn():
            try:
                self._turn()
            except Exception:
                if not self._failures:
                    logger.exception("the store writer failed")
                self._failed("something went wrong in Halt itself")

    def _await_turn(self) -> bool:
        """Wait until there is something to do. False: nothing more will be."""
        with self._changed:
            if not self._entries and not self._given_up:
                self._idle = True
                self._changed.wait_for(
                    lambda: self._entries or self._given_up or self._closing_until is not None,
                    max(
                        0.0, min([self._sweep_at, *(at for _, at in self._broken.values())]) - now()
                    ),
                )
                self._idle = False
            self._changed.wait_for(
                lambda: self._closing_until is not None or (self._hurry and not self._failures),
                max(0.0, self._due - now()),
            )
            if self._closing_until is not None:
                if not self._unwritten() or now() >= self._closing_until:
                    return False
                if not self._hurry:
                    self._changed.wait(PERIOD)
                self._due = now()
            self._hurry = False
            return True

    def _unwritten(self) -> int:
        """Generations that have something which is not in the store."""
        return sum(
            not entry.begun or entry.written < entry.recording.log.last
            for entry in self._entries.values()
        )

    def _turn(self) -> None:
        """Write what is new, once; before it is due, of those that have ended."""
        at = now()
        due = at >= self._due
        with self._changed:
            entries = list(self._entries.values())
            given_up = list(self._given_up)
        if not due:
            entries = [each for each in entries if each.recording.log.ended is not None]
        given_up += [stream_id for stream_id, (_, again) in self._broken.items() if again <= at]
        steps, left = [], BATCH_EVENTS
        for entry in entries:
            try:
                step = batch_part(entry, left, self.worker)
            except Exception:
                logger.exception("stream %s cannot be saved", entry.recording.id)
                self._let_go(entry)
                continue
            if step is not None:
                left -= step.events
                steps.append(step)
        try:
            self._write(steps)
            ended = self._interrupt(given_up, at)
        except StoreUnavailable as fault:
            self._failed(fault.reason)
            return
        self._succeeded(steps, ended, at, more=left <= 0, due=due)
        self._sweep(at)

    def _write(self, steps: list[BatchPart]) -> None:
        """Write all of it, or what can be written. Raises StoreUnavailable."""
        try:
            if steps:
                self._store.write(batch_of(steps, self.worker))
        except StoreUnavailable:
            raise
        except Exception:
            logger.exception("a batch of events could not be saved; it is tried one by one")
            self._one_by_one(steps)

    def _interrupt(self, stream_ids: Iterable[str], at: float) -> set[str]:
        """End these in the store; all of them have had an attempt. Raises StoreUnavailable.

        One that cannot be ended is tried again after LATER seconds, INTERRUPT_TRIES times in all.
        """
        for stream_id in stream_ids:
            tries, _ = self._broken.pop(stream_id, (0, 0.0))
            try:
                self._store.interrupt(stream_id)
            except StoreUnavailable:
                raise
            except Exception:
                logger.exception("stream %s cannot be ended in the store", stream_id)
                if tries + 1 < INTERRUPT_TRIES and len(self._broken) < GIVEN_UP_MAX:
                    self._broken[stream_id] = (tries + 1, at + LATER)
        return set(stream_ids)

    def _sweep(self, at: float) -> None:
        """Remove what is kept for a time only, a little in each turn.

        A fault is logged and says nothing of what was written.
        """
        if at < self._sweep_at:
            return
        pause = SWEEP_EVERY
        try:
            if self._store.sweep(time.time()):
                pause = 0.0
        except StoreUnavailable as fault:
            logger.warning("what is kept for a time only cannot be removed: %s", fault.reason)
            pause = LATER
        except Exception:
            logger.exception("what is kept for a time only cannot be removed; later again")
        self._sweep_at = at + pause

    def _one_by_one(self, steps: list[BatchPart]) -> None:
        """Write what can be written. What can't, though the store is well, is let go of.

        Raises StoreUnavailable.
        """
        for step in steps:
            try:
                self._store.write(batch_of([step], self.worker))
            except StoreUnavailable:
                raise
            except Exception:
                logger.exception("stream %s cannot be saved", step.entry.recording.id)
                self._let_go(step.entry)

    def _let_go(self, entry: PendingGeneration) -> None:
        """This one cannot be saved, for a reason that is none of the store's."""
        stream_id = entry.recording.id
        with self._changed:
            self._entries.pop(stream_id, None)
            self._given_up.append(stream_id)

    def _succeeded(
        self, steps: list[BatchPart], ended: set[str], at: float, *, more: bool, due: bool
    ) -> None:
        if self._failures:
            logger.warning("saving works again")
        for step in steps:
            step.entry.begun, step.entry.written = True, step.upto
        took = now() - at
        with self._changed:
            for step in steps:
                if step.ended:
                    self._entries.pop(step.entry.recording.id, None)
            if ended:
                self._given_up = [each for each in self._given_up if each not in ended]
            if more:
                self._due = at
            elif due:
                self._clean_at = at
                self._due = at + period(took)
            self._failures, self._fault = 0, ""
            self._changed.notify_all()

    def _failed(self, reason: str) -> None:
        with self._changed:
            self._failures += 1
            self._due = now() + min(PERIOD * 2 ** min(self._failures, 10), BACKOFF_MAX)
            self._fault = reason
            first = self._failures == 1
        if first:
            logger.error("saving fails, and is tried again until it works: %s", reason)


def period(took: float) -> float:
    """Seconds from the beginning of a turn that took `took` seconds to that of the next one."""
    return max(min(max(PERIOD, took / SHARE), PERIOD_MAX - took), took + PAUSE)
