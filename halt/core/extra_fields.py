"""Fields of a model's server that Halt has no place for, put together from a stream's pieces."""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra


class Extras:
    """The fields of an answer's Extra events, as a whole answer has them."""

    __slots__ = ("_choice", "_delta", "chunk")

    def __init__(self) -> None:
        self.chunk: dict[str, Any] = {}  # of each field the newest value
        self._choice: list[dict[str, Any]] = []
        self._delta: list[dict[str, Any]] = []

    def add(self, event: Extra) -> None:
        """Take the fields of one more event."""
        self.chunk |= event.chunk
        if event.choice:
            self._choice.append(event.choice)
        if event.delta:
            self._delta.append(event.delta)

    @property
    def choice(self) -> dict[str, Any]:
        """The fields of the answer's choice. Lists are added to one another (`logprobs`)."""
        return _object(self._choice, texts=False)

    @property
    def delta(self) -> dict[str, Any]:
        """The fields of the answer's message. Texts and lists are added to one another."""
        return _object(self._delta, texts=True)


def _object(pieces: list[dict[str, Any]], *, texts: bool) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, value in piece.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: joined(some, texts=texts) for name, some in values.items()}


def joined(pieces: list[Any], *, texts: bool = True) -> Any:
    """One value of its pieces, at least one. Objects are joined by field, lists one by one.

    Items of a list that have the same `index` and `type` are pieces of one item. `texts`: strings
    are pieces of a text, but for those that are all the same (an `id` with each piece). Otherwise
    the newest value counts.
    """
    if len(pieces) == 1:
        return pieces[0]
    if all(isinstance(piece, dict) for piece in pieces):
        return _object(pieces, texts=texts)
    if all(isinstance(piece, list) for piece in pieces):
        return _list([item for piece in pieces for item in piece], texts=texts)
    if texts and all(isinstance(piece, str) for piece in pieces):
        given = [piece for piece in pieces if piece]
        return given[0] if given and given.count(given[0]) == len(given) else "".join(given)
    return pieces[-1]


def _list(items: list[Any], *, texts: bool) -> list[Any]:
    groups: list[list[Any]] = []
    begun: dict[Any, list[Any]] = {}
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        place = (index, str(item.get("type"))) if isinstance(index, int) else None
        if place is not None and place in begun:
            begun[place].append(item)
            continue
        groups.append([item])
        if place is not None:
            begun[place] = groups[-1]
    return [joined(group, texts=texts) for group in groups]
