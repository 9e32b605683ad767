"""Columns of the terminal's lists."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def in_column(text: str, width: int) -> str:
    """The text in exactly `width` cells of the terminal, of which a wide character takes two."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return f"{set_cell_size(text, width - 1)}…"
