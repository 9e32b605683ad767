"""Rows of figures with their targets and goals, and the Markdown table of all rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. `met` is None if there is no target."""

    figure: str
    target: str
    goal: str
    measured: str
    met: bool | None
    goal_met: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """The text of the last column."""
        if self.met is None:
            return ""
        if not self.met:
            return "**missed**"
        return "met, the goal too" if self.goal_met else "met"


def at_most(
    figure: str,
    value: float,
    target: float,
    goal: float,
    unit: str = "",
    measured: str = "",
    note: str = "",
) -> Row:
    """A row whose figure must not be above its target."""
    return Row(
        figure,
        f"≤ {target:g}{unit}",
        f"≤ {goal:g}{unit}",
        measured or f"{number(value)}{unit}",
        value <= target,
        value <= goal,
        note,
    )


def at_least(
    figure: str, value: float, target: float, goal: float, measured: str, note: str = ""
) -> Row:
    """A row whose figure must not be below its target."""
    return Row(
        figure, f"≥ {target:g}", f"≥ {goal:g}", measured, value >= target, value >= goal, note
    )


def both_at_most(
    figure: str,
    values: Sequence[float],
    target: tuple[float, float],
    goal: tuple[float, float],
    measured: str = "",
    note: str = "",
) -> Row:
    """A row whose p50 and p99, in milliseconds, must not be above those of its target."""
    p50, p99 = percentile(values, 50), percentile(values, 99)
    return Row(
        figure,
        f"≤ {target[0]:g} / {target[1]:g} ms",
        f"≤ {goal[0]:g} / {goal[1]:g} ms",
        measured or f"{p50_p99(values)} ms",
        p50 <= target[0] and p99 <= target[1],
        p50 <= goal[0] and p99 <= goal[1],
        note,
    )


def required(figure: str, target: str, measured: str, met: bool, note: str = "") -> Row:
    """A row whose target is also its goal."""
    return Row(figure, target, target, measured, met, met, note)


def without_target(figure: str, measured: str, note: str = "") -> Row:
    """A row for comparison only."""
    return Row(figure, "", "", measured, None, note=note)


def number(value: float) -> str:
    """A number with three significant digits, or all digits before the decimal point."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; for few values the 99th is the largest."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def p50_p99(values: Sequence[float]) -> str:
    """Both percentiles as text."""
    return f"{number(percentile(values, 50))} / {number(percentile(values, 99))}"


def median(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def markdown(groups: Mapping[str, Sequence[Row]]) -> str:
    """The table with a line for each group, and the numbered notes below it."""
    lines = ["| figure | value | target | goal | met or missed |", "|---|---|---|---|---|"]
    notes: list[str] = []
    for name, row in ((name, row) for name, rows in groups.items() for row in (None, *rows)):
        if row is None:
            lines.append(f"| **{name}** | | | | |")
            continue
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" ({notes.index(row.note) + 1})"
        cells = (row.figure + mark, row.measured, row.target, row.goal, row.verdict)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    if notes:
        lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n".join(lines)
