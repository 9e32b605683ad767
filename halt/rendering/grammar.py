"""The Markdown parser for answers of models, for the page and the terminal.

Differences from CommonMark: a line break in a paragraph stays a line break, a formula is kept
unchanged, and emphasis needs no blanks around it in scripts that have none.
"""

import re
import unicodedata
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType

from halt.rendering.formulas import formula, formula_lines

BREAK = re.compile(r"</?br[ \t]*/?>[ \t]*\n?[ \t]*", re.IGNORECASE)
#: Thai and Lao, Tibetan, Myanmar, Khmer; unlike Chinese, Japanese and Korean they are not wide.
UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")


def answer_parser(**options: Any) -> MarkdownIt:
    """A parser with the rules that the page and the terminal share."""
    parser = MarkdownIt("zero")
    parser.inline = _ParserInline()
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


@cache
def _is_unspaced(char: str) -> bool:
    """Whether a character belongs to a script that has no blanks between its words.

    Korean counts as one: its word endings follow the emphasised part without a blank.
    """
    return unicodedata.east_asian_width(char) in "WFH" or bool(UNSPACED.match(char))


def _is_mark(char: str) -> bool:
    return isMdAsciiPunct(ord(char)) or isPunctChar(char)


class _StateInline(StateInline):
    """Emphasis that works in scripts without blanks.

    In CommonMark, a `**` between a letter and a punctuation mark can only open or only close,
    depending on the side of the punctuation mark, because a blank is expected outside of the
    emphasis. Next to a character of a script without blanks it can do both, and punctuation marks
    of that script count as letters.
    """

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        before = self.src[start - 1] if start else " "
        after = self.src[end] if end < self.posMax else " "
        if before.isascii() and after.isascii():
            return super().scanDelims(start, canSplitWord)
        unspaced_before, unspaced_after = _is_unspaced(before), _is_unspaced(after)
        blank_before, blank_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
        mark_before = not unspaced_before and _is_mark(before)
        mark_after = not unspaced_after and _is_mark(after)
        left = not blank_after and (
            not mark_after or blank_before or mark_before or unspaced_before
        )
        right = not blank_before and (
            not mark_before or blank_after or mark_after or unspaced_after
        )
        opens = left and (canSplitWord or not right or mark_before)
        closes = right and (canSplitWord or not left or mark_after)
        return Scanned(opens, closes, end - start)


class _ParserInline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _StateInline(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens
