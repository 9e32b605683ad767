"""The other worker processes of a server on this machine, as a service of generations needs them.

Each generation is made by one worker, its owner, and is in that one's memory alone. The others ask:
to stop it, to read it (see `halt.cluster.remote`), to list it. The owner of a stream is not written
anywhere; all others are asked at once and the owner answers, which takes about a millisecond.

What holds for all workers together, and why:

- An ID belongs to one stream: a lock of the kernel on a number made of it (`.file_locks`), held
  while the run is kept. So of two workers that start the same ID at once, one is refused.
- HALT_MAX_STREAMS: places that are locks of the kernel too. A worker that dies gives back its own.
- Stop finds its stream, or the stream finds the Stop, in whatever order the two come. Stop first
  buries the ID in its own worker's registry, then tells all others, and each of these presses or
  buries, under the lock under which it starts streams. So a stream that starts in any worker that
  was told is ended by the one or by the other. A worker that comes up during this becomes visible
  first and copies the others' tombstones then, before it takes a request. So either the Stop finds
  it among the others, or the Stop had buried the ID in its own worker before the copy was made.
- A worker that hangs delays a Stop of a stream that no other worker has, by STOP_WITHIN at most,
  and no other Stop. It finds the Stop when it goes on: in its queue, or, where that was full, sent
  again by the worker that was asked (`Undelivered`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from weakref import WeakValueDictionary

import msgspec

from halt.clock import now
from halt.cluster.channel import Answers, Channel
from halt.cluster.file_locks import FileLocks
from halt.cluster.peers import Peers
from halt.cluster.remote import INTERVAL, RemoteGeneration, Unknown, tell, tell_more, told
from halt.core.generation import Generation
from halt.core.other_workers import OtherWorkers
from halt.core.receipts import Receipt, RunningStream, Stops
from halt.core.relay import Departure
from halt.core.service import RECEIPT_WAIT, GenerationService
from halt.core.stop import TOMBSTONE_SECONDS, StopRegistry, Tombstone, may_touch
from halt.core.storage import Replay
from halt.errors import OffsetLost, StoreUnavailable, UnknownStream

STOP_WITHIN = RECEIPT_WAIT + 0.1  # seconds for the others to answer a Stop
FIND_WITHIN = 1.0  # seconds for them to say whether they have a stream
LIST_WITHIN = 0.5  # seconds for them to say what they have
COPY_WITHIN = 2.0  # seconds for them to hand over their tombstones
UNDELIVERED_SECONDS = 60.0  # for a worker that hangs to go on and take the Stops it has missed
UNDELIVERED_MAX = 10_000  # Stops that are kept for such workers
PRESS_MOST = 500  # of them in one request, which fits the kernel's buffer
LAST_WORDS = 1.0  # seconds for the others' streams to end here, once this worker leaves

logger = logging.getLogger(__name__)


class Press(msgspec.Struct, frozen=True, tag="press"):
    """Stop these, or leave tombstones. Answered by their receipts."""

    stops: list[tuple[str, int | None]]
    requester: str | None


class Find(msgspec.Struct, frozen=True, tag="find"):
    """Tell of a generation from this event on; `live`: to its end."""

    id: str
    requester: str | None
    after: int
    live: bool


class List(msgspec.Struct, frozen=True, tag="list"):
    """List this owner's running generations; with `stop`, stop those that began `before` that time,
    and answer by receipts."""

    owner: str | None
    stop: bool = False
    before: float = float("inf")  # on the clock of `halt.clock.now`, which is the machine's


class Count(msgspec.Struct, frozen=True, tag="count"):
    """Say how many streams are open."""


class Copy(msgspec.Struct, frozen=True, tag="copy"):
    """Hand over the tombstones."""


_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(Press | Find | List | Count | Copy)
_receipts = msgspec.msgpack.Decoder(list[Receipt])
_listed = msgspec.msgpack.Decoder(list[RunningStream])
_count = msgspec.msgpack.Decoder(int)
_tombstones = msgspec.msgpack.Decoder(list[Tombstone])


class Undelivered:
    """Stops for workers whose queue of requests was full: kept to be sent again, for a time.

    A worker that hangs takes no request, so its queue fills up with those of others; it finds these
    Stops when it goes on. gunicorn ends a worker that hangs for longer than UNDELIVERED_SECONDS.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the table below
        # (worker, requester, stream) -> (seen, until when), as added; stream None: all of them
        self._stops: OrderedDict[tuple[str, str | None, str | None], tuple[int | None, float]]
        self._stops = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._stops)

    def add(
        self,
        workers: Collection[str],
        stops: Sequence[tuple[str | None, int | None]],
        requester: str | None,
    ) -> None:
        """Keep these for each of the workers; beyond UNDELIVERED_MAX the oldest go.

        A stop is a stream's ID, None for all streams of the requester, and the last event seen.
        """
        until = now() + UNDELIVERED_SECONDS
        with self._lock:
            for worker in workers:
                for stream_id, seen in stops:
                    self._stops.setdefault((worker, requester, stream_id), (seen, until))
            while len(self._stops) > UNDELIVERED_MAX:
                self._stops.popitem(last=False)

    def due(self, workers: Collection[str]) -> list[tuple[str, Press | List]]:
        """What each of these workers has to be sent. What is too old, or for a worker that is not
        among them, is dropped."""
        at = now()
        requests: list[tuple[str, Press | List]] = []
        by_asker: defaultdict[tuple[str, str | None], list[tuple[str, int | None]]]
        by_asker = defaultdict(list)
        with self._lock:
            for key, (seen, until) in list(self._stops.items()):
                worker, requester, stream_id = key
                if worker not in workers or until <= at:
                    del self._stops[key]
                elif stream_id is None:
                    pressed_at = until - UNDELIVERED_SECONDS
                    requests.append((worker, List(requester, stop=True, before=pressed_at)))
                else:
                    by_asker[worker, requester].append((stream_id, seen))
        requests += [
            (worker, Press(stops[first : first + PRESS_MOST], requester))
            for (worker, requester), stops in by_asker.items()
            for first in range(0, len(stops), PRESS_MOST)
        ]
        return requests

    def delivered(self, worker: str, request: Press | List) -> None:
        """The worker has this in its queue."""
        with self._lock:
            if isinstance(request, List):
                self._stops.pop((worker, request.owner, None), None)
                return
            for stream_id, _ in request.stops:
                self._stops.pop((worker, request.requester, stream_id), None)


