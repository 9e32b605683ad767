"""A generation that another worker produces, as viewers of this worker read it.

The other worker, its producer, sends one frame with the generation's fixed facts (`Found`) or
`Unknown`, then numbered events with their times in `Batch`es. A `RemoteGeneration` appends these
events to a log of its own, so every page and API reads it like a generation of this worker.

A remote generation has one connection and one thread as long as it has a viewer, and none
otherwise; all its viewers share them. The producer counts them as one viewer. So a generation with
a viewer in any worker is not abandoned, and one that ends with its last viewer (grace 0) ends when
the last viewer in any worker has left.

Each event is appended once and in order, also after a reconnect: events that the log already has
are skipped by their number. When the producer dies, the thread asks the store for the saved
generation for up to ORPHAN_WAIT seconds, appends the saved events that the log does not have, and
ends the log.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Protocol

import msgspec

from halt.clock import now
from halt.cluster.channel import Channel
from halt.core.events import ErrorInfo, Event, Failed, Terminal, is_terminal
from halt.core.gap_log import GapLog
from halt.core.generation import Generation, Viewer
from halt.core.metrics import Meter
from halt.errors import CODES, OffsetLost

INTERVAL = 0.004  # seconds between two batches of one stream, at least; the first goes at once
BATCH_MAX = 512  # events in one batch
ORPHAN_WAIT = 10.0  # seconds that readers wait for what was saved of a run whose worker has died
ORPHAN_TICK = 0.1  # seconds between two questions for it
STEADY = 1.0  # seconds after which a connection that breaks counts as one that was there

logger = logging.getLogger(__name__)


class Found(msgspec.Struct, frozen=True, tag="found"):
    """A generation, as far as it does not change. `lost`: time and text of events that the
    reader does not have and the log no longer has."""

    id: str
    owner: str | None
    asked: str
    prefix: str
    started_at: float
    fingerprint: str
    expected: float | None
    first: int  # number of the first event that is told
    lost: list[tuple[float, str]]


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """There is no such generation here, or it is another session's."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Events that follow one another, each with its number and time, and what goes with them."""

    events: list[tuple[int, float, Event]]
    model: str
    chunks: int
    kept: int | None
    ended_at: float | None
    more: bool  # another batch of what there is already follows at once


_encode = msgspec.msgpack.Encoder().encode
_answer = msgspec.msgpack.Decoder(Found | Unknown)
_batch = msgspec.msgpack.Decoder(Batch)


# --- the owner's side -----------------------------------------------------------------------------


def tell(run: Generation, after: int, channel: Channel) -> int:
    """Say what there is above `after`; the number of the last event that was told."""
    while True:
        first = max(run.log.first, after + 1)
        with contextlib.suppress(OffsetLost):  # it has let go of some more in between
            events = run.log.read(first - 1)
            break
    found = Found(
        run.id,
        run.owner,
        run.asked,
        run.prefix,
        run.started_at,
        run.fingerprint,
        run.expected,
        first,
        run.pieces(after, first - 1),
    )
    channel.send(_encode(found))
    tell_more(run, events, channel)
    return events[-1][0] if events else first - 1


def tell_more(run: Generation, events: list[tuple[int, Event]], channel: Channel) -> None:
    """Say these events, in one batch at least."""
    for start in range(0, len(events) or 1, BATCH_MAX):
        part = events[start : start + BATCH_MAX]
        timed = [
            (n, (run.ended_at or now()) if is_terminal(each) else run.came_at(n), each)
            for n, each in part
        ]
        more = start + BATCH_MAX < len(events)
        channel.send(_encode(Batch(timed, run.model, run.chunks, run.kept, run.ended_at, more)))


# --- the readers' side ----------------------------------------------------------------------------


class Source(Protocol):
    """Where a remote gets its generation from."""

    def open(self, remote: RemoteGeneration) -> Channel | None:
        """Ask its owner to tell it from the last event on, and to go on. None: it has it not."""

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        """What was saved of it, None where there is nothing (yet)."""


