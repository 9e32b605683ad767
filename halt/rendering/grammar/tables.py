"""Tables whose cost is bounded, also with a wrong separator, and without loss of cells.

Differences from GitHub's tables: the separator may have another number of cells than the head;
cells beyond the head's are kept in a row's last cell, unless pipes in code made them; a line
without a pipe ends the table. A cell has one line, so a list in it is written with HTML's tags: its
items become lines.
"""

import re

from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit

from halt.rendering.lines import item_mark

CELLS_A_CHARACTER = 2  # table cells; short rows are filled up, so 250 characters can make 65,000
COLUMNS_MAX = 200  # of a table; a browser lays out each column against every row

ITEM = re.compile(r"(?:<br>|\s){0,9}<(ul|ol|li)>\s{0,9}|\s{0,9}</(?:ul|ol|li)>", re.IGNORECASE)
#: The upper edge of a table that is drawn with characters, and what its other lines begin with.
CORNERS = tuple("+\u250c\u2554\u256d")
EDGE = re.compile(r"[+\u250c\u2554\u256d](?=.{3})[-=+\u2500-\u256c]+[+\u2510\u2557\u256e]")
SIDES = tuple("|+\u2502\u251c\u2514\u2551\u2560\u255a\u2570")
#: Not two amounts of money.
FORMULA = re.compile(r"\$(?!\s)[^$]*(?<!\s)\$(?![0-9])")
SEPARATOR = re.compile(r"\|? *+(?::?-++:? *+\| *+)++(?::?-++:?)? *+")


def bounded_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for tables; refuses one with too many columns, or cells per character."""
    is_whole = table(state, start, end, True)
    mended = None if is_whole else _mended_head(state, start, end)
    if not is_whole and not mended:
        return False
    # The extent (up to the next blank line) is kept, so that each line is examined once, however
    # many tables begin in it. It may include too many lines and characters; both are still
    # proportional to the text.
    stop: int = state.env.get("extent", 0)
    if start >= stop:
        stop = start
        while stop < end and not state.isEmpty(stop):
            stop += 1
        state.env["extent"] = stop
    head = mended[0] if mended else _line(state, start)
    columns = head.count("|") + 1
    characters = state.eMarks[stop - 1] - state.bMarks[start]
    if columns > COLUMNS_MAX or columns * (stop - start) > CELLS_A_CHARACTER * characters:
        return False
    if silent:
        return True
    first_token = len(state.tokens)
    if mended:
        _push_mended(state, mended, start, end)
    else:
        table(state, start, end, False)
    _keep_cells(state, first_token)
    return True


def ends_table(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    """Terminator of a table: a line without a pipe."""
    return silent and state.parentType == "table" and "|" not in _line(state, line)


def drawn_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for a table that is drawn with characters: code, whose columns stay aligned."""
    if not state.src.startswith(CORNERS, state.bMarks[start] + state.tShift[start]):
        return False
    if state.is_code_block(start) or not EDGE.fullmatch(_line(state, start)):
        return False
    stop, end = start + 1, min(end, start + 3) if silent else end
    while (
        stop < end
        and state.sCount[stop] >= state.blkIndent
        and _line(state, stop).startswith(SIDES)
    ):
        stop += 1
    if stop < start + 3:
        return False
    if not silent:
        state.line = stop
        token = state.push("code_block", "code", 0)
        token.content = state.getLines(start, stop, state.blkIndent, False) + "\n"
        token.map = [start, stop]
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()


def _cells(line: str) -> list[str]:
    """The cells of a row, as the library splits it."""
    cells = escapedSplit(line)
    if cells and not cells[0]:
        cells.pop(0)
    if cells and not cells[-1]:
        cells.pop()
    return cells


