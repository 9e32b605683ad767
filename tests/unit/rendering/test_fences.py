"""Fences of code that models write differently from CommonMark, while they stream and as a whole."""

from __future__ import annotations

import html
import re

import pytest

from halt.rendering import markdown
from halt.rendering.plain import plain
from halt.rendering.streaming.stream import split_blocks
from tests.support.linear_time import check_linear
from tests.unit.rendering.page import page_of, render, streamed


def codes(rendered: str) -> list[str]:
    """The text of each code block."""
    bodies = re.findall("<pre[^>]*><code[^>]*>(.*?)</code>", rendered, re.DOTALL)
    return [html.unescape(re.sub("<.*?>", "", body)) for body in bodies]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("```markdown\n# T\n```py\nx\n```\nb\n```\nafter", "# T\n```py\nx\n```\nb\n"),
        ("```md\n```md\n```js\n```\n```\n```\nafter", "```md\n```js\n```\n```\n"),
        ("~~~mdx\n~~~py\n~~~\n~~~\nafter", "~~~py\n~~~\n"),
        ("```markdown\n````py\n```\n````\n```\nafter", "````py\n```\n````\n"),
        ("````markdown\n```py\nx\n```\n````\nafter", "```py\nx\n```\n"),
        ("````markdown\n```py\nx\n````\nafter", "```py\nx\n"),
        ("```markdown\n``` a`b\n```\nafter", "``` a`b\n"),
        ("```text\n```py\n```\nafter", "```py\n"),
        ("```README.md\n```py\n```\n```\nafter", "```py\n```\n"),
        ("```markdown:docs/a.md\n```py\n```\n```\nafter", "```py\n```\n"),
    ],
)
def test_fence_in_a_markdown_fence_does_not_end_it(source: str, code: str) -> None:
    """A fence with a language in a ```markdown fence is part of its code."""
    for rendered in (render(source), streamed(source), plain(source)):
        assert codes(rendered) == [code]
        assert rendered.endswith("<p>after</p>\n")
    opened = page_of(*source[: source.rindex("\n")])
    assert (opened.form, html.unescape(opened.tail)) == ("code", code)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("1. a\n   ```sh\n   ls\n```\n2. b", "ls\n"),
        ("1. a\n   ```sh\nls\n- x\n   ```\n2. b", "ls\n- x\n"),
        ("- a\n  - b\n\n    ~~~\n    c\n\n  ~~~\n- d", "c\n\n"),
        ("- ```md\n  ```py\n  x\n  ```\n  ```\n- b", "```py\nx\n```\n"),
    ],
)
def test_fence_in_an_item_ends_at_its_mark_however_indented(source: str, code: str) -> None:
    """A fence in an item ends at its closing mark, and the list goes on."""
    for rendered in (render(source), streamed(source)):
        assert codes(rendered) == [code]
        assert rendered.count("</li>\n<li>") == 1


def test_fence_in_a_quote_ends_with_the_quote() -> None:
    """A line without the quote's mark ends a fence in the quote."""
    rendered = render("> ```\n> a\nb")
    assert codes(rendered) == ["a\n"]
    assert rendered.endswith("<p>b</p>\n")


def test_text_before_a_fences_mark_keeps_it_text() -> None:
    """Backticks behind text open no fence."""
    assert codes(render("Here: ```python\ncode")) == []


@pytest.mark.parametrize(
    "unit", ["```md\n", "```py\n```\n", "- ```\n", "- ```md\n  ```a\n", "````a\n```\n"]
)
def test_fences_take_linear_time(unit: str) -> None:
    """Fences that are opened again and again take time in proportion to the text."""

    def render_and_split(text: str) -> None:
        markdown.render(f"```markdown\n{text}")
        split_blocks(f"```markdown\n{text}")

    check_linear(render_and_split, unit)


def test_render_empty_fences_are_not_shown() -> None:
    """A fence without a line of code has no box: thousands of them would hold up a browser."""
    assert render("a\n\n```\n```\n\nb") == "<p>a</p>\n<p>b</p>\n"
    assert plain("```\n" * 1_000) == ""
