"""Places that are counted over processes; and what a process had is free when it has died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from halt.cluster.file_locks import FileLocks
from halt.core.slots import Slots, number_of
from tests.support.halt_server import ROOT
from tests.support.waiting import wait_until

#: Takes so many of three places from a file, says how many it got, and waits.
TAKER = """
import sys
from pathlib import Path
from halt.cluster.file_locks import FileLocks
from halt.core.slots import Slots
slots = Slots()
slots.share(FileLocks(Path(sys.argv[1])))
print([slots.take(3) is not None for _ in range(int(sys.argv[2]))].count(True), flush=True)
sys.stdin.read()
"""


class Taker:
    """Another process that takes places."""

    def __init__(self, path: Path, wanted: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKER, str(path), str(wanted)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.got = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_places_are_counted_over_processes_and_outlive_none(tmp_path: Path) -> None:
    """Together two processes get as many as there are; one that is killed gives back its own."""
    slots = Slots()
    slots.share(FileLocks(tmp_path / "places"))
    taker = Taker(tmp_path / "places", 2)
    try:
        assert taker.got == 2
        mine = slots.take(3)
        assert mine is not None
        assert slots.take(3) is None
        slots.give_back(mine)
        slots.give_back(mine)
        other = Taker(tmp_path / "places", 3)
        assert other.got == 1
        other.kill()
        wait_until(lambda: slots.take(3) is not None)
    finally:
        taker.kill()
    wait_until(lambda: slots.take(3) is not None)
    assert slots.take(3) is not None
    assert slots.take(3) is None


def test_free_places_are_counted_without_taking_any(tmp_path: Path) -> None:
    """Those of another process and of this one count as taken; a look leaves all as it was."""
    slots = Slots()
    slots.share(FileLocks(tmp_path / "places"))
    assert slots.are_free(3, 3)
    assert slots.take(3) is not None
    taker = Taker(tmp_path / "places", 1)
    assert slots.are_free(3, 1)
    assert not slots.are_free(3, 2)
    other = Taker(tmp_path / "places", 3)
    assert other.got == 1
    for each in (taker, other):
        each.kill()


def test_a_place_that_is_taken_anywhere_is_found(tmp_path: Path) -> None:
    """In this process and in others; the look itself takes nothing."""
    slots, alone = Slots(), Slots()
    slots.share(FileLocks(tmp_path / "places"))
    assert slots.none_taken(3)
    taker = Taker(tmp_path / "places", 1)
    assert not slots.none_taken(3)
    other = Taker(tmp_path / "places", 3)
    assert other.got == 2
    for each in (taker, other):
        each.kill()
    wait_until(lambda: slots.none_taken(3))
    for mine in (slots, alone):
        place = mine.take(3)
        assert place is not None
        assert not mine.none_taken(3)
        mine.give_back(place)
        assert mine.none_taken(3)


def test_without_a_file_they_are_this_processs_own() -> None:
    """No more than there are; each has a number of its own."""
    slots = Slots()
    taken = {slots.take(5, first=100) for _ in range(5)}
    assert taken == {100, 101, 102, 103, 104}
    assert slots.take(5, first=100) is None
    assert slots.take(5, first=200) is not None


def test_names_have_places_of_their_own() -> None:
    """Places of two names do not overlap, and fit what the system can lock."""
    one, two = number_of("one", 4), number_of("two", 4)
    assert one == number_of("one", 4)
    assert abs(one - two) >= 4
    assert max(one, two) + 4 < 2**63
