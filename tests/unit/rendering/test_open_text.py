"""The open text of a stream in parts: the drawn text is the text, and no part is long."""

from __future__ import annotations

import html
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halt.rendering.open_text import PART, RUN, SEAM, WBR, OpenText, breakable, normalized
from halt.rendering.streaming.stream import BlockStream

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
    """The text in pieces, as an upstream sends it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 333, 100_000])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_open_text_parts_are_limited_and_hold_the_text(text: str, size: int) -> None:
    """Without its seams the drawn text is the text, and no part is long."""
    open_text = OpenText()
    html_text = "".join(open_text.feed(html.escape(piece)) for piece in pieces(text, size))
    parts = html_text.replace(WBR, "").split(SEAM)
    assert html.unescape("".join(parts)) == text
    assert "".join(html.unescape(part) for part in parts) == text, "a reference was cut"
    longest = 2 * PART + len("&quot;") * min(size, PART)
    assert max(map(len, parts)) <= longest
    assert len(parts) > len(text) // longest


def test_seam_follows_white_space_where_there_is_any() -> None:
    """A seam follows white space where there is any, so that kerning and ligatures stay."""
    html_text = OpenText().feed("some words " * 2000)
    assert SEAM in html_text
    assert all(re.search(r"\s\Z", part) for part in html_text.split(SEAM)[:-1])


def test_seam_never_precedes_a_combining_character() -> None:
    """Without white space a seam or a break still keeps an accent with its letter."""
    html_text = OpenText().feed("e\u0301\u0323" * 4000)
    assert SEAM in html_text
    assert SEAM + "\u0301" not in html_text
    assert SEAM + "\u0323" not in html_text
    assert WBR in html_text
    assert WBR + "\u0301" not in html_text
    assert WBR + "\u0323" not in html_text


#: Runs, characters that end a run, and characters before which no line may break.
RUNS = st.sampled_from(
    [
        *("a" * 90, "b" * 7, "&" * 40, "\u0301" * 20, "\0", "\ud800", "\ufeff"),
        *(" ", "\t", "\f", "\u2028", "\u6587", "\r", "\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RUNS, max_size=20).map("".join), st.lists(st.integers(0, 2000), max_size=8))
def test_open_text_does_not_depend_on_the_pieces(text: str, positions: list[int]) -> None:
    """Property: text and break points are those of the whole text, however it is cut."""
    edges = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    cuts = [text[start:end] for start, end in pairwise(edges)]
    whole = breakable(html.escape(normalized(text)))
    for parts in (cuts, [*text], [text]):
        html_text = "".join(map(OpenText().feed, map(html.escape, parts)))
        assert html_text.replace(SEAM, "") == whole


def test_open_text_of_many_blanks_takes_linear_time() -> None:
    """Many blanks take linear time: the place for a seam is not searched again from each
    of them.
    """

    def seconds(size: int) -> float:
        start = time.thread_time()
        OpenText().feed((" " * size + "A") * (200_000 // size))
        return time.thread_time() - start

    assert seconds(2_000) < 8 * seconds(20) + 0.2


def test_open_text_of_a_short_text_has_no_seam() -> None:
    """A short text, as most answers have, gets no seam."""
    open_text = OpenText()
    text = "a word " * (PART // 7)
    assert "".join(open_text.feed(piece) for piece in pieces(text, 9)) == text


def test_open_text_without_a_place_for_a_seam_is_read_once() -> None:
    """A text without a place for a seam is read once, and not again with each piece."""
    open_text = OpenText()
    text = "\u0301" * 200_000
    html_text = "".join(open_text.feed(piece) for piece in pieces(text, 50))
    assert html_text.replace(WBR, "") == text
    assert BlockStream().feed(text).tail == text


@pytest.mark.parametrize("size", [1, 7, 150, 333, 100_000])
@pytest.mark.parametrize("unit", ["a", "A", "&", "<b>", "a-", "\u0e01", "\u0628", "\u0301", "0a="])
def test_breakable_puts_a_break_point_about_every_run_characters(unit: str, size: int) -> None:
    """Between two break points there are about RUN characters, and no reference is cut."""
    text = unit * (5_000 // len(unit))
    for html_text in (
        breakable(html.escape(text)),
        "".join(map(OpenText().feed, map(html.escape, pieces(text, size)))),
    ):
        parts = html_text.replace(SEAM, "").split(WBR)
        assert "".join(map(html.unescape, parts)) == text, "a reference was cut"
        assert max(map(len, parts)) <= RUN + 20


def test_breakable_leaves_words_and_ideographs_unchanged() -> None:
    """Words, and scripts whose lines break between any two characters, get no break point."""
    for text in ("some words " * 500, "\u6587\u5b57" * 500, "\ud55c\uad6d" * 500, "x" * RUN):
        assert breakable(text) == text
