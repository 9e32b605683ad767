"""What a search is for, and where in a text it was found."""

from __future__ import annotations

import re

WORDS_MAX = 20  # words of one query
LONGEST = 100  # characters of one word
BEFORE = 60  # characters shown before the first hit
SHOWN = 240  # characters of a snippet

Piece = tuple[str, bool]

#: Letters of scripts without blanks between words (Thai to Khmer, Chinese, Japanese): there a word
#: may be found anywhere.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


def words(query: str) -> list[str]:
    """The words of a query: letters and digits, in lower case, each once."""
    found = (each[:LONGEST] for each in re.findall(r"[^\W_]+", query.lower()))
    return list(dict.fromkeys(found))[:WORDS_MAX]


def is_unspaced(word: str) -> bool:
    """Whether a word is of a script that puts no blanks between words."""
    return _UNSPACED.search(word) is not None


def snippet(text: str, wanted: list[str]) -> tuple[Piece, ...]:
    """The part of a text around the first of these words, in pieces: (text, was searched for).

    Words count as found where they begin so, or anywhere, as in the search itself. The pieces are
    plain text.
    """
    longest = sorted(wanted, key=len, reverse=True)
    begins = "|".join(each for each in longest if not is_unspaced(each))
    holds = "|".join(each for each in longest if is_unspaced(each))
    ways = [rf"(?<![^\W_])(?:{begins})[^\W_]*"] if begins else []
    pattern = re.compile("|".join([*ways, *([holds] if holds else [])]), re.IGNORECASE)
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
