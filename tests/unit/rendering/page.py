"""A page that shows a text while it streams, and texts for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from halt.rendering import markdown
from halt.rendering.highlighting import Colours
from halt.rendering.markdown import render_block
from halt.rendering.streaming.blocks import BlockStep, Patch
from halt.rendering.streaming.stream import BlockStream
from tests.support.open_tail import merged

COLOURS = Colours()


def render(text: str) -> str:
    """A whole text with colours."""
    return markdown.render(text, COLOURS)


def patch_of(step: BlockStep) -> Patch:
    """The step with its blocks rendered."""
    return step.patch(render_block(block, COLOURS) for block in step.blocks)


@dataclass
class Page:
    """A page that applies patches as a browser does."""

    finished: str = ""
    tail: str = ""
    form: str = "text"

    def apply(self, patch: Patch) -> None:
        """Append parts to the last block and finished blocks, then change the tail."""
        if patch.parts:
            last = r"</tbody>\n</table></div>\n\Z" if patch.are_rows else r"</[ou]l>\n\Z"
            end = re.search(last, self.finished)
            assert end, "nothing to append to"
            self.finished = self.finished[: end.start()] + patch.parts + end[0]
        self.finished += patch.finished
        self.tail = merged(patch.tail if patch.replaces_tail else self.tail + patch.tail)
        if patch.form != self.form:
            assert patch.replaces_tail, "a tail changes its form only when it is replaced"
            self.form = patch.form


def streamed(text: str) -> str:
    """The finished blocks of a text that came in characters and has ended."""
    page, stream = Page(), BlockStream()
    for character in text:
        page.apply(patch_of(stream.feed(character)))
    rest = BlockStep(stream.close(), True, "", "text")
    page.apply(patch_of(rest))
    return page.finished


def page_of(*pieces: str) -> Page:
    """The page after these pieces."""
    page, stream = Page(), BlockStream()
    for piece in pieces:
        page.apply(patch_of(stream.feed(piece)))
    return page


# Pieces whose combinations are special, and any other characters.
PIECES = (
    "\n|\n\n|\r|\r\n|`|``|```|````|```py\n|~~~|~~~~|~~~ a`b\n|# h\n|---\n|- |1. |10) |* |  |   "
    "|    |\t|a|word|b c|> |===\n|<b>|<script>|&lt;|&|\\|[a](http://x)|![i](http://y)|[a]: /x"
    "|$|$$|\\[|\\]|\\(|\\)|\\begin{a}|\\end{a}|<br>|</br>|\uff1a|“|强调|。"
    "|data:image/png;base64,iVBOR|javascript:|\0|\ud800|\u2028|\u00a0|é|x\ny|**|_|\x0c"
)
FRAGMENTS = st.one_of(
    st.sampled_from([*PIECES.split("|"), "|", "|-|\n", "|a|b|\n|-|-|\n"]), st.text(max_size=5)
)
TEXTS = st.lists(FRAGMENTS, max_size=30).map("".join)


def cut(text: str, positions: list[int]) -> list[str]:
    """The text cut at these places."""
    edges = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]
