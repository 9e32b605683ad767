"""Places counted over processes: those of a process are free when it has died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from halt.cluster.file_locks import FileLocks
from halt.core.slots import Slots, number_of
from tests.support.halt_server import ROOT
from tests.support.waiting import wait_until

#: Takes up to N of three places from a file, prints the number of places taken, and waits.
TAKING_PROGRAM = """
import sys
from pathlib import Path
from halt.cluster.file_locks import FileLocks
from halt.core.slots import Slots
slots = Slots()
slots.share(FileLocks(Path(sys.argv[1])))
print([slots.take(3) is not None for _ in range(int(sys.argv[2]))].count(True), flush=True)
sys.stdin.read()
"""


class TakingProcess:
    """Another process that takes places."""

    def __init__(self, path: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKING_PROGRAM, str(path), str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.places = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_take_counts_places_over_processes_and_frees_those_of_the_dead(tmp_path: Path) -> None:
    """Two processes get as many places as there are; a killed one's are free again."""
    slots = Slots()
    slots.share(FileLocks(tmp_path / "places"))
    process = TakingProcess(tmp_path / "places", 2)
    try:
        assert process.places == 2
        place = slots.take(3)
        assert place is not None
        assert slots.take(3) is None
        slots.give_back(place)
        slots.give_back(place)
        other_process = TakingProcess(tmp_path / "places", 3)
        assert other_process.places == 1
        other_process.kill()
        wait_until(lambda: slots.take(3) is not None)
    finally:
        process.kill()
    wait_until(lambda: slots.take(3) is not None)
    assert slots.take(3) is not None
    assert slots.take(3) is None


def test_are_free_counts_all_processes_and_takes_no_place(tmp_path: Path) -> None:
    """Places of this process and of others count as taken; the check changes nothing."""
    slots = Slots()
    slots.share(FileLocks(tmp_path / "places"))
    assert slots.are_free(3, 3)
    assert slots.take(3) is not None
    first_process = TakingProcess(tmp_path / "places", 1)
    assert slots.are_free(3, 1)
    assert not slots.are_free(3, 2)
    second_process = TakingProcess(tmp_path / "places", 3)
    assert second_process.places == 1
    for process in (first_process, second_process):
        process.kill()


def test_all_free_sees_places_of_every_process(tmp_path: Path) -> None:
    """Places of this process and of others are seen; the check takes none."""
    slots, unshared_slots = Slots(), Slots()
    slots.share(FileLocks(tmp_path / "places"))
    assert slots.all_free(3)
    first_process = TakingProcess(tmp_path / "places", 1)
    assert not slots.all_free(3)
    second_process = TakingProcess(tmp_path / "places", 3)
    assert second_process.places == 2
    for process in (first_process, second_process):
        process.kill()
    wait_until(lambda: slots.all_free(3))
    for checked_slots in (slots, unshared_slots):
        place = checked_slots.take(3)
        assert place is not None
        assert not checked_slots.all_free(3)
        checked_slots.give_back(place)
        assert checked_slots.all_free(3)


def test_take_without_a_file_counts_this_process_alone() -> None:
    """Without a file the places of this process alone are counted, each with its own number."""
    slots = Slots()
    places = {slots.take(5, first=100) for _ in range(5)}
    assert places == {100, 101, 102, 103, 104}
    assert slots.take(5, first=100) is None
    assert slots.take(5, first=200) is not None


def test_number_of_gives_names_separate_ranges() -> None:
    """Names have separate ranges of places, which fit the offsets that a file lock can have."""
    first, second = number_of("one", 4), number_of("two", 4)
    assert first == number_of("one", 4)
    assert abs(first - second) >= 4
    assert max(first, second) + 4 < 2**63
