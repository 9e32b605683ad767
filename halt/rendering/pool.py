"""The rendering processes of one application: their queue, and a thread for each of them.

A process is started when there is work for it, or expected; the second one when the first is busy
and quick work has waited for PATIENCE. A process that does not answer by its deadline is killed and
replaced; one without work ends after IDLE seconds. Each has a thread that waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from halt.clock import now
from halt.rendering.cache import Cache
from halt.rendering.child import Child, ProcessDied, ProcessTimeout
from halt.rendering.markdown import plain, plain_block
from halt.rendering.protocol import Rendered, Request, block_of

PROCESSES = 2
QUICK = 1.0  # seconds of CPU: the second process does nothing that may take longer
#: Seconds that quick work waits before a second process starts; loading a lexer takes less.
PATIENCE = 0.3
QUEUE_MAX = 200  # requests that wait; one beyond is shown plain
IDLE = 300.0  # seconds without work after which a process ends; it takes 15 MB
RETRY_FIRST, RETRY_MAX = 1.0, 60.0  # seconds between two starts that fail; doubled each time
CLOSE_WAIT = 1.0  # seconds that closing waits for the threads
UNSURE_MAX = 1000  # texts during which a process died, to be remembered

PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from halt.rendering.process import main; main()"
)
COMMAND = (sys.executable or "python3", "-P", "-c", PROGRAM, str(Path(__file__).parents[2]))

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    key: bytes
    request: Request
    keys: list[bytes]  # under which each part of the reply is kept
    until: float  # when the future is resolved in any case
    since: float = field(default_factory=now)
    #: None: it is to be shown plain.
    future: Future[list[Rendered] | None] = field(default_factory=Future)

    def plain(self) -> list[Rendered]:
        """What is shown where nothing can be rendered of it."""
        request = self.request
        if request.text is not None:
            return [Rendered(plain(request.text), timed_out=True)]
        return [Rendered(plain_block(block_of(*each)), timed_out=True) for each in request.blocks]


@dataclass
class _Slot:
    """A place for a process, and the thread that waits for it."""

    thread: threading.Thread | None = None
    process: Child | None = None
    is_busy: bool = False
    is_wanted: bool = False  # work is expected


class Pool:
    """See the module. Any thread may call it.

    `_changed` protects the queue, the table of jobs, and the slots. No process is waited for while
    it is held, and no future is resolved.
    """

    def __init__(self, cache: Cache, command: Sequence[str], idle: float) -> None:
        """`cache` is given all that is drawn; `command` starts a process, empty: the usual one."""
        self._cache = cache
        self._command = command or COMMAND
        self._idle = idle
        self._changed = threading.Condition()
        self._queue: list[_Job] = []
        self._jobs: dict[bytes, _Job] = {}  # in the queue, and under way
        self._unsure: OrderedDict[bytes, None] = OrderedDict()
        self._slots = [_Slot() for _ in range(PROCESSES)]
        self._retry_at, self._retry_delay = 0.0, 0.0
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process IDs of the rendering processes that are ready."""
        with self._changed:
            return [slot.process.pid for slot in self._slots if slot.process is not None]

    def warm_up(self) -> None:
        """Have a process ready soon: a page follows an answer that is being written."""
        with self._changed:
            slot = self._slots[0]
            if slot.process is None and self._can_start():
                slot.is_wanted = True
                self._start_thread(slot)
                self._changed.notify_all()

    def submit(
        self, key: bytes, request: Request, keys: list[bytes], until: float
    ) -> Future[list[Rendered] | None]:
        """Have a request answered until then; None: it is to be shown plain."""
        with self._changed:
            job = self._jobs.get(key)
            if job is not None:
                return job.future
            job = _Job(key, request, keys, until)
            has_process = any(slot.process is not None for slot in self._slots)
            if (
                self._is_closed
                or len(self._queue) >= QUEUE_MAX
                or not (has_process or self._can_start())
                or not self._start_thread(self._slots[0])
            ):
                return completed(None)
            self._jobs[key] = job
            self._queue.append(job)
            self._changed.notify_all()
        return job.future

    def _can_start(self) -> bool:
        return not self._is_closed and now() >= self._retry_at

    def _start_thread(self, slot: _Slot) -> bool:
        """Have its thread run. The lock is held. False: the system has none."""
        if slot.thread is None:
            thread = threading.Thread(
                target=self._attend, args=(slot,), name="halt-renderer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                return False
            slot.thread = thread
        return True

    def _next(self, slot: _Slot) -> _Job | None:
        """The job that is this slot's to do. The lock is held."""
        first = self._slots[0]
        if slot is first:
            return self._queue[0] if self._queue else None
        if not first.is_busy:
            return None
        due = now() if slot.process is not None else now() - PATIENCE if self._can_start() else 0.0
        quick = (job for job in self._queue if job.request.limit <= QUICK)
        return next((job for job in quick if job.since <= due), None)

    # --- the threads ------------------------------------------------------------------------------

    def _attend(self, slot: _Slot) -> None:
        """Do the jobs of this slot until there has been none for a while."""
        try:
            while self._turn(slot):
                pass
        except BaseException:
            self._leave(slot)
            raise

    def _turn(self, slot: _Slot) -> bool:
        with self._changed:

            def is_due() -> bool:
                return self._is_closed or slot.is_wanted or self._next(slot) is not None

            if not self._changed.wait_for(is_due, self._idle) or self._is_closed:
                process = self._vacated(slot)
                job = None
            else:
                job = self._next(slot)
                if job is not None:
                    self._queue.remove(job)
                slot.is_wanted, slot.is_busy = False, True
                if self._queue:  # what is left may be the other one's
                    self._changed.notify_all()
        if not slot.is_busy:
            if process is not None:
                process.close()
            return False
        try:
            self._do(slot, job)
        finally:
            with self._changed:
                slot.is_busy = False
        return True

    def _do(self, slot: _Slot, job: _Job | None) -> None:
        """Have the process do the job, or be ready for one. Every job is resolved in the end."""
        drawn: list[Rendered] | None = None
        try:
            if job is None:
                self._started(slot)
            elif not job.future.done():  # else its time was over before its turn
                drawn = self._drawn(slot, job)
        except OSError as exc:
            self._put_off(exc)
        finally:
            if job is not None:
                with self._changed:
                    del self._jobs[job.key]
                _resolve(job.future, drawn)

    def _drawn(self, slot: _Slot, job: _Job) -> list[Rendered] | None:
        """What the process makes of it. None: nothing. Raises OSError where there is no process."""
        for _ in range(2):  # one may have died since the last time
            process = self._started(slot)
            try:
                reply = process.request(job.request)
            except ProcessDied:
                self._stop(slot, "died")
            except ProcessTimeout:
                self._stop(slot, f"has not answered for {job.request.deadline:.1f} s")
                break
            else:
                return self._keep(job, reply.results or job.plain())
        return self._without_process(job)

    def _without_process(self, job: _Job) -> list[Rendered] | None:
        """What is shown of a text whose process is gone: it is kept when that happens again."""
        with self._changed:
            is_first = job.key not in self._unsure
            self._unsure[job.key] = None
            if len(self._unsure) > UNSURE_MAX:
                self._unsure.popitem(last=False)
        return None if is_first else self._keep(job, job.plain())

    def _keep(self, job: _Job, drawn: list[Rendered]) -> list[Rendered]:
        for key, each in zip(job.keys, drawn, strict=True):
            self._cache.keep(key, each)
        return drawn

    def _started(self, slot: _Slot) -> Child:
        """The slot's process, ready. Raises OSError."""
        if slot.process is not None:
            return slot.process
        with self._changed:
            if not self._can_start():
                raise OSError("a start is not due yet")
        process = Child(self._command, self._look)
        try:
            process.wait_ready()
        except (ProcessDied, ProcessTimeout) as exc:
            status = process.close()
            how = f"exit status {status}" if isinstance(exc, ProcessDied) else "it is never ready"
            raise OSError(how) from exc
        with self._changed:
            slot.process = process
            self._retry_delay = 0.0
            is_closed = self._is_closed
        if is_closed:
            self._stop(slot, "")
            raise OSError("closed")
        return process

    def _stop(self, slot: _Slot, why: str) -> None:
        """End the slot's process, since it is of no use."""
        with self._changed:
            process, slot.process = slot.process, None
        if process is not None:
            status = process.close()
            if not self._is_closed:
                logger.warning("rendering process %d %s (%d)", process.pid, why, status)

    def _put_off(self, exc: OSError) -> None:
        """No process can be started: all that waits is plain, and the next start is put off."""
        with self._changed:
            if self._is_closed or now() < self._retry_at:
                return
            self._retry_delay = min(self._retry_delay * 2, RETRY_MAX) or RETRY_FIRST
            self._retry_at = now() + self._retry_delay
            waiting: list[_Job] = []
            if all(slot.process is None for slot in self._slots):
                waiting = self._emptied()
            delay = self._retry_delay
        logger.error(
            "no rendering process can be started (%s): code has no colours and long texts are"
            " shown plain; the next start is tried after %.0f s",
            exc,
            delay,
        )
        _give_up(waiting)

    def _look(self) -> None:
        """Resolve what has waited too long, and have a second process for what has for a while."""
        at = now()
        with self._changed:
            if self._next(self._slots[1]) is not None:
                self._start_thread(self._slots[1])
                self._changed.notify_all()
            late = [each for each in self._jobs.values() if each.until <= at]
        _give_up(late)

    def _vacated(self, slot: _Slot) -> Child | None:
        """Take the process out of a slot whose thread ends. The lock is held."""
        slot.thread = None
        process, slot.process = slot.process, None
        return process

    def _leave(self, slot: _Slot) -> None:
        """The slot's thread has failed: nothing waits for it any more."""
        logger.exception("a thread for rendering has ended")
        with self._changed:
            process = self._vacated(slot)
            slot.is_busy = False
            waiting = self._emptied()
        if process is not None:
            process.close()
        _give_up(waiting)

    def _emptied(self) -> list[_Job]:
        """Take all jobs out of the queue. The lock is held."""
        waiting, self._queue = self._queue, []
        for job in waiting:
            del self._jobs[job.key]
        return waiting

    def close(self) -> None:
        """End the processes. What is rendered from now on is plain. Harmless when repeated."""
        with self._changed:
            self._is_closed = True
            waiting = self._emptied()
            threads = [slot.thread for slot in self._slots if slot.thread is not None]
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()
            self._changed.notify_all()
        _give_up(waiting)
        until = now() + CLOSE_WAIT
        for thread in threads:
            thread.join(max(0.0, until - now()))


def completed(value: T) -> Future[T]:
    """A future that has this result."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _give_up(jobs: list[_Job]) -> None:
    for job in jobs:
        _resolve(job.future, None)


def _resolve(future: Future[T], value: T) -> None:
    """Set its result, unless it has one."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)
