"""A store on SQLite for the tests of connected providers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.store.store import Store
from tests.support.stores import open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "data") as opened_store:
        yield opened_store
