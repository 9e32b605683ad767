"""Merges the `Extra` events of an answer into the fields of a whole, non-streamed answer."""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra


class Extras:
    """The fields of an answer's Extra events, in the form of a non-streamed answer."""

    __slots__ = ("_choice", "_delta", "chunk")

    def __init__(self) -> None:
        self.chunk: dict[str, Any] = {}  # the newest value of each field
        self._choice: list[dict[str, Any]] = []
        self._delta: list[dict[str, Any]] = []

    def add(self, event: Extra) -> None:
        """Add the fields of an event."""
        self.chunk |= event.chunk
        if event.choice:
            self._choice.append(event.choice)
        if event.delta:
            self._delta.append(event.delta)

    @property
    def choice(self) -> dict[str, Any]:
        """The fields of the answer's choice. Lists are concatenated (`logprobs`)."""
        return _object(self._choice, joins_text=False)

    @property
    def delta(self) -> dict[str, Any]:
        """The fields of the answer's message. Strings and lists are concatenated."""
        return _object(self._delta, joins_text=True)


def _object(pieces: list[dict[str, Any]], *, joins_text: bool) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, value in piece.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: joined(parts, joins_text=joins_text) for name, parts in values.items()}


def joined(pieces: list[Any], *, joins_text: bool = True) -> Any:
    """Join the pieces of one value, at least one: objects by field, lists by item.

    List items with the same `index` and `type` are pieces of one item. `joins_text`: strings are
    pieces of a text, unless all are equal (an `id` in each piece). Otherwise the newest value
    counts.
    """
    if len(pieces) == 1:
        return pieces[0]
    if all(isinstance(piece, dict) for piece in pieces):
        return _object(pieces, joins_text=joins_text)
    if all(isinstance(piece, list) for piece in pieces):
        return _list([item for piece in pieces for item in piece], joins_text=joins_text)
    if joins_text and all(isinstance(piece, str) for piece in pieces):
        words = [piece for piece in pieces if piece]
        return words[0] if words and words.count(words[0]) == len(words) else "".join(words)
    return pieces[-1]


def _list(items: list[Any], *, joins_text: bool) -> list[Any]:
    groups: list[list[Any]] = []
    groups_by_place: dict[Any, list[Any]] = {}
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        place = (index, str(item.get("type"))) if isinstance(index, int) else None
        if place is not None and place in groups_by_place:
            groups_by_place[place].append(item)
            continue
        groups.append([item])
        if place is not None:
            groups_by_place[place] = groups[-1]
    return [joined(group, joins_text=joins_text) for group in groups]
