"""Names: which are allowed, which are the same, and what is shown of those from elsewhere."""

from __future__ import annotations

import pytest

from halt.errors import RequestError
from halt.people.names import checked_name, name_key, shown_name

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one emoji of three


@pytest.mark.parametrize(
    "name",
    [
        *("", "   ", "x" * 61, "a\nb", "a\x00b", "a\u2028b", "\ud800"),
        *("a\u200bb", "a\u202eb", "a\u2066b", "\ufeffa", "a\u00adb", "Ann\u3164"),
        *("\u200d", "\u200c \u200c", "\ufe0f", "\u2800"),
    ],
)
def test_name_that_cannot_be_seen_is_refused(name: str) -> None:
    """A name is one line of 1 to 60 characters, of which none is invisible and not all are marks."""
    with pytest.raises(RequestError):
        checked_name(name)


@pytest.mark.parametrize(
    "name", ["Ann B.", FAMILY, "\u0645\u06cc\u200c\u062e\u0648", "7", "\U0001f600"]
)
def test_name_of_any_script_is_allowed(name: str) -> None:
    """Joiners stay inside a name, because scripts and emoji need them, and go around it."""
    assert checked_name(f" \u200d{name}\u200c ") == name


@pytest.mark.parametrize("other", ["a\u200dnn", "An\u200cn", " ANN\u200d", "Ann\ufe0f"])
def test_names_that_look_the_same_are_the_same(other: str) -> None:
    """Characters that are not seen alone do not make another name."""
    assert name_key(other) == name_key("Ann")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A\u200bd\u202ea\u2066", "Ada"),
        (" Ada\n\x1b[31m\u2028Lovelace ", "Ada [31m Lovelace"),
        (FAMILY, FAMILY),
        ("\u200b\u200d \u3164", ""),
        ("x" * 30, "x" * 10),
        ("\ud800Ada", "Ada"),
    ],
)
def test_name_from_elsewhere_is_shown_without_invisible_characters(text: str, shown: str) -> None:
    """It is one visible line of at most the given length, or none."""
    assert shown_name(text, 10 if text[0] == "x" else 60) == shown
