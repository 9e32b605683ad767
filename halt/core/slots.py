"""A pool of numbered places, such as the places for streams. Locks let processes share them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Protocol


class Locks(Protocol):
    """Locks on numbers, shared by several processes. No method waits."""

    def take(self, number: int) -> bool:
        """Take the lock. False: another process has it."""

    def give_back(self, number: int) -> None:
        """Release a lock that this process has."""

    def all_free(self, count: int) -> bool | None:
        """Whether no other process has a lock from 0 to `count` - 1. True also after an error.

        None: this system cannot tell.
        """


class Slots:
    """The places that this process has taken. Until `share` it shares them with no other."""

    def __init__(self) -> None:
        self._locks: Locks | None = None
        self._lock = threading.Lock()  # protects the two below
        self._mine: set[int] = set()
        self._next = os.getpid()  # first place to try: differs between processes

    def share(self, locks: Locks) -> None:
        """Share the places with all processes that use these locks.

        Call once, after the fork and before a place is taken.
        """
        self._locks = locks

    def take(self, count: int, first: int = 0) -> int | None:
        """Take one of the `count` places from `first` on. None: all are taken. Never waits."""
        with self._lock:
            for place in self._free(count, first):
                self._mine.add(place)
                self._next = place - first + 1
                return place
        return None

    def are_free(self, count: int, wanted: int) -> bool:
        """Whether `wanted` of the places from 0 to `count` - 1 are free. Takes none, never waits.

        Another process may see them taken during the call; no thread of this process does.
        """
        with self._lock:
            locked = list(islice(self._free(count, 0), wanted))
            for place in locked:
                self._unlock(place)
        return len(locked) == wanted

    def all_free(self, count: int) -> bool:
        """Whether no process has a place from 0 to `count` - 1. Takes none, never waits.

        A place that another process checks during the call may count as taken.
        """
        with self._lock:
            if any(place < count for place in self._mine):
                return False
        if self._locks is None:
            return True
        are_free = self._locks.all_free(count)
        return self.are_free(count, count) if are_free is None else are_free

    def give_back(self, place: int) -> None:
        """Give a place back. Idempotent."""
        with self._lock:
            if place in self._mine:
                self._mine.remove(place)
                self._unlock(place)

    def _free(self, count: int, first: int) -> Iterator[int]:
        """Yield free places, each locked. The caller holds `_lock`."""
        for step in range(count):
            place = first + (self._next + step) % count
            if place not in self._mine and (self._locks is None or self._locks.take(place)):
                yield place

    def _unlock(self, place: int) -> None:
        if self._locks is not None:
            self._locks.give_back(place)


def number_of(name: str, count: int = 1) -> int:
    """The first of `count` consecutive numbers of this name, almost surely unique."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) * count
