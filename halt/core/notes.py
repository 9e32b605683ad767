"""What a model is told of an answer of its own that is not whole, kept out of its own words.

A note begins the user's next message. In the assistant's message it would be an example of how its
answers end, and small models write it then. Where one writes it nevertheless, alone on a line or at
the end of an answer, it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from halt.core.events import Content, Delta, Extra

STOPPED = "[Note: the user stopped your last answer before its end.]"
BROKEN = "[Note: your last answer broke off before its end.]"

#: Also those that the assistant's messages ended with in earlier versions: models have copied them
#: into answers that are saved.
NOTES = (STOPPED, BROKEN, "[The user stopped this answer here.]", "[This answer broke off here.]")

LINE_END = 100  # characters that tell whether a line is empty
BLANK_MOST = 200  # characters of white space behind a note that are waited for

_BEGIN = ("[n", "[t")  # in lower case
_FORMS = tuple(form.lower() for note in NOTES for form in (note, note.replace(".]", "]")))
_ANY = "|".join(re.escape(note).replace(r"\.\]", r"\.?\]") for note in NOTES)
_NOTE = re.compile(_ANY, re.IGNORECASE)
_CUT = re.compile(rf"^[ \t]*(?:{_ANY})[ \t]*(?:\n|\Z)|(?<![ \t])[ \t]*(?:{_ANY})\s*\Z", re.I | re.M)


def before_prompt(note: str, prompt: str) -> str:
    """The user's message behind an answer that is not whole."""
    return f"{note}\n\n{prompt}"


def are_discussed(prompts: Iterable[str]) -> bool:
    """Whether a user writes about the notes, so that an answer may hold one. `before_prompt`'s own
    do not count."""
    for prompt in prompts:
        for found in _NOTE.finditer(prompt):
            if found[0] not in (STOPPED, BROKEN):
                return True
            if not prompt.startswith("\n\n", found.end()):
                return True
    return False


def without_notes(text: str) -> str:
    """A saved answer as its model is told of it."""
    return _CUT.sub("", text).rstrip() if "[" in text and _NOTE.search(text) else text


class NoteFilter:
    """Takes notes out of an answer that is coming in. What may become one is held back.

    Used by one thread at a time.
    """

    __slots__ = ("_discussed", "_last", "held")

    def __init__(self, discussed: Callable[[], bool], last: Callable[[], str]) -> None:
        """`discussed` is asked once, when a whole note has come; `last` gives the last line."""
        self._discussed = cache(discussed)
        self._last = last
        self.held = ""

    def filtered(self, events: Iterable[Delta]) -> list[Delta]:
        """The events without notes. Text that is held back comes before thoughts and calls."""
        out: list[Delta] = []
        for event in events:
            if isinstance(event, Extra):
                text = ""
            else:
                text = self.feed(event.content) if isinstance(event, Content) else self.end()
            if text:
                out.append(Content(text))
            if not isinstance(event, Content):
                out.append(event)
        return out

    def feed(self, text: str) -> str:
        """More of the answer; what of it is to be shown now."""
        data, self.held = self.held + text, ""
        out: list[str] = []
        done = at = 0
        while (at := data.find("[", at)) >= 0:
            end = _end_of_note(data, at)
            if end is None:
                at += 1
                continue
            # Where the text ends in it, or with it, the next piece decides.
            cut = None if end in {-1, len(data)} else self._cut(data, at, end)
            if cut is None:
                break
            if cut:
                out.append(data[done:at])
                done = at = cut
            else:
                at += 1
        if at < 0:
            out.append(data[done:])
        else:
            out.append(data[done:at])
            self.held = data[at:]
        return "".join(out)

    def end(self) -> str:
        """There is no more text; what was held back of it and is to be shown."""
        held, self.held = self.held, ""
        if held and _NOTE.match(held) and not self._discussed():
            return ""
        return held

    def waited(self) -> str:
        """Nothing has come for a while: what was held back and is no whole note."""
        if _NOTE.match(self.held):
            return ""
        held, self.held = self.held, ""
        return held

    def _cut(self, data: str, at: int, end: int) -> int | None:
        """Where the text goes on behind a note; 0: it stays; None: that is not clear yet."""
        if self._discussed():
            return 0
        stop = end
        while stop < len(data) and data[stop].isspace():
            stop += 1
        newline = data.find("\n", end, stop)
        if newline >= 0 and not self._line_before(data, at).strip():
            return newline + 1
        return None if stop == len(data) and stop - end < BLANK_MOST else 0

    def _line_before(self, data: str, at: int) -> str:
        """The line before this place, or the end of it where that is long."""
        start = max(0, at - LINE_END)
        newline = data.rfind("\n", start, at)
        if newline >= 0:
            return data[newline + 1 : at]
        return data[start:at] if start else self._last() + data[:at]


def _end_of_note(data: str, at: int) -> int | None:
    """Where the note that begins here ends; -1: it may go on; None: it is none."""
    if at + 1 < len(data) and data[at : at + 2].lower() not in _BEGIN:
        return None
    for form in _FORMS:
        part = data[at : at + len(form)].lower()
        if part == form:
            return at + len(form)
        if len(part) < len(form) and form.startswith(part):
            return -1
    return None


assert all(form.startswith(_BEGIN) for form in _FORMS)  # noqa: S101
