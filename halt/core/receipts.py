"""What a service of generations answers: receipts of Stops, lists, and how it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from halt.core.request import StreamId

#: Streams to be stopped: each ID, and the last event that was shown where it was stopped.
Stops = Sequence[tuple[str, int | None]]


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a Stop did, as far as it was seen.

    `status`: stopped (by this Stop), finished (had ended before), pending (no such stream yet; one
    that starts with this ID within 30 s ends at once). `upstream`: closed (the connection to the
    model's server was open and is closed; what the model does then is not seen), closing (not seen
    closed within RECEIPT_WAIT, or left open by HALT_EXACT_USAGE), none (no connection was open, or
    its answer was complete and it serves other runs). `note`: what could not be found out, in a
    sentence; absent where there is none.
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
    """`open_streams` of all workers, how many those are, and which one says so."""

    open_streams: int
    workers: int = 1
    worker: str = ""
