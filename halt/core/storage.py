"""What the core needs of a store, which `halt.store.writer` and `halt.store.replay` fulfil."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from halt.core.generation import Recording


class Writer(Protocol):
    """Writes down what the generations of this process produce, behind them.

    No call but `close` waits for the store, and none raises for its sake.
    """

    worker: str  # this process's name in the store; it may change until `start`

    def start(self) -> None:
        """Start the thread now, and not with the first generation. Harmless when repeated."""

    def begin(self, recording: Recording) -> None:
        """Write this one down from now on."""

    def ended(self) -> None:
        """A generation has ended: it is written down at once."""

    def knows(self, stream_id: str) -> bool:
        """The store has a generation with this ID; False also where it does not answer in time."""

    def holds(self, stream_id: str) -> bool:
        """This one is not in the store as a whole, so its memory is needed."""

    def give_up(self, stream_ids: Iterable[str]) -> None:
        """Memory is short: these are let go of, whatever of them is in the store."""

    def close(self) -> bool:
        """Write what there is, for a time, and end the thread. False: not all was written."""


class Archive(Protocol):
    """Generations that are not in memory, by ID and requester."""

    def get(self, stream_id: str, requester: str | None) -> Recording | None:
        """One that has ended, None where there is none. Raises StoreUnavailable."""

    def over(self, stream_ids: Sequence[str], requester: str | None) -> Collection[str] | None:
        """Those of these that have ended. None: the store does not answer in time."""
