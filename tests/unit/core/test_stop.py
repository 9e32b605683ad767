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
from halt.errors import StreamInUse
from tests.support.races import together

REPEATS = 1_000


class Stream:
    """A minimal stream: the first press ends it, later ones get finished."""

    def __init__(self, owner: str | None = None) -> None:
        self.switch = StopSwitch(self._press, owner)
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
    assert registry.claim("a", stream.switch)
    assert registry.press("a", None, seen=7) == "stopped"
    assert stream.stops == [7]


def test_stop_before_the_start_ends_the_stream(registry: ClockedRegistry) -> None:
    """A Stop may overtake its own stream, whose start is then refused."""
    assert registry.press("a", None) is None
    assert not registry.claim("a", Stream().switch)


def test_stop_of_a_stopped_stream_is_answered_finished(registry: ClockedRegistry) -> None:
    """A second Stop is harmless and gets finished."""
    stream = Stream()
    registry.claim("a", stream.switch)
    assert [registry.press("a", None), registry.press("a", None)] == ["stopped", "finished"]


def test_stops_before_the_start_stop_one_stream(registry: ClockedRegistry) -> None:
    """Several Stops before the start stop one stream; after that the ID can be used again."""
    for _ in range(3):
        assert registry.press("a", None) is None
    assert not registry.claim("a", Stream().switch)
    registry.release("a")
    assert registry.claim("a", Stream().switch)


@pytest.mark.parametrize("order", list(itertools.permutations(["stop", "start", "release"])))
def test_stop_start_and_release_in_any_order_end_the_stream(
    registry: ClockedRegistry, order: tuple[str, ...]
) -> None:
    """In each order Stop and start end the stream, unless it was over before the Stop."""
    stream, is_ended = Stream(), False
    for step in order:
        if step == "stop":
            is_ended |= registry.press("a", None) == "stopped"
        elif step == "start":
            is_ended |= not registry.claim("a", stream.switch)
        else:
            registry.release("a")
    has_ended_before = order == ("start", "release", "stop")
    assert is_ended is not has_ended_before


def test_claim_of_an_unreleased_id_is_refused(registry: ClockedRegistry) -> None:
    """A second stream with an ID in use is refused, also if the first was stopped."""
    registry.claim("a", Stream().switch)
    with pytest.raises(StreamInUse) as error_info:
        registry.claim("a", Stream().switch)
    assert error_info.value.field == "id"
    registry.press("a", None)
    with pytest.raises(StreamInUse):
        registry.claim("a", Stream().switch)
    registry.release("a")
    assert registry.claim("a", Stream().switch)
    assert len(registry) == 1


def test_release_of_an_unknown_id_is_harmless(registry: ClockedRegistry) -> None:
    """Releasing an unknown ID changes nothing."""
    registry.release("a")
    assert len(registry) == 0


@pytest.mark.parametrize(
    ("age", "starts"), [(0.0, False), (TOMBSTONE_SECONDS - 0.1, False), (TOMBSTONE_SECONDS, True)]
)
def test_tombstone_stops_a_stream_within_30_seconds(
    registry: ClockedRegistry, age: float, starts: bool
) -> None:
    """A stream within 30 s of its Stop is stopped at once; later the ID is new."""
    registry.press("a", None)
    registry.time += age
    assert registry.claim("a", Stream().switch) is starts


def test_stop_again_renews_the_tombstone(registry: ClockedRegistry) -> None:
    """A further Stop renews the tombstone: its 30 seconds count from the last Stop."""
    registry.press("a", None)
    registry.time += TOMBSTONE_SECONDS - 1
    registry.press("a", None)
    registry.time += TOMBSTONE_SECONDS - 1
    assert not registry.claim("a", Stream().switch)


def test_tombstones_are_limited_to_the_newest(registry: ClockedRegistry) -> None:
    """However many Stops come, the newest TOMBSTONES_MAX are kept."""
    for number in range(TOMBSTONES_MAX + 10):
        registry.press(f"id-{number}", None)
    claims = [registry.claim(f"id-{n}", Stream().switch) for n in range(TOMBSTONES_MAX + 10)]
    assert claims == [True] * 10 + [False] * TOMBSTONES_MAX


def test_tombstones_expired_are_removed_by_the_next_stop(registry: ClockedRegistry) -> None:
    """An expired tombstone takes no memory once another Stop comes."""
    for number in range(100):
        registry.press(f"id-{number}", None)
    registry.time += TOMBSTONE_SECONDS
    registry.press("new", None)
    registry.time -= TOMBSTONE_SECONDS  # `tombstones` lists those that have not expired now
    assert [stream_id for stream_id, _, _ in registry.tombstones()] == ["new"]


@pytest.mark.parametrize(
    ("owner", "requester", "is_allowed"),
    [
        ("anna", "anna", True),
        ("anna", "bert", False),
        ("anna", None, False),
        (None, "bert", True),
        (None, None, True),
    ],
)
def test_stop_of_a_session_stream_works_for_its_owner_alone(
    registry: ClockedRegistry, owner: str | None, requester: str | None, is_allowed: bool
) -> None:
    """A session's stream is stopped by that session only, in either order; one without an owner by
    all."""
    stream = Stream(owner)
    registry.claim("started", stream.switch)
    assert registry.press("started", requester) == ("stopped" if is_allowed else None)
    assert stream.switch.event.is_set() is is_allowed
    registry.press("to-come", requester)
    assert registry.claim("to-come", Stream(owner).switch) is not is_allowed


def test_stop_of_a_foreign_stream_is_answered_as_unknown(registry: ClockedRegistry) -> None:
    """The foreign Stop leaves no tombstone for the next stream with that ID."""
    registry.claim("a", Stream("anna").switch)
    assert registry.press("a", "bert") is None
    registry.release("a")
    assert registry.claim("a", Stream("bert").switch)


def test_stop_by_another_session_keeps_the_owners_tombstone(registry: ClockedRegistry) -> None:
    """A Stop that waits for its stream still holds after another session's Stop of that ID."""
    registry.press("a", "anna")
    registry.press("a", "bert")
    assert not registry.claim("a", Stream("anna").switch)


def test_stop_racing_the_start_ends_the_stream() -> None:
    """Property: either the press ended the stream or its start was refused, never both, never
    neither.
    """
    for _ in range(REPEATS):
        registry, stream = StopRegistry(), Stream()
        result, is_started = together(
            partial(registry.press, "a", None), partial(registry.claim, "a", stream.switch)
        )
        assert (result == "stopped") is (is_started is True)
        assert stream.switch.event.is_set() is (result == "stopped")


def test_concurrent_stops_end_the_stream_once() -> None:
    """Property: of concurrent Stops exactly one ended the stream, the others get finished."""
    for _ in range(REPEATS):
        registry = StopRegistry()
        registry.claim("a", Stream().switch)
        results = together(*[partial(registry.press, "a", None)] * 3)
        assert sorted(map(str, results)) == ["finished", "finished", "stopped"]


def test_concurrent_starts_claim_the_id_once() -> None:
    """Property: of two streams that start with one ID at the same time exactly one gets it."""

    def claim(registry: StopRegistry) -> str:
        try:
            return str(registry.claim("a", Stream().switch))
        except StreamInUse:
            return "in use"

    for _ in range(REPEATS // 2):
        results = together(*[partial(claim, StopRegistry())] * 2)
        assert sorted(results) == ["True", "in use"]
