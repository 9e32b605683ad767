"""The words of the model picker for what a model can do."""

from __future__ import annotations

import pytest

from halt.model_info import Abilities, ability_words


@pytest.mark.parametrize(
    ("abilities", "words"),
    [
        (Abilities(), ""),
        (Abilities(images=False, tools=False, thinking=False), ""),
        (Abilities(context=131072, images=True), "128k context, images"),
        (Abilities(context=128_000, tools=True, thinking=True), "128k context, tools, thinking"),
        (Abilities(context=200_000), "200k context"),
        (Abilities(context=40960), "40k context"),
        (Abilities(context=1_048_576), "1M context"),
        (Abilities(context=1_000_000), "1M context"),
        (Abilities(context=512), "512 context"),
    ],
)
def test_ability_words_name_only_what_is_known(abilities: Abilities, words: str) -> None:
    """The context is in the form that people use; what a model cannot do is not listed."""
    assert ability_words(abilities) == words
