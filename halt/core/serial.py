"""A thread with a queue: it calls the functions that other threads put into it, in their order."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from halt.clock import now

Work = Callable[[], object]

logger = logging.getLogger(__name__)


class Serial:
    """See the module. An exception of a piece of work is logged, and the thread goes on."""

    def __init__(self, name: str, tick: float | None = None, on_tick: Work = bool) -> None:
        """`on_tick` is called every `tick` seconds, between pieces of work."""
        self._name = name
        self._tick = tick
        self._on_tick = on_tick
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()  # its `put` takes no lock
        self._starting = threading.Lock()  # held while the thread is started
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return self._thread is threading.current_thread()

    def start(self) -> None:
        """Start the thread unless it runs. Raises RuntimeError if the system has no further one."""
        if self.is_running:
            return
        with self._starting:
            if not self.is_running:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def start_late(self) -> None:
        """The same, for a request. Without a thread in the system the next request tries again."""
        with contextlib.suppress(RuntimeError):
            self.start()

    def put(self, work: Work) -> None:
        """Let the thread do `work`, in the order of the calls. The work must end by itself."""
        self._work.put(work)

    def run_next(self, timeout: float) -> None:
        """Do the next piece of work, if one comes within `timeout` seconds.

        Call in the thread itself, within a piece of work that waits for another one.
        """
        with contextlib.suppress(queue.Empty):
            self._do(self._work.get(timeout=timeout))

    def close(self, timeout: float) -> None:
        """End the thread after the work given so far; wait at most `timeout` seconds for it."""

        def leave() -> None:
            self._closing = True

        self.put(leave)
        if self._thread is not None and not self.is_current:
            self._thread.join(timeout)

    def _run(self) -> None:
        due = float("inf") if self._tick is None else now() + self._tick
        while not self._closing:
            timeout = None if self._tick is None else max(0.0, due - now())
            with contextlib.suppress(queue.Empty):
                self._do(self._work.get(timeout=timeout))
            if self._tick is not None and now() >= due:
                self._do(self._on_tick)
                due = now() + self._tick

    def _do(self, work: Work) -> None:
        try:
            work()
        except Exception:
            logger.exception("%s", self._name)
