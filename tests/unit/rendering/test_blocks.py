"""Markdown while it streams: what finishes a block, and the page that shows it."""

from __future__ import annotations

import html
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halt.rendering import markdown
from halt.rendering.streaming.blocks import Patch
from halt.rendering.streaming.stream import BlockStream
from tests.support.linear_time import check_linear
from tests.unit.rendering.page import TEXTS, Page, cut, page_of, patch_of, render, streamed


def steps(source: str) -> list[tuple[int, str]]:
    """The number of characters after which a block was finished, and its text."""
    stream = BlockStream()
    patches = [patch_of(stream.feed(character)) for character in source]
    return [(n, re.sub("<.*?>", "", p.finished)) for n, p in enumerate(patches, 1) if p.finished]


def test_paragraph_is_finished_by_its_blank_line() -> None:
    """A paragraph is shown as it grows, and rendered when its second newline comes."""
    stream = BlockStream()
    assert patch_of(stream.feed("a *b*")) == Patch("", True, "a <em>b</em>", "text")
    assert patch_of(stream.feed(" c\n")) == Patch("", False, " c", "text")
    assert patch_of(stream.feed("\n")) == Patch("<p>a <em>b</em> c</p>\n", True, "", "text")
    assert patch_of(stream.feed("\n \n")) == Patch("", False, "", "text")
    assert patch_of(stream.feed("<")) == Patch("", False, "&lt;", "text")


def test_open_fence_is_shown_as_code() -> None:
    """An open fence is shown as code with its language, without its ``` lines; a line that may
    close it is held back.
    """
    stream = BlockStream()
    assert patch_of(stream.feed("Look:\n``")) == Patch("", True, "Look:", "text")
    assert patch_of(stream.feed("`py")) == Patch("", False, "", "text")
    assert patch_of(stream.feed("\nx = 1\n")) == Patch(
        "<p>Look:</p>\n", True, "x = 1\n", "code", "py"
    )
    assert patch_of(stream.feed("``")) == Patch("", False, "", "code")
    assert patch_of(stream.feed("x\n\n")) == Patch("", False, "``x\n\n", "code")
    assert patch_of(stream.feed("```")) == Patch("", False, "", "code")
    patch = patch_of(stream.feed("\nAfter"))
    assert "language-python" in patch.finished
    assert (patch.replaces_tail, patch.tail, patch.form) == (True, "After", "text")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("```\na\n`````\nx", "a\n"),
        ("````\n```\nb\n````\nx", "```\nb\n"),
        ("~~~ a`b\n```\n~~\n~~~\nx", "```\n~~\n"),
        ("```\n~~~\n```  \t\nx", "~~~\n"),
        ("   ```\n     a\n  b\n   ```\nx", "  a\nb\n"),
        ("text\n```\n# a\n\n---\n\n- b\n```\nx", "# a\n\n---\n\n- b\n"),
        ("```\n    ```\n```\nx", "    ```\n"),
        ("```\n\n\n```\nx", "\n\n"),
        ("- a\n```\nb\n\nc\n```\nx", "b\n\nc\n"),
        ("1. a\n  ```\nb\n\nc\n  ```\nx", "b\n\nc\n"),
        ("```\r\na\r\n```\r\nx", "a\n"),
    ],
)
def test_fence_open_and_close_follow_commonmark(source: str, code: str) -> None:
    """Fences open and close as in CommonMark: longer closers, tildes, indentation, right after a
    paragraph or list.
    """
    page = page_of(*source)
    assert page.tail == "x"
    body = re.search(r'<code class="highlight">(.*)</code>', page.finished, re.DOTALL)
    assert body
    assert body[1] == code
    assert page.finished + "<p>x</p>\n" == render(source)
    opened = page_of(source[: source.rstrip("x\r\n\t ").rindex("\n") + 1])
    assert (opened.form, opened.tail) == ("code", html.escape(code))


@pytest.mark.parametrize(
    "source", ["a ``` b\n\n", "``` a`b\n\nc\n\n", "``a\n\n", "    ```\n\nb\n\n", "~~s~~ t\n\n"]
)
def test_backticks_that_open_no_fence_stay_text(source: str) -> None:
    """Backticks inside a line, in an info string, too few or indented by four stay text."""
    page = page_of(*source)
    assert page.form == "text"
    assert page.finished + render(html.unescape(page.tail)) == render(source)


