"""Makes titles of conversations from a prompt's first words or from a model's reply.

A title is one line of plain text, without Markdown marks.
"""

from __future__ import annotations

import re
import unicodedata

TITLE_MOST = 50  # characters
WORDS_MOST = 8  # of a model's reply; a longer one is an answer, not a title
LOOKED_AT = 1000  # characters read of a prompt or a reply: the search for links is quadratic


def first_words(prompt: str) -> str:
    """A prompt's first words as a title, cut at a word; "" if the prompt has no words."""
    for line in prompt.lstrip()[:LOOKED_AT].splitlines():
        words = "" if line.lstrip().startswith(("```", "~~~")) else _plain(line)
        if words.strip(_RULES):
            return _shortened(words)
    return ""


_LABEL = re.compile(r"^(?:the )?title\s*+(?:is\s*+)?[:\uff1a-]\s*", re.IGNORECASE)
_RULES = "-=_|:+.<> "  # a line of only these characters has no words
_QUOTES = " \"'`\u201c\u201d\u2018\u2019\u201e\u201a\u00ab\u00bb\u300c\u300d\u300e\u300f"


def cleaned(reply: str) -> str:
    """The title in a model's reply: one line, no quotes, no label; "" if there is no title."""
    for line in reply[:LOOKED_AT].splitlines():
        title = _LABEL.sub("", _plain(line)).strip(_QUOTES).rstrip(".:\u3002").strip(_QUOTES)
        if title:
            is_title = len(title.split()) <= WORDS_MOST
            return _shortened(title) if is_title else ""
    return ""


def is_about(title: str, exchange: str) -> bool:
    """Whether a title shares a word with the exchange; titles that small models invent do not."""
    words = _words(title)
    return not words or not words.isdisjoint(_words(exchange))


def _words(text: str) -> set[str]:
    """The first 4 letters of longer words, and the characters of scripts without spaces."""
    prefixes = {word[:4] for word in re.findall(r"\w{4,}", text.lower())}
    return prefixes | {char for char in text if unicodedata.east_asian_width(char) in "WF"}


_LINK = re.compile(r"!?\[([^\[\]\n]*+)\]\([^()\[\s]*+\)")
_MARKS = re.compile(
    r"^\s*(?:(?:#{1,6}|[-*+>]|\d{1,9}[.)])\s+)+|^\s*\|"  # at the start of a line
    r"|`+|~~+|\*\*+|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)|(?<!\w)_+|_+(?!\w)"
)


def _plain(line: str) -> str:
    """A line of Markdown without its marks; each run of white space is one space."""
    text = _MARKS.sub("", _LINK.sub(r"\1", line))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shortened(text: str) -> str:
    """At most TITLE_MOST characters, cut between words if possible."""
    if len(text) <= TITLE_MOST:
        return text
    cut = text[: TITLE_MOST - 1]
    head, blank, _ = cut.rpartition(" ")
    if blank and text[TITLE_MOST - 1] != " " and len(head) > TITLE_MOST // 2:
        cut = head
    return cut.rstrip(" ,;:.-") + "\u2026"
