"""Result types of the generation service: receipts of Stops, running streams, health."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from halt.core.request import StreamId

#: Streams to stop: (ID, number of the last event that had been shown, None if unknown).
Stops = Sequence[tuple[str, int | None]]


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The observed result of a Stop.

    `status`: stopped (by this Stop), finished (had ended before), pending (no such stream yet; one
    that starts with this ID within 30 s ends at once). `upstream`: closed (the connection to the
    provider was open and is closed; Halt cannot observe what the model does then), closing (not
    closed within 250 ms, or left open by HALT_EXACT_USAGE), none (no connection was open, or
    its answer was complete and other runs reuse it). `note`: a sentence about what is not known;
    absent if there is none.
    """

    id: str
    status: str
    upstream: str
    elapsed_ms: float
    note: str = ""


class RunningStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stream that is running. `age` is in seconds, `started_at` in seconds since 1970."""

    id: StreamId
    state: str
    model: str
    age: float
    started_at: float
    events: int
    characters: int


class Health(msgspec.Struct, frozen=True):
    """The open streams of all workers, the number of workers, and the responding worker."""

    open_streams: int
    workers: int = 1
    worker: str = ""
