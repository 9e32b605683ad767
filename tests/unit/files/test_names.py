"""The names that files are shown under."""

from __future__ import annotations

import pytest

from halt.files.names import NAME_MAX, NAMELESS, clean_name


@pytest.mark.parametrize(
    ("given", "shown"),
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
    ],
)
def test_name_is_one_harmless_line(given: str, shown: str) -> None:
    """Folders, control characters and marks of direction are left out."""
    assert clean_name(given) == shown


def test_long_name_keeps_its_ending() -> None:
    """A name is at most NAME_MAX long."""
    assert clean_name("x" * 1000 + ".pdf") == "x" * (NAME_MAX - 4) + ".pdf"
    assert clean_name("x." + "y" * 1000) == ("x." + "y" * 1000)[:NAME_MAX]
