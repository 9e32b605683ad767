"""All generations of this process: start, stop, find, shut down; the one place with a lifecycle.

Shared things and their locks:
- `_lock`: the tables of runs and the counts. No file, no other process and no thread's start is
  waited for while it is held; order: `_lock`, then the stop registry's own lock.
- places and IDs in use are locks of the kernel (`halt.core.slots`), taken and given back without
  it.
- each run's own state: see `halt.core.run`.
- the store is asked by a thread of its own where a Stop or a start wants to know something of it
  (`halt.core.lookups`); neither waits for it longer than LOOKUP_WAIT.

Two threads serve all runs: the relay (see `halt.core.relay`), and the keeper, which does what the
relay may not (the work at an end, in the order of the ends), and each KEEPER_TICK seconds looks at
logs that need not be kept any longer, at the server's shutdown and at the relay itself. A fault in
one run's turn is logged and ends nothing else.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from halt.clock import now
from halt.config.settings import Config
from halt.core.exact_usage import Unheard
from halt.core.generation import Recording, Viewer
from halt.core.lookups import Lookups
from halt.core.relay import STALL_MAX, Relay
from halt.core.request import ChatRequest, Upstream
from halt.core.request_ids import about, named
from halt.core.run import Run
from halt.core.serial import Serial
from halt.core.slots import Slots, number_of
from halt.core.stop import Pressed, StopRegistry, may_touch
from halt.core.tools import Toolbox
from halt.errors import (
    AtCapacity,
    Draining,
    RequestError,
    StreamInUse,
    TooLarge,
    UnknownStream,
    UpstreamError,
)
from halt.store.writer import Recorder

KEEPER_TICK = 0.25  # seconds
RECEIPT_WAIT = 0.25  # seconds that a Stop waits to see the upstream's connection closed
ROOM_WAIT = 0.05  # seconds that a start waits for a place that is being given back
ROOM_TICK = 0.01  # seconds between two looks for a place that another process gives back
FORGET_STEP = 256  # finished runs that are let go of while the lock is held once
CLOSE_WAIT = 2.0  # seconds that closing waits for the keeper, and for connections to be let go of
RETRY_AFTER = 2.0  # seconds, told to clients that found no place
RELAY_FAILED = 70  # exit status of a process whose relay has failed


class Kept(Protocol):
    """Generations that are not in memory, by ID and requester. Each raises StoreUnavailable."""

    def get(self, stream_id: str, requester: str | None) -> Recording | None: ...
    def is_over(self, stream_id: str, requester: str | None) -> bool: ...


logger = logging.getLogger(__name__)


#: The `note` of a Stop of an ID that no worker has, where the store could not be asked for it.
STORE_IS_SILENT = (
    "The database did not answer in time, so it is not known whether this stream has ended before."
)


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a Stop did, as far as it was seen.

    `status`: stopped (by this Stop), finished (had ended before), pending (no such stream yet; one
    that starts with this ID within 30 s ends at once). `upstream`: closed (the connection to the
    model's server was open and is closed; what the model does then is not seen), closing (not seen
    closed within RECEIPT_WAIT, or left open by HALT_EXACT_USAGE), none (no connection was open, or
    its answer was complete and it serves other runs). `note`: what could not be found out, in a
    sentence; absent where there is none.
    """

    id: str
    status: str
    upstream: str
    elapsed_ms: float
    note: str = ""


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


