"""Reads ended generations from the store, and ends those whose process has died."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence

from halt.clock import now
from halt.core.events import Delta, Event, Terminal, is_terminal
from halt.core.gap_log import GapLog
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.stream_key import StreamKey
from halt.store.admission import NO_ANSWER
from halt.store.faults import unavailable
from halt.store.generations import GenerationRecord, Generations
from halt.store.lookups import Lookups

HOUR = 3600.0
RECOVERY_WAIT = 5.0  # seconds that a thread waits for a recovery in another thread

logger = logging.getLogger(__name__)


def stored_log(events: Sequence[tuple[int, Event]]) -> EventLog:
    """The event log of an ended generation, from its numbered events in order.

    The numbers may have gaps. A gap before the terminal event stays in the log: its events were
    never written, because the process died. Events before any other gap are left out. Raises
    ValueError if the last event is not terminal.
    """
    *deltas, (last, ended) = events
    if not isinstance(ended, Terminal):
        raise ValueError("A stored log ends with a terminal event.")
    first, kept_deltas = (deltas[-1][0] + 1 if deltas else 1), list[Delta]()
    for number, event in reversed(deltas):
        if number != first - 1 or isinstance(event, Terminal):
            break
        first = number
        kept_deltas.append(event)
    log = GapLog(sys.maxsize, first)
    for event in reversed(kept_deltas):
        log.append(event)
    log.end_at(last, lambda: ended)
    return log


class StoredGeneration(Generation):
    """An ended generation from the store, with its events, their numbers and their times."""

    def __init__(self, record: GenerationRecord) -> None:
        started_at = now() - (time.time() - record.started_at)
        log = stored_log([(number, event) for number, _, event in record.events])
        super().__init__(
            record.key,
            log,
            requested_model=record.requested_model,
            prefix=record.prefix,
            started_at=started_at,
        )
        self.ended_at = started_at + record.ended_at - record.started_at
        self._model = record.model
        self._seen_events = record.seen
        for number, ms, event in record.events:
            if is_terminal(event):
                break
            at = started_at + ms / 1000
            while len(self._parts) < number - 1:
                self.record_text("", at)
            self.record_event(event, at)

    @property
    def model(self) -> str:
        return self._model or self.requested_model


class Replay:
    """Reads generations that no process makes any more."""

    def __init__(
        self,
        store: Generations,
        alive: Callable[[str], bool | None],
        run_timeout: float = 0.0,
        lookups: Lookups | None = None,
    ) -> None:
        """`alive` returns whether the worker with this ID runs; None if that cannot be determined.

        Such a worker counts as dead if its newest running generation started more than
        `run_timeout` seconds and one hour ago.
        """
        self._store = store
        self._alive = alive
        self._lookups = lookups or Lookups()
        self._dead_after = run_timeout + HOUR
        self._recovering = threading.Lock()  # one recovery at a time; the next finds nothing left

    def get(self, key: StreamKey) -> Generation | None:
        """The ended generation; None if there is none.

        Ends it first if its process has died, so that no reader waits for a dead process. Raises
        StoreUnavailable.
        """
        record = self._store.get_ended(key)
        if record is None and self._store.exists(key):
            self.recover()
            record = self._store.get_ended(key)
        return None if record is None else StoredGeneration(record)

    def has_ended(self, key: StreamKey) -> bool:
        """Whether it exists and has ended. Raises StoreUnavailable.

        Ends it first if its process has died.
        """
        state = self._store.state(key)
        if state == "running":
            self.recover()
            state = self._store.state(key)
        return state not in {None, "running"}

    def ended_among(self, stream_ids: Sequence[str], owner: str) -> Collection[str] | None:
        """The person's IDs for which `has_ended` is true; None if the store is not fast enough."""

        def ended() -> set[str]:
            return {id_ for id_ in stream_ids if self.has_ended(StreamKey(owner, id_))}

        return self._lookups.ask(ended)

    def recover(self) -> int:
        """End the running generations of dead workers as interrupted; returns their number.

        Raises StoreUnavailable.
        """
        if not self._recovering.acquire(timeout=RECOVERY_WAIT):
            raise unavailable("read", NO_ANSWER)
        try:
            before = time.time() - self._dead_after
            dead = [
                worker
                for worker, began in self._store.workers_running().items()
                if not (began > before if (alive := self._alive(worker)) is None else alive)
            ]
            return sum(map(self.recover_worker, dead))
        finally:
            self._recovering.release()

    def recover_worker(self, worker: str) -> int:
        """End the running generations of one dead worker as interrupted; returns their number.

        Several processes may do so at the same time: each generation is ended once. Raises
        StoreUnavailable.
        """
        count = sum(map(self._store.interrupt, self._store.running_of(worker)))
        if count:
            text = "1 answer was" if count == 1 else f"{count} answers were"
            logger.warning("worker %s has died: %s interrupted", worker, text)
        return count
