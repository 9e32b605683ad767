"""`kill -9` at random moments: of a worker, of the master, of the model's server.

`make chaos` does the same and more for as long as is wanted. TEST_SEED=... repeats the moments of an
earlier run.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.chaos.streams import (
    ALL,
    Mortal,
    OfItsOwn,
    all_closed,
    all_is_well,
    checked,
    goes_on,
    in_progress,
    newcomer,
    nothing_runs,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def chance() -> random.Random:
    """The moments of this test."""
    seed = int(os.environ.get("TEST_SEED", "0")) or secrets.randbits(32)
    print(f"TEST_SEED={seed} repeats these moments")
    return random.Random(seed)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_worker_leaves_saved_events_and_an_end(
    workers: int, fake: FakeOpenAI, tmp_path: Path, chance: random.Random
) -> None:
    """After each of five kills a reader gets the saved events and the end from any worker."""
    with contextlib.closing(Mortal(fake.base_url, tmp_path, workers)) as mortal:
        for _ in range(5):
            crowd = in_progress(mortal.client)
            crowd.wait_tokens(chance.randrange(300))
            with newcomer(mortal.client) as place:
                killed_at = mortal.kill_worker(chance)
            all_is_well(crowd, mortal.client, mortal.database, killed_at)
            page = mortal.client.get(place)
            assert page.status in {200, 404}
            assert b'data-state="running"' not in page.body
            all_closed(fake)


def test_killed_master_loses_nothing_saved(
    fake: FakeOpenAI, tmp_path: Path, chance: random.Random
) -> None:
    """After each of two kills the worker exits alone, and the next server has the saved events."""
    with contextlib.closing(Mortal(fake.base_url, tmp_path)) as mortal:
        for _ in range(2):
            crowd = in_progress(mortal.client)
            crowd.wait_tokens(chance.randrange(300))
            killed_at = mortal.kill_master()
            all_is_well(crowd, mortal.client, mortal.database, killed_at)
            all_closed(fake)


# --- the model's server ---------------------------------------------------------------------------


class Upstream(Protocol):
    """A model's server at one address, which dies and comes back."""

    base_url: str

    def kill(self) -> None:
        """All at once, in the middle of whatever it says."""

    def start(self) -> None:
        """It is there again."""

    def close(self) -> None:
        """For good."""


class InProcess:
    """One whose connections end."""

    def __init__(self) -> None:
        self._fake = FakeOpenAI().start()
        self.base_url = self._fake.base_url

    def kill(self) -> None:
        self._fake.close()

    def start(self) -> None:
        self._fake = FakeOpenAI(port=self._fake.port).start()

    close = kill


@pytest.mark.parametrize(("make", "rounds"), [(InProcess, 10), (OfItsOwn, 5)])
def test_killed_upstream_ends_its_streams(
    make: Callable[[], Upstream], rounds: int, tmp_path: Path, chance: random.Random
) -> None:
    """Readers get all that the upstream sent and the end; later requests reach the new one."""
    with contextlib.ExitStack() as stack:
        upstream = make()
        stack.callback(upstream.close)
        mortal = Mortal(upstream.base_url, tmp_path)
        stack.callback(mortal.close)
        for _ in range(rounds):
            crowd = in_progress(mortal.client, tokens=100)
            crowd.wait_tokens(chance.randrange(300))
            upstream.kill()
            upstream.start()
            for stream in crowd.streams:
                stream.join(60)
                assert not stream.is_alive(), "a reader waits for ever"
                text, numbers, _ = checked(stream.messages)
                assert ALL.startswith(text)
                assert numbers == list(range(1, len(numbers) + 1))
                whole = mortal.client.follow(stream.id, 0).to_end().seen
                assert whole == stream.messages
                if stream.place:
                    goes_on(stream, mortal.client, mortal.database, whole)
            nothing_runs(mortal.database)