def _mended_head(state: StateBlock, start: int, end: int) -> tuple[str, str] | None:
    """The head and the separator that begin here with unequal numbers of cells, made equal."""
    if start + 2 > end or state.is_code_block(start) or state.is_code_block(start + 1):
        return None
    if min(state.sCount[start], state.sCount[start + 1]) < state.blkIndent:
        return None
    head = _line(state, start)
    if (
        "|" not in head
        or item_mark(head)
        or not SEPARATOR.fullmatch(separator := _line(state, start + 1))
    ):
        return None
    names, marks = _cells(head), _cells(separator)
    if not names or len(names) == len(marks):
        return None
    columns = max(len(names), len(marks))
    names = [name.replace("|", "\\|") for name in names] + [" "] * (columns - len(names))
    marks += ["-"] * (columns - len(marks))
    return f"|{'|'.join(names)}|", f"|{'|'.join(marks)}|"


def _push_mended(state: StateBlock, mended: tuple[str, str], start: int, end: int) -> None:
    """The table with this head and separator, and the rows below them."""
    stop, parent_type = start + 2, state.parentType
    terminators = state.md.block.ruler.getRules("blockquote")
    state.parentType = "table"
    while (
        stop < end
        and not state.isEmpty(stop)
        and state.sCount[stop] >= state.blkIndent
        and not state.is_code_block(stop)
        and not any(rule(state, stop, end, True) for rule in terminators)
    ):
        stop += 1
    state.parentType = parent_type
    rows = [_line(state, line) for line in range(start + 2, stop)]
    part = StateBlock("\n".join([*mended, *rows]), state.md, state.env, [])
    table(part, 0, part.lineMax, False)
    for token in part.tokens:
        token.level += state.level
        if token.map:
            token.map = [start + line for line in token.map]
    state.tokens += part.tokens
    state.line = stop


def _keep_cells(state: StateBlock, first_token: int) -> None:
    """Give each row all of its cells: the library drops those beyond the head's."""
    columns = 0
    for at in range(first_token, len(state.tokens)):
        token = state.tokens[at]
        columns += token.type == "th_open"
        if token.type == "inline" and "<li>" in token.content and "`" not in token.content:
            token.content = _listed(token.content)
        if token.type != "tr_close" or state.tokens[at - 1].type != "td_close":
            continue
        last_cell = state.tokens[at - 2]
        row = _line(state, last_cell.map[0]) if last_cell.map else ""
        # A quick test first: a row without other cells has this many pipes.
        if row.count("|") - row.startswith("|") - row.endswith("|") < columns:
            continue
        cells = _cells(row)
        surplus = len(cells) - columns
        cells = _rejoined(cells, surplus)
        if len(cells) < columns + surplus:  # some were parts of others
            for column, cell in enumerate(cells[:columns] + [""] * (columns - len(cells))):
                state.tokens[at - 3 * (columns - column) + 1].content = cell
        last_cell.content = " | ".join([last_cell.content, *cells[columns:]]).strip()


def _rejoined(cells: list[str], surplus: int) -> list[str]:
    """The cells; up to `surplus` pipes within code or a formula are no borders of cells."""
    joined: list[str] = []
    marks = "`$"  # those that are still closed by a later cell
    at = 0
    while at < len(cells):
        end = at
        for mark in marks:
            if not cells[at].count(mark) % 2:
                continue
            others = range(at + 1, len(cells))
            closing = next((other for other in others if cells[other].count(mark) % 2), 0)
            if not closing:
                marks = marks.replace(mark, "")
            elif closing - at <= surplus:
                text = "|".join(cells[at : closing + 1])
                if mark == "`" or FORMULA.search(text):
                    end = closing
                    break
        joined.append("|".join(cells[at : end + 1]).strip())
        surplus -= end - at
        at = end + 1
    return joined


def _listed(cell: str) -> str:
    """The cell with each item of its HTML lists as a line with a bullet or a number."""
    number = 0  # of the next item; 0 in a list with bullets

    def replace(match: re.Match[str]) -> str:
        nonlocal number
        tag = (match[1] or "").lower()
        if tag != "li":
            number = {"ol": 1, "ul": 0}.get(tag, number)
            return ""
        mark, number = (f"{number}. ", number + 1) if number else ("\u2022 ", 0)
        return f"<br>{mark}"

    return ITEM.sub(replace, cell).removeprefix("<br>")
