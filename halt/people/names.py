"""The names of accounts: which are allowed, and when two are the same."""

from __future__ import annotations

import unicodedata

from halt.errors import RequestError
from halt.store.tables import storable

NAME_MAX = 60  # characters


def checked_name(name: str) -> str:
    """The name as it is saved: without spaces around it, composed (NFC). Raises RequestError."""
    composed = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(composed) <= NAME_MAX:
        raise RequestError(f"A name has 1 to {NAME_MAX} characters.", field="name")
    if any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in composed):
        raise RequestError("A name has no control characters and no line breaks.", field="name")
    return composed


def name_key(name: str) -> str:
    """By this two names are the same: without regard to case and to how letters are composed.

    Every database accepts it, also of a text that is no name.
    """
    composed = unicodedata.normalize("NFC", name).strip().casefold()
    return storable(unicodedata.normalize("NFC", composed))
