"""Markdown in the terminal."""

import io

import pytest
from rich.console import Console

from halt.cli.rich_screen import RichMarkdown
from halt.rendering.streaming.stream import split_blocks

#: Types of tokens that rich shows, or whose element has no mark in a terminal.
KNOWN = {
    *("text", "hardbreak", "code_inline", "image", "link_open", "link_close"),
    *("em_open", "em_close", "strong_open", "strong_close", "s_open", "s_close"),
}


def shown(source: str, width: int = 60) -> list[str]:
    """The lines that a terminal of this width shows for a text."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    for block in split_blocks(source):
        console.print(RichMarkdown(block.source))
    return [line.rstrip() for line in out.getvalue().split("\n") if line.strip()]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("- [ ] a\n- [x] b\n  - [X] c\n- d", [" ☐ a", " ☑ b", "    ☑ c", " • d"]),
        ("1. [x] a\n2. [ ] b\n3. c", [" 1 ☑ a", " 2 ☐ b", " 3 c"]),
        ("H<sub>2</sub>O, x<sup>-2</sup>, 1<sup>st</sup>", ["H₂O, x⁻², 1st"]),
        ("<kbd>Ctrl</kbd> <mark>a</mark> <u>b</u> <small>c</small> <b>d", ["Ctrl a b c <b>d"]),
        ("https://x.org/a and <https://x.org>", ["https://x.org/a and https://x.org"]),
        ("a[^1]\n\n[^1]: one\n[^2]: two", ["a[^1]", "[^1]: one", "[^2]: two"]),
        (
            "<details>\n<summary><h3>T</h3></summary>\n\na\n\nb</details>\n\nc",
            ["T", "a", "b", "c"],
        ),
        ("| a |\n|---|\n| x<br>y |", [" a", " ─", " x", " y"]),
    ],
)
def test_terminal_shows_a_readable_form(source: str, lines: list[str]) -> None:
    """Everything that the page shows in its own way has a readable form in the terminal."""
    assert [line for line in shown(source) if line.strip("─ ")] == [
        line for line in lines if line.strip("─ ")
    ]


def test_narrow_table_keeps_long_words() -> None:
    """A word that is wider than its column continues in the next line, and is not cut."""
    lines = shown(f"| a | b |\n|---|---|\n| {'x' * 40} | {'y' * 70} |", width=30)
    assert [sum(line.count(sign) for line in lines) for sign in "xy…"] == [40, 70, 0]


@pytest.mark.parametrize(
    "source",
    [
        "# a\n\nb *c* **d** ~~e~~ `f` [g](https://x.org) ![h](https://x.org) <br> $i$",
        "- a\n- [x] b\n\n1. c\n\n> d\n\n---\n\n```py\ne\n```\n\n    f\n\n| g |\n|---|\n| h |",
        "<sub>a</sub> <sup>b</sup> <kbd>c</kbd> <mark>d</mark> <u>e</u> <small>f</small> <b>g",
        "\\[\na\n\\]",
        "a[^1]\n\n[^1]: b\n\n<details><summary>c</summary>d</details>\n\n<details>",
    ],
)
def test_terminal_knows_every_token(source: str) -> None:
    """Rich shows nothing of a token of an unknown type, so the parser gives it none."""
    for token in RichMarkdown(source).parsed:
        opening = token.type.replace("_close", "_open")
        assert opening == "inline" or opening in RichMarkdown.elements, token.type
        for child in token.children or ():
            assert child.type in KNOWN or child.tag in RichMarkdown.inlines, child.type
