"""Lines of a paragraph that keep their indentation, as verses, outlines and tags have it."""

from markdown_it.rules_inline import StateInline, newline

INDENT_MIN = 2  # blanks that are shown; one is a slip
INDENT_MAX = 40  # blanks; more are not shown


def indented_newline(state: StateInline, silent: bool) -> bool:
    """Inline rule for a line break; the blanks after it become no-break spaces."""
    start = state.pos + 1
    if not newline(state, silent):
        return False
    blanks = state.src[start : state.pos].expandtabs(4)
    if not silent and len(blanks) >= INDENT_MIN:
        state.pending += "\u00a0" * min(len(blanks), INDENT_MAX)
    return True
