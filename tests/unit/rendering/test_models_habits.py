"""Lists, tables, stars and indentation as models write them, where CommonMark means something else."""

from __future__ import annotations

import re

import pytest

from halt.rendering.grammar import answer_parser
from halt.rendering.grammar.indents import INDENT_MAX
from halt.rendering.markdown import render
from tests.support.linear_time import check_linear


def rows_of(markup: str) -> list[list[str]]:
    """The cells of each row of a table, and nothing that stands below it."""
    rows = markup.partition("</table>")[0].split("<tr>")[1:]
    return [re.findall("<t[hd][^>]*>(.*?)</t", row) for row in rows]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("- a\nb", "<ul><li>a</li></ul><p>b</p>"),
        ("1. a\n2. b\nc\nd", "<ol><li>a</li><li>b</li></ol><p>c<br>d</p>"),
        ("- a\n  - b\nc", "<ul><li>a<ul><li>b</li></ul></li></ul><p>c</p>"),
        ("- a\n b", "<ul><li>a<br>b</li></ul>"),
        ("1. a\n  b", "<ol><li>a<br>b</li></ol>"),
        ("> - a\n> b", "<blockquote><ul><li>a</li></ul><p>b</p></blockquote>"),
    ],
)
def test_render_line_below_an_item_ends_the_list(source: str, expected: str) -> None:
    """A line that is not indented is a paragraph below the list; an indented one is in the item."""
    rendered = render(source).replace(' dir="auto"', "").replace("\n", "")
    assert rendered == expected


@pytest.mark.parametrize(
    "separator", ["|---|---|", "|---|", "---|---", "|:--|:-:|--:|", "| --- | --- | --- | --- |"]
)
def test_render_table_with_a_wrong_separator_is_a_table(separator: str) -> None:
    """A separator with too few or too many cells makes a table with all cells of its head."""
    rows = rows_of(render(f"| a | b | c |\n{separator}\n| 1 | 2 | 3 |\ntext"))
    assert [[cell for cell in row if cell] for row in rows] == [["a", "b", "c"], ["1", "2", "3"]]


@pytest.mark.parametrize("source", ["a | b\n---", "a | b\n- | c", "a b\n|---|---|", "a|b\n\n|-|"])
def test_render_lines_that_are_no_table_stay_text(source: str) -> None:
    """A heading, an item and a lone separator make no table."""
    assert "<table" not in render(source)


def test_render_row_with_too_many_cells_keeps_them() -> None:
    """Cells beyond the head's are in the last cell; formatting around their pipe works."""
    rendered = render("| a | b |\n|---|---|\n| 1 | 2 | 3 | *4*\n| `x | y` | z |\n5 | 6 |")
    first, second, third = rows_of(rendered)[1:]
    assert first == ["1", "2 | 3 | <em>4</em>"]
    assert second == ["<code>x | y</code>", "z"]
    assert third == ["5", "6"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("<ul><li>a</li><li>*b*</li></ul>", "\u2022 a<br>\u2022 <em>b</em>"),
        ("do: <br> <ol> <li>a</li> <li>b</li> </ol>", "do:<br>1. a<br>2. b"),
        ("`<li>`", "<code>&lt;li&gt;</code>"),
    ],
)
def test_render_html_list_in_a_cell_is_lines(cell: str, expected: str) -> None:
    """The items of a list that a cell has as HTML are lines with bullets or numbers."""
    assert rows_of(render(f"| a |\n|---|\n| {cell} |"))[1] == [expected]


def test_render_line_below_a_table_is_a_paragraph() -> None:
    """A line without a pipe ends the table."""
    rendered = render("| a |\n|---|\n| 1 |\nSo it is 1.\nGood.")
    assert rows_of(rendered) == [["a"], ["1"]]
    assert rendered.endswith("<p>So it is 1.<br>\nGood.</p>\n")


@pytest.mark.parametrize(
    ("drawing", "is_code"),
    [
        ("+---+---+\n| a | b |\n+---+---+", True),
        (
            "\u250c\u2500\u2500\u252c\u2500\u2510\n\u2502a \u2502b\u2502\n\u2514\u2500\u2500\u2534\u2500\u2518",
            True,
        ),
        ("+---+\n| a |", False),
        ("+--- a ---+\n| b |\n+---+", False),
    ],
)
def test_render_table_drawn_with_characters_is_code(drawing: str, is_code: bool) -> None:
    """Its columns stay aligned; the lines around it are paragraphs."""
    rendered = render(f"Prices:\n{drawing}\nend")
    assert rendered.startswith("<p>Prices:")
    assert (f">{drawing}\n</code>" in rendered) is is_code
    assert rendered.endswith("<p>end</p>\n") is is_code


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a\n  b\n   c", "a<br>\n&nbsp;&nbsp;b<br>\n&nbsp;&nbsp;&nbsp;c"),
        ("a\n b", "a<br>\nb"),
        ("a\n\tb", "a<br>\n&nbsp;&nbsp;&nbsp;&nbsp;b"),
        ("a\n" + " " * 99 + "b", "a<br>\n" + "&nbsp;" * INDENT_MAX + "b"),
    ],
)
def test_render_indented_lines_of_a_paragraph_keep_their_indentation(
    source: str, expected: str
) -> None:
    """Two blanks or more at a line's beginning are shown, as while the text streams."""
    assert render(source) == f"<p>{expected}</p>\n"


