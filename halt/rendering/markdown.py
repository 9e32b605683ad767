"""Renders Markdown from a language model as safe HTML.

`render` renders a whole text. While an answer is being written, `BlockStream` takes it in pieces
and returns `BlockStep`s: a finished block is rendered once (`render_block`, in any thread), the
open block is shown in a provisional form. Later text can change earlier blocks (the definition of a
link, a footnote, an item that makes a list loose), so the page replaces them by `render(whole)`
when the answer has ended.

The text is untrusted. Raw HTML stays text, except the tags of `halt.rendering.grammar.tags` and
`halt.rendering.grammar.details`; an image becomes a link (nothing is loaded), and nh3 removes
everything that is not listed in `halt.rendering.sanitizing`; style attributes are never allowed.
Identifiers come from footnotes alone. data: URLs are replaced by labels (see
`halt.rendering.data_urls`).

Time: `BlockStream`, `plain` and `plain_block` are linear in the text. The Markdown parser is not
for every text, and highlighting (`halt.rendering.highlighting`) is for few. The server therefore
renders through `halt.rendering.renderer`, in other processes.
"""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from halt.rendering import data_urls
from halt.rendering.code_names import NAME_MAX, code_name
from halt.rendering.direction import first_direction, has_right_to_left
from halt.rendering.grammar import answer_parser, footnotes
from halt.rendering.grammar.fences import OpenFence, opened_fence
from halt.rendering.grammar.formulas import unmarked
from halt.rendering.lines import LABEL_MAX, indent
from halt.rendering.mathml import math_html
from halt.rendering.open_text import breakable, normalized
from halt.rendering.sanitizing import CLEANER, DIRECTED_BOXES, DIRECTED_TEXTS
from halt.rendering.streaming.blocks import Block, Kind, joined
from halt.rendering.streaming.parts import (
    is_one_item,
    is_one_table,
    loosen,
    plain_item,
    plain_table,
)
from halt.rendering.streaming.stream import split_blocks

# Limits on time, each with its unit and reason. No text is lost by them.
TEXT_MAX = 250_000  # characters of a text that is parsed as a whole: its tokens take 40 MB
PARSED_MAX = 50_000  # characters of a block that is parsed; the worst (nested lazy quotes) take 3 s
NESTING_MAX = 20  # levels of quotes, lists and links; the parser's time is proportional to them
HEAD_MAX = 16  # characters of a column's head that is kept in one line
NARROW = 24  # signs of a formula that fit into a phone's width
MATH_TAG = re.compile(r"<[^<>]*+>")


class Colours(Protocol):
    """Colours for code blocks; see `halt.rendering.highlighting`."""

    @property
    def cleaner(self) -> nh3.Cleaner: ...

    def highlight(self, code: str, label: str) -> tuple[str, str | None]:
        """The language of a fence's label ("": unknown) and the code as HTML (None: uncoloured)."""


def render(text: str, colours: Colours | None = None) -> str:
    """The whole text as safe HTML.

    A text longer than TEXT_MAX is rendered block by block, as during streaming.
    """
    text = data_urls.replace(normalized(text))
    html_text = None
    if len(text) <= TEXT_MAX:
        html_text = _markdown(text, colours, environment=footnotes.environment())
    if html_text is not None:
        return html_text
    blocks = split_blocks(text)
    return "".join(joined(blocks, [render_block(block, colours) for block in blocks]))


def render_block(block: Block, colours: Colours | None = None) -> str:
    """A block as safe HTML; one that is too long or nested too deeply as `plain_block` shows it.

    A fence of any length is parsed, since the parser only copies it.
    """
    source = block.source
    is_parsed = block.is_fence or len(source) <= PARSED_MAX
    rendered = _markdown(source, colours, block.kind) if is_parsed else None
    return plain_block(block) if rendered is None else rendered


def plain(text: str) -> str:
    """The whole text as HTML: paragraphs and fences, each as `plain_block` shows it."""
    return "".join([plain_block(block) for block in _plain_blocks(text)])


