"""Finds TeX formulas in a text; parser rules that keep them unchanged."""

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from halt.rendering.grammar.fences import opened_fence
from halt.rendering.lines import HEADING_START, SPACED_RULE

FORMULA_MAX = 5_000  # characters of a formula
# Lines of a formula: an opening mark without a closing one affects at most this many lines.
FORMULA_LINES_MAX = 100

DISPLAY = re.compile(r"\$\$(?!\$)|\\\[|\\begin\{([A-Za-z]+\*?)\}")
#: A text within a formula, with formulas of its own.
_TEXT = r"\\(?:text(?:bf|it|rm)?|mbox)\{[^{}$`\\]*+(?:\$[^{}$`]++\$[^{}$`\\]*+)++\}"
#: Formulas, one pattern for each pair of marks. An escaped mark inside does not count, nor does the
#: `\[` of `\\[2pt]`.
FORMULAS = (
    re.compile(r"\\\(((?:[^\\]++|\\[^()])*+)\\\)", re.DOTALL),
    re.compile(r"\\\[((?:[^\\]++|\\[^\[\]])*+)\\\](?!\()", re.DOTALL),
    re.compile(r"\$\$(?!\$)(?:[^\\$]++|\\.|\$(?!\$))*+\$\$(?!\$)", re.DOTALL),
    # Not amounts of money or shell variables: a formula has no blank just inside of its marks and
    # no letter or digit just outside of them, except the ending of an ordinal or a plural.
    re.compile(
        r"\$(?![\s$])(?:[^\\$`]++|" + _TEXT + r"|\\.)*+(?<!\s)\$"
        r"(?![0-9_$]|(?!(?:th|st|nd|rd|s)(?![A-Za-z]))[A-Za-z])",
        re.DOTALL,
    ),
    # With a blank just inside of both marks, as some models write all of their formulas.
    re.compile(r"\$ ++(?![$=])((?:[^\\$`\n]++|\\.)*+)(?<= )(?<![=<>] )\$(?![0-9A-Za-z_$])"),
)
#: What makes such a text a formula, and what makes it prose without a sign of TeX.
SPACED = re.compile(r"[\\^_=<>]|^\$ +[A-Za-z] +\$$")
TWO_WORDS = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}+ +[A-Za-z]{2}")
#: Text between two dollar signs that shows that they mean money: words, or Markdown's bold marks.
PROSE = re.compile(r"[^\\^_={}<>]*\s[^\W\d_]{2,}\s[^\\^_={}<>]*")
BOLD = re.compile(r"(?:^|[\s(])\*\*[^\s*]|[^\s*{^]\*\*(?:$|[\s,.;:!?)])")
#: Text in escaped round brackets that are plain brackets: a word, not the corners of a triangle.
WORD = re.compile(r"[^\\^_=+<>{}|&\d]*[a-z\u00df-\u00ff]{4}[^\\^_=+<>{}|&\d]*")
#: Text in escaped brackets that are plain brackets: words, a tick, numbers of sources.
WORDS = re.compile(
    r"(?:(?![^\W\d_]{3})[^\\^_=+<>{}|&\n])*+[^\W\d_]{3}[^\\^_=+<>{}|&\n]*+|[ \d,xX-]*+"
)


def _formula_at(text: str, at: int) -> int:
    """The end of the formula that begins at `at`; 0 if none begins there."""
    if text[at] == "$" and is_in_word(text[at - 1] if at else " "):
        return 0
    opening = DISPLAY.match(text, at)
    if opening and opening[1]:
        mark = f"\\end{{{opening[1]}}}"
        end = text.find(mark, at, at + FORMULA_MAX)
        return end + len(mark) if end >= 0 else 0
    for pattern in FORMULAS:
        if not (match := pattern.match(text, at, at + FORMULA_MAX)):
            continue
        inside = match[0]
        if inside.startswith("$ "):
            is_prose = "\\" not in inside and bool(TWO_WORDS.search(inside))
            is_text = is_prose or not SPACED.search(inside)
        elif inside[0] == "$":
            inside = inside.strip("$")
            is_text = bool(BOLD.search(inside) or PROSE.fullmatch(inside))
        else:
            is_round = inside[1] == "("
            is_text = bool(WORD.fullmatch(match[1]) if is_round else WORDS.fullmatch(match[1]))
        return 0 if is_text else match.end()
    return 0


