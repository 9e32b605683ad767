"""Tables whose cost is bounded."""

from markdown_it.rules_block import StateBlock, table

CELLS_A_CHARACTER = 2  # table cells; short rows are filled up, so 250 characters can make 65,000
COLUMNS_MAX = 200  # of a table; a browser lays out each column against every row


def bounded_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for tables; refuses one with too many columns, or cells per character."""
    if not table(state, start, end, True):
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
    columns = state.src.count("|", state.bMarks[start], state.eMarks[start]) + 1
    characters = state.eMarks[stop - 1] - state.bMarks[start]
    if columns > COLUMNS_MAX or columns * (stop - start) > CELLS_A_CHARACTER * characters:
        return False
    return silent or table(state, start, end, False)
