"""Notes that tell a model that its last answer is incomplete or edited; removal of copied notes.

A note begins the user's next message. In the assistant's message it would be an example of how
answers end, and small models would copy it. A note that a model writes nevertheless, alone on a
line or at the end of an answer, is cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from halt.core.events import Content, Delta, Extra

STOPPED = "[Note: the user stopped your last answer before its end.]"
BROKEN = "[Note: your last answer broke off before its end.]"
EDITED = "[Note: the user edited your last answer.]"

#: Including those that ended the assistant's messages in earlier versions: models have copied them
#: into saved answers.
NOTES = (
    STOPPED,
    BROKEN,
    EDITED,
    "[The user stopped this answer here.]",
    "[This answer broke off here.]",
)

LINE_END = 100  # characters of a line's end that are checked for text
BLANK_MAX = 200  # characters of white space after a note that may be held

_NOTE_STARTS = ("[n", "[t")  # the first characters of all notes, in lower case
_FORMS = tuple(form.lower() for note in NOTES for form in (note, note.replace(".]", "]")))
_ANY = "|".join(re.escape(note).replace(r"\.\]", r"\.?\]") for note in NOTES)
_NOTE = re.compile(_ANY, re.IGNORECASE)
_CUT = re.compile(rf"^[ \t]*(?:{_ANY})[ \t]*(?:\n|\Z)|(?<![ \t])[ \t]*(?:{_ANY})\s*\Z", re.I | re.M)


def before_prompt(note: str, prompt: str) -> str:
    """The user's message after an incomplete or edited answer: the note, then the prompt."""
    return f"{note}\n\n{prompt}"


def are_discussed(prompts: Iterable[str]) -> bool:
    """Whether a user writes about the notes, so that an answer may quote one.

    Notes that `before_prompt` has added do not count.
    """
    for prompt in prompts:
        for match in _NOTE.finditer(prompt):
            if match[0] not in (STOPPED, BROKEN, EDITED):
                return True
            if not prompt.startswith("\n\n", match.end()):
                return True
    return False


def without_notes(text: str) -> str:
    """A saved answer without copied notes, for the model's prompt."""
    return _CUT.sub("", text).rstrip() if "[" in text and _NOTE.search(text) else text


class NoteFilter:
    """Removes notes from an arriving answer. It holds text that may be the start of a note.

    Used by one thread at a time.
    """

    __slots__ = ("_discussed", "_last", "held")

    def __init__(self, discussed: Callable[[], bool], last: Callable[[], str]) -> None:
        """`discussed` is called once, at the first whole note; `last` returns the last line."""
        self._discussed = cache(discussed)
        self._last = last
        self.held = ""

    def filtered(self, events: Iterable[Delta]) -> list[Delta]:
        """The events without notes. Held text comes before thoughts and calls."""
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
        """Take the next text of the answer. Returns the text to show now."""
        data, self.held = self.held + text, ""
        out: list[str] = []
        done = at = 0
        while (at := data.find("[", at)) >= 0:
            end = _end_of_note(data, at)
            if end is None:
                at += 1
                continue
            # If the text ends within the note or right after it, the next piece decides.
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
        """End the text. Returns the held text to show."""
        held_text, self.held = self.held, ""
        if held_text and _NOTE.match(held_text) and not self._discussed():
            return ""
        return held_text

    def waited(self) -> str:
        """Release held text after a time of silence. Returns it, "" for a whole note."""
        if _NOTE.match(self.held):
            return ""
        held_text, self.held = self.held, ""
        return held_text

    def _cut(self, data: str, at: int, end: int) -> int | None:
        """The index at which the text continues after a note to cut.

        0: the note stays. None: more text must arrive before that is decided.
        """
        if self._discussed():
            return 0
        stop = end
        while stop < len(data) and data[stop].isspace():
            stop += 1
        newline = data.find("\n", end, stop)
        if newline >= 0 and not self._line_before(data, at).strip():
            return newline + 1
        return None if stop == len(data) and stop - end < BLANK_MAX else 0

    def _line_before(self, data: str, at: int) -> str:
        """The line before index `at`, or its end if the line is long."""
        start = max(0, at - LINE_END)
        newline = data.rfind("\n", start, at)
        if newline >= 0:
            return data[newline + 1 : at]
        return data[start:at] if start else self._last() + data[:at]


def _end_of_note(data: str, at: int) -> int | None:
    """The end of the note that begins at `at`; -1: incomplete; None: no note."""
    if at + 1 < len(data) and data[at : at + 2].lower() not in _NOTE_STARTS:
        return None
    for form in _FORMS:
        part = data[at : at + len(form)].lower()
        if part == form:
            return at + len(form)
        if len(part) < len(form) and form.startswith(part):
            return -1
    return None


assert all(form.startswith(_NOTE_STARTS) for form in _FORMS)  # noqa: S101
