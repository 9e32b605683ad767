"""The threads that serve requests: a pool for each class of requests.

No class takes the threads of another one, so a Stop always has one.
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

#: Threads of each class at most; a class not listed has gunicorn's `threads`. Pages have few: each
#: of their threads that computes delays a Stop by the switch interval whenever the Stop needs the
#: interpreter (beside 60 clients of pages of 8 MB, p50 of a Stop was
#: 224 ms with 32 threads, 41 ms with 4).
MOST = {
    Kind.STOP: 16,
    Kind.HEALTH: 4,
    Kind.QUICK: 16,
    Kind.PAGE: 3,
    Kind.MODELS: 16,
    Kind.UPLOAD: 8,
}

logger = logging.getLogger(__name__)


class ThreadPool:
    """The threads of one class, at most `most`. All but `grow` belongs to the main thread.

    It replaces gunicorn's pool, `concurrent.futures.ThreadPoolExecutor`, which raises RuntimeError
    when the system has no thread left; that ends the worker, while an idle thread may still serve
    the queued request. The executor also counts a thread as idle that has already taken a request,
    so it may start none where one is needed.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._started = 0  # changed by `grow` alone
        self._unfinished = 0  # requests that are queued or being served; the main thread's
        self._queue: SimpleQueue[tuple[Callable[[Any], Any], Any, Future[Any]] | None]
        self._queue = SimpleQueue()
        self._short = False  # the last attempt to start a thread has failed

    def submit(self, serve: Callable[[Any], Any], conn: Any) -> Future[Any]:
        """Serve a request in an idle thread, a new one, or the next one that becomes free."""
        future: Future[Any] = Future()
        self._unfinished += 1
        self._queue.put((serve, conn, future))
        return future

    def finished(self) -> None:
        """A thread is about to wait for its next request."""
        self._unfinished -= 1

    @property
    def lacks_thread(self) -> bool:
        """A request may wait for a thread that can still be started.

        The first one is started before there is a request: a system that gives no thread later on
        does not take it away.
        """
        return self._started < min(max(1, self._unfinished), self._most)

    def grow(self) -> None:
        """Start the threads that are lacking. By one thread at a time; the system may refuse."""
        while self.lacks_thread and self._start():
            pass

    def _start(self) -> bool:
        name = f"halt-{self._name}-{self._started + 1}"
        # daemon: a worker that leaves by a fault, or when its grace is over, waits for none.
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            if not self._short:
                logger.error(
                    "The system starts no further thread, so requests wait for those that there "
                    "are (%s: %d). Raise the limit (ulimit -u, pids.max of the container).",
                    self._name,
                    self._started,
                )
            self._short = True
            return False
        self._short = False
        self._started += 1
        return True

    def shutdown(self) -> None:
        """Let each thread end after the requests that are queued by now."""
        self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            serve, conn, future = work
            try:
                future.set_result(serve(conn))
            except BaseException as fault:  # noqa: BLE001 - the main thread judges it
                future.set_exception(fault)
            del work, serve, conn, future  # while it waits, it must not keep a connection alive
        self._queue.put(None)


class ThreadPools:
    """The threads of all classes. Its methods belong to the main thread.

    A thread of its own starts them: `Thread.start` waits for the thread that is started, which was
    281 ms beside 60 pages of 8 MB.
    """

    def __init__(self, lasting: int) -> None:
        """`lasting`: threads of each class of requests that last."""
        self._pools = {
            kind: ThreadPool(kind.name.lower(), MOST.get(kind, lasting)) for kind in Kind
        }
        self._starter = Serial("halt-thread-starter")
        self._is_growing = False  # the starter is about to look

    def submit(self, serve: Callable[[Any], Any], conn: Any) -> Future[Any]:
        """Serve the request that has come on this connection."""
        future = self._pools[conn.kind].submit(serve, conn)
        self.grow()
        return future

    def finished(self, conn: Any) -> None:
        """The request of this connection was served."""
        self._pools[conn.kind].finished()

    def grow(self) -> None:
        """Have threads started where requests wait. To be called regularly: it may be refused."""
        if self._is_growing or not any(pool.lacks_thread for pool in self._pools.values()):
            return
        try:
            self._starter.start()
        except RuntimeError:  # the system has no more threads
            self._grow()  # which says so
        else:
            self._is_growing = True
            self._starter.put(self._grow)

    def _grow(self) -> None:
        self._is_growing = False  # first: a request that comes from now on is announced again
        for pool in self._pools.values():
            pool.grow()

    def shutdown(self, wait: bool) -> None:
        """Let each thread end after the requests that are queued by now. `wait` is ignored."""
        self._starter.close(0.0)
        for pool in self._pools.values():
            pool.shutdown()
