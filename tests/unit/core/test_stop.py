"""The stop registry: Stop and start of a stream may race; either order ends the stream.

`ClockedRegistry` is a registry with a clock that a test sets; `Stream` counts its ends.
"""

from __future__ import annotations

import itertools
import threading
from functools import partial

import pytest

from halt.core import stop
from halt.core.stop import TOMBSTONE_SECONDS, TOMBSTONES_MAX, Pressed, StopRegistry, StopSwitch
from halt.core.stream_key import StreamKey
from halt.errors import StreamInUse
from tests.support.races import together

REPEATS = 1_000
KEY = StreamKey("anna", "a")


class Stream:
    """A minimal stream: the first press ends it, later ones get finished."""

    def __init__(self) -> None:
        self.switch = StopSwitch(self._press)
        self.stops: list[int | None] = []
        self._lock = threading.Lock()

    def _press(self, last_seen: int | None) -> Pressed:
        assert self.switch.event.is_set()
        with self._lock:
            self.stops.append(last_seen)
            return "stopped" if len(self.stops) == 1 else "finished"


class ClockedRegistry(StopRegistry):
    """A registry whose clock only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.time = 1_000.0
        monkeypatch.setattr(stop, "now", lambda: self.time)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> ClockedRegistry:
    return ClockedRegistry(monkeypatch)


def test_stop_after_the_start_ends_the_stream(registry: ClockedRegistry) -> None:
    """The press sets the stream's event first, then ends it with the last event seen."""
    stream = Stream()
    assert registry.claim(KEY, stream.switch)
    assert registry.press(KEY, seen=7) == "stopped"
    assert stream.stops == [7]


def test_stop_before_the_start_ends_the_stream(registry: ClockedRegistry) -> None:
    """A Stop may overtake its own stream, whose start is then refused."""
    assert registry.press(KEY) is None
    assert not registry.claim(KEY, Stream().switch)


def test_stop_of_a_stopped_stream_is_answered_finished(registry: ClockedRegistry) -> None:
    """A second Stop is harmless and gets finished."""
    stream = Stream()
    registry.claim(KEY, stream.switch)
    assert [registry.press(KEY), registry.press(KEY)] == ["stopped", "finished"]


def test_stops_before_the_start_stop_one_stream(registry: ClockedRegistry) -> None:
    """Several Stops before the start stop one stream; after that the ID can be used again."""
    for _ in range(3):
        assert registry.press(KEY) is None
    assert not registry.claim(KEY, Stream().switch)
    registry.release(KEY)
    assert registry.claim(KEY, Stream().switch)


@pytest.mark.parametrize("order", list(itertools.permutations(["stop", "start", "release"])))
def test_stop_start_and_release_in_any_order_end_the_stream(
    registry: ClockedRegistry, order: tuple[str, ...]
) -> None:
    """In each order Stop and start end the stream, unless it was over before the Stop."""
    stream, is_ended = Stream(), False
    for step in order:
        if step == "stop":
            is_ended |= registry.press(KEY) == "stopped"
        elif step == "start":
            is_ended |= not registry.claim(KEY, stream.switch)
        else:
            registry.release(KEY)
    has_ended_before = order == ("start", "release", "stop")
    assert is_ended is not has_ended_before


def test_claim_of_an_unreleased_id_is_refused(registry: ClockedRegistry) -> None:
    """A second stream with an ID in use is refused, also if the first was stopped."""
    registry.claim(KEY, Stream().switch)
    with pytest.raises(StreamInUse) as error_info:
        registry.claim(KEY, Stream().switch)
    assert error_info.value.field == "id"
    registry.press(KEY)
    with pytest.raises(StreamInUse):
        registry.claim(KEY, Stream().switch)
    registry.release(KEY)
    assert registry.claim(KEY, Stream().switch)
    assert len(registry) == 1


def test_release_of_an_unknown_id_is_harmless(registry: ClockedRegistry) -> None:
    """Releasing an unknown ID changes nothing."""
    registry.release(KEY)
    assert len(registry) == 0


@pytest.mark.parametrize(
    ("age", "starts"), [(0.0, False), (TOMBSTONE_SECONDS - 0.1, False), (TOMBSTONE_SECONDS, True)]
)
def test_tombstone_stops_a_stream_within_30_seconds(
    registry: ClockedRegistry, age: float, starts: bool
) -> None:
    """A stream within 30 s of its Stop is stopped at once; later the ID is new."""
    registry.press(KEY)
    registry.time += age
    assert registry.claim(KEY, Stream().switch) is starts