def _plain_blocks(text: str) -> Iterator[Block]:
    """The fences of a text, and the lines between them up to a blank one.

    `split_blocks` knows more kinds of blocks, and takes ten times as long.
    """
    lines: list[str] = []
    fence: OpenFence | None = None
    for line in data_urls.replace(normalized(text)).split("\n"):
        bare = line.lstrip(" \t")
        is_mark = bare.startswith(("```", "~~~"))
        opening = opened_fence(bare) if is_mark and fence is None else None
        if fence is not None:
            lines.append(line)
            is_end = is_mark and indent(line) < 4 and fence.closes(bare)
        else:
            is_end = opening is not None or not bare
            if not is_end:
                lines.append(line)
        if is_end:
            if lines:
                yield Block(lines, "fence" if fence else "text")
            lines, fence = [line] if opening else [], opening
    if lines:
        yield Block(lines, "fence" if fence else "text")


def plain_block(block: Block) -> str:
    """A block as escaped text with its line breaks; a fence as uncoloured code."""
    if block.kind in ("item", "loose item"):
        return plain_item(block)
    if block.kind in ("head", "row"):
        return plain_table(block)
    if not block.is_fence:
        lines = breakable(html.escape(block.source.strip("\n"), quote=False))
        return f"<p>{lines}</p>\n".replace("\n", "<br>\n", lines.count("\n")) if lines else ""
    first, *code_lines = block.lines
    margin, fence = indent(first), opened_fence(first.lstrip(" \t"))
    if fence and any(fence.closes(line.lstrip(" \t")) for line in code_lines if indent(line) < 4):
        code_lines.pop()
    code = "".join(f"{line[min(margin, indent(line)) :]}\n" for line in code_lines)
    return _code_box(code, fence.info if fence else "", None)


def _markdown(
    source: str,
    colours: Colours | None,
    kind: Kind = "text",
    environment: dict[str, Any] | None = None,
) -> str | None:
    """The source as safe HTML; None if it is nested so deeply that the parser would drop text.

    `kind`: of the block that it is. The HTML of an item is always one list. `environment`: more for
    the parser.
    """
    env: dict[str, Any] = {"colours": colours, **(environment or {})}
    tokens = PARSER.parse(source, env)
    if any(token.level >= NESTING_MAX - 1 for token in tokens):
        return None
    if kind in ("head", "row"):
        if not is_one_table(tokens):
            return None
    elif kind in ("item", "loose item"):
        if not is_one_item(tokens):
            return None
        if kind == "loose item":
            loosen(tokens)
    clean = CLEANER if colours is None else colours.cleaner
    html_text = clean.clean(PARSER.renderer.render(tokens, PARSER.options, env))
    return footnotes.link_notes(html_text, source) if env.get("notes") else html_text


