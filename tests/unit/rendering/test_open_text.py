"""Open text in parts: what is drawn is the text, and no part is long."""

from __future__ import annotations

import html
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halt.rendering.blocks import BlockStream
from halt.rendering.open_text import PART, RUN, SEAM, WBR, OpenText, breakable, normalized

TEXTS = {
    "words": "one two three four " * 2000,
    "lines": "a line of it\n\n\n" * 2000,
    "one word": "abcdefghij" * 4000,
    "references": "<&>\"'" * 4000,
    "references and letters": "a<b" * 8000,
    "ideographs": "文字列" * 8000,
    "signs": "=-" * 8000,
}


def pieces(text: str, size: int) -> list[str]:
    """The text as an upstream sends it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 333, 100_000])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_parts_are_bounded_and_hold_the_text(text: str, size: int) -> None:
    """Without its seams the drawn text is the text; whatever it is, no part is long."""
    open_text = OpenText()
    drawn = "".join(open_text.feed(html.escape(piece)) for piece in pieces(text, size))
    parts = drawn.replace(WBR, "").split(SEAM)
    assert html.unescape("".join(parts)) == text
    assert "".join(html.unescape(part) for part in parts) == text, "a reference was cut"
    longest = 2 * PART + len("&quot;") * min(size, PART)
    assert max(map(len, parts)) <= longest
    assert len(parts) > len(text) // longest


def test_a_seam_follows_white_space_where_there_is_any() -> None:
    """No word is cut, so that kerning and ligatures are those of the finished text."""
    drawn = OpenText().feed("some words " * 2000)
    assert SEAM in drawn
    assert all(re.search(r"\s\Z", part) for part in drawn.split(SEAM)[:-1])


def test_an_accent_stays_with_its_letter() -> None:
    """Where no white space comes, no seam stands before a combining character."""
    drawn = OpenText().feed("e\u0301\u0323" * 4000)
    assert SEAM in drawn
    assert SEAM + "\u0301" not in drawn
    assert SEAM + "\u0323" not in drawn
    assert WBR in drawn
    assert WBR + "\u0301" not in drawn
    assert WBR + "\u0323" not in drawn


#: Runs, what ends one, and what no place to break a line may stand before.
RUNS = st.sampled_from(
    [
        *("a" * 90, "b" * 7, "&" * 40, "\u0301" * 20, "\0", "\ud800", "\ufeff"),
        *(" ", "\t", "\f", "\u2028", "\u6587", "\r", "\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RUNS, max_size=20).map("".join), st.lists(st.integers(0, 2000), max_size=8))
def test_cuts_do_not_matter(text: str, places: list[int]) -> None:
    """Text and places to break its lines are those of the whole text, however it was cut."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    cuts = [text[start:end] for start, end in pairwise(edges)]
    whole = breakable(html.escape(normalized(text)))
    for parts in (cuts, [*text], [text]):
        drawn = "".join(map(OpenText().feed, map(html.escape, parts)))
        assert drawn.replace(SEAM, "") == whole


def test_white_space_without_end_is_looked_at_once() -> None:
    """A place for a seam is not looked for from each of many blanks."""

    def seconds(size: int) -> float:
        start = time.process_time()
        OpenText().feed((" " * size + "A") * (200_000 // size))
        return time.process_time() - start

    assert seconds(2_000) < 8 * seconds(20) + 0.2


def test_a_short_text_has_no_seam() -> None:
    """Ordinary answers are drawn as they are."""
    open_text = OpenText()
    text = "a word " * (PART // 7)
    assert "".join(open_text.feed(piece) for piece in pieces(text, 9)) == text


def test_the_work_is_in_proportion_to_the_text() -> None:
    """Text without any place for a seam is looked at once, not again with each piece."""
    open_text = OpenText()
    text = "\u0301" * 200_000
    drawn = "".join(open_text.feed(piece) for piece in pieces(text, 50))
    assert drawn.replace(WBR, "") == text
    assert BlockStream().feed(text).tail == text


@pytest.mark.parametrize("size", [1, 7, 150, 333, 100_000])
@pytest.mark.parametrize("unit", ["a", "A", "&", "<b>", "a-", "\u0e01", "\u0628", "\u0301", "0a="])
def test_a_run_without_blanks_can_be_broken(unit: str, size: int) -> None:
    """Between two places there are about RUN characters, whole references among them."""
    text = unit * (5_000 // len(unit))
    for drawn in (
        breakable(html.escape(text)),
        "".join(map(OpenText().feed, map(html.escape, pieces(text, size)))),
    ):
        parts = drawn.replace(SEAM, "").split(WBR)
        assert "".join(map(html.unescape, parts)) == text, "a reference was cut"
        assert max(map(len, parts)) <= RUN + 20


def test_what_has_blanks_or_is_broken_anywhere_is_left_alone() -> None:
    """Words, and scripts whose lines are broken between any two characters."""
    for text in ("some words " * 500, "\u6587\u5b57" * 500, "\ud55c\uad6d" * 500, "x" * RUN):
        assert breakable(text) == text
