"""Parts of a text that are opened by their title."""

import re

import pytest

from halt.rendering.markdown import render, render_block
from halt.rendering.streaming.blocks import joined
from halt.rendering.streaming.stream import split_blocks
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


def outline(source: str) -> str:
    """The HTML without line breaks, `<p>` as a space, and details and summaries as brackets."""
    rendered = gate(render(source)).replace("\n", "")
    for tag, mark in (("<details>", "["), ("</details>", "]"), ('<details open="">', "[+")):
        rendered = rendered.replace(tag, mark)
    rendered = re.sub("<summary>(.*?)</summary>", r"{\1}", rendered)
    return " ".join(re.sub("</?p>|<br>", " ", rendered).split())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<details>\n<summary>T</summary>\n\na\n\n</details>\n\nb", "[{T} a ] b"),
        ("<details><summary>T</summary>\n\na\n</details>", "[{T} a ]"),
        ("<details open><summary>T</summary>a</details>", "[+{T} a ]"),
        ('<details open="">\n<summary>\nT\n</summary>\na\n</details>', "[+{T} a ]"),
        ("<DETAILS>\n<SUMMARY>T</SUMMARY>\na</DETAILS>", "[{T} a ]"),
        ("a\n<details>\n<summary>T</summary>\nb\n</details>\nc", "a [{T} b ] c"),
        ("<details>\na\n</details>", "[{Details} a ]"),
        (
            "<details>\n<summary>**T** `c`</summary>\n</details>",
            "[{<strong>T</strong> <code>c</code>}]",
        ),
        ("<details><summary><h3>T</h3></summary>a</details>", "[{T} a ]"),
        (
            "<details>\n<summary>T</summary>\n<details>\n<summary>U</summary>\na</details>\n"
            "</details>",
            "[{T}[{U} a ]]",
        ),
        ("<details><summary>T</summary>a</details></details>", "[{T} a&lt;/details&gt; ]"),
        (
            "- <details><summary>T</summary>\n\n  a\n\n  </details>",
            "<ul><li>[{T} a ]</li></ul>",
        ),
        (
            "<details>\n<summary>T</summary>\n\n- a\n- b\n</details>",
            "[{T}<ul><li>a</li><li>b</li></ul>]",
        ),
        (
            "> <details><summary>T</summary>\n> a\n> </details>",
            "<blockquote>[{T} a ]</blockquote>",
        ),
        (
            "<details>\n<summary>T</summary>\n\na",
            "&lt;details&gt; &lt;summary&gt;T&lt;/summary&gt; a",
        ),
        ("a\n\n</details>", "a &lt;/details&gt;"),
        ("<summary>T</summary>\n\na", "&lt;summary&gt;T&lt;/summary&gt; a"),
        (
            "<details>\n\n- a\n\n  </details>",
            "&lt;details&gt; <ul><li> a &lt;/details&gt; </li></ul>",
        ),
        ("a <details> b </details>", "a &lt;details&gt; b &lt;/details&gt;"),
        ("`<details>`\n\na\n\n`</details>`", None),
        ("<details onclick=x>\na\n</details>", "&lt;details onclick=x&gt; a &lt;/details&gt;"),
    ],
)
def test_details_are_paired_within_a_list_item_or_quote(source: str, expected: str | None) -> None:
    """A pair of tags at the beginning of lines is an element; a tag alone stays text."""
    if expected is None:
        expected = "<code>&lt;details&gt;</code> a <code>&lt;/details&gt;</code>"
    assert outline(source) == expected


def test_details_in_an_item_are_shown_while_the_list_is_written() -> None:
    """An item that is finished shows its details, as the whole text does."""
    source = "- <details>\n  <summary>T</summary>\n  a\n  </details>\n- b"
    blocks = split_blocks(source)
    assert "".join(joined(blocks, list(map(render_block, blocks)))) == render(source)


def test_details_contain_blocks_of_every_kind() -> None:
    """Code, tables and lists are rendered within details."""
    inside = "```py\n</details>\n```\n\n| a |\n|---|\n| b |\n\n1. c"
    rendered = gate(render(f"<details>\n<summary>T</summary>\n\n{inside}\n\n</details>\n\nd"))
    assert rendered == (f"<details>\n<summary>T</summary>\n{render(inside)}</details>\n<p>d</p>\n")


@pytest.mark.parametrize(
    "unit",
    [
        "<details>",
        "<details>\n",
        "</details>\n",
        "<details><summary>a</summary>\n",
        "<details>\n<summary>\n\n",
        "<summary>\n",
        "a</details>\n\n",
        "<details>a</details>\n\n",
        "- <details>\n",
        "<details>\n> a</details>\n",
    ],
)
def test_details_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)
