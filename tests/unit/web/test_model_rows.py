"""The words of the page Models on what a model can do and costs."""

from __future__ import annotations

import pytest

from halt.config.providers import ModelSettings
from halt.model_info import UNKNOWN, Abilities
from halt.web.page.model_rows import row_id, words
from halt.web.page.provider_forms import known_fields, model_form


@pytest.mark.parametrize(
    ("abilities", "text"),
    [
        (UNKNOWN, ""),
        (Abilities(context=131072, tools=True), "128k context, tools"),
        (Abilities(input_price=3.0, output_price=15.0), "$3 / $15 per million tokens"),
        (Abilities(input_price=0.0, output_price=0.0), "$0 / $0 per million tokens"),
        (Abilities(input_price=1234.5), "$1,234.50 / ? per million tokens"),
        (Abilities(output_price=0.075), "? / $0.075 per million tokens"),
        (Abilities(input_price=0.1, output_price=0.00025), "$0.10 / $0.00025 per million tokens"),
        (Abilities(images=True, cached_price=0.3), "images · $0.30 cached"),
    ],
)
def test_words_say_what_is_known(abilities: Abilities, text: str) -> None:
    """What is not known is left out, or a question mark beside a price that is."""
    assert words(abilities) == text


def test_fields_that_the_server_says_are_known() -> None:
    """A chosen value is not the server's; where both are the same it stays a choice."""
    chosen = ModelSettings(context=8192, input_price=2.0)
    merged = Abilities(context=131072, input_price=2.0, output_price=4.0)
    assert known_fields(merged, chosen) == {"context", "output_price"}
    assert known_fields(Abilities(context=8192, input_price=2.0), chosen) == frozenset()


def test_form_shows_numbers_as_they_are_typed() -> None:
    """Without exponents and needless digits."""
    chosen = ModelSettings(context=1_000_000, input_price=0.00001, cached_price=0.0)
    form = model_form(chosen, Abilities(context=1_000_000, input_price=0.00001, cached_price=0.0))
    assert (form.context, form.input_price, form.cached_price) == ("1000000", "0.00001", "0")
    assert form.output_price == form.extra_body == ""


def test_ids_of_rows_are_for_any_name() -> None:
    """Each name has an ID of its own, also one that is not valid in HTML's attributes."""
    names = ["a b", 'a"b', "a\ud800b", "ä", "a"]
    assert len({row_id(name) for name in names}) == len(names)
