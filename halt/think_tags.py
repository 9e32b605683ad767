"""The marks by which models set their thoughts apart within the text of an answer."""

from __future__ import annotations

from halt.events import Content, Reasoning
from halt.gathering import Gathering

THINK, THOUGHT = "<think>", "</think>"


class ThinkSplitter:
    """Tells `<think>...</think>` at the beginning of an answer from the answer itself.

    Many servers hand such models' output through as it is. The tags may be cut anywhere; what might
    be the beginning of one is held back until it is clear. Line breaks behind either tag belong to
    the tag.
    """

    __slots__ = ("_held", "_phase", "marked", "through")

    def __init__(self) -> None:
        self.through = False  # nothing is left to be split: what comes is the answer
        self.marked = False  # a mark of a thought has come
        self._phase = "start"  # then "opened", "thinking", "closed", "answer"; or "answer" at once
        self._held = ""

    def feed(self, text: str, out: Gathering) -> None:
        """Sort a piece of text into `out`."""
        text, self._held = self._held + text, ""
        if self._phase == "start":
            begun = text.lstrip()
            if begun.startswith(THINK):
                self._phase, text = "opened", begun[len(THINK) :]
                self.marked = True
            elif THINK.startswith(begun):
                self._held = text
                return
            else:
                self._begin_answer()
        if self._phase == "opened":
            text = text.lstrip("\n")
            if not text:
                return
            self._phase = "thinking"
        if self._phase == "thinking":
            thought, tag, rest = text.partition(THOUGHT)
            if not tag:
                keep = _overlap(text, THOUGHT)
                self._held = text[len(text) - keep :]
                out.text(Reasoning, text[: len(text) - keep])
                return
            out.text(Reasoning, thought)
            self._phase, text = "closed", rest
        if self._phase == "closed":
            text = text.lstrip("\n")
            if not text:
                return
            self._begin_answer()
        out.text(Content, text)

    def end(self, out: Gathering) -> None:
        """The text is complete: what was held back was no tag."""
        out.text(Reasoning if self._phase == "thinking" else Content, self._held)
        self._held = ""
        self._begin_answer()

    def _begin_answer(self) -> None:
        self._phase, self.through = "answer", True


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0