#: Streams to be stopped: each ID, and the last event that was shown where it was stopped.
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
        #: Called when a generation of this process begins, before its request is sent, and when it
        #: needs its place no longer. They return at once.
        self.on_begin: Callable[[], None] = lambda: None
        self.on_over: Callable[[], None] = lambda: None
        self._registry = registry
        self._recorder = recorder
        self._archive = archive
        self._lookups = Lookups()
        self._lock = threading.Lock()  # protects everything below
        self._room = threading.Condition(self._lock)  # a place was given back
        self._runs: dict[str, Run] = {}  # live and kept
        self._unheard = Unheard(config)  # stopped and read on; has a lock of its own
        self._live: dict[Run, int] = {}  # not settled: they have a place, and its number
        self._finished: dict[str, Run] = {}  # settled and kept, in the order in which they settled
        self._finished_bytes = 0  # memory of those
        self._returning = 0  # places of settled runs that are being given back
        self._returned = 0  # places that have been given back since the start
        # Places for open streams, and IDs in use: `halt.cluster.service` shares them with other
        # processes.
        self._places = Slots()
        self._ids = Slots()
        #: Places for page streams, some for each session, taken by the view that opens one.
        self.tabs = Slots()
        self._views: dict[Viewer, Recording] = {}  # readers that hold a thread of the server
        self._seats = 0  # their number, with connections that follow runs by themselves
        self._draining = False
        self.relay = Relay(self._relay_failed)
        #: Whether a process whose relay has failed ends, for its parent to start another one.
        self.ends_process = False
        self._relay_is_given_up = False
        self._long_turn: float | None = None  # the keeper's own: when a turn began that is too long
        self._threads_lock = threading.Lock()  # one thread at a time starts those two
        self._keeper = Serial("halt-keeper", KEEPER_TICK, self._look_around)
        #: Draws what takes milliseconds, for the readers that the relay serves.
        self.painter = Serial("halt-painter")

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
        opened_by_reader: bool = False,
    ) -> Run:
        """Start a generation. Raises RequestError, StreamInUse, AtCapacity, Draining.

        `tools` are offered to the model and run here when it calls them. `on_end` is called once,
        by the thread that ended the run, with nothing locked. `grace`: seconds that the run goes on
        without a viewer, where it is not the configured time; 0 ends it with its last viewer.
        `on_usage` is called after `on_end`, by another thread, with the provider's own count for a
        run that was stopped, where HALT_EXACT_USAGE asks for it and the provider tells.
        `noted`: the store knows this ID already, as that of the generation which begins here.
        `opened_by_reader`: the caller makes an EventStream of it with `opens`, whose thread opens
        the upstream.
        """
        self._check(request)
        recorder = self._recorder
        if not noted and self._is_stored(request.id):
            raise StreamInUse(f"The stream ID {request.id!r} is in use.", field="id")
        self._refuse_draining()
        self._start_threads()
        run = Run(
            request.id or secrets.token_urlsafe(16),
            request,
            self,
            owner,
            partial(self._ended, on_end),
            tools,
            grace,
            unheard=self._unheard,
            on_usage=on_usage,
        )
        place = self._take_place()
        number: int | None = None
        try:
            number = self._take_id(run.id)
            with self._lock:
                self._refuse_draining()
                stopped = not self._registry.claim(run.id, run.switch)
                self._runs[run.id] = run
                self._live[run] = place
        except BaseException:  # Ctrl-C in a program's own thread, too
            if run not in self._live:
                if number is not None:
                    self._ids.give_back(number)
                self._give_back(place)
            raise
        if recorder is not None:
            recorder.begin(run)
        self.on_begin()
        run.look_soon()
        if stopped:
            run.switch.press()
            run.discard()
        elif not opened_by_reader:
            run.start_work()
        return run

    def _is_stored(self, stream_id: str | None) -> bool:
        """The store has a generation with this ID; False also while it does not answer.

        Such a generation is never written to for another one: see `halt.store.generations`.
        """
        recorder = self._recorder
        if not stream_id or recorder is None or recorder.failing:
            return False
        return bool(self._lookups.ask(partial(recorder.knows, stream_id)))

    def expect_room(self, starts: int = 1) -> None:
        """Raise what `start` would raise now for want of a place: AtCapacity, Draining.

        So that a start that will be refused is not written down first. No place is taken: a start
        that follows may still find none.
        """
        self._refuse_draining()
        most = self.config.max_streams
        self._find_room(lambda: self._places.are_free(most, starts) or None)

    def _refuse_draining(self) -> None:
        if self.draining:
            raise Draining("The server is about to restart.", retry_after=RETRY_AFTER)

    def _take_place(self) -> int:
        """The number of a place for one more open stream. Raises AtCapacity."""
        return self._find_room(lambda: self._places.take(self.config.max_streams))

    def _find_room(self, look: Callable[[], int | None]) -> int:
        """What `look` finds among the places for open streams. Raises AtCapacity.

        A place that an ended run, or another process, is about to give back is waited for, up to
        ROOM_WAIT. So a client that was told the end can start anew at once, on a full server too.
        """
        until = now() + ROOM_WAIT
        shared: bool | None = None
        while True:
            returned = self._returned  # before the look: a place that comes back after it is seen
            found = look()
            if found is not None:
                return found
            if shared is None:
                shared = self._shares_places()
            with self._lock:
                leaving = (
                    shared
                    or self._returning
                    or self._returned != returned
                    or any(run.log.ended is not None for run in self._live)
                )
                left = until - now()
                if left <= 0 or not leaving:
                    raise AtCapacity(
                        f"All {self.config.max_streams} places for streams are taken.",
                        retry_after=RETRY_AFTER,
                    )
                # Places of other processes come back without a word.
                self._room.wait_for(
                    lambda: self._returned != returned,  # noqa: B023 - called before the next turn
                    min(left, ROOM_TICK) if shared else left,
                )

    def _shares_places(self) -> bool:
        """Whether other processes take and give back places, too."""
        return False

    def _give_back(self, place: int) -> None:
        """Give back a place of an open stream, and wake the starts that wait for one."""
        self._places.give_back(place)
        with self._lock:
            self._returned += 1
            self._room.notify_all()

    def _take_id(self, stream_id: str) -> int:
        """Take a stream's ID among all processes; the number that holds it. Raises StreamInUse."""
        number = number_of(stream_id)
        if self._ids.take(1, number) is None:
            raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")
        return number

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
        pending = [each.id for each in receipts if each.status == "pending"]
        archive = self._archive
        if archive is None or not pending:
            return receipts
        # A stream that no worker has may be over, since long or since its worker's death.

        def over() -> set[str]:
            return {each for each in pending if archive.is_over(each, requester)}

        found = self._lookups.ask(over)
        replace = msgspec.structs.replace
        for index, each in enumerate(receipts):
            if each.status == "pending" and found is None:
                receipts[index] = replace(each, note=STORE_IS_SILENT)
            elif each.status == "pending" and found is not None and each.id in found:
                receipts[index] = replace(each, status="finished")
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

    def _stop_mine(self, owner: str | None, before: float = float("inf")) -> list[Receipt]:
        """Stop what this owner has running in this process; no other process is asked.

        What began after the time `before` goes on.
        """
        runs = [run for run in self._running(owner) if run.started_at <= before]
        return Generations._stop(self, [(run.id, None) for run in runs], owner)

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
    def idle(self) -> bool:
        """No generation is under way, in no process that shares the places."""
        return self._places.none_taken(self.config.max_streams)

    @property
    def draining(self) -> bool:
        """The server is leaving: nothing new is started."""
        return self._draining or not self.alive()

    # --- viewers ----------------------------------------------------------------------------------

    def view(self, run: Recording) -> Viewer:
        """Begin to watch a run in a thread of the server.

        Raises AtCapacity: so many readers hold a thread that Stop would be the next to wait.
        """
        with self._lock:
            self._seat()
        try:
            viewer = run.join()
        except BaseException:
            self.give_back_place()
            raise
        self._views[viewer] = run
        return viewer

    def unview(self, run: Recording, viewer: Viewer) -> None:
        """Watch no more; the reader's thread is free again. To be called once for each `view`."""
        self._views.pop(viewer, None)
        self.give_back_place()
        run.leave(viewer)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A reader's place for a request that waits for something else. Raises AtCapacity."""
        self.take_place()
        try:
            yield
        finally:
            self.give_back_place()

    def take_place(self) -> None:
        """Take a reader's place for a connection that follows runs by itself: it holds a thread.

        Raises AtCapacity, Draining.
        """
        self._refuse_draining()
        with self._lock:
            self._seat()

    def give_back_place(self) -> None:
        """The connection is over. To be called once for each `take_place`."""
        with self._lock:
            self._seats -= 1
            self._room.notify_all()

    def _seat(self) -> None:
        """Count one more reader. The lock is held. Raises AtCapacity.

        A place of a reader whose run has ended is waited for, up to ROOM_WAIT.
        """
        most = self.config.max_streams
        if self._seats >= most:
            leaving = any(run.log.ended is not None for run in list(self._views.values()))
            if not (leaving and self._room.wait_for(lambda: self._seats < most, ROOM_WAIT)):
                raise AtCapacity("All places for readers are taken.", retry_after=RETRY_AFTER)
        self._seats += 1

    # --- the threads ------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        """Have relay and keeper run. Raises AtCapacity where the system has no thread for them."""
        threads = (self.relay, self._keeper)
        if all(thread.is_running for thread in threads):
            return
        with self._threads_lock:
            try:
                for thread in threads:
                    thread.start()
            except RuntimeError as exc:
                raise AtCapacity("There is no thread to be had.", retry_after=RETRY_AFTER) from exc

    def later(self, work: Callable[[], None]) -> None:
        """Do this in the keeper's thread, in the order of the calls; it must not wait."""
        self._keeper.put(work)

    def _look_around(self) -> None:
        began = self.relay.turn_began
        if began is None or now() - began <= STALL_MAX:
            self._long_turn = None
        elif began != self._long_turn:
            self._long_turn = began  # of a process that was held it ends before the next look
        else:
            self._relay_failed(TimeoutError(f"a turn of the relay takes over {STALL_MAX:g} s"))
        if not self.alive():
            self.drain()
        self._forget_old()
        self._tick()

    def _tick(self) -> None:
        """What else is done in each turn."""

    def _relay_failed(self, fault: BaseException) -> None:
        """The relay has ended, or stands still: end the process, or else every open run."""
        if self._relay_is_given_up:
            return
        self._relay_is_given_up = True
        logger.critical("the relay has failed: %r", fault, exc_info=fault)
        faulthandler.dump_traceback(all_threads=True)
        if self.ends_process:
            os._exit(RELAY_FAILED)
        with self._lock:
            self._draining = True
            live = list(self._live)
        for run in live:
            run.fail(UpstreamError("internal", "the relay has failed"))
            self.settled(run)

    def _forget_old(self) -> None:
        """Let go of finished runs whose time is over, the oldest first, and of those beyond the
        memory that is set. Each costs the same, however many are kept."""
        while len(old := self._take_old(now())) == FORGET_STEP:
            self._release(old)
        self._release(old)

    def _take_old(self, at: float) -> list[Run]:
        """Take the next FORGET_STEP runs out of the tables, or as many as there are."""
        config, old = self.config, list[Run]()
        with self._lock:
            for run in self._finished.values():
                fresh = at - (run.ended_at or at) <= config.log_seconds
                fits = self._finished_bytes <= config.kept_bytes
                if len(old) == FORGET_STEP or ((fresh or self._unsaved(run)) and fits):
                    break
                self._finished_bytes -= run.size
                old.append(run)
            for run in old:
                del self._finished[run.id], self._runs[run.id]
        return old

    def _release(self, old: list[Run]) -> None:
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
        deadline = now() + CLOSE_WAIT
        if self._keeper.is_current:  # a callback of an end calls this
            while self._live and now() < deadline:
                self._keeper.step(KEEPER_TICK)
        self._unheard.close(max(0.0, deadline - now()))
        with self._lock:  # until no run can give a connection back any more
            self._room.wait_for(lambda: not self._live, max(0.0, deadline - now()))
        for thread in (self.relay, self.painter, self._keeper):
            thread.close(max(0.0, deadline - now()))
        self._lookups.close(max(0.0, deadline - now()))
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

    def spawn(self, run: Run, body: Callable[[], None]) -> bool:
        """Do this in a thread. False: there is none to be had, and the run has failed.

        A run has one at most, so there are no more than places.
        """

        def work() -> None:
            with named(run.request_id):
                body()

        try:
            threading.Thread(target=work, name=f"halt-run-{run.id[:8]}", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            run.fail(UpstreamError("internal", "no thread"))
            return False
        return True

    def _ended(self, on_end: Callable[[Run], None] | None, run: Run) -> None:
        """Call the callback of its end; a fault in there is logged and changes nothing here."""
        try:
            if on_end is not None:
                on_end(run)
        except Exception:
            told = "stream %s, the callback of its end"
            logger.exception(told, run.id, extra=about(run.request_id))
        finally:
            if self._recorder is not None:
                self._recorder.ended()

    def settled(self, run: Run) -> None:
        """The run needs its place no longer. Harmless when repeated."""
        with self._lock:
            place = self._live.pop(run, None)
            if place is None:
                return
            self._finished[run.id] = run
            self._finished_bytes += run.size
            self._returning += 1
        self._give_back(place)
        with self._lock:
            self._returning -= 1
        self.on_over()


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
