"""HTML of a text that grows on the page, in parts of bounded length.

A browser shapes adjacent pieces of text together: text appended to a paragraph of 200,000
characters would make it shape the whole paragraph again in each frame. A seam between two parts
prevents this: an empty element with a padding too small to be drawn (`.seam` in answer.css), across
which CSS forbids shaping. It adds neither text nor a line break opportunity. The page joins the
pieces before a seam (see answers.js), so that the text before it is laid out once.

Text without blanks may be broken anywhere; for each line the browser shapes the rest again, or
looks for the ends of words in a dictionary: 100,000 letters in a row take it 15 seconds.
`breakable` therefore puts a `<wbr>` into such a run every RUN characters, also in text that has
ended. It is not copied. Chinese, Japanese and Korean text needs none: it may be broken between any
two characters.
"""

from __future__ import annotations

import re
import unicodedata

NO_PLACE = re.compile("[\0\ud800-\udfff]")

PART = 2000  # characters of a part; up to twice as many if no word begins
SEAM = '<span class="seam"></span>'

#: Used if SPACE does not match: before a letter, a digit or an ASCII sign, so that a character
#: keeps its accents. Not within a character reference, which has at most six characters.
INSIDE = re.compile(r"(?=&)|(?<!&)(?<!&.)(?<!&..)(?<!&...)(?<!&....)(?=[\w!-~])")
#: The usual place of a seam. Not before a capital: fonts kern some capitals with the space.
SPACE = re.compile(r"\s(?=[^\sA-Z])")

_TAGS = re.compile("(<[^<>]*+>)")

RUN = 200  # characters without a blank, after which a `<wbr>` follows
WBR = "<wbr>"
#: Chinese, Japanese and Korean characters, as a part of a pattern's set.
WIDE = "\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef"
_BLANK = f"\\s{WIDE}"
_RUN = re.compile(f"[^{_BLANK}]+")
_TO_LAST_BLANK = re.compile(f"(?s:.*)[{_BLANK}]")
ACCENTS_MAX = 16  # accents that may delay a `<wbr>`


def normalized(text: str) -> str:
    """The text with LF as its only newline, and U+FFFD for NUL and surrogates."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return NO_PLACE.sub("\ufffd", text)


class NewlineNormalizer:
    """`normalized` for text in pieces: the result does not depend on how the text was cut."""

    def __init__(self) -> None:
        self._swallow = False  # the last piece ended in \r: skip a \n that follows

    def feed(self, text: str) -> str:
        """Take the next piece; return it normalized."""
        if self._swallow and text:
            text = text.removeprefix("\n")
            self._swallow = False
        self._swallow = self._swallow or text.endswith("\r")
        return normalized(text)


def breakable(text: str) -> str:
    """Escaped text with a `<wbr>` in each run of more than RUN characters without a blank."""
    return _broken(text, 0)[0]


def _broken(text: str, before: int) -> tuple[str, int]:
    """`breakable` for text after `before` characters without a blank; and how many it ends with."""
    if before + len(text) <= RUN:  # most pieces of an answer
        blank = _TO_LAST_BLANK.match(text)
        return text, len(text) - blank.end() if blank else before + len(text)
    out: list[str] = []
    at = left = 0
    for run in _RUN.finditer(text):
        start, end = run.span()
        count = before if start == 0 else 0
        while count + end - start > RUN:
            cut = start + max(0, RUN - count)
            reference = text.rfind("&", max(start, cut - 5), cut)
            if reference >= 0 and ";" not in text[reference:cut]:
                cut = text.find(";", cut) + 1 or end
            # Not before an accent or another part of a character, up to ACCENTS_MAX of them.
            limit = max(cut, start + RUN + ACCENTS_MAX - count)
            while cut < min(limit, end) and unicodedata.category(text[cut])[0] in "MC":
                cut += 1
            if cut == end:  # more accents may follow
                break
            out.append(text[at:cut])
            out.append(WBR)
            at = start = cut
            count = 0
        left = count + end - start if end == len(text) else 0
    out.append(text[at:])
    return "".join(out), left if text else before


class OpenText:
    """One growing text of the page."""

    def __init__(self) -> None:
        self._size = 0  # characters since the last seam
        self._run = 0  # characters since the last blank or `<wbr>`
        self._normalizer = NewlineNormalizer()

    def feed(self, text: str) -> str:
        """Take the next piece, escaped; return it with the seams and `<wbr>`s that are due.

        It may have closed elements without attributes, as the tail of a `Patch` has. A seam is
        never within an element.
        """
        if "<" in text:
            return self._feed_elements(text)
        text = self._normalizer.feed(text)
        if self._size + len(text) <= PART:  # most pieces of an answer
            self._size += len(text)
            return self._breakable(text)
        return self._in_parts(text)

    def _feed_elements(self, text: str) -> str:
        out: list[str] = []
        elements: list[str] = []  # the start tags of the open ones
        for part in _TAGS.split(text):
            if part[:1] != "<":
                ends = "".join(f"</{tag[1:]}" for tag in reversed(elements))
                seam = f"{ends}{SEAM}{''.join(elements)}"
                out.append(self.feed(part).replace(SEAM, seam))
                continue
            if part[1] == "/":
                elements.pop()
            else:
                elements.append(part)
            out.append(part)
        return "".join(out)

    def _in_parts(self, text: str) -> str:
        out: list[str] = []
        at = 0
        while (due := max(at, at + PART - self._size)) < len(text):
            late = max(at, at + 2 * PART - self._size)
            if space := SPACE.search(text, due, late):
                cut = space.end()
            elif inside := INSIDE.search(text, late):
                cut = inside.start()
            else:
                break
            out += (self._breakable(text[at:cut]), SEAM)
            at, self._size = cut, 0
        out.append(self._breakable(text[at:]))
        self._size += len(text) - at
        return "".join(out)

    def _breakable(self, text: str) -> str:
        text, self._run = _broken(text, self._run)
        return text
