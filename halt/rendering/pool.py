"""The pool of rendering processes of one application: a job queue, and one thread per process.

The first process is started when a job arrives or is expected, the second when the first is busy
and a job has waited for PATIENCE seconds. The first takes the jobs in their order, the second those
with the lowest limit first: so a block of a running answer does not wait for many long texts, and
no text waits for ever. A process that does not reply by its deadline is killed and replaced. A
process without work ends after IDLE seconds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TypeVar

from halt.child_process import ProcessDied, ProcessTimeout, python_command
from halt.clock import now
from halt.rendering.cache import Cache
from halt.rendering.child import Child
from halt.rendering.plain import plain, plain_block
from halt.rendering.protocol import Rendered, Request, block_of

PROCESSES = 2
#: Seconds that a job waits before a second process starts; loading a lexer takes less.
PATIENCE = 0.3
QUEUE_MAX = 200  # jobs in the queue; texts beyond it are shown plain
IDLE = 300.0  # seconds without work after which a process ends; one takes 15 MB
RETRY_FIRST, RETRY_MAX = 1.0, 60.0  # seconds between two failing starts; doubled each time
CLOSE_WAIT = 1.0  # seconds that `close` waits for the threads
SUSPECTS_MAX = 1000  # keys of jobs during which a process died

COMMAND = python_command("halt.rendering.process")

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    key: bytes
    request: Request
    keys: list[bytes]  # cache keys, one for each part of the reply
    deadline: float  # when the future is resolved at the latest
    limit: float  # seconds of CPU, see `Request.limit`
    since: float = field(default_factory=now)
    #: None: the caller shows the text plain.
    future: Future[list[Rendered] | None] = field(default_factory=Future)

    def plain_results(self) -> list[Rendered]:
        """The results if the process can render nothing of the request."""
        request = self.request
        if request.text is not None:
            return [Rendered(plain(request.text), timed_out=True)]
        return [Rendered(plain_block(block_of(*pair)), timed_out=True) for pair in request.blocks]


@dataclass
class _Slot:
    """A place for a process, and the thread that uses it."""

    thread: threading.Thread | None = None
    process: Child | None = None
    is_busy: bool = False
    is_warming_up: bool = False  # start a process although there is no job yet


class Pool:
    """The queue and the processes; see the module. Thread-safe.

    `_changed` protects the queue, the table of jobs and the slots. While it is held, no thread
    waits for a process or resolves a future.
    """

    def __init__(self, cache: Cache, command: Sequence[str], idle: float) -> None:
        """All results go into `cache`. `command` starts a process; empty: the usual one."""
        self._cache = cache
        self._command = command or COMMAND
        self._idle = idle
        self._changed = threading.Condition()
        self._queue: list[_Job] = []
        self._jobs: dict[bytes, _Job] = {}  # in the queue or running
        self._suspect_keys: OrderedDict[bytes, None] = OrderedDict()  # see `_without_process`
        self._slots = [_Slot() for _ in range(PROCESSES)]
        self._retry_at, self._retry_delay = 0.0, 0.0
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process IDs of the rendering processes that are ready."""
        with self._changed:
            return [slot.process.pid for slot in self._slots if slot.process is not None]

    def warm_up(self) -> None:
        """Start the first process, so that it is ready when a running answer needs it."""
        with self._changed:
            slot = self._slots[0]
            if slot.process is None and self._can_start():
                slot.is_warming_up = True
                self._start_thread(slot)
                self._changed.notify_all()

    def submit(
        self, key: bytes, request: Request, keys: list[bytes], deadline: float
    ) -> Future[list[Rendered] | None]:
        """Queue a request. The future is resolved by the deadline; None: show the text plain.

        A request whose `key` is queued or running already gets the same future.
        """
        with self._changed:
            job = self._jobs.get(key)
            if job is not None:
                return job.future
            job = _Job(key, request, keys, deadline, request.limit)
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
        """Start the slot's thread unless it runs; False if it cannot. The lock must be held."""
        if slot.thread is None:
            thread = threading.Thread(
                target=self._serve_slot, args=(slot,), name="halt-renderer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                return False
            slot.thread = thread
        return True

    def _next_job(self, slot: _Slot) -> _Job | None:
        """The next job for this slot, None if there is none. The lock must be held."""
        first = self._slots[0]
        if slot is first:
            return self._queue[0] if self._queue else None
        if not first.is_busy:
            return None
        due = now() if slot.process is not None else now() - PATIENCE if self._can_start() else 0.0
        jobs = (job for job in self._queue if job.since <= due)
        return min(jobs, key=lambda job: job.limit, default=None)

    # --- the threads ------------------------------------------------------------------------------

    def _serve_slot(self, slot: _Slot) -> None:
        """Body of a slot's thread: run its jobs until none has come for `idle` seconds."""
        try:
            while self._serve_once(slot):
                pass
        except BaseException:
            self._fail_slot(slot)
            raise

    def _serve_once(self, slot: _Slot) -> bool:
        """Wait for a job and run it. False: the thread must end; its process is closed."""
        with self._changed:

            def is_due() -> bool:
                return self._is_closed or slot.is_warming_up or self._next_job(slot) is not None

            if not self._changed.wait_for(is_due, self._idle) or self._is_closed:
                process = self._clear_slot(slot)
                job = None
            else:
                job = self._next_job(slot)
                if job is not None:
                    self._queue.remove(job)
                slot.is_warming_up, slot.is_busy = False, True
                if self._queue:  # the other slot may take one of them
                    self._changed.notify_all()
        if not slot.is_busy:
            if process is not None:
                process.close()
            return False
        try:
            self._run_job(slot, job)
        finally:
            with self._changed:
                slot.is_busy = False
        return True

    def _run_job(self, slot: _Slot, job: _Job | None) -> None:
        """Run the job, or start the process if there is none. Always resolves the job's future."""
        results: list[Rendered] | None = None
        try:
            if job is None:
                self._ready_process(slot)
            elif not job.future.done():  # it is done if its deadline passed in the queue
                results = self._render(slot, job)
        except OSError as exc:
            self._delay_start(exc)
        finally:
            if job is not None:
                with self._changed:
                    del self._jobs[job.key]
                _resolve(job.future, results)

    def _render(self, slot: _Slot, job: _Job) -> list[Rendered] | None:
        """The results of the job; None: show it plain. Raises OSError if no process can start."""
        for _ in range(2):  # the process may have died since its last job
            process = self._ready_process(slot)
            try:
                reply = process.request(job.request)
            except ProcessDied:
                self._stop_process(slot, "died")
            except ProcessTimeout:
                self._stop_process(slot, f"has not answered for {job.request.deadline:.1f} s")
                break
            else:
                return self._cache_results(job, reply.results or job.plain_results())
        return self._without_process(job)

    def _without_process(self, job: _Job) -> list[Rendered] | None:
        """The results of a job during which the process died or hung.

        The first time None; the second time plain results, which are cached.
        """
        with self._changed:
            is_first = job.key not in self._suspect_keys
            self._suspect_keys[job.key] = None
            if len(self._suspect_keys) > SUSPECTS_MAX:
                self._suspect_keys.popitem(last=False)
        return None if is_first else self._cache_results(job, job.plain_results())

    def _cache_results(self, job: _Job, results: list[Rendered]) -> list[Rendered]:
        for key, result in zip(job.keys, results, strict=True):
            self._cache.keep(key, result)
        return results

    def _ready_process(self, slot: _Slot) -> Child:
        """The slot's process; starts it if needed. Raises OSError if it cannot start."""
        if slot.process is not None:
            return slot.process
        with self._changed:
            if not self._can_start():
                raise OSError("a start is not due yet")
        process = Child(self._command, self._check_queue)
        try:
            process.wait_ready()
        except (ProcessDied, ProcessTimeout) as exc:
            status = process.close()
            reason = f"exit status {status}" if isinstance(exc, ProcessDied) else "no first reply"
            raise OSError(reason) from exc
        with self._changed:
            slot.process = process
            self._retry_delay = 0.0
            is_closed = self._is_closed
        if is_closed:
            self._stop_process(slot, "")
            raise OSError("closed")
        return process

    def _stop_process(self, slot: _Slot, reason: str) -> None:
        """End the slot's process, which is unusable."""
        with self._changed:
            process, slot.process = slot.process, None
        if process is not None:
            status = process.close()
            if not self._is_closed:
                logger.warning("rendering process %d %s (%d)", process.pid, reason, status)

    def _delay_start(self, exc: OSError) -> None:
        """After a failed start: delay the next one.

        If no process is left, all jobs in the queue are resolved as plain.
        """
        with self._changed:
            if self._is_closed or now() < self._retry_at:
                return
            self._retry_delay = min(self._retry_delay * 2, RETRY_MAX) or RETRY_FIRST
            self._retry_at = now() + self._retry_delay
            waiting_jobs: list[_Job] = []
            if all(slot.process is None for slot in self._slots):
                waiting_jobs = self._empty_queue()
            delay = self._retry_delay
        logger.error(
            "no rendering process can be started (%s): code has no colours and long texts are"
            " shown plain; the next start is tried after %.0f s",
            exc,
            delay,
        )
        _resolve_plain(waiting_jobs)

    def _check_queue(self) -> None:
        """Resolve overdue jobs as plain; start the second process for a job that waits too long."""
        at = now()
        with self._changed:
            if self._next_job(self._slots[1]) is not None:
                self._start_thread(self._slots[1])
                self._changed.notify_all()
            overdue = [job for job in self._jobs.values() if job.deadline <= at]
        _resolve_plain(overdue)

    def _clear_slot(self, slot: _Slot) -> Child | None:
        """Remove thread and process from a slot; return the process. The lock must be held."""
        slot.thread = None
        process, slot.process = slot.process, None
        return process

    def _fail_slot(self, slot: _Slot) -> None:
        """The slot's thread has failed: clear the slot and resolve all waiting jobs as plain."""
        logger.exception("a thread for rendering has ended")
        with self._changed:
            process = self._clear_slot(slot)
            slot.is_busy = False
            waiting_jobs = self._empty_queue()
        if process is not None:
            process.close()
        _resolve_plain(waiting_jobs)

    def _empty_queue(self) -> list[_Job]:
        """Remove and return all jobs of the queue. The lock must be held."""
        waiting_jobs, self._queue = self._queue, []
        for job in waiting_jobs:
            del self._jobs[job.key]
        return waiting_jobs

    def close(self) -> None:
        """End the processes; later jobs are resolved as plain. May be repeated."""
        with self._changed:
            self._is_closed = True
            waiting_jobs = self._empty_queue()
            threads = [slot.thread for slot in self._slots if slot.thread is not None]
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()
            self._changed.notify_all()
        _resolve_plain(waiting_jobs)
        deadline = now() + CLOSE_WAIT
        for thread in threads:
            thread.join(max(0.0, deadline - now()))


def completed(value: T) -> Future[T]:
    """A resolved future with this result."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _resolve_plain(jobs: list[_Job]) -> None:
    for job in jobs:
        _resolve(job.future, None)


def _resolve(future: Future[T], value: T) -> None:
    """Set the result, unless the future has one."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)
