"""The names that files are shown under."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.files.names import NAME_MAX, NAMELESS, clean_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\anna\\photo.jpg", "photo.jpg"),
        ("folder/", NAMELESS),
        ("", NAMELESS),
        ("..", NAMELESS),
        ("a\0b\r\nc.txt", "ab c.txt"),
        ("photo\u202egpj.exe", "photo gpj.exe"),
        ("  spaced \t out .txt ", "spaced out .txt"),
        ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
        ("Größe 日本.csv", "Größe 日本.csv"),
        (".env", "env"),
        (". env", "env"),
        ("U\u0308ber.pdf", "\u00dcber.pdf"),
    ],
)
def test_name_is_one_harmless_line(name: str, shown: str) -> None:
    """Folders, control characters and marks of direction are left out."""
    assert clean_name(name) == shown


@given(st.text(st.sampled_from("ab. /\0\u0308\u202e") | st.characters(), max_size=400))
@example(("x" * (NAME_MAX - 1)) + ". y")
@example("x" * (NAME_MAX - 6) + ".. ." + ".pdf")
def test_name_stays_the_same(name: str) -> None:
    """A name that was made harmless is not changed again: exports are imported again."""
    once = clean_name(name)
    assert 1 <= len(once) <= NAME_MAX
    assert clean_name(once) == once


def test_long_name_keeps_its_ending() -> None:
    """A name is at most NAME_MAX long."""
    assert clean_name("x" * 1000 + ".pdf") == "x" * (NAME_MAX - 4) + ".pdf"
    assert clean_name("x." + "y" * 1000) == ("x." + "y" * 1000)[:NAME_MAX]
