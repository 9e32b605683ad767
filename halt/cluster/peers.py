"""The other workers on this machine: which are there, what they are asked, and which have died.

Each worker process has a name, which ends with the data folder's mark, and files in the run folder
that all workers share:

    NAME.lock   locked (flock) by the worker for as long as it lives: the kernel's lease
    NAME.sock   a Unix socket, where it answers the others
    NAME.word   what it left for those that begin after it, which may not have seen it alive

Folder (0700) and files (0600) are their owner's alone, so no other user can connect. A request is
one frame on a connection of its own, answered by one frame or by many (see `.channel`).

A worker that hangs holds up no other: to connect and to send never wait, and answers are waited for
together, for as long as the asker allows.

A worker that finds the lock of another one free tidies up after that one, and then removes the
files. Meanwhile it holds the lock of another file, NAME.cleanup, so of all that look, once a second
each, one does it, and the dead worker counts as dead for all. (NAME.lock could serve for both only
if it were changed from exclusive to shared, which the system does in two steps: another worker
comes in between.) A worker that leaves in order leaves its lock file in the same way.

A lock file that is not there means a death only where the files were not taken away: a worker
that finds its own one gone makes it and its socket again, and gives the others time to do the same.

Threads of a worker: one accepts, one looks for the dead, one for each request that is answered
(SHORT_MAX at once), one for each stream that another worker follows here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from halt.clock import now
from halt.cluster.channel import Answers, Channel
from halt.config.data_dir import bind_private, mark, open_private, run_folder, socket_folder
from halt.config.settings import ConfigError

SWEEP_EVERY = 1.0  # seconds between two looks for workers that have died
MENDED_WITHIN = 5.0  # seconds for living workers to make files again that were taken away
REQUEST_WITHIN = 1.0  # seconds for a worker that has connected to say what it wants
ANSWER_WITHIN = 5.0  # seconds for a worker that has asked to take a short answer
LEAVE_WITHIN = 1.0  # seconds that leaving waits for answers that are being given
SHORT_MAX = 64  # requests that are answered at once; further ones wait to be accepted
LONG_MAX = 4096  # streams that other workers follow here
BACKLOG = 512

logger = logging.getLogger(__name__)


#: Answers one request: sends frames until there is no more to say. What it raises is logged.
Serve = Callable[[bytes, Channel], None]


class Peers:
    """This worker among the others."""

    def __init__(self, data: Path, recover: Callable[[str], object] = lambda name: None) -> None:
        """Touches nothing. `recover` tidies up after the worker of this name, which has died."""
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.recover = recover
        self._data = data
        self._mark = ""
        self._run: Path | None = None
        self._sockets: Path | None = None
        self._files = threading.Lock()  # protects this worker's own files and the four below
        self._lease = -1
        self._disturbed_at: float | None = None  # when the files were last found to be gone
        self._saw_them_go = False  # while this worker was there; else it came soon afterwards
        self._said = False  # that they are gone, or cannot be made again
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._quit = threading.Event()
        self._sweep_now = threading.Event()
        self._sweeping = threading.Lock()
        self._troubled: set[str] = set()  # workers that could not be tidied up after at once
        self._short = threading.BoundedSemaphore(SHORT_MAX)
        self._long = threading.BoundedSemaphore(LONG_MAX)
        self._idle = threading.Condition()  # protects the number below
        self._answering = 0

    # --- life -------------------------------------------------------------------------------------

    def begin(self, serve: Serve) -> Path:
        """Be there for the others; returns the folder that all share. Raises ConfigError, OSError.

        To be called after the fork: it starts threads, and locks belong to a process.
        """
        self._mark = mark(self._data)
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}-{self._mark}"
        if not (self._data / "run").exists():  # the first one here, or others have lost it just now
            self._disturbed_at = now()
        self._run = run_folder(self._data)
        self._sockets = socket_folder(self._run)
        self._lease = self._new_lease(self._run)
        self._listener = self._new_listener(self._sockets)
        self._start("accept", self._accept, self._listener, serve)
        return self._run

    def watch(self) -> None:
        """Look for workers that have died, now and from now on."""
        self.sweep()
        self._start("watch", self._watch)

    def leave_word(self, payload: bytes) -> None:
        """Leave something for workers that begin after this one has left. Raises OSError."""
        if self._run is not None:
            part = self._run / f"{self.name}.new"
            with os.fdopen(open_private(part, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                file.write(payload)
            part.rename(self._run / f"{self.name}.word")

    def words(self, max_age: float) -> list[bytes]:
        """What workers have left in the last `max_age` seconds. What is older is removed."""
        found = []
        for path in self._run.glob("*.word") if self._run is not None else ():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime <= max_age:
                    found.append(path.read_bytes())
                else:
                    path.unlink()
        return found

    def close(self) -> None:
        """Answer no request any more. Harmless when repeated.

        The lock is given back by the end of the process, so that no worker tidies up before.
        """
        self._quit.set()
        self._sweep_now.set()
        listener, self._listener = self._listener, None
        if listener is not None and self._sockets is not None:
            with contextlib.suppress(OSError):
                self._connect(self.name, b"").close()  # ends `accept`
            (self._sockets / f"{self.name}.sock").unlink(missing_ok=True)
            for thread in self._threads:
                thread.join(2 * SWEEP_EVERY)
            listener.close()
            with self._idle:  # the last words of streams that have ended just now
                self._idle.wait_for(lambda: not self._answering, LEAVE_WITHIN)

    def _new_lease(self, run: Path) -> int:
        """Locked before it has its name: no worker finds it free while this process lives."""
        part = run / f"{self.name}.new"
        lease = open_private(part, os.O_RDWR | os.O_EXCL)
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.rename(run / f"{self.name}.lock")
        return lease

    def _new_listener(self, sockets: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bind_private(listener, (sockets / f"{self.name}.sock").absolute())
            listener.listen(BACKLOG)
            listener.settimeout(SWEEP_EVERY)
        except BaseException:
            listener.close()
            raise
        return listener

    # --- files that are taken away ----------------------------------------------------------------

    def _look(self, run: Path) -> bool:
        """Whether this worker's lock file is where it belongs. Under `_files`."""
        try:
            there = os.path.samestat((run / f"{self.name}.lock").stat(), os.fstat(self._lease))
        except FileNotFoundError:
            there = False
        if not there:
            self._disturbed_at = now()
            self._saw_them_go = True
        return there

    def _mend(self) -> None:
        """Have this worker's lock where it belongs, also where it was deleted."""
        with self._files:
            run = self._run
            if run is None or self._quit.is_set():
                return
            if self._look(run):
                self._said = False
                return
            try:
                lease = self._new_lease(run_folder(self._data))
                os.close(self._lease)
                self._lease = lease
                what = "they are made again"
            except (ConfigError, OSError) as exc:
                what = f"they cannot be made again as yet: {exc}"
            if not self._said:
                logger.error("this worker's files in %s were taken away; %s", run, what)
            self._said = True

    def _listen_again(self, listener: socket.socket) -> socket.socket:
        """This worker's socket; a new one where it has its lock and the socket was deleted."""
        run, sockets = self._run, self._sockets
        with self._files, contextlib.suppress(ConfigError, OSError):  # the next turn tries again
            if run is None or sockets is None or self._quit.is_set() or not self._look(run):
                return listener
            if not (sockets / f"{self.name}.sock").exists():
                new = self._new_listener(socket_folder(run))
                listener.close()
                return new
        return listener

    def _may_live(self, name: str) -> bool:
        """Whether a worker whose lock file is not there may be alive all the same."""
        with self._files:
            if self._run is not None:
                self._look(self._run)
            if self._disturbed_at is None:
                return False
            recent = now() - self._disturbed_at < MENDED_WITHIN
            return (recent or self._saw_them_go) and _runs(name)

    def _start(self, what: str, body: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=body, args=args, name=f"halt-peers-{what}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- answering --------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        failing = False
        while not self._quit.is_set():
            try:
                sock, _ = listener.accept()
                failing = False
            except TimeoutError:
                listener = self._listen_again(listener)
                continue
            except OSError as exc:  # no more files
                if not failing and not self._quit.is_set():
                    logger.error("workers cannot connect: %s", exc)
                failing = True
                self._quit.wait(0.1)
                continue
            if self._quit.is_set():
                sock.close()
                break
            self._short.acquire()
            try:
                threading.Thread(
                    target=self._answer, args=(sock, serve), name="halt-peer", daemon=True
                ).start()
            except RuntimeError:  # the system has no more threads
                self._short.release()
                sock.close()
        listener.close()

    def _answer(self, sock: socket.socket, serve: Serve) -> None:
        held = self._short

        def long() -> bool:
            nonlocal held
            if held is self._short and self._long.acquire(blocking=False):
                held.release()
                held = self._long
                sock.settimeout(None)
            return held is self._long

        with self._idle:
            self._answering += 1
        try:
            with contextlib.closing(Channel(sock, long)) as channel:
                request = channel.receive(REQUEST_WITHIN)
                if request is not None:
                    sock.settimeout(ANSWER_WITHIN)
                    serve(request, channel)
        except OSError:
            pass  # the worker that asked has left
        except Exception:
            logger.exception("a request of another worker")
        finally:
            held.release()
            with self._idle:
                self._answering -= 1
                self._idle.notify_all()

    # --- asking -----------------------------------------------------------------------------------

    @property
    def others(self) -> list[str]:
        """Names of the other workers that have a socket, one that has died just now included."""
        if self._sockets is None:
            return []
        found = (each.stem for each in self._sockets.glob("*.sock"))
        return sorted(name for name in found if name != self.name)

    def ask(self, request: bytes, timeout: float, only: str | None = None) -> Answers:
        """Send a request to all others, or to one.

        It is sent before this returns. `timeout` is in seconds, for all of them together; one that
        does not answer in time is left out. A caller that wants more than the first frame sets
        `channel.kept`, and closes the channel afterwards.
        """
        asked: dict[str, Channel] = {}
        unreached = []
        for name in self.others if only is None else [only]:
            try:
                asked[name] = self._connect(name, request)
            except FileNotFoundError:
                continue  # it has left
            except OSError:
                unreached.append(name)
        return Answers(asked, now() + timeout, unreached)

    def _connect(self, name: str, request: bytes) -> Channel:
        """A channel on which the request was sent, without waiting. Raises OSError."""
        if self._sockets is None:
            raise FileNotFoundError(name)
        channel = Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            channel.sock.setblocking(False)
            channel.sock.connect(os.fspath((self._sockets / f"{name}.sock").absolute()))
            channel.send(request)  # fits the kernel's buffer, or counts as not to be had
        except BaseException:
            channel.close()
            raise
        return channel

    # --- the dead ---------------------------------------------------------------------------------

    def sweep_soon(self) -> None:
        """There is reason to believe that a worker has died."""
        self._sweep_now.set()

    def _watch(self) -> None:
        while not self._quit.is_set():
            self._sweep_now.wait(SWEEP_EVERY)
            self._sweep_now.clear()
            if not self._quit.is_set():
                with contextlib.suppress(OSError):  # no more files: the next turn finds some
                    self._mend()
                    self.sweep()

    def alive(self, name: str) -> bool | None:
        """Whether the worker of this name holds its lease; None: that cannot be known here.

        Those of another data folder use the same database, where it is PostgreSQL. A name without
        a mark is that of an earlier Halt.
        """
        if name == self.name:
            return True
        if name.count("-") > 1 and not name.endswith(f"-{self._mark}"):
            return None
        try:
            return _is_held((self._run or self._data / "run") / f"{name}.lock")
        except FileNotFoundError:
            return self._may_live(name)

    def sweep(self) -> None:
        """Tidy up after every worker that has died. What goes wrong is tried again, logged once."""
        if self._run is None:
            return
        with self._sweeping:
            for lock in self._run.glob("*.lock"):
                if lock.stem == self.name:
                    continue
                try:
                    self._bury(lock)
                except Exception as fault:
                    if lock.stem not in self._troubled:
                        logger.error("worker %s has died: %s", lock.stem, fault, exc_info=fault)
                    self._troubled.add(lock.stem)

    def _bury(self, lock: Path) -> None:
        """Tidy up after the worker of this lock file, if it is dead and no other worker does."""
        with contextlib.suppress(FileNotFoundError):  # told below
            if _is_held(lock):
                return
        cleanup = lock.with_suffix(".cleanup")
        file = open_private(cleanup, os.O_RDWR)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another worker is at it
            if lock.exists():  # else another worker was at it
                self.recover(lock.stem)
                if self._sockets is not None:
                    (self._sockets / f"{lock.stem}.sock").unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            # Last: a worker that makes the file anew from here on finds no lock file.
            cleanup.unlink(missing_ok=True)
        finally:
            os.close(file)


def _is_held(lock: Path) -> bool:
    """Whether a worker holds this lock file. Raises OSError, of which FileNotFoundError is one."""
    file = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _runs(name: str) -> bool:
    """Whether there is a process with the number in this worker's name."""
    try:
        os.kill(int(name.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
