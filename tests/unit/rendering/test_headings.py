"""Headings and rules as models write them, and bold text next to letters."""

import pytest

from halt.rendering.markdown import render, render_block
from halt.rendering.streaming.blocks import joined
from halt.rendering.streaming.stream import split_blocks
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("a\nb\n-----\nc", "<p>a<br>b</p><hr><p>c</p>"),
        ("Title\n-----\na", "<h2>Title</h2><p>a</p>"),
        ("Title\n===\na", "<h1>Title</h1><p>a</p>"),
        ("a\n=\nb", "<p>a<br>=</p><p>b</p>"),
        ("a\n-\n\nb", "<p>a<br>-</p><p>b</p>"),
        ("- a\n  ---\n- b", "<ul><li>a<hr></li><li>b</li></ul>"),
        ("##Title\na", "<h2>Title</h2><p>a</p>"),
        ("a\n###**T**", "<p>a</p><h3><strong>T</strong></h3>"),
        ("##\u6807\u9898 ##", "<h2>\u6807\u9898</h2>"),
        ("#tag #12", "<p>#tag #12</p>"),
        ("##!a ####### b", "<p>##!a ####### b</p>"),
    ],
)
def test_heading_and_rule_are_what_models_mean(source: str, expected: str) -> None:
    """`---` below a paragraph is a rule, `##Title` a heading, while it streams and afterwards."""
    assert gate(render(source)).replace("\n", "") == expected
    blocks = split_blocks(source)
    streamed = "".join(joined(blocks, list(map(render_block, blocks))))
    assert streamed.replace("\n", "") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("**Note:**text", "<strong>Note:</strong>text"),
        ('a**"b"**c', 'a<strong>"b"</strong>c'),
        ('**"a"**b', '<strong>"a"</strong>b'),
        (
            "**\u201ca\u201d**b**\u201cc\u201d**",
            "<strong>\u201ca\u201d</strong>b<strong>\u201cc\u201d</strong>",
        ),
        ("a:**b** c:**d**", "a:<strong>b</strong> c:<strong>d</strong>"),
        ("(**a**)(**b**)", "(<strong>a</strong>)(<strong>b</strong>)"),
        ("`a`**b**", "<code>a</code><strong>b</strong>"),
        ("**a**/**b**", "<strong>a</strong>/<strong>b</strong>"),
        ("2**(n+1) and 3**(m)", "2**(n+1) and 3**(m)"),
        ("**a (**b", "**a (**b"),
    ],
)
def test_bold_ends_between_a_mark_and_a_letter(source: str, expected: str) -> None:
    """`**` after a punctuation mark closes bold text, also right before a letter."""
    assert gate(render(source)) == f"<p>{expected}</p>\n"


@pytest.mark.parametrize("unit", ["##a\n", "a\n---\n", "a\n-\n", "##", "a:**b", "**a:"])
def test_headings_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)
