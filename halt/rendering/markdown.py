"""Renders Markdown from a language model as safe HTML.

`render` renders a whole text. While an answer is being written, `BlockStream` takes it in pieces
and returns `BlockStep`s: a finished block is rendered once (`render_block`, in any thread), the
open block is shown in a provisional form. Later text can change earlier blocks (the definition of a
link, a footnote, an item that makes a list loose), so the page replaces them by `render(whole)`
when the answer has ended.

The text is untrusted. Raw HTML stays text, except the tags of `halt.rendering.grammar.tags` and
`halt.rendering.grammar.details`; an image becomes a link (nothing is loaded; one that is kept here
becomes a mark), and nh3 removes everything that is not listed in `halt.rendering.sanitizing`; style
attributes are never allowed. Identifiers come from footnotes alone. data: URLs are replaced by
labels (see `halt.rendering.data_urls`).

Time: `BlockStream` and `halt.rendering.plain` are linear in the text. The Markdown parser is not
for every text, and highlighting (`halt.rendering.highlighting`) is for few. The server therefore
renders through `halt.rendering.renderer`, in other processes.
"""

from typing import Any

from halt.rendering import data_urls
from halt.rendering.code_box import Colours
from halt.rendering.grammar import footnotes
from halt.rendering.open_text import normalized
from halt.rendering.page_parser import NESTING_MAX, PARSER
from halt.rendering.plain import plain_block
from halt.rendering.sanitizing import CLEANER
from halt.rendering.streaming.blocks import Block, Kind, joined
from halt.rendering.streaming.parts import is_one_item, is_one_table, loosen
from halt.rendering.streaming.stream import split_blocks

# Limits on time, each with its unit and reason. No text is lost by them.
TEXT_MAX = 250_000  # characters of a text that is parsed as a whole: its tokens take 40 MB
PARSED_MAX = 50_000  # characters of a block that is parsed; the worst (nested lazy quotes) take 3 s


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


def _markdown(
    source: str,
    colours: Colours | None,
    kind: Kind = "text",
    environment: dict[str, Any] | None = None,
) -> str | None:
    """The source as safe HTML; None if it must be shown plain.

    That is so if it is nested so deeply that the parser would drop text, or if the HTML of a block
    of this kind would not be one list, or one table. `environment`: more for the parser.
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
