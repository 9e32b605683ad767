"""What a server reports of the tokens that an answer took: cleaned, and summed over its rounds."""

from __future__ import annotations

from typing import Any

COUNT_MAX = 2**53  # what every reader of JSON takes for the same number


def cleaned(usage: dict[str, Any]) -> dict[str, Any]:
    """A server's usage without whole numbers that are no counts: negative, or above COUNT_MAX."""
    return {
        name: cleaned(value) if isinstance(value, dict) else value
        for name, value in usage.items()
        if not isinstance(value, int) or 0 <= value <= COUNT_MAX
    }


def summed(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two usages as one: numbers are added, any other value is that of `more`."""
    out = dict(total)
    for name, value in more.items():
        before = out.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            out[name] = summed(before, value)
        elif isinstance(value, int | float) and isinstance(before, int | float):
            out[name] = before + value
        elif value is not None or before is None:
            out[name] = value
    return out
