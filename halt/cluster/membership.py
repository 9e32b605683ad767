"""Which workers of the server are alive: leases, and the recovery of dead workers.

Each worker process has a name, which ends with the data folder's ID, and files in the run folder,
which all workers share:

    NAME.lock   locked (flock) by the worker for as long as its process lives: a lease of the kernel
    NAME.sock   the Unix socket on which the worker serves the others (see `.bus`)
    NAME.note   a note of a worker that has left, for workers that begin later

The folder has mode 0700 and the files 0600, so no other user can connect.

Each worker looks for dead workers once a second. A worker that finds the lock of another one free
recovers the dead worker's generations, then removes its files. Meanwhile it holds the lock of
another file, NAME.cleanup: only one worker recovers, and the dead worker counts as dead for all.
(NAME.lock could serve for both only if it were changed from exclusive to shared, which the system
does in two steps: another worker can take it in between.) A worker that ends in order leaves its
lock file too, and is recovered in the same way.

A missing lock file means that its worker has died, unless another program has deleted the files. A
worker whose own lock file is missing creates it and its socket again, and counts others as alive
until they have had the time to do the same (REPAIR_WITHIN).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from halt.clock import now
from halt.config.data_dir import folder_id, open_private, run_folder, socket_folder
from halt.config.settings import ConfigError

SWEEP_EVERY = 1.0  # seconds between two searches for dead workers
REPAIR_WITHIN = 5.0  # seconds for live workers to create deleted files again

logger = logging.getLogger(__name__)


class Membership:
    """This worker's lease, and the leases of the others."""

    def __init__(self, data: Path, recover: Callable[[str], object] = lambda name: None) -> None:
        """Touches no file. `recover` is called with the name of each worker found dead."""
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.recover = recover
        #: The folders of lock files and of sockets; None until `begin`.
        self.run: Path | None = None
        self.sockets: Path | None = None
        self._data = data
        self._folder_id = ""
        self._files = threading.Lock()  # protects this worker's own files and the four below
        self._lease = -1
        self._disturbed_at: float | None = None  # time of the last check that found no lock file
        self._saw_deletion = False  # the files were there before; else this worker began later
        self._is_logged = False  # that the files were deleted
        self._watcher: threading.Thread | None = None
        self._stopping = threading.Event()
        self._sweep_now = threading.Event()
        self._sweeping = threading.Lock()  # one sweep of this worker at a time
        self._failed: set[str] = set()  # dead workers whose recovery has failed and was logged

    # --- begin and end ----------------------------------------------------------------------------

    def look(self) -> None:
        """Be able to see the others' leases without one of one's own. Raises ConfigError."""
        self._folder_id = folder_id(self._data)

    def begin(self) -> tuple[Path, Path]:
        """Take this worker's lease. Raises ConfigError, OSError.

        Returns the folder of lock files and the folder of sockets. To be called after the fork: the
        name contains the process number.
        """
        self._folder_id = folder_id(self._data)
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}-{self._folder_id}"
        if not (self._data / "run").exists():  # this worker is the first, or the folder was deleted
            self._disturbed_at = now()
        self.run = run_folder(self._data)
        self.sockets = socket_folder(self.run)
        self._lease = self._new_lease(self.run)
        return self.run, self.sockets

    def watch(self) -> None:
        """Recover dead workers now, and start the thread that does so once a second."""
        self.sweep()
        self._watcher = threading.Thread(
            target=self._watch, name="halt-membership-watch", daemon=True
        )
        self._watcher.start()

    def stop(self) -> None:
        """End the watching thread, without waiting for it. Harmless when repeated.

        The lease is kept until the process ends, so no worker recovers this one earlier.
        """
        self._stopping.set()
        self._sweep_now.set()

    def wait_stopped(self) -> None:
        """Wait for the watching thread to end, for 2 * SWEEP_EVERY seconds at most."""
        if self._watcher is not None:
            self._watcher.join(2 * SWEEP_EVERY)

    # --- notes ------------------------------------------------------------------------------------

    def leave_note(self, payload: bytes) -> None:
        """Write a note for workers that begin after this one has left. Raises OSError."""
        if self.run is not None:
            part = self.run / f"{self.name}.new"
            with os.fdopen(open_private(part, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                file.write(payload)
            part.rename(self.run / f"{self.name}.note")

    def notes(self, max_age: float) -> list[bytes]:
        """The notes of the last `max_age` seconds. Older ones are removed."""
        notes = []
        for path in self.run.glob("*.note") if self.run is not None else ():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime <= max_age:
                    notes.append(path.read_bytes())
                else:
                    path.unlink()
        return notes

    # --- this worker's lock file ------------------------------------------------------------------

    def _new_lease(self, run: Path) -> int:
        """A new lock file's descriptor. The file is locked before it gets its name, so no worker
        finds it unlocked while this process lives."""
        part = run / f"{self.name}.new"
        lease = open_private(part, os.O_RDWR | os.O_EXCL)
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.rename(run / f"{self.name}.lock")
        return lease

    @contextlib.contextmanager
    def files_locked(self) -> Iterator[bool]:
        """Hold the lock that protects this worker's files. Raises OSError.

        True: its lock file is in place, and the worker has begun and is not stopping.
        """
        with self._files:
            run = self.run
            yield run is not None and not self._stopping.is_set() and self._in_place(run)

    def _in_place(self, run: Path) -> bool:
        """Whether this worker's lock file is in the run folder. `_files` is held."""
        try:
            in_place = os.path.samestat((run / f"{self.name}.lock").stat(), os.fstat(self._lease))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            self._disturbed_at = now()
            self._saw_deletion = True
        return in_place

    def _repair(self) -> None:
        """Create this worker's lock file again if it was deleted. Logged once."""
        with self._files:
            run = self.run
            if run is None or self._stopping.is_set():
                return
            if self._in_place(run):
                self._is_logged = False
                return
            try:
                lease = self._new_lease(run_folder(self._data))
                os.close(self._lease)
                self._lease = lease
                outcome = "they were created again"
            except (ConfigError, OSError) as exc:
                outcome = f"they cannot be created again yet: {exc}"
            if not self._is_logged:
                logger.error("this worker's files in %s were deleted; %s", run, outcome)
            self._is_logged = True

    # --- the other workers ------------------------------------------------------------------------

    def is_alive(self, name: str) -> bool | None:
        """Whether the worker of this name holds its lease. None: this worker cannot know.

        The workers of several data folders can share one PostgreSQL database; the leases of another
        folder cannot be read here. A name without a folder ID is of an earlier version of Halt.
        """
        if name == self.name:
            return True
        if name.count("-") > 1 and not name.endswith(f"-{self._folder_id}"):
            return None
        try:
            return _is_held((self.run or self._data / "run") / f"{name}.lock")
        except FileNotFoundError:
            return self._may_live(name)

    def has_live_worker(self) -> bool:
        """Whether any other worker of this data folder is alive."""
        locks = (self.run or self._data / "run").glob("*.lock")
        return any(self.is_alive(lock.stem) for lock in locks if lock.stem != self.name)

    def _may_live(self, name: str) -> bool:
        """Whether a worker without a lock file may be alive, because the file was deleted."""
        with self._files:
            if self.run is not None:
                self._in_place(self.run)
            if self._disturbed_at is None:
                return False
            recent = now() - self._disturbed_at < REPAIR_WITHIN
            return (recent or self._saw_deletion) and _process_exists(name)

    def sweep_soon(self) -> None:
        """Start the next sweep now: a worker has probably died."""
        self._sweep_now.set()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._sweep_now.wait(SWEEP_EVERY)
            self._sweep_now.clear()
            if not self._stopping.is_set():
                with contextlib.suppress(OSError):  # no file descriptor is free: try again later
                    self._repair()
                    self.sweep()

    def sweep(self) -> None:
        """Recover every dead worker. A recovery that fails is logged once and tried again."""
        if self.run is None:
            return
        with self._sweeping:
            for lock in self.run.glob("*.lock"):
                if lock.stem == self.name:
                    continue
                try:
                    self._recover_if_dead(lock)
                except Exception as fault:
                    if lock.stem not in self._failed:
                        logger.error(
                            "the recovery of dead worker %s has failed and will be tried again: %s",
                            lock.stem,
                            fault,
                            exc_info=fault,
                        )
                    self._failed.add(lock.stem)

    def _recover_if_dead(self, lock: Path) -> None:
        """Recover the worker of this lock file, if it is dead and no other worker recovers it."""
        with contextlib.suppress(FileNotFoundError):  # tested again below
            if _is_held(lock):
                return
        cleanup = lock.with_suffix(".cleanup")
        file = open_private(cleanup, os.O_RDWR)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another worker recovers it now
            if lock.exists():  # else another worker has recovered it
                self.recover(lock.stem)
                if self.sockets is not None:
                    (self.sockets / f"{lock.stem}.sock").unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            # Last: a worker that creates this file again from here on finds no lock file.
            cleanup.unlink(missing_ok=True)
        finally:
            os.close(file)


def _is_held(lock: Path) -> bool:
    """Whether a process holds this lock file. Raises OSError, FileNotFoundError among them."""
    file = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _process_exists(name: str) -> bool:
    """Whether a process with the number in this worker name exists."""
    try:
        os.kill(int(name.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True
