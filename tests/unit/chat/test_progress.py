"""How far an answer is: an estimate that never goes back and never claims the end."""

from __future__ import annotations

from halt.chat.progress import ANSWERS_MIN, HISTORY, MODELS_MAX, AnswerProgress


def known(*tokens: int, model: str = "m") -> AnswerProgress:
    progress = AnswerProgress()
    for each in tokens:
        progress.end("x", model, each)
    return progress


def test_nothing_is_claimed_of_a_model_that_hardly_spoke() -> None:
    """A few answers are not yet a habit."""
    progress = known(*[100] * (ANSWERS_MIN - 1))
    progress.begin("a", "m")
    assert progress.percent("a", 50) is None
    assert progress.percent("unknown", 50) is None


def test_the_lengths_length_is_the_median_of_the_last_answers() -> None:
    """One very long answer changes little, and old ones are forgotten."""
    progress = known(100, 100, 100_000)
    progress.begin("a", "m")
    assert progress.percent("a", 50) == 50
    progress = known(*[1000] * HISTORY, *[100] * HISTORY)
    progress.begin("a", "m")
    assert progress.percent("a", 50) == 50
    progress.begin("b", "another")
    assert progress.percent("b", 50) is None


def test_it_never_goes_back_and_is_never_full() -> None:
    """Also where the answer is a hundred times as long as usual, and others end meanwhile."""
    progress = known(100, 100, 100)
    progress.begin("a", "m")
    shown = []
    for tokens in range(0, 10_000, 7):
        progress.end("other", "m", 5)
        shown.append(progress.percent("a", tokens) or 0)
    assert shown == sorted(shown)
    assert shown[0] == 0
    assert 90 <= shown[-1] < 100


def test_what_is_over_is_forgotten_and_memory_is_bounded() -> None:
    """No table grows with the number of answers or of models."""
    progress = known(10, 10, 10)
    for n in range(3 * MODELS_MAX):
        progress.begin(f"s{n}", "m")
        progress.end(f"s{n}", f"m{n}", 10)
    assert progress.percent("s1", 5) is None
    assert len(progress._lengths) == MODELS_MAX
    assert progress._expected == {}
