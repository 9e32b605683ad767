"""Titles out of what was said: a prompt's first words, and what a model says when it is asked.

Each is one line of plain text, without the marks of Markdown.
"""

from __future__ import annotations

import re
import unicodedata

TITLE_MOST = 50  # characters
WORDS_MOST = 8  # in what a model says; more are no title but an answer
LOOKED_AT = 1000  # characters of a prompt, and of what a model says: marks of links are quadratic


def first_words(prompt: str) -> str:
    """A title of a prompt's own first words, cut at a word; empty where it has none."""
    for line in prompt.lstrip()[:LOOKED_AT].splitlines():
        words = "" if line.lstrip().startswith(("```", "~~~")) else _plain(line)
        if words.strip(_RULES):
            return _shortened(words)
    return ""


_LABEL = re.compile(r"^(?:the )?title\s*+(?:is\s*+)?[:\uff1a-]\s*", re.IGNORECASE)
_RULES = "-=_|:+.<> "  # a line of these alone has no words
_QUOTES = " \"'`\u201c\u201d\u2018\u2019\u201e\u201a\u00ab\u00bb\u300c\u300d\u300e\u300f"


def cleaned(said: str) -> str:
    """The title in what a model said: one line, no quotes, no label; empty where it is no title."""
    for line in said[:LOOKED_AT].splitlines():
        title = _LABEL.sub("", _plain(line)).strip(_QUOTES).rstrip(".:\u3002").strip(_QUOTES)
        if title:
            whole = len(title.split()) <= WORDS_MOST
            return _shortened(title) if whole else ""
    return ""


def is_about(title: str, exchange: str) -> bool:
    """Whether a title has a word of the exchange: small models' inventions have none."""
    words = _words(title)
    return not words or not words.isdisjoint(_words(exchange))


def _words(text: str) -> set[str]:
    """The longer words' beginnings, and the characters of scripts without blanks."""
    longer = {word[:4] for word in re.findall(r"\w{4,}", text.lower())}
    return longer | {char for char in text if unicodedata.east_asian_width(char) in "WF"}


_LINK = re.compile(r"!?\[([^\[\]\n]*+)\]\([^()\[\s]*+\)")
_MARKS = re.compile(
    r"^\s*(?:(?:#{1,6}|[-*+>]|\d{1,9}[.)])\s+)+|^\s*\|"  # at a line's beginning
    r"|`+|~~+|\*\*+|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)|(?<!\w)_+|_+(?!\w)"
)


def _plain(line: str) -> str:
    """A line of Markdown without its marks, in single blanks."""
    text = _MARKS.sub("", _LINK.sub(r"\1", line))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shortened(text: str) -> str:
    """At most TITLE_MOST characters, cut at a word where there is one."""
    if len(text) <= TITLE_MOST:
        return text
    cut = text[: TITLE_MOST - 1]
    head, blank, _ = cut.rpartition(" ")
    if blank and text[TITLE_MOST - 1] != " " and len(head) > TITLE_MOST // 2:
        cut = head
    return cut.rstrip(" ,;:.-") + "\u2026"
