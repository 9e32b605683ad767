"""What the account page says of browsers and times."""

from __future__ import annotations

import time

import pytest

from halt.web.page.times import ago
from halt.web.page.user_agents import browser_name

CHROME = "(KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (
            "Mozilla/5.0 (Windows NT 10.0; rv:140.0) Gecko/20100101 Firefox/140.0",
            "Firefox on Windows",
        ),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {CHROME} Edg/140.0", "Edge on macOS"),
        (f"Mozilla/5.0 (Linux; Android 15; K) {CHROME}", "Chrome on Android"),
        (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {CHROME}", "Chrome on ChromeOS"),
        (
            "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) Version/18.5 Safari/604.1",
            "Safari on iPad",
        ),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_5) CriOS/140.0 Safari/604.1", "Chrome on iPhone"),
        ("Opera/9.80 OPR/1", "Opera"),
        ("curl/8.14.1", "curl/8.14.1"),
        ("one  two three four", "one two three"),
        ("x" * 300, "x" * 40),
        (" ", "Unknown browser"),
    ],
)
def test_browser_is_named_by_its_user_agent(user_agent: str, name: str) -> None:
    """Known browsers and systems have their names; others the first words they send."""
    assert browser_name(user_agent) == name


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"),
        (59, "just now"),
        (61, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3601, "1 hour ago"),
        (2 * 86_400 + 1, "2 days ago"),
    ],
)
def test_time_is_said_in_words(seconds: float, words: str) -> None:
    """Within a month a time is said by how long ago it was."""
    assert ago(time.time() - seconds) == words


def test_time_of_long_ago_is_a_date() -> None:
    """After that it is said by its date."""
    assert ago(86_400.0) == "2 January 1970"
