"""What is not in this process's memory: generations that are over, and those of other processes.

A service asks it where it does not find a generation itself. This one reads the store at most, and
knows of no other process; `halt.cluster.service` asks the other workers of a server too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from halt.core.generation import Generation
from halt.core.receipts import Receipt, RunningStream, Stops
from halt.core.storage import Replay


class Elsewhere:
    """See the module. The methods raise nothing for the sake of another process."""

    def __init__(self, replay: Replay | None = None) -> None:
        self._replay = replay

    @property
    def worker(self) -> str:
        """This process's name among the others; it may change in `begin`."""
        return ""

    @property
    def has_others(self) -> bool:
        """Whether there are other processes now, which share the places for streams."""
        return False

    def begin(self) -> None:
        """Be there for the others. To be called after the fork. Raises ConfigError, OSError."""

    def get(self, stream_id: str, requester: str | None) -> Generation | None:
        """A generation that is not in memory here. Raises StoreUnavailable."""
        return None if self._replay is None else self._replay.get(stream_id, requester)

    def over(self, stream_ids: Sequence[str], requester: str | None) -> Collection[str] | None:
        """Those that are known to have ended. None: the store does not answer in time."""
        return () if self._replay is None else self._replay.over(stream_ids, requester)

    @contextlib.contextmanager
    def stopping(self, stops: Stops, requester: str | None) -> Iterator[Iterable[Receipt]]:
        """Have the others stop these: they are told on entry, what they have stopped is read
        inside. One that is nowhere yet is stopped by each of them when it starts there."""
        yield ()

    @contextlib.contextmanager
    def stopping_all(self, owner: str | None) -> Iterator[Iterable[Receipt]]:
        """The same, of all that this owner has running."""
        yield ()

    def running(self, owner: str | None) -> list[RunningStream]:
        """What this owner has running in the others."""
        return []

    def open_streams(self) -> list[int]:
        """How many streams each of the others has."""
        return []

    def tick(self) -> None:
        """Called every now and then by a thread that must not wait."""

    def leave(self) -> None:
        """This process is to end. Called again and again until `close`."""

    def close(self) -> None:
        """Answer the others no more. Harmless when repeated."""
