"""Names a browser and its system, by the User-Agent that it sends."""

from __future__ import annotations

#: Marks in a User-Agent with the names that people use. The first one that is in it counts: most
#: browsers also send the marks of Chrome and Safari.
BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Vivaldi/", "Vivaldi"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Macintosh", "macOS"),
    ("Linux", "Linux"),
)
WORDS_MAX, CHARS_MAX = 3, 40  # of a User-Agent without a known mark


def browser_name(user_agent: str) -> str:
    """As in "Firefox on Windows"; the first words of a User-Agent without known marks."""
    browser = _first(BROWSERS, user_agent)
    system = _first(SYSTEMS, user_agent)
    if browser and system:
        return f"{browser} on {system}"
    if browser:
        return browser
    return " ".join(user_agent.split()[:WORDS_MAX])[:CHARS_MAX] or "Unknown browser"


def _first(names: tuple[tuple[str, str], ...], user_agent: str) -> str:
    return next((name for mark, name in names if mark in user_agent), "")