class Workers(OtherWorkers):
    """See the module. Until `begin` there are no others."""

    #: This worker's own, of which the others ask; to be set before `begin`.
    service: GenerationService

    def __init__(self, peers: Peers, registry: StopRegistry, replay: Replay | None = None) -> None:
        """`registry` is that of this worker's service."""
        super().__init__(replay)
        self._peers = peers
        self._registry = registry
        self._remotes_lock = threading.Lock()  # protects the table below
        self._remotes: WeakValueDictionary[str, RemoteGeneration] = WeakValueDictionary()
        self._undelivered = Undelivered()
        self._counting = threading.Lock()  # held by the request that asks for the next
        self._counted: list[int] = []  # open streams of each other worker, as they said last
        self._leaving_since: float | None = None

    def begin(self) -> None:
        run = self._peers.begin(self._serve)
        self.service.capacity.places.share(FileLocks(run / "streams.slots"))
        self.service.capacity.ids.share(FileLocks(run / "ids.slots"))
        self.service.capacity.tabs.share(FileLocks(run / "tabs.slots"))
        with self._peers.ask(_encode(Copy()), COPY_WITHIN) as answers:
            for _, copied, _ in answers:
                self._registry.inherit(_tombstones.decode(copied))
        for left in self._peers.words(TOMBSTONE_SECONDS):
            try:
                self._registry.inherit(_tombstones.decode(left))
            except msgspec.DecodeError as fault:  # of another version, or cut by a full disk
                logger.error("Stops that a worker has left cannot be read: %s", fault)
        self._peers.watch()

    # --- find, stop, list -------------------------------------------------------------------------

    @property
    def worker(self) -> str:
        return self._peers.name

    @property
    def has_others(self) -> bool:
        return bool(self._peers.others)

    def get(self, stream_id: str, requester: str | None) -> Generation | None:
        known = self._remotes.get(stream_id)
        remote = self._find_remote(stream_id, requester, known)
        if remote is not None:
            return remote
        if known is not None and not may_touch(known.owner, requester):
            known = None
        try:
            return super().get(stream_id, requester) or known
        except StoreUnavailable:
            if known is None:
                raise
            return known

    def _find_remote(
        self, stream_id: str, requester: str | None, known: RemoteGeneration | None
    ) -> RemoteGeneration | None:
        """A generation of another worker, as it is now. None: no worker has it.

        One that ended because its owner died is not told any more: some of it may not be saved.
        """
        after = 0 if known is None else known.log.last
        request = _encode(Find(stream_id, requester, after, live=False))
        with self._peers.ask(request, FIND_WITHIN) as answers:
            for name, answer, channel in answers:
                found = told(answer)
                if found is None:
                    continue
                with self._remotes_lock:
                    remote = self._remotes.get(stream_id) or RemoteGeneration(
                        found, name, self.service.config.log_bytes, self
                    )
                    self._remotes[stream_id] = remote
                with contextlib.suppress(OSError):  # it dies meanwhile: what was saved will follow
                    remote.receive(channel, answer, FIND_WITHIN)
                return remote
        if known is None or known.log.ended is not None or not may_touch(known.owner, requester):
            return None
        return known  # its owner has died just now, or hangs

    def open(self, remote: RemoteGeneration) -> Channel | None:
        """For a remote: go on with it where its owner has come to."""
        request = _encode(Find(remote.id, remote.owner, remote.log.last, live=True))
        with self._peers.ask(request, FIND_WITHIN, remote.worker) as answers:
            for _, answer, channel in answers:
                if told(answer) is not None:
                    with contextlib.suppress(OSError):
                        remote.receive(channel, answer, FIND_WITHIN)
                        channel.kept = True
                        return channel
        self._peers.sweep_soon()
        return None

    def saved(self, remote: RemoteGeneration) -> Generation | None:
        """For a remote: what was saved of it."""
        return super().get(remote.id, remote.owner)

    @contextlib.contextmanager
    def stopping(self, stops: Stops, requester: str | None) -> Iterator[Iterator[Receipt]]:
        request = Press(list(stops), requester)
        with self._ask(request, STOP_WITHIN) if stops else Answers() as answers:
            self._undelivered.add(answers.unreached, stops, requester)
            yield _until_all({each for each, _ in stops}, answers)

    @contextlib.contextmanager
    def stopping_all(self, owner: str | None) -> Iterator[Iterator[Receipt]]:
        with self._ask(List(owner, stop=True, before=now()), STOP_WITHIN) as answers:
            self._undelivered.add(answers.unreached, [(None, None)], owner)
            yield (each for _, answer, _ in answers for each in _receipts.decode(answer))

    def running(self, owner: str | None) -> list[RunningStream]:
        with self._ask(List(owner), LIST_WITHIN) as answers:
            return [each for _, answer, _ in answers for each in _listed.decode(answer)]

    def open_streams(self) -> list[int]:
        """See `OtherWorkers`.

        One request at a time asks the others; those that come meanwhile are told what the last one
        learned. So a worker that hangs holds one thread of this one.
        """
        if self._counting.acquire(blocking=False):
            try:
                with self._ask(Count(), LIST_WITHIN) as answers:
                    self._counted = [_count.decode(answer) for _, answer, _ in answers]
            finally:
                self._counting.release()
        return self._counted

    def _ask(self, request: Press | List | Count, timeout: float) -> Answers:
        """What the others answer; they are asked before this returns."""
        return self._peers.ask(_encode(request), timeout)

    def tick(self) -> None:
        """Send the Stops that a worker's full queue has refused."""
        if not self._undelivered:
            return
        for name, request in self._undelivered.due(self._peers.others):
            with self._peers.ask(_encode(request), 0.0, name) as answers:
                if not answers.unreached:
                    self._undelivered.delivered(name, request)

    # --- for the others ---------------------------------------------------------------------------

    def _serve(self, said: bytes, channel: Channel) -> None:
        request = _request.decode(said)
        if isinstance(request, Find):
            self._tell(request, channel)
            return
        answer: object
        if isinstance(request, Press):
            answer = self.service.stop_here(request.stops, request.requester)
        elif isinstance(request, List):
            if request.stop:
                answer = self.service.stop_all_here(request.owner, request.before)
            else:
                answer = self.service.running_here(request.owner)
        elif isinstance(request, Count):
            answer = self.service.open_streams
        else:
            answer = self._registry.tombstones()
        channel.send(_encode(answer))

    def _tell(self, asked: Find, channel: Channel) -> None:
        try:
            run = self.service.run(asked.id, asked.requester)
        except UnknownStream:
            channel.send(_encode(Unknown()))
            return
        if not asked.live:
            run.expect()
            tell(run, asked.after, channel)
            return
        if not channel.long():
            logger.error("other workers follow too many streams of this one")
            return
        viewer = run.join()
        departure = Departure(self.service.relay, channel.sock, partial(run.leave, viewer))
        try:
            after = tell(run, asked.after, channel)
            for events in run.follow(after, viewer, INTERVAL):
                if events:
                    tell_more(run, events, channel)
        except OffsetLost:
            pass  # the other one was slower than the log is long: it comes again and is told so
        finally:
            departure.cancel()
            run.leave(viewer)

    # --- the end ----------------------------------------------------------------------------------

    def leave(self) -> None:
        since = self._leaving_since = self._leaving_since or now()
        if now() - since > LAST_WORDS:
            self._dismiss()

    def close(self) -> None:
        self._dismiss()
        try:
            if tombstones := self._registry.tombstones():
                self._peers.leave_word(_encode(tombstones))
        except OSError as exc:
            logger.error("Stops of streams that have not begun are lost: %s", exc)
        self._peers.close()

    def _dismiss(self) -> None:
        """Let go the readers of other workers' streams: they find these through another worker."""
        with self._remotes_lock:
            remotes = list(self._remotes.values())
        for remote in remotes:
            remote.dismiss()


def _until_all(stream_ids: set[str], answers: Answers) -> Iterator[Receipt]:
    """The receipts of streams that the others have had; no answer is waited for after the last."""
    for _, answer, _ in answers if stream_ids else ():
        for each in _receipts.decode(answer):
            if each.status != "pending":
                stream_ids.discard(each.id)
                yield each
        if not stream_ids:
            return
