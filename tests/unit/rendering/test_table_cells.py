"""Pipes within the cells of a table."""

import re

import pytest

from halt.rendering.markdown import render
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ("| `a|b` | c |", ["a|b", "c"]),
        ("| c | `a || b` |", ["c", "a || b"]),
        ("| `a\\|b` | c |", ["a|b", "c"]),
        ("| `a|b|c|d` | `e|f` |", ["a|b|c|d", "e|f"]),
        ("| a | b | c |", ["a", "b | c"]),
        ("| $5 | $6 | c |", ["$5", "$6 | c"]),
        ("| `a | b | c |", ["`a", "b | c"]),
        ("| `a` | b | c |", ["a", "b | c"]),
        ("| `a | b` |", ["`a", "b`"]),
    ],
)
def test_pipe_in_code_is_no_border_if_the_row_has_too_many_cells(
    row: str, cells: list[str]
) -> None:
    """Code with a pipe is one cell, as long as the row has more cells than the head."""
    rendered = gate(render(f"| x | y |\n|---|---|\n{row}\n"))
    assert [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", rendered)] == cells


def test_pipe_in_a_formula_is_no_border() -> None:
    """A formula with bars is one cell."""
    rendered = gate(render("| x | y |\n|---|---|\n| $|a|$ | b |\n"))
    assert rendered.count("<td>") == 2
    assert "<td>b</td>" in rendered


@pytest.mark.parametrize("unit", ["`|", "$|", "`|$|", "`a|a|", "`|" * 50 + "\n"])
def test_rows_of_many_cells_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(lambda text: render("|x|y|\n|-|-|\n|" + text), unit)
