"""The direction of each block."""

import re

import pytest

from halt.rendering.markdown import render
from tests.support.answer_html import gate

ALEF, ARABIC = "\u05d0", "\u0627"


@pytest.mark.parametrize(
    ("source", "opening_tags"),
    [
        (f"{ALEF}\n\nb", ['<p dir="auto">', '<p dir="auto">']),
        (f"# {ARABIC}", ['<h1 dir="auto">']),
        (f"- {ALEF}\n- b", ['<ul dir="rtl">', '<li dir="rtl">', '<li dir="ltr">']),
        (f"1. a\n2. {ALEF}", ['<ol dir="ltr">', '<li dir="ltr">', '<li dir="rtl">']),
        (f"> 1. {ALEF}", ['<blockquote dir="rtl">', '<ol dir="rtl">', '<li dir="rtl">']),
        (f"> a\n\n{ALEF}", ['<blockquote dir="ltr">', '<p dir="auto">', '<p dir="auto">']),
        (f"1) 2\n2) {ALEF}", ['<ol dir="rtl">', '<li dir="rtl">', '<li dir="rtl">']),
    ],
)
def test_block_follows_its_first_letter(source: str, opening_tags: list[str]) -> None:
    """A text takes the direction of its first letter, a list or quote that of its first text."""
    assert re.findall("<[a-z][^>]*>", gate(render(source))) == opening_tags


def test_table_runs_in_the_direction_of_its_head() -> None:
    """The box and the columns of a table follow its first cell; each cell follows its own text."""
    rendered = gate(render(f"| {ALEF} | b |\n|---|---|\n| c | d |"))
    assert '<div class="table" tabindex="0" dir="rtl"><table>' in rendered
    assert rendered.count('dir="auto"') == 4


def test_text_without_right_to_left_letters_has_no_directions() -> None:
    """A text in other scripts has no attributes for directions."""
    assert "dir=" not in render("# a\n\n- b\n\n> c 中文\n\n| d |\n|---|\n| e |")
