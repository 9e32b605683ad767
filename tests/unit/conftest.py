"""Fixtures for unit tests of several packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_workers import StartWorker, Worker


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker on each call, all with `tmp_path` as their data folder."""
    workers: list[Worker] = []

    def start(**settings: Any) -> Worker:
        workers.append(Worker(tmp_path, **settings))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
