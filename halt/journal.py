"""The log of one generation: append, read after, wait, end.

Events are numbered from 1. Exactly one terminal event ends a log: the first that is offered wins,
and everything offered later is refused. Reading changes nothing, so readers come and go as they
like. Beyond `max_bytes` the oldest events are let go, and a reader that asks for one of those gets
OffsetLost: a gap is never passed over in silence.

One Condition protects everything here; nothing blocks while it is held.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from halt.errors import OffsetLost
from halt.events import (
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
    is_terminal,
)

#: Is told that there are new events. Called with nothing locked; must not block and not raise.
Listener = Callable[[], None]

#: Bytes that an event takes in memory beside its text: the struct, the string's head, the slot.
EVENT_OVERHEAD = 150


class Log(Protocol):
    """What the rest of Halt needs of a log."""

    @property
    def last(self) -> int:
        """Number of the newest event, 0 when there is none."""

    @property
    def first(self) -> int:
        """Number of the oldest event that is kept."""

    @property
    def ended(self) -> Terminal | None:
        """The terminal event, None while the log is open."""

    @property
    def waiting(self) -> int:
        """How many readers are in `wait` at this moment."""

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, roughly."""

    def append(self, event: Delta) -> bool:
        """Add an event. False: the log has ended and nothing was added."""

    def end(self, make: Callable[[], Terminal]) -> bool:
        """End the log with what `make` returns. False: it had ended already."""

    def read(self, after: int) -> list[tuple[int, Event]]:
        """All events with a number above `after`. Raises OffsetLost."""

    def wait(self, after: int, timeout: float) -> None:
        """Return when there is something above `after`, when woken, or after `timeout` seconds."""

    def wake(self) -> None:
        """Let all who wait look again."""

    def subscribe(self, listener: Listener) -> None:
        """From now on call `listener` after each new event, in the thread that added it."""

    def unsubscribe(self, listener: Listener) -> None:
        """Call it no more. Harmless when repeated; a call that is under way ends later."""


class MemoryLog:
    """A log in this process's memory."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()  # the Condition's own; taken as it is it costs less
        self._changed = threading.Condition(self._lock)
        self._events: deque[Event] = deque()
        self._dropped = 0  # events let go at the beginning
        self._max_bytes = max_bytes
        self._size = 0
        self._ended: Terminal | None = None
        self._waiting = 0
        self._listeners: tuple[Listener, ...] = ()  # replaced, never changed

    @property
    def last(self) -> int:
        return self._dropped + len(self._events)

    @property
    def first(self) -> int:
        return self._dropped + 1

    @property
    def ended(self) -> Terminal | None:
        return self._ended

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def size(self) -> int:
        return self._size

    def append(self, event: Delta) -> bool:
        with self._lock:
            if self._ended is not None:
                return False
            self._events.append(event)
            self._size += _weight(event)
            while self._size > self._max_bytes and len(self._events) > 1:
                self._size -= _weight(self._events.popleft())
                self._dropped += 1
            if self._waiting:
                self._changed.notify_all()
            listeners = self._listeners
        for listen in listeners:
            listen()
        return True

    def end(self, make: Callable[[], Terminal]) -> bool:
        with self._changed:
            if self._ended is not None:
                return False
            ended = make()
            self._events.append(ended)
            self._size += _weight(ended)
            self._ended = ended  # last: who sees the end, without the lock, sees its number too
            self._changed.notify_all()
            listeners = self._listeners
        for listen in listeners:
            listen()
        return True

    def read(self, after: int) -> list[tuple[int, Event]]:
        with self._lock:
            start = after - self._dropped
            if start < 0:
                raise OffsetLost(
                    f"Events up to {self._dropped} are no longer kept; {after + 1} was asked for."
                )
            count = len(self._events)
            if start >= count:
                return []
            if start == count - 1:  # the usual case, without walking the deque
                return [(after + 1, self._events[-1])]
            # From the end: what it costs depends on what is new, not on the answer's length.
            new = list(islice(reversed(self._events), count - start))
            new.reverse()
            return list(enumerate(new, after + 1))

    def wait(self, after: int, timeout: float) -> None:
        with self._changed:
            if self._dropped + len(self._events) > after or self._ended is not None:
                return
            self._waiting += 1
            try:
                self._changed.wait(timeout)
            finally:
                self._waiting -= 1

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def subscribe(self, listener: Listener) -> None:
        with self._changed:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        with self._changed:
            self._listeners = tuple(each for each in self._listeners if each != listener)


class StoredLog:
    """The log of a generation that has ended, as a store has kept it.

    Its numbers may have two kinds of gaps. One before the terminal event is passed over: what had
    been there when its process died was written nowhere. Events before any other gap are let go.
    """

    def __init__(self, events: Sequence[tuple[int, Event]]) -> None:
        """`events` with their numbers, in order; the last one is terminal."""
        ended = events[-1][1]
        if not is_terminal(ended):
            raise ValueError("A stored log ends with a terminal event.")
        start = len(events) - 1
        while start > 0 and (
            start == len(events) - 1 or events[start - 1][0] == events[start][0] - 1
        ):
            start -= 1
        self._events = tuple(events[start:])
        self._numbers = [each for each, _ in self._events]
        self._ended: Terminal = ended
        self._size = sum(_weight(event) for _, event in self._events)

    @property
    def last(self) -> int:
        return self._numbers[-1]

    @property
    def first(self) -> int:
        return self._numbers[0]

    @property
    def ended(self) -> Terminal | None:
        return self._ended

    @property
    def waiting(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self._size

    def append(self, event: Delta) -> bool:
        return False

    def end(self, make: Callable[[], Terminal]) -> bool:
        return False

    def read(self, after: int) -> list[tuple[int, Event]]:
        if after < self.first - 1 and len(self._events) > 1:
            raise OffsetLost(
                f"Events up to {self.first - 1} are no longer kept; {after + 1} was asked for."
            )
        return list(self._events[bisect_right(self._numbers, after) :])

    def wait(self, after: int, timeout: float) -> None:
        pass  # there is nothing to come

    def wake(self) -> None:
        pass

    def subscribe(self, listener: Listener) -> None:
        pass

    def unsubscribe(self, listener: Listener) -> None:
        pass


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
