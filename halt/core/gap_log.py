"""The event log of another process's generation: the part of its events that is known here.

Events may be missing before its first one and before its terminal one.
"""

from __future__ import annotations

from collections.abc import Callable

from halt.core.events import Event, Terminal, is_terminal
from halt.core.log import EVENTS_ALL, EventLog


class GapLog(EventLog):
    """See the module."""

    def __init__(self, max_bytes: int, first: int) -> None:
        """`first` is the number of the first event that will be appended."""
        super().__init__(max_bytes)
        self._dropped = self._last = first - 1
        self._missing_before_end = 0  # number of missing events before the terminal event

    @property
    def last(self) -> int:
        ended = self._ended is not None
        return super().last + (self._missing_before_end if ended else 0)

    def read(self, after: int, limit: int = EVENTS_ALL) -> list[tuple[int, Event]]:
        last = self.last
        if self._ended is None or not self._missing_before_end:
            return super().read(after, limit)
        events = super().read(min(after, last - self._missing_before_end - 1), limit)
        if is_terminal(events[-1][1]):
            events[-1] = (last, events[-1][1])
        return events if after < last else []

    def end_at(self, number: int, make: Callable[[], Terminal]) -> bool:
        """End the log; the terminal event gets this number. False: it had ended already."""

        def make_after_gap() -> Terminal:
            self._missing_before_end = max(0, number - (self._last + 1))
            return make()

        return self.end(make_after_gap)

    def skip(self, first: int) -> None:
        """Drop all events and continue at number `first`: the ones before are not available."""
        with self._lock:
            self._events.clear()
            self._size = self._spare = 0
            self._dropped = self._last = first - 1
