"""The provisional HTML of an open block: emphasis and code as they come, in closed elements."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halt.rendering.streaming.provisional import CODE_EDGE, STYLED_MAX, Provisional
from tests.support.linear_time import check_linear
from tests.support.open_tail import merged, text_of_tail


def shown(*pieces: str) -> str:
    """The HTML after these pieces."""
    provisional = Provisional()
    return merged("".join(map(provisional.feed, pieces))).replace(CODE_EDGE, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello **wor", "hello <strong>wor</strong>"),
        ("**a** *b* ~~c~~ `d`", "<strong>a</strong> <em>b</em> <s>c</s> <code>d</code>"),
        ("***a*** b", "<strong><em>a</em></strong> b"),
        ("**a *b* c** d", "<strong>a </strong><em><strong>b</strong></em><strong> c</strong> d"),
        ("_a_ b", "<em>a</em> b"),
        ("``a`b`` c", "<code>a`b</code> c"),
        ("`**a**`, b", "<code>**a**</code>, b"),
        ("**\u6ce8\u610f\uff1a**\u8bf7", "<strong>\u6ce8\u610f\uff1a</strong>\u8bf7"),
        # Marks that are text:
        ("5 * 3 and 2*3*4", "5 * 3 and 2*3*4"),
        ("snake_case_x __init__ ~a~ ****b", "snake_case_x __init__ ~a~ ****b"),
        (r"\*a\* \`b", "*a* `b"),
        ("a * b ** c", "a * b ** c"),
        # What is not closed ends with its line:
        ("a `b\n*c\nd", "a <code>b</code>\n<em>c</em>\nd"),
        # Formulas, money, links and tags:
        (r"\(a_1 **b\) **c**.", r"\(a_1 **b\) <strong>c</strong>."),
        ("$a*b*c$ *d*.", "$a*b*c$ <em>d</em>."),
        ("$$a\n*b*\n$$ *c*.", "$$a\n*b*\n$$ <em>c</em>."),
        ("$5 and **$10** *x*.", "$5 and <strong>$10</strong> <em>x</em>."),
        ("$HOME and **x**.", "$HOME and <strong>x</strong>."),
        ("[a](b) <b>", "[a](b) &lt;b&gt;"),
        # Marks that are held:
        ("a *", "a "),
        ("a **b*", "a <strong>b</strong>"),
        ("a `b``", "a <code>b</code>"),
        ("a \\", "a "),
    ],
)
def test_provisional_text_has_the_elements_of_its_marks(text: str, expected: str) -> None:
    """A mark that can open emphasis or code does so at once; a doubtful one is held."""
    assert shown(text) == expected
    assert shown(*text) == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"*_`~$\\ \n.a1<", "**", "``", "$$", "\\(", "\\)", "word", "\u6587"]),
        max_size=40,
    ).map("".join),
    st.integers(1, 9),
)
def test_provisional_html_depends_on_the_text_alone(text: str, size: int) -> None:
    """Property: its pieces do not matter, its elements are closed, and no word is lost."""
    whole = shown(text)
    assert shown(*[text[at : at + size] for at in range(0, len(text), size)]) == whole
    marks = r"[*_`~$\\]"
    assert re.sub(marks, "", html.unescape(text_of_tail(whole))) == re.sub(marks, "", text)


def test_elements_of_an_open_block_are_bounded() -> None:
    """Beyond STYLED_MAX characters the text has no elements."""
    text = "**a** " * STYLED_MAX
    assert shown(text).count("<strong>") < STYLED_MAX
    assert shown(text) == shown(*[text[at : at + 7] for at in range(0, len(text), 7)])


@pytest.mark.parametrize(
    "unit", ["*", "`", "$", "\\", "**a", "`a", "$a ", "_a_ ", "~~", "\\(", "*\n"]
)
def test_provisional_html_takes_linear_time(unit: str) -> None:
    """Unclosed and repeated marks take time in proportion to the text."""

    def feed(text: str) -> None:
        provisional = Provisional()
        for at in range(0, len(text), 4):
            provisional.feed(text[at : at + 4])

    check_linear(feed, unit)
