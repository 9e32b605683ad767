"""The figures of one run, and the clock they are read from."""

from __future__ import annotations

import time

import msgspec

#: The clock of every duration in Halt: never goes backwards.
now = time.monotonic

RATE_FROM = 0.02  # seconds of streaming below which a rate would say more than is known


class Metrics(msgspec.Struct, frozen=True):
    """What one run took. Times in milliseconds, rates per second.

    `tokens` is the provider's count where it reported one; otherwise the number of pieces it sent,
    which for most servers is one a token, and `tokens_estimated` says so.
    """

    ttft_ms: float | None
    duration_ms: float
    tokens: int
    tokens_estimated: bool
    tokens_per_second: float | None
    characters: int


class Meter:
    """Collects the figures of a run. Written by the thread that pumps, read by anyone."""

    __slots__ = ("characters", "chunks", "first_at", "last_at", "reported", "started_at")

    def __init__(self) -> None:
        self.started_at = now()
        self.first_at: float | None = None
        self.last_at = self.started_at  # last sign of life of the upstream
        self.chunks = 0
        self.characters = 0
        self.reported: int | None = None

    def received(self, characters: int, chunks: int) -> None:
        """Count text that has arrived just now."""
        self.last_at = now()
        if characters:
            if self.first_at is None:
                self.first_at = self.last_at
            self.characters += characters
            self.chunks += chunks

    def snapshot(self) -> Metrics:
        """The figures as of now."""
        at = now()
        first = self.first_at
        tokens = self.chunks if self.reported is None else self.reported
        streaming = 0.0 if first is None else self.last_at - first
        # The first token opens the interval, so it is not counted in the rate.
        rate = (tokens - 1) / streaming if streaming > RATE_FROM and tokens > 1 else None
        return Metrics(
            ttft_ms=None if first is None else round((first - self.started_at) * 1000, 1),
            duration_ms=round((at - self.started_at) * 1000, 1),
            tokens=tokens,
            tokens_estimated=self.reported is None,
            tokens_per_second=None if rate is None else round(rate, 1),
            characters=self.characters,
        )