def test_render_line_indented_as_its_item_has_no_blanks() -> None:
    """The indentation that makes a line part of a list's item is not shown."""
    assert "&nbsp;" not in render("1. a\n   b\n- c\n  d\n\n  e\n> f\n> g")


@pytest.mark.parametrize("text", ["3*4*5 = 60", "2**10 and 3**4", "f***ing p*ssw*rd", "a*b*c"])
def test_render_stars_inside_words_and_numbers_stay(text: str) -> None:
    """Stars between two digits, and single ones inside a word, are text."""
    assert render(text) == f"<p>{text}</p>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("__init__ and __main__.py", "__init__ and __main__.py"),
        ("in __name__(), __all__", "in __name__(), __all__"),
        ("*.py or src/**/*.ts, *.d.ts", "*.py or src/**/*.ts, *.d.ts"),
        ("$_, @_ and `$_`\u3001$_", "$_, @_ and <code>$_</code>\u3001$_"),
        ("*.env* *.NET is* it", "<em>.env</em> *.NET is* it"),
        ("__bold__ __initial__ a", "<strong>bold</strong> <strong>initial</strong> a"),
    ],
)
def test_render_names_with_marks_stay(source: str, expected: str) -> None:
    """Names of Python and of groups of files keep their marks; other words are bold or italic."""
    assert render(source) == f"<p>{expected}</p>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("**R**andom", "<strong>R</strong>andom"),
        ("e**X**tensible", "e<strong>X</strong>tensible"),
        ("*a*b", "<em>a</em>b"),
    ],
)
def test_render_bold_letters_of_a_word_are_bold(source: str, expected: str) -> None:
    """`**` inside a word marks its letters."""
    assert render(source) == f"<p>{expected}</p>\n"


@pytest.mark.parametrize(
    "unit",
    [
        "|a|b|\n|-|\n",
        "|a|\n|-|-|-|-|-|-|-|-|-|-|-|-|\n- |\n",
        "a|b\n|-|\n\n",
        "|a|b|\n|-|-|\n" + "|1|2" * 20 + "\n",
        "+---+\n| a\n",
        "+---+\n| a\n+---+\n",
        "- a\nb\n",
        "  - a\n b\n",
        "> - a\nb|c\n|-|\n",
        "1*2**3***4",
        "$ a=",
        "$ a b= $ ",
        "$" + " " * 50,
    ],
)
def test_render_hostile_lists_and_tables_takes_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)


@pytest.mark.parametrize(
    ("source", "formulas"),
    [
        ("the area $ A = \\pi r^2 $, where $ r $ is", ["$ A = \\pi r^2 $", "$ r $"]),
        ("$ x = 3 $ and $ n > 5 $", ["$ x = 3 $", "$ n > 5 $"]),
        ("$ x = 5 \\text{ if and only if } y $", ["$ x = 5 \\text{ if and only if } y $"]),
        ("from $ 5 to $ 10, 3 $ = 4 EUR, $ 100 = $ 80", []),
        ("$ foo_bar and baz $, $ cd /tmp && ls $, $ a=1; echo $a", []),
        (r"\(ABCD\), \(abc\), \(\text{area}\)", [r"\(ABCD\)", r"\(abc\)", r"\(\text{area}\)"]),
        ("as \\(\u00e9chapp\u00e9\\), \\(see the note\\)", []),
        ("$ r$ $r $ $ $ $ =2 $", []),
    ],
)
def test_formulas_in_unusual_marks_are_found(source: str, formulas: list[str]) -> None:
    """Between `$ ` and ` $`, a letter or a text with a sign of TeX is a formula; words in brackets are not."""
    _, inline, _ = answer_parser().parse(source)
    tokens = inline.children or []
    assert [token.content for token in tokens if token.type == "formula"] == formulas


def test_render_link_to_nowhere_is_its_text() -> None:
    """A link without an address is not drawn as one."""
    rendered = render("[*a*]() [![b](https://c.d/e)]() [f](https://g.h)")
    assert rendered.count("<a ") == 2
    assert rendered.startswith("<p><em>a</em> <a ")
