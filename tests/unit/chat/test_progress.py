"""Progress of an answer: an estimated percentage that never decreases and stays below 100."""

from __future__ import annotations

from halt.chat.progress import ANSWERS_MIN, HISTORY, MODELS_MAX, AnswerProgress
from halt.core.stream_key import StreamKey


def key(stream_id: str) -> StreamKey:
    return StreamKey("anna", stream_id)


def progress_after(*tokens: int, model: str = "m") -> AnswerProgress:
    progress = AnswerProgress()
    for token in tokens:
        progress.end(key("x"), model, token)
    return progress


def test_progress_of_a_model_with_few_answers_is_unknown() -> None:
    """With fewer than ANSWERS_MIN answers of a model there is no percentage."""
    progress = progress_after(*[100] * (ANSWERS_MIN - 1))
    progress.begin(key("a"), "m")
    assert progress.percent(key("a"), 50) is None
    assert progress.percent(key("unknown"), 50) is None


def test_expected_length_is_the_median_of_the_last_answers() -> None:
    """The expected length is the median of a model's last HISTORY answers."""
    progress = progress_after(100, 100, 100_000)
    progress.begin(key("a"), "m")
    assert progress.percent(key("a"), 50) == 50
    progress = progress_after(*[1000] * HISTORY, *[100] * HISTORY)
    progress.begin(key("a"), "m")
    assert progress.percent(key("a"), 50) == 50
    progress.begin(key("b"), "another")
    assert progress.percent(key("b"), 50) is None


def test_progress_never_decreases_and_stays_below_100() -> None:
    """The percentage never decreases and stays below 100 for an answer of any length."""
    progress = progress_after(100, 100, 100)
    progress.begin(key("a"), "m")
    percentages = []
    for tokens in range(0, 10_000, 7):
        progress.end(key("other"), "m", 5)
        percentages.append(progress.percent(key("a"), tokens) or 0)
    assert percentages == sorted(percentages)
    assert percentages[0] == 0
    assert 90 <= percentages[-1] < 100


def test_progress_forgets_ended_answers_and_old_models() -> None:
    """Ended answers are forgotten, and the newest MODELS_MAX models are kept."""
    progress = progress_after(10, 10, 10)
    for n in range(3 * MODELS_MAX):
        progress.begin(key(f"s{n}"), "m")
        for _ in range(ANSWERS_MIN):
            progress.end(key(f"s{n}"), f"m{n}", 10)
    assert [n for n in range(3 * MODELS_MAX) if progress.percent(key(f"s{n}"), 5) is not None] == []
    accepted_numbers = [
        n for n in range(3 * MODELS_MAX) if progress.begin(key(f"t{n}"), f"m{n}") is not None
    ]
    assert accepted_numbers == list(range(2 * MODELS_MAX, 3 * MODELS_MAX))
