"""How much a process makes at once: places for open streams, IDs in use, threads of readers.

A place and an ID belong to a run until it lets go of them, and may be shared with other processes
(`halt.core.slots`). They are taken and given back without a lock of this process; `_lock` protects
the tables and counts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from halt.clock import now
from halt.core.generation import Generation, Viewer
from halt.core.limits import Limits
from halt.core.run import Run
from halt.core.slots import Slots, number_of
from halt.errors import AtCapacity, StreamInUse

ROOM_WAIT = 0.05  # seconds that a start waits for a place that is being given back
ROOM_TICK = 0.01  # seconds between two looks for a place that another process gives back
RETRY_AFTER = 2.0  # seconds, told to clients that found no place


class Capacity:
    """Places for open streams, and the IDs in use."""

    def __init__(self, limits: Limits, shares: Callable[[], bool]) -> None:
        """`shares` says whether other processes take and give back places, too."""
        self.places, self.ids = Slots(), Slots()
        #: Places for page streams, some for each session, taken by the view that opens one.
        self.tabs = Slots()
        self._limits = limits
        self._shares = shares
        self._lock = threading.Lock()  # protects everything below
        self._room = threading.Condition(self._lock)  # a place was given back
        self._live: dict[Run, int] = {}  # runs that have a place, and its number
        self._returning = 0  # places of settled runs that are being given back
        self._returned = 0  # places that have been given back since the start

    def __len__(self) -> int:
        """Runs of this process that have a place."""
        return len(self._live)

    def __contains__(self, run: Run) -> bool:
        return run in self._live

    def live(self) -> list[Run]:
        """Those runs."""
        with self._lock:
            return list(self._live)

    def expect(self, starts: int) -> None:
        """Raise AtCapacity where so many places are not free. None is taken."""
        most = self._limits.max_streams
        self._find_room(lambda: self.places.are_free(most, starts) or None)

    def take(self, stream_id: str) -> int:
        """Take this ID, and a place, whose number is returned. Raises AtCapacity, StreamInUse."""
        place = self._find_room(lambda: self.places.take(self._limits.max_streams))
        try:
            if self.ids.take(1, number_of(stream_id)) is None:
                raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")
        except BaseException:  # Ctrl-C in a program's own thread, too
            self._give_back(place)
            raise
        return place

    def refuse(self, stream_id: str, place: int) -> None:
        """Give both back, for a run that will not begin."""
        self.give_back_id(stream_id)
        self._give_back(place)

    def hold(self, run: Run, place: int) -> None:
        """The run has this place from now on."""
        with self._lock:
            self._live[run] = place

    def release_place(self, run: Run) -> bool:
        """Take its place from a run, and wake the starts that wait for one. False: it has none."""
        with self._lock:
            place = self._live.pop(run, None)
            if place is None:
                return False
            self._returning += 1
        self._give_back(place)
        with self._lock:
            self._returning -= 1
        return True

    def give_back_id(self, stream_id: str) -> None:
        """Another run may have this ID. Harmless when repeated."""
        self.ids.give_back(number_of(stream_id))

    def wait_empty(self, timeout: float) -> None:
        """Wait until no run has a place, for so many seconds at most."""
        with self._lock:
            self._room.wait_for(lambda: not self._live, timeout)

    def _find_room(self, look: Callable[[], int | None]) -> int:
        """What `look` finds among the places for open streams. Raises AtCapacity.

        A place that an ended run, or another process, is about to give back is waited for, up to
        ROOM_WAIT. So a client that was told the end can start anew at once, on a full server too.
        """
        until = now() + ROOM_WAIT
        shared: bool | None = None
        while True:
            returned = self._returned  # before the look: a place that comes back after it is seen
            found = look()
            if found is not None:
                return found
            if shared is None:
                shared = self._shares()
            with self._lock:
                leaving = (
                    shared
                    or self._returning
                    or self._returned != returned
                    or any(run.log.ended is not None for run in self._live)
                )
                left = until - now()
                if left <= 0 or not leaving:
                    raise AtCapacity(
                        f"All {self._limits.max_streams} places for streams are taken.",
                        retry_after=RETRY_AFTER,
                    )
                # Places of other processes come back without a word.
                self._room.wait_for(
                    lambda: self._returned != returned,  # noqa: B023 - called before the next turn
                    min(left, ROOM_TICK) if shared else left,
                )

    def _give_back(self, place: int) -> None:
        """Give back a place of an open stream, and wake the starts that wait for one."""
        self.places.give_back(place)
        with self._lock:
            self._returned += 1
            self._room.notify_all()


class Readers:
    """Readers that hold a thread of the server: at most as many as there are places."""

    def __init__(self, limits: Limits, check: Callable[[], None]) -> None:
        """`check` raises Draining where no connection is taken any more."""
        self._limits = limits
        self._check = check
        self._views: dict[Viewer, Generation] = {}
        self._changed = threading.Condition()  # protects the number below: one was given back
        self._taken = 0  # of those views, and of connections that follow runs by themselves

    def view(self, run: Generation) -> Viewer:
        """Begin to watch a run in a thread of the server.

        Raises AtCapacity: so many readers hold a thread that Stop would be the next to wait.
        """
        self._take()
        try:
            viewer = run.join()
        except BaseException:
            self.give_back_place()
            raise
        self._views[viewer] = run
        return viewer

    def unview(self, run: Generation, viewer: Viewer) -> None:
        """Watch no more; the reader's thread is free again. To be called once for each `view`."""
        self._views.pop(viewer, None)
        self.give_back_place()
        run.leave(viewer)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A reader's place for a request that waits for something else. Raises AtCapacity."""
        self.take_place()
        try:
            yield
        finally:
            self.give_back_place()

    def take_place(self) -> None:
        """Take a reader's place for a connection that follows runs by itself: it holds a thread.

        Raises AtCapacity, Draining.
        """
        self._check()
        self._take()

    def give_back_place(self) -> None:
        """The connection is over. To be called once for each `take_place`."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def _take(self) -> None:
        """Count one more reader. Raises AtCapacity.

        A place of a reader whose run has ended is waited for, up to ROOM_WAIT.
        """
        most = self._limits.max_streams
        with self._changed:
            if self._taken >= most:
                leaving = any(run.log.ended is not None for run in list(self._views.values()))
                if not (leaving and self._changed.wait_for(lambda: self._taken < most, ROOM_WAIT)):
                    raise AtCapacity("All places for readers are taken.", retry_after=RETRY_AFTER)
            self._taken += 1