def test_stop_again_renews_the_tombstone(registry: ClockedRegistry) -> None:
    """A further Stop renews the tombstone: its 30 seconds count from the last Stop."""
    registry.press(KEY)
    registry.time += TOMBSTONE_SECONDS - 1
    registry.press(KEY)
    registry.time += TOMBSTONE_SECONDS - 1
    assert not registry.claim(KEY, Stream().switch)


def test_tombstones_are_limited_to_the_newest(registry: ClockedRegistry) -> None:
    """However many Stops come, the newest TOMBSTONES_MAX are kept."""
    for number in range(TOMBSTONES_MAX + 10):
        registry.press(StreamKey("", f"id-{number}"))
    claims = [
        registry.claim(StreamKey("", f"id-{n}"), Stream().switch)
        for n in range(TOMBSTONES_MAX + 10)
    ]
    assert claims == [True] * 10 + [False] * TOMBSTONES_MAX


def test_tombstones_expired_are_removed_by_the_next_stop(registry: ClockedRegistry) -> None:
    """An expired tombstone takes no memory once another Stop comes."""
    for number in range(100):
        registry.press(StreamKey("", f"id-{number}"))
    registry.time += TOMBSTONE_SECONDS
    registry.press(StreamKey("", "new"))
    registry.time -= TOMBSTONE_SECONDS  # `tombstones` lists those that have not expired now
    assert [stream_id for stream_id, _, _ in registry.tombstones()] == ["new"]


def test_stop_of_another_person_is_answered_as_unknown(registry: ClockedRegistry) -> None:
    """A Stop of another person's stream does not end it, before or after its start."""
    stream, other_key = Stream(), StreamKey("bert", KEY.id)
    assert registry.press(other_key) is None
    assert registry.claim(KEY, stream.switch)
    assert registry.press(other_key) is None
    assert not stream.switch.event.is_set()
    assert registry.press(KEY) == "stopped"


def test_streams_of_two_people_with_one_id_are_separate(registry: ClockedRegistry) -> None:
    """Two people may use one ID at once; each one's Stop and release concern the own stream."""
    streams = {StreamKey(owner, "a"): Stream() for owner in ("anna", "bert")}
    anna, bert = streams
    assert all(registry.claim(key, stream.switch) for key, stream in streams.items())
    assert registry.press(anna) == "stopped"
    assert not streams[bert].switch.event.is_set()
    registry.release(anna)
    assert registry.press(anna) is None
    assert registry.press(bert) == "stopped"


def test_tombstones_of_two_people_with_one_id_are_separate(registry: ClockedRegistry) -> None:
    """A tombstone stops its person's stream alone, also in a registry that inherits it."""
    registry.press(KEY)
    heir = StopRegistry()
    heir.inherit(registry.tombstones())
    for of_both in (registry, heir):
        assert of_both.claim(StreamKey("bert", KEY.id), Stream().switch)
        assert not of_both.claim(KEY, Stream().switch)


def test_stop_racing_the_start_ends_the_stream() -> None:
    """Property: either the press ended the stream or its start was refused, never both, never
    neither.
    """
    for _ in range(REPEATS):
        registry, stream = StopRegistry(), Stream()
        result, is_started = together(
            partial(registry.press, KEY), partial(registry.claim, KEY, stream.switch)
        )
        assert (result == "stopped") is (is_started is True)
        assert stream.switch.event.is_set() is (result == "stopped")


def test_concurrent_stops_end_the_stream_once() -> None:
    """Property: of concurrent Stops exactly one ended the stream, the others get finished."""
    for _ in range(REPEATS):
        registry = StopRegistry()
        registry.claim(KEY, Stream().switch)
        results = together(*[partial(registry.press, KEY)] * 3)
        assert sorted(map(str, results)) == ["finished", "finished", "stopped"]


def test_concurrent_starts_claim_the_id_once() -> None:
    """Property: of two streams that start with one ID at the same time exactly one gets it."""

    def claim(registry: StopRegistry) -> str:
        try:
            return str(registry.claim(KEY, Stream().switch))
        except StreamInUse:
            return "in use"

    for _ in range(REPEATS // 2):
        results = together(*[partial(claim, StopRegistry())] * 2)
        assert sorted(results) == ["True", "in use"]
