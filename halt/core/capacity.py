"""Limits what runs at once: places for streams and keys, which workers share, and reading threads.

A run holds a place and its key until it gives them back; other processes may share them
(`halt.core.slots`). They are taken and given back without holding `_lock`, which protects the
tables and counts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from halt.clock import now
from halt.core.generation import Generation, Viewer
from halt.core.limits import Limits
from halt.core.run import Run
from halt.core.slots import Slots, number_of
from halt.core.stream_key import StreamKey
from halt.errors import AtCapacity, StreamInUse

PLACE_WAIT = 0.05  # seconds that a start waits for a place that is being given back
PLACE_TICK = 0.01  # seconds between two attempts to take a place of another process
RETRY_AFTER = 2.0  # seconds after which a refused client may try again


class Capacity:
    """Places for open streams and for page streams (`page_streams`), and the keys in use."""

    def __init__(self, limits: Limits, has_other_processes: Callable[[], bool]) -> None:
        """`has_other_processes` returns whether other processes use the same places."""
        self.places, self.keys = Slots(), Slots()
        #: Places for page streams, a few per session. The view that opens a stream takes one.
        self.page_streams = Slots()
        self._limits = limits
        self._has_other_processes = has_other_processes
        self._lock = threading.Lock()  # protects everything below
        self._place_freed = threading.Condition(self._lock)  # a place was given back
        self._live: dict[Run, int] = {}  # runs that have a place, and its number
        self._returning = 0  # places that are being given back now
        self._returned = 0  # places that have been given back since the start

    def __len__(self) -> int:
        """Number of this process's runs that have a place."""
        return len(self._live)

    def __contains__(self, run: Run) -> bool:
        return run in self._live

    def live(self) -> list[Run]:
        """This process's runs that have a place."""
        with self._lock:
            return list(self._live)

    def require_places(self, starts: int) -> None:
        """Raise AtCapacity unless `starts` places are free. Takes no place."""
        most = self._limits.max_streams
        self._wait_for_place(lambda: self.places.are_free(most, starts) or None)

    def take(self, key: StreamKey) -> int:
        """Take this key and a place. Returns its number. Raises AtCapacity, StreamInUse."""
        place = self._wait_for_place(lambda: self.places.take(self._limits.max_streams))
        try:
            if self.keys.take(1, _number_of(key)) is None:
                raise StreamInUse(key.id)
        except BaseException:  # Ctrl-C in a program's own thread, too
            self._give_back_place(place)
            raise
        return place

    def give_back(self, key: StreamKey, place: int) -> None:
        """Give back the key and the place of a run that will not begin."""
        self.give_back_key(key)
        self._give_back_place(place)

    def hold(self, run: Run, place: int) -> None:
        """Record that the run has this place."""
        with self._lock:
            self._live[run] = place

    def release_place(self, run: Run) -> bool:
        """Give back a run's place and wake the starts that wait for one. False: it had none."""
        with self._lock:
            place = self._live.pop(run, None)
            if place is None:
                return False
            self._returning += 1
        self._give_back_place(place)
        with self._lock:
            self._returning -= 1
        return True

    def give_back_key(self, key: StreamKey) -> None:
        """Let another run take this key. Idempotent."""
        self.keys.give_back(_number_of(key))

    def wait_empty(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until no run has a place."""
        with self._lock:
            self._place_freed.wait_for(lambda: not self._live, timeout)

    def _wait_for_place(self, find_place: Callable[[], int | None]) -> int:
        """Call `find_place` until it returns a number, for at most PLACE_WAIT. Raises AtCapacity.

        It waits only while an ended run is about to give back its place, or other processes share
        the places. So a client that has read the end of a stream can start another at once, even
        on a full server.
        """
        until = now() + PLACE_WAIT
        is_shared: bool | None = None
        while True:
            # Read before `find_place`, so that a place given back after it counts.
            returned = self._returned
            number = find_place()
            if number is not None:
                return number
            if is_shared is None:
                is_shared = self._has_other_processes()
            with self._lock:
                leaving = (
                    is_shared
                    or self._returning
                    or self._returned != returned
                    or any(run.log.ended is not None for run in self._live)
                )
                seconds_left = until - now()
                if seconds_left <= 0 or not leaving:
                    raise _at_limit("open streams", self._limits)
                # Other processes give places back without notifying this one.
                self._place_freed.wait_for(
                    lambda: self._returned != returned,  # noqa: B023 - called before the next turn
                    min(seconds_left, PLACE_TICK) if is_shared else seconds_left,
                )

    def _give_back_place(self, place: int) -> None:
        """Give back a place for streams, and wake the starts that wait for one."""
        self.places.give_back(place)
        with self._lock:
            self._returned += 1
            self._place_freed.notify_all()


class Connection(Protocol):
    """A client's connection that follows runs itself."""

    @property
    def owner(self) -> str:
        """The ID of its person."""

    @property
    def credential(self) -> str:
        """What its client was let in by, "" where there is none."""

    def refuse(self) -> None:
        """Close it, because its credential is no longer valid. Does not wait. May be repeated."""


class ReaderLimit:
    """Limits the readers that hold a thread of the server to the number of places.

    It also knows by what each was let in, and ends those that are no longer allowed to read. The
    reader's own thread or the relay removes a reader; `refuse` only sets a flag and wakes it. So a
    reader that ends at the same moment ends once, and its place is given back once.
    """

    def __init__(self, limits: Limits, check: Callable[[], None]) -> None:
        """`check` raises Draining when no new connection is accepted."""
        self._limits = limits
        self._check = check
        #: The credential of the request that this thread handles, "" for none.
        self.credential: Callable[[], str] = str
        # These two are changed by single operations and copied by `list`, so without a lock.
        self._views: dict[Viewer, Generation] = {}
        self._connections: dict[Connection, None] = {}
        self._changed = threading.Condition()  # protects the number below; notified at a decrease
        self._taken = 0  # threads held by those views, and by connections that follow runs

    def view(self, run: Generation) -> Viewer:
        """Add a viewer that holds a thread of the server.

        Raises AtCapacity at the limit, which leaves threads for Stop requests.
        """
        self._take()
        try:
            viewer = run.join()
        except BaseException:
            self.give_back_place()
            raise
        viewer.credential = self.credential()
        self._views[viewer] = run
        return viewer

    def unview(self, run: Generation, viewer: Viewer) -> None:
        """Remove the viewer; its thread is free again. Call once for each `view`."""
        self._views.pop(viewer, None)
        self.give_back_place()
        run.leave(viewer)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Context manager: hold a reader's place, for a request that blocks. Raises AtCapacity."""
        self.take_place()
        try:
            yield
        finally:
            self.give_back_place()

    def take_place(self) -> None:
        """Take a reader's place for a connection that follows runs itself, and holds a thread.

        Raises AtCapacity, Draining.
        """
        self._check()
        self._take()

    def give_back_place(self) -> None:
        """Give a reader's place back. Call once for each `take_place`."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    @contextlib.contextmanager
    def connected(self, connection: Connection) -> Iterator[None]:
        """Context manager: the connection follows runs and can be refused."""
        self._connections[connection] = None
        try:
            yield
        finally:
            del self._connections[connection]

    def admitted(self) -> set[tuple[str, str]]:
        """The person and the credential of each reader, each pair once."""
        readers = {(run.owner, viewer.credential) for viewer, run in list(self._views.items())}
        return readers | {(other.owner, other.credential) for other in list(self._connections)}

    def refuse(self, is_refused: Callable[[str, str], bool]) -> int:
        """End the readers for whose person and credential it is true. Returns their number."""
        count = 0
        for viewer, run in list(self._views.items()):
            if not viewer.is_refused and is_refused(run.owner, viewer.credential):
                viewer.is_refused = True  # before `gone`, so that the reader sees why
                viewer.gone = True
                run.log.recheck_viewers()
                count += 1
        for connection in list(self._connections):
            if is_refused(connection.owner, connection.credential):
                connection.refuse()
                count += 1
        return count

    def _take(self) -> None:
        """Count one more reader. Raises AtCapacity.

        It waits at most PLACE_WAIT for the place of a reader whose run has ended.
        """
        most = self._limits.max_streams
        with self._changed:
            if self._taken >= most:
                leaving = any(run.log.ended is not None for run in list(self._views.values()))
                if not (leaving and self._changed.wait_for(lambda: self._taken < most, PLACE_WAIT)):
                    raise _at_limit("readers of streams", self._limits)
            self._taken += 1


def _number_of(key: StreamKey) -> int:
    """The number of the key's lock."""
    return number_of("\0".join(key))


def _at_limit(limit_name: str, limits: Limits) -> AtCapacity:
    """The error for a full table of places. `limit_name`: what is limited, in the plural."""
    return AtCapacity(
        f"The limit of {limit_name}, HALT_MAX_STREAMS={limits.max_streams}, is reached. "
        f"Try again in {RETRY_AFTER:g} s.",
        retry_after=RETRY_AFTER,
    )
