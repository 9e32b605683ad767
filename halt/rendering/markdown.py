"""Markdown from a language model to safe HTML.

`render` turns a whole text into HTML. While it is still being written, `BlockStream` of
`halt.rendering.blocks` takes it in pieces and hands out `BlockStep`s: blocks that are finished are
rendered once and for ever (`render_block`, in any thread), the block still open is shown as escaped
text. The stream does not know what comes later (a link's definition, another item that makes a list
loose), so a page that saw the whole answer shows `render(whole)` in the end.

The text is hostile: raw HTML stays text (but `<br>`, the only line break that a table cell knows),
an image becomes a link (nothing is loaded from anywhere), and nh3 lets through only what is listed
in `halt.rendering.sanitizing`, with no style attribute. What a data: URL holds is left out (see
`halt.rendering.data_urls`).

Time: `BlockStream`, `plain` and `plain_block` take time in proportion to the text. Markdown does
not for every text, and colours (`halt.rendering.highlighting`) do for few: a process that has other
things to do renders texts by `halt.rendering.renderer`.
"""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from halt.rendering import data_urls
from halt.rendering.blocks import Block, split_blocks
from halt.rendering.grammar import answer_parser
from halt.rendering.lines import OPENING, indent, is_closing
from halt.rendering.open_text import breakable, normalized
from halt.rendering.sanitizing import CLEANER, DIRECTED

# Limits, with unit and reason. All of them guard time; no text is ever lost by them.
PARSED_MAX = 50_000  # characters parsed as one: the worst found (nested lazy quotes) takes 3 s
NESTING_MAX = 20  # levels of quotes, lists and links: the parser's cost is a multiple of the depth
CELLS_A_CHARACTER = 2  # table cells: short rows are filled up, 250 characters can ask for 65,000
COLUMNS_MAX = 200  # of a table: a browser lays out each of them against every row
LABEL_MAX = 24  # characters of a fence's language that are shown


class Colours(Protocol):
    """Colours for code blocks; see `halt.rendering.highlighting`."""

    @property
    def cleaner(self) -> nh3.Cleaner: ...

    def highlight(self, code: str, label: str) -> tuple[str, str | None]:
        """The language that a fence's label names, and the code as HTML; "" and None: without."""


def render(text: str, colours: Colours | None = None) -> str:
    """The whole text as safe HTML.

    A text beyond PARSED_MAX is rendered block by block, as it is while it streams.
    """
    text = data_urls.replace(normalized(text))
    whole = _markdown(text, colours) if len(text) <= PARSED_MAX else None
    if whole is not None:
        return whole
    return "".join([render_block(each, colours) for each in split_blocks(text)])


def render_block(block: Block, colours: Colours | None = None) -> str:
    """A block as safe HTML; one too long or nested too deep is shown as the text it is.

    A fence is parsed whatever its length: the parser only copies it.
    """
    source = block.source
    short = block.is_fence or len(source) <= PARSED_MAX
    rendered = _markdown(source, colours) if short else None
    return plain_block(block) if rendered is None else rendered


def plain(text: str) -> str:
    """The whole text as `plain_block` shows its blocks."""
    return "".join(
        [plain_block(each) for each in split_blocks(data_urls.replace(normalized(text)))]
    )


def plain_block(block: Block) -> str:
    """A block as the text it is; a fence as code without colours."""
    if not block.is_fence:
        lines = breakable(html.escape(block.source.strip("\n"), quote=False))
        return f"<p>{lines}</p>\n".replace("\n", "<br>\n", lines.count("\n")) if lines else ""
    first, *code_lines = block.lines
    opening = OPENING.match(first)
    margin, mark = (len(opening[1]), opening[2] or opening[3]) if opening else (0, "")
    if code_lines and mark and is_closing(code_lines[-1], mark):
        code_lines.pop()
    code = "".join(f"{line[min(margin, indent(line)) :]}\n" for line in code_lines)
    label = (first[margin + len(mark) :].split() or [""])[0]
    return _code_box(code, label, None)


def _markdown(source: str, colours: Colours | None) -> str | None:
    """The source as safe HTML; None where the parser would leave out what is nested too deep."""
    env: dict[str, Any] = {"colours": colours}
    tokens = PARSER.parse(source, env)
    if any(token.level >= NESTING_MAX - 1 for token in tokens):
        return None
    clean = CLEANER if colours is None else colours.cleaner
    return clean.clean(PARSER.renderer.render(tokens, PARSER.options, env))


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    """A fence or an indented block."""
    token = tokens[index]
    return _code_box(token.content, (token.info.split() or [""])[0], env.get("colours"))


def _code_box(code: str, label: str, colours: Colours | None) -> str:
    """A bar with the language and a Copy button, and the code."""
    language, coloured = colours.highlight(code, label) if colours is not None else ("", None)
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


def _parser() -> MarkdownIt:
    parser = answer_parser(maxNesting=NESTING_MAX)
    parser.block.ruler.at("table", _bounded_table, {"alt": ["paragraph", "reference"]})
    parser.core.ruler.push("adapt", _adapt)
    # No relative link: it would point into this application.
    web = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
    parser.validateLink = lambda url: bool(web.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("text", lambda _, tokens, at, *__: _escaped(tokens[at]))
    parser.add_render_rule(
        "code_inline", lambda _, tokens, at, *__: f"<code>{_escaped(tokens[at])}</code>"
    )
    parser.add_render_rule(
        "formula", lambda _, tokens, at, *__: f'<span class="math">{_escaped(tokens[at])}</span>'
    )
    parser.add_render_rule(
        "hardbreak", lambda _, tokens, at, *__: "<br>" if tokens[at].info == "tag" else "<br>\n"
    )
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table dir="auto">\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    # The first parse compiles the rules, and a second thread would see them half compiled.
    parser.render("first")
    return parser


PARSER = _parser()
