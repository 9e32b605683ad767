"""A store in a database of its own, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from halt.store.store import Store
from tests.support.stores import DATABASES, Databases, open_store


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with ExitStack() as stack:
        yield Databases(tmp_path_factory.mktemp("databases"), stack)


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Store]:
    with open_store(*databases.new(request.param)) as opened_store:
        yield opened_store