@pytest.mark.parametrize(
    ("source", "finished"),
    [
        ("# A\nb", [(4, "A\n")]),
        ("a\n# B\nc", [(5, "a\n"), (6, "B\n")]),
        ("---\na", [(4, "\n")]),
        ("a\n---\nb\n\n", [(6, "a\n\n"), (9, "b\n")]),
        ("a\n----\nb\n\n", [(7, "a\n"), (10, "b\n")]),
        ("##A\nb", [(4, "A\n")]),
        ("#a\n\n", [(4, "#a\n")]),
        ("| a |\n---\n| b |\n\n", [(10, "\n\n\na\n\n\n\n\n\n")]),
    ],
)
def test_heading_and_rule_end_with_their_line(source: str, finished: list[tuple[int, str]]) -> None:
    """A heading and a rule end with their line; both end the paragraph above."""
    assert steps(source) == finished


@pytest.mark.parametrize(
    ("source", "open_from"),
    [
        ("- a\n\n  b\n\n  - c\n\n    d", 0),
        ("1. a\n\n   ```\n   x\n\n   y\n   ```\n\n   b", 0),
        ("intro\n- a\n\n  b", 6),
        ("- a\n\n", 0),
        ("- a\n\n ", 0),
        ("- a\n\n- b", 5),
        ("1. a\n\n2. b\n\n   c", 6),
        ("- a\n\nb", 5),
        ("- a\n lazy\n\n  b", 0),
        ("    code\n\n    more", 0),
        ("para\n\n  b", 6),
        ("- a\r\n\r\n  b", 0),
        ("- a\n" + " " * 130 + "\n" + " " * 130 + "b", 0),
    ],
)
def test_list_stays_open_over_a_blank_line_before_indented_text(
    source: str, open_from: int
) -> None:
    """A list item goes on past a blank line only if the next line is indented."""
    stream = BlockStream()
    for character in source:
        stream.feed(character)
    assert stream.open_source() == source[open_from:].replace("\r\n", "\n")


def test_unrendered_step_leaves_the_next_step_right() -> None:
    """After a step that is not rendered, the next one still fits the page."""
    stream = BlockStream()
    step = stream.feed("# A\n\nb *c")
    assert [(block.source, block.is_fence) for block in step.blocks] == [("# A", False)]
    assert patch_of(stream.feed("*\n\n")) == Patch("<p>b <em>c</em></p>\n", True, "", "text")
    assert patch_of(step) == Patch("<h1>A</h1>\n", True, "b <em>c</em>", "text")


def test_block_stream_token_cost_does_not_depend_on_line_length() -> None:
    """A token costs as much at the end of a line of 400,000 characters as on a short line."""

    def seconds(before: int, piece: str) -> float:
        best = 9.0
        for _ in range(5):
            stream = BlockStream()
            for _ in range(before):
                stream.feed("word ")
            start = time.thread_time()
            for _ in range(200):
                stream.feed(piece)
            best = min(best, time.thread_time() - start)
        return best

    assert seconds(80_000, "word ") < 4 * seconds(100, "word ") + 0.002


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 300), max_size=8))
@example("a\r\n\r\nb", [2, 4])
@example("- a\n\n  b", [5, 6])
@example("a\n- \u2028`", [])
def test_page_does_not_depend_on_the_pieces(text: str, places: list[int]) -> None:
    """Property: however a text is cut into pieces, the page is the same in the end."""
    assert page_of(*cut(text, places)) == page_of(text) == page_of(*text)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_patched_page_equals_a_fresh_snapshot_at_every_prefix(text: str) -> None:
    """Property: after each character the patched page equals a fresh stream's."""
    page, stream = Page(), BlockStream()
    for length, character in enumerate(text, 1):
        page.apply(patch_of(stream.feed(character)))
        snapshot = patch_of(BlockStream().feed(text[:length]))
        assert snapshot.replaces_tail
        fresh_page = Page()
        fresh_page.apply(snapshot)
        assert page == fresh_page


