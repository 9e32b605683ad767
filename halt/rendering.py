"""Markdown from a language model to safe HTML, while it is still being written.

The protocol: `render` turns a whole text into HTML. `BlockStream` takes the same text in pieces
and hands out `Patch`es: blocks that are finished are rendered once and for ever, the block still
open is shown as escaped text. What a page shows is a function of the text so far, never of how it
was cut into pieces, and the work is linear in the text. The stream does not know what comes later
(a link's definition, another item that makes a list loose), so a page that saw the whole answer
shows `render(whole)` in the end.

The text is hostile: raw HTML stays text, an image becomes a link (nothing is loaded from
anywhere), and nh3 lets through only what is listed in the tables here, with no style attribute.
"""

import html
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import lexers  # type: ignore[import-untyped, unused-ignore]
from pygments import token as kinds  # type: ignore[import-untyped, unused-ignore]

# Limits, with unit and reason. All of them guard time; no text is ever lost by them.
PARSED_MAX = 50_000  # characters parsed as one: the worst found (nested lazy quotes) takes 3 s
NESTING_MAX = 20  # levels of quotes, lists and links: the parser's cost is a multiple of the depth
CELLS_A_CHARACTER = 2  # table cells: short rows are filled up, 250 characters can ask for 65,000
HIGHLIGHTED_MAX = 50_000  # characters of code: ordinary code takes 0.15 s, and nobody reads more
# CPU seconds for colouring a block: ordinary code takes 1 to 3 us a character, but every lexer is
# quadratic somewhere (10,000 newlines in C take 3.5 s).
HIGHLIGHT_SECONDS, HIGHLIGHT_SECONDS_A_CHARACTER = 0.05, 10e-6
LABEL_MAX = 24  # characters of a fence's language that are shown
HEAD_MAX = 120  # characters at a line's start that are looked at again while the line grows

# The languages that are highlighted (by one of their aliases). A lexer is here only if no single
# match of it was found to be quadratic, as a match cannot be interrupted: that rules out ini,
# ocaml, matlab and the session lexers (console, pycon).
LANGUAGES = (
    "asm awk bash bat c clojure cmake cpp csharp css dart diff docker elixir erlang fortran fsharp"
    " go graphql groovy haskell html http java javascript jinja json jsx julia kotlin latex less"
    " lisp lua makefile markdown mysql nginx nim nix objective-c perl php postgresql powershell"
    " protobuf python r ruby rust scala scss solidity sql swift terraform toml tsx typescript typst"
    " vim vue xml yaml zig"
)
ALIASES: dict[str, str] = {
    alias: aliases[0]
    for _, aliases, _, _ in lexers.get_all_lexers(plugins=False)
    if not set(LANGUAGES.split()).isdisjoint(aliases)
    for alias in aliases
}

# CSS class of each kind of token; a kind not listed takes its parent's. static/code.css styles
# these classes and no others.
TOKEN_CLASSES: dict[Any, str] = {
    kinds.Token: "",
    kinds.Comment: "c",
    kinds.Comment.Preproc: "k",
    kinds.Generic.Deleted: "gd",
    kinds.Generic.Heading: "gh",
    kinds.Generic.Inserted: "gi",
    kinds.Generic.Subheading: "gh",
    kinds.Keyword: "k",
    kinds.Keyword.Type: "nc",
    kinds.Name.Attribute: "na",
    kinds.Name.Builtin: "nb",
    kinds.Name.Class: "nc",
    kinds.Name.Decorator: "nf",
    kinds.Name.Exception: "nc",
    kinds.Name.Function: "nf",
    kinds.Name.Tag: "nt",
    kinds.Number: "m",
    kinds.Operator: "o",
    kinds.Operator.Word: "k",
    kinds.String: "s",
    kinds.String.Escape: "se",
    kinds.String.Interpol: "se",
}
TAGS = (
    "a blockquote br button code div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong"
    " table tbody td th thead tr ul"
)
DIRECTED = ("blockquote", "ol", "table", "ul")  # their marks and columns follow their own script
CLEANER = nh3.Cleaner(
    tags=set(TAGS.split()),
    attributes={"a": {"href", "title"}, "ol": {"start"}},
    tag_attribute_values={
        **{tag: {"dir": {"auto"}} for tag in DIRECTED},
        "button": {"type": {"button"}, "data-copy": {"code"}},
        "pre": {"tabindex": {"0"}},
    },
    allowed_classes={
        "button": {"copy"},
        "code": {"highlight", *(f"language-{name}" for name in ALIASES.values())},
        "div": {"code", "code-bar", "table"},
        "span": {"code-lang", *TOKEN_CLASSES.values()} - {""},
        "td": {"left", "center", "right"},
        "th": {"left", "center", "right"},
    },
    set_tag_attribute_values={"a": {"target": "_blank"}},
    link_rel="noopener noreferrer nofollow",
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
)


