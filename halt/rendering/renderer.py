"""Markdown to HTML without a text that holds the interpreter's lock for long.

Short and shallow texts without code take milliseconds at worst and are rendered at once. Every
other text goes to a rendering process (`halt.rendering.process`), which limits the CPU time of
each. What is not there in time is shown plain: readable, with its line breaks, code in its box
without colours. What was rendered is kept, and a text that several readers open at once is rendered
once.

A process is started when there is work for it, or expected; the second one when the first is busy
and quick work has waited for PATIENCE. A process that does not answer by its deadline is killed and
replaced; one without work ends after IDLE seconds. Each has a thread that waits for it.

`_changed` protects the queue, the table of jobs, what is kept, and the slots. No process is waited
for while it is held, and no future is resolved.
"""

from __future__ import annotations

import contextlib
import logging
import re
import select
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol, TypeVar

import msgspec

from halt.assets import PACKAGE
from halt.clock import now
from halt.rendering.blocks import Block, Patch, Step
from halt.rendering.markdown import plain, plain_block, render, render_block
from halt.rendering.open_text import normal
from halt.rendering.protocol import (
    HEAD,
    Drawn,
    Reply,
    Request,
    block_of,
    frame,
    length_of,
    replies,
)

#: Characters of a text that is rendered by the thread that asks for it: the worst text found takes
#: 9 ms (definitions of links that are not closed). Without DEEP it would be 15 ms.
SHORT = 500
#: Four marks of quotes and lists in a row. The cost of a line is proportional to their number.
DEEP = re.compile(r"^(?:[ \t]*+(?:[>*+-]|[0-9]{1,9}[.)])){4}", re.MULTILINE)

PROCESSES = 2
QUICK = 1.0  # seconds of CPU: the second process does nothing that may take longer
#: Seconds that quick work waits before a second process starts; loading a lexer takes less.
PATIENCE = 0.3
QUEUE_MAX = 200  # requests that wait; one beyond is shown plain
KEPT_MAX = 16_000_000  # bytes of HTML that are kept
ENTRY = 300  # bytes beside the HTML of one
IDLE = 300.0  # seconds without work after which a process ends; it takes 15 MB
START_MAX = 10.0  # seconds from a start to the first reply (0.15 measured)
RETRY_FIRST, RETRY_MAX = 1.0, 60.0  # seconds between two starts that fail; doubled each time
TICK = 0.02  # seconds between two looks at the requests whose time is over, while there is work
CLOSE_WAIT = 1.0  # seconds that closing waits for the threads
BLOCK_WAIT = 1.0  # seconds that the blocks of a running answer are waited for
TEXT_WAIT = 2.0  # seconds that a whole text is waited for
UNSURE_MAX = 1000  # texts during which a process died, to be remembered

PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from halt.rendering.process import main; main()"
)

logger = logging.getLogger(__name__)


S = TypeVar("S")
T = TypeVar("T")


class Rendering(Protocol):
    """Renders what one page shows; all together by one deadline."""

    def whole(self, text: str) -> str:
        """A whole text as HTML."""

    def patch(self, step: Step) -> Patch:
        """The step with its blocks as HTML."""


class _Gone(Exception):
    """The process has ended, or its socket is closed."""


class _Hangs(Exception):
    """The process has not answered by its deadline."""


@dataclass(eq=False)
class _Job:
    key: bytes
    request: Request
    keys: list[bytes]  # under which each part of the reply is kept
    until: float  # when the future is resolved in any case
    since: float = field(default_factory=now)
    #: None: it is to be shown plain.
    future: Future[list[Drawn] | None] = field(default_factory=Future)

    def plain(self) -> list[Drawn]:
        """What is shown where nothing can be rendered of it."""
        request = self.request
        if request.text is not None:
            return [Drawn(plain(request.text), over=True)]
        return [Drawn(plain_block(block_of(*each)), over=True) for each in request.blocks]


