"""The figures of a run: what each means, how exact it is, and that anybody may look at any time."""

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
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "now", made)
    return made


# --- gaps -----------------------------------------------------------------------------------------


@given(
    gaps=st.lists(st.floats(0, 10_000), min_size=1, max_size=300),
    q=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantile_is_exact_to_seven_percent(gaps: list[float], q: float) -> None:
    """Law: whatever the durations, a quantile is the true one, to 7 percent or 0.006 ms."""
    histogram = Gaps()
    for gap in gaps:
        histogram.add(gap)
    found = histogram.quantile(q)
    # The product is rounded as the histogram does it: 0.9 * 10 may be a little more than 9.
    rank = max(1, math.ceil(q * len(gaps)))
    true = [sorted(gaps)[each] * 1000 for each in {rank - 1, max(0, rank - 2)}]
    assert found is not None
    assert any(abs(found - each) <= ERROR * each + ROUNDING for each in true)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=20))
def test_many_of_one_duration_are_counted_at_once(counted: list[tuple[float, int]]) -> None:
    """Law: counting a duration n times is the same as counting it n times over."""
    one, other = Gaps(), Gaps()
    for seconds, count in counted:
        one.add(seconds, count)
        for _ in range(count):
            other.add(seconds)
    assert [one.quantile(q / 10) for q in range(11)] == [other.quantile(q / 10) for q in range(11)]


@given(st.floats(0, 86_400), st.floats(0, 86_400))
def test_quantiles_keep_the_order_of_durations(one: float, other: float) -> None:
    """Law: a longer duration is never shown as the shorter one."""
    shown = []
    for seconds in sorted((one, other)):
        histogram = Gaps()
        histogram.add(seconds)
        shown.append(histogram.quantile(0.5) or 0.0)
    assert shown == sorted(shown)


def test_of_no_gaps_there_is_no_quantile() -> None:
    """A run of one piece has no gaps, and says so by None."""
    assert Gaps().quantile(0.5) is None


def test_a_histogram_takes_bounded_memory() -> None:
    """A day in steps that grow by a thousandth: eight buckets for each doubling, no more."""
    histogram, seconds = Gaps(), 1e-6
    while seconds < 86_400:
        histogram.add(seconds)
        seconds *= 1.001
    assert len(histogram._counts) <= 8 * math.ceil(math.log2(86_400 * 1e6))


def test_others_may_look_while_one_counts() -> None:
    """Law: a quantile that is asked for while durations are added is one of those added."""
    histogram, done = Gaps(), threading.Event()
    histogram.add(1.0)

    def add() -> None:
        for number in range(20_000):
            histogram.add(1.0 + number / 100)  # new buckets all the time
        done.set()

    def look() -> None:
        while not done.is_set():
            found = histogram.quantile(0.99)
            assert found is not None
            assert found >= 930.0

    together(add, look, look)


# --- a run's figures ------------------------------------------------------------------------------


def test_the_figures_of_a_run(clock: Clock) -> None:
    """Times from the first token on, rates without the token that opens the interval."""
    meter = Meter()
    assert meter.snapshot().ttft_ms is None
    clock.at += 0.5
    meter.received(3, 1)
    for _ in range(10):
        clock.at += 0.1
        meter.received(2, 1)
    clock.at += 2.0
    figures = meter.snapshot()
    assert (figures.ttft_ms, figures.streaming_ms, figures.duration_ms) == (500.0, 1000.0, 3500.0)
    assert (figures.tokens, figures.tokens_estimated, figures.chunks) == (11, True, 11)
    assert (figures.characters, figures.characters_per_second) == (23, 23.0)
    assert figures.tokens_per_second == 10.0
    assert figures.gap_p50_ms == pytest.approx(100, rel=ERROR)
    assert figures.gap_p99_ms == pytest.approx(100, rel=ERROR)
    assert figures.reasoning_ms is None


def test_pieces_that_come_together_have_no_gap(clock: Clock) -> None:
    """Nine of ten pieces came together with another: the median gap is nothing."""
    meter = Meter()
    for _ in range(5):
        clock.at += 1.0
        meter.received(10, 10)
    figures = meter.snapshot()
    assert (figures.chunks, figures.gap_p50_ms) == (50, 0.0)
    assert figures.gap_p99_ms == pytest.approx(1000, rel=ERROR)


def test_the_provider_s_count_goes_before_ours(clock: Clock) -> None:
    """Where usage was reported, tokens and their rate are the provider's."""
    meter = Meter()
    meter.received(1, 1)
    clock.at += 1.0
    meter.received(1, 1)
    meter.reported = 101
    figures = meter.snapshot()
    assert (figures.tokens, figures.tokens_estimated, figures.chunks) == (101, False, 2)
    assert figures.tokens_per_second == 100.0


def test_reasoning_is_measured_up_to_the_answer(clock: Clock) -> None:
    """From the first thought to the first text of the answer, or to the last thought."""
    meter = Meter()
    meter.reasoned = True
    meter.received(0, 1)
    clock.at += 2.0
    meter.received(0, 1)
    assert meter.snapshot().reasoning_ms == 2000.0
    clock.at += 1.0
    meter.received(5, 1)
    clock.at += 1.0
    meter.received(5, 1)
    figures = meter.snapshot()
    assert (figures.reasoning_ms, figures.streaming_ms) == (3000.0, 4000.0)


def test_a_sign_of_life_is_no_token(clock: Clock) -> None:
    """An empty part, or a tool at work, keeps a run alive and changes no figure."""
    meter = Meter()
    clock.at += 1.0
    meter.received(0, 0)
    assert meter.last_at == clock.at
    clock.at += 1.0
    meter.tools_ran()
    assert meter.last_at == clock.at
    assert (meter.snapshot().ttft_ms, meter.snapshot().chunks) == (None, 0)


def test_figures_never_contradict_themselves() -> None:
    """Law: whoever looks while the first tokens come sees no time below nothing."""
    for _ in range(200):
        meter = Meter()

        def receive(meter: Meter = meter) -> None:
            for _ in range(5):
                meter.received(1, 1)

        def look(meter: Meter = meter) -> None:
            for _ in range(5):
                figures = meter.snapshot()
                assert (figures.ttft_ms is None) == (figures.streaming_ms is None)
                assert (figures.streaming_ms or 0.0) >= 0.0
                assert (figures.ttft_ms or 0.0) <= figures.duration_ms + 0.1

        together(receive, look)
