"""Starts, finds, stops and shuts down all generations of this process.

Shared state and its locks:
- `_lock`: the table of runs, and whether new ones may begin. A thread that holds it waits for no
  file, no other process and no thread's start. Lock order: `_lock`, then that of `capacity` or of
  the stop registry.
- places and IDs in use: see `halt.core.capacity`.
- each run's own state: see `halt.core.run`.

Two threads serve all runs: the relay (see `halt.core.relay`), and the keeper, which does the work
that would block the relay (see `halt.core.keeper`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from halt.clock import now
from halt.core.capacity import RETRY_AFTER, Capacity, ReaderLimit
from halt.core.exact_usage import UsageDrain
from halt.core.generation import Generation
from halt.core.keeper import Finished, Keeper
from halt.core.limits import Limits
from halt.core.other_workers import OtherWorkers
from halt.core.receipts import Health, Receipt, RunningStream, Stops
from halt.core.request import ChatRequest, Upstream
from halt.core.request_ids import about, named
from halt.core.run import Run
from halt.core.serial import Serial
from halt.core.stop import Pressed, StopRegistry
from halt.core.storage import Writer
from halt.core.stream_key import StreamKey
from halt.core.tool_loop import Tools
from halt.errors import (
    Draining,
    RequestError,
    StreamInUse,
    TooLarge,
    UnknownStream,
    UpstreamError,
)

RECEIPT_WAIT = 0.25  # seconds that a Stop waits for the close of the upstream's connection
CLOSE_WAIT = 2.0  # seconds that `close` waits for the keeper, and for the release of connections

#: The `note` of a Stop of an ID that no worker has, when the store did not answer.
STORE_IS_SILENT = (
    "The database did not answer in time, so it is not known whether this stream has ended before."
)

logger = logging.getLogger(__name__)


class GenerationService:
    """The service that the web page, APIs, programs and terminals share."""

    def __init__(
        self,
        config: Limits,
        upstream: Upstream,
        registry: StopRegistry,
        writer: Writer | None = None,
        other_workers: OtherWorkers | None = None,
    ) -> None:
        """`writer` saves what runs produce; `other_workers` has what is not in memory here."""
        self.config = config
        self.upstream = upstream
        self._registry = registry
        #: Whether the server process goes on; False in a worker that has to leave.
        self.alive: Callable[[], bool] = lambda: True
        #: Called when a generation of this process begins, before its request is sent, and when
        #: its place is given back. They must return at once.
        self.on_begin: Callable[[], None] = lambda: None
        self.on_release: Callable[[], None] = lambda: None
        self._writer = writer
        self._other_workers = other_workers or OtherWorkers()
        self._lock = threading.Lock()  # protects the two below
        #: Live and finished runs. The keeper alone removes one, before its ID is given back.
        self._runs: dict[StreamKey, Run] = {}
        self._draining = False
        self._finished = Finished(config, writer)
        self._usage_drain = UsageDrain(config)  # stopped runs whose upstream is read for the usage
        self.capacity = Capacity(config, lambda: self._other_workers.has_others)
        self.readers = ReaderLimit(config, self._refuse_draining)
        self.keeper = Keeper(self._tick, self._relay_failed)
        self.relay = self.keeper.relay
        self.later = self.keeper.put
        #: Renders what takes milliseconds, for the readers that the relay serves.
        self.frame_thread = Serial("halt-frames")

    def begin(self) -> None:
        """Join the server's processes and start every thread.

        Call after the fork, before any connection is accepted. Raises ConfigError, OSError,
        AtCapacity.
        """
        self._other_workers.begin()
        if self._writer is not None:
            self._writer.worker = self._other_workers.worker
            self._writer.start()
        self.keeper.start()
        self.frame_thread.start()

    # --- start ------------------------------------------------------------------------------------

    def start(
        self,
        request: ChatRequest,
        owner: str = "",
        on_end: Callable[[Run], None] | None = None,
        tools: Tools | None = None,
        grace: float | None = None,
        on_usage: Callable[[Run, dict[str, Any]], None] | None = None,
        noted: bool = False,
        opened_by_reader: bool = False,
    ) -> Run:
        """Start a generation that belongs to this person.

        Raises RequestError, StreamInUse, AtCapacity, Draining.

        `tools` are offered to the model and run here when it calls them. `on_end` is called once,
        by the thread that ended the run, without a lock. `grace`: seconds that the run goes on
        without a viewer, in place of the configured time; 0 ends it with its last viewer.
        `on_usage` is called after `on_end`, in another thread, with the provider's own count of a
        stopped run, if HALT_EXACT_USAGE is set and the provider reports it.
        `noted`: the caller has saved this generation's ID in the store already.
        `opened_by_reader`: the caller makes an EventStream of the run with `opens`, whose thread
        opens the upstream.
        """
        self._check(request)
        key = StreamKey(owner, request.id or secrets.token_urlsafe(16))
        if request.id is not None and not noted and self._is_stored(key):
            raise StreamInUse(key.id)
        self._refuse_draining()
        self.keeper.start()
        run = Run(
            key,
            request,
            self,
            partial(self._ended, on_end),
            tools,
            grace,
            usage_drain=self._usage_drain,
            on_usage=on_usage,
        )
        place = self.capacity.take(key)
        try:
            with self._lock:
                self._refuse_draining()
                is_stopped = not self._registry.claim(key, run.switch)
                self._runs[key] = run
                self.capacity.hold(run, place)
        except BaseException:  # Ctrl-C in a program's own thread, too
            if run not in self.capacity:
                self.capacity.give_back(key, place)
            raise
        if self._writer is not None:
            self._writer.add(run)
        self.on_begin()
        run.check_limits_soon()
        if is_stopped:
            run.switch.press()
            run.discard()
        elif not opened_by_reader:
            run.start_work()
        return run

    def _is_stored(self, key: StreamKey) -> bool:
        """Whether the store has a generation with this key; False also while it does not answer.

        The store never overwrites a generation with another one: see `halt.store.generations`.
        """
        return self._writer is not None and self._writer.exists(key)

    def require_places(self, starts: int = 1) -> None:
        """Raise AtCapacity or Draining if `start` would now.

        Callers use it to save no prompt whose start will be refused. It takes no place: a start
        that follows may still be refused.
        """
        self._refuse_draining()
        self.capacity.require_places(starts)

    def _refuse_draining(self) -> None:
        if self.draining:
            raise Draining("The server is about to restart.", retry_after=RETRY_AFTER)

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

    # --- find and stop ----------------------------------------------------------------------------

    def get(self, key: StreamKey) -> Generation:
        """The generation with this key, live or kept, here or in another worker.

        Raises UnknownStream, StoreUnavailable.
        """
        if key not in self._runs and (generation := self._other_workers.get(key)) is not None:
            return generation
        return self.run(key)

    def run(self, key: StreamKey) -> Run:
        """The generation with this key in this process's memory. Raises UnknownStream."""
        run = self._runs.get(key)
        if run is None:
            raise UnknownStream("There is no such stream, or it is no longer kept.")
        return run

    def stop(self, key: StreamKey, seen: int | None = None) -> Receipt:
        """Stop a stream in any phase. The receipt reports the outcome."""
        return self.stop_many([(key.id, seen)], key.owner)[0]

    def stop_many(self, stops: Stops, owner: str) -> list[Receipt]:
        """Stop several streams of a person, all before waiting for any.

        Waits no longer than for one.
        """
        began = now()
        pressed = self._press(stops, owner)
        missing = [stop for stop, (_, status) in zip(stops, pressed, strict=True) if status is None]
        with self._other_workers.stopping(missing, owner) as remote_receipts:
            receipts = [self._receipt(key, status, began) for key, status in pressed]
            remote = {receipt.id: receipt for receipt in remote_receipts}
        elapsed_ms = _since(began)
        receipts = [_changed(remote.get(own.id, own), elapsed_ms=elapsed_ms) for own in receipts]
        # A stream that no worker has may have ended: long ago, or with its worker's death.
        pending = [receipt.id for receipt in receipts if receipt.status == "pending"]
        ended_ids = self._other_workers.ended_among(pending, owner) if pending else ()
        for index, receipt in enumerate(receipts):
            if receipt.status == "pending" and ended_ids is None:
                receipts[index] = _changed(receipt, note=STORE_IS_SILENT)
            elif receipt.status == "pending" and ended_ids is not None and receipt.id in ended_ids:
                receipts[index] = _changed(receipt, status="finished")
        return receipts

    def stop_here(self, stops: Stops, owner: str) -> list[Receipt]:
        """Stop several streams of this process."""
        began = now()
        return [self._receipt(key, status, began) for key, status in self._press(stops, owner)]

    def _press(self, stops: Stops, owner: str) -> list[tuple[StreamKey, Pressed | None]]:
        keys = [(StreamKey(owner, stream_id), seen) for stream_id, seen in stops]
        return [(key, self._registry.press(key, seen)) for key, seen in keys]

    def stop_all(self, owner: str) -> list[Receipt]:
        """Stop every running stream of this person. Waits no longer than for one."""
        with self._other_workers.stopping_all(owner) as remote_receipts:
            return [*self.stop_all_here(owner), *remote_receipts]

    def stop_all_here(self, owner: str, before: float = float("inf")) -> list[Receipt]:
        """Stop this person's streams of this process, except those begun after `before`."""
        runs = [run for run in self._running(owner) if run.started_at <= before]
        return self.stop_here([(run.id, None) for run in runs], owner)

    def _receipt(self, key: StreamKey, status: Pressed | None, began: float) -> Receipt:
        upstream = "none"
        if status is not None and (run := self._runs.get(key)) is not None:
            wait = 0.0 if run.reads_usage else RECEIPT_WAIT
            upstream = run.connection.wait_closed(max(0.0, began + wait - now()))
            if run.reads_usage:  # also before it has a connection, which it will still open
                upstream = "closing"
        return Receipt(key.id, status or "pending", upstream, _since(began))

    # --- how it is --------------------------------------------------------------------------------

    def running(self, owner: str) -> list[RunningStream]:
        """The generations of this person that have not ended, the oldest first."""
        streams = [*self.running_here(owner), *self._other_workers.running(owner)]
        return sorted(streams, key=lambda stream: stream.started_at)

    def owners_here(self) -> set[str]:
        """The people who have generations of this process that have not ended."""
        return {run.owner for run in self.capacity.live() if run.log.ended is None}

    def running_here(self, owner: str) -> list[RunningStream]:
        """Those of this process alone."""
        return list(map(_listed, self._running(owner)))

    def _running(self, owner: str) -> list[Run]:
        live = self.capacity.live()
        runs = [run for run in live if run.owner == owner and run.log.ended is None]
        return sorted(runs, key=lambda run: run.started_at)

    @property
    def open_streams(self) -> int:
        """Number of this process's generations that hold a place."""
        return len(self.capacity)

    def health(self) -> Health:
        """The state of the server now, with all its workers."""
        counts = [self.open_streams, *self._other_workers.open_streams()]
        return Health(sum(counts), len(counts), self._other_workers.worker)

    @property
    def idle(self) -> bool:
        """Whether no process that shares the places has a generation under way."""
        return self.capacity.places.all_free(self.config.max_streams)

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down and starts nothing new."""
        return self._draining or not self.alive()

    # --- the keeper's work ------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self.alive():
            self.drain()
        for run in self._finished.take_old():
            del self._runs[run.key]
            self._registry.release(run.key)
            self.capacity.give_back_key(run.key)
        self._other_workers.tick()

    def _relay_failed(self) -> None:
        """End every open run, and start no new one."""
        for run in self._leave():
            run.fail(UpstreamError("internal", "the relay has failed"))
            self.release_place(run)

    # --- the end ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """End every run with a terminal event for its readers; start nothing new."""
        live = self._leave()
        self._usage_drain.close()
        for run in live:
            run.fail(UpstreamError("interrupted"))
        self._other_workers.leave()

    def _leave(self) -> list[Run]:
        """Start no run from now on. Returns the runs that are under way."""
        with self._lock:
            self._draining = True
            return self.capacity.live()

    def close(self) -> None:
        """Drain, end the threads, close idle connections. Idempotent."""
        self.drain()
        if self._writer is not None:
            self._writer.close()
        deadline = now() + CLOSE_WAIT
        # An `on_end` callback may call this in the keeper's thread, and would block it.
        self.keeper.work_until(lambda: not self.open_streams, deadline)
        self._usage_drain.close(max(0.0, deadline - now()))
        # Before `upstream.close`: after this wait no run gives a connection back.
        self.capacity.wait_empty(max(0.0, deadline - now()))
        for thread in (self.relay, self.frame_thread, self.keeper):
            thread.close(max(0.0, deadline - now()))
        self.upstream.close()
        self._other_workers.close()

    # --- the runs' `Host` -------------------------------------------------------------------------

    def spawn(self, run: Run, body: Callable[[], None]) -> bool:
        """Do `body` in a new thread. False: the system has none, and the run has failed.

        A run has at most one thread, so there are at most as many threads as places.
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
        """Call a run's `on_end`. An exception of the callback is logged, and changes nothing."""
        try:
            if on_end is not None:
                on_end(run)
        except Exception:
            text = "stream %s, the callback of its end"
            logger.exception(text, run.id, extra=about(run.request_id))
        finally:
            if self._writer is not None:
                self._writer.notify_end()

    def release_place(self, run: Run) -> None:
        """Give back the run's place, and keep the run for its readers. Idempotent."""
        if self.capacity.release_place(run):
            self._finished.add(run)
            self.on_release()


_changed = msgspec.structs.replace


def _since(began: float) -> float:
    """Milliseconds since `began`."""
    return round((now() - began) * 1000, 2)


def _listed(run: Run) -> RunningStream:
    age = now() - run.started_at
    return RunningStream(
        run.id,
        run.state,
        run.model,
        round(age, 3),
        round(time.time() - age, 3),
        run.log.last,
        run.characters,
    )
