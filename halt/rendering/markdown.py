"""Markdown from a language model to safe HTML, while it is still being written.

The protocol: `render` turns a whole text into HTML. `BlockStream` takes the same text in pieces
and hands out `Step`s: blocks that are finished are rendered once and for ever (`render_block`, in
any thread), the block still open is shown as escaped text. What a page shows
is a function of the text so far, never of how it was cut into pieces, and the work is linear in the
text. The stream does not know what comes later (a link's definition, another item that makes a list
loose), so a page that saw the whole answer shows `render(whole)` in the end.

The text is hostile: raw HTML stays text (but `<br>`, the only line break that a table cell knows),
an image becomes a link (nothing is loaded from anywhere), and nh3 lets through only what is listed
in the tables here, with no style attribute.

Where it is no CommonMark: a line of a paragraph stays a line, a formula stays as it was written,
and emphasis needs no blanks around it in scripts that have none. What a data: URL holds is left out
(see `halt.rendering.data_urls`).

Time: `BlockStream`, `plain` and `plain_block` take time in proportion to the text. Markdown does
not for every text, and colours (`halt.rendering.highlighting`) do for few: a process that has other
things to do renders texts by `halt.rendering.renderer`.
"""

import html
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import Any, NamedTuple, Protocol

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from halt.rendering import data_urls
from halt.rendering.open_text import Normal, breakable, normal

# Limits, with unit and reason. All of them guard time; no text is ever lost by them.
PARSED_MAX = 50_000  # characters parsed as one: the worst found (nested lazy quotes) takes 3 s
NESTING_MAX = 20  # levels of quotes, lists and links: the parser's cost is a multiple of the depth
CELLS_A_CHARACTER = 2  # table cells: short rows are filled up, 250 characters can ask for 65,000
COLUMNS_MAX = 200  # of a table: a browser lays out each of them against every row
LABEL_MAX = 24  # characters of a fence's language that are shown
HEAD_MAX = 120  # characters at a line's start that are looked at again while the line grows
FORMULA_MAX = 5_000  # characters of a formula
FORMULA_LINES_MAX = (
    100  # lines of one: a mark that is never closed holds so many back from the rest
)

TAGS = (
    "a blockquote br button code div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong"
    " table tbody td th thead tr ul wbr"
)
DIRECTED = ("blockquote", "ol", "table", "ul")  # their marks and columns follow their own script


def cleaner(
    languages: AbstractSet[str] = frozenset(), token_classes: AbstractSet[str] = frozenset()
) -> nh3.Cleaner:
    """What lets through the HTML made here; with the classes of colours, where there are any."""
    return nh3.Cleaner(
        tags=set(TAGS.split()),
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        tag_attribute_values={
            **{tag: {"dir": {"auto"}} for tag in DIRECTED},
            "button": {"type": {"button"}, "data-copy": {"code"}},
            "pre": {"tabindex": {"0"}},
        },
        allowed_classes={
            "button": {"copy"},
            "code": {"highlight", *(f"language-{name}" for name in languages)},
            "div": {"code", "code-bar", "table"},
            "span": {"code-lang", "math", *token_classes},
            "td": {"left", "center", "right"},
            "th": {"left", "center", "right"},
        },
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
    )


CLEANER = cleaner()


class Colours(Protocol):
    """Colours for code blocks; see `halt.rendering.highlighting`."""

    @property
    def cleaner(self) -> nh3.Cleaner: ...

    def paint(self, code: str, label: str) -> tuple[str, str | None]:
        """The language that a fence's label names, and the code as HTML; "" and None: without."""


# --- Markdown to HTML -------------------------------------------------------------------------


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    """A fence or an indented block."""
    token = tokens[index]
    return _code_box(token.content, (token.info.split() or [""])[0], env.get("colours"))


def _code_box(code: str, label: str, colours: Colours | None) -> str:
    """A bar with the language and a Copy button, and the code."""
    language, coloured = colours.paint(code, label) if colours is not None else ("", None)
    body = html.escape(code, quote=False) if coloured is None else coloured
    classes = f"highlight language-{language}" if language else "highlight"
    return (
        f'<div class="code"><div class="code-bar"><span class="code-lang">'
        f"{html.escape(label[:LABEL_MAX])}</span>"
        f'<button type="button" class="copy" data-copy="code">Copy</button></div>'
        f'<pre tabindex="0"><code class="{classes}">{body}</code></pre></div>\n'
    )


