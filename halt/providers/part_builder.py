"""Collects the deltas of one read of a stream into a `Part` (`halt.core.request`)."""

from __future__ import annotations

from halt.core.events import Content, Delta, Reasoning
from halt.core.request import Part


class PartBuilder:
    """Builds the Part of one read. Consecutive texts of the same kind become one delta."""

    __slots__ = ("_kind", "_texts", "arrived", "chunks", "events")

    def __init__(self) -> None:
        self.events: list[Delta] = []
        self.chunks = 0
        self.arrived = 0  # characters of text, reasoning and calls, emitted or not
        self._kind: type[Content] | type[Reasoning] = Content
        self._texts: list[str] = []

    def add_text(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        """Add text of the answer or of its reasoning."""
        if not text:
            return
        if kind is not self._kind:
            self._close()
            self._kind = kind
        self._texts.append(text)

    def add_event(self, event: Delta) -> None:
        """Add any other delta."""
        self._close()
        self.events.append(event)

    def build(self, *, ended: bool) -> Part:
        """Return the Part of everything that was added."""
        if len(self._texts) == 1 and not self.events:  # the usual read: one token
            return Part((self._kind(self._texts[0]),), self.chunks, ended, self.arrived)
        self._close()
        return Part(tuple(self.events), self.chunks, ended, self.arrived)

    def __bool__(self) -> bool:
        return bool(self._texts or self.events)

    def _close(self) -> None:
        if self._texts:
            self.events.append(self._kind("".join(self._texts)))
            self._texts.clear()
