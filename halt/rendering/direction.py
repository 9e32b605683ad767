"""Whether a text, or a part of it, is written from right to left."""

from __future__ import annotations

import re
import unicodedata

#: Hebrew to Arabic Extended, their presentation forms, right-to-left scripts beyond the BMP, and
#: the characters that set a direction.
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\u200f\u202b\u202e\u2067\ufb1d-\ufdff\ufe70-\ufefc"
    "\U00010800-\U00010fff\U0001e800-\U0001efff]"
)


def has_right_to_left(text: str) -> bool:
    """True if the direction of a part of the text can be right to left.

    Only such texts get attributes for directions, and prompts the class `bidi`: to find the
    direction of each paragraph takes a browser twice as long as the rest of its layout.
    """
    return not text.isascii() and _RIGHT_TO_LEFT.search(text) is not None


def first_direction(text: str) -> str:
    """The direction of the first letter, "ltr" or "rtl"; "" for a text without letters."""
    for char in text:
        category = unicodedata.bidirectional(char)
        if category == "L":
            return "ltr"
        if category in {"R", "AL"}:
            return "rtl"
    return ""
