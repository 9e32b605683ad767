"""The name that a file is shown and downloaded under."""

from __future__ import annotations

import unicodedata

NAME_MAX = 200  # characters
NAMELESS = "file"


def clean_name(name: str) -> str:
    """A name from a browser or a program, as one line that cannot be mistaken for a path.

    Without folders, control characters, and characters that change the direction of writing (which
    let `exe.gpj` look like `jpg.exe`). A long name keeps its ending. NAMELESS if nothing is left.
    """
    # macOS decomposes letters with marks.
    name = unicodedata.normalize("NFC", name.replace("\0", ""))
    name = name.replace("\\", "/").rpartition("/")[2]
    kept = [char if unicodedata.category(char)[0] not in "CZ" else " " for char in name]
    name = " ".join("".join(kept).split()).strip(". ")
    if len(name) > NAME_MAX:
        stem, dot, ending = name.rpartition(".")
        if not stem or len(ending) > NAME_MAX // 10:
            stem, dot, ending = name, "", ""
        name = stem[: NAME_MAX - len(dot + ending)].rstrip(". ") + dot + ending
    return name or NAMELESS
