"""The other workers of a server on this machine: stop, read and list their generations.

Each generation is produced by one worker and held in its memory alone. No table says which worker
produces a stream: a request goes to all other workers at once and the producer replies, which takes
about a millisecond. `halt.cluster.remote` reads the events of another worker's generation.

Guarantees for all workers together, and their reasons:

- A key belongs to one stream. A kernel lock on a number computed from the key (`.file_locks`) is
  held while the generation is kept in memory, so of two workers that start the same key at once one
  is refused.
- HALT_MAX_STREAMS is a limit for all workers. Its places are kernel locks too, so a worker that
  dies frees its own.
- Stop and start of a stream may race across workers; either order ends the stream. Stop first puts
  a tombstone into its own worker's registry, then sends the request to all others; each of them
  stops the stream or adds a tombstone, under the lock under which it starts streams. So a stream
  that starts in any of these workers is ended by the one or the other. A worker that begins at this
  time creates its socket first and copies the others' tombstones after that, before it serves
  clients. So either the Stop is sent to it, or the tombstone was in the registry of the Stop's own
  worker before the copy.
- A worker that hangs delays a Stop only if no other worker has the stream, and by STOP_WITHIN at
  most. It receives the Stop when it runs again: from its queue of requests or, if the queue was
  full, by a repetition (`UndeliveredStops`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from halt.clock import now
from halt.cluster.bus import Bus
from halt.cluster.channel import Channel, Replies
from halt.cluster.file_locks import FileLocks
from halt.cluster.remote import (
    INTERVAL,
    RemoteGeneration,
    Unknown,
    decode_header,
    send_events,
    send_generation,
)
from halt.core.generation import Generation
from halt.core.other_workers import OtherWorkers
from halt.core.receipts import Receipt, RunningStream, Stops
from halt.core.relay import Departure
from halt.core.service import RECEIPT_WAIT, GenerationService
from halt.core.stop import TOMBSTONE_SECONDS, StopRegistry, Tombstone
from halt.core.storage import Replay
from halt.core.stream_key import StreamKey
from halt.errors import OffsetLost, StoreUnavailable, UnknownStream

STOP_WITHIN = RECEIPT_WAIT + 0.1  # seconds for the others to reply to a Stop
FIND_WITHIN = 1.0  # seconds for them to reply whether they have a stream, and to send its events
LIST_WITHIN = 0.5  # seconds for them to list or count their streams
WHO_WITHIN = 0.2  # seconds for them to reply whose a sign-in is: a Stop waits for it
COPY_WITHIN = 2.0  # seconds for them to send their tombstones
UNDELIVERED_SECONDS = 60.0  # during which an undelivered Stop is sent again
UNDELIVERED_MAX = 10_000  # Stops kept to be sent again
STOPS_PER_REQUEST = 500  # so that a request fits the kernel's buffer
LEAVE_GRACE = 1.0  # seconds for remote streams to end by themselves while this worker stops

#: A person: ID, name, and whether an administrator.
Who = tuple[str, str, bool]

logger = logging.getLogger(__name__)


# The requests. Tags and field names stay as they are: workers of two versions of Halt exchange
# these while a server is replaced (SIGUSR2).


class StopRequest(msgspec.Struct, frozen=True, tag="press"):
    """Stop these streams, or add tombstones. Reply: receipts."""

    stops: list[tuple[str, int | None]]
    requester: str


class FindRequest(msgspec.Struct, frozen=True, tag="find"):
    """Send a generation's events above `after`: those that exist, or with `live` all to its end.

    Reply: see `halt.cluster.remote`.
    """

    id: str
    requester: str
    after: int
    live: bool


class ListRequest(msgspec.Struct, frozen=True, tag="list"):
    """List this person's running generations. Reply: streams.

    With `stop`: stop those that started before the time `before`. Reply: receipts.
    """

    owner: str
    stop: bool = False
    before: float = float("inf")  # on the clock of `halt.clock.now`, which all processes share


class CountRequest(msgspec.Struct, frozen=True, tag="count"):
    """Reply: the number of open streams."""


class TombstonesRequest(msgspec.Struct, frozen=True, tag="copy"):
    """Reply: the tombstones."""


class WhoRequest(msgspec.Struct, frozen=True, tag="who"):
    """Reply: the person of a sign-in or API token with this digest, None where it is not known.

    It is answered from memory: another worker sends it while the database does not answer.
    """

    digest: str


class WakeRequest(msgspec.Struct, frozen=True, tag="wake"):
    """Look at the connected providers now: they were changed. Reply: true."""


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(
    StopRequest
    | FindRequest
    | ListRequest
    | CountRequest
    | TombstonesRequest
    | WhoRequest
    | WakeRequest
).decode
_decode_who = msgspec.msgpack.Decoder(Who | None).decode
_decode_receipts = msgspec.msgpack.Decoder(list[Receipt]).decode
_decode_streams = msgspec.msgpack.Decoder(list[RunningStream]).decode
_decode_count = msgspec.msgpack.Decoder(int).decode
_decode_tombstones = msgspec.msgpack.Decoder(list[Tombstone]).decode


class UndeliveredStops:
    """Stops for workers whose queue of requests was full, kept for a time to be sent again.

    A worker that hangs accepts no request, so its queue fills up with requests of others. It
    receives these Stops when it runs again. gunicorn ends a worker that hangs for longer than
    UNDELIVERED_SECONDS.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the table below
        # (worker, requester, stream) -> (last event seen, expiry), oldest first; stream None: all
        self._stops: OrderedDict[tuple[str, str, str | None], tuple[int | None, float]]
        self._stops = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._stops)

    def add(
        self,
        workers: Collection[str],
        stops: Sequence[tuple[str | None, int | None]],
        requester: str,
    ) -> None:
        """Keep these Stops for each of the workers; beyond UNDELIVERED_MAX the oldest are dropped.

        A Stop is (stream ID, last event seen); ID None means all streams of the requester.
        """
        until = now() + UNDELIVERED_SECONDS
        with self._lock:
            for worker in workers:
                for stream_id, seen in stops:
                    self._stops.setdefault((worker, requester, stream_id), (seen, until))
            while len(self._stops) > UNDELIVERED_MAX:
                self._stops.popitem(last=False)

    def due(self, workers: Collection[str]) -> list[tuple[str, StopRequest | ListRequest]]:
        """The requests to send, each with its worker. Stops that have expired or are for a worker
        not among `workers` are dropped."""
        at = now()
        requests: list[tuple[str, StopRequest | ListRequest]] = []
        by_requester: defaultdict[tuple[str, str], list[tuple[str, int | None]]]
        by_requester = defaultdict(list)
        with self._lock:
            for key, (seen, until) in list(self._stops.items()):
                worker, requester, stream_id = key
                if worker not in workers or until <= at:
                    del self._stops[key]
                elif stream_id is None:
                    stopped_at = until - UNDELIVERED_SECONDS
                    requests.append((worker, ListRequest(requester, stop=True, before=stopped_at)))
                else:
                    by_requester[worker, requester].append((stream_id, seen))
        requests += [
            (worker, StopRequest(stops[first : first + STOPS_PER_REQUEST], requester))
            for (worker, requester), stops in by_requester.items()
            for first in range(0, len(stops), STOPS_PER_REQUEST)
        ]
        return requests

    def delivered(self, worker: str, request: StopRequest | ListRequest) -> None:
        """Drop the Stops of this request: it was sent to the worker."""
        with self._lock:
            if isinstance(request, ListRequest):
                self._stops.pop((worker, request.owner, None), None)
                return
            for stream_id, _ in request.stops:
                self._stops.pop((worker, request.requester, stream_id), None)


