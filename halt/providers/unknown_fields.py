"""Passes the fields of an answer's chunks that Halt does not know on to the client."""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra
from halt.providers.loose_json import TEXT_DEPTH_MAX, clean, valid_text
from halt.providers.part_builder import PartBuilder

NAMES_MAX = 200  # fields of one answer whose last value is remembered
PER_TOKEN = frozenset({"token_id", "token_ids", "seed"})  # of no use to clients


class UnknownFields:
    """Selects the fields whose values are new; servers repeat many fields in each chunk.

    A level is a part of a chunk: "chunk", "choice", "delta" or "call".
    """

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, Any]] = {}  # level -> fields to emit with the next event
        self._figures: dict[str, dict[str, Any]] = {}  # level -> numbers to emit at the end
        self._last_fields: dict[tuple[str, str], Any] = {}  # (level, name) -> last emitted value

    def changed_fields(
        self, level: str, fields: dict[str, Any], known_names: frozenset[str]
    ) -> dict[str, Any]:
        """Return the fields of a part of a chunk to emit now. `known_names`: Halt handles them.

        Empty values are left out, and values that are the same as the last one of their name.
        Numbers, which may change with each chunk, are stored and emitted at the end of the answer.
        """
        extras: dict[str, Any] = {}
        for name, raw_value in fields.items():
            if (
                name in known_names
                or name in PER_TOKEN
                or raw_value is None
                or raw_value in ("", [], {})
            ):
                continue
            value = clean(raw_value)
            if level != "call" and _is_figure(value):
                figures = self._figures.setdefault(level, {})
                if name in figures or len(figures) < NAMES_MAX:
                    figures[valid_text(name)] = value
                continue
            if level in {"chunk", "choice"} or (level == "delta" and isinstance(value, str | bool)):
                key = level, name
                if self._last_fields.get(key) == value:
                    continue
                if key in self._last_fields or len(self._last_fields) < NAMES_MAX:
                    self._last_fields[key] = value
            extras[valid_text(name)] = value
        return extras

    def add(self, level: str, fields: dict[str, Any], known_names: frozenset[str]) -> None:
        """Store fields for the next event: nothing is emitted before the answer's first piece."""
        extras = self.changed_fields(level, fields, known_names)
        if extras:
            self.waiting.setdefault(level, {}).update(extras)

    def emit(self, out: PartBuilder) -> None:
        """Emit the stored fields."""
        waiting, self.waiting = self.waiting, {}
        if waiting:
            out.add_event(
                Extra(waiting.get("chunk", {}), waiting.get("choice", {}), waiting.get("delta", {}))
            )

    def end(self, out: PartBuilder) -> None:
        """Emit the stored fields and the numbers, at the end of the answer."""
        for level, fields in self._figures.items():
            self.waiting.setdefault(level, {}).update(fields)
        self._figures.clear()
        self.emit(out)


def _is_figure(value: Any, depth: int = 0) -> bool:
    """Whether a value is a number, or holds only numbers."""
    if value is None or isinstance(value, bool):
        return depth > 0 and value is None
    if isinstance(value, int | float):
        return True
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or depth > TEXT_DEPTH_MAX:
        return False
    return bool(value) and all(_is_figure(item, depth + 1) for item in value)
