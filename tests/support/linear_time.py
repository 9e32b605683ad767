"""Comparison of the time that a text takes with the time of a text four times as long."""

import gc
import time
from collections.abc import Callable

FACTOR = 9  # for four times the text; quadratic time has 16
FLOOR = 0.05  # seconds of CPU that count as nothing


def check_linear(work: Callable[[str], object], unit: str, size: int = 5_000) -> None:
    """Fails if `work` takes much more than four times the time for four times the repetitions."""
    gc.collect()
    gc.disable()  # its time depends on all objects of the tests
    try:
        small, large = (
            min(_seconds(work, unit * (n // len(unit) + 1)) for _ in range(2))
            for n in (size, 4 * size)
        )
    finally:
        gc.enable()
    assert large < FACTOR * small + FLOOR, (unit[:40], small, large)


def _seconds(work: Callable[[str], object], text: str) -> float:
    start = time.thread_time()
    work(text)
    return time.thread_time() - start