def _escaped(token: Token) -> str:
    return breakable(html.escape(token.content))


def _text(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return _escaped(tokens[index])


def _code_inline(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return f"<code>{_escaped(tokens[index])}</code>"


def _formula_text(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return f'<span class="math">{_escaped(tokens[index])}</span>'


def _broken(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return "<br>" if tokens[index].info == "tag" else "<br>\n"


def _bounded_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table, unless it is too wide or asks for many more cells than it has characters."""
    if not table(state, start, end, True):
        return False
    # The extent (up to the next blank line) is kept, so that each line is looked at once however
    # many tables begin in it. It may count too many lines and too many characters; both are still
    # in proportion to the text.
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


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    """An image becomes a link to it, named by its alt text; inside a link only the alt text."""
    in_link = 0
    for token in tokens:
        in_link += token.nesting if token.type in ("link_open", "link_close") else 0
        if token.type != "image":
            yield token
            continue
        source = str(token.attrs.get("src", ""))
        linked = bool(source) and not in_link
        if linked:
            yield Token("link_open", "a", 1, attrs={"href": source})
        yield Token("text", "", 0, content=_plain(token.children or ()) or source or "image")
        if linked:
            yield Token("link_close", "a", -1)


def _plain(tokens: Sequence[Token]) -> str:
    return "".join(token.content + _plain(token.children or ()) for token in tokens)


def _adapt(state: StateCore) -> None:
    """What the page needs otherwise than the parser gives it: no images, no style, directions."""
    for token in state.tokens:
        if token.children:
            token.children = list(_without_images(token.children))
        elif token.nesting > 0 and token.tag in DIRECTED:
            token.attrs["dir"] = "auto"
        elif token.type in ("td_open", "th_open"):
            style = str(token.attrs.pop("style", ""))
            if style:
                token.attrs["class"] = style.removeprefix("text-align:")


# --- Formulas, breaks, and scripts without blanks ---------------------------------------------

DISPLAY = re.compile(r"\$\$(?!\$)|\\\[|\\begin\{([A-Za-z]+\*?)\}")
#: A formula by its marks. An escaped mark within it is none, nor is the `\[` of `\\[2pt]`.
FORMULAS = (
    re.compile(r"\\\((?:[^\\]++|\\[^()])*+\\\)", re.DOTALL),
    re.compile(r"\\\[((?:[^\\]++|\\[^\[\]])*+)\\\](?!\()", re.DOTALL),
    re.compile(r"\$\$(?!\$)(?:[^\\$]++|\\.|\$(?!\$))*+\$\$(?!\$)", re.DOTALL),
    # Amounts of money and shell variables are none: a formula has no blank inside of its marks,
    # and no letter or digit outside.
    re.compile(r"\$(?![\s$])(?:[^\\$`]++|\\.)*+(?<!\s)\$(?![0-9A-Za-z_$])", re.DOTALL),
)
#: Between two dollars that stand for money, beside which Markdown goes on.
PROSE = re.compile(r"[^\\^_={}<>]*\s[^\W\d_]{2,}\s[^\\^_={}<>]*")
BOLD = re.compile(r"(?:^|[\s(])\*\*[^\s*]|[^\s*{^]\*\*(?:$|[\s,.;:!?)])")
#: What is in brackets that were escaped to be brackets: words, a tick, numbers of sources.
WORDS = re.compile(
    r"(?:(?![^\W\d_]{3})[^\\^_=+<>{}|&\n])*+[^\W\d_]{3}[^\\^_=+<>{}|&\n]*+|[ \d,xX-]*+"
)
BREAK = re.compile(r"</?br[ \t]*/?>[ \t]*\n?[ \t]*", re.IGNORECASE)


def _formula_at(text: str, at: int) -> int:
    """Where the formula ends that begins at this place; 0 where none does."""
    if text[at] == "$":
        before = text[at - 1] if at else " "
        if before == "$" or (before.isascii() and (before.isalnum() or before == "_")):
            return 0
    opening = DISPLAY.match(text, at)
    if opening and opening[1]:
        mark = f"\\end{{{opening[1]}}}"
        end = text.find(mark, at, at + FORMULA_MAX)
        return end + len(mark) if end >= 0 else 0
    for pattern in FORMULAS:
        if not (found := pattern.match(text, at, at + FORMULA_MAX)):
            continue
        inside = found[0]
        if inside[0] == "$":
            inside = inside.strip("$")
            is_none = bool(BOLD.search(inside) or PROSE.fullmatch(inside))
        else:
            is_none = pattern.groups > 0 and bool(WORDS.fullmatch(found[1]))
        return 0 if is_none else found.end()
    return 0


def _formula(state: StateInline, silent: bool) -> bool:
    """A formula stays as it was written, with its marks and lines."""
    if state.src[state.pos] not in "\\$" or not (end := _formula_at(state.src, state.pos)):
        return False
    if end > state.posMax:  # it begins in a link's text and ends behind it
        return False
    if not silent:
        state.push("formula", "span", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


def _formula_lines(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A paragraph whose first line begins a formula of several lines, whatever these look like."""
    at, stop = state.bMarks[start] + state.tShift[start], state.eMarks[start]
    opening = DISPLAY.match(state.src, at) or _last_opening(state.src, at, stop)
    if not opening or state.is_code_block(start) or state.sCount[start] < state.blkIndent:
        return False
    closing = closing_of(opening)
    alone = opening.start() == at and not state.src[opening.end() : stop].strip()
    end = min(end, start + FORMULA_LINES_MAX)
    if state.src.find(closing, stop, state.eMarks[end - 1]) < 0:
        return False
    for line in range(start + 1, end):
        if state.isEmpty(line):
            if not alone:
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
                # No paragraph: the list item of a short list drops the tags of its paragraphs.
                state.push("formula_open", "p", 1).map = [start, state.line]
                token = state.push("inline", "", 0)
                token.content, token.map, token.children = content, [start, state.line], []
                state.push("formula_close", "p", -1)
            return True
    return False


def _last_opening(text: str, start: int, stop: int) -> re.Match[str] | None:
    """The mark at the end of this line that opens a formula of the lines behind it."""
    line = text[start:stop].rstrip()
    mark = next((each for each in ("$$", "\\[", "}") if line.endswith(each)), "")
    if not mark or (mark == "$$" and line.count("$$") % 2 == 0):
        return None
    at = start + (line.rfind("\\begin{") if mark == "}" else len(line) - len(mark))
    found = DISPLAY.match(text, at) if at >= start else None
    return found if found and found.end() == start + len(line) else None


def closing_of(opening: re.Match[str]) -> str:
    """The mark that closes what DISPLAY has found."""
    if opening[1]:
        return f"\\end{{{opening[1]}}}"
    return "$$" if opening[0] == "$$" else "\\]"


def ends_formula(line: str) -> bool:
    """Whether a line, without its indentation, shows that the formula was none."""
    return bool(OPENING.fullmatch(line) or HEADING.fullmatch(line) or RULE.fullmatch(line))


def _break(state: StateInline, silent: bool) -> bool:
    """The one tag that is obeyed."""
    found = BREAK.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent:
        state.push("hardbreak", "br", 0).info = "tag"
    state.pos = found.end()
    return True


@cache
def _is_unspaced(char: str) -> bool:
    """Whether a character belongs to a script that has no blanks between its words.

    So does Korean here, which writes a word's ending behind what it emphasises.
    """
    return unicodedata.east_asian_width(char) in "WFH" or bool(UNSPACED.match(char))


#: Thai and Lao, Tibetan, Myanmar, Khmer: unlike Chinese, Japanese and Korean they are not wide.
UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")


class _StateInline(StateInline):
    """Knows emphasis in scripts without blanks.

    CommonMark takes a `**` between a punctuation mark and a letter for an opening or a closing one
    by the side on which the mark is, since a blank is on the other. Beside a character of such a
    script it may be both, and a mark of the script's own counts as a letter of it.
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


def _is_mark(char: str) -> bool:
    return isMdAsciiPunct(ord(char)) or isPunctChar(char)


class _ParserInline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _StateInline(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def parser_of_answers(**options: Any) -> MarkdownIt:
    """Markdown as models write it, without what only the page or only the terminal needs."""
    parser = MarkdownIt("zero")
    parser.inline = _ParserInline()
    parser.configure("commonmark", {"html": False, "breaks": True, **options})
    parser.enable(["table", "strikethrough"])
    parser.block.ruler.before(
        "lheading", "formula_lines", _formula_lines, {"alt": ["paragraph", "reference"]}
    )
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.before("autolink", "break", _break)
    return parser


def _parser() -> MarkdownIt:
    parser = parser_of_answers(maxNesting=NESTING_MAX)
    parser.block.ruler.at("table", _bounded_table, {"alt": ["paragraph", "reference"]})
    parser.core.ruler.push("adapt", _adapt)
    # No relative link: it would point into this application.
    web = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
    parser.validateLink = lambda url: bool(web.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("text", _text)
    parser.add_render_rule("code_inline", _code_inline)
    parser.add_render_rule("formula", _formula_text)
    parser.add_render_rule("hardbreak", _broken)
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table dir="auto">\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    # The first parse compiles the rules, and a second thread would see them half compiled.
    parser.render("first")
    return parser


PARSER = _parser()


def _markdown(source: str, colours: Colours | None) -> str | None:
    """The source as safe HTML; None where the parser would leave out what is nested too deep."""
    env: dict[str, Any] = {"colours": colours}
    tokens = PARSER.parse(source, env)
    if any(token.level >= NESTING_MAX - 1 for token in tokens):
        return None
    clean = CLEANER if colours is None else colours.cleaner
    return clean.clean(PARSER.renderer.render(tokens, PARSER.options, env))


def render(text: str, colours: Colours | None = None) -> str:
    """The whole text as safe HTML.

    A text beyond PARSED_MAX is rendered block by block, as it is while it streams.
    """
    text = data_urls.shown(normal(text))
    whole = _markdown(text, colours) if len(text) <= PARSED_MAX else None
    if whole is not None:
        return whole
    return "".join([render_block(each, colours) for each in blocks_of(text)])


# --- The text while it grows ------------------------------------------------------------------

OPENING = re.compile(r"( {0,3})(?:(`{3,}+)[^`]*|(~{3,}+).*)")
MAYBE_OPENING = re.compile(r" {0,3}(?:`{0,2}|`{3,}+[^`]*|~{0,2}|~{3,}+.*)")
HEADING = re.compile(r"#{1,6}(?:[ \t].*)?")
RULE = re.compile(r"(?:-{3,}|\*{3,}|_{3,})[ \t]*")
MARKER = re.compile(r"( *)(?:[-+*]|[0-9]{1,9}[.)])(?=[ \t]|$)( {0,4}(?! ))?")


@dataclass(frozen=True, slots=True)
class Patch:
    """What a page that shows everything before must do to show the text so far."""

    finished: str  # HTML of blocks that are finished now, to be appended after the earlier ones
    fresh: bool  # True: `tail` replaces the open tail; False: it is appended to it
    tail: str  # escaped text, never markup
    form: str  # "text" or "code": how the open tail is to be shown


@dataclass(frozen=True, slots=True)
class Block:
    """The source of a finished block."""

    lines: list[str]
    is_fence: bool

    @property
    def source(self) -> str:
        return "\n".join(self.lines)

    @property
    def size(self) -> int:
        """Characters of the source."""
        return sum(map(len, self.lines)) + max(0, len(self.lines) - 1)


def render_block(block: Block, colours: Colours | None = None) -> str:
    """A block as safe HTML; one too long or nested too deep is shown as the text it is.

    A fence is parsed whatever its length: the parser only copies it.
    """
    short = block.is_fence or block.size <= PARSED_MAX
    rendered = _markdown(block.source, colours) if short else None
    return plain_block(block) if rendered is None else rendered


def plain_block(block: Block) -> str:
    """A block as the text it is; a fence as code without colours."""
    if not block.is_fence:
        lines = breakable(html.escape(block.source.strip("\n"), quote=False))
        return f"<p>{lines}</p>\n".replace("\n", "<br>\n", lines.count("\n")) if lines else ""
    first, *code_lines = block.lines
    opening = OPENING.match(first)
    indent, mark = (len(opening[1]), opening[2] or opening[3]) if opening else (0, "")
    if code_lines and mark and _is_closing(code_lines[-1], mark):
        code_lines.pop()
    code = "".join(f"{line[min(indent, _indent(line)) :]}\n" for line in code_lines)
    label = (first[indent + len(mark) :].split() or [""])[0]
    return _code_box(code, label, None)


def plain(text: str) -> str:
    """The whole text as `plain_block` shows its blocks."""
    return "".join([plain_block(each) for each in blocks_of(data_urls.shown(normal(text)))])


def blocks_of(text: str) -> list[Block]:
    """The blocks of a whole text."""
    stream = BlockStream()
    return [*stream.feed(text).blocks, stream.rest()]


class Step(NamedTuple):
    """What a piece of text has changed: a `Patch` whose finished blocks are not rendered yet."""

    blocks: list[Block]
    fresh: bool
    tail: str
    form: str

    def patch(self, finished: Iterable[str]) -> Patch:
        """The same with the blocks' HTML."""
        return Patch("".join(finished), self.fresh, self.tail, self.form)


class BlockStream:
    """Markdown in pieces, finished blocks out.

    A block is finished at a blank line, at the end of a fence, before a fence, after a heading
    and after a rule. A list or an indented block may go on past a blank line: it is finished when
    the first character of the next line is there and is not indented.

    A fence inside a list item belongs to the item. A line's beginning that may still become a
    fence's ``` is held back, so that it never flickers in the page; nothing else is.

    A formula whose opening mark is alone in its line goes on past a blank line, up to its closing
    mark, a fence, a heading, a rule or FORMULA_LINES_MAX.
    """

    def __init__(self) -> None:
        self._normal = Normal()
        self._pictures = data_urls.PictureFilter()
        self._lines: list[str] = []  # the open block's complete lines
        self._line = StringIO()  # the line without its newline; grows without copies
        self._head = ""  # that line's first characters: all decisions on an incomplete line
        self._shown = False  # is that line in the tail, or held back?
        self._fence = ""  # the open fence's ``` or ~~~, "" outside
        self._fence_indent = 0
        self._item = 0  # the column where the content of the open list's item begins, 0: no list
        self._formula = ""  # the closing mark of the open formula, "" outside
        self._formula_lines = 0  # that it may still have
        self._after_blank = False  # the open block (a list) has a blank line last
        # What the next step tells.
        self._finished: list[Block] = []
        self._fresh = True
        self._tail: list[str] = []

    def feed(self, text: str) -> Step:
        """Take the next piece of text and tell what it changes.

        Takes time for the piece alone, however long the open block and its last line are.
        """
        *complete, last = self._pictures.feed(self._normal.feed(text)).split("\n")
        for part in complete:
            self._grow(part)
            self._end_line()
        self._grow(last)
        form = "code" if self._fence else "text"
        tail = html.escape("".join(self._tail))
        step = Step(self._finished, self._fresh, tail, form)
        self._finished, self._fresh, self._tail = [], False, []
        return step

    def rest(self) -> Block:
        """The open block, as if the text ended here."""
        line = self._line.getvalue() + self._pictures.rest()
        return Block([*self._lines, line], bool(self._fence))

    def open_source(self, limit: int | None = None) -> str:
        """The open block's source; of one longer than `limit` characters, its last lines.

        Without a limit as if the text ended here.
        """
        lines = [self._line.getvalue()]
        if limit is None:
            lines[0] += self._pictures.rest()
            limit = sys.maxsize
        size = len(lines[0])
        for line in reversed(self._lines):
            if size > limit:
                break
            lines.append(line)
            size += len(line) + 1
        return "\n".join(reversed(lines))

    def _grow(self, part: str) -> None:
        """More of the line that has no newline yet."""
        if not part:
            return
        self._line.write(part)
        if len(self._head) < HEAD_MAX:
            self._head += part[: HEAD_MAX - len(self._head)]
        if self._after_blank and self._head.strip(" \t"):
            self._after_blank = False
            if _indent(self._head) < 2:
                self._finish()
        if self._shown:
            self._tail.append(part)
        elif not self._held():
            self._shown = True
            self._tail.append(self._visible(self._line.getvalue()))

    def _held(self) -> bool:
        if len(self._head) >= HEAD_MAX:
            return False
        if self._fence:
            return _indent(self._head) < 4 and not self._head.strip(" \t").strip(self._fence[0])
        return MAYBE_OPENING.fullmatch(self._head) is not None

    def _visible(self, line: str) -> str:
        """The line as the page shows it: code without the indentation of its fence."""
        return line[min(self._fence_indent, _indent(line)) :] if self._fence else line

    def _end_line(self) -> None:
        line, shown = self._line.getvalue(), self._shown
        self._line, self._head, self._shown = StringIO(), "", False
        if not self._fence:
            if self._formula:
                self._go_on_with_formula(line)
            if not line.strip(" \t"):
                self._blank(line, shown)
                return
            opening = OPENING.fullmatch(line)
            if opening and (not self._item or len(opening[1]) < self._item):
                if self._lines:
                    self._finish()
                self._fresh, self._tail = True, []
                self._lines.append(line)
                self._fence, self._fence_indent = opening[2] or opening[3], len(opening[1])
                return
            if not self._formula:
                self._watch_for_formulas(line)
                self._watch_for_items(line)
        elif self._closes(line):
            self._lines.append(line)
            self._finish()
            return
        first = not self._lines
        self._keep(line, shown)
        if not self._fence and (HEADING.fullmatch(line) or (first and RULE.fullmatch(line))):
            self._finish()

    def _keep(self, line: str, shown: bool) -> None:
        self._after_blank = False
        self._lines.append(line)
        self._tail.append("\n" if shown else self._visible(line) + "\n")

    def _blank(self, line: str, shown: bool) -> None:
        if self._formula:
            self._keep(line, shown)
        elif self._item:
            self._keep(line, shown)
            self._after_blank = True
        elif self._lines:
            self._finish()
        elif shown:  # spaces enough to be shown, and now they are only a blank line
            self._fresh, self._tail = True, []

    def _watch_for_formulas(self, line: str) -> None:
        bare = line.strip(" \t")
        opening = DISPLAY.fullmatch(bare) if not self._item and _indent(line) < 4 else None
        if opening:
            self._formula, self._formula_lines = closing_of(opening), FORMULA_LINES_MAX

    def _go_on_with_formula(self, line: str) -> None:
        self._formula_lines -= 1
        over = self._formula_lines <= 0 or ends_formula(line.strip(" \t"))
        if over or self._formula in line:
            self._formula = ""

    def _watch_for_items(self, line: str) -> None:
        marker = MARKER.match(line)
        if not self._lines and _indent(line) >= 4:
            self._item = 4  # indented code goes on past a blank line, as an item does
        elif marker and (not self._item or len(marker[1]) < self._item):
            self._item = len(marker[0]) if marker[2] else len(marker[0]) + 1

    def _closes(self, line: str) -> bool:
        return _is_closing(line, self._fence)

    def _finish(self) -> None:
        """The open block is complete, and nothing of it is in the tail any more."""
        self._finished.append(Block(self._lines, bool(self._fence)))
        self._lines, self._fence, self._item, self._after_blank = [], "", 0, False
        self._fence_indent, self._formula = 0, ""
        self._fresh, self._tail = True, []


def _is_closing(line: str, fence: str) -> bool:
    """Whether a line ends the code that this fence has opened."""
    bare = line.strip(" \t")
    return len(bare) >= len(fence) and not bare.strip(fence[0]) and _indent(line) < 4


def _indent(line: str) -> int:
    """Columns of white space at the line's start."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
