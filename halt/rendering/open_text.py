"""Text that grows on the page, as HTML in parts of bounded length.

A browser shapes adjacent pieces of text together. Text that is appended to a paragraph of 200,000
characters would have all of it shaped again, in each frame. So a seam stands between two parts: an
empty element with a padding that is too small to be drawn (`.seam` in halt.css), across which CSS
lets no browser shape. It adds neither text nor a place to break a line. The page joins the pieces
before a seam (see halt.js), and what is before it is then laid out once.

Text without blanks is broken anywhere, and for each line the browser shapes the rest of it anew, or
asks a dictionary where its words end: 100,000 letters in a row take it 15 seconds. So a `<wbr>`
stands in such a run every RUN characters (`breakable`), also in text that has ended. It is not
copied. Chinese, Japanese and Korean are broken between any two characters without that.
"""

from __future__ import annotations

import re
import unicodedata

NO_PLACE = re.compile("[\0\ud800-\udfff]")

PART = 2000  # characters of a part; up to twice as many where no word begins
SEAM = '<span class="seam"></span>'

#: Where no such place comes: before a letter, a digit or an ASCII sign, so that no character is
#: taken from its accents. Not within a character reference, which has at most six characters.
INSIDE = re.compile(r"(?=&)|(?<!&)(?<!&.)(?<!&..)(?<!&...)(?<!&....)(?=[\w!-~])")
#: Not before a capital: fonts kern some of them with the space before them.
SPACE = re.compile(r"\s(?=[^\sA-Z])")

RUN = 200  # characters in a row without a blank, up to a place to break the line
WBR = "<wbr>"
_BLANK = "\\s\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef"
_RUN = re.compile(f"[^{_BLANK}]+")
_TO_LAST_BLANK = re.compile(f"(?s:.*)[{_BLANK}]")
ACCENTS_MAX = 16  # that a place to break the line waits for


def normalized(text: str) -> str:
    """The text with one kind of newline, and U+FFFD for what has no place in a page."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return NO_PLACE.sub("\ufffd", text)


class NewlineNormalizer:
    """The same for text in pieces: what comes out is a function of the text, not of its cuts."""

    def __init__(self) -> None:
        self._swallow = False  # the last piece ended in \r: its \n may still come

    def feed(self, text: str) -> str:
        """The next piece of it."""
        if self._swallow and text:
            text = text.removeprefix("\n")
            self._swallow = False
        self._swallow = self._swallow or text.endswith("\r")
        return normalized(text)


def breakable(text: str) -> str:
    """Escaped text with the places to break lines that it needs."""
    return _broken(text, 0)[0]


def _broken(text: str, before: int) -> tuple[str, int]:
    """The same behind so many characters without a blank; and with how many of them it ends."""
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
            # Not before an accent or another part of the character, unless there is no end to them.
            limit = max(cut, start + RUN + ACCENTS_MAX - count)
            while cut < min(limit, end) and unicodedata.category(text[cut])[0] in "MC":
                cut += 1
            if cut == end:  # more of them may come
                break
            out.append(text[at:cut])
            out.append(WBR)
            at = start = cut
            count = 0
        left = count + end - start if end == len(text) else 0
    out.append(text[at:])
    return "".join(out), left if text else before


class OpenText:
    """One text of the page that grows."""

    def __init__(self) -> None:
        self._size = 0  # characters since the last seam
        self._run = 0  # characters since the last blank or place to break a line
        self._normal = NewlineNormalizer()

    def feed(self, text: str) -> str:
        """`text` is the next piece, escaped; returned with the seams and the places to
        break lines that are due in it."""
        text = self._normal.feed(text)
        if self._size + len(text) <= PART:  # most pieces of an answer
            self._size += len(text)
            return self._breakable(text)
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
