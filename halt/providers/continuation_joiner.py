"""Joins the continuation of an answer to the unfinished text, and removes what it repeats."""

from __future__ import annotations

import re
import unicodedata

TAIL_MIN = 24  # characters of the last words that the instruction says to repeat
TAIL_MAX = 160  # the same, if fewer occur more than once in the text
LINE_MIN = 12  # characters of a last line that are enough alone
WINDOW = 400  # characters before the end of the old text in which a repeat may begin
LEAD_MAX = 100  # characters that a model may write before its repeat ("Sure, I go on:")
BLANK_MAX = 200  # characters of white space that are held back at the join
SURE_MIN = 8  # characters of a shorter repeat that counts at once, without more text
PARTIAL_MIN = 4  # characters of a repeat that may end within a word


def last_words(text: str) -> str:
    """Return the last words of a text, which must not end with white space.

    They have TAIL_MIN characters or more, up to TAIL_MAX, until they occur only once in the last
    WINDOW characters.
    """
    window = text[-WINDOW:]
    line = window.rpartition("\n")[2].lstrip()
    size = TAIL_MIN
    if len(line) >= LINE_MIN:
        size = min(size, len(line))
    while True:
        start = max(0, len(window) - size)
        while start > 0 and len(window) - start < TAIL_MAX and _is_inside_word(window, start):
            start -= 1
        tail = window[start:].lstrip()
        if len(tail) >= min(TAIL_MAX, len(window)) or window.find(tail) == len(window) - len(tail):
            return tail
        if start == 0:
            return tail
        size = len(window) - start + TAIL_MIN // 2


def _is_inside_word(text: str, at: int) -> bool:
    """Whether position `at` is inside a word."""
    return 0 < at < len(text) and _is_word_character(text[at - 1]) and _is_word_character(text[at])


def _is_word_character(char: str) -> bool:
    """Whether a character belongs to a word, in a script that puts spaces between words."""
    if not (char.isalnum() or char == "_" or unicodedata.combining(char)):
        return False
    return unicodedata.east_asian_width(char) not in "WF"


_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
_OPENED = re.compile(r"\s*(?:`{3,}|~{3,})[\w+#.-]*[ \t]*\n")  # a fence around the continuation
_LEAD_ENDS = (":", "\u2026", "...", '"', "\u201c", "\u201e", "\u00ab", "`", "'")
_BLOCK = re.compile(r"(#{1,6} |`{3}|~{3})")
_WORD = re.compile(r"\w+")
_LAST_WORD = re.compile(r"(?<!\w)\w++\Z")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)]) ")


class ContinuationJoiner:
    """Joins new text to an old one. Holds back text that may be a repeat until that is decided.

    Linear in the text. Holds back at most the old text, if the new text repeats it from its
    beginning, and a few hundred characters otherwise.
    """

    def __init__(self, old: str, *, repeats: bool = False, echoes: bool = False) -> None:
        """`repeats`: the request has the instruction to repeat the last words; the model may not
        follow it.

        `echoes`: the server may send the whole old text again.
        """
        self._arguments = old, repeats, echoes
        self._old = old.rstrip()
        self._blank = old[len(self._old) :]  # white space at the end of the old text
        self._tail = last_words(self._old) if repeats else ""
        self._repeats = repeats
        self._in_fence = repeats and len(_FENCE.findall(old)) % 2 == 1
        self._held = ""
        self._echoed = 0  # characters of the old text that were repeated and are not in `_held`
        self._blanks: list[str] = []  # held white space at the join
        self._waiting = 0  # its characters
        self._is_same = True  # they equal the beginning of `_blank`
        self._phase = "repeat" if repeats or echoes else "blank"
        if self._phase == "blank" and not self._blank:
            self._phase = "finished"

    @property
    def is_finished(self) -> bool:
        """Whether it holds back nothing any more: all further text passes unchanged."""
        return self._phase == "finished"

    def fresh_copy(self) -> ContinuationJoiner:
        """Return a new joiner with the same arguments."""
        old, repeats, echoes = self._arguments
        return ContinuationJoiner(old, repeats=repeats, echoes=echoes)

    def feed(self, text: str) -> str:
        """Add new text; return the text to emit now."""
        if self._phase == "finished":
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
        """End the new text; return the held text to emit."""
        text = ""
        if self._phase == "repeat":
            held = self._old[: self._echoed] + self._held
            self._held, self._echoed = held, 0
            if self._repeats and self._tail.startswith(held) and len(held) >= PARTIAL_MIN:
                self._held = ""  # it ended within the repeat
            elif held:
                text = self._cut_off(*self._best_cut())
        if self._phase == "blank":
            text += self._join_blank(last=True)
        self._phase = "finished"
        return text

    # --- repeats ----------------------------------------------------------------------------------

    def _cut(self) -> tuple[int, bool] | None:
        """Return the number of held characters to drop, and whether they are a repeat.

        None if more text is needed to decide.
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
        tail_at = held.find(tail)
        if tail_at > 0 and old.endswith(held[: tail_at + len(tail)]):
            return tail_at + len(tail), True
        if tail.startswith(held) or held in old[-WINDOW:] or self._is_echo():
            return None
        if tail_at > 0 and self._is_lead(tail_at):
            return tail_at + len(tail), True
        best = self._best_cut()  # a repeat of fewer words counts as well
        is_long_enough = len(held) >= LEAD_MAX + len(tail)
        return best if is_long_enough or (best[1] and best[0] >= SURE_MIN) else None

    def _is_echo(self) -> bool:
        """Whether all new text is the beginning of the old one.

        Long text is then counted in `_echoed`, so that it is not stored twice.
        """
        if not self._old.startswith(self._held):
            return False
        if len(self._held) > WINDOW:
            self._echoed, self._held = len(self._held), ""
        return True

    def _echo(self, text: str) -> str:
        """Continue to compare new text with the old text from its beginning."""
        expected = self._old[self._echoed : self._echoed + len(text)]
        if expected == text and self._echoed + len(text) < len(self._old):
            self._echoed += len(text)
            return ""
        self._held, echoed = text, self._echoed
        self._echoed = 0
        if text.startswith(expected) and echoed + len(expected) == len(self._old):
            return self._cut_off(len(expected), True)
        self._held = self._old[:echoed] + text  # the new text differs from the old one
        return self._cut_off(*self._best_cut())

    def _is_lead(self, tail_at: int) -> bool:
        """Whether the text before the repeat is an introduction, a quotation mark, a code fence."""
        lead = self._held[:tail_at]
        return tail_at <= LEAD_MAX and (
            lead.rstrip().endswith(_LEAD_ENDS)
            or _OPENED.fullmatch(lead) is not None
            or not lead.strip()
        )

    def _best_cut(self) -> tuple[int, bool]:
        """Return the same as `_cut` for text without the requested last words; never None."""
        held, old = self._held, self._old
        if not self._repeats:
            return 0, True
        skipped = 0
        if self._in_fence and (opened := _OPENED.match(held)):
            # A fence without a language more likely ends the open block of the old text.
            skipped = opened.end() if opened[0].strip(" \n\t`~") else 0
        rest = held[skipped:]
        for size in range(min(len(rest), len(self._tail), WINDOW), 0, -1):
            if old.endswith(rest[:size]) and self._is_repeat(rest, size):
                return skipped + size, True
        return skipped, False

    def _is_repeat(self, new: str, size: int) -> bool:
        """Whether the first `size` characters of `new`, which also end the old text, are a repeat.

        They may be equal by chance if they are few, or part of a word.
        """
        old = self._old
        if _is_inside_word(old, len(old) - size) or not any(char.isalnum() for char in new[:size]):
            return False
        if size >= PARTIAL_MIN:
            return True
        return not _is_inside_word(new, size) and (size > 1 or _is_word_character(new[0]))

    # --- separators and white space ---------------------------------------------------------------

    def _cut_off(self, cut: int, is_repeat: bool) -> str:
        """Drop `cut` held characters; return the text to emit now."""
        self._held = self._held[cut:]
        if cut and not is_repeat:
            self._held = "\n" + self._held  # a fence was dropped: its content begins a new line
        elif not is_repeat and not self._blank:
            self._held = self._between() + self._held
        self._phase = "blank" if self._blank else "finished"
        if self._phase == "blank":
            return self._join_blank(last=False)
        text, self._held = self._held, ""
        return text

    def _between(self) -> str:
        """Return the white space to insert between the old text and a new one without a repeat."""
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
        if not _is_word_character(after):
            return ""
        if _is_word_character(before):
            return "" if self._completes_word() else " "
        decimal = after.isdigit() and old[-2:-1].isdigit()
        return " " if before in ".,;:!?" and not decimal else ""

    def _completes_word(self) -> bool:
        """Whether the new text completes the old text's last word.

        True if the joined word occurs elsewhere in the old text, and the first half alone does not.
        """
        first_half, second_half = _LAST_WORD.search(self._old[-WINDOW:]), _WORD.match(self._held)
        if first_half is None or second_half is None:
            return False
        words = set(_WORD.findall(self._old[: -len(first_half[0])]))
        return first_half[0] + second_half[0] in words and first_half[0] not in words

    def _join_blank(self, *, last: bool) -> str:
        """Return the new text's white space at the join without what the old text has already."""
        text, blank, before = self._held, self._blank, self._waiting
        self._held = ""
        if self._is_same:
            expected = blank[before : before + len(text)]
            if text.startswith(expected) and before + len(expected) == len(blank):
                self._blanks, self._phase = [], "finished"
                return text[len(expected) :]
            self._is_same = text == expected
        self._blanks.append(text)
        self._waiting += len(text)
        rest = text.lstrip()
        if not rest and not last and self._waiting < len(blank) + BLANK_MAX:
            return ""
        held = "".join(self._blanks)
        self._blanks, self._phase = [], "finished"
        return _added(blank, held[: len(held) - len(rest)]) + rest


def _added(old: str, new: str) -> str:
    """Return the part of the new white space that the old one before it does not have."""
    if "\n" in old and "\n" not in new:
        return ""  # spaces within a line, but that line has ended
    return new[_shared(old, new) :]


def _shared(old: str, new: str) -> int:
    """Return the length of the longest end of `old` that is a beginning of `new`.

    Linear in both, by the algorithm of Knuth, Morris and Pratt.
    """
    # For each prefix of `new`: length of its longest proper prefix that is also its suffix.
    borders = [0]
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