class _Process:
    """A rendering process, for the one thread that waits for it. Raises _Gone, _Hangs, OSError."""

    def __init__(self, command: Sequence[str], look: Callable[[], None]) -> None:
        """Start it. `look` is called every TICK while it is waited for."""
        self._look = look
        self._socket, theirs = socket.socketpair()
        self._received = bytearray()
        self._socket.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait for its first reply."""
        self._exchange(b"", now() + START_MAX)

    def ask(self, request: Request) -> Reply:
        """Have it answer a request."""
        answer = self._exchange(frame(request), now() + request.deadline)
        try:
            reply = replies.decode(answer)
        except msgspec.MsgspecError as exc:
            raise _Gone from exc
        if reply.fault:
            logger.error("a text cannot be rendered: %s", reply.fault)
        return reply

    def _exchange(self, out: bytes, deadline: float) -> bytes:
        rest, received = memoryview(out), bytearray()
        size = HEAD
        poll = select.poll()
        try:
            while len(received) < size:
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if rest else 0))
                if not poll.poll(TICK * 1000):
                    self._look()
                    if now() >= deadline:
                        raise _Hangs
                    continue
                if rest:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[self._socket.send(rest) :]
                with contextlib.suppress(BlockingIOError):
                    part = self._socket.recv(1 << 18)
                    if not part:
                        raise _Gone
                    received += part
                if size == HEAD and len(received) >= HEAD:
                    size += length_of(received[:HEAD])
        except OSError as exc:  # it has ended before it has read all
            raise _Gone from exc
        return bytes(received[HEAD:])

    def kill(self) -> None:
        """End it at once. Harmless when repeated, and in any thread."""
        self._process.kill()

    def close(self) -> int:
        """End it, and return its exit status."""
        self._process.kill()
        self._socket.close()
        return self._process.wait()


@dataclass
class _Slot:
    """A place for a process, and the thread that waits for it."""

    thread: threading.Thread | None = None
    process: _Process | None = None
    is_busy: bool = False
    is_wanted: bool = False  # work is expected


class Renderer:
    """See the module. One for each application; any thread may call it."""

    def __init__(self, command: Sequence[str] = (), idle: float = IDLE) -> None:
        """`command` starts a rendering process, where it is not the usual one."""
        self._command = command or (
            sys.executable or "python3",
            "-P",
            "-c",
            PROGRAM,
            str(PACKAGE.parent),
        )
        self._idle = idle
        self._changed = threading.Condition()
        self._queue: list[_Job] = []
        self._jobs: dict[bytes, _Job] = {}  # in the queue, and under way
        self._kept: OrderedDict[bytes, Drawn] = OrderedDict()  # the one used last is the last
        self._kept_bytes = 0
        self._unsure: OrderedDict[bytes, None] = OrderedDict()
        self._slots = [_Slot() for _ in range(PROCESSES)]
        self._retry_at, self._retry_delay = 0.0, 0.0
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process IDs of the rendering processes that are ready."""
        with self._changed:
            return [slot.process.pid for slot in self._slots if slot.process is not None]

    # --- texts ------------------------------------------------------------------------------------

    def within(self, seconds: float) -> Rendering:
        """To render what a page shows, in so many seconds altogether."""
        return _Within(self, now() + seconds)

    def whole(self, text: str) -> Future[Drawn]:
        """A whole text. Resolved within TEXT_WAIT."""
        text = normal(text)
        key = _key("text", text)
        kept = self._find(key)
        if kept is None and _is_light(text):
            kept = self._keep(key, Drawn(render(text)))
        if kept is not None:
            return _resolved(kept)
        found = self._submit(key, Request(text, []), [key], now() + TEXT_WAIT)
        return _then(found, lambda drawn: drawn[0] if drawn else Drawn(plain(text)))

    def blocks(
        self, blocks: Sequence[Block], given_up: AbstractSet[bool] = frozenset()
    ) -> Future[list[Drawn]]:
        """Each of these blocks. Resolved within BLOCK_WAIT.

        `given_up`: True stands for fences, False for the others; those that would take more than
        milliseconds are shown plain.
        """
        out: list[Drawn | None] = []
        sources, keys = list[tuple[str, bool]](), list[bytes]()
        for block in blocks:
            source = block.source
            drawn: Drawn | None
            if not block.is_fence and _is_light(source):
                drawn = Drawn(render_block(block))
            elif block.is_fence in given_up:
                drawn = Drawn(plain_block(block))
            else:
                key = _key("fence" if block.is_fence else "block", source)
                if (drawn := self._find(key)) is None:
                    sources.append((source, block.is_fence))
                    keys.append(key)
            out.append(drawn)
        if not keys:
            return _resolved([each for each in out if each is not None])
        key = _key("blocks", *[each.hex() for each in keys])
        found = self._submit(key, Request(None, sources), keys, now() + BLOCK_WAIT)

        def put_together(drawn: list[Drawn] | None) -> list[Drawn]:
            fresh = iter(drawn or ())
            return [
                each or next(fresh, None) or Drawn(plain_block(block))
                for block, each in zip(blocks, out, strict=True)
            ]

        return _then(found, put_together)

    def has(self, text: str) -> bool:
        """Whether a whole text is there without waiting."""
        text = normal(text)
        return _is_light(text) or self._find(_key("text", text)) is not None

    # --- what is kept -----------------------------------------------------------------------------

    def _find(self, key: bytes) -> Drawn | None:
        with self._changed:
            drawn = self._kept.get(key)
            if drawn is not None:
                self._kept.move_to_end(key)
            return drawn

    def _keep(self, key: bytes, drawn: Drawn) -> Drawn:
        with self._changed:
            if key not in self._kept:
                self._kept[key] = drawn
                self._kept_bytes += _memory(drawn)
            while self._kept_bytes > KEPT_MAX:
                _, old = self._kept.popitem(last=False)
                self._kept_bytes -= _memory(old)
        return drawn

    # --- the queue --------------------------------------------------------------------------------

    def expect(self) -> None:
        """Have a process ready soon: a page follows an answer that is being written."""
        with self._changed:
            slot = self._slots[0]
            if slot.process is None and self._can_start():
                slot.is_wanted = True
                self._start_thread(slot)
                self._changed.notify_all()

    def _submit(
        self, key: bytes, request: Request, keys: list[bytes], until: float
    ) -> Future[list[Drawn] | None]:
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
            ):
                return _resolved(None)
            if not self._start_thread(self._slots[0]):
                return _resolved(None)
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
        drawn: list[Drawn] | None = None
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

    def _drawn(self, slot: _Slot, job: _Job) -> list[Drawn] | None:
        """What the process makes of it. None: nothing. Raises OSError where there is no process."""
        for _ in range(2):  # one may have died since the last time
            process = self._started(slot)
            try:
                reply = process.ask(job.request)
            except _Gone:
                self._stop(slot, "died")
            except _Hangs:
                self._stop(slot, f"has not answered for {job.request.deadline:.1f} s")
                break
            else:
                drawn = reply.drawn or job.plain()
                for key, each in zip(job.keys, drawn, strict=True):
                    self._keep(key, each)
                return drawn
        return self._without_process(job)

    def _without_process(self, job: _Job) -> list[Drawn] | None:
        """What is shown of a text whose process is gone: it is kept when that happens again."""
        with self._changed:
            is_first = job.key not in self._unsure
            self._unsure[job.key] = None
            if len(self._unsure) > UNSURE_MAX:
                self._unsure.popitem(last=False)
        if is_first:
            return None
        drawn = job.plain()
        for key, each in zip(job.keys, drawn, strict=True):
            self._keep(key, each)
        return drawn

    def _started(self, slot: _Slot) -> _Process:
        """The slot's process, ready. Raises OSError."""
        if slot.process is not None:
            return slot.process
        with self._changed:
            if not self._can_start():
                raise OSError("a start is not due yet")
        process = _Process(self._command, self._look)
        try:
            process.wait_ready()
        except (_Gone, _Hangs) as exc:
            status = process.close()
            how = f"exit status {status}" if isinstance(exc, _Gone) else "it is never ready"
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
        for job in waiting:
            _resolve(job.future, None)

    def _look(self) -> None:
        """Resolve what has waited too long, and have a second process for what has for a while."""
        at = now()
        with self._changed:
            if self._next(self._slots[1]) is not None:
                self._start_thread(self._slots[1])
                self._changed.notify_all()
            late = [each for each in self._jobs.values() if each.until <= at]
        for job in late:
            _resolve(job.future, None)

    def _vacated(self, slot: _Slot) -> _Process | None:
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
        for job in waiting:
            _resolve(job.future, None)

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
        for job in waiting:
            _resolve(job.future, None)
        until = now() + CLOSE_WAIT
        for thread in threads:
            thread.join(max(0.0, until - now()))


