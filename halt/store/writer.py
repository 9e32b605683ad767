"""Writes the events of this process's generations to the store, asynchronously and in batches.

Once per period one thread reads the event log of every generation and writes all new events in one
transaction. The end of a generation is written at once, in a transaction that holds only the
generations that have ended: with a full turn for each end, the thread spent half of its time on
ends at 22 ends per second. Generations do not wait for the thread, so a store that is slow, locked,
full or unreachable does not delay them. After a failed transaction the thread reads the same events
from the logs again, at growing intervals, until the store accepts them.

When the process is killed, the events since the last transaction are lost: at most 0.25 s of them,
while the store takes at most 50 ms for a transaction.

Threads: `_changed` protects the table of pending generations and the flags; it is never held during
a call of the store. Only the writer's thread changes the fields `is_stored` and `last_written` of
a `PendingGeneration`.
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
from halt.core.stream_key import StreamKey
from halt.errors import StoreUnavailable
from halt.store.batches import BatchPart, PendingGeneration, batch_of, batch_part
from halt.store.generations import Generations
from halt.store.lookups import LOOKUP_WAIT, Lookups

PERIOD = 0.1  # seconds from the start of a turn to the start of the next
SHARE = 0.01  # of the time is for turns; a longer turn makes the period longer
PERIOD_MAX = 0.15  # seconds from the start of a turn to the end of the next
PAUSE = 0.02  # seconds between two turns, however long they take
BACKOFF_MAX = 2.0  # seconds between two attempts while the store fails
BEHIND = 2.0  # seconds that an event may wait to be written before `saving` reports it
BATCH_EVENTS = 20_000  # per transaction; the next transaction with the rest follows at once
INTERRUPT_MAX = 10_000  # generations that may wait to be interrupted in the store; the newest stay
INTERRUPT_TRIES = 3  # attempts to interrupt one of them while the store works
SWEEP_EVERY = 3600.0  # seconds between two removals of expired rows
LATER = 60.0  # seconds until the next attempt after a removal or an interruption that failed
CLOSE_WAIT = 3.0  # seconds that `close` waits for the store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """State of saving. `behind`: an event has waited for BEHIND seconds; `failed`: see `reason`."""

    state: Literal["saved", "behind", "failed"] = "saved"
    reason: str = ""


class StoreWriter:
    """Writes all generations of this process that are not completely in the store."""

    def __init__(self, store: Generations, worker: str, lookups: Lookups | None = None) -> None:
        """`worker` is this process's ID; it may change until the first generation is added."""
        self.worker = worker
        self._store = store
        self._lookups = lookups or Lookups()
        self._changed = threading.Condition(threading.Lock())
        self._entries: dict[StreamKey, PendingGeneration] = {}
        self._has_ends = False  # a generation has ended since the last turn
        self._is_idle = False  # the thread waits and has nothing to write
        self._due = 0.0  # when the next turn starts
        self._closing_until: float | None = None
        self._thread: threading.Thread | None = None
        self._clean_at = now()  # all events before this time are written
        self._fault = ""  # why the last attempt failed
        self._failures = 0  # since the last success
        self._to_interrupt: list[StreamKey] = []  # no longer pending, still running in SQL
        #: Streams whose interruption failed: attempts so far, and the time of the next one.
        self._retries: dict[StreamKey, tuple[int, float]] = {}
        self._sweep_at = now()

    # --- calls from any thread --------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, so that it removes expired rows also without any generation.

        Further calls have no effect.
        """
        self._lookups.start()
        with self._changed:
            self._wake()

    def add(self, generation: Generation) -> None:
        """Write this generation to the store from now on."""
        with self._changed:
            if not self._entries:
                self._clean_at = now()
                self._due = max(self._due, now() + PERIOD)
            self._entries[generation.key] = PendingGeneration(generation)
            if self._is_idle or self._thread is None:
                self._wake()

    def notify_end(self) -> None:
        """Make the thread write, at once, the generations that have ended."""
        with self._changed:
            self._has_ends = True
            self._wake()

    def interrupt(self, keys: Iterable[StreamKey]) -> None:
        """End generations that are running in the store only: no process makes them."""
        with self._changed:
            self._to_interrupt = [*self._to_interrupt, *keys][-INTERRUPT_MAX:]
            self._wake()

    def exists(self, key: StreamKey) -> bool:
        """Whether the store has a generation with this key; False if it does not answer in time.

        A store that fails is not queried, so that no start waits for it.
        """
        if self.is_failing:
            return False
        return bool(self._lookups.ask(partial(self._store.exists, key)))

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed; callers should then skip optional reads of the store."""
        return bool(self._fault)

    def is_pending(self, key: StreamKey) -> bool:
        """Whether the store lacks a part of it, which is lost if its log is dropped now."""
        return key in self._entries

    def wait_written(self, key: StreamKey, timeout: float) -> bool:
        """Wait until an ended generation is completely in the store; False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: key not in self._entries, timeout)

    def drop(self, keys: Iterable[StreamKey]) -> None:
        """Write no more of these generations, because their logs are dropped to free memory.

        In the store they are interrupted after the last event that was written.
        """
        with self._changed:
            dropped = [key for key in keys if self._entries.pop(key, None)]
            is_first = dropped and not self._to_interrupt
            self._to_interrupt = [*self._to_interrupt, *dropped][-INTERRUPT_MAX:]
            self._changed.notify_all()
        if is_first:
            logger.error("too many unsaved answers are in memory: parts of answers are lost")

    @property
    def saving(self) -> Saving:
        """The state of saving, for users."""
        if not self._entries or now() - self._clean_at < BEHIND:
            return Saving()
        return Saving("failed", self._fault) if self._fault else Saving("behind")

    def close(self, timeout: float = CLOSE_WAIT) -> bool:
        """Write all events and end the thread; False if some are unwritten after `timeout` s."""
        with self._changed:
            if self._closing_until is None:
                self._closing_until = now() + timeout
                self._has_ends = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        self._lookups.close(LOOKUP_WAIT)
        with self._changed:
            unwritten = self._count_unwritten()
        if unwritten:
            logger.error("%d answers could not be saved as a whole: %s", unwritten, self._fault)
        return not unwritten

    # --- the thread -------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Wake the thread, or start it. The caller holds `_changed`."""
        if self._thread is None and self._closing_until is None:
            thread = threading.Thread(target=self._run, name="halt-writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: the next call tries again
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
                self._failed("an internal error in Halt")

    def _await_turn(self) -> bool:
        """Wait until the next turn is due; False when the thread must end."""
        with self._changed:
            if not self._entries and not self._to_interrupt:
                self._is_idle = True
                self._changed.wait_for(
                    lambda: self._entries or self._to_interrupt or self._closing_until is not None,
                    max(
                        0.0,
                        min([self._sweep_at, *(at for _, at in self._retries.values())]) - now(),
                    ),
                )
                self._is_idle = False
            self._changed.wait_for(
                lambda: self._closing_until is not None or (self._has_ends and not self._failures),
                max(0.0, self._due - now()),
            )
            if self._closing_until is not None:
                if not self._count_unwritten() or now() >= self._closing_until:
                    return False
                if not self._has_ends:
                    self._changed.wait(PERIOD)
                self._due = now()
            self._has_ends = False
            return True

    def _count_unwritten(self) -> int:
        """Number of generations with events that are not in the store. `_changed` is held."""
        return sum(
            not entry.is_stored or entry.last_written < entry.generation.log.last
            for entry in self._entries.values()
        )

    def _turn(self) -> None:
        """Write new events once: of all generations, or before `_due` only of the ended ones."""
        at = now()
        is_due = at >= self._due
        with self._changed:
            entries = list(self._entries.values())
            to_interrupt = list(self._to_interrupt)
        if not is_due:
            entries = [entry for entry in entries if entry.generation.log.ended is not None]
        to_interrupt += [key for key, (_, retry_at) in self._retries.items() if retry_at <= at]
        parts, room = [], BATCH_EVENTS
        for entry in entries:
            try:
                part = batch_part(entry, room, self.worker)
            except Exception:
                logger.exception("stream %s cannot be saved", entry.generation.id)
                self._drop_unstorable(entry)
                continue
            if part is not None:
                room -= part.event_count
                parts.append(part)
        try:
            self._write(parts)
            interrupted = self._interrupt_all(to_interrupt, at)
        except StoreUnavailable as fault:
            self._failed(fault.reason)
            return
        self._succeeded(parts, interrupted, at, has_more=room <= 0, is_due=is_due)
        self._sweep(at)

    def _write(self, parts: list[BatchPart]) -> None:
        """Write all parts, or each that the store accepts. Raises StoreUnavailable."""
        try:
            if parts:
                self._store.write(batch_of(parts, self.worker))
        except StoreUnavailable:
            raise
        except Exception:
            logger.exception("a batch could not be saved; trying each generation on its own")
            self._write_one_by_one(parts)

    def _interrupt_all(self, keys: Iterable[StreamKey], at: float) -> set[StreamKey]:
        """Try once to interrupt each generation in the store; returns all their keys.

        A failed one is tried again after LATER seconds, INTERRUPT_TRIES times in total. Raises
        StoreUnavailable.
        """
        for key in keys:
            tries, _ = self._retries.pop(key, (0, 0.0))
            try:
                self._store.interrupt(key)
            except StoreUnavailable:
                raise
            except Exception:
                logger.exception("stream %s cannot be ended in the store", key.id)
                if tries + 1 < INTERRUPT_TRIES and len(self._retries) < INTERRUPT_MAX:
                    self._retries[key] = (tries + 1, at + LATER)
        return set(keys)

    def _sweep(self, at: float) -> None:
        """Remove some expired rows in each turn until none is left.

        A failure is logged; it does not count as a failed write.
        """
        if at < self._sweep_at:
            return
        pause = SWEEP_EVERY
        try:
            if self._store.sweep(time.time()):
                pause = 0.0
        except StoreUnavailable as fault:
            logger.warning("expired rows cannot be removed: %s", fault.reason)
            pause = LATER
        except Exception:
            logger.exception("expired rows cannot be removed; trying again later")
        self._sweep_at = at + pause

    def _write_one_by_one(self, parts: list[BatchPart]) -> None:
        """Write each part in its own transaction and drop those that a working store refuses.

        Raises StoreUnavailable.
        """
        for part in parts:
            try:
                self._store.write(batch_of([part], self.worker))
            except StoreUnavailable:
                raise
            except Exception:
                logger.exception("stream %s cannot be saved", part.entry.generation.id)
                self._drop_unstorable(part.entry)

    def _drop_unstorable(self, entry: PendingGeneration) -> None:
        """Write no more of a generation whose own values are the reason for the failure."""
        key = entry.generation.key
        with self._changed:
            self._entries.pop(key, None)
            self._to_interrupt.append(key)

    def _succeeded(
        self,
        parts: list[BatchPart],
        interrupted: set[StreamKey],
        at: float,
        *,
        has_more: bool,
        is_due: bool,
    ) -> None:
        """Note that these parts and interruptions of a turn that started at `at` are stored."""
        if self._failures:
            logger.warning("saving works again")
        for part in parts:
            part.entry.is_stored, part.entry.last_written = True, part.last_seq
        seconds = now() - at
        with self._changed:
            for part in parts:
                if part.end:
                    self._entries.pop(part.entry.generation.key, None)
            if interrupted:
                self._to_interrupt = [key for key in self._to_interrupt if key not in interrupted]
            if has_more:
                self._due = at
            elif is_due:
                self._clean_at = at
                self._due = at + period(seconds)
            self._failures, self._fault = 0, ""
            self._changed.notify_all()

    def _failed(self, reason: str) -> None:
        with self._changed:
            self._failures += 1
            self._due = now() + min(PERIOD * 2 ** min(self._failures, 10), BACKOFF_MAX)
            self._fault = reason
            is_first = self._failures == 1
        if is_first:
            logger.error("saving fails and is retried until it works: %s", reason)


def period(seconds: float) -> float:
    """Seconds from the start of a turn that took `seconds` to the start of the next one."""
    return max(min(max(PERIOD, seconds / SHARE), PERIOD_MAX - seconds), seconds + PAUSE)
