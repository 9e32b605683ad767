"""What the core needs of a store. `halt.store.writer` and `halt.store.replay` fulfil it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from halt.core.generation import Generation


class Writer(Protocol):
    """Writes down what generations produce, behind them: see `halt.store.writer.StoreWriter`.

    No call but `close` waits for the store, and none raises for its sake.
    """

    worker: str

    def start(self) -> None: ...
    def add(self, recording: Generation) -> None: ...
    def notify_end(self) -> None: ...
    def exists(self, stream_id: str) -> bool: ...
    def is_pending(self, stream_id: str) -> bool: ...
    def drop(self, stream_ids: Iterable[str]) -> None: ...
    def close(self) -> bool: ...


class Replay(Protocol):
    """Generations that have ended: see `halt.store.replay.Replay`."""

    def get(self, stream_id: str, requester: str | None) -> Generation | None: ...
    def ended_among(
        self, stream_ids: Sequence[str], requester: str | None
    ) -> Collection[str] | None: ...
