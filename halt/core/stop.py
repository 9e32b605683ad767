"""The stop registry: maps a stream's ID to the switch that stops the stream.

A switch is a `threading.Event` with a function that interrupts the run's blocking call. A Stop that
comes before its stream leaves a tombstone: a stream that starts with that ID within
TOMBSTONE_SECONDS ends at once.

One lock protects both tables, so for each ID Stop and start happen in one order or the other, and
either order ends the stream. Switches are pressed outside the lock, since pressing does I/O.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from halt.clock import now
from halt.errors import StreamInUse

TOMBSTONE_SECONDS = 30.0
TOMBSTONES_MAX = 10_000  # about 1 MB; at the limit the oldest is removed

#: The result of pressing a switch: this press ended the stream, or it had ended before.
Pressed = Literal["stopped", "finished"]

#: A stream's ID, the session that stopped it (None for a program), and its expiry on the clock of
#: `halt.clock.now`, which is the same for all processes of the machine.
Tombstone = tuple[str, str | None, float]


class StopSwitch:
    """The Stop of one stream. `owner` is the session that may press it; None: any client.

    `event` is set before the interrupt, so that the interrupted thread sees the reason.
    """

    __slots__ = ("_press", "event", "owner")

    def __init__(self, press: Callable[[int | None], Pressed], owner: str | None = None):
        self.event = threading.Event()
        self.owner = owner
        self._press = press

    def press(self, seen: int | None = None) -> Pressed:
        """End the stream; `seen` is the last event that the stopping client had shown, if known."""
        self.event.set()
        return self._press(seen)


def may_touch(owner: str | None, requester: str | None) -> bool:
    """Whether `requester` may read and stop a stream: it is the owner, or there is no owner."""
    return owner is None or owner == requester


class StopRegistry:
    """The switches of this process, and the tombstones of streams that have not begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two tables below
        self._switches: dict[str, StopSwitch] = {}
        self._tombstones: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._switches)

    def claim(self, stream_id: str, switch: StopSwitch) -> bool:
        """Register a stream that is about to start.

        False: a Stop came first, and the stream must end at once. Raises StreamInUse.
        """
        with self._lock:
            if stream_id in self._switches:
                raise StreamInUse(stream_id)
            self._switches[stream_id] = switch
            return self._tombstones.pop((stream_id, switch.owner), 0.0) <= now()

    def press(
        self, stream_id: str, requester: str | None, seen: int | None = None
    ) -> Pressed | None:
        """Press the switch of a stream. None: there is no such stream; a tombstone is left for it.

        The result is also None for a stream of another session, which gets no tombstone.
        """
        with self._lock:
            switch = self._switches.get(stream_id)
            if switch is None or not may_touch(switch.owner, requester):
                if switch is None:
                    self._add_tombstones(stream_id, requester)
                return None
        return switch.press(seen)

    def _add_tombstones(self, stream_id: str, requester: str | None) -> None:
        """Leave a tombstone for the requester's stream, and one for a stream without an owner.

        The caller holds the lock. Each requester has its own tombstones, so a Stop of another
        session replaces none.
        """
        at = now()
        for owner in {requester, None}:
            self._tombstones[stream_id, owner] = at + TOMBSTONE_SECONDS
            self._tombstones.move_to_end((stream_id, owner))
        while self._tombstones:
            oldest = next(iter(self._tombstones.values()))
            if oldest > at and len(self._tombstones) <= TOMBSTONES_MAX:
                break
            self._tombstones.popitem(last=False)

    def tombstones(self) -> list[Tombstone]:
        """The tombstones that have not expired, the oldest first."""
        at = now()
        with self._lock:
            return [(*key, until) for key, until in self._tombstones.items() if until > at]

    def inherit(self, tombstones: list[Tombstone]) -> None:
        """Add another registry's tombstones."""
        with self._lock:
            for stream_id, owner, until in tombstones:
                known_until = self._tombstones.get((stream_id, owner), 0.0)
                self._tombstones[stream_id, owner] = max(until, known_until)
            in_order = sorted(self._tombstones.items(), key=lambda item: item[1])
            self._tombstones = OrderedDict(in_order[-TOMBSTONES_MAX:])

    def release(self, stream_id: str) -> None:
        """Remove the switch of a stream whose log is no longer kept."""
        with self._lock:
            self._switches.pop(stream_id, None)
