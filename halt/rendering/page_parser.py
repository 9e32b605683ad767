"""The parser of answers for the page: what the rules of `halt.rendering.grammar` become as HTML.

The HTML is not sanitized yet. `env["colours"]` of a parse highlights its code (see `Colours`).
"""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from halt.rendering.code_box import code_box
from halt.rendering.direction import first_direction, has_right_to_left
from halt.rendering.grammar import answer_parser, footnotes
from halt.rendering.grammar.formulas import unmarked
from halt.rendering.mathml.formula import math_html
from halt.rendering.open_text import breakable
from halt.rendering.sanitizing import DIRECTED_BOXES, DIRECTED_TEXTS
from halt.rendering.streaming.blocks import TABLE, TABLE_END

NESTING_MAX = 20  # levels of quotes, lists and links; the parser's time is proportional to them
HEAD_MAX = 16  # characters of a column's head that is kept in one line
NARROW = 24  # signs of a formula that fit into a phone's width
#: The address of a picture that is kept here.
_STORED = re.compile("/files/([0-9a-f]{64})")
MATH_TAG = re.compile(r"<[^<>]*+>")


def _table(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    """Render rule for the beginning of a table, in its own box, which scrolls in its direction."""
    direction = tokens[index].attrs.get("dir")
    attribute = f' dir="{direction}"' if direction else ""
    return TABLE.format(attributes=attribute)


def _code(
    _: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    """Render rule for a fence or an indented block."""
    token = tokens[index]
    return code_box(token.content, token.info, env.get("colours"))


def _escaped(token: Token) -> str:
    return breakable(html.escape(token.content))


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with each image as a link named by its alt text; in a link, as its alt text.

    A link to nowhere is its text. A picture that is kept here becomes a mark, which the page
    replaces if the picture belongs to the answer.
    """
    in_link, leads_on = 0, True
    for token in tokens:
        if token.type in ("link_open", "link_close"):
            if token.nesting > 0:
                href = str(token.attrs.get("href", ""))
                leads_on = bool(href) and not _STORED.fullmatch(href)
            if not leads_on:
                continue
            in_link += token.nesting
        if token.type != "image":
            yield token
            continue
        source = str(token.attrs.get("src", ""))
        if (stored := _STORED.fullmatch(source)) and not in_link:
            alt = _plain(token.children or ())
            yield Token("stored_picture", "span", 0, content=alt, attrs={"data-file": stored[1]})
            continue
        is_linked = bool(source) and not in_link
        if is_linked:
            yield Token("link_open", "a", 1, attrs={"href": source})
        address = "" if stored else source
        yield Token("text", "", 0, content=_plain(token.children or ()) or address or "image")
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


def _stored_picture(token: Token) -> str:
    """A mark with the alt text; see `halt.web.page.answer_pictures`."""
    words = html.escape(token.content) or "Picture"
    return f'<span data-file="{token.attrs["data-file"]}">{words}</span>'


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
    # No relative links: they would point into this application. `_adapt` removes links to pictures.
    web = re.compile(rf"https?://|mailto:|(?-i:{_STORED.pattern})\Z", re.IGNORECASE)
    parser.validateLink = lambda url: bool(web.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("text", lambda _, tokens, at, *__: _escaped(tokens[at]))
    parser.add_render_rule(
        "code_inline", lambda _, tokens, at, *__: f"<code>{_escaped(tokens[at])}</code>"
    )
    parser.add_render_rule("stored_picture", lambda _, tokens, at, *__: _stored_picture(tokens[at]))
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
    parser.add_render_rule("table_close", lambda *_: TABLE_END)
    # The first parse compiles the rules; another thread must not see them half compiled.
    parser.render("first")
    return parser


PARSER = _parser()
