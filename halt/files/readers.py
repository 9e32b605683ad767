"""The reading processes of one worker, at most PROCESSES at a time, each used by one thread.

A process starts with the first file, and ends after IDLE seconds without one. It is ended at its
deadline, and after a file during which it died: the file is refused, other files are not affected.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from halt.child_process import ChildProcess, ProcessDied, ProcessTimeout, python_command
from halt.clock import now
from halt.files.facts import Facts, Role
from halt.files.faults import FileError, FileTooLarge, ReadersBusy, UnknownKind, Unreadable
from halt.files.protocol import REAL_MAX, FaultCode, Reply, Request, frame, replies

PROCESSES = 2
WAITING_MAX = 50  # threads that wait for a process; each has a file on the disk
WAIT_MAX = 60.0  # seconds that a file waits for a process
SOON = 1.0  # seconds of reading; a process that dies later dies of its file
IDLE = 60.0  # seconds without a file after which a process ends; one takes 40 MB
COMMAND = python_command("halt.files.process")
PART = 1_000_000  # bytes of `ReadFile.parts`
UNPACKED_MAX = 200_000_000  # bytes that a compressed file may unpack to

BUSY_RETRY_AFTER = 5.0  # seconds
_LIMITS_REACHED = "Reading the file took too much time or memory."
_ERRORS: dict[FaultCode, type[FileError]] = {
    "kind": UnknownKind,
    "unreadable": Unreadable,
    "too_large": FileTooLarge,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadFile:
    """A file that was read; what is kept of it is in two open files of the caller."""

    facts: Facts
    hash: str  # SHA-256 of the content that is kept, in hexadecimal
    sizes: dict[Role, int]  # bytes
    _sources: dict[Role, tuple[BinaryIO, int]]  # the file of each part, and its place there

    def parts(self, role: Role) -> Iterator[bytes]:
        """The bytes of a part, in pieces of PART."""
        file, at = self._sources[role]
        left = self.sizes[role]
        while left:
            data = os.pread(file.fileno(), min(left, PART), at)
            if not data:
                raise OSError("the file has become shorter")
            at += len(data)
            left -= len(data)
            yield data


class Readers:
    """The reading processes; see the module. Thread-safe.

    `_changed` protects the lists and the counts. While it is held, no thread waits for a process.
    """

    def __init__(self, command: Sequence[str] = COMMAND, idle: float = IDLE) -> None:
        self._command = command
        self._idle_seconds = idle
        self._changed = threading.Condition()
        self._idle: list[tuple[float, ChildProcess]] = []  # since when; the last used comes last
        self._busy: set[ChildProcess] = set()
        self._used = 0  # places of PROCESSES that are taken
        self._waiting = 0
        self._timer: threading.Timer | None = None  # ends idle processes
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """The process IDs of the reading processes."""
        with self._changed:
            return [child.pid for child in (*self._busy, *(child for _, child in self._idle))]

    def read(
        self, source: BinaryIO, kept: BinaryIO, name: str, *, max_chars: int, max_bytes: int
    ) -> ReadFile:
        """Read `source`; what is not kept as it came is written to `kept`, an empty file.

        Raises FileError, ReadersBusy, and OSError where no process can be started.
        """
        reply = self._reply(source, kept, Request(name, max_chars, max_bytes))
        if reply.surprise:
            logger.error("a file cannot be read: %s", reply.surprise)
        if reply.fault or reply.facts is None:
            raise _ERRORS.get(reply.fault, Unreadable)(name, reply.reason)
        sizes: dict[Role, int] = {
            "content": reply.content or os.fstat(source.fileno()).st_size,
            "text": reply.text,
            "thumbnail": reply.thumbnail,
        }
        sources: dict[Role, tuple[BinaryIO, int]] = {
            "content": (kept if reply.content else source, 0),
            "text": (kept, reply.content),
            "thumbnail": (kept, reply.content + reply.text),
        }
        read = ReadFile(reply.facts, "", sizes, sources)
        digest = hashlib.sha256()
        for part in read.parts("content"):
            digest.update(part)
        return ReadFile(reply.facts, digest.hexdigest(), sizes, sources)

    def _reply(self, source: BinaryIO, kept: BinaryIO, request: Request) -> Reply:
        self._take_place()
        try:
            while True:
                child, is_new = self._ready_child()
                began = now()
                try:
                    return self._ask(child, source, kept, request)
                except (ProcessDied, ProcessTimeout, msgspec.MsgspecError) as exc:
                    if isinstance(exc, ProcessDied) and not is_new and now() - began < SOON:
                        continue  # it may have died before this file came
                    logger.warning("a reading process was ended: %s", type(exc).__name__)
                    return Reply("unreadable", _LIMITS_REACHED)
        finally:
            with self._changed:
                self._used -= 1
                self._changed.notify()

    def _ask(
        self, child: ChildProcess, source: BinaryIO, kept: BinaryIO, request: Request
    ) -> Reply:
        """Let a process read the file. Raises ProcessDied, ProcessTimeout, MsgspecError."""
        is_usable = False
        try:
            source.seek(0)
            kept.truncate(0)
            kept.seek(0)
            files = (source.fileno(), kept.fileno())
            reply = replies.decode(child.exchange(frame(request), REAL_MAX, files))
            is_usable = not reply.is_last
        finally:
            self._release(child, is_usable=is_usable)
        return reply

    # --- the processes ----------------------------------------------------------------------------

    def _take_place(self) -> None:
        """Take one of the PROCESSES places, in no order. Raises ReadersBusy."""
        with self._changed:
            if self._waiting >= WAITING_MAX:
                raise _busy()
            self._waiting += 1
            try:
                if not self._changed.wait_for(
                    lambda: self._is_closed or self._used < PROCESSES, WAIT_MAX
                ):
                    raise _busy()
            finally:
                self._waiting -= 1
            if self._is_closed:
                raise _busy()
            self._used += 1

    def _ready_child(self) -> tuple[ChildProcess, bool]:
        """An idle process, or a new one (True). Raises OSError where none can be started."""
        with self._changed:
            if self._idle:
                child = self._idle.pop()[1]
                self._busy.add(child)
                return child, False
        # Without the worker's environment: it has keys, and a reader needs nothing of it.
        child = ChildProcess(self._command, environment={})
        try:
            child.wait_ready()
        except BaseException as exc:
            child.close()
            if isinstance(exc, ProcessDied | ProcessTimeout):
                raise OSError("no reading process can be started") from exc
            raise
        with self._changed:
            self._busy.add(child)
            if self._is_closed:
                child.kill()
        return child, True

    def _release(self, child: ChildProcess, *, is_usable: bool) -> None:
        """Keep the process for the next file, or end it."""
        with self._changed:
            self._busy.discard(child)
            is_kept = is_usable and not self._is_closed and self._keep(child)
        if not is_kept:
            child.close()

    def _keep(self, child: ChildProcess) -> bool:
        """Keep an idle process; False if no thread can be started that would end it."""
        if self._timer is None and not self._start_timer(self._idle_seconds):
            return False
        self._idle.append((now(), child))
        return True

    def _start_timer(self, seconds: float) -> bool:
        timer = threading.Timer(seconds, self._end_idle)
        timer.daemon, timer.name = True, "halt-files"
        try:
            timer.start()
        except RuntimeError:
            return False
        self._timer = timer
        return True

    def _end_idle(self) -> None:
        """In the timer's thread: end the processes that were idle for long enough."""
        with self._changed:
            self._timer = None
            until = now() - self._idle_seconds
            ended = [child for since, child in self._idle if since <= until]
            self._idle = [pair for pair in self._idle if pair[0] > until]
            if self._idle and not self._start_timer(self._idle[0][0] - until):
                ended += [child for _, child in self._idle]
                self._idle = []
        for child in ended:
            child.close()

    def close(self) -> None:
        """End all processes; files that are being read are refused. May be repeated."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for child in self._busy:
                child.kill()
            if self._timer is not None:
                self._timer.cancel()
            self._changed.notify_all()
        for _, child in idle:
            child.close()


def temporary_file(folder: Path) -> BinaryIO:
    """An empty file without a name in a folder; it vanishes when it is closed. Raises OSError."""
    return tempfile.TemporaryFile(dir=folder)


def _busy() -> ReadersBusy:
    return ReadersBusy(
        f"Too many files are being read. Try again in {BUSY_RETRY_AFTER:g} s.",
        retry_after=BUSY_RETRY_AFTER,
    )