def is_in_word(before: str) -> bool:
    """Whether a dollar sign after this character opens no formula: `US$`, `a_$b`, `$$`."""
    return before == "$" or (before.isascii() and (before.isalnum() or before == "_"))


def unmarked(source: str) -> tuple[str, bool]:
    """The TeX of a formula without its marks, and whether the formula has lines of its own."""
    if source.startswith("\\begin"):
        return source, True
    width = 2 if source.startswith(("$$", "\\")) else 1
    return source[width:-width].strip(), source.startswith(("$$", "\\["))


def formula(state: StateInline, silent: bool) -> bool:
    """Inline rule of the parser: keeps a formula unchanged, with its marks and line breaks."""
    if state.src[state.pos] not in "\\$" or not (end := _formula_at(state.src, state.pos)):
        return False
    if end > state.posMax:  # it begins in a link's text and ends after it
        return False
    if not silent:
        state.push("formula", "span", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


def formula_lines(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule of the parser: a paragraph whose first line begins a formula of several lines.

    Those lines are not parsed as any other block.
    """
    at, stop = state.bMarks[start] + state.tShift[start], state.eMarks[start]
    opening = DISPLAY.match(state.src, at) or _last_opening(state.src, at, stop)
    if not opening or state.is_code_block(start) or state.sCount[start] < state.blkIndent:
        return False
    closing = closing_of(opening)
    is_alone = opening.start() == at and not state.src[opening.end() : stop].strip()
    end = min(end, start + FORMULA_LINES_MAX)
    if state.src.find(closing, stop, state.eMarks[end - 1]) < 0:
        return False
    for line in range(start + 1, end):
        if state.isEmpty(line):
            if not is_alone:
                return False
            continue
        first, last = state.bMarks[line] + state.tShift[line], state.eMarks[line]
        if state.sCount[line] < state.blkIndent or ends_formula(state.src[first:last]):
            return False
        if closing in state.src[first:last]:
            content = state.getLines(start, line + 1, state.blkIndent, False).strip()
            if not _formula_at(content, opening.start() - at):
                return False
            if not silent:
                state.line = line + 1
                # Not a "paragraph" token: an item of a tight list drops the tags of its paragraphs.
                state.push("formula_open", "p", 1).map = [start, state.line]
                token = state.push("inline", "", 0)
                token.content, token.map, token.children = content, [start, state.line], []
                state.push("formula_close", "p", -1)
            return True
    return False


def _last_opening(text: str, start: int, stop: int) -> re.Match[str] | None:
    """The mark at the end of this line that opens a formula of the following lines."""
    line = text[start:stop].rstrip()
    mark = next((mark for mark in ("$$", "\\[", "}") if line.endswith(mark)), "")
    if not mark or (mark == "$$" and line.count("$$") % 2 == 0):
        return None
    at = start + (line.rfind("\\begin{") if mark == "}" else len(line) - len(mark))
    opening = DISPLAY.match(text, at) if at >= start else None
    return opening if opening and opening.end() == start + len(line) else None


def closing_of(opening: re.Match[str]) -> str:
    """The closing mark for an opening that DISPLAY matched."""
    if opening[1]:
        return f"\\end{{{opening[1]}}}"
    return "$$" if opening[0] == "$$" else "\\]"


def ends_formula(line: str) -> bool:
    """True if this line (without indentation) cannot be part of a formula."""
    is_heading_or_rule = HEADING_START.match(line) or SPACED_RULE.fullmatch(line)
    return is_heading_or_rule is not None or opened_fence(line) is not None
