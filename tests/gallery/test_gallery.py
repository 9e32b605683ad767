"""The gallery: what the page and the terminal make of answers as models write them.

When the HTML changes on purpose: `python -m tests.gallery FOLDER`, then read the difference and
look at FOLDER/gallery.html.
"""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from itertools import cycle

import pytest
from rich.console import Console

from halt.cli.rich_screen import RichScreen
from halt.core.events import Content
from halt.rendering.streaming.stream import BlockStream
from tests.gallery import KINDS, answers_of, expected_path, joined_html

#: What is not read as words: formulas, addresses and the targets of links, tags and entities, and
#: the labels of footnotes, links and fences.
NO_WORDS = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}"
    r"|\]\([^)\n]*\)|\[[^\]\n]*\]: *\S+(?: \"[^\"\n]*\")?|\]\[\w+\]|\[\^\w+\]|data:\S+"
    r"|</?(?:br|sub|sup|kbd|details|summary|u|mark|b|i|s|del|ins|ul|li|strong)\b[^>\n]*>|&\w+;|&#\d+;",
    re.DOTALL,
)
FENCE_INFO = re.compile(r"^([ >*]*(?:`{3,}|~{3,}))[^`\n]*$", re.MULTILINE)
WORD = re.compile(r"[^\W_]{3,}")


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


class TextParser(HTMLParser):
    """Collects the text of HTML."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_gallery_rendered_is_the_expected_html(kind: str) -> None:
    """Each text has the HTML that people have looked at."""
    rendered = joined_html(answers_of(kind)).splitlines()
    expected = expected_path(kind).read_text("utf-8").splitlines()
    assert rendered == expected, "python -m tests.gallery FOLDER, then read the difference"


@pytest.mark.parametrize("kind", KINDS)
def test_gallery_text_in_pieces_makes_the_same_blocks(kind: str) -> None:
    """The blocks, whose end the page replaces by the whole, do not depend on how a text was cut."""
    for answer in answers_of(kind):
        whole = BlockStream()
        blocks = [*whole.feed(answer.source).blocks, *whole.close()]
        stream, streamed_blocks, at = BlockStream(), [], 0
        for size in cycle((1, 2, 3, 4, 5, 6, 7)):
            if at >= len(answer.source):
                break
            streamed_blocks += stream.feed(answer.source[at : at + size]).blocks
            at += size
        assert [*streamed_blocks, *stream.close()] == blocks, answer.title


@pytest.mark.parametrize("kind", KINDS)
def test_gallery_html_has_all_words(kind: str) -> None:
    """The text of the HTML has every word that is no part of a mark or an address."""
    for answer in answers_of(kind):
        source = NO_WORDS.sub(" ", FENCE_INFO.sub(r"\1", answer.source))
        text = TextParser(answer.html).text
        assert [word for word in words_of(source) if word not in text] == [], answer.title


@pytest.mark.parametrize("kind", KINDS)
def test_gallery_in_the_terminal_has_all_words(kind: str) -> None:
    """The terminal renders each text without a fault and shows every word."""
    for answer in answers_of(kind):
        out = io.StringIO()
        screen = RichScreen(Console(file=out, width=2000, force_terminal=False))
        screen.begin()
        screen.show(Content(answer.source))
        screen.end()
        source = NO_WORDS.sub(" ", FENCE_INFO.sub(r"\1", answer.source))
        shown = out.getvalue()
        assert [word for word in words_of(source) if word not in shown] == [], answer.title
