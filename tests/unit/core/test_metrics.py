"""Metrics of a run: their meaning, their accuracy, and reads from any thread at any time."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core import metrics as module
from halt.core.metrics import Gaps, Meter
from tests.support.races import together

ROUNDING = 0.006  # milliseconds: half of a hundredth, and the microsecond that is cut off
ERROR = 0.07


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "now", clock)
    return clock


# --- gaps -----------------------------------------------------------------------------------------


@given(
    gaps=st.lists(st.floats(0, 10_000), min_size=1, max_size=300),
    q=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_gaps_quantile_is_exact_to_7_percent(gaps: list[float], q: float) -> None:
    """Property: for any durations a quantile is the true one, to 7 percent or 0.006 ms."""
    histogram = Gaps()
    for gap in gaps:
        histogram.add(gap)
    quantile = histogram.quantile(q)
    # The product is rounded as the histogram does it: 0.9 * 10 may be a little more than 9.
    rank = max(1, math.ceil(q * len(gaps)))
    exact = [sorted(gaps)[index] * 1000 for index in {rank - 1, max(0, rank - 2)}]
    assert quantile is not None
    assert any(abs(quantile - value) <= ERROR * value + ROUNDING for value in exact)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=20))
def test_gaps_add_with_a_count_equals_repeated_adds(counted_gaps: list[tuple[float, int]]) -> None:
    """Property: adding a duration with count n is the same as adding it n times."""
    counted_histogram, repeated_histogram = Gaps(), Gaps()
    for seconds, count in counted_gaps:
        counted_histogram.add(seconds, count)
        for _ in range(count):
            repeated_histogram.add(seconds)
    assert [counted_histogram.quantile(q / 10) for q in range(11)] == [
        repeated_histogram.quantile(q / 10) for q in range(11)
    ]


@given(st.floats(0, 86_400), st.floats(0, 86_400))
def test_gaps_quantile_keeps_the_order_of_durations(first: float, second: float) -> None:
    """Property: a longer duration never gets the smaller quantile."""
    quantiles = []
    for seconds in sorted((first, second)):
        histogram = Gaps()
        histogram.add(seconds)
        quantiles.append(histogram.quantile(0.5) or 0.0)
    assert quantiles == sorted(quantiles)


def test_gaps_quantile_without_gaps_is_none() -> None:
    """A run of one piece has no gaps, and its quantiles are None."""
    assert Gaps().quantile(0.5) is None


def test_gaps_memory_is_at_most_eight_buckets_per_doubling() -> None:
    """Durations up to a day, in steps of a thousandth, take at most eight buckets per doubling."""
    histogram, seconds = Gaps(), 1e-6
    while seconds < 86_400:
        histogram.add(seconds)
        seconds *= 1.001
    assert len(histogram._counts) <= 8 * math.ceil(math.log2(86_400 * 1e6))


def test_gaps_quantile_during_adds_is_one_of_the_added() -> None:
    """Property: a quantile that is computed while durations are added is one of those added."""
    histogram, has_ended = Gaps(), threading.Event()
    histogram.add(1.0)

    def add() -> None:
        for number in range(20_000):
            histogram.add(1.0 + number / 100)  # new buckets all the time
        has_ended.set()

    def read_quantiles() -> None:
        while not has_ended.is_set():
            quantile = histogram.quantile(0.99)
            assert quantile is not None
            assert quantile >= 930.0

    together(add, read_quantiles, read_quantiles)


# --- a run's figures ------------------------------------------------------------------------------


def test_snapshot_has_times_from_the_first_token_on(clock: Clock) -> None:
    """Times count from the first token, and rates leave out the token that opens the interval."""
    meter = Meter()
    assert meter.snapshot().ttft_ms is None
    clock.time += 0.5
    meter.received(3, 1)
    for _ in range(10):
        clock.time += 0.1
        meter.received(2, 1)
    clock.time += 2.0
    snapshot = meter.snapshot()
    assert (snapshot.ttft_ms, snapshot.streaming_ms, snapshot.duration_ms) == (
        500.0,
        1000.0,
        3500.0,
    )
    assert (snapshot.tokens, snapshot.tokens_estimated, snapshot.chunks) == (11, True, 11)
    assert (snapshot.characters, snapshot.characters_per_second) == (23, 23.0)
    assert snapshot.tokens_per_second == 10.0
    assert snapshot.gap_p50_ms == pytest.approx(100, rel=ERROR)
    assert snapshot.gap_p99_ms == pytest.approx(100, rel=ERROR)
    assert snapshot.reasoning_ms is None


def test_snapshot_gap_between_pieces_of_one_read_is_zero(clock: Clock) -> None:
    """If nine of ten pieces come in a read with another, the median gap is 0."""
    meter = Meter()
    for _ in range(5):
        clock.time += 1.0
        meter.received(10, 10)
    snapshot = meter.snapshot()
    assert (snapshot.chunks, snapshot.gap_p50_ms) == (50, 0.0)
    assert snapshot.gap_p99_ms == pytest.approx(1000, rel=ERROR)


def test_snapshot_has_the_reported_token_count_before_the_estimate(clock: Clock) -> None:
    """A reported usage replaces the estimate of tokens and their rate."""
    meter = Meter()
    meter.received(1, 1)
    clock.time += 1.0
    meter.received(1, 1)
    meter.reported = 101
    snapshot = meter.snapshot()
    assert (snapshot.tokens, snapshot.tokens_estimated, snapshot.chunks) == (101, False, 2)
    assert snapshot.tokens_per_second == 100.0


def test_snapshot_reasoning_time_ends_at_the_answers_first_text(clock: Clock) -> None:
    """Reasoning time is from the first thought to the answer's first text, or to the last
    thought.
    """
    meter = Meter()
    meter.reasoned = True
    meter.received(0, 1)
    clock.time += 2.0
    meter.received(0, 1)
    assert meter.snapshot().reasoning_ms == 2000.0
    clock.time += 1.0
    meter.received(5, 1)
    clock.time += 1.0
    meter.received(5, 1)
    snapshot = meter.snapshot()
    assert (snapshot.reasoning_ms, snapshot.streaming_ms) == (3000.0, 4000.0)


def test_received_without_pieces_changes_no_figure(clock: Clock) -> None:
    """An empty part, or a running tool, renews `last_at` and changes no figure."""
    meter = Meter()
    clock.time += 1.0
    meter.received(0, 0)
    assert meter.last_at == clock.time
    clock.time += 1.0
    meter.note_tool_activity()
    assert meter.last_at == clock.time
    assert (meter.snapshot().ttft_ms, meter.snapshot().chunks) == (None, 0)


def test_snapshot_during_the_first_tokens_is_consistent() -> None:
    """Property: a snapshot while the first tokens arrive has no negative time."""
    for _ in range(200):
        meter = Meter()

        def receive(meter: Meter = meter) -> None:
            for _ in range(5):
                meter.received(1, 1)

        def read_snapshots(meter: Meter = meter) -> None:
            for _ in range(5):
                snapshot = meter.snapshot()
                assert (snapshot.ttft_ms is None) == (snapshot.streaming_ms is None)
                assert (snapshot.streaming_ms or 0.0) >= 0.0
                assert (snapshot.ttft_ms or 0.0) <= snapshot.duration_ms + 0.1

        together(receive, read_snapshots)
