"""The fields of an answer's chunks that Halt has no place for, as they are handed on."""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra
from halt.providers.loose_json import TEXT_DEPTH_MAX, clean, valid_text
from halt.providers.part_builder import PartBuilder

NAMES_MAX = 200  # fields of one answer whose last value is remembered
PER_TOKEN = frozenset({"token_id", "token_ids", "seed"})  # they say nothing to anybody


class UnknownFields:
    """Tells new fields from those that come again with each chunk.

    A level is a part of a chunk: "chunk", "choice", "delta" or "call".
    """

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, Any]] = {}  # to be handed on with what comes next
        self._figures: dict[str, dict[str, Any]] = {}  # the same with the end
        self._last_fields: dict[tuple[str, str], Any] = {}  # as they were handed on

    def changed_fields(
        self, level: str, fields: dict[str, Any], own: frozenset[str]
    ) -> dict[str, Any]:
        """The fields of a part of a chunk that are to be handed on.

        Left out is what is empty, and what was handed on under this name the last time: many fields
        come again with each chunk. Figures that run along with the text are handed on at the end.
        """
        extras: dict[str, Any] = {}
        for name, given in fields.items():
            if name in own or name in PER_TOKEN or given is None or given in ("", [], {}):
                continue
            value = clean(given)
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

    def add(self, level: str, fields: dict[str, Any], own: frozenset[str]) -> None:
        """Keep fields for the next event: before the answer's first piece nothing is given out."""
        extras = self.changed_fields(level, fields, own)
        if extras:
            self.waiting.setdefault(level, {}).update(extras)

    def emit(self, out: PartBuilder) -> None:
        """Give out the fields that wait."""
        waiting, self.waiting = self.waiting, {}
        if waiting:
            out.add_event(
                Extra(waiting.get("chunk", {}), waiting.get("choice", {}), waiting.get("delta", {}))
            )

    def end(self, out: PartBuilder) -> None:
        """The answer has ended: give out what waits, and the figures."""
        for level, fields in self._figures.items():
            self.waiting.setdefault(level, {}).update(fields)
        self._figures.clear()
        self.emit(out)


def _is_figure(value: Any, depth: int = 0) -> bool:
    """Whether a value is a number, or holds nothing else."""
    if value is None or isinstance(value, bool):
        return depth > 0 and value is None
    if isinstance(value, int | float):
        return True
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or depth > TEXT_DEPTH_MAX:
        return False
    return bool(value) and all(_is_figure(each, depth + 1) for each in value)
