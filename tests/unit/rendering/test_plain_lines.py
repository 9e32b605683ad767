"""Text without control characters, whole or as one line."""

import re

import pytest

from halt.rendering.plain_lines import clean, one_line

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b1m", "\u202e", "\r", "\x00"])
def test_clean_removes_control_characters(text: str) -> None:
    """Control characters are removed; newlines, tabs and letters of all languages stay."""
    assert not CONTROL.search(clean(f"a{text}b"))
    assert clean("ä\t中文\n👩\u200d👧") == "ä\t中文\n👩\u200d👧"


def test_one_line_joins_lines_and_cuts_a_long_text() -> None:
    """Line breaks and control characters become one space at most, and the cut is marked."""
    assert one_line("  a\n\n b\x1b[2J\tc ", 20) == "a b[2J c"
    assert one_line("abcdef", 6) == "abcdef"
    assert one_line("abcdefg", 6) == "abcde…"
