"""Lists of tasks."""

import re

import pytest

from halt.rendering.markdown import render
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear

OPEN = '<input type="checkbox" disabled="" aria-label="Done"> '
DONE = '<input type="checkbox" disabled="" checked="" aria-label="Done"> '


@pytest.mark.parametrize(
    ("source", "items"),
    [
        ("- [ ] a\n- [x] b\n- [X] c", [f"{OPEN}a", f"{DONE}b", f"{DONE}c"]),
        ("* [ ] **a**\n+ [x] b", [f"{OPEN}<strong>a</strong>", f"{DONE}b"]),
        ("1. [x] a\n2. [ ] b", [f"{DONE}a", f"{OPEN}b"]),
        ("> - [ ] a", [f"{OPEN}a"]),
    ],
)
def test_task_has_a_disabled_checkbox(source: str, items: list[str]) -> None:
    """A task has a checkbox that is read as done or not, and cannot be changed."""
    rendered = gate(render(source))
    assert re.findall('<li class="task">(.*?)</li>', rendered) == items


def test_task_in_nested_and_loose_lists_has_its_checkbox_in_its_paragraph() -> None:
    """Nested tasks and those with paragraphs have the checkbox at the beginning of their text."""
    rendered = gate(render("- [ ] a\n  - [x] b\n\n- [x] c\n\n  d"))
    assert f"<p>{OPEN}a</p>" in rendered
    assert f'<li class="task">{DONE}b</li>' in rendered
    assert f"<p>{DONE}c</p>\n<p>d</p>" in rendered
    assert rendered.count("<input") == 3


@pytest.mark.parametrize(
    "source",
    ["- [] a", "- [y] a", "- [ ]a", "- [x](https://x.org)", "[ ] a", "- a [x] b", "- `[ ] a`"],
)
def test_brackets_elsewhere_are_no_task(source: str) -> None:
    """Brackets with another content, or not at the beginning of an item, are text."""
    assert "<input" not in gate(render(source))


@pytest.mark.parametrize("unit", ["- [x] a\n", "- [ ] - [x] ", "- [x] # a\n\n", "- [x] ```\n"])
def test_tasks_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(render, unit)
