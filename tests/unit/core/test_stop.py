"""The stop registry: "Stop" and "start" happen in one order or the other, and both end the stream.

`Switchboard` is a registry with a clock that a test turns, and streams that count their endings.
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
    """A stream in small: the first press ends it, later ones find it ended."""

    def __init__(self, owner: str | None = None) -> None:
        self.switch = StopSwitch(self._press, owner)
        self.seen: list[int | None] = []
        self._lock = threading.Lock()

    def _press(self, seen: int | None) -> Pressed:
        assert self.switch.event.is_set()
        with self._lock:
            self.seen.append(seen)
            return "stopped" if len(self.seen) == 1 else "finished"


class Switchboard(StopRegistry):
    """A registry whose time stands still until the test lets it pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.time = 1_000.0
        monkeypatch.setattr(stop, "now", lambda: self.time)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Switchboard:
    return Switchboard(monkeypatch)


def test_a_stop_after_the_start_ends_the_stream(board: Switchboard) -> None:
    """The press reaches the stream, sets its event first, and brings what the presser had seen."""
    stream = Stream()
    assert board.claim("a", stream.switch)
    assert board.press("a", None, seen=7) == "stopped"
    assert stream.seen == [7]


def test_a_stop_before_the_start_ends_the_stream(board: Switchboard) -> None:
    """A Stop may overtake its own stream: the stream then starts only to end."""
    assert board.press("a", None) is None
    assert not board.claim("a", Stream().switch)


def test_a_second_stop_finds_it_ended(board: Switchboard) -> None:
    """Pressing twice is harmless; the second learns that it had ended before."""
    stream = Stream()
    board.claim("a", stream.switch)
    assert [board.press("a", None), board.press("a", None)] == ["stopped", "finished"]


def test_many_stops_before_the_start_are_one(board: Switchboard) -> None:
    """A tombstone stops one stream: the ID is as good as new after that."""
    for _ in range(3):
        assert board.press("a", None) is None
    assert not board.claim("a", Stream().switch)
    board.release("a")
    assert board.claim("a", Stream().switch)


@pytest.mark.parametrize("order", list(itertools.permutations(["stop", "start", "release"])))
def test_no_order_leaves_a_stream_that_a_stop_did_not_reach(
    board: Switchboard, order: tuple[str, ...]
) -> None:
    """Whatever comes first, Stop and start of one ID end the stream, unless it was over before."""
    stream, ended = Stream(), False
    for step in order:
        if step == "stop":
            ended |= board.press("a", None) == "stopped"
        elif step == "start":
            ended |= not board.claim("a", stream.switch)
        else:
            board.release("a")
    forgotten = order == ("start", "release", "stop")
    assert ended is not forgotten


def test_an_id_is_in_use_until_it_is_released(board: Switchboard) -> None:
    """A second stream with the same ID is refused, also when the first was stopped."""
    board.claim("a", Stream().switch)
    with pytest.raises(StreamInUse) as caught:
        board.claim("a", Stream().switch)
    assert caught.value.field == "id"
    board.press("a", None)
    with pytest.raises(StreamInUse):
        board.claim("a", Stream().switch)
    board.release("a")
    assert board.claim("a", Stream().switch)
    assert len(board) == 1


def test_releasing_what_is_not_there_is_harmless(board: Switchboard) -> None:
    """Forgetting a stream twice, or one that never was, changes nothing."""
    board.release("a")
    assert len(board) == 0


@pytest.mark.parametrize(
    ("age", "starts"), [(0.0, False), (TOMBSTONE_SECONDS - 0.1, False), (TOMBSTONE_SECONDS, True)]
)
def test_a_tombstone_waits_for_thirty_seconds(board: Switchboard, age: float, starts: bool) -> None:
    """A stream within 30 s of its Stop ends at once; later the ID means a new question."""
    board.press("a", None)
    board.time += age
    assert board.claim("a", Stream().switch) is starts


def test_pressing_again_renews_the_tombstone(board: Switchboard) -> None:
    """The 30 seconds count from the last Stop."""
    board.press("a", None)
    board.time += TOMBSTONE_SECONDS - 1
    board.press("a", None)
    board.time += TOMBSTONE_SECONDS - 1
    assert not board.claim("a", Stream().switch)


def test_the_number_of_tombstones_is_bounded(board: Switchboard) -> None:
    """A flood of Stops costs bounded memory; the newest are the ones that still count."""
    for number in range(TOMBSTONES_MAX + 10):
        board.press(f"id-{number}", None)
    assert len(board._tombstones) == TOMBSTONES_MAX
    assert board.claim("id-0", Stream().switch)
    assert not board.claim(f"id-{TOMBSTONES_MAX + 9}", Stream().switch)


def test_tombstones_that_are_too_old_are_removed(board: Switchboard) -> None:
    """What has expired takes no memory once another Stop comes."""
    for number in range(100):
        board.press(f"id-{number}", None)
    board.time += TOMBSTONE_SECONDS
    board.press("new", None)
    assert len(board._tombstones) == 1


@pytest.mark.parametrize(
    ("owner", "requester", "may"),
    [
        ("anna", "anna", True),
        ("anna", "bert", False),
        ("anna", None, False),
        (None, "bert", True),
        (None, None, True),
    ],
)
def test_a_stream_belongs_to_its_session(
    board: Switchboard, owner: str | None, requester: str | None, may: bool
) -> None:
    """A session's stream is stopped by that session only, in either order; a program's by all."""
    stream = Stream(owner)
    board.claim("started", stream.switch)
    assert board.press("started", requester) == ("stopped" if may else None)
    assert stream.switch.event.is_set() is may
    board.press("to-come", requester)
    assert board.claim("to-come", Stream(owner).switch) is not may


def test_a_stranger_learns_nothing_and_leaves_nothing(board: Switchboard) -> None:
    """A foreign Stop is answered as for an unknown ID, and does not stop the next stream there."""
    board.claim("a", Stream("anna").switch)
    assert board.press("a", "bert") is None
    board.release("a")
    assert board.claim("a", Stream("bert").switch)


def test_a_stranger_does_not_undo_a_stop(board: Switchboard) -> None:
    """A Stop that waits for its stream still holds after somebody else pressed the same ID."""
    board.press("a", "anna")
    board.press("a", "bert")
    assert not board.claim("a", Stream("anna").switch)


def test_stop_against_start_always_ends_it() -> None:
    """Law: of "the press ended it" and "the start found it stopped", exactly one is true."""
    for _ in range(REPEATS):
        board, stream = StopRegistry(), Stream()
        pressed, started = together(
            partial(board.press, "a", None), partial(board.claim, "a", stream.switch)
        )
        assert (pressed == "stopped") is (started is True)
        assert stream.switch.event.is_set() is (pressed == "stopped")


def test_stop_against_stop_ends_it_once() -> None:
    """Law: of many Stops at the same moment exactly one ended it, the others found it ended."""
    for _ in range(REPEATS):
        board = StopRegistry()
        board.claim("a", Stream().switch)
        results = together(*[partial(board.press, "a", None)] * 3)
        assert sorted(map(str, results)) == ["finished", "finished", "stopped"]


def test_start_against_start_takes_the_id_once() -> None:
    """Law: of two streams that want one ID at the same moment exactly one gets it."""

    def claim(board: StopRegistry) -> str:
        try:
            return str(board.claim("a", Stream().switch))
        except StreamInUse:
            return "in use"

    for _ in range(REPEATS // 2):
        results = together(*[partial(claim, StopRegistry())] * 2)
        assert sorted(results) == ["True", "in use"]
