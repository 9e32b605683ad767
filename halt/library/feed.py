"""A bounded queue from the threads that follow runs to one consumer.

A consumer of several runs, or an event loop, cannot wait at the event logs itself. It has one
follower per run: a thread that reads the log like any other viewer and puts the events into the
consumer's feed.

If the consumer is slower than the runs, the feed fills up and its followers wait. No event is lost
and no run is slowed down: the relay appends to the log, from which the follower continues later. A
consumer that falls behind by more than the log keeps gets an OffsetLost.

`_lock` protects everything in a Feed and is held for list operations only. It is reentrant because
the garbage collector may call `close` at any point.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

from halt.clock import now
from halt.core.capacity import RETRY_AFTER
from halt.core.connection import TICK
from halt.core.events import Event, is_terminal
from halt.core.generation import Generation, Viewer
from halt.core.service import GenerationService
from halt.errors import AtCapacity, HaltError, UpstreamError

BUFFERED_MAX = 256  # events that wait for the consumer, plus one group of events

logger = logging.getLogger(__name__)

#: An item for the consumer: the run's label, and its event or the error that ends its events.
Item = tuple[str, Event | HaltError]


class Feed:
    """A bounded queue from any number of followers to one consumer."""

    def __init__(self, on_arrival: Callable[[], object] | None = None) -> None:
        """`on_arrival` wakes a consumer that does not wait in `take`; it must not block."""
        self.on_arrival = on_arrival
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        # The consumer waits to acquire it; a Condition costs twice as much.
        self._wake_up = threading.Lock()
        self._wake_up.acquire()
        self._items: list[Item] = []
        self._limit: float = BUFFERED_MAX
        self._follower_count = 0  # followers that have not put their run's last item
        self._is_waiting = False  # the consumer found no item and has to be woken
        self._is_closed = False

    # --- the followers' side ----------------------------------------------------------------------

    def add(self, followers: Followers, label: str, run: Generation, after: int = 0) -> None:
        """Start a follower for a run, from the event after number `after`. Raises AtCapacity."""
        with self._lock:
            self._follower_count += 1
        try:
            followers.start(run, partial(self._follow, label, run, after))
        except AtCapacity:
            self._remove_follower()
            raise
        followers.register(self)

    def _follow(self, label: str, run: Generation, after: int, viewer: Viewer) -> None:
        is_counted = True
        try:
            for events in run.follow(after, viewer):
                items: list[Item] = [(label, event) for _, event in events]
                # The last item goes out at once; draining the upstream connection may take longer.
                ended = bool(events) and is_terminal(events[-1][1])
                if not self._put(items, last=ended):
                    return
                if ended:
                    is_counted = False
                    return
        except HaltError as fault:
            is_counted = not self._put([(label, fault)], last=True)
        except Exception:
            logger.exception("following stream %s", run.id)
            is_counted = not self._put([(label, UpstreamError("internal"))], last=True)
        finally:
            if is_counted:
                self._remove_follower()

    def _put(self, items: list[Item], *, last: bool) -> bool:
        """Add items, waiting for room. False: the feed is closed. `last`: no more will follow."""
        at = 0
        with self._lock:
            while not self._is_closed:
                if at >= len(items):
                    self._follower_count -= last
                    return True
                if len(self._items) >= self._limit:
                    self._room.wait()
                    continue
                self._items += items[at : at + BUFFERED_MAX]
                at += BUFFERED_MAX
                self._notify_consumer()
        return False

    def _remove_follower(self) -> None:
        with self._lock:
            self._follower_count -= 1
            self._notify_consumer()

    def _notify_consumer(self) -> None:
        """Wake the consumer if it waits. The lock must be held."""
        if not self._is_waiting:
            return
        self._is_waiting = False
        if self._wake_up.locked():  # unlocked: an earlier wake-up was not used, because of Ctrl-C
            self._wake_up.release()
        if self.on_arrival is not None:
            try:
                self.on_arrival()
            except RuntimeError:  # the event loop is closed
                self.close()

    # --- the consumer's side ----------------------------------------------------------------------

    def take(self, *, wait: bool = True) -> list[Item]:
        """Wait for items; return all of them in order of arrival, [] at the end.

        Without `wait` also [] if there are none now; `on_arrival` is called when some arrive.
        """
        while True:
            with self._lock:
                if self._items or self.is_over:
                    items, self._items = self._items, []
                    self._room.notify_all()
                    return items
                self._is_waiting = True
            if not wait:
                return []
            # With a timeout, because a Ctrl-C just before the wait does not end it.
            self._wake_up.acquire(timeout=TICK)

    def __len__(self) -> int:
        """Number of items that wait for the consumer."""
        return len(self._items)

    @property
    def is_over(self) -> bool:
        """True if no more items will come."""
        return self._is_closed or not (self._follower_count or self._items)

    def lift_limit(self) -> None:
        """Accept all remaining items at once, so that the followers end. For ended runs."""
        with self._lock:
            self._limit = float("inf")
            self._room.notify_all()

    def close(self) -> None:
        """End the feed. Its followers end too, after a second of silence at the latest."""
        with self._lock:
            self._is_closed = True
            self._items = []
            self._room.notify_all()
            self._notify_consumer()


class Followers:
    """The threads that follow runs for a program. Each counts as a reader."""

    def __init__(self, generations: GenerationService) -> None:
        self._generations = generations
        self._lock = threading.Lock()  # protects the two below
        self._threads: set[threading.Thread] = set()
        self._feeds: WeakSet[Feed] = WeakSet()

    def start(
        self, run: Generation, body: Callable[[Viewer], None], *, daemon: bool = True
    ) -> None:
        """Call `body` in a new thread, with a viewer of the run. Raises AtCapacity.

        The interpreter waits at exit for a thread that is not a `daemon`.
        """
        viewer = self._generations.readers.view(run)

        def follow() -> None:
            try:
                body(viewer)
            except Exception:
                logger.exception("following stream %s", run.id)
            finally:
                self._generations.readers.unview(run, viewer)
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=follow, name=f"halt-follow-{run.id[:8]}", daemon=daemon)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as exc:  # the system has no more threads
            with self._lock:
                self._threads.discard(thread)
            self._generations.readers.unview(run, viewer)
            raise AtCapacity(
                f"The system can start no more threads. Try again in {RETRY_AFTER:g} s.",
                retry_after=RETRY_AFTER,
            ) from exc

    def register(self, feed: Feed) -> None:
        """Add a feed whose followers must end in `close`."""
        with self._lock:
            self._feeds.add(feed)

    def close(self, within: float) -> None:
        """Wait for the threads, at most `within` seconds in all. Called after all runs ended.

        Does not wait for the calling thread, which may run a callback.
        """
        with self._lock:
            threads = self._threads - {threading.current_thread()}
            feeds = list(self._feeds)
        for feed in feeds:
            feed.lift_limit()
        deadline = now() + within
        for thread in threads:
            thread.join(max(0.0, deadline - now()))
            if thread.is_alive():
                logger.warning("%s is still in a callback; no longer waiting for it", thread.name)
