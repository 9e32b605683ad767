"""Processes that are stopped for a while."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.support.process_facts import tree


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process and all that it has started do nothing; its kernel still accepts connections."""
    processes = [pid]
    try:
        os.kill(pid, signal.SIGSTOP)  # it starts no others from here on
        processes = tree(pid)
        send(signal.SIGSTOP, processes)
        yield
    finally:
        send(signal.SIGCONT, processes)


def send(number: int, processes: list[int]) -> None:
    """Send a signal to each process that is still there."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
