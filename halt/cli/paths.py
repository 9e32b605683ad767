"""Paths in an input line: their quotes, and their completion with Tab."""

from __future__ import annotations

import os
import re
import shlex

#: A word of a line; its last quote may be open, and it may end with a backslash.
_WORD = re.compile(
    r"""(?:[^\s\\'"]|\\(?:.|\Z)|'[^']*(?:'|\Z)|"(?:[^"\\]|\\(?:.|\Z))*(?:"|\Z))+""", re.DOTALL
)
_SPECIAL = re.compile(r"([^\w@%+=:,./~-])")


def split_paths(text: str) -> list[str]:
    """The paths in a line: quoted as in a shell, or one path as it is.

    A path with spaces or an apostrophe needs no quotes if it is the only one.
    """
    try:
        if os.path.exists(os.path.expanduser(text)):
            return [text]
        return shlex.split(text)
    except ValueError:
        return [text]


def completions(text: str) -> list[tuple[str, str, int]]:
    """The paths that the last word of a line may become, in the order of the alphabet.

    Each is a word with its quotes, the name to show, and the length of the word it replaces.
    """
    word, end = "", 0
    for match in _WORD.finditer(text):
        word, end = match[0], match.end()
    word = word if end == len(text) else ""
    try:
        path = "".join(shlex.split(word))
    except ValueError:  # a quote is open, or it ends with a backslash
        path = re.sub(r"[\"'\\]", "", word)
    folder, slash, start = path.rpartition("/")
    folder += slash
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            entry_names = sorted((entry.name, entry.is_dir()) for entry in entries)
    except (OSError, ValueError):
        return []
    return [
        (_SPECIAL.sub(r"\\\1", folder + name) + "/" * is_folder, name + "/" * is_folder, len(word))
        for name, is_folder in entry_names
        if name.startswith(start) and (start or not name.startswith("."))
    ]
