"""A formula of several lines while it is written."""

from __future__ import annotations

from halt.rendering.grammar.formulas import DISPLAY, FORMULA_LINES_MAX, closing_of, ends_formula


class OpenFormula:
    """A formula whose opening mark is alone in its line. Its lines are taken one by one.

    It ends at its closing mark, a fence, a heading, a rule or after FORMULA_LINES_MAX lines.
    """

    def __init__(self, closing: str) -> None:
        self._closing = closing
        self._lines_left = FORMULA_LINES_MAX

    def ends_at(self, line: str) -> bool:
        """Take the next line; return whether the formula ends at it."""
        self._lines_left -= 1
        is_over = self._lines_left <= 0 or ends_formula(line.strip(" \t"))
        return is_over or self._closing in line


def opened_formula(bare: str) -> OpenFormula | None:
    """The formula that a line without indentation opens, None for another line."""
    opening = DISPLAY.fullmatch(bare.rstrip(" \t"))
    return OpenFormula(closing_of(opening)) if opening else None
