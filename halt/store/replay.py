"""Generations that are over, out of the store; and the ends of those whose process has died."""

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
from halt.errors import StoreUnavailable
from halt.store.admission import NO_ANSWER
from halt.store.generations import GenerationRecord, Generations
from halt.store.lookups import Lookups

HOUR = 3600.0
RECOVERY_WAIT = 5.0  # seconds that a thread waits for another one's recovery

logger = logging.getLogger(__name__)


def stored_log(events: Sequence[tuple[int, Event]]) -> EventLog:
    """The log of a generation that has ended, of its events with their numbers, in order.

    The numbers may have two kinds of gaps. One before the terminal event is passed over: what had
    been there when its process died was written nowhere. Events before any other gap are let go.
    """
    *deltas, (last, ended) = events
    if not isinstance(ended, Terminal):
        raise ValueError("A stored log ends with a terminal event.")
    first, kept = (deltas[-1][0] + 1 if deltas else 1), list[Delta]()
    for number, event in reversed(deltas):
        if number != first - 1 or isinstance(event, Terminal):
            break
        first = number
        kept.append(event)
    log = GapLog(sys.maxsize, first)
    for event in reversed(kept):
        log.append(event)
    log.end_at(last, lambda: ended)
    return log


class StoredGeneration(Generation):
    """A generation that has ended, as the store has kept it: every event with its number."""

    def __init__(self, kept: GenerationRecord) -> None:
        began = now() - (time.time() - kept.started_at)
        log = stored_log([(number, event) for number, _, event in kept.events])
        super().__init__(
            kept.stream_id,
            kept.owner,
            log,
            asked=kept.requested_model,
            prefix=kept.prefix,
            started_at=began,
        )
        self.ended_at = began + kept.ended_at - kept.started_at
        self._model = kept.model
        self._kept = kept.seen
        for number, ms, event in kept.events:
            if is_terminal(event):
                break
            at = began + ms / 1000
            while len(self._parts) < number - 1:
                self.note("", at)
            self.note_event(event, at)

    @property
    def model(self) -> str:
        return self._model or self.asked


class Replay:
    """What the store knows of generations that no process makes any more."""

    def __init__(
        self,
        store: Generations,
        alive: Callable[[str], bool | None],
        run_timeout: float = 0.0,
        lookups: Lookups | None = None,
    ) -> None:
        """`alive` says whether the worker process with this name lives; None: it can't be known.

        Such a one is given up when it has begun nothing for HOUR and the seconds that an answer
        may take.
        """
        self._store = store
        self._alive = alive
        self._lookups = lookups or Lookups()
        self._given_up_after = run_timeout + HOUR
        self._recovering = threading.Lock()  # one at a time; the others find it done

    def get(self, stream_id: str, requester: str | None) -> Generation | None:
        """A generation that has ended. None: there is none, or not one of the requester's.

        One whose process has died is ended here, so that its readers need not wait for anybody.
        Raises StoreUnavailable.
        """
        kept = self._store.get_ended(stream_id, requester)
        if kept is None and self._store.exists(stream_id):
            self.recover()
            kept = self._store.get_ended(stream_id, requester)
        return None if kept is None else StoredGeneration(kept)

    def has_ended(self, stream_id: str, requester: str | None) -> bool:
        """Whether there is one of the requester's that has ended. Raises StoreUnavailable."""
        state = self._store.state(stream_id, requester)
        if state == "running":
            self.recover()
            state = self._store.state(stream_id, requester)
        return state not in {None, "running"}

    def ended_among(
        self, stream_ids: Sequence[str], requester: str | None
    ) -> Collection[str] | None:
        """Those that `is_over` says of. None: the store does not answer in time."""

        def over() -> set[str]:
            return {each for each in stream_ids if self.has_ended(each, requester)}

        return self._lookups.ask(over)

    def recover(self) -> int:
        """End what the workers that are no longer alive have left; how many generations it was.

        Raises StoreUnavailable.
        """
        if not self._recovering.acquire(timeout=RECOVERY_WAIT):
            raise StoreUnavailable(f"This could not be read: {NO_ANSWER}.", NO_ANSWER)
        try:
            before = time.time() - self._given_up_after
            dead = [
                worker
                for worker, began in self._store.workers_running().items()
                if not (began > before if (lives := self._alive(worker)) is None else lives)
            ]
            return sum(map(self.recover_worker, dead))
        finally:
            self._recovering.release()

    def recover_worker(self, worker: str) -> int:
        """End what one dead worker has left, as interrupted; how many generations it was.

        Any number of processes may do so at the same time: each generation is ended once.
        Raises StoreUnavailable.
        """
        count = sum(map(self._store.interrupt, self._store.running_of(worker)))
        if count:
            logger.warning("worker %s has died: %d answers were interrupted", worker, count)
        return count