class Workers(OtherWorkers):
    """See the module. Before `begin` there are no other workers."""

    #: This worker's own service, which serves the others' requests; to be set before `begin`.
    service: GenerationService
    #: The person of a digest in this worker's memory, for the others; may be set before `begin`.
    who_here: Callable[[str], Who | None]
    #: Called when another worker has changed the connected providers; may be set before `begin`.
    on_wake: Callable[[], object]

    def __init__(self, bus: Bus, registry: StopRegistry, replay: Replay | None = None) -> None:
        """`registry` is that of this worker's service."""
        super().__init__(replay)
        self._bus = bus
        self._membership = bus.membership
        self._registry = registry
        self.who_here = lambda _: None
        self.on_wake = bool
        self._remotes_lock = threading.Lock()  # protects the table below
        self._remotes: WeakValueDictionary[StreamKey, RemoteGeneration] = WeakValueDictionary()
        self._undelivered = UndeliveredStops()
        self._counting = threading.Lock()  # held by the thread that sends the CountRequest
        self._open_streams: list[int] = []  # of each other worker, by the last replies
        self._leaving_since: float | None = None

    def begin(self) -> None:
        run = self._bus.begin(self._serve)
        self.service.capacity.places.share(FileLocks(run / "streams.slots"))
        self.service.capacity.keys.share(FileLocks(run / "keys.slots"))
        self.service.capacity.page_streams.share(FileLocks(run / "tabs.slots"))
        with self._bus.request(_encode(TombstonesRequest()), COPY_WITHIN) as replies:
            notes = [reply for _, reply, _ in replies]
        for note in [*notes, *self._membership.notes(TOMBSTONE_SECONDS)]:
            try:
                self._registry.inherit(_decode_tombstones(note))
            except msgspec.DecodeError as fault:  # of another version, or cut by a full disk
                logger.error("a note with Stops of another worker cannot be read: %s", fault)
        self._membership.watch()

    # --- find, stop, list -------------------------------------------------------------------------

    @property
    def worker(self) -> str:
        return self._membership.name

    @property
    def has_others(self) -> bool:
        return bool(self._bus.other_names)

    def get(self, key: StreamKey) -> Generation | None:
        known_remote = self._remotes.get(key)
        remote = self._find_remote(key, known_remote)
        if remote is not None:
            return remote
        try:
            return super().get(key) or known_remote
        except StoreUnavailable:
            if known_remote is None:
                raise
            return known_remote

    def _find_remote(
        self, key: StreamKey, known_remote: RemoteGeneration | None
    ) -> RemoteGeneration | None:
        """The generation of another worker, with all events that exist now. None: no worker has it.

        Also None for a known one that has ended because its producer died: some of its events may
        not be in the store.
        """
        after = 0 if known_remote is None else known_remote.log.last
        request = _encode(FindRequest(key.id, key.owner, after, live=False))
        with self._bus.request(request, FIND_WITHIN) as replies:
            for worker, reply, channel in replies:
                header = decode_header(reply)
                if header is None:
                    continue
                with self._remotes_lock:
                    remote = self._remotes.get(key) or RemoteGeneration(
                        header, worker, self.service.config.log_bytes, self
                    )
                    self._remotes[key] = remote
                with contextlib.suppress(OSError):  # the producer dies now: viewers get the rest
                    remote.receive(channel, reply, FIND_WITHIN)  # from the store
                return remote
        if known_remote is None or known_remote.log.ended is not None:
            return None
        return known_remote  # its producer has just died, or hangs

    def open(self, remote: RemoteGeneration) -> Channel | None:
        """See `halt.cluster.remote.Source`."""
        request = _encode(FindRequest(remote.id, remote.owner, remote.log.last, live=True))
        with self._bus.request(request, FIND_WITHIN, remote.producer) as replies:
            for _, reply, channel in replies:
                if decode_header(reply) is not None:
                    with contextlib.suppress(OSError):
                        remote.receive(channel, reply, FIND_WITHIN)
                        channel.is_kept = True
                        return channel
        self._membership.sweep_soon()
        return None

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        """See `halt.cluster.remote.Source`."""
        return super().get(remote.key)

    @contextlib.contextmanager
    def stopping(self, stops: Stops, owner: str) -> Iterator[Iterator[Receipt]]:
        request = StopRequest(list(stops), owner)
        with self._request(request, STOP_WITHIN) if stops else Replies() as replies:
            self._undelivered.add(replies.unreached, stops, owner)
            yield _receipts_until_all({stream_id for stream_id, _ in stops}, replies)

    @contextlib.contextmanager
    def stopping_all(self, owner: str) -> Iterator[Iterator[Receipt]]:
        request = ListRequest(owner, stop=True, before=now())
        with self._request(request, STOP_WITHIN) as replies:
            self._undelivered.add(replies.unreached, [(None, None)], owner)
            yield (receipt for _, reply, _ in replies for receipt in _decode_receipts(reply))

    def running(self, owner: str) -> list[RunningStream]:
        with self._request(ListRequest(owner), LIST_WITHIN) as replies:
            return [stream for _, reply, _ in replies for stream in _decode_streams(reply)]

    def open_streams(self) -> list[int]:
        """See `OtherWorkers`.

        One thread at a time sends the request; other threads return the previous result meanwhile.
        So a worker that hangs blocks one thread of this worker at most.
        """
        if self._counting.acquire(blocking=False):
            try:
                with self._request(CountRequest(), LIST_WITHIN) as replies:
                    self._open_streams = [_decode_count(reply) for _, reply, _ in replies]
            finally:
                self._counting.release()
        return self._open_streams

    def _request(
        self,
        request: StopRequest | ListRequest | CountRequest | WhoRequest | WakeRequest,
        timeout: float,
    ) -> Replies:
        """The replies of all others; the request is sent before this returns."""
        return self._bus.request(_encode(request), timeout)

    def who(self, digest: str) -> Who | None:
        """The person of this sign-in or API token, as another worker knows it from memory.

        None: no other worker has replied with a person within WHO_WITHIN.
        """
        with self._request(WhoRequest(digest), WHO_WITHIN) as replies:
            for _, reply, _ in replies:
                known: Who | None = _decode_who(reply)
                if known is not None:
                    return known
        return None

    def wake(self) -> None:
        """Let the other workers look at the connected providers. Does not wait for them."""
        with self._request(WakeRequest(), 0.0):
            pass

    def tick(self) -> None:
        """Send undelivered Stops again."""
        if not self._undelivered:
            return
        for worker, request in self._undelivered.due(self._bus.other_names):
            with self._bus.request(_encode(request), 0.0, worker) as replies:
                if not replies.unreached:
                    self._undelivered.delivered(worker, request)

    # --- serve the others -------------------------------------------------------------------------

    def _serve(self, payload: bytes, channel: Channel) -> None:
        request = _decode_request(payload)
        if isinstance(request, FindRequest):
            self._serve_find(request, channel)
            return
        reply: object
        if isinstance(request, StopRequest):
            reply = self.service.stop_here(request.stops, request.requester)
        elif isinstance(request, ListRequest):
            if request.stop:
                reply = self.service.stop_all_here(request.owner, request.before)
            else:
                reply = self.service.running_here(request.owner)
        elif isinstance(request, CountRequest):
            reply = self.service.open_streams
        elif isinstance(request, WhoRequest):
            reply = self.who_here(request.digest)
        elif isinstance(request, WakeRequest):
            self.on_wake()
            reply = True
        else:
            reply = self._registry.tombstones()
        channel.send(_encode(reply))

    def _serve_find(self, request: FindRequest, channel: Channel) -> None:
        try:
            run = self.service.run(StreamKey(request.requester, request.id))
        except UnknownStream:
            channel.send(_encode(Unknown()))
            return
        if not request.live:
            run.expect_viewer()
            send_generation(run, request.after, channel)
            return
        if not channel.begin_stream():
            logger.error("other workers read too many streams of this one at once")
            return
        viewer = run.join()
        departure = Departure(self.service.relay, channel.sock, partial(run.leave, viewer))
        try:
            after = send_generation(run, request.after, channel)
            for events in run.follow(after, viewer, INTERVAL):
                if events:
                    send_events(run, events, channel)
        except OffsetLost:
            pass  # the other worker reads too slowly; it reconnects, and its header lists the gap
        finally:
            departure.cancel()
            run.leave(viewer)

    # --- the end ----------------------------------------------------------------------------------

    def leave(self) -> None:
        since = self._leaving_since = self._leaving_since or now()
        if now() - since > LEAVE_GRACE:
            self._release_viewers()

    def close(self) -> None:
        self._release_viewers()
        try:
            if tombstones := self._registry.tombstones():
                self._membership.leave_note(_encode(tombstones))
        except OSError as exc:
            logger.error("Stops of streams that have not started are lost: %s", exc)
        self._bus.close()

    def _release_viewers(self) -> None:
        """End the viewers' streams of remote generations; clients reconnect to another worker."""
        with self._remotes_lock:
            remotes = list(self._remotes.values())
        for remote in remotes:
            remote.release_viewers()


def _receipts_until_all(stream_ids: set[str], replies: Replies) -> Iterator[Receipt]:
    """The receipts of streams that other workers had. Ends, without waiting for further replies,
    when each of the IDs has one; removes them from `stream_ids`."""
    for _, reply, _ in replies if stream_ids else ():
        for receipt in _decode_receipts(reply):
            if receipt.status != "pending":
                stream_ids.discard(receipt.id)
                yield receipt
        if not stream_ids:
            return
