"""How far an answer is: an estimate that never goes back and never claims the end."""

from __future__ import annotations

from halt.chat.progress import ENOUGH, HISTORY, MODELS_MAX, Lengths


def known(*tokens: int, model: str = "m") -> Lengths:
    lengths = Lengths()
    for each in tokens:
        lengths.end("x", model, each)
    return lengths


def test_nothing_is_claimed_of_a_model_that_hardly_spoke() -> None:
    """A few answers are not yet a habit."""
    lengths = known(*[100] * (ENOUGH - 1))
    lengths.begin("a", "m")
    assert lengths.percent("a", 50) is None
    assert lengths.percent("unknown", 50) is None


def test_the_usual_length_is_the_median_of_the_last_answers() -> None:
    """One very long answer changes little, and old ones are forgotten."""
    lengths = known(100, 100, 100_000)
    lengths.begin("a", "m")
    assert lengths.percent("a", 50) == 50
    lengths = known(*[1000] * HISTORY, *[100] * HISTORY)
    lengths.begin("a", "m")
    assert lengths.percent("a", 50) == 50
    lengths.begin("b", "another")
    assert lengths.percent("b", 50) is None


def test_the_token_limit_is_an_end_too() -> None:
    """Where it comes before the usual length, and where no length is usual yet."""
    lengths = known(1000, 1000, 1000)
    lengths.begin("a", "m", max_tokens=100)
    lengths.begin("b", "another", max_tokens=100)
    lengths.begin("c", "m", max_tokens=100_000)
    assert [lengths.percent(each, 50) for each in "abc"] == [50, 50, 5]


def test_it_never_goes_back_and_is_never_full() -> None:
    """Also where the answer is a hundred times as long as usual, and others end meanwhile."""
    lengths = known(100, 100, 100)
    lengths.begin("a", "m")
    shown = []
    for tokens in range(0, 10_000, 7):
        lengths.end("other", "m", 5)
        shown.append(lengths.percent("a", tokens) or 0)
    assert shown == sorted(shown)
    assert shown[0] == 0
    assert 90 <= shown[-1] < 100


def test_what_is_over_is_forgotten_and_memory_is_bounded() -> None:
    """No table grows with the number of answers or of models."""
    lengths = known()
    for n in range(3 * MODELS_MAX):
        lengths.begin(f"s{n}", f"m{n}", 10)
        lengths.end(f"s{n}", f"m{n}", 10)
    assert lengths.percent("s1", 5) is None
    assert len(lengths._usual) == MODELS_MAX
    assert lengths._expected == {}
