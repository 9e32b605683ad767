"""The log of one generation: append, read after, wait, end.

Events are numbered from 1. Exactly one terminal event ends a log: the first that is offered wins,
and everything offered later is refused. Reading changes nothing, so readers come and go as they
like. Beyond `max_bytes` the oldest events are let go, and a reader that asks for one of those gets
OffsetLost: a gap is never passed over in silence.

One lock protects everything here; nothing blocks while it is held.
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

#: Is told that there are new events. Called with nothing locked; must not block and not raise.
Listener = Callable[[], None]

#: Bytes that an event takes in memory beside its text: the struct, the string's head, the slot.
EVENT_OVERHEAD = 150

EVENTS_ALL = sys.maxsize
SPARE_MAX = 1024  # slots of dropped events that a log keeps before it closes the gap


class EventLog:
    """See the module. Threads may share one."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._events: list[Event | None] = []  # the first `_spare` are None
        self._spare = 0
        self._dropped = 0  # events let go at the beginning
        self._last = 0  # read without the lock, so it is set when the event is there
        self._max_bytes = max_bytes
        self._size = 0
        self._ended: Terminal | None = None
        #: Threads in `wait`: the number above which they want an event, and the lock they sleep on.
        self._waiters: list[tuple[float, threading.Lock]] = []
        self._listeners: tuple[Listener, ...] = ()  # replaced, never changed

    @property
    def last(self) -> int:
        """Number of the newest event, 0 when there is none."""
        return self._last

    @property
    def first(self) -> int:
        """Number of the oldest event that is kept."""
        return self._dropped + 1

    @property
    def ended(self) -> Terminal | None:
        """The terminal event, None while the log is open."""
        return self._ended

    @property
    def waiting(self) -> int:
        """Threads in `wait` at this moment."""
        return len(self._waiters)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, roughly."""
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
        """Let go of the oldest events until the rest fits. The lock is held."""
        events = self._events
        while self._size > self._max_bytes and len(events) - self._spare > 1:
            oldest = events[self._spare]
            assert oldest is not None  # noqa: S101 - it is behind the spare ones
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
            # Last: a thread that sees the end without the lock sees its number too.
            self._ended = ended
            self._notify()
            listeners = self._listeners
        for listen in listeners:
            listen()
        return True

    def read(self, after: int, most: int = EVENTS_ALL) -> list[tuple[int, Event]]:
        """The next events with a number above `after`, `most` at most. Raises OffsetLost."""
        with self._lock:
            start = after - self._dropped
            if start < 0:
                raise OffsetLost(
                    f"Events up to {self._dropped} are no longer kept; {after + 1} was asked for."
                )
            start += self._spare
            new = self._events[start : start + most]
        if len(new) == 1:  # the usual case
            return [(after + 1, new[0])]  # type: ignore[list-item]  # it is behind the spare ones
        return list(enumerate(new, after + 1))  # type: ignore[arg-type]

    def wait(self, after: float, timeout: float) -> None:
        """Return when there is something above `after`, when woken, or after `timeout` seconds.

        With an infinite `after` the end alone counts, and no event before it wakes the thread.
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
        """Return from every `wait`."""
        with self._lock:
            for _, sleeper in self._waiters:
                sleeper.release()
            self._waiters.clear()

    def _notify(self) -> None:
        """Wake the threads that have something to read. The lock is held."""
        left = []
        for waiter in self._waiters:
            if self._ended is not None or self._last > waiter[0]:
                waiter[1].release()
            else:
                left.append(waiter)
        self._waiters = left

    def subscribe(self, listener: Listener) -> None:
        """From now on call `listener` after each new event, in the thread that added it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Call it no more. Harmless when repeated; a call that is under way ends later."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each != listener)


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
    # ASCII takes a byte a character, other scripts two or four; four is never too little for the
    # rare and near enough for the usual.
    return EVENT_OVERHEAD + (len(text) if text.isascii() else 4 * len(text))
