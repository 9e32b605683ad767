"""What a search is for, and where in a text it was found.

Words are found by their beginnings. Chinese, Japanese, Thai and others are written without blanks
between words; there each three letters in a row are a word of the index (`trigrams`), so that what
is inside of a text is found as well: one or two letters are the beginning of such a word.
"""

from __future__ import annotations

import re

#: Characters of one message that the index takes, from its beginning. For each of a Chinese text
#: SQLite takes 8 us, in which nothing else can be written.
INDEXED_MAX = 400_000
WORDS_MAX = 20  # words of one query
LONGEST = 100  # characters of one word
BEFORE = 60  # characters shown before the first hit
SHOWN = 240  # characters of a snippet

#: Thai, Lao, Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_BEGINNING = rf"(?:(?<![^\W_])|(?<=[{_UNSPACED}]))"  # of a word of the other scripts

Piece = tuple[str, bool]


def trigrams(text: str) -> str | None:
    """A text as its words go into the index; None where that is the text itself.

    Of a longer text than INDEXED_MAX, and of one that is longer in trigrams, the beginning.
    """
    part = text[:INDEXED_MAX]
    if not part.isascii() and _RUN.search(part):
        # A letter becomes four characters, so this much is enough to cut from.
        return _RUN.sub(lambda run: _cut(run[0], end=1), part)[:INDEXED_MAX]
    return part if len(part) < len(text) else None


def _cut(run: str, end: int) -> str:
    """The trigrams of a run, without its marks; those at its end may be shorter, down to `end`."""
    letters = "".join(each for each in run if each.isalnum())
    parts = [letters[at : at + 3] for at in range(max(1, len(letters) - end + 1))]
    return f" {' '.join(parts)} "


def words(query: str) -> list[str]:
    """The words of a query: letters and digits, in lower case, each once."""
    found = (each[:LONGEST] for each in re.findall(r"[^\W_]+", query.lower()))
    return list(dict.fromkeys(found))[:WORDS_MAX]


def terms(query: str) -> list[str]:
    """What the index is asked for: its words begin with these."""
    return words(_RUN.sub(lambda run: _cut(run[0], end=3), query))


def snippet(text: str, wanted: list[str]) -> tuple[Piece, ...]:
    """The part of a text around the first of these words, in pieces: (text, was searched for).

    Words count as found as in the search itself. The pieces are plain text.
    """
    longest = sorted(wanted, key=len, reverse=True)
    inside = [re.escape(each) for each in longest if _RUN.search(each)]
    begun = [re.escape(each) for each in longest if not _RUN.search(each)]
    whole = [rf"{_BEGINNING}(?:{'|'.join(begun)})[^\W_]*"] if begun else []
    pattern = re.compile("|".join(inside + whole), re.IGNORECASE)
    first = pattern.search(text, 0, INDEXED_MAX)
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
