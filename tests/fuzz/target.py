"""The base class of the fuzzer's targets, and the limit on the CPU time of one check."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

CPU_MAX = 30.0  # seconds of CPU for one check, unless the target sets another limit
ROUND = 40  # examples that Hypothesis generates at a time


class Finding(AssertionError):
    """An input breaks a promise. `kind` is the same for all inputs that break it in this way."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class TooLong(BaseException):
    """A check has used its CPU time. No Exception, so that the tested code does not catch it."""


class Target(ABC):
    """One part of Halt that reads hostile input."""

    name: str
    cpu_max = CPU_MAX

    @abstractmethod
    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        """Endless inputs. The same `rng` gives the same inputs."""

    @abstractmethod
    def check(self, data: bytes) -> None:
        """Try one input. Raises Finding, or any exception that the tested code does not catch."""

    def close(self) -> None:  # noqa: B027 - most targets start nothing
        """End processes and threads that the checks have started."""

    def attempt(self, data: bytes) -> Finding | None:
        """Check this input within the limit on CPU time; the finding, or None."""
        try:
            with cpu_limit(self.cpu_max):
                self.check(data)
        except Finding as finding:
            return finding
        except TooLong as limit:
            return Finding("too long", f"more than {self.cpu_max:g} s of CPU\n{_place(limit)}")
        except Exception as exc:  # noqa: BLE001 - any uncaught exception is a finding
            at = traceback.extract_tb(exc.__traceback__)[-1]
            location = f"{at.filename.rpartition('/')[2]}:{at.name}"
            return Finding(f"{type(exc).__name__} in {location}", f"{exc}\n{_place(exc)}")
        return None


def _place(exc: BaseException) -> str:
    return "".join(traceback.format_tb(exc.__traceback__)[-4:])


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in this block after `seconds` of CPU time of this process.

    Regular expressions and Python code are interrupted, other C code is not. Only the main thread has
    the limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    remaining_seconds, _ = signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, remaining_seconds)  # an outer limit continues
        signal.signal(signal.SIGPROF, before)


def examples(strategy: SearchStrategy[bytes], rng: random.Random) -> Iterator[bytes]:
    """Endless inputs that Hypothesis generates with seeds from `rng`."""
    while True:
        inputs: list[bytes] = []

        @seed(rng.getrandbits(64))
        @settings(
            max_examples=ROUND,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(data: bytes) -> None:
            inputs.append(data)

        collect()
        yield from inputs


def same_kind(first: Finding, second: Finding | None) -> bool:
    """Whether two findings are of the same kind, numbers ignored."""
    return second is not None and _class_of(first) == _class_of(second)


def _class_of(finding: Finding) -> str:
    return re.sub(r"\d+", "0", finding.kind)


def minimised(data: bytes, holds: Callable[[bytes], bool], is_over: Callable[[], bool]) -> bytes:
    """A smaller input for which `holds` is still true; the smallest found until `is_over`."""
    size = max(1, len(data) // 2)
    while True:
        at, shrunk = 0, False
        while at < len(data):
            if is_over():
                return data
            less = data[:at] + data[at + size :]
            if less != data and holds(less):
                data, shrunk = less, True
            else:
                at += size
        if size == 1 and not shrunk:
            return data
        size = max(1, size // 2) if not shrunk else min(size, max(1, len(data) // 2))
