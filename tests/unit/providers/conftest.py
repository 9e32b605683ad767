"""Fixtures for the tests of providers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halt.providers import embedded_model
from tests.support.embedded_master import Master


@pytest.fixture(scope="module")
def installed() -> None:
    """Fails, and does not skip, if the embedded model cannot run."""
    assert embedded_model.unavailable() is None


@pytest.fixture(scope="module")
def running(installed: None) -> Iterator[Master]:
    """A master with a model that is ready; tests may not end either."""
    master = Master()
    master.wait_until_ready()
    yield master
    master.end()
