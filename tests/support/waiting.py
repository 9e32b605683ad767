"""Waits of tests: for a condition that no event announces, and for a call in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WAIT_TIMEOUT = 10.0  # seconds; a test that waits this long fails
SERVER_TIMEOUT = 30.0  # the same for a state of another process or of a database


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


def wait_until(condition: Callable[[], object], timeout: float = WAIT_TIMEOUT) -> None:
    """Poll the condition until it is true; fail after `timeout` seconds.

    The pause between two calls grows from 1 to 10 ms: a condition may send a request to a server.
    """
    start = time.monotonic()
    while not condition():
        elapsed = time.monotonic() - start
        assert elapsed < timeout, f"not true within {timeout:g} s"
        time.sleep(min(0.01, max(0.001, elapsed / 100)))
