"""Emphasis that needs no blanks around it in scripts that have none."""

import re
import unicodedata
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType

#: Thai and Lao, Tibetan, Myanmar, Khmer; unlike Chinese, Japanese and Korean they are not wide.
UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")
#: Names of Python, JavaScript and Perl, and of groups of files, written without code marks.
NAMES = re.compile(
    r"\*\.\w{1,9}(?![\w*])"
    r"|__(?:all|author|builtins|call|class|del|dict|dirname|doc|enter|eq|exit|file|filename|future"
    r"|getattr|getitem|hash|import|init|iter|len|main|mocks|module|name|new|next|path|post_init"
    r"|proto|pycache|repr|setattr|setitem|slots|str|tests|typename|version)__(?!\w)"
    r"|(?<=[$@])_(?!\w)"
)

#: Marks that begin a quotation or a bracket; those of East Asian scripts count as letters.
QUOTES = '"\u201c\u2018\u201e\u00ab'
BEGINNINGS = "([{<\u201c\u2018\u201e\u00ab"


@cache
def _is_unspaced(char: str) -> bool:
    """Whether a character belongs to a script that has no blanks between its words.

    Korean counts as one: its word endings follow the emphasised part without a blank.
    """
    return unicodedata.east_asian_width(char) in "WFH" or bool(UNSPACED.match(char))


def _is_mark(char: str) -> bool:
    return isMdAsciiPunct(ord(char)) or isPunctChar(char)


def can_open_and_close(
    before: str, after: str, length: int, *, can_split_word: bool
) -> tuple[bool, bool]:
    """Whether `length` equal marks between two characters can open emphasis, and close it.

    In CommonMark, a `**` between a letter and a punctuation mark can only open or only close,
    depending on the side of the punctuation mark, because a blank is expected outside of the
    emphasis. Next to a character of a script without blanks it can do both, and punctuation marks
    of that script count as letters. `**` can also close between a punctuation mark and a letter, as
    in `**Note:**text`, and open between a letter and a quotation mark.
    """
    if can_split_word and (before + after).isascii() and before.isalnum() and after.isalnum():
        # 3*4*5, 2**10 and f***ing lose no star, but **B**old and b**ol**d are bold.
        is_number = before.isdigit() and after.isdigit()
        return length == 2 and not is_number, not is_number
    unspaced_before, unspaced_after = _is_unspaced(before), _is_unspaced(after)
    blank_before, blank_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
    mark_before = not unspaced_before and _is_mark(before)
    mark_after = not unspaced_after and _is_mark(after)
    left = not blank_after and (not mark_after or blank_before or mark_before or unspaced_before)
    right = not blank_before and (not mark_before or blank_after or mark_after or unspaced_after)
    opens = left and (can_split_word or not right or mark_before)
    closes = right and (can_split_word or not left or mark_after)
    if can_split_word and length == 2 and opens != closes:
        if opens and after.isalnum():
            closes = _is_mark(before) and before not in BEGINNINGS
        elif closes and before.isalnum():
            opens = after in QUOTES
    return opens, closes


class _StateInline(StateInline):
    """Emphasis that works in scripts without blanks."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        before = self.src[start - 1] if start else " "
        after = self.src[end] if end < self.posMax else " "
        if NAMES.match(self.src, start):  # the underscores or stars after a name only close
            return Scanned(False, False, end - start)
        sides = can_open_and_close(before, after, end - start, can_split_word=canSplitWord)
        return Scanned(*sides, end - start)


class EmphasisParser(ParserInline):
    """The parser of inline text, with this emphasis."""

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _StateInline(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens
