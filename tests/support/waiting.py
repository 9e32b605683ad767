"""Waits of tests: for a condition that no event announces, and for a call in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WAIT_TIMEOUT = 10.0  # seconds; a test that waits this long fails


class BackgroundCall(threading.Thread):
    """A call in its own thread; it keeps the result or the exception."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(name="background", daemon=True)
        self._body = body
        self.result: object = None
        self.fault: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._body()
        except BaseException as fault:  # noqa: BLE001 - the test looks at it
            self.fault = fault

    def end(self, within: float = WAIT_TIMEOUT) -> BaseException | None:
        """Wait for the end of the call; the exception that it raised, or None."""
        self.join(within)
        assert not self.is_alive(), "the call is still running"
        return self.fault


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll the condition until it is true; fail after WAIT_TIMEOUT."""
    deadline, pause = time.monotonic() + WAIT_TIMEOUT, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not true within {WAIT_TIMEOUT:g} s"
        pause.wait(0.001)
