"""The interfaces of a store that the core calls. `halt.store` implements them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from halt.core.generation import Generation
from halt.core.stream_key import StreamKey


class Writer(Protocol):
    """Writes generations to a store asynchronously: see `halt.store.writer.StoreWriter`.

    Only `exists` and `close` wait for the store, for a limited time; no call raises its errors.
    """

    worker: str

    def start(self) -> None: ...
    def add(self, generation: Generation) -> None: ...
    def notify_end(self) -> None: ...
    def exists(self, key: StreamKey) -> bool: ...
    def is_pending(self, key: StreamKey) -> bool: ...
    def drop(self, keys: Iterable[StreamKey]) -> None: ...
    def close(self) -> bool: ...


class Replay(Protocol):
    """Reads ended generations from a store: see `halt.store.replay.Replay`."""

    def get(self, key: StreamKey) -> Generation | None: ...
    def ended_among(self, stream_ids: Sequence[str], owner: str) -> Collection[str] | None: ...
