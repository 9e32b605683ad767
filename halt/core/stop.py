"""The stop registry: stream ID -> the switch that stops that stream.

A switch is a `threading.Event` together with the way to interrupt whatever the run is blocked in.
A Stop that comes before its stream leaves a tombstone: a stream that starts with that ID within
TOMBSTONE_SECONDS finds its switch pressed already.

One lock protects both tables, so that for each ID "Stop" and "start" happen in one order or the
other, and either order ends the stream. Switches are pressed outside the lock: pressing does I/O.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from halt.clock import now
from halt.errors import StreamInUse

TOMBSTONE_SECONDS = 30.0
TOMBSTONES_MAX = 10_000  # oldest first out: a flood of Stops costs a megabyte, not the machine

#: What pressing a switch did: this press ended the stream, or it had ended before.
Pressed = Literal["stopped", "finished"]

#: A stream's ID, the session that stopped it (None: none), and until when it holds. The clock
#: of `halt.clock.now` is the machine's: all processes read the same time.
Tombstone = tuple[str, str | None, float]


class StopSwitch:
    """The Stop of one stream. `owner` is the session that may press it, None: all that know the ID.

    `event` is set before anything is interrupted, so that a thread that wakes up sees why.
    """

    __slots__ = ("_press", "event", "owner")

    def __init__(self, press: Callable[[int | None], Pressed], owner: str | None = None):
        self.event = threading.Event()
        self.owner = owner
        self._press = press

    def press(self, seen: int | None = None) -> Pressed:
        """End the stream; `seen` is the last event that the presser was shown, if known."""
        self.event.set()
        return self._press(seen)


def may_touch(owner: str | None, requester: str | None) -> bool:
    """A stream of a session belongs to it; one started by a program, to all that know its ID."""
    return owner is None or owner == requester


class StopRegistry:
    """All switches of this process, and the tombstones of streams that have not begun yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two tables below
        self._switches: dict[str, StopSwitch] = {}
        self._tombstones: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._switches)

    def claim(self, stream_id: str, switch: StopSwitch) -> bool:
        """Register a stream that is about to start.

        False: a Stop was there first, and the stream must end at once. Raises StreamInUse.
        """
        with self._lock:
            if stream_id in self._switches:
                raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")
            self._switches[stream_id] = switch
            return self._tombstones.pop((stream_id, switch.owner), 0.0) <= now()

    def press(
        self, stream_id: str, requester: str | None, seen: int | None = None
    ) -> Pressed | None:
        """Press the switch of a stream. None: no such stream yet; a tombstone waits for it.

        A stream of another session is answered like one that does not exist.
        """
        with self._lock:
            switch = self._switches.get(stream_id)
            if switch is None or not may_touch(switch.owner, requester):
                if switch is None:
                    self._bury(stream_id, requester)
                return None
        return switch.press(seen)

    def _bury(self, stream_id: str, requester: str | None) -> None:
        """Leave a tombstone for the requester's own stream and one for a stream of no session.

        The lock is held. Each requester has its own: a stranger's Stop replaces no other.
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
        """Those that wait still, the oldest first."""
        at = now()
        with self._lock:
            return [(*who, until) for who, until in self._tombstones.items() if until > at]

    def inherit(self, tombstones: list[Tombstone]) -> None:
        """Add another registry's tombstones to those that are here."""
        with self._lock:
            for stream_id, owner, until in tombstones:
                known = self._tombstones.get((stream_id, owner), 0.0)
                self._tombstones[stream_id, owner] = max(until, known)
            in_order = sorted(self._tombstones.items(), key=lambda each: each[1])
            self._tombstones = OrderedDict(in_order[-TOMBSTONES_MAX:])

    def release(self, stream_id: str) -> None:
        """Forget a stream whose log is no longer kept."""
        with self._lock:
            self._switches.pop(stream_id, None)
