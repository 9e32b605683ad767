"""The Markdown parser for answers of models, for the page and the terminal.

Differences from CommonMark: a line break in a paragraph stays a line break, and the indentation
after it stays too; a formula is kept unchanged; emphasis needs no blanks around it in scripts that
have none; a line that is not indented ends a list, and a list indented by two blanks is nested;
fences nest; `---` below a paragraph is a rule. There are tables, tasks, footnotes, details, pairs
of tags, and links without marks.
"""

from typing import Any

from markdown_it import MarkdownIt

from halt.rendering.grammar.addresses import add_addresses
from halt.rendering.grammar.details import add_details
from halt.rendering.grammar.emphasis import EmphasisParser
from halt.rendering.grammar.fences import fence
from halt.rendering.grammar.footnotes import add_footnotes
from halt.rendering.grammar.formulas import formula, formula_lines
from halt.rendering.grammar.headings import heading_without_blank, underlined
from halt.rendering.grammar.indents import indented_newline
from halt.rendering.grammar.lists import ListParser, ends_item
from halt.rendering.grammar.tables import bounded_table, drawn_table, ends_table
from halt.rendering.grammar.tags import add_tags


def answer_parser(**options: Any) -> MarkdownIt:
    """A parser with the rules that the page and the terminal share."""
    parser = MarkdownIt("zero")
    parser.block, parser.inline = ListParser(), EmphasisParser()
    parser.configure("commonmark", {"html": False, "breaks": True, "tasklists": True, **options})
    parser.enable(["table", "strikethrough"])
    parser.block.ruler.at("table", bounded_table, {"alt": ["paragraph", "reference"]})
    parser.block.ruler.before(
        "paragraph", "drawn_table", drawn_table, {"alt": ["paragraph", "reference"]}
    )
    parser.block.ruler.before("paragraph", "ends_item", ends_item, {"alt": ["paragraph"]})
    parser.block.ruler.before("paragraph", "ends_table", ends_table, {"alt": ["blockquote"]})
    parser.block.ruler.at("fence", fence, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.block.ruler.at("lheading", underlined)
    parser.block.ruler.after(
        "heading",
        "heading_without_blank",
        heading_without_blank,
        {"alt": ["paragraph", "reference", "blockquote"]},
    )
    parser.block.ruler.before(
        "lheading", "formula_lines", formula_lines, {"alt": ["paragraph", "reference"]}
    )
    parser.inline.ruler.at("newline", indented_newline)
    parser.inline.ruler.before("escape", "formula", formula)
    add_tags(parser)
    add_addresses(parser)
    add_footnotes(parser)
    add_details(parser)
    return parser
