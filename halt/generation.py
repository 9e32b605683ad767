"""All generations of this process: start, stop, find, shut down; the one place with a lifecycle.

Shared things and their locks:
- `_lock`: the tables of runs and the counts. Held for table work only; order: `_lock`, then the
  stop registry's own lock.
- each run's own locks: see `halt.run`.

One thread, the keeper, looks at every run each KEEPER_TICK seconds: limits, viewers that left, runs
that nobody pumps, logs that need not be kept any longer, the server's shutdown. A fault in one
run's turn is logged and ends nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from halt.chat import ChatRequest, Upstream
from halt.config import Config
from halt.errors import (
    AtCapacity,
    Draining,
    HaltError,
    RequestError,
    StoreUnavailable,
    StreamInUse,
    TooLarge,
    UnknownStream,
    UpstreamError,
)
from halt.metrics import now
from halt.recorder import Recorder
from halt.recording import Recording, Viewer
from halt.run import Run
from halt.slots import Slots, number_of
from halt.stops import Pressed, StopRegistry, may_touch
from halt.tools import Toolbox
from halt.unheard import Unheard

KEEPER_TICK = 0.25  # seconds
SLOW_READER_MAX = 30.0  # seconds that one write to a reader may take; it can resume afterwards
RECEIPT_WAIT = 0.25  # seconds that a Stop waits to see the upstream's connection closed
ROOM_WAIT = 0.05  # seconds that a start waits for a place that is being given back
CLOSE_WAIT = 2.0  # seconds that closing waits for the keeper, and for connections to be let go of
RETRY_AFTER = 2.0  # seconds, told to clients that found no place


class Kept(Protocol):
    """Generations that are not in memory, by ID and requester. Each raises StoreUnavailable."""

    def get(self, stream_id: str, requester: str | None) -> Recording | None: ...
    def is_over(self, stream_id: str, requester: str | None) -> bool: ...


logger = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """What a Stop did, as far as it was seen.

    `status`: stopped (by this Stop), finished (had ended before), pending (no such stream yet; one
    that starts with this ID within 30 s ends at once). `upstream`: closed, closing (not seen closed
    within RECEIPT_WAIT, or left open by HALT_EXACT_USAGE), none (no connection was there to be
    closed).
    """

    id: str
    status: str
    upstream: str
    elapsed_ms: float


class Listed(msgspec.Struct, frozen=True):
    """A running generation in a list. `age` in seconds, `started_at` in seconds since the epoch."""

    id: str
    state: str
    model: str
    age: float
    started_at: float
    events: int
    characters: int


class Health(msgspec.Struct, frozen=True):
    """`open_streams` of all workers, how many those are, and which one says so."""

    open_streams: int
    workers: int = 1
    worker: str = ""


#: Streams to be stopped: each ID with the last event that the one who stops it was shown.
Stops = Sequence[tuple[str, int | None]]


class Generations:
    """The service that pages, programs and terminals share."""

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        registry: StopRegistry,
        recorder: Recorder | None = None,
        archive: Kept | None = None,
    ) -> None:
        """`recorder` writes down what is produced; `archive` finds what is not in memory here."""
        self.config = config
        self.upstream = upstream
        #: Says whether the server process goes on; a worker that was told to leave answers False.
        self.alive: Callable[[], bool] = lambda: True
        self._registry = registry
        self._recorder = recorder
        self._archive = archive
        self._lock = threading.Lock()  # protects everything below
        self._room = threading.Condition(self._lock)  # a place was given back
        self._runs: dict[str, Run] = {}  # live and kept
        self._unheard = Unheard(config)  # stopped and read on; has a lock of its own
        self._live: dict[Run, int] = {}  # not settled: they have a place, and its number
        # Places for open streams, and IDs in use: `halt.workers` shares them with other processes.
        self._places = Slots()
        self._ids = Slots()
        #: Places for page streams, some for each session: whoever opens one takes it here.
        self.tabs = Slots()
        self._views = 0  # readers that hold a thread of the server
        self._watched: dict[Viewer, tuple[Recording, socket.socket]] = {}
        self._draining = False
        self._keeper: threading.Thread | None = None
        self._quit = threading.Event()

    # --- start, find, stop ------------------------------------------------------------------------

    def start(
        self,
        request: ChatRequest,
        owner: str | None = None,
        on_end: Callable[[Run], None] | None = None,
        tools: Toolbox | None = None,
        grace: float | None = None,
        on_usage: Callable[[Run, dict[str, Any]], None] | None = None,
        noted: bool = False,
    ) -> Run:
        """Start a generation. Raises RequestError, StreamInUse, AtCapacity, Draining.

        `tools` are offered to the model and run here when it calls them. `on_end` is called once,
        by the thread that ended the run, with nothing locked. `grace`: seconds that the run goes on
        with nobody watching, where it is not the configured time; 0 ends it with its last viewer.
        `on_usage` is called after `on_end`, by another thread, with the provider's own count for a
        run that was stopped, where HALT_EXACT_USAGE asks for it and the provider tells.
        `noted`: the store knows this ID already, as that of the generation which begins here.
        """
        self._check(request)
        recorder = self._recorder
        if request.id and not noted and recorder is not None and recorder.knows(request.id):
            raise StreamInUse(f"The stream ID {request.id!r} is in use.", field="id")
        run = Run(
            request.id or secrets.token_urlsafe(16),
            request,
            self.upstream,
            self.config,
            owner,
            partial(self._ended, on_end),
            self._settled,
            self._spawn,
            tools,
            grace,
            unheard=self._unheard,
            on_usage=on_usage,
        )
        with self._lock:
            if self.draining:
                raise Draining("The server is about to restart.", retry_after=RETRY_AFTER)
            place = self._take_place()
            if place is None:
                raise AtCapacity(
                    f"All {self.config.max_streams} places for streams are taken.",
                    retry_after=RETRY_AFTER,
                )
            try:
                stopped = not self._claim(run)
            except HaltError:
                self._places.give_back(place)
                raise
            self._runs[run.id] = run
            self._live[run] = place
            self._start_keeper()
        if recorder is not None:
            recorder.begin(run)
        if stopped:
            run.switch.press()
            run.discard()
        elif not self._spawn(run, run.produce):
            run.discard()
        return run

    def _take_place(self) -> int | None:
        """The number of a place for one more open stream. The lock is held."""
        found: list[int] = []

        def is_there() -> bool:
            place = self._places.take(self.config.max_streams)
            found.extend([] if place is None else [place])
            return place is not None

        return found[0] if self._await_room(self._live, is_there) else None

    def _claim(self, run: Run) -> bool:
        """Register a run under its ID. False: a Stop was there first. Raises StreamInUse."""
        number = number_of(run.id)
        mine = self._ids.take(1, number) is not None
        try:
            if not mine and run.id not in self._runs:  # those have a sentence of their own
                raise StreamInUse(f"The stream ID {run.id!r} is in use.", field="id")
            return self._registry.claim(run.id, run.switch)
        except HaltError:
            if mine:
                self._ids.give_back(number)
            raise

    def get(self, stream_id: str, requester: str | None) -> Recording:
        """The generation with this ID, live or kept, here or in the archive.

        Raises UnknownStream, StoreUnavailable.
        """
        run = self._runs.get(stream_id)
        if run is None and self._archive is not None:
            found = self._archive.get(stream_id, requester)
            if found is not None:
                return found
        return self.run(stream_id, requester)

    def run(self, stream_id: str, requester: str | None) -> Run:
        """The same, of this process's memory alone. Raises UnknownStream."""
        run = self._runs.get(stream_id)
        if run is None or not may_touch(run.owner, requester):
            raise UnknownStream("There is no such stream, or it is no longer kept.")
        return run

    def stop(self, stream_id: str, requester: str | None, seen: int | None = None) -> Receipt:
        """Stop a stream in whatever phase it is; the answer says what was seen to happen."""
        return self.stop_each([(stream_id, seen)], requester)[0]

    def stop_each(self, stops: Stops, requester: str | None) -> list[Receipt]:
        """Stop several streams, all before the first is waited for; no longer than for one."""
        receipts = self._stop(stops, requester)
        if self._archive is None or (self._recorder is not None and self._recorder.failing):
            return receipts
        # What nobody has may be over: since long, or since its worker's death. All is stopped by
        # now; a store that does not answer is waited for once at most.
        with contextlib.suppress(StoreUnavailable):
            for index, each in enumerate(receipts):
                if each.status == "pending" and self._archive.is_over(each.id, requester):
                    receipts[index] = msgspec.structs.replace(each, status="finished")
        return receipts

    def _stop(self, stops: Stops, requester: str | None) -> list[Receipt]:
        began = now()
        pressed = [(each, self._registry.press(each, requester, seen)) for each, seen in stops]
        return [self._receipt(each, status, began) for each, status in pressed]

    def _receipt(self, stream_id: str, status: Pressed | None, began: float) -> Receipt:
        upstream = "none"
        if status is not None and (run := self._runs.get(stream_id)) is not None:
            wait = 0.0 if run.reading_on else RECEIPT_WAIT
            upstream = run.line.wait_closed(max(0.0, began + wait - now()))
            if run.reading_on:  # also before it has a connection, which will not be prevented
                upstream = "closing"
        took = round((now() - began) * 1000, 2)
        return Receipt(stream_id, status or "pending", upstream, took)

    def running(self, owner: str | None) -> list[Listed]:
        """The generations of this owner that have not ended, the oldest first."""
        return list(map(_listed, self._running(owner)))

    def _running(self, owner: str | None) -> list[Run]:
        with self._lock:
            live = list(self._live)
        mine = [run for run in live if run.owner == owner and run.log.ended is None]
        return sorted(mine, key=lambda run: run.started_at)

    def _stop_mine(self, owner: str | None) -> list[Receipt]:
        """Stop what this owner has running in this process; no other process is asked."""
        return Generations._stop(self, [(run.id, None) for run in self._running(owner)], owner)

    def stop_all(self, owner: str | None) -> list[Receipt]:
        """Stop every running stream of this owner; together they wait no longer than one Stop."""
        return self._stop_mine(owner)

    @property
    def open_streams(self) -> int:
        """Generations of this process that are not over."""
        return len(self._live)

    def health(self) -> Health:
        """How it is now."""
        return Health(self.open_streams)

    @property
    def draining(self) -> bool:
        """The server is leaving: nothing new is started."""
        return self._draining or not self.alive()

    # --- viewers ----------------------------------------------------------------------------------

    def view(self, run: Recording, client: socket.socket | None) -> Viewer:
        """Begin to watch a run over `client`, whose end is noticed also in silence.

        Raises AtCapacity: so many readers hold a thread that Stop would be the next to wait.
        """
        with self._lock:
            self._seat()
            viewer = run.join()
            if client is not None:
                self._watched[viewer] = (run, client)
        return viewer

    def unview(self, run: Recording, viewer: Viewer) -> None:
        """Watch no more; the reader's thread is free again. To be called once for each `view`."""
        with self._lock:
            self._views -= 1
            self._watched.pop(viewer, None)
            self._room.notify_all()
        self._leave(run, viewer)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A reader's place for a request that waits for something else. Raises AtCapacity."""
        self.take_place()
        try:
            yield
        finally:
            self.give_back_place()

    @staticmethod
    def _leave(run: Recording, viewer: Viewer) -> None:
        run.leave(viewer)
        if isinstance(run, Run) and run.deserted:
            run.cancel("no_viewer")

    def take_place(self) -> None:
        """Take a reader's place for a connection that follows runs by itself: it holds a thread.

        Raises AtCapacity, Draining.
        """
        if self.draining:
            raise Draining("The server is about to restart.", retry_after=RETRY_AFTER)
        with self._lock:
            self._seat()

    def give_back_place(self) -> None:
        """The connection is over. To be called once for each `take_place`."""
        with self._lock:
            self._views -= 1
            self._room.notify_all()

    def watch(self, run: Recording, client: socket.socket) -> Viewer:
        """Watch a run on behalf of another process, which answers for its threads itself."""
        with self._lock:
            viewer = run.join()
            self._watched[viewer] = (run, client)
        return viewer

    def unwatch(self, run: Recording, viewer: Viewer) -> None:
        """To be called once for each `watch`."""
        with self._lock:
            self._watched.pop(viewer, None)
        self._leave(run, viewer)

    def _seat(self) -> None:
        """Count one more reader. The lock is held. Raises AtCapacity."""
        watched = [run for run, _ in self._watched.values()]
        if not self._await_room(watched, lambda: self._views < self.config.max_streams):
            raise AtCapacity("All places for readers are taken.", retry_after=RETRY_AFTER)
        self._views += 1

    def _await_room(self, runs: Collection[Recording], is_there: Callable[[], bool]) -> bool:
        """Whether there is a place; one that an ended run is about to give back is waited for.

        So a client that was told the end can start anew at once, on a full server too. The lock is
        held, and let go of while this waits.
        """
        if is_there():
            return True
        leaving = any(run.log.ended is not None for run in runs)
        return leaving and self._room.wait_for(is_there, ROOM_WAIT)

    # --- the keeper -------------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        """The lock is held."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="halt-keeper", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        while not self._quit.wait(KEEPER_TICK):
            try:
                if not self.alive():
                    self.drain()
                self._notice_departures()
                self._forget_old()
                self._unheard.tend(now())
            except Exception:
                logger.exception("keeper")
            with self._lock:
                live = list(self._live)
            at = now()
            for run in live:
                try:
                    self._tend(run, at)
                except Exception:
                    logger.exception("keeper, stream %s", run.id)

    def _tend(self, run: Run, at: float) -> None:
        if run.log.ended is not None:
            # Whoever should have let go of the connection may be stuck in a slow network.
            if run.ended_at is not None and at - run.ended_at > 1.0:
                run.settle()
            return
        verdict = run.check(at)
        if verdict == "attend":
            self._spawn(run, run.attend)
        elif verdict == "no_viewer":
            run.cancel("no_viewer")
        elif isinstance(verdict, UpstreamError):
            run.fail(verdict)

    def _notice_departures(self) -> None:
        with self._lock:
            watched = list(self._watched.items())
        at = now()
        for viewer, (run, client) in watched:
            since = viewer.writing_since
            stuck = since is not None and at - since > SLOW_READER_MAX
            if stuck or _has_left(client):
                self._leave(run, viewer)
                with self._lock:
                    # Under the lock, since `unview` comes before the server closes the socket:
                    # as long as the viewer is in the table, the socket's number is still its own.
                    if self._watched.pop(viewer, None) and stuck:
                        with contextlib.suppress(OSError):
                            socket.socket.shutdown(client, socket.SHUT_RDWR)  # ends the write

    def _forget_old(self) -> None:
        at = now()
        with self._lock:
            finished = [
                run for run in self._runs.values() if run.ended_at and run not in self._live
            ]
            finished.sort(key=lambda run: run.ended_at or at)
            size = sum(run.log.size for run in finished)
            old = []
            for run in finished:
                fresh = at - (run.ended_at or at) <= self.config.log_seconds
                if (fresh or self._unsaved(run)) and size <= self.config.kept_bytes:
                    break
                size -= run.log.size
                old.append(run)
                del self._runs[run.id]
        for run in old:
            self._registry.release(run.id)
            self._ids.give_back(number_of(run.id))
        if self._recorder is not None and (lost := [run.id for run in old if self._unsaved(run)]):
            self._recorder.give_up(lost)

    def _unsaved(self, run: Run) -> bool:
        return self._recorder is not None and self._recorder.holds(run.id)

    # --- the end ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """End every run with a terminal event that its readers get; start nothing new."""
        with self._lock:
            self._draining = True
            live = list(self._live)
        self._unheard.close()
        for run in live:
            run.fail(UpstreamError("interrupted"))

    def close(self) -> None:
        """Drain, end the keeper, close idle connections. Harmless when repeated."""
        self.drain()
        if self._recorder is not None:
            self._recorder.close()
        self._quit.set()
        keeper = self._keeper
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(CLOSE_WAIT)
        with self._lock:
            live = list(self._live)
        for run in live:
            run.settle()  # whoever was to do it may be the one who calls this, in a callback
        self._unheard.close(CLOSE_WAIT)
        with self._lock:  # until no run can give a connection back any more
            self._room.wait_for(lambda: not self._live, CLOSE_WAIT)
        self.upstream.close()

    # --- small parts ------------------------------------------------------------------------------

    def _check(self, request: ChatRequest) -> None:
        if len(request.messages) > self.config.max_messages:
            raise RequestError(
                f"At most {self.config.max_messages:,} messages are allowed (HALT_MAX_MESSAGES). "
                "Begin a new conversation.",
                field="messages",
            )
        if request.size() > self.config.max_prompt_chars:
            raise TooLarge(
                f"The messages are longer than {self.config.max_prompt_chars:,} characters "
                "(HALT_MAX_PROMPT_CHARS). Begin a new conversation.",
                field="messages",
            )

    def _spawn(self, run: Run, body: Callable[[], None]) -> bool:
        """A thread for a run. At most one of a run pumps, so there are about as many as places.

        False: there is none to be had, and the run has failed.
        """
        try:
            threading.Thread(target=body, name=f"halt-run-{run.id[:8]}", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            run.fail(UpstreamError("internal", "no thread"))
            return False
        return True

    def _ended(self, on_end: Callable[[Run], None] | None, run: Run) -> None:
        try:
            if on_end is not None:
                on_end(run)
        finally:
            if self._recorder is not None:
                self._recorder.ended()

    def _settled(self, run: Run) -> None:
        with self._lock:
            place = self._live.pop(run, None)
            if place is not None:
                self._places.give_back(place)
            self._room.notify_all()


def _listed(run: Run) -> Listed:
    age = now() - run.started_at
    return Listed(
        run.id,
        run.state,
        run.model,
        round(age, 3),
        round(time.time() - age, 3),
        run.log.last,
        run.characters,
    )


def _has_left(client: socket.socket) -> bool:
    """Whether the peer has closed its end."""
    try:
        mask = getattr(select, "POLLRDHUP", 0)
        poller = select.poll()
        poller.register(client, mask or select.POLLIN)
        events = poller.poll(0)
        if not events:
            return False
        if mask:
            return True
        return not socket.socket.recv(client, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        return True
