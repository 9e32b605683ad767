"""Counted places, each with a number, which several processes may share by locks on the numbers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Protocol


class Locks(Protocol):
    """Locks on numbers, for all processes that use the same ones. None of the calls waits."""

    def take(self, number: int) -> bool:
        """False: another process has it."""

    def give_back(self, number: int) -> None:
        """This process has it, and does not need it any more."""

    def none_taken(self, count: int) -> bool | None:
        """Whether no other process has any from 0 to `count` - 1. None: the system cannot say."""


class Slots:
    """See the module. Until they are shared: places of this process alone."""

    def __init__(self) -> None:
        self._locks: Locks | None = None
        self._lock = threading.Lock()  # protects the two below
        self._mine: set[int] = set()
        self._next = os.getpid()  # where to look first: most likely free, and not where others look

    def share(self, locks: Locks) -> None:
        """Share them with all processes that have these locks.

        To be called once, after the fork and before a place is taken.
        """
        self._locks = locks

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
        if self._locks is None:
            return True
        known = self._locks.none_taken(count)
        return self.are_free(count, count) if known is None else known

    def give_back(self, place: int) -> None:
        """Harmless when repeated."""
        with self._lock:
            if place in self._mine:
                self._mine.remove(place)
                self._unlock(place)

    def _free(self, count: int, first: int) -> Iterator[int]:
        """Places that are free, each locked when it is yielded. `_lock` is held."""
        for step in range(count):
            place = first + (self._next + step) % count
            if place not in self._mine and (self._locks is None or self._locks.take(place)):
                yield place

    def _unlock(self, place: int) -> None:
        if self._locks is not None:
            self._locks.give_back(place)


def number_of(name: str, each: int = 1) -> int:
    """The first of `each` places that belong to this name, and by all odds to no other."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) * each
