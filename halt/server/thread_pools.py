"""The threads that serve requests: one pool for each class of requests.

A class cannot use the threads of another class, so there is always a thread for a Stop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from halt.core.serial import Serial
from halt.server.request_buffer import Kind

#: Most threads of each class; a class not listed has gunicorn's `threads`. Pages have few, because
#: each of their threads that computes delays a Stop by one switch interval whenever the Stop needs
#: the interpreter (with 60 clients that load pages of 8 MB, p50 of a Stop was 224 ms with 32
#: threads, 41 ms with 4).
THREADS_MAX = {
    Kind.STOP: 16,
    Kind.HEALTH: 4,
    Kind.QUICK: 16,
    Kind.PAGE: 3,
    Kind.MODELS: 16,
    Kind.UPLOAD: 16,
}

logger = logging.getLogger(__name__)


class ThreadPool:
    """Threads of one class, at most `max_threads`. Only the main thread calls methods but `grow`.

    It replaces gunicorn's pool, `concurrent.futures.ThreadPoolExecutor`, which raises RuntimeError
    when the system has no thread left: this would end the worker, although an idle thread may serve
    the queued request. The executor also counts a thread as idle that has already taken a request,
    so it may not start a thread that is needed.
    """

    def __init__(self, name: str, max_threads: int) -> None:
        self._name = name
        self._max_threads = max_threads
        self._started = 0  # changed by `grow` alone
        self._unfinished = 0  # requests queued or being served; used by the main thread alone
        self._queue: SimpleQueue[tuple[Callable[[Any], Any], Any, Future[Any]] | None]
        self._queue = SimpleQueue()
        self._has_failed = False  # the last attempt to start a thread

    def submit(self, serve: Callable[[Any], Any], conn: Any) -> Future[Any]:
        """Queue a request, for a free thread to call `serve(conn)`. Returns its result's future."""
        future: Future[Any] = Future()
        self._unfinished += 1
        self._queue.put((serve, conn, future))
        return future

    def finished(self) -> None:
        """Note that a request was served; to be called once for each."""
        self._unfinished -= 1

    @property
    def lacks_thread(self) -> bool:
        """Whether a request may be waiting and a further thread is allowed.

        The first thread is started before the first request, so it is there even if the system
        refuses further threads later.
        """
        return self._started < min(max(1, self._unfinished), self._max_threads)

    def grow(self) -> None:
        """Start the missing threads, until the system refuses. Called by one thread at a time."""
        while self.lacks_thread and self._start():
            pass

    def _start(self) -> bool:
        name = f"halt-{self._name}-{self._started + 1}"
        # daemon: a worker that ends by a fault, or after its grace, does not wait for it.
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            if not self._has_failed:
                logger.error(
                    "The system starts no further thread, so requests wait for the existing ones "
                    "(%s: %d). Raise the limit (ulimit -u, pids.max of the container).",
                    self._name,
                    self._started,
                )
            self._has_failed = True
            return False
        self._has_failed = False
        self._started += 1
        return True

    def shutdown(self) -> None:
        """End each thread after the requests that are queued now."""
        self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            serve, conn, future = work
            try:
                future.set_result(serve(conn))
            except BaseException as fault:  # noqa: BLE001 - the main thread handles it
                future.set_exception(fault)
            del work, serve, conn, future  # so that the waiting thread keeps no connection alive
        self._queue.put(None)


class ThreadPools:
    """The threads of all classes. Only the main thread calls its methods.

    A separate thread starts them: `Thread.start` waits for the started thread, which took 281 ms
    beside 60 pages of 8 MB.
    """

    def __init__(self, lasting: int) -> None:
        """`lasting`: the most threads of each class that is not in THREADS_MAX."""
        self._pools = {
            kind: ThreadPool(kind.name.lower(), THREADS_MAX.get(kind, lasting)) for kind in Kind
        }
        self._starter = Serial("halt-thread-starter")
        self._is_growing = False  # the starter thread has this work queued

    def submit(self, serve: Callable[[Any], Any], conn: Any) -> Future[Any]:
        """Queue the request of this connection for its class; see `ThreadPool.submit`."""
        future = self._pools[conn.kind].submit(serve, conn)
        self.grow()
        return future

    def finished(self, conn: Any) -> None:
        """Note that the request of this connection was served."""
        self._pools[conn.kind].finished()

    def grow(self) -> None:
        """Start threads for waiting requests. To be called regularly: the system may refuse."""
        if self._is_growing or not any(pool.lacks_thread for pool in self._pools.values()):
            return
        try:
            self._starter.start()
        except RuntimeError:  # the system has no more threads
            self._grow()  # logs the failure
        else:
            self._is_growing = True
            self._starter.put(self._grow)

    def _grow(self) -> None:
        self._is_growing = False  # first: so that a request from now on queues this work again
        for pool in self._pools.values():
            pool.grow()

    def shutdown(self, wait: bool) -> None:
        """End each thread after the requests that are queued now. `wait` is ignored."""
        self._starter.close(0.0)
        for pool in self._pools.values():
            pool.shutdown()