# --- Markdown to HTML -------------------------------------------------------------------------


_making_lexer = threading.Lock()


@cache
def _token_class(kind: Any) -> str:
    while kind not in TOKEN_CLASSES:
        kind = kind.parent
    return TOKEN_CLASSES[kind]


def _highlight(code: str, language: str) -> str | None:
    """The code as escaped HTML with a span for each coloured run; None if it took too long."""
    # Lexers keep state while they work: one for each block. Made before the clock starts, because
    # the first of a kind is imported and compiled. By one thread at a time, since pygments changes
    # its rules while it compiles them; not at the start, since all of them take 0.6 s.
    with _making_lexer:
        lexer = lexers.get_lexer_by_name(language, stripnl=False, ensurenl=False)
    # CPU time of this thread, so that other threads' work does not take the colours away.
    end = time.thread_time() + HIGHLIGHT_SECONDS + HIGHLIGHT_SECONDS_A_CHARACTER * len(code)
    runs: list[tuple[str, list[str]]] = []
    for number, (kind, text) in enumerate(lexer.get_tokens(code)):
        if number % 16 == 0 and time.thread_time() > end:
            return None
        css = _token_class(kind)
        if runs and runs[-1][0] == css:
            runs[-1][1].append(text)
        else:
            runs.append((css, [text]))
    escaped = ((css, html.escape("".join(texts), quote=False)) for css, texts in runs)
    return "".join(f'<span class="{css}">{text}</span>' if css else text for css, text in escaped)


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    """A fence or an indented block: a bar with the language and a Copy button, and the code."""
    token = tokens[index]
    label = (token.info.split() or [""])[0]
    language = ALIASES.get(label.lower(), "")
    coloured = None
    if language and len(token.content) <= HIGHLIGHTED_MAX:
        coloured = _highlight(token.content, language)
    body = html.escape(token.content, quote=False) if coloured is None else coloured
    classes = f"highlight language-{language}" if language else "highlight"
    return (
        f'<div class="code"><div class="code-bar"><span class="code-lang">'
        f"{html.escape(label[:LABEL_MAX])}</span>"
        f'<button type="button" class="copy" data-copy="code">Copy</button></div>'
        f'<pre tabindex="0"><code class="{classes}">{body}</code></pre></div>\n'
    )


def _bounded_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table, unless it asks for many more cells than it has characters."""
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
    if columns * (stop - start) > CELLS_A_CHARACTER * characters:
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


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": NESTING_MAX})
    parser.enable(["table", "strikethrough"])
    parser.block.ruler.at("table", _bounded_table, {"alt": ["paragraph", "reference"]})
    parser.core.ruler.push("adapt", _adapt)
    # No relative link: it would point into this application.
    web = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
    parser.validateLink = lambda url: bool(web.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table dir="auto">\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    # The first parse compiles the rules, and a second thread would see them half compiled.
    parser.render("first")
    return parser


PARSER = _parser()


def _markdown(source: str) -> str | None:
    """The source as safe HTML; None where the parser would leave out what is nested too deep."""
    env: dict[str, Any] = {}
    tokens = PARSER.parse(source, env)
    if any(token.level >= NESTING_MAX - 1 for token in tokens):
        return None
    return CLEANER.clean(PARSER.renderer.render(tokens, PARSER.options, env))


def _block(source: str, is_fence: bool) -> str:
    """A block as safe HTML; one too long or nested too deep is shown as the text it is.

    A fence is parsed whatever its length: the parser only copies it.
    """
    rendered = _markdown(source) if is_fence or len(source) <= PARSED_MAX else None
    if rendered is None:
        rendered = CLEANER.clean(f"<p>{html.escape(source)}</p>\n")
    return rendered


def _normal(text: str) -> str:
    """The text with one kind of newline, and U+FFFD for what has no place in a page."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def render(text: str) -> str:
    """The whole text as safe HTML.

    A text beyond PARSED_MAX is rendered block by block, as it is while it streams.
    """
    text = _normal(text)
    whole = _markdown(text) if len(text) <= PARSED_MAX else None
    if whole is not None:
        return whole
    stream = BlockStream()
    return stream.feed(text).finished + stream.rest()


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