class Ready:
    """See `Rendering`: one text whose HTML is there. Everything else is plain."""

    def __init__(self, text: str, html: str) -> None:
        self._text = text
        self._html = html

    def whole(self, text: str) -> str:
        return self._html if text == self._text else plain(text)

    def patch(self, step: Step) -> Patch:
        return step.patch(map(plain_block, step.blocks))


class _Within:
    """See `Rendering`."""

    def __init__(self, renderer: Renderer, until: float) -> None:
        self._renderer = renderer
        self._until = until

    def whole(self, text: str) -> str:
        if self._is_over and not self._renderer.has(text):
            return plain(text)
        drawn = self._result(self._renderer.whole(text))
        return plain(text) if drawn is None else drawn.html

    def patch(self, step: Step) -> Patch:
        blocks = None if self._is_over else self._result(self._renderer.blocks(step.blocks))
        if blocks is None:
            return step.patch(map(plain_block, step.blocks))
        return step.patch(each.html for each in blocks)

    @property
    def _is_over(self) -> bool:
        return now() >= self._until

    def _result(self, future: Future[T]) -> T | None:
        try:
            return future.result(max(0.0, self._until - now()))
        except TimeoutError:
            return None


def _is_light(text: str) -> bool:
    """Whether a text takes milliseconds at worst."""
    return len(text) <= SHORT and "```" not in text and "~~~" not in text and not DEEP.search(text)


def _key(*parts: str) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.digest()


def _memory(drawn: Drawn) -> int:
    """Bytes that it takes among what is kept."""
    return sys.getsizeof(drawn.html) + ENTRY


def _resolved(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _resolve(future: Future[T], value: T) -> None:
    """Set its result, unless it has one."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def _then(future: Future[S], convert: Callable[[S], T]) -> Future[T]:
    """What `convert` makes of its result."""
    made: Future[T] = Future()

    def go_on(done: Future[S]) -> None:
        try:
            made.set_result(convert(done.result()))
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            made.set_exception(exc)

    future.add_done_callback(go_on)
    return made
