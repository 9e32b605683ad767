"""The log of one generation: append, read after, wait, end.

Events are numbered from 1. Exactly one terminal event ends a log: the first one wins, and every
later event is refused. Reading changes nothing, so any number of readers may read from any number.
Above `max_bytes` the oldest events are dropped; a read from a dropped event raises OffsetLost, so
that no reader misses events without notice.

One lock protects all state here; no thread blocks while it holds the lock.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from halt.core.events import (
    Content,
    Delta,
    Event,
    Extra,
    Reasoning,
    Terminal,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    encode,
)
from halt.errors import OffsetLost

#: Called after each new event, without a lock. It must not block, and not raise.
Listener = Callable[[], None]

#: Bytes of memory of an event besides its text: the struct, the string's header, the list slot.
EVENT_OVERHEAD = 150

EVENTS_ALL = sys.maxsize
SPARE_MAX = 1024  # empty slots of dropped events at the front of the list before they are cut


class EventLog:
    """See the module. Threads may share one."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._events: list[Event | None] = []  # the first `_spare` are None
        self._spare = 0
        self._dropped = 0  # number of dropped events
        self._last = 0  # read without the lock, so it is set after the event is appended
        self._max_bytes = max_bytes
        self._size = 0
        self._ended: Terminal | None = None
        #: Threads in `wait`: the number above which each needs an event, and the lock it sleeps on.
        self._waiters: list[tuple[float, threading.Lock]] = []
        self._listeners: tuple[Listener, ...] = ()  # replaced, never mutated

    @property
    def last(self) -> int:
        """Number of the newest event, 0 without events."""
        return self._last

    @property
    def first(self) -> int:
        """Number of the oldest event that was not dropped."""
        return self._dropped + 1

    @property
    def ended(self) -> Terminal | None:
        """The terminal event, None while the log is open."""
        return self._ended

    @property
    def waiting(self) -> int:
        """Number of threads in `wait` now."""
        return len(self._waiters)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, estimated."""
        return self._size

    def append(self, event: Delta) -> bool:
        """Add an event. False: the log has ended and nothing was added."""
        with self._lock:
            if self._ended is not None:
                return False
            self._events.append(event)
            self._last += 1
            self._size += _weight(event)
            if self._size > self._max_bytes:
                self._drop()
            if self._waiters:
                self._notify()
            listeners = self._listeners
        for listen in listeners:
            listen()
        return True

    def _drop(self) -> None:
        """Drop the oldest events until the rest fits. The caller holds the lock."""
        events = self._events
        while self._size > self._max_bytes and len(events) - self._spare > 1:
            oldest = events[self._spare]
            assert oldest is not None  # noqa: S101 - the spare slots are before it
            self._size -= _weight(oldest)
            events[self._spare] = None
            self._spare += 1
            self._dropped += 1
        if self._spare > max(SPARE_MAX, len(events) // 2):
            del events[: self._spare]
            self._spare = 0

    def end(self, make: Callable[[], Terminal]) -> bool:
        """End the log with what `make` returns. False: it had ended already."""
        with self._lock:
            if self._ended is not None:
                return False
            ended = make()
            self._events.append(ended)
            self._last += 1
            self._size += _weight(ended)
            # Set last: a thread that sees the end without the lock sees its number too.
            self._ended = ended
            self._notify()
            listeners = self._listeners
        for listen in listeners:
            listen()
        return True

    def read(self, after: int, limit: int = EVENTS_ALL) -> list[tuple[int, Event]]:
        """At most `limit` events numbered above `after`, with their numbers. Raises OffsetLost."""
        with self._lock:
            start = after - self._dropped
            if start < 0:
                raise OffsetLost(
                    f"Event {after + 1} is no longer kept; the oldest is {self._dropped + 1}."
                )
            start += self._spare
            new_events = self._events[start : start + limit]
        if len(new_events) == 1:  # the usual case
            return [(after + 1, new_events[0])]  # type: ignore[list-item]  # not a spare slot
        return list(enumerate(new_events, after + 1))  # type: ignore[arg-type]

    def wait(self, after: float, timeout: float) -> None:
        """Return when the log has an event above `after`, after `wake`, or `timeout` seconds later.

        With an infinite `after` only the end wakes the thread.
        """
        with self._lock:
            if self.last > after or self._ended is not None:
                return
            sleeper = threading.Lock()
            sleeper.acquire()
            waiter = (after, sleeper)
            self._waiters.append(waiter)
        try:
            sleeper.acquire(timeout=timeout)
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def wake(self) -> None:
        """Make every `wait` return."""
        with self._lock:
            for _, sleeper in self._waiters:
                sleeper.release()
            self._waiters.clear()

    def recheck_viewers(self) -> None:
        """Wake every reader, so that it checks whether its viewer has gone."""
        self.wake()
        for listen in self._listeners:
            listen()

    def _notify(self) -> None:
        """Wake the threads with an event to read. The caller holds the lock."""
        remaining = []
        for waiter in self._waiters:
            if self._ended is not None or self._last > waiter[0]:
                waiter[1].release()
            else:
                remaining.append(waiter)
        self._waiters = remaining

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each new event, in the thread that appends it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling `listener`. Idempotent; a call under way may end later."""
        with self._lock:
            self._listeners = tuple(known for known in self._listeners if known != listener)


def _weight(event: Event) -> int:
    text = ""
    if isinstance(event, Content):
        text = event.content
    elif isinstance(event, Reasoning):
        text = event.text
    elif isinstance(event, ToolCall | ToolCallDelta):
        text = event.arguments
    elif isinstance(event, ToolResult):
        text = event.result
    elif isinstance(event, Extra):
        text = encode(event).decode()
    # ASCII text takes 1 byte per character, other scripts 2 or 4; 4 is never too low.
    return EVENT_OVERHEAD + (len(text) if text.isascii() else 4 * len(text))