class RemoteGeneration(Generation):
    """See the module. `worker` is the owner's name."""

    log: GapLog

    def __init__(self, found: Found, worker: str, max_bytes: int, source: Source) -> None:
        log = GapLog(max_bytes, found.first)
        super().__init__(
            found.id,
            found.owner,
            log,
            asked=found.asked,
            prefix=found.prefix,
            started_at=found.started_at,
        )
        self.log = log
        self.worker = worker
        self.expected = found.expected
        self._fingerprint = found.fingerprint
        self._model = ""
        self._chunks = 0
        self._source = source
        self._taking = threading.Lock()  # one at a time adds events; protects the two above
        self._link = threading.Lock()  # protects the two below; taken before the viewers' lock
        self._channel: Channel | None = None
        self._following = False  # there is a thread
        self._never = threading.Event()

    @property
    def model(self) -> str:
        return self._model or self.asked

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def chunks(self) -> int:
        return self._chunks

    # --- taking what is told ----------------------------------------------------------------------

    def receive(self, channel: Channel, first: bytes, timeout: float) -> None:
        """Take all that is told at first. Raises OSError, msgspec.DecodeError."""
        if (found := told(first)) is not None:
            self._miss(found)
            while self._take_next(channel, timeout):
                pass

    def _take_next(self, channel: Channel, timeout: float | None) -> bool:
        """Take one batch; whether another follows at once. Raises OSError, DecodeError."""
        frame = channel.receive(timeout)
        if frame is None:
            raise ConnectionResetError("the owner has closed the connection")
        batch = _batch.decode(frame)
        self._take(batch)
        return batch.more

    def _miss(self, found: Found) -> None:
        """Take what the owner's log has let go of."""
        with self._taking:
            after = found.first - 1 - len(found.lost)
            known = len(self._parts)
            for at, text in found.lost[max(0, known - after) :]:
                self.note(text, at)
            if found.first > self.log.last + 1:
                self.log.skip(found.first)

    def _take(self, batch: Batch) -> None:
        with self._taking:
            self._model, self._chunks = batch.model, batch.chunks
            for number, at, event in batch.events:
                if self.log.ended is not None:
                    return
                if number <= self.log.last:
                    continue
                if isinstance(event, Terminal):
                    self._end(number, event, batch.kept, batch.ended_at or at)
                    return
                self.note_event(event, at)
                self.log.append(event)

    def _end(self, number: int, ended: Terminal, kept: int | None, at: float) -> None:
        """End with this number. The role of the taker is held."""

        def make() -> Terminal:
            self._kept, self.ended_at = kept, at
            return ended

        self.log.end_at(number, make)

    # --- watching ---------------------------------------------------------------------------------

    def join(self) -> Viewer:
        viewer = super().join()
        started = True
        with self._link:
            if not self._following and self.log.ended is None:
                name = f"halt-remote-{self.id[:8]}"
                try:
                    threading.Thread(target=self._follow, name=name, daemon=True).start()
                    self._following = True
                except RuntimeError:  # the system has no more threads
                    started = False
        if not started:
            self._fail("internal")
        return viewer

    def leave(self, viewer: Viewer) -> None:
        super().leave(viewer)
        with self._link:
            if not self._viewers and self._channel is not None:
                self._channel.interrupt()

    def dismiss(self) -> None:
        """Let all viewers go before its end: this worker leaves, they find it through another."""
        with self._viewers_lock:
            for viewer in self._viewers:
                viewer.gone = True
        self.log.look_again()

    def _follow(self) -> None:
        """The thread's body: take what the owner says, until the end or the last viewer's leave."""
        try:
            alone_since: float | None = None
            while self._goes_on():
                known, at = self.log.last, now()
                channel = self._source.open(self)
                if channel is not None:
                    with contextlib.closing(channel):
                        self._take_all(channel)
                if self.log.last > known or (channel is not None and now() - at > STEADY):
                    alone_since = None
                    continue
                alone_since = alone_since or at
                self._outlive(alone_since)
                if self.log.ended is None and self._viewers:
                    self._never.wait(ORPHAN_TICK)
        except Exception:
            logger.exception("remote generation %s", self.id)
            self._fail("internal")

    def _goes_on(self) -> bool:
        """Whether the thread has something to do. False: it is counted as gone from now on."""
        with self._link:
            self._following = self.log.ended is None and bool(self._viewers)
            return self._following

    def _take_all(self, channel: Channel) -> None:
        with self._link:
            if not self._viewers:
                return
            self._channel = channel
        try:
            with contextlib.suppress(OSError):
                while self.log.ended is None:
                    self._take_next(channel, None)
        finally:
            with self._link:
                self._channel = None

    # --- the owner's death ------------------------------------------------------------------------

    def _outlive(self, since: float) -> None:
        """The owner is gone: end with what was saved, or without it when that takes too long."""
        saved = self._source.saved(self)
        if saved is not None and saved.log.ended is not None:
            self._adopt(saved, saved.log.ended)
        elif now() - since > ORPHAN_WAIT:
            self._fail("interrupted")

    def _adopt(self, saved: Generation, ended: Terminal) -> None:
        """Go on with what was saved. Text that was seen here and not saved is not kept."""
        last, upto = saved.log.last, saved.answer()[0]
        with self._taking:
            self._model = saved.model
            for number, event in saved.events(last):
                if number > self.log.last and not isinstance(event, Terminal):
                    self.note_event(event, saved.came_at(number))
                    self.log.append(event)
            kept = upto if upto < self.log.last else saved.kept
            self._end(max(last, self.log.last + 1), ended, kept, saved.ended_at or now())

    def _fail(self, code: str) -> None:
        message, retryable = CODES[code]
        meter = Meter()
        meter.started_at = self.started_at
        with self._taking:
            ended = Failed(ErrorInfo(code, message, retryable), meter.snapshot())
            self._end(self.log.last + 1, ended, None, now())


def told(answer: bytes) -> Found | None:
    """The generation that an answer is about, None where it is not there."""
    found = _answer.decode(answer)
    return found if isinstance(found, Found) else None
