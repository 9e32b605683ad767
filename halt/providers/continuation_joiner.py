"""The seam between an answer that broke off and the text that a model goes on with."""

from __future__ import annotations

import re
import unicodedata

TAIL_MIN = 24  # characters of the last words that a model is asked to repeat
TAIL_MAX = 160  # of them, where fewer would not tell one place of the text from another
LINE_MIN = 12  # characters of a last line that are enough by themselves
WINDOW = 400  # characters before the end of a text in which a repeat may begin
LEAD_MAX = 100  # characters that a model may say before its repeat ("Sure, I go on:")
BLANK_MAX = 200  # characters of white space that are waited for at a seam
SURE_MIN = 8  # characters of a repeat behind which nothing is waited for
PARTIAL_MIN = 4  # characters that are a repeat also where they end within a word


def last_words(text: str) -> str:
    """The last words of a text that ends with no white space: as few as tell its end."""
    window = text[-WINDOW:]
    line = window.rpartition("\n")[2].lstrip()
    size = TAIL_MIN
    if len(line) >= LINE_MIN:
        size = min(size, len(line))
    while True:
        start = max(0, len(window) - size)
        while start > 0 and len(window) - start < TAIL_MAX and _is_word(window, start):
            start -= 1
        tail = window[start:].lstrip()
        if len(tail) >= min(TAIL_MAX, len(window)) or window.find(tail) == len(window) - len(tail):
            return tail
        if start == 0:
            return tail
        size = len(window) - start + TAIL_MIN // 2


def _is_word(text: str, at: int) -> bool:
    """Whether a word goes on from the character before this place to the one behind it."""
    return 0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at])


def _in_word(char: str) -> bool:
    """Whether a character belongs to a word of a script that has blanks between its words."""
    if not (char.isalnum() or char == "_" or unicodedata.combining(char)):
        return False
    return unicodedata.east_asian_width(char) not in "WF"


_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
_OPENED = re.compile(r"\s*(?:`{3,}|~{3,})[\w+#.-]*[ \t]*\n")  # a fence that a model has put around
_LEAD_ENDS = (":", "\u2026", "...", '"', "\u201c", "\u201e", "\u00ab", "`", "'")
_BLOCK = re.compile(r"(#{1,6} |`{3}|~{3})")
_WORD = re.compile(r"\w+")
_LAST_WORD = re.compile(r"(?<!\w)\w++\Z")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)]) ")


