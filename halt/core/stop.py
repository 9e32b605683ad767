"""The stop registry: maps a stream's key to the switch that stops the stream.

A switch is a `threading.Event` with a function that interrupts the run's blocking call. A Stop that
comes before its stream leaves a tombstone: a stream that starts with that key within
TOMBSTONE_SECONDS ends at once.

One lock protects both tables, so for each key Stop and start happen in one order or the other, and
either order ends the stream. Switches are pressed outside the lock, since pressing does I/O.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from halt.clock import now
from halt.core.stream_key import StreamKey
from halt.errors import StreamInUse

TOMBSTONE_SECONDS = 30.0
TOMBSTONES_MAX = 10_000  # about 1 MB; at the limit the oldest is removed

#: The result of pressing a switch: this press ended the stream, or it had ended before.
Pressed = Literal["stopped", "finished"]

#: A stream's ID, the person who stopped it, and its expiry on the clock of `halt.clock.now`, which
#: is the same for all processes of the machine.
Tombstone = tuple[str, str, float]


class StopSwitch:
    """The Stop of one stream.

    `event` is set before the interrupt, so that the interrupted thread sees the reason.
    """

    __slots__ = ("_press", "event")

    def __init__(self, press: Callable[[int | None], Pressed]):
        self.event = threading.Event()
        self._press = press

    def press(self, seen: int | None = None) -> Pressed:
        """End the stream; `seen` is the last event that the stopping client had shown, if known."""
        self.event.set()
        return self._press(seen)


class StopRegistry:
    """The switches of this process, and the tombstones of streams that have not begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two tables below
        self._switches: dict[StreamKey, StopSwitch] = {}
        self._tombstones: OrderedDict[StreamKey, float] = OrderedDict()  # key -> expiry

    def __len__(self) -> int:
        return len(self._switches)

    def claim(self, key: StreamKey, switch: StopSwitch) -> bool:
        """Register a stream that is about to start.

        False: a Stop came first, and the stream must end at once. Raises StreamInUse.
        """
        with self._lock:
            if key in self._switches:
                raise StreamInUse(key.id)
            self._switches[key] = switch
            return self._tombstones.pop(key, 0.0) <= now()

    def press(self, key: StreamKey, seen: int | None = None) -> Pressed | None:
        """Press the switch of a stream. None: there is none, and a tombstone is left for it."""
        with self._lock:
            switch = self._switches.get(key)
            if switch is None:
                self._add_tombstone(key)
                return None
        return switch.press(seen)

    def _add_tombstone(self, key: StreamKey) -> None:
        """Leave a tombstone, and drop those that have expired. The caller holds the lock."""
        at = now()
        self._tombstones[key] = at + TOMBSTONE_SECONDS
        self._tombstones.move_to_end(key)
        while self._tombstones:
            oldest = next(iter(self._tombstones.values()))
            if oldest > at and len(self._tombstones) <= TOMBSTONES_MAX:
                break
            self._tombstones.popitem(last=False)

    def tombstones(self) -> list[Tombstone]:
        """The tombstones that have not expired, the oldest first."""
        at = now()
        with self._lock:
            return [
                (key.id, key.owner, until) for key, until in self._tombstones.items() if until > at
            ]

    def inherit(self, tombstones: list[Tombstone]) -> None:
        """Add another registry's tombstones."""
        with self._lock:
            for stream_id, owner, until in tombstones:
                key = StreamKey(owner, stream_id)
                self._tombstones[key] = max(until, self._tombstones.get(key, 0.0))
            in_order = sorted(self._tombstones.items(), key=lambda item: item[1])
            self._tombstones = OrderedDict(in_order[-TOMBSTONES_MAX:])

    def release(self, key: StreamKey) -> None:
        """Remove the switch of a stream whose log is no longer kept."""
        with self._lock:
            self._switches.pop(key, None)
