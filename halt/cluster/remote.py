"""A generation of another worker: how its producer sends it, and how viewers here read it.

The other worker, its producer, sends one frame with the generation's fixed facts (`Header`) or
`Unknown`, then numbered events with their times in `Batch`es. A `RemoteGeneration` appends these
events to a log of its own, so every page and API reads it like a generation of this worker.

A remote generation has one connection and one thread as long as it has a viewer, and none
otherwise; all its viewers share them. The producer counts them as one viewer. So a generation with
a viewer in any worker is not abandoned, and one that ends with its last viewer (grace 0) ends when
the last viewer in any worker has left.

Each event is appended once and in order, also after a reconnect: events that the log already has
are skipped by their number. When the producer dies, the thread asks the store for the saved
generation for up to SAVED_WITHIN seconds, appends the saved events that the log does not have, and
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
from halt.core.stream_key import StreamKey
from halt.errors import CODES, OffsetLost

INTERVAL = 0.004  # least time between two batches of one stream; the first is sent at once
BATCH_MAX = 512  # events in one batch
SAVED_WITHIN = 10.0  # seconds that viewers wait for the saved events of a dead producer
SAVED_POLL = 0.1  # seconds between two reads of the store for them
STABLE_AFTER = 1.0  # seconds after which a connection that breaks counts as one that had worked

logger = logging.getLogger(__name__)


# Tags and field names stay as they are: workers of two versions of Halt exchange these frames
# while a server is replaced (SIGUSR2).


class Header(
    msgspec.Struct,
    frozen=True,
    tag="found",
    rename={"requested_model": "asked", "first_number": "first"},
):
    """The first frame: the facts of a generation that do not change.

    `first_number` is the number of the first event that follows. `lost` has time and text of each
    event that the reader does not have and that the producer's log has dropped.
    """

    id: str
    owner: str
    requested_model: str
    prefix: str
    started_at: float
    fingerprint: str
    expected: float | None
    first_number: int
    lost: list[tuple[float, str]]


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """The first frame if this worker has no such generation, or another person owns it."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events, each as (number, time, event), and the generation's changing facts."""

    events: list[tuple[int, float, Event]]
    model: str
    chunks: int
    kept: int | None
    ended_at: float | None
    more: bool  # another batch of events that already exist follows at once


_encode = msgspec.msgpack.Encoder().encode
_decode_first = msgspec.msgpack.Decoder(Header | Unknown).decode
_decode_batch = msgspec.msgpack.Decoder(Batch).decode


# --- the producer's side --------------------------------------------------------------------------


def send_generation(run: Generation, after: int, channel: Channel) -> int:
    """Send the header and all events above `after`; returns the number of the last event sent.

    Raises OSError.
    """
    while True:
        first_number = max(run.log.first, after + 1)
        with contextlib.suppress(OffsetLost):  # the log has just dropped more events
            events = run.log.read(first_number - 1)
            break
    header = Header(
        run.id,
        run.owner,
        run.requested_model,
        run.prefix,
        run.started_at,
        run.fingerprint,
        run.expected_tokens,
        first_number,
        run.timed_texts(after, first_number - 1),
    )
    channel.send(_encode(header))
    send_events(run, events, channel)
    return events[-1][0] if events else first_number - 1


def send_events(run: Generation, events: list[tuple[int, Event]], channel: Channel) -> None:
    """Send these events in one batch or more; without events, one empty batch. Raises OSError."""
    for start in range(0, len(events) or 1, BATCH_MAX):
        part = events[start : start + BATCH_MAX]
        timed = [
            (n, (run.ended_at or now()) if is_terminal(event) else run.arrival_time(n), event)
            for n, event in part
        ]
        more = start + BATCH_MAX < len(events)
        channel.send(
            _encode(Batch(timed, run.model, run.chunks, run.seen_events, run.ended_at, more))
        )


# --- the viewers' side ----------------------------------------------------------------------------


class Source(Protocol):
    """Where a remote generation gets its events from."""

    def open(self, remote: RemoteGeneration) -> Channel | None:
        """A channel on which the producer sends all events after the log's last one, as they come.

        None: the producer does not have the generation, or does not reply.
        """

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        """The generation as saved in the store. None: nothing is saved (yet)."""


