"""A table while it is written: whether two lines begin one, and which lines are its rows."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from halt.rendering.grammar.tables import CELLS_A_CHARACTER, CORNERS, bounded_table
from halt.rendering.lines import HEADING_START, MARKER

HEAD_MAX = 4_000  # characters of a head whose table is shown by rows
#: The beginning of a line that may become the separator below a head.
MAYBE_SEPARATOR = re.compile(r"[|:\- \t]+")
#: A block that ends a table without a blank line, besides a line without a pipe.
_OTHER = re.compile(rf"{HEADING_START.pattern}|>|{MARKER.pattern}")
_ALIGNED = {"": "---", "left": ":--", "center": ":-:", "right": "--:"}


class OpenTable:
    """A table whose head is known. Its rows are taken one by one."""

    def __init__(self, head: list[str], alignments: list[str]) -> None:
        """`alignments`: of each column, "" for none."""
        self.head = head
        columns = len(alignments)
        # Each row is rendered below an empty head.
        separator = "|".join([_ALIGNED[alignment] for alignment in alignments])
        self._lines = ["|" + " |" * columns, f"|{separator}|"]
        self._columns = columns
        self._cells = 2 * columns
        self._characters = sum(map(len, head))

    def row(self, line: str) -> list[str] | None:
        """The source of a table with this row alone; None if the line ends the table."""
        bare = line.lstrip(" \t")
        if "|" not in bare or bare.startswith(CORNERS) or _OTHER.match(bare):
            return None
        self._cells += self._columns
        self._characters += len(line)
        if self._cells > CELLS_A_CHARACTER * self._characters:
            return None
        return [*self._lines, line]


def opened_table(head: str, separator: str) -> OpenTable | None:
    """The table that these two lines begin, None for other lines."""
    if "|" not in head or "-" not in separator or len(head) + len(separator) > HEAD_MAX:
        return None
    if not MAYBE_SEPARATOR.fullmatch(separator):
        return None
    tokens = _PARSER.parse(f"{head}\n{separator}")
    if not tokens or tokens[0].type != "table_open":
        return None
    styles = [str(token.attrs.get("style", "")) for token in tokens if token.type == "th_open"]
    return OpenTable([head, separator], [style.removeprefix("text-align:") for style in styles])


def _parser() -> MarkdownIt:
    parser = MarkdownIt("zero").enable("table")
    parser.block.ruler.at("table", bounded_table, {"alt": ["paragraph"]})
    parser.core.ruler.enableOnly(["block"])
    parser.parse("first")  # compiles the rules
    return parser


_PARSER = _parser()
