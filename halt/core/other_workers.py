"""Finds generations that are not in this process's memory: stored ones, other workers' ones.

A service uses it for an ID that is not in its own table. The class here reads the store at most,
and knows no other process; `halt.cluster.service` also queries the server's other workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from halt.core.generation import Generation
from halt.core.receipts import Receipt, RunningStream, Stops
from halt.core.storage import Replay
from halt.core.stream_key import StreamKey


class OtherWorkers:
    """See the module. No method raises because another process fails to answer."""

    def __init__(self, replay: Replay | None = None) -> None:
        self._replay = replay

    @property
    def worker(self) -> str:
        """This process's name among the workers, "" alone. `begin` may change it."""
        return ""

    @property
    def has_others(self) -> bool:
        """Whether other processes share the places for streams now."""
        return False

    def begin(self) -> None:
        """Answer the others from now on. Call after the fork. Raises ConfigError, OSError."""

    def get(self, key: StreamKey) -> Generation | None:
        """A generation that is not in memory here, None if unknown. Raises StoreUnavailable."""
        return None if self._replay is None else self._replay.get(key)

    def ended_among(self, stream_ids: Sequence[str], owner: str) -> Collection[str] | None:
        """The person's IDs that are known to have ended. None: the store did not answer in time."""
        return () if self._replay is None else self._replay.ended_among(stream_ids, owner)

    @contextlib.contextmanager
    def stopping(self, stops: Stops, owner: str) -> Iterator[Iterable[Receipt]]:
        """Context manager: send these Stops to the other workers, then yield their receipts.

        The workers stop the streams while the body runs; iterating the receipts waits for them.
        A stream that has not started yet is stopped by the worker where it starts.
        """
        yield ()

    @contextlib.contextmanager
    def stopping_all(self, owner: str) -> Iterator[Iterable[Receipt]]:
        """The same for all running streams of this person."""
        yield ()

    def running(self, owner: str) -> list[RunningStream]:
        """The running streams of this person in the other workers."""
        return []

    def open_streams(self) -> list[int]:
        """The number of open streams of each other worker."""
        return []

    def tick(self) -> None:
        """Periodic work. Called by the keeper's thread, so it must not block."""

    def leave(self) -> None:
        """Announce that this process will end. Called repeatedly until `close`."""

    def close(self) -> None:
        """Stop answering the others. Idempotent."""