class RemoteGeneration(Generation):
    """See the module. `producer` is the name of the worker that makes the generation."""

    log: GapLog

    def __init__(self, header: Header, producer: str, max_bytes: int, source: Source) -> None:
        log = GapLog(max_bytes, header.first_number)
        super().__init__(
            StreamKey(header.owner, header.id),
            log,
            requested_model=header.requested_model,
            prefix=header.prefix,
            started_at=header.started_at,
        )
        self.log = log
        self.producer = producer
        self.expected_tokens = header.expected
        self._fingerprint = header.fingerprint
        self._model = ""
        self._chunks = 0
        self._source = source
        self._appending = threading.Lock()  # held to append events; protects _model and _chunks
        self._connecting = threading.Lock()  # protects the two below; taken before _viewers_lock
        self._channel: Channel | None = None
        self._has_thread = False
        self._never_set = threading.Event()  # to sleep on

    @property
    def model(self) -> str:
        return self._model or self.requested_model

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def chunks(self) -> int:
        return self._chunks

    # --- append received events -------------------------------------------------------------------

    def receive(self, channel: Channel, first_frame: bytes, timeout: float) -> None:
        """Append all events that already exist at the producer. Raises OSError, DecodeError.

        `timeout` is in seconds without data.
        """
        if (header := decode_header(first_frame)) is not None:
            self._append_lost(header)
            while self._receive_batch(channel, timeout):
                pass

    def _receive_batch(self, channel: Channel, timeout: float | None) -> bool:
        """Append one batch. True: another one follows at once. Raises OSError, DecodeError."""
        frame = channel.receive(timeout)
        if frame is None:
            raise ConnectionResetError("the producer has closed the connection")
        batch = _decode_batch(frame)
        self._append(batch)
        return batch.more

    def _append_lost(self, header: Header) -> None:
        """Keep the text of events that the producer's log has dropped, and skip their numbers."""
        with self._appending:
            after = header.first_number - 1 - len(header.lost)
            part_count = len(self._parts)
            for at, text in header.lost[max(0, part_count - after) :]:
                self.record_text(text, at)
            if header.first_number > self.log.last + 1:
                self.log.skip(header.first_number)

    def _append(self, batch: Batch) -> None:
        with self._appending:
            self._model, self._chunks = batch.model, batch.chunks
            for number, at, event in batch.events:
                if self.log.ended is not None:
                    return
                if number <= self.log.last:
                    continue
                if isinstance(event, Terminal):
                    self._end(number, event, batch.kept, batch.ended_at or at)
                    return
                self.record_event(event, at)
                self.log.append(event)

    def _end(self, number: int, ended: Terminal, seen_events: int | None, at: float) -> None:
        """End the log with this number and terminal event. `_appending` is held."""

        def make() -> Terminal:
            self._seen_events, self.ended_at = seen_events, at
            return ended

        self.log.end_at(number, make)

    # --- viewers and their thread -----------------------------------------------------------------

    def join(self) -> Viewer:
        viewer = super().join()
        is_following = True
        with self._connecting:
            if not self._has_thread and self.log.ended is None:
                name = f"halt-remote-{self.id[:8]}"
                try:
                    threading.Thread(target=self._follow, name=name, daemon=True).start()
                    self._has_thread = True
                except RuntimeError:  # the system has no more threads
                    is_following = False
        if not is_following:
            self._fail("internal")
        return viewer

    def leave(self, viewer: Viewer) -> None:
        super().leave(viewer)
        with self._connecting:
            if not self._viewers and self._channel is not None:
                self._channel.interrupt()

    def release_viewers(self) -> None:
        """End the streams of all viewers before the generation ends.

        For a worker that stops: the viewers' clients reconnect through another worker.
        """
        with self._viewers_lock:
            for viewer in self._viewers:
                viewer.gone = True
        self.log.recheck_viewers()

    def _follow(self) -> None:
        """The thread's body: append events until the log has ended or the last viewer has left."""
        try:
            lost_since: float | None = None
            while self._keeps_following():
                last, at = self.log.last, now()
                channel = self._source.open(self)
                if channel is not None:
                    with contextlib.closing(channel):
                        self._receive_all(channel)
                if self.log.last > last or (channel is not None and now() - at > STABLE_AFTER):
                    lost_since = None
                    continue
                lost_since = lost_since or at
                self._end_from_store(lost_since)
                if self.log.ended is None and self._viewers:
                    self._never_set.wait(SAVED_POLL)
        except Exception:
            logger.exception("reading remote generation %s has failed", self.id)
            self._fail("internal")

    def _keeps_following(self) -> bool:
        """Whether the thread has work left. After False, `join` starts a new thread."""
        with self._connecting:
            self._has_thread = self.log.ended is None and bool(self._viewers)
            return self._has_thread

    def _receive_all(self, channel: Channel) -> None:
        with self._connecting:
            if not self._viewers:
                return
            self._channel = channel
        try:
            with contextlib.suppress(OSError):
                while self.log.ended is None:
                    self._receive_batch(channel, None)
        finally:
            with self._connecting:
                self._channel = None

    # --- the producer's death ---------------------------------------------------------------------

    def _end_from_store(self, since: float) -> None:
        """End with the saved generation, or, SAVED_WITHIN seconds after `since`, without it."""
        saved = self._source.saved(self)
        if saved is not None and saved.log.ended is not None:
            self._append_saved(saved, saved.log.ended)
        elif now() - since > SAVED_WITHIN:
            self._fail("interrupted")

    def _append_saved(self, saved: Generation, ended: Terminal) -> None:
        """Append the saved events that follow the log's last one, and end the log.

        Events that viewers here have seen and that were not saved do not count as kept: the answer
        is the one in the store, so a reload of the page does not change it.
        """
        last, upto = saved.log.last, saved.answer()[0]
        with self._appending:
            self._model = saved.model
            for number, event in saved.events(last):
                if number > self.log.last and not isinstance(event, Terminal):
                    self.record_event(event, saved.arrival_time(number))
                    self.log.append(event)
            seen_events = upto if upto < self.log.last else saved.seen_events
            self._end(max(last, self.log.last + 1), ended, seen_events, saved.ended_at or now())

    def _fail(self, code: str) -> None:
        """End the log with this error."""
        message, retryable = CODES[code]
        meter = Meter()
        meter.started_at = self.started_at
        with self._appending:
            ended = Failed(ErrorInfo(code, message, retryable), meter.snapshot())
            self._end(self.log.last + 1, ended, None, now())


def decode_header(frame: bytes) -> Header | None:
    """The header that a first frame holds. None: `Unknown`. Raises msgspec.DecodeError."""
    first = _decode_first(frame)
    return first if isinstance(first, Header) else None
