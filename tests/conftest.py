"""Fixtures of all tests: a fake upstream, a Halt server, a running relay."""

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
    """Set a data folder of this test run for code that is given none."""
    folder = tempfile.TemporaryDirectory(prefix="halt-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_DATA_HOME"] = folder.name
    os.environ["HALT_DATA"] = str(Path(folder.name) / "halt")
    os.environ["HALT_DISCOVER"] = "0"  # model servers on this machine do not matter here


@pytest.fixture
def start_halt() -> Iterator[StartHalt]:
    """Start Halt servers with settings; they are closed at the end of the test."""
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
    """Set Python's handler of Ctrl-C, which a background process may have been set to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A fake upstream of one test; an unknown model is `echo`."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server


@pytest.fixture(scope="session")
def shared_fake() -> Iterator[FakeOpenAI]:
    """A fake upstream for tests that do not read its records by index."""
    with FakeOpenAI(unknown_model="echo") as server:
        yield server


@pytest.fixture(scope="session")
def halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with default settings, for tests that leave no state in it."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A running relay; the fixture fails if the relay has reported a fault."""
    faults: list[BaseException] = []
    running_relay = Relay(faults.append)
    running_relay.start()
    yield running_relay
    running_relay.close(EXIT_TIMEOUT)
    assert not running_relay.is_running
    assert faults == []