class BlockStream:
    """Markdown in pieces, finished blocks out.

    A block is finished at a blank line, at the end of a fence, before a fence, after a heading
    and after a rule. A list or an indented block may go on past a blank line: it is finished when
    the first character of the next line is there and is not indented.

    A fence inside a list item belongs to the item. A line's beginning that may still become a
    fence's ``` is held back, so that it never flickers in the page; nothing else is.
    """

    def __init__(self, block: Callable[[str, bool], str] = _block) -> None:
        """`block` is given each finished block's source, and whether it is a fence."""
        self._block = block
        self._lines: list[str] = []  # the open block's complete lines
        self._line: list[str] = []  # pieces of the line without its newline
        self._head = ""  # that line's first characters: all decisions on an incomplete line
        self._shown = False  # is that line in the tail, or held back?
        self._fence = ""  # the open fence's ``` or ~~~, "" outside
        self._fence_indent = 0
        self._item = 0  # the column where the content of the open list's item begins, 0: no list
        self._after_blank = False  # the open block (a list) has a blank line last
        self._swallow = False  # the last piece ended in \r: its \n may still come
        # What the next patch tells.
        self._finished: list[str] = []
        self._fresh = True
        self._tail: list[str] = []
        self._render = True

    def feed(self, text: str, *, render: bool = True) -> Patch:
        """Take the next piece of text and tell what it changes.

        With render=False finished blocks are not rendered: for a reader that has them already.
        """
        self._render = render
        if self._swallow and text:
            text = text.removeprefix("\n")
            self._swallow = False
        self._swallow = self._swallow or text.endswith("\r")
        *complete, last = _normal(text).split("\n")
        for part in complete:
            self._grow(part)
            self._end_line()
        self._grow(last)
        form = "code" if self._fence else "text"
        tail = html.escape("".join(self._tail))
        patch = Patch("".join(self._finished), self._fresh, tail, form)
        self._finished, self._fresh, self._tail = [], False, []
        return patch

    def rest(self) -> str:
        """The open block as HTML, as if the text ended here."""
        return self._block("\n".join([*self._lines, "".join(self._line)]), bool(self._fence))

    def open_source(self, limit: int) -> str:
        """The open block's source; of one longer than `limit` characters, its last lines."""
        lines = ["".join(self._line)]
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
        self._line.append(part)
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
            self._tail.append(self._visible("".join(self._line)))

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
        line, shown = "".join(self._line), self._shown
        self._line, self._head, self._shown = [], "", False
        if not self._fence:
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
        if self._item:
            self._keep(line, shown)
            self._after_blank = True
        elif self._lines:
            self._finish()
        elif shown:  # spaces enough to be shown, and now they are only a blank line
            self._fresh, self._tail = True, []

    def _watch_for_items(self, line: str) -> None:
        marker = MARKER.match(line)
        if not self._lines and _indent(line) >= 4:
            self._item = 4  # indented code goes on past a blank line, as an item does
        elif marker and (not self._item or len(marker[1]) < self._item):
            self._item = len(marker[0]) if marker[2] else len(marker[0]) + 1

    def _closes(self, line: str) -> bool:
        bare = line.strip(" \t")
        length = len(self._fence)
        return len(bare) >= length and not bare.strip(self._fence[0]) and _indent(line) < 4

    def _finish(self) -> None:
        """The open block is complete, and nothing of it is in the tail any more."""
        if self._render:
            self._finished.append(self._block("\n".join(self._lines), bool(self._fence)))
        self._lines, self._fence, self._item, self._after_blank = [], "", 0, False
        self._fence_indent = 0
        self._fresh, self._tail = True, []


def _indent(line: str) -> int:
    """Columns of white space at the line's start."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
