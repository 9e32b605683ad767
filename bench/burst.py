"""Requests lost in a burst of first requests to a new server."""

from __future__ import annotations

from collections.abc import Iterator

from bench.processes import fake_in_process
from bench.sizes import Sizes
from bench.table import Row, required
from tests.support.request_burst import send_bursts


def burst(sizes: Sizes) -> Iterator[Row]:
    """A row about new servers, each with requests of all kinds at once."""
    with fake_in_process() as upstream:
        outcomes = list(send_bursts(sizes.burst_starts, upstream.base_url))
    lost = [fault for _, faults in outcomes for fault in faults]
    most = max(count for count, _ in outcomes)
    yield required(
        f"{len(outcomes)} new servers x {most} requests at once: lost",
        "0",
        f"{len(lost)}" + (f" ({lost[0]})" if lost else ""),
        not lost,
        note="page, streams of every API, Stop, WebSocket, import, search, lists; a reset, a "
        "wrong status and an answer without its end count as lost",
    )