#: A list that becomes loose in its last item.
LATE = "intro\n1. a\n2. b\n   more\n\n   c"
INDEPENDENT = st.sampled_from(
    [
        "A paragraph with *emphasis*, `code` and a [link](https://x.org).",
        "Two lines\nof text",
        "# Heading",
        "Setext\n---",
        "***",
        "a\n***\nb\n---\n> c\n- - -\n##Title\nd\n___\n1. e\n   - f\n  g",
        "> quote\n> more\nlazy",
        "```python\ndef f():\n\n    return 1\n```",
        "Look:\n~~~\n# no heading\n\n~~~",
        "| a | b |\n|---|--:|\n| 1 | 2 |",
        "text\n| *a* | b | c |\n|:-:|:--|\n| 1 | `x \\| y` |\n|2|3|4|5|\nafter",
        "a|b\n-|-\n1|2\n- x|y\n- c|d\n-|-\n\n|a|\n|-|\n|#1|\n# h|i",
        "+---+\n| a |\n|---|\n| b |\n+---+",
        "- a\n- b\n  - c",
        LATE,
        "intro\n1. a\n2. b\n   more\n   ```sh\n   ls\n\n   ls\n   ```",
        "1. a\n\n2. b\n\n   more\n\n3. c",
        "1) a\n1) b\n1) c\n- d\n+ e\n***\n+ f\n> g\n- h\n# i",
        "- a\n  ```py\n- b\n\n  # c\n```\n- d\n  - e\n\n    ~~~\n  f\n    ~~~\n- g",
        "- ```\n  a\n- b\n  ```\n- - c\n  - d\n-\n  e\n- | a |\n  |---|\n  | b |",
        "```markdown\n# T\n```py\nx\n```\n\n~~~\n```md\n```js\n```\n```\n```\nb",
        "$$\na\n\n- b\n$$",
        "    indented\n\n    code",
        "\\[\na_1\n\n- b_1\n\\]",
        "a $x_1$\n**b**",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(INDEPENDENT, max_size=8), st.booleans())
def test_streamed_blocks_equal_the_whole_text(blocks: list[str], crlf: bool) -> None:
    """Property: finished blocks and the rendered rest are the whole text's HTML, if no block refers
    to another and CommonMark joins no two neighbours over a blank line. Only the distance of items
    may differ, if a list has its first blank line after its second item.
    """
    text = "\n\nand\n\n".join(blocks)
    if crlf:
        text = text.replace("\n", "\r\n")
    if LATE in blocks:
        assert re.sub(r"\n?</?p>\n?", "", streamed(text)) == re.sub(
            r"\n?</?p>\n?", "", render(text)
        )
    else:
        # A table without rows has an empty body.
        assert streamed(text).replace("<tbody>\n</tbody>\n", "") == render(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["word and `x` ", "word\n", "- a\n\n  b\n", "`", " ", "\n", "> a\n", "para para para\n\n"],
)
@pytest.mark.parametrize("before", ["", "```python\n", "- a\n"])
def test_block_stream_takes_linear_time(before: str, unit: str) -> None:
    """A block stream takes linear time: four times the text about four times as long, also in one
    endless block.
    """

    def stream_all(text: str) -> None:
        stream = BlockStream()
        patch_of(stream.feed(before))
        for at in range(0, len(text), len(unit)):
            patch_of(stream.feed(text[at : at + len(unit)]))

    check_linear(stream_all, unit)


# --- Lists --------------------------------------------------------------------------------------


def test_item_is_finished_by_the_mark_of_the_next_one() -> None:
    """An item is a block of its own; later ones are appended to the list of the first."""
    stream = BlockStream()
    patch_of(stream.feed("Now:\n1. *a*\n   - b\n1"))
    patch = patch_of(stream.feed(". "))
    assert (patch.finished, patch.parts) == ("", "")
    patch = patch_of(stream.feed("c"))
    assert re.sub(r"\s", "", patch.finished) == ("<ol><li><em>a</em><ul><li>b</li></ul></li></ol>")
    patch = patch_of(stream.feed("\n1. d\n\ne"))
    assert (patch.finished, patch.parts) == ("", "<li>c</li>\n<li>d</li>\n")


@pytest.mark.parametrize(
    ("source", "lists"),
    [
        ("- a\n- b\n- c", 1),
        ("- a\n\n- b\n\n- c", 1),
        ("1. a\n\n1. b\n   ```\n   - x\n   ```\n1. c", 1),
        ("- a\n* b\n+ c", 3),
        ("1. a\n2) b", 2),
        ("- a\n- - -\n- b", 2),
        ("- a\n\nb\n\n- c", 2),
        ("- a\n# b\n- c", 2),
        ("- a\n\n    b\n- c", 1),
        ("- a\n - b\n  - c\n   - d", 1),
    ],
)
def test_items_of_one_list_are_in_one_list_of_the_page(source: str, lists: int) -> None:
    """The page has one list for the items that CommonMark has in one."""
    page = streamed(source)
    assert len(re.findall("^</[ou]l>", page, re.MULTILINE)) == lists
    assert page == render(source)


@pytest.mark.parametrize(
    "source", ["a\n2. b\n\nc", "a\n-\n\nb", "a\n    - b\n\nc", "5 a\n6 b\n\nc"]
)
def test_mark_that_begins_no_list_splits_no_paragraph(source: str) -> None:
    """A mark that cannot follow a paragraph without a blank line is text of it."""
    assert len(steps(source)) == 1
    assert streamed(source) == render(source)


def test_long_list_is_one_list_when_rendered_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list in a text that is too long for the parser is still one list."""
    text = "".join(f"{n}. item\n" for n in range(1, 400))
    whole = render(text)
    monkeypatch.setattr(markdown, "TEXT_MAX", 0)
    assert render(text) == whole


def test_item_that_cannot_be_parsed_is_an_item_of_text() -> None:
    """Nesting beyond the parser's limit stays in its item."""
    deep = "- " * 30 + "word"
    assert streamed(f"- a\n- {deep}\n- b") == (
        f"<ul>\n<li>a</li>\n<li>{deep}</li>\n<li>b</li>\n</ul>\n"
    )


# --- Tables -------------------------------------------------------------------------------------


def test_table_is_shown_from_its_separator_and_grows_by_rows() -> None:
    """A table is shown when its separator is complete; each complete row is appended to it."""
    stream = BlockStream()
    patch = patch_of(stream.feed("Now:\n| *a* | b |\n|--"))
    assert (patch.finished, patch.tail) == ("", "Now:\n| <em>a</em> | b |")
    patch = patch_of(stream.feed("-|--:|\n"))
    assert patch.finished.startswith('<p>Now:</p>\n<div class="table"')
    assert '<th class="short"><em>a</em></th>' in patch.finished
    assert (patch.replaces_tail, patch.tail) == (True, "")
    assert patch_of(stream.feed("| 1 | **2")).tail == "| 1 | <strong>2</strong>"
    patch = patch_of(stream.feed("** |\n"))
    row = '<tr>\n<td>1</td>\n<td class="right"><strong>2</strong></td>\n</tr>\n'
    assert (patch.finished, patch.parts, patch.are_rows) == ("", row, True)
    patch = patch_of(stream.feed("after\n\n"))
    assert (patch.finished, patch.parts) == ("<p>after</p>\n", "")


def test_table_with_too_many_cells_stays_text() -> None:
    """A table that the parser refuses is not shown by rows; nor are rows that it would refuse."""
    wide = "|" + "a|" * 201 + "\n|" + "-|" * 201 + "\n|1|\n"
    assert "<table" not in page_of(*wide).finished
    ragged = "|" + "a|" * 100 + "\n|" + "-|" * 100 + "\n" + "|1\n" * 200
    page = page_of(*ragged)
    assert page.finished.count("<tr>") < 20
    assert "|1\n|1" in page.tail


@pytest.mark.parametrize("unit", ["|a|b|\n|-|-|\n", "|a\n", "|a|b|\n|-|-|\n|1|2|\n\n", "|-|\n"])
def test_tables_take_linear_time(unit: str) -> None:
    """Tables that begin again and again take time in proportion to the text."""

    def split(text: str) -> None:
        stream = BlockStream()
        for at in range(0, len(text), 4):
            stream.feed(text[at : at + 4])

    check_linear(split, unit)
