"""What a search is for, and where in a text it was found."""

from __future__ import annotations

import re

WORDS_MAX = 20  # words of one query
LONGEST = 100  # characters of one word
BEFORE = 60  # characters shown before the first hit
SHOWN = 240  # characters of a snippet

Piece = tuple[str, bool]


def words(query: str) -> list[str]:
    """The words of a query: letters and digits, in lower case, each once."""
    found = (each[:LONGEST] for each in re.findall(r"[^\W_]+", query.lower()))
    return list(dict.fromkeys(found))[:WORDS_MAX]


def snippet(text: str, wanted: list[str]) -> tuple[Piece, ...]:
    """The part of a text around the first of these words, in pieces: (text, was searched for).

    Words count as found where they begin so, as in the search itself. The pieces are plain text.
    """
    pattern = re.compile(
        rf"(?<![^\W_])(?:{'|'.join(map(re.escape, sorted(wanted, key=len, reverse=True)))})[^\W_]*",
        re.IGNORECASE,
    )
    first = pattern.search(text)
    start = max(0, first.start() - BEFORE) if first else 0
    if start:
        start = text.rfind(" ", 0, start + 1) + 1 or start  # at a word's beginning
        start = max(start, first.start() - 2 * BEFORE if first else 0)
    part = text[start : start + SHOWN]
    pieces: list[Piece] = [("…", False)] if start else []
    at = 0
    for match in pattern.finditer(part):
        pieces += [(part[at : match.start()], False), (match[0], True)]
        at = match.end()
    pieces.append((part[at:] + ("…" if start + SHOWN < len(text) else ""), False))
    return tuple((" ".join(said.split("\n")), hit) for said, hit in pieces if said)