class ContinuationJoiner:
    """Joins new text to an old one. Holds back what may be a repeat until that is clear.

    Linear in the text; never holds back more than the old text where the new one repeats it from
    its beginning, and a few hundred characters otherwise.
    """

    def __init__(self, old: str, *, repeats: bool = False, echoes: bool = False) -> None:
        """`repeats`: the model was asked to repeat the last words, which it may not have done.

        `echoes`: the server may give the whole old text again.
        """
        self._made = old, repeats, echoes
        self._old = old.rstrip()
        self._blank = old[len(self._old) :]  # white space that is on the page already
        self._tail = last_words(self._old) if repeats else ""
        self._repeats = repeats
        self._in_fence = repeats and len(_FENCE.findall(old)) % 2 == 1
        self._held = ""
        self._echoed = 0  # characters of the old text that came again, beyond what is held
        self._blanks: list[str] = []  # white space that has come at the seam, and is held
        self._waiting = 0  # characters of it
        self._is_same = True  # they are those of `_blank`, as far as they go
        self._phase = "repeat" if repeats or echoes else "blank"
        if self._phase == "blank" and not self._blank:
            self._phase = "through"

    @property
    def is_through(self) -> bool:
        """It holds nothing back any more."""
        return self._phase == "through"

    def fresh_copy(self) -> ContinuationJoiner:
        """The same seam before any new text."""
        old, repeats, echoes = self._made
        return ContinuationJoiner(old, repeats=repeats, echoes=echoes)

    def feed(self, text: str) -> str:
        """New text as it comes; what of it is to be shown now."""
        if self._phase == "through":
            return text
        if self._phase == "repeat":
            if self._echoed:
                return self._echo(text)
            self._held += text
            cut = self._cut()
            return "" if cut is None else self._cut_off(*cut)
        self._held += text
        return self._join_blank(last=False)

    def end(self) -> str:
        """There is no more text; what was held back of it and is to be shown."""
        shown = ""
        if self._phase == "repeat":
            held = self._old[: self._echoed] + self._held
            self._held, self._echoed = held, 0
            if self._repeats and self._tail.startswith(held) and len(held) >= PARTIAL_MIN:
                self._held = ""  # it ended within the repeat
            elif held:
                shown = self._cut_off(*self._best_cut())
        if self._phase == "blank":
            shown += self._join_blank(last=True)
        self._phase = "through"
        return shown

    # --- what is a repeat -------------------------------------------------------------------------

    def _cut(self) -> tuple[int, bool] | None:
        """How many of the characters held are not to be shown, and whether they are a repeat.

        None: that is not clear yet.
        """
        held, old, tail = self._held, self._old, self._tail
        if not held:
            return None
        if not self._repeats:
            if held.startswith(old):
                return len(old), True
            return None if self._is_echo() else (0, True)
        if held.startswith(tail):
            return len(tail), True
        if held.startswith(old):
            return len(old), True
        found = held.find(tail)
        if found > 0 and old.endswith(held[: found + len(tail)]):
            return found + len(tail), True
        if tail.startswith(held) or held in old[-WINDOW:] or self._is_echo():
            return None
        if found > 0 and self._is_lead(found):
            return found + len(tail), True
        best = self._best_cut()  # fewer words than asked are a repeat as well
        waited = len(held) >= LEAD_MAX + len(tail)
        return best if waited or (best[1] and best[0] >= SURE_MIN) else None

    def _is_echo(self) -> bool:
        """All that came is the beginning of the old text. What is long is not kept twice."""
        if not self._old.startswith(self._held):
            return False
        if len(self._held) > WINDOW:
            self._echoed, self._held = len(self._held), ""
        return True

    def _echo(self, text: str) -> str:
        """Go on to compare with the old text from its beginning."""
        left = self._old[self._echoed : self._echoed + len(text)]
        if left == text and self._echoed + len(text) < len(self._old):
            self._echoed += len(text)
            return ""
        self._held, echoed = text, self._echoed
        self._echoed = 0
        if text.startswith(left) and echoed + len(left) == len(self._old):
            return self._cut_off(len(left), True)
        self._held = self._old[:echoed] + text  # it was another text after all
        return self._cut_off(*self._best_cut())

    def _is_lead(self, found: int) -> bool:
        """What stands before the repeat is an introduction, a quotation mark, a code fence."""
        lead = self._held[:found]
        return found <= LEAD_MAX and (
            lead.rstrip().endswith(_LEAD_ENDS)
            or _OPENED.fullmatch(lead) is not None
            or not lead.strip()
        )

    def _best_cut(self) -> tuple[int, bool]:
        """The same where the last words, as they were asked for, are not there."""
        held, old = self._held, self._old
        if not self._repeats:
            return 0, True
        skipped = 0
        if self._in_fence and (opened := _OPENED.match(held)):
            # Without a language it is more likely the end of the block that is open.
            skipped = opened.end() if opened[0].strip(" \n\t`~") else 0
        rest = held[skipped:]
        for size in range(min(len(rest), len(self._tail), WINDOW), 0, -1):
            if old.endswith(rest[:size]) and self._is_repeat(rest, size):
                return skipped + size, True
        return skipped, False

    def _is_repeat(self, new: str, size: int) -> bool:
        """Whether so many characters, which stand at both sides of the seam, are there twice."""
        old = self._old
        if _is_word(old, len(old) - size) or not any(char.isalnum() for char in new[:size]):
            return False
        if size >= PARTIAL_MIN:
            return True
        return not _is_word(new, size) and (size > 1 or _in_word(new[0]))

    # --- what is between the two ------------------------------------------------------------------

    def _cut_off(self, cut: int, repeated: bool) -> str:
        """What is not to be shown is known: go on with what is behind it."""
        self._held = self._held[cut:]
        if cut and not repeated:
            self._held = "\n" + self._held  # what stood behind a fence stands on a line of its own
        elif not repeated and not self._blank:
            self._held = self._between() + self._held
        self._phase = "blank" if self._blank else "through"
        if self._phase == "blank":
            return self._join_blank(last=False)
        text, self._held = self._held, ""
        return text

    def _between(self) -> str:
        """What is missing between the old text and a new one that repeats nothing of it."""
        old, new = self._old, self._held
        before, after = old[-1], new[:1]
        if not after or after.isspace():
            return ""
        if not self._in_fence:
            line = old.rpartition("\n")[2]
            if _BLOCK.match(new):
                return "\n\n"
            if _ITEM.match(new) and _ITEM.match(line):
                return "\n"
        if before.isdigit() and after.isdigit():
            return ""
        if not _in_word(after):
            return ""
        if _in_word(before):
            return "" if self._completes_word() else " "
        decimal = after.isdigit() and old[-2:-1].isdigit()
        return " " if before in ".,;:!?" and not decimal else ""

    def _completes_word(self) -> bool:
        """The new text begins within a word, which the old one has elsewhere as a whole only."""
        ends, begins = _LAST_WORD.search(self._old[-WINDOW:]), _WORD.match(self._held)
        if ends is None or begins is None:
            return False
        words = set(_WORD.findall(self._old[: -len(ends[0])]))
        return ends[0] + begins[0] in words and ends[0] not in words

    def _join_blank(self, *, last: bool) -> str:
        """White space at the seam, as the new text has it, without what is there already."""
        text, blank, before = self._held, self._blank, self._waiting
        self._held = ""
        if self._is_same:
            left = blank[before : before + len(text)]
            if text.startswith(left) and before + len(left) == len(blank):
                self._blanks, self._phase = [], "through"
                return text[len(left) :]
            self._is_same = text == left
        self._blanks.append(text)
        self._waiting += len(text)
        begun = text.lstrip()
        if not begun and not last and self._waiting < len(blank) + BLANK_MAX:
            return ""
        held = "".join(self._blanks)
        self._blanks, self._phase = [], "through"
        return _added(blank, held[: len(held) - len(begun)]) + begun


def _added(old: str, new: str) -> str:
    """What the new white space adds to the old one before it."""
    if "\n" in old and "\n" not in new:
        return ""  # a blank within a line, and the line is over
    return new[_shared(old, new) :]


def _shared(old: str, new: str) -> int:
    """How many characters at the end of `old` are those at the beginning of `new`, at most.

    Linear in both: Knuth, Morris and Pratt's.
    """
    borders = [0]  # for each beginning of `new`: the longest proper one that is also its end
    size = 0
    for char in new[1 : len(old)]:
        while size and char != new[size]:
            size = borders[size - 1]
        size += char == new[size]
        borders.append(size)
    size = 0
    for char in old[-len(borders) :]:
        while size and (size == len(borders) or char != new[size]):
            size = borders[size - 1]
        size += char == new[size : size + 1]
    return size
