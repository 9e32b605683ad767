"""Comparison of the time that a text takes with the time of a text twice as long."""

import time
from collections.abc import Callable

FACTOR = 3.2  # for twice the text; quadratic time has 4
FLOOR = 0.02  # seconds of CPU that count as nothing


def check_linear(work: Callable[[str], object], unit: str, size: int = 8_000) -> None:
    """Fails if `work` takes much more than twice the time for twice as many repetitions."""
    small, large = (
        min(_seconds(work, unit * (n // len(unit) + 1)) for _ in range(2)) for n in (size, 2 * size)
    )
    assert large < FACTOR * small + FLOOR, (unit[:40], small, large)


def _seconds(work: Callable[[str], object], text: str) -> float:
    start = time.thread_time()
    work(text)
    return time.thread_time() - start
