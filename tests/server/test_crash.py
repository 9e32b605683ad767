"""`kill -9` at random moments: of a worker, of the master, of the model's server.

`make chaos` does the same and more, for any time. TEST_SEED=... repeats the moments of an earlier
run.
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
    ALL_TEXT,
    RestartableServer,
    UpstreamProcess,
    check_conversation,
    check_nothing_runs,
    check_streams,
    checked_parts,
    prompt_during_kill,
    start_streams,
    wait_upstream_closed,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def rng() -> random.Random:
    """The random moments of this test."""
    seed = int(os.environ.get("TEST_SEED", "0")) or secrets.randbits(32)
    print(f"TEST_SEED={seed} repeats these moments")
    return random.Random(seed)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_worker_leaves_saved_events_and_an_end(
    workers: int, fake: FakeOpenAI, tmp_path: Path, rng: random.Random
) -> None:
    """After each of five kills a reader gets the saved events and the end from any worker."""
    with contextlib.closing(RestartableServer(fake.base_url, tmp_path, workers)) as server:
        for _ in range(5):
            group = start_streams(server.client)
            group.wait_tokens(rng.randrange(300))
            with prompt_during_kill(server.client) as page_path:
                killed_at = server.kill_worker(rng)
            check_streams(group, server.client, server.database, killed_at)
            page = server.client.get(page_path)
            assert page.status in {200, 404}
            assert b'data-state="running"' not in page.body
            wait_upstream_closed(fake)


def test_killed_master_loses_nothing_saved(
    fake: FakeOpenAI, tmp_path: Path, rng: random.Random
) -> None:
    """After each of two kills the worker exits alone, and the next server has the saved events."""
    with contextlib.closing(RestartableServer(fake.base_url, tmp_path)) as server:
        for _ in range(2):
            group = start_streams(server.client)
            group.wait_tokens(rng.randrange(300))
            killed_at = server.kill_master()
            check_streams(group, server.client, server.database, killed_at)
            wait_upstream_closed(fake)


# --- the model's server ---------------------------------------------------------------------------


class Upstream(Protocol):
    """A model's server at one address that can be killed and started again."""

    base_url: str

    def kill(self) -> None:
        """Close all connections, also in the middle of an answer."""

    def start(self) -> None:
        """Start it again, at the same address."""

    def close(self) -> None:
        """Stop it at the end."""


class InProcess:
    """A fake in this process."""

    def __init__(self) -> None:
        self._fake = FakeOpenAI().start()
        self.base_url = self._fake.base_url

    def kill(self) -> None:
        self._fake.close()

    def start(self) -> None:
        self._fake = FakeOpenAI(port=self._fake.port).start()

    close = kill


@pytest.mark.parametrize(("make_upstream", "rounds"), [(InProcess, 10), (UpstreamProcess, 5)])
def test_killed_upstream_ends_its_streams(
    make_upstream: Callable[[], Upstream], rounds: int, tmp_path: Path, rng: random.Random
) -> None:
    """Readers get all that the upstream sent and the end; later requests reach the new one."""
    with contextlib.ExitStack() as stack:
        upstream = make_upstream()
        stack.callback(upstream.close)
        server = RestartableServer(upstream.base_url, tmp_path)
        stack.callback(server.close)
        for _ in range(rounds):
            group = start_streams(server.client, tokens=100)
            group.wait_tokens(rng.randrange(300))
            upstream.kill()
            upstream.start()
            for stream in group.streams:
                stream.join(60)
                assert not stream.is_alive(), "a reader waits for ever"
                text, numbers, _ = checked_parts(stream.messages)
                assert ALL_TEXT.startswith(text)
                assert numbers == list(range(1, len(numbers) + 1))
                replayed = server.client.follow(stream.id, 0).to_end().seen
                assert replayed == stream.messages
                if stream.path:
                    check_conversation(stream, server.client, server.database, replayed)
            check_nothing_runs(server.database)
