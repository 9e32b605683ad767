"""Bullets below an item, as models indent them."""

import pytest

from halt.rendering.markdown import render, render_block
from halt.rendering.streaming.blocks import joined
from halt.rendering.streaming.stream import split_blocks
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear

NESTED = "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("1. a\n  - b\n2. c", NESTED),
        ("1. a\n   - b\n2. c", NESTED),
        ("1. a\n    - b\n2. c", NESTED),
        ("1. a\n\t- b\n2. c", NESTED),
        ("1) a\n  * b\n2) c", NESTED),
        ("10. a\n  - b\n11. c", NESTED.replace("<ol>", '<ol start="10">')),
        ("100.   a\n  - b", '<ol start="100"><li>a<ul><li>b</li></ul></li></ol>'),
        ("1. - a\n  - b", "<ol><li><ul><li>a</li><li>b</li></ul></li></ol>"),
        ("1. a\n2. b\n  - c", "<ol><li>a</li><li>b<ul><li>c</li></ul></li></ol>"),
        (
            "1. a\n  - b\n    - c\n  - d",
            "<ol><li>a<ul><li>b<ul><li>c</li></ul></li><li>d</li></ul></li></ol>",
        ),
        ("*   a\n  * b", "<ul><li>a<ul><li>b</li></ul></li></ul>"),
        ("*   a\n   1. b", "<ul><li>a<ol><li>b</li></ol></li></ul>"),
        ("- x\n\t- a\n\t\t- b", "<ul><li>x<ul><li>a<ul><li>b</li></ul></li></ul></li></ul>"),
        ("- a\n    - b\n        - c", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li></ul>"),
        ("- x\n  1. a\n    - b\n  2. c", f"<ul><li>x{NESTED}</li></ul>"),
        ("> 1. a\n>   - b\n> 2. c", f"<blockquote>{NESTED}</blockquote>"),
        ("1. a\n\n  - b", "<ol><li><p>a</p><ul><li>b</li></ul></li></ol>"),
        ("1. a\n   d\n  - b", "<ol><li>a<br>d<ul><li>b</li></ul></li></ol>"),
        ("1. a\n - b", "<ol><li>a</li></ol><ul><li>b</li></ul>"),
        ("  1. a\n  - b", "<ol><li>a</li></ol><ul><li>b</li></ul>"),
        ("1. a\n  2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("1. a\n  ---\n2. b", '<ol><li>a</li></ol><hr><ol start="2"><li>b</li></ol>'),
        ("1. a\n\n  b\n\n2. c", '<ol><li>a</li></ol><p>b</p><ol start="2"><li>c</li></ol>'),
    ],
)
def test_list_indented_by_two_blanks_belongs_to_the_item(source: str, expected: str) -> None:
    """A list that is indented by two blanks or more is nested, while it streams and afterwards."""
    assert gate(render(source)).replace("\n", "") == expected
    blocks = split_blocks(source)
    streamed = "".join(joined(blocks, list(map(render_block, blocks))))
    assert streamed.replace("\n", "") == expected


@pytest.mark.parametrize(
    "unit", ["1. a\n  - b\n", "1. a\n", "1. a\n  b\n", "1. 1. 1. 1. a\n    b\n", "1.  a\n\n\n"]
)
def test_nested_lists_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)
