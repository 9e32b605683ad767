"""Headings and rules as models write them: `##Title`, and `---` right below a paragraph."""

import re

from markdown_it.rules_block import StateBlock, lheading

RULE_MIN = 3  # dashes of a rule, and equals signs below a heading; fewer are text
UNDERLINE_MIN = 4  # dashes below a line that make it a heading; `---` is a rule

_HEADING = re.compile(r"(#{2,6})((?:[^\W_]|\*\*).*)")


def heading_without_blank(state: StateBlock, start: int, _end: int, silent: bool) -> bool:
    """Block rule for `##Title`. A single `#` begins a tag or a number."""
    at, stop = state.bMarks[start] + state.tShift[start], state.eMarks[start]
    if not state.src.startswith("##", at) or state.is_code_block(start):
        return False
    match = _HEADING.fullmatch(state.src[at:stop].rstrip())
    if not match or silent:
        return match is not None
    state.line = start + 1
    tag = f"h{len(match[1])}"
    token = state.push("heading_open", tag, 1)
    token.markup, token.map = match[1], [start, state.line]
    token = state.push("inline", "", 0)
    text = match[2].rstrip("#")  # marks at the end of the line count only after a blank
    token.content = text.rstrip() if text[-1:] in (" ", "\t") else match[2]
    token.map, token.children = [start, state.line], []
    state.push("heading_close", tag, -1).markup = match[1]
    return True


def underlined(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for a line below a paragraph: `===` makes it a heading, `---` is a rule.

    In CommonMark both make headings. Longer dashes do so here too, below a single line.
    """
    parent_type, first_token = state.parentType, len(state.tokens)
    if not lheading(state, start, end, silent):
        state.parentType = parent_type
        return False
    line = state.line - 1
    underline = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
    is_heading = len(underline) >= RULE_MIN and (
        underline[0] == "=" or (len(underline) >= UNDERLINE_MIN and line == start + 1)
    )
    if not is_heading:
        opening, closing = state.tokens[first_token], state.tokens[-1]
        opening.type, closing.type = "paragraph_open", "paragraph_close"
        opening.tag = closing.tag = "p"
        opening.map = [start, line]
        if len(underline) < RULE_MIN:
            inline = state.tokens[first_token + 1]
            inline.content += f"\n{underline}"
        else:
            token = state.push("hr", "hr", 0)
            token.markup, token.map = underline, [line, state.line]
    return True
