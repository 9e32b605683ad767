"""The Markdown parser for answers of models, for the page and the terminal.

Differences from CommonMark: a line break in a paragraph stays a line break, a formula is kept
unchanged, and emphasis needs no blanks around it in scripts that have none.
"""

import re
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

from halt.rendering.grammar.emphasis import EmphasisParser
from halt.rendering.grammar.formulas import formula, formula_lines

BREAK = re.compile(r"</?br[ \t]*/?>[ \t]*\n?[ \t]*", re.IGNORECASE)


def answer_parser(**options: Any) -> MarkdownIt:
    """A parser with the rules that the page and the terminal share."""
    parser = MarkdownIt("zero")
    parser.inline = EmphasisParser()
    parser.configure("commonmark", {"html": False, "breaks": True, **options})
    parser.enable(["table", "strikethrough"])
    parser.block.ruler.before(
        "lheading", "formula_lines", formula_lines, {"alt": ["paragraph", "reference"]}
    )
    parser.inline.ruler.before("escape", "formula", formula)
    parser.inline.ruler.before("autolink", "break", _break)
    return parser


def _break(state: StateInline, silent: bool) -> bool:
    """Inline rule for `<br>`, the only HTML tag that has an effect."""
    match = BREAK.match(state.src, state.pos, state.posMax)
    if not match:
        return False
    if not silent:
        state.push("hardbreak", "br", 0).info = "tag"
    state.pos = match.end()
    return True
