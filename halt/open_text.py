"""Text that grows on the page, as HTML in parts of bounded length.

A browser shapes adjacent pieces of text together. Text that is appended to a paragraph of 200,000
characters would have all of it shaped again, in each frame. So a seam stands between two parts: an
empty element with a padding that is too small to be drawn (`.seam` in halt.css), across which CSS
lets no browser shape. It adds neither text nor a place to break a line. The page joins the pieces
before a seam (see halt.js), and what is before it is then laid out once.
"""

from __future__ import annotations

import re

PART = 2000  # characters of a part; up to twice as many where no word begins
SEAM = '<span class="seam"></span>'

#: Where no such place comes: before a letter, a digit or an ASCII sign, so that no character is
#: taken from its accents. Not within a character reference, which has at most six characters.
INSIDE = re.compile(r"(?=&)|(?<!&)(?<!&.)(?<!&..)(?<!&...)(?<!&....)(?=[\w!-~])")
#: Not before a capital: fonts kern some of them with the space before them.
SPACE = re.compile(r"\s+(?=[^\sA-Z])")


class OpenText:
    """One text of the page that grows."""

    def __init__(self) -> None:
        self._size = 0  # characters since the last seam

    def draw(self, text: str) -> str:
        """`text` is the next piece, escaped; returned with the seams that are due in it."""
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
            out += (text[at:cut], SEAM)
            at, self._size = cut, 0
        out.append(text[at:])
        self._size += len(text) - at
        return "".join(out)