def _table(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    """Render rule for the beginning of a table, in its own box, which scrolls in its direction."""
    direction = tokens[index].attrs.get("dir")
    attribute = f' dir="{direction}"' if direction else ""
    return f'<div class="table" tabindex="0"{attribute}><table>\n'


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    """Render rule for a fence or an indented block."""
    token = tokens[index]
    return _code_box(token.content, token.info, env.get("colours"))


def _code_box(code: str, info: str, colours: Colours | None) -> str:
    """The HTML of a code block: a bar with the file's path or the language, and the code.

    The page's scripts add buttons to the bar; `data-name` is the name for a download.
    """
    label, path, name, suffix_language = code_name(info, code)
    language, coloured = colours.highlight(code, label) if colours is not None else ("", None)
    if not language and suffix_language and colours is not None:
        language, coloured = colours.highlight(code, suffix_language)
    body = html.escape(code, quote=False) if coloured is None else coloured
    classes = f"highlight language-{language}" if language else "highlight"
    file = f' data-name="{name}"' if name else ""
    return (
        f'<div class="code"><div class="code-bar"{file}>'
        f"{html.escape(path[-NAME_MAX:] or label[:LABEL_MAX])}</div>"
        f'<pre tabindex="0"><code class="{classes}">{body}</code></pre></div>\n'
    )


def _escaped(token: Token) -> str:
    return breakable(html.escape(token.content))


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with each image as a link named by its alt text; in a link, as its alt text.

    A link to nowhere is its text.
    """
    in_link, leads_on = 0, True
    for token in tokens:
        if token.type in ("link_open", "link_close"):
            leads_on = leads_on if token.nesting < 0 else bool(token.attrs.get("href"))
            if not leads_on:
                continue
            in_link += token.nesting
        if token.type != "image":
            yield token
            continue
        source = str(token.attrs.get("src", ""))
        is_linked = bool(source) and not in_link
        if is_linked:
            yield Token("link_open", "a", 1, attrs={"href": source})
        yield Token("text", "", 0, content=_plain(token.children or ()) or source or "image")
        if is_linked:
            yield Token("link_close", "a", -1)


def _plain(tokens: Sequence[Token]) -> str:
    return "".join(token.content + _plain(token.children or ()) for token in tokens)


def _adapt(state: StateCore) -> None:
    """Core rule: replaces images, style attributes and the marks of tasks."""
    tokens = state.tokens
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.children:
            token.children = list(_without_images(token.children))
        elif token.type in ("td_open", "th_open"):
            style = str(token.attrs.pop("style", ""))
            classes = [style.removeprefix("text-align:")] if style else []
            if token.tag == "th" and following and len(following.content) <= HEAD_MAX:
                classes.append("short")
            if classes:
                token.attrs["class"] = " ".join(classes)
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            token.attrs.pop("class", None)
    _place_checkboxes(tokens)
    _set_directions(state)


def _place_checkboxes(tokens: list[Token]) -> None:
    """Put the checkbox of each task into its first paragraph, or else before its first block."""
    for at, token in reversed(list(enumerate(tokens))):
        if token.type != "list_item_open" or "checked" not in token.meta:
            continue
        token.attrs["class"] = "task"
        checkbox = Token("checkbox", "input", 0, meta=token.meta)
        following = tokens[at + 2]
        if following.type == "inline" and following.children is not None:
            following.children.insert(0, checkbox)
        else:
            token.children = [checkbox]


def _set_directions(state: StateCore) -> None:
    """Set the direction of each block, if some of the text may run from right to left."""
    if not has_right_to_left(state.src):
        return
    direction = ""
    for token in reversed(state.tokens):
        if token.type == "inline":
            direction = first_direction(token.content) or direction
        elif token.nesting > 0 and token.tag in DIRECTED_BOXES:
            token.attrs["dir"] = direction or "ltr"
        elif token.nesting > 0 and token.tag in DIRECTED_TEXTS:
            token.attrs["dir"] = "auto"


def _list_item(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    env: EnvType,
) -> str:
    """Render rule for the beginning of a list item."""
    token = tokens[index]
    tag = renderer.renderToken(tokens, index, options, env)
    return tag + renderer.renderInline(token.children, options, env) if token.children else tag


def _checkbox(token: Token) -> str:
    checked = " checked" if token.meta["checked"] else ""
    return f'<input type="checkbox" disabled{checked} aria-label="Done"> '


def _formula(token: Token) -> str:
    """A formula as MathML, or as its source. A wide one scrolls, which the keyboard may do, too."""
    tex, is_display = unmarked(token.content)
    math = math_html(tex, display=is_display)
    if math is None:
        return f'<span class="math">{_escaped(token)}</span>'
    is_wide = len(MATH_TAG.sub("", math)) > NARROW
    if not is_display and not is_wide:
        return math
    box = "display" if is_display else "inline"
    return f'<span class="{box}"{" tabindex=0" if is_wide else ""}>{math}</span>'


def _parser() -> MarkdownIt:
    parser = answer_parser(maxNesting=NESTING_MAX)
    parser.core.ruler.push("adapt", _adapt)
    # No relative links: they would point into this application.
    web = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
    parser.validateLink = lambda url: bool(web.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("text", lambda _, tokens, at, *__: _escaped(tokens[at]))
    parser.add_render_rule(
        "code_inline", lambda _, tokens, at, *__: f"<code>{_escaped(tokens[at])}</code>"
    )
    parser.add_render_rule("formula", lambda _, tokens, at, *__: _formula(tokens[at]))
    parser.add_render_rule("list_item_open", _list_item)
    parser.add_render_rule("checkbox", lambda _, tokens, at, *__: _checkbox(tokens[at]))
    parser.add_render_rule(
        "hardbreak", lambda _, tokens, at, *__: "<br>" if tokens[at].info == "tag" else "<br>\n"
    )
    for name in ("note_reference", "note_back"):
        parser.add_render_rule(name, lambda _, tokens, at, *__: footnotes.note_mark(tokens[at]))
    parser.add_render_rule("notes_open", lambda *_: '<ol class="notes" aria-label="Footnotes">\n')
    parser.add_render_rule("table_open", _table)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    # The first parse compiles the rules; another thread must not see them half compiled.
    parser.render("first")
    return parser


PARSER = _parser()
