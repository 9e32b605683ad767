"""The open block's text as provisional HTML: emphasis and code as they come.

Each piece of text becomes HTML whose elements are closed, so that the page can append it. What was
given is never taken back: a mark is held until the character after it decides, and what a later
mark would change stays until the block is finished and rendered. Emphasis and code that are not
closed end with their line. Formulas, links and tags stay as they are written.
"""

from __future__ import annotations

import html
import re

from halt.rendering.grammar.emphasis import can_open_and_close
from halt.rendering.grammar.formulas import is_in_word

STYLED_MAX = 10_000  # characters of a block; the rest has no elements, whose number is so bounded
HELD_MAX = 32  # characters of a mark that are held; a longer run of them is text
CODE_EDGE = "<code></code>"  # has the width that the page gives the edge of code

_SPECIAL = re.compile(r"[\n\\`*_~$<>&\"']")
_TEXT = re.compile(r"\n|\\[\s\S]?|`{1,32}|\*{1,32}|_{1,32}|~{1,32}|\$\$?")
_CODE = re.compile(r"\n|`{1,32}")
_FORMULA = re.compile(r"\n|\\[\s\S]?|\$\$?|`|\*\*?")
_ESCAPABLE = frozenset("!\"#$%&'*+,-./:;<=>?@]^_`{|}~)\\")
_TAGS = {"*": ("", "em", "strong"), "_": ("", "em", "strong"), "~": ("", "", "s")}


class Provisional:
    """The text of one open block. Its HTML depends on the text alone, not on its pieces."""

    def __init__(self) -> None:
        self._held = ""  # the end of the text: a mark that may still grow
        self._before = "\n"  # the last character before that
        self._left = STYLED_MAX
        self._end_styles()

    def _end_styles(self) -> None:
        self._marks: dict[str, str] = {}  # open elements, each with its mark's character
        self._code = 0  # backticks of the open code
        self._formula = ""  # the closing mark of the open formula

    def literal(self, text: str) -> str:
        """The HTML of a piece in which no mark has a meaning. It ends all elements."""
        held, self._held = html.escape(self._held), ""
        self._end_styles()
        self._before = text[-1:] or self._before
        return held + html.escape(text)

    def feed(self, text: str) -> str:
        """The HTML of the next piece."""
        if len(text) <= self._left and not self._held and not _SPECIAL.search(text):
            self._left -= len(text)  # most pieces of an answer
            self._before = text[-1:] or self._before
            return text if self._is_plain else "".join(self._styled(text))
        if len(text) > self._left:
            styled = self._feed(text[: self._left]) if self._left else ""
            rest = self.literal(text[self._left :])
            self._left = 0
            return styled + rest
        self._left -= len(text)
        return self._feed(text)

    def _feed(self, text: str) -> str:
        text, at = self._held + text, 0
        self._held = ""
        out: list[str] = []
        while match := self._pattern().search(text, at):
            mark, start, end = match[0], *match.span()
            if end == len(text) and mark != "\n" and _may_grow(mark):
                self._held = mark
                text = text[:start]
                break
            out += self._styled(text[at:start])
            before = text[start - 1] if start else self._before
            out += self._take(mark, before, text[end : end + 1])
            at = end
        out += self._styled(text[at:])
        self._before = text[-1:] or self._before
        return "".join(out)

    @property
    def _is_plain(self) -> bool:
        return not (self._marks or self._code)

    def _pattern(self) -> re.Pattern[str]:
        return _CODE if self._code else _FORMULA if self._formula else _TEXT

    def _take(self, mark: str, before: str, after: str) -> list[str]:
        """The HTML of a mark between these characters."""
        if mark == "\n":
            return self._end_line()
        if self._code:
            if len(mark) != self._code:
                return self._styled(mark)
            self._code = 0
            return self._wrapped(CODE_EDGE)
        if self._formula:
            return self._take_in_formula(mark, before, after)
        kind = mark[0]
        if kind == "\\":
            return self._take_backslash(mark[1:])
        if kind == "$":
            return self._take_dollar(mark, before, after)
        if kind == "`":
            if len(mark) >= HELD_MAX:
                return self._styled(mark)
            out = self._wrapped(CODE_EDGE)
            self._code = len(mark)
            return out
        return self._take_emphasis(mark, before, after)

    def _end_line(self) -> list[str]:
        formula = self._formula if self._formula in ("$$", "\\]") else ""
        self._end_styles()
        self._formula = formula
        return ["\n"]

    def _take_backslash(self, char: str) -> list[str]:
        if char in ("(", "["):
            self._formula = "\\)" if char == "(" else "\\]"
        elif char == "\n":
            return self._end_line()
        elif char in _ESCAPABLE:
            return self._styled(char)
        return self._styled(f"\\{char}")

    def _take_dollar(self, mark: str, before: str, after: str) -> list[str]:
        is_money = mark == "$" and (after.isspace() or after.isdigit())
        if not is_in_word(before) and not is_money and after != "$":
            self._formula = mark
        return self._styled(mark)

    def _take_in_formula(self, mark: str, before: str, after: str) -> list[str]:
        is_inline = self._formula == "$"
        if mark == self._formula or (is_inline and mark[0] == "$"):
            self._formula = ""
        elif is_inline and mark in ("`", "**"):  # the dollar sign meant money
            self._formula = ""
            return self._take(mark, before, after)
        return self._styled(mark)

    def _take_emphasis(self, mark: str, before: str, after: str) -> list[str]:
        kind, size = mark[0], len(mark)
        if size > 3 or (kind == "~" and size != 2) or (kind == "_" and size > 1):  # __init__
            return self._styled(mark)
        opens, closes = can_open_and_close(before, after or " ", size, can_split_word=kind != "_")
        tags = ["em", "strong"] if size == 3 else [_TAGS[kind][size]]
        if closes and all(self._marks.get(tag) == kind for tag in tags):
            for tag in tags:
                del self._marks[tag]
        elif opens and not any(tag in self._marks for tag in tags):
            self._marks |= dict.fromkeys(tags, kind)
        else:
            return self._styled(mark)
        return []

    def _styled(self, text: str) -> list[str]:
        """Text in the open elements."""
        if not text:
            return []
        text = html.escape(text)
        return self._wrapped(f"<code>{text}</code>" if self._code else text)

    def _wrapped(self, inner: str) -> list[str]:
        """The HTML in the open elements."""
        for tag in self._marks:
            inner = f"<{tag}>{inner}</{tag}>"
        return [inner]


def _may_grow(mark: str) -> bool:
    """Whether the next character decides what a mark at the end of the text means."""
    return len(mark) < HELD_MAX and not (mark[0] == "\\" and len(mark) == 2)
