"""Pairs of HTML tags within a text."""

import pytest

from halt.rendering.markdown import render
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("H<sub>2</sub>O, x<sup>2</sup>", "H<sub>2</sub>O, x<sup>2</sup>"),
        ("<kbd>Ctrl</kbd>+<KBD>C</KBD>", "<kbd>Ctrl</kbd>+<kbd>C</kbd>"),
        ("<b>a</b> <i>b</i>", "<strong>a</strong> <em>b</em>"),
        ("<u>a</u> <ins>b</ins> <s>c</s> <del>d</del>", "<u>a</u> <u>b</u> <s>c</s> <s>d</s>"),
        ("<mark>a *b*</mark> <small>c</small>", "<mark>a <em>b</em></mark> <small>c</small>"),
        ("<b>a <i>b</i></b>", "<strong>a <em>b</em></strong>"),
        ("**a <sub>b</sub>**", "<strong>a <sub>b</sub></strong>"),
        ("<b>a\nb</b>", "<strong>a<br>\nb</strong>"),
        ("<b>a", "&lt;b&gt;a"),
        ("a</b>", "a&lt;/b&gt;"),
        ("the <b></b> tags", "the &lt;b&gt;&lt;/b&gt; tags"),
        ("<b>a</B>", "<strong>a</strong>"),
        ("<Sub>a</Sub>", "&lt;Sub&gt;a&lt;/Sub&gt;"),
        ("<b class=x>a</b>", "&lt;b class=x&gt;a&lt;/b&gt;"),
        ("<sub>a<sup>b</sub></sup>", "<sub>a&lt;sup&gt;b</sub>&lt;/sup&gt;"),
        ("*a <b>b* c</b>", "<em>a &lt;b&gt;b</em> c&lt;/b&gt;"),
        ("`<b>a</b>`", "<code>&lt;b&gt;a&lt;/b&gt;</code>"),
        (r"\<b>a\</b>", "&lt;b&gt;a&lt;/b&gt;"),
        ("<script>a</script>", "&lt;script&gt;a&lt;/script&gt;"),
    ],
)
def test_tags_in_pairs_are_elements_and_others_text(source: str, expected: str) -> None:
    """A proper pair without attributes is an element; a tag without its partner stays text."""
    assert gate(render(source)) == f"<p>{expected}</p>\n"


def test_tags_in_table_cells_are_paired_in_each_cell() -> None:
    """A pair lies within one cell."""
    rendered = gate(render("| a | b |\n|---|---|\n| x<sup>2</sup> | <b>c |\n| d</b> | e |"))
    assert "<td>x<sup>2</sup></td>" in rendered
    assert "<td>&lt;b&gt;c</td>" in rendered


def test_tags_nested_deeply_are_text() -> None:
    """A text cannot nest tags without a limit."""
    rendered = gate(render("<sub>" * 50 + "a" + "</sub>" * 50))
    assert 1 <= rendered.count("<sub>") == rendered.count("</sub>") < 20


@pytest.mark.parametrize(
    "unit",
    [
        "<sub>",
        "</sub>",
        "<sub><sup>",
        "<b>a</b>",
        "<b>*a</b>*",
        "<b><i></b></i>",
        "*<b>",
        "<sub>*a",
    ],
)
def test_tags_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)
