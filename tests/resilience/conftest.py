"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, settings


@pytest.fixture(scope="module")
def default_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with its default limits, but answers of up to 2,000,000 characters."""
    server = HaltServer(settings(shared_fake, HALT_MAX_ANSWER_CHARS=2_000_000))
    yield server
    server.close()


@pytest.fixture(scope="module")
def few_streams_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with at most 20 streams."""
    server = HaltServer(settings(shared_fake, HALT_MAX_STREAMS=20))
    yield server
    server.close()
