"""Places where a network or a model may cut its data into pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

EVERY = 120  # bytes; up to this length every single cut is tried
RANDOM = 24  # single cuts of a longer input; half as many sets of cuts

T = TypeVar("T", bytes, str)


def cuts_of(data: Sequence[object]) -> Iterator[list[int]]:
    """Sets of cuts, the same for the same length: all at once, single ones, random sets."""
    size = len(data)
    rng = random.Random(size)
    yield list(range(1, size))
    positions = range(1, size)
    yield from (
        [at] for at in (positions if size <= EVERY else sorted(rng.sample(positions, RANDOM)))
    )
    for _ in range(min(RANDOM, size) // 2):
        yield sorted(rng.sample(positions, min(len(positions), rng.randrange(2, 8))))


def pieces_of(data: T, cuts: Sequence[int]) -> list[T]:
    """The data, cut at these places."""
    return [data[a:b] for a, b in zip((0, *cuts), (*cuts, len(data)), strict=True)]
