"""Fixtures for every test: a fake upstream, a real Halt, a relay that runs."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halt.core.relay import Relay
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import EXIT_TIMEOUT, HaltServer, StartHalt, settings


def pytest_configure(config: pytest.Config) -> None:
    """What is given no folder of its own keeps its data in one of this test run's."""
    folder = tempfile.TemporaryDirectory(prefix="halt-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_DATA_HOME"] = folder.name
    os.environ["HALT_DATA"] = str(Path(folder.name) / "halt")
    os.environ["HALT_DISCOVER"] = "0"  # what runs beside the tests is none of their matter


@pytest.fixture
def start_halt() -> Iterator[StartHalt]:
    """Start Halt with settings; every one that a test started leaves at its end."""
    with contextlib.ExitStack() as stack:

        def start(upstream: FakeOpenAI | str | None = None, **more: Any) -> HaltServer:
            if upstream is None:
                env = {name: str(value) for name, value in more.items()}
            else:
                env = settings(upstream, **more)
            server = HaltServer(env)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A Ctrl-C is one, also where the tests run in the background and were told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A fake upstream of this test's own; models it does not know are `echo`."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server


@pytest.fixture(scope="session")
def shared_fake() -> Iterator[FakeOpenAI]:
    """A fake upstream for tests that do not look at its records by index."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server


@pytest.fixture(scope="session")
def halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with default settings for tests that leave nothing behind."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay that runs; at the end it has had no fault of its own."""
    faults: list[BaseException] = []
    made = Relay(faults.append)
    made.start()
    yield made
    made.close(EXIT_TIMEOUT)
    assert not made.is_running
    assert faults == []
