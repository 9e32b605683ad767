"""Ends the checks of a provider from any thread, in whatever they are waiting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class ChecksEnded(Exception):
    """The checks were cancelled, or their time is over."""


class Cancellation:
    """The end of one run of checks. Any thread may call `cancel`.

    Cancel against the start of a wait: one lock orders them. Either the wait is entered and then
    interrupted, or it is not entered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the two below
        self._interrupts: list[Callable[[], object]] = []  # end what is under way
        self._is_cancelled = False
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the checks: their connection is closed, and no further one is made. Idempotent."""
        with self._lock:
            self._is_cancelled = True
            self._cancelled.set()
            interrupts = self._interrupts[::-1]
        for interrupt in interrupts:
            interrupt()

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    @contextlib.contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Context manager: `cancel` calls `interrupt`, which makes the block end soon.

        Raises ChecksEnded in place of entering the block, or in place of whatever the block did.
        For the thread of the checks. `interrupt` may be called once after the block.
        """
        with self._lock:
            if self._is_cancelled:
                raise ChecksEnded
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.pop()
                is_cancelled = self._is_cancelled
            if is_cancelled:
                raise ChecksEnded

    def pause(self, seconds: float) -> None:
        """Wait for this many seconds. Raises ChecksEnded."""
        if self._cancelled.wait(seconds):
            raise ChecksEnded
