"""From threads that follow runs to one consumer, never far ahead of it.

A consumer that waits for several runs at once, or that is an event loop, cannot wait at their logs
itself. For each run it has a follower: a thread that is a viewer like any other, waits at the log
and hands over what came. No run has more than this one.

When the consumer is slower than the runs, the feed fills and its followers wait. Nothing is lost
and no run is slowed down: the relay fills the log, from which the follower goes on later; a
consumer that is slower than the log is long gets an OffsetLost.

`_lock` guards everything in a Feed, and is held for list work only. It is reentrant, as `close` may
be called by the garbage collector, in the middle of anything.
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

BUFFERED_MAX = 256  # events that wait for the consumer; a group more may be in its hands

logger = logging.getLogger(__name__)

#: What a consumer gets: the run's label and its event, or why there are no more of them.
Item = tuple[str, Event | HaltError]


class Feed:
    """A bounded hand-over from any number of followers to one consumer."""

    def __init__(self, on_arrival: Callable[[], object] | None = None) -> None:
        """`on_arrival` tells a consumer that waits elsewhere than in `take`; it must not block."""
        self.on_arrival = on_arrival
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        # The consumer waits to acquire it; a Condition costs twice as much.
        self._wake_up = threading.Lock()
        self._wake_up.acquire()
        self._items: list[Item] = []
        self._limit: float = BUFFERED_MAX
        self._follower_count = 0  # followers whose run has not come to its end here
        self._is_waiting = False  # the consumer has found nothing and wants to be told
        self._is_closed = False

    # --- the followers' side ----------------------------------------------------------------------

    def add(self, followers: Followers, label: str, run: Generation, after: int = 0) -> None:
        """Follow this run, too, from the event behind `after`. Raises AtCapacity."""
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
                # The end is told at once; the connection behind it may have to be drained still.
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
        """Hand over, waiting for room. False: the consumer wants no more."""
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
        if not self._is_waiting:
            return
        self._is_waiting = False
        if self._wake_up.locked():  # else it was rung for a consumer that Ctrl-C took away
            self._wake_up.release()
        if self.on_arrival is not None:
            try:
                self.on_arrival()
            except RuntimeError:  # its event loop is closed
                self.close()

    # --- the consumer's side ----------------------------------------------------------------------

    def take(self, *, wait: bool = True) -> list[Item]:
        """What has arrived, in the order of arrival; [] when there is no more to come.

        Without `wait` also [] when nothing is there now; `on_arrival` will be called.
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
            # Not for ever: a Ctrl-C that comes as the wait begins does not end it.
            self._wake_up.acquire(timeout=TICK)

    @property
    def is_over(self) -> bool:
        """There is no more to come."""
        return self._is_closed or not (self._follower_count or self._items)

    def lift_limit(self) -> None:
        """The runs have ended: take what is left of them at once, so that the followers can go."""
        with self._lock:
            self._limit = float("inf")
            self._room.notify_all()

    def close(self) -> None:
        """The consumer wants no more; its followers go, at the latest after a second's silence."""
        with self._lock:
            self._is_closed = True
            self._items = []
            self._room.notify_all()
            self._notify_consumer()


class Followers:
    """The threads that follow runs on behalf of a program. Each takes a reader's place."""

    def __init__(self, generations: GenerationService) -> None:
        self._generations = generations
        self._lock = threading.Lock()  # protects the two below
        self._threads: set[threading.Thread] = set()
        self._feeds: WeakSet[Feed] = WeakSet()

    def start(
        self, run: Generation, body: Callable[[Viewer], None], *, daemon: bool = True
    ) -> None:
        """Run `body` as a viewer of this run, in a thread of its own. Raises AtCapacity.

        The interpreter waits at its exit for one that is no `daemon`.
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
            raise AtCapacity("There is no thread to be had.", retry_after=RETRY_AFTER) from exc

    def register(self, feed: Feed) -> None:
        """Remember a feed, to let its followers go at the end."""
        with self._lock:
            self._feeds.add(feed)

    def close(self, within: float) -> None:
        """After the end of all runs: wait for the threads, at most `within` seconds in all.

        The thread that calls is not waited for: it may be a callback's.
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
                logger.warning("%s is in a callback still and is left to itself", thread.name)
