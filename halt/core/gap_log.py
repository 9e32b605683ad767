"""A log whose first event need not be number 1, and whose end may leave a gap before it.

So it holds what is known of a generation that another process makes, or has made.
"""

from __future__ import annotations

from collections.abc import Callable

from halt.core.events import Event, Terminal, is_terminal
from halt.core.log import EVENTS_ALL, EventLog


class GapLog(EventLog):
    """See the module."""

    def __init__(self, max_bytes: int, first: int) -> None:
        """`first` is the number of the first event that can be added."""
        super().__init__(max_bytes)
        self._dropped = self._last = first - 1
        self._gap = 0  # numbers before the terminal event that no event has

    @property
    def last(self) -> int:
        ended = self._ended is not None
        return super().last + (self._gap if ended else 0)

    def read(self, after: int, most: int = EVENTS_ALL) -> list[tuple[int, Event]]:
        last = self.last
        if self._ended is None or not self._gap:
            return super().read(after, most)
        events = super().read(min(after, last - self._gap - 1), most)
        if is_terminal(events[-1][1]):
            events[-1] = (last, events[-1][1])
        return events if after < last else []

    def end_at(self, number: int, make: Callable[[], Terminal]) -> bool:
        """End the log with this number. False: it had ended already."""

        def made() -> Terminal:
            self._gap = max(0, number - (self._last + 1))
            return make()

        return self.end(made)

    def look_again(self) -> None:
        """Have every reader look whether it is to go."""
        self.wake()
        for listen in self._listeners:
            listen()

    def skip(self, first: int) -> None:
        """The events before this one are not to be had: let go of those that are here."""
        with self._lock:
            self._events.clear()
            self._size = self._spare = 0
            self._dropped = self._last = first - 1
