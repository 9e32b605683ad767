"""Measures one run: times, tokens and rates."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from halt.clock import now

RATE_FROM = 0.02  # seconds of streaming below which a rate would be too inaccurate


class Metrics(msgspec.Struct, frozen=True):
    """The figures of one run. Times in milliseconds, rates per second.

    `ttft_ms`: from the start to the first token of any kind. `streaming_ms`: from there to the last
    token, without the time of tools and of the model's restarts after them. `reasoning_ms`: the
    part of it before the answer's own text. `tokens`: the provider's count, or else the number of
    pieces it sent, for most providers one per token; `tokens_estimated` is true then.
    `gap_p50_ms`, `gap_p99_ms`: between two pieces, accurate to 7 percent or 0.01 ms; pieces that
    arrived together have a gap of 0.
    """

    ttft_ms: float | None
    duration_ms: float
    tokens: int
    tokens_estimated: bool
    tokens_per_second: float | None
    characters: int
    chunks: int = 0
    streaming_ms: float | None = None
    reasoning_ms: float | None = None
    characters_per_second: float | None = None
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None


#: The figures of an imported answer, which was not measured.
NO_FIGURES = Metrics(None, 0.0, 0, True, None, 0)


class Gaps:
    """A histogram of durations in bounded memory: eight buckets per doubling.

    One thread adds while others read, without a lock: `quantile` works on a copy, and copying a
    dict is atomic.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # bucket -> durations in it

    def add(self, seconds: float, count: int = 1) -> None:
        """Count a duration."""
        us = int(seconds * 1e6)
        bits = us.bit_length()
        bucket = us if bits <= 3 else (bits - 3) << 3 | us >> (bits - 4) & 7
        self._counts[bucket] = self._counts.get(bucket, 0) + count

    def quantile(self, q: float) -> float | None:
        """The `q` quantile of the durations in milliseconds, None without durations."""
        counts = self._counts.copy()
        rank = q * sum(counts.values())
        for bucket in sorted(counts):
            rank -= counts[bucket]
            if rank <= 0:
                bits, eighths = bucket >> 3, bucket & 7
                us = bucket if bucket < 8 else (8 + eighths + 0.5) * 2 ** (bits - 1)
                return round(us / 1000, 2)
        return None


@dataclass(slots=True, eq=False)
class Meter:
    """Collects the figures of a run. The thread that has the run writes, any thread reads."""

    started_at: float = field(init=False)
    first_at: float | None = None  # the first token of any kind
    answer_at: float | None = None  # the first text of the answer
    token_at: float = field(init=False)  # the newest token
    last_at: float = field(init=False)  # the upstream's last sign of life
    reasoned: bool = False
    chunks: int = 0
    characters: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    reported: int | None = None
    tools_since: bool = False  # tools have run since the newest token
    away: float = 0.0  # seconds between tokens spent on tools

    def __post_init__(self) -> None:
        self.started_at = self.token_at = self.last_at = now()

    def received(self, characters: int, chunks: int) -> None:
        """Count a read at the time now: characters of the answer, pieces of any kind."""
        at = self.last_at = now()
        if not chunks:
            return
        if self.first_at is None:
            pass
        elif self.tools_since:
            self.tools_since = False
            self.away += at - self.token_at
        else:
            self.gaps.add(at - self.token_at)
        if chunks > 1:
            self.gaps.add(0.0, chunks - 1)
        self.token_at = at  # before `first_at`: no snapshot has a last token before the first
        if self.first_at is None:
            self.first_at = at
        self.chunks += chunks
        if characters:
            if self.answer_at is None:
                self.answer_at = at
            self.characters += characters

    def reclassified(self, characters: int, *, all_text: bool) -> None:
        """Subtract characters that were counted as the answer's but were reasoning."""
        self.reasoned = True
        self.characters -= characters
        if all_text:
            self.answer_at = None

    def note_tool_activity(self) -> None:
        """Note a tool's sign of life: the time to the next token does not count as streaming."""
        self.last_at = now()
        self.tools_since = True

    def snapshot(self) -> Metrics:
        """The figures as of now."""
        first = self.first_at
        at = now()  # after reading `first_at`, so it is not earlier
        tokens = self.chunks if self.reported is None else self.reported
        streaming = 0.0 if first is None else self.token_at - first - self.away
        # The first token opens the interval, so it is not counted in the rate.
        rate = (tokens - 1) / streaming if streaming > RATE_FROM and tokens > 1 else None
        characters_rate = self.characters / streaming if streaming > RATE_FROM else None
        reasoning = None
        if first is not None and self.reasoned:
            reasoning = (self.answer_at or self.token_at) - first
        return Metrics(
            ttft_ms=None if first is None else round((first - self.started_at) * 1000, 1),
            duration_ms=round((at - self.started_at) * 1000, 1),
            tokens=tokens,
            tokens_estimated=self.reported is None,
            tokens_per_second=None if rate is None else round(rate, 1),
            characters=self.characters,
            chunks=self.chunks,
            streaming_ms=None if first is None else round(streaming * 1000, 1),
            reasoning_ms=None if reasoning is None else round(reasoning * 1000, 1),
            characters_per_second=None if characters_rate is None else round(characters_rate, 1),
            gap_p50_ms=self.gaps.quantile(0.5),
            gap_p99_ms=self.gaps.quantile(0.99),
        )
