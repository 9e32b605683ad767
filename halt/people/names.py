"""The names of accounts and API tokens: which are allowed, and when two are the same.

A name must not pass for another, nor look like none. So it has no invisible characters, but for
those two that scripts and emoji need; names that differ in these alone are the same.
"""

from __future__ import annotations

import re
import unicodedata

from halt.errors import RequestError
from halt.store.tables import storable

NAME_MAX = 60  # characters
JOINERS = "\u200c\u200d"
#: Letters and symbols that are drawn as nothing.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories of Unicode
#: Parts of other characters: joiners, and selectors of a variant.
_UNCOUNTED = re.compile(f"[\u034f{JOINERS}\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_AROUND = re.compile(rf"\A[\s{JOINERS}]+|[\s{JOINERS}]+\Z")


def checked_name(name: str) -> str:
    """The name as it is saved: without spaces around it, composed (NFC). Raises RequestError."""
    composed = _AROUND.sub("", unicodedata.normalize("NFC", name))
    if not 1 <= len(composed) <= NAME_MAX:
        raise RequestError(f"A name has 1 to {NAME_MAX} characters.", field="name")
    if any(_is_invisible(char) for char in composed):
        raise RequestError(
            "A name has no control characters, no invisible ones and no line breaks.", field="name"
        )
    if not _has_visible(composed):
        raise RequestError("A name needs a letter, a digit or a sign.", field="name")
    return composed


def shown_name(text: str, most: int) -> str:
    """A name from elsewhere for display: one line without invisible characters, cut to `most`.

    "" if it has no visible character.
    """
    spaced = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text[: 4 * most])
    visible = "".join(char for char in spaced if not _is_invisible(char))
    cut = _AROUND.sub("", _AROUND.sub("", visible)[:most])
    return cut if _has_visible(cut) else ""


def name_key(name: str) -> str:
    """By this two names are the same: without regard to case and to how letters are composed.

    Every database accepts it, also of a text that is no name.
    """
    counted = _UNCOUNTED.sub("", unicodedata.normalize("NFC", name)).strip().casefold()
    return storable(unicodedata.normalize("NFC", counted))


def _is_invisible(char: str) -> bool:
    return (unicodedata.category(char) in _INVISIBLE and char not in JOINERS) or char in _BLANK


def _has_visible(text: str) -> bool:
    return any(unicodedata.category(char)[0] in "LNPS" for char in text if char not in _BLANK)
