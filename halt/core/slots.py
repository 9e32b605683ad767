"""Counted places that several processes share: locks of the kernel, a byte for each place.

A place is taken by locking its byte of a file (POSIX record locks; the file stays empty, since
bytes beyond its end can be locked). The kernel gives back what a process had when it ends, however
it ends, so that nothing has to be cleaned up and no count can go wrong.

Those locks belong to a process, not to a thread. What this process has taken it keeps in a table
of its own, and the file is opened once and never closed: closing any descriptor of it would give
back all of this process's places.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: C's `struct flock`, with which the system is asked for a lock of another process. None: it is not
#: known of this system.
_FLOCK = struct.Struct("hhqqi") if sys.platform == "linux" and sys.maxsize > 2**32 else None


class Slots:
    """Places that have numbers. Until they are shared: places of this process alone."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._lock = threading.Lock()  # protects the two below
        self._mine: set[int] = set()
        self._next = os.getpid()  # where to look first: most likely free, and not where others look

    def share(self, path: Path) -> None:
        """Share them with all processes that name the same file. Raises OSError.

        To be called once, after the fork and before a place is taken.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, count: int, first: int = 0) -> int | None:
        """One of the places from `first` on, `count` in all. None: all of them are taken.

        Never waits.
        """
        with self._lock:
            for place in self._free(count, first):
                self._mine.add(place)
                self._next = place - first + 1
                return place
        return None

    def are_free(self, count: int, wanted: int) -> bool:
        """Whether `wanted` of the places from 0 to `count` - 1 could be taken now. Takes none.

        Never waits. Another process may find them taken at this moment; no thread of this one does.
        """
        with self._lock:
            locked = list(islice(self._free(count, 0), wanted))
            for place in locked:
                self._unlock(place)
        return len(locked) == wanted

    def none_taken(self, count: int) -> bool:
        """Whether no process has any of the places from 0 to `count` - 1. Takes none.

        Never waits. A place that another process tries at this moment may count as taken.
        """
        with self._lock:
            if any(place < count for place in self._mine):
                return False
        if self._file is None:
            return True
        if _FLOCK is None:
            return self.are_free(count, count)
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, count, 0)
        try:
            found = fcntl.fcntl(self._file, fcntl.F_GETLK, wanted)
        except OSError:  # of a file system that went away
            return True
        return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)

    def give_back(self, place: int) -> None:
        """Harmless when repeated."""
        with self._lock:
            if place not in self._mine:
                return
            self._mine.remove(place)
            self._unlock(place)

    def _free(self, count: int, first: int) -> Iterator[int]:
        """Places that are free, each locked when it is yielded. `_lock` is held."""
        for step in range(count):
            place = first + (self._next + step) % count
            if place not in self._mine and self._locked(place):
                yield place

    def _locked(self, place: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True

    def _unlock(self, place: int) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a file system that went away
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)


def number_of(name: str, each: int = 1) -> int:
    """The first of `each` places that belong to this name, and by all odds to no other."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) * each
