"""Footnotes."""

import re

import pytest

from halt.rendering.markdown import render, render_block
from halt.rendering.streaming.stream import split_blocks
from tests.support.answer_html import gate
from tests.support.linear_time import check_linear


def read(source: str) -> tuple[str, list[str]]:
    """The text with its references as {NUMBER}, and the texts of the notes."""
    rendered = gate(render(source))
    text, _, notes = rendered.partition('<ol class="notes"')
    numbered = re.sub(r'<sup><a href="#n\w+-(\d+)".*?</sup>', r"{\1}", text)
    return _bare(numbered), [_bare(note) for note in re.findall("(?s)<li.*?</li>", notes)]


def _bare(markup: str) -> str:
    return " ".join(re.sub("<.*?>|\u21a9\ufe0e", "", markup).split())


@pytest.mark.parametrize(
    ("source", "text", "notes"),
    [
        ("a[^1]\n\n[^1]: one", "a{1}", ["one"]),
        ("a[^2] b[^1]\n\n[^1]: one\n[^2]: two", "a{1} b{2}", ["two", "one"]),
        ("a[^x] b[^X]\n\n[^x]: name", "a{1} b{1}", ["name"]),
        ("[^1]: one\n\na[^1]", "a{1}", ["one"]),
        ("a[^1] b[^2]\n\n[^1]: one", "a{1} b[^2]", ["one"]),
        ("a\n\n[^1]: never used", "a", ["never used"]),
        ("a[^1]\n\n[^1]: first\n[^1]: second", "a{1}", ["first", "second"]),
        ("a[^1]\n\n[^1]: one[^2]\n[^2]: two", "a{1}", ["one{2}", "two"]),
        ("a[^1]\n\n[^1]: https://x.org", "a{1}", ["https://x.org"]),
        ("a[^1]\n\n[^1]: one\n\n  more\n\n    again\n\nb", "a{1} b", ["one more again"]),
        ("[^1]: one\na[^1]", "a{1}", ["one"]),
        ("a[^1]\n\n[^1]:\n  one\n  more\nb", "a{1} b", ["one more"]),
        ("- a[^1]\n\n- [^1]: one\n- [^2]: two", "a{1}", ["one", "two"]),
        ("> a[^1]\n>\n> [^1]: one", "a{1}", ["one"]),
        ("| a[^1] |\n|---|\n| b |\n\n[^1]: one", "a{1} b", ["one"]),
        ("`[^1]` \\[^1]\n\n[^1]: one", "[^1] [^1]", ["one"]),
        ("a[^1](https://x.org)\n\n[^1]: one", "a^1", ["one"]),
        ("a[^b c]\n\n[^b c]: text", "a[^b c] [^b c]: text", []),
        ("```\n[^1]: one\n```\n\na[^1]", "[^1]: one a[^1]", []),
    ],
)
def test_notes_are_at_the_end_in_the_order_of_their_references(
    source: str, text: str, notes: list[str]
) -> None:
    """References are numbers, notes come in their order, those without a reference at last."""
    notes = [note.replace("{2}", "2") for note in notes]
    assert read(source) == (text, notes)


def test_reference_and_note_link_to_each_other() -> None:
    """Each reference links to its note, and the note back to each of its references."""
    rendered = gate(render("a[^1] b[^1]\n\n[^1]: one"))
    targets = re.findall('href="#(.*?)"', rendered)
    identifiers = re.findall(' id="(.*?)"', rendered)
    assert len(targets) == 4
    assert set(targets) == set(identifiers)
    assert len(set(identifiers)) == len(identifiers) == 3
    assert rendered.count('aria-label="Back to the text"') == 2


def test_identifiers_differ_between_texts() -> None:
    """Two answers of a page do not share an identifier."""
    first, second = (
        set(re.findall(' id="(.*?)"', render(f"{text}[^1]\n\n[^1]: one"))) for text in "ab"
    )
    assert first
    assert not first & second


@pytest.mark.parametrize(
    "source",
    [
        '<sup class="note">1.1</sup> <li class="note" [^1]\n\n[^1]: x',
        "[a](https://x.org '<sup class=\"note\">1.1</sup>') [^1]\n\n[^1]: x",
        '```\n<li class="note">\n```\n\na[^1]\n\n[^1]: x',
        '[^"><script>]\n\n[^"><script>]: x',
    ],
)
def test_text_cannot_forge_a_link_within_the_page(source: str) -> None:
    """A text that looks like the marks of footnotes stays text."""
    rendered = gate(render(source))
    assert len(re.findall(' id="', rendered)) == 2


def test_blocks_of_a_running_answer_show_footnotes_as_text() -> None:
    """While an answer is written, its references and notes are shown as they were written."""
    blocks = split_blocks("a[^1]\n\n[^1]: https://x.org\n[^2]: two\n\n")
    rendered = "".join(map(render_block, blocks))
    assert _bare(rendered) == "a[^1] [^1]: https://x.org [^2]: two"


@pytest.mark.parametrize(
    "unit",
    [
        "[^1]\n\n[^1]: a\n\n",
        "[^1]",
        "[^",
        "[^1]: ",
        "[^1]: a\n",
        "[^1]: [^1]: a\n",
        "  [^1]: a\n",
        "- [^1]: a\n",
        "[^1]: a\n\n\n\n",
        "[^1]: [^1]: [^1]: a\n  b\n",
        "^[a",
    ],
)
def test_footnotes_take_linear_time(unit: str) -> None:
    """Four times the text takes about four times as long."""
    check_linear(lambda text: render("[^1]: a\n\n" + text), unit)


def test_many_references_have_few_back_links() -> None:
    """The HTML of many references to one note stays in proportion to the text."""
    source = "[^1]" * 10_000 + "\n\n[^1]: a"
    rendered = render(source)
    assert rendered.count("Back to the text") == 10
    assert len(rendered) < 20 * len(source)
