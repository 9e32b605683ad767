"""Suspend and resume processes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.support.process_facts import tree


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Suspend a process and its descendants; the kernel still accepts connections for them."""
    processes = [pid]
    try:
        os.kill(pid, signal.SIGSTOP)  # from here on it starts no process
        processes = tree(pid)
        send(signal.SIGSTOP, processes)
        yield
    finally:
        send(signal.SIGCONT, processes)


def send(number: int, processes: list[int]) -> None:
    """Send a signal to the processes that still exist."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
