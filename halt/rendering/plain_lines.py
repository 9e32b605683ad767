"""Text of a model or a server without control characters, whole or as one line.

A terminal executes control characters, and a log or a list shows one line for each text.
"""

import re

# Control characters except newline and tab, and characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub("", text)


def one_line(text: str, longest: int) -> str:
    """The text as one line of at most `longest` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
