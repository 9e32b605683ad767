"""Markdown of a model: its HTML on the page, and the time of rendering."""

from __future__ import annotations

import html
import json
import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser

from halt.rendering.markdown import render, render_block
from halt.rendering.open_text import RUN, SEAM, WBR, OpenText, breakable, normalized
from halt.rendering.plain import plain
from halt.rendering.renderer import SHORT, is_quick_to_render
from halt.rendering.sanitizing import DIRECTED_BOXES, DIRECTED_TEXTS, MATH, TAGS
from halt.rendering.streaming.stream import BlockStream, split_blocks
from tests.fuzz.cuts import cuts_of, pieces_of
from tests.fuzz.mutate import TEXTS, mutated
from tests.fuzz.target import CPU_MAX, Finding, Target
from tests.support.open_tail import merged

PIECES = (
    *(
        "\n",
        "\n",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\0",
        "\t",
        " ",
        "  \n",
        "    ",
        "\\",
        "\\\n",
        "\u2028",
    ),
    *(
        "# ",
        "###### a\n",
        "===\n",
        "---\n",
        "***\n",
        "> ",
        "> > ",
        ">",
        "- ",
        "* ",
        "1. ",
        "10) ",
        "+\n",
    ),
    *(
        "```",
        "```\n",
        "```python\n",
        '```sh title="a.sh"\n',
        "```src/a.py\n",
        "# a.py\n",
        "~~~",
        "~~~\n",
        "````",
        "`",
        "``",
        "*",
        "**",
        "***",
        "_",
        "__",
        "~~",
    ),
    *(
        "[a]",
        "[a](",
        "](http://a.b)",
        "(javascript:a)",
        "![",
        "![a](data:image/png;base64,AAAA)",
        "]",
        "<",
    ),
    *(
        "[a]: http://a\n",
        "<http://a.b>",
        "<br>",
        "<br",
        "</br>",
        "<script>",
        "<!--",
        "&amp;",
        "&#0;",
        "&",
    ),
    *(
        "|",
        "|a|b|\n",
        "|-|-|\n",
        "|:-:|--:|\n",
        "-|-\n",
        "|-|\n",
        "+---+\n| a\n",
        "<ul><li>",
        "__init__",
        "*.py",
        "$ a= $",
        "$",
        "$$",
        "$$\n",
        "\\(",
        "\\)",
        "\\[",
        "\\]\n",
    ),
    *(
        "\\begin{a}\n",
        "\\begin{align}",
        "\\end{align}",
        "\\frac{",
        "\\sqrt",
        "\\left(",
        "\\right)",
        "\\text{<b>",
        "\\text{if $x",
        "$} ",
        "\\bigl(",
        "\\langle ",
        "\\log(",
        "\\color{red}",
        "{",
        "}",
        "^",
        "&=",
        "\\end{a}",
        "a",
        "b c",
        "word ",
        "\u4e2d\u6587",
        "\u05d0",
        "e\u0301",
        "\ud83d",
    ),
    *(
        "\U0001f468\u200d\U0001f469",
        "data:image/png;base64,",
        "AAAA",
        "mailto:a@b",
        "- [ ] a\n",
        "1. [x] ",
        "<sub>",
        "</sub>",
        "<B>",
        "</B>",
        "<kbd>a</kbd>",
        "https://a.b/c",
        "www.a.bc",
        "1. a\n  - b\n",
        "[^1]",
        "[^1]: ",
        "\n[^b]: c\n",
        "[^",
        "<details>",
        "<details open>\n",
        "<summary>",
        "</summary>",
        "</details>\n",
        "0",
        "1",
        "-",
        "=",
    ),
)


def text_of(data: bytes) -> str:
    """An input as the text it stands for, halves of surrogate pairs included."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def written(rng: random.Random, most: int) -> str:
    """A random text of PIECES and TEXTS."""
    few = rng.sample(PIECES, rng.randrange(1, 8)) if rng.random() < 0.6 else [*PIECES, *TEXTS]
    return "".join(
        rng.choice(few) * rng.choice((1, 1, 1, 2, 3)) for _ in range(rng.randrange(most))
    )


class Markdown(Target):
    """A page's HTML is well-formed and allowed, and a function of the text so far."""

    name = "markdown"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            text = written(rng, 40).encode("utf-8", "surrogatepass")
            yield mutated(rng, text, 2)

    def check(self, data: bytes) -> None:
        text = text_of(data)
        checked_html(render(text))
        checked_html("".join(map(render_block, split_blocks(text))))
        checked_html(plain(text))
        for cuts in cuts_of(text):
            _check_cut(text, cuts)
        stream, state = BlockStream(), _PageState()
        for end in range(1, min(len(text), 150) + 1):
            state.take(stream, text[end - 1])
            fresh = _PageState()
            fresh.take(BlockStream(), text[:end])
            if state != fresh:
                raise Finding(
                    "the page depends on the cut",
                    f"\nof {text[:end]!r}\nby characters: {state}\nat once: {fresh}",
                )


class _PageState:
    """The blocks and the open text of a stream, before rendering."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, bool]] = []
        self.tail = self.form = ""

    def take(self, stream: BlockStream, piece: str) -> None:
        step = stream.feed(piece)
        self.blocks += [(block.source, block.is_fence) for block in step.blocks]
        self.tail = merged(step.tail if step.replaces_tail else self.tail + step.tail)
        self.form = step.form

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PageState) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.tail)

    def __repr__(self) -> str:
        return f"{self.blocks} {self.form} {self.tail!r}"


def _check_cut(text: str, cuts: list[int]) -> None:
    streams = BlockStream(), BlockStream()
    states = _PageState(), _PageState()
    states[0].take(streams[0], text)
    for piece in pieces_of(text, cuts):
        states[1].take(streams[1], piece)
    if states[0] != states[1] or streams[0].open_source() != streams[1].open_source():
        raise Finding("the page depends on the cut", f"{cuts[:8]}\n{states[0]}\n{states[1]}")


VOID = frozenset({"br", "hr", "input", "wbr"})
ATTRIBUTES = {
    "a": {"href", "title", "target", "rel", "class", "id", "role", "aria-label"},
    **{tag: {"dir", "class", "start"} for tag in (*DIRECTED_BOXES, *DIRECTED_TEXTS)},
    "details": {"dir", "open"},
    "li": {"dir", "class", "id"},
    "ol": {"dir", "class", "start", "aria-label"},
    "input": {"type", "disabled", "checked", "aria-label"},
    "pre": {"tabindex"},
    "code": {"class"},
    "span": {"class", "tabindex"},
    "div": {"class", "dir", "tabindex", "data-name"},
    **{tag: {*names.split(), "class", "mathcolor"} for tag, names in MATH.items()},
}
TEXT_TAG = re.compile(r"<(?!/?[a-z])")


class _Checker(HTMLParser):
    """Raises Finding for a tag or an attribute that is not allowed, or tags that do not match."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.allowed = {*TAGS.split(), *MATH}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.allowed:
            raise Finding("a tag that is not allowed", tag)
        for name, value in attrs:
            if name not in ATTRIBUTES.get(tag, ()):
                raise Finding("an attribute that is not allowed", f"{tag} {name}")
            if name == "href" and not re.match(
                r"(?:https?://|mailto:|#[nr][0-9a-f]{8}-)", value or "", re.IGNORECASE
            ):
                raise Finding("a link that is not allowed", f"{value!r}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise Finding("tags that do not match", tag)

    def handle_comment(self, data: str) -> None:
        raise Finding("a comment in HTML", data)

    def handle_decl(self, decl: str) -> None:
        raise Finding("a declaration in HTML", decl)

    def handle_pi(self, data: str) -> None:
        raise Finding("a processing instruction in HTML", data)


def checked_html(text: str) -> None:
    """Raises Finding for HTML that is malformed or has a tag or attribute that is not allowed."""
    checker = _Checker()
    checker.feed(text)
    checker.close()
    if checker.open:
        raise Finding("a tag that is not closed", str(checker.open))
    if TEXT_TAG.search(text):
        raise Finding("a < that is no tag")


# --- time -----------------------------------------------------------------------------------------

FLOOR = 0.1  # seconds of CPU; shorter times are not compared
LIGHT = 0.1  # seconds of CPU; on a quick machine 0.01 is the limit
FACTOR = 2.5  # of CPU for twice the text
FIRST, SIZE_MAX = 3000, 200_000  # characters


def repeated(data: bytes) -> tuple[str, str, str] | None:
    """An input for time: {"before", "unit", "after"}; None for an invalid input."""
    try:
        fields = json.loads(data)
        parts = fields["before"], fields["unit"], fields["after"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(part, str) for part in parts) or not parts[1]:
        return None
    return parts


def grown(parts: tuple[str, str, str], size: int) -> str:
    """A text of about `size` characters."""
    before, unit, after = parts
    return before + unit * (size // len(unit) + 1) + after


class Time(Target):
    """An input's CPU time grows with its length: for twice the text by FACTOR at most.

    A finding needs two such doublings in a row, measured again: another program on the same core may
    double a figure.
    """

    cpu_max = 3 * CPU_MAX

    def process(self, text: str) -> None:
        raise NotImplementedError

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            parts = written(rng, 8), written(rng, rng.choice((3, 8, 40))) or "a", written(rng, 4)
            yield json.dumps(dict(zip(("before", "unit", "after"), parts, strict=True))).encode()

    def check(self, data: bytes) -> None:
        parts = repeated(data)
        if parts is None:
            return
        size, before = FIRST, 0.0
        while size <= SIZE_MAX:
            seconds = self._seconds(parts, size)
            if seconds > FLOOR and seconds > FACTOR * before:
                self._measure_again(parts, size)
            if seconds > 4 * FLOOR:
                return
            before = seconds
            size *= 2

    def _measure_again(self, parts: tuple[str, str, str], size: int) -> None:
        """Compare this length with half of it and twice of it. Raises Finding."""
        figures = [min(self._seconds(parts, s) for _ in range(3)) for s in (size // 2, size)]
        if figures[1] <= FACTOR * figures[0]:
            return
        figures.append(min(self._seconds(parts, 2 * size) for _ in range(2)))
        if figures[2] <= FACTOR * figures[1]:
            return
        seconds = ", ".join(f"{figure:.3f}" for figure in figures)
        raise Finding("time is not linear", f"{seconds} s of CPU up to {2 * size} characters")

    def _seconds(self, parts: tuple[str, str, str], size: int) -> float:
        text = grown(parts, size)
        start = time.process_time()
        self.process(text)
        return time.process_time() - start


class MarkdownTime(Time):
    """Rendering a whole text."""

    name = "markdown-time"

    def process(self, text: str) -> None:
        render(text)


class LightTime(Target):
    """A text that the calling thread renders itself takes milliseconds."""

    name = "light-time"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            unit = written(rng, rng.choice((3, 8, 40))) or "a"
            text = (written(rng, 8) + unit * (SHORT // len(unit)) + written(rng, 4))[:SHORT]
            yield text.encode("utf-8", "surrogatepass")

    def check(self, data: bytes) -> None:
        text = text_of(data)
        if not is_quick_to_render(text):
            return
        seconds = LIGHT
        for _ in range(3):  # another program on the same core may double a figure
            start = time.process_time()
            render(text)
            seconds = min(seconds, time.process_time() - start)
        if seconds >= LIGHT:
            raise Finding("a light text takes long", f"{seconds:.3f} s of CPU")


class StreamTime(Time):
    """Splitting a text that arrives in small pieces, and rendering its open block."""

    name = "stream-time"

    def process(self, text: str) -> None:
        stream, open_text = BlockStream(), OpenText()
        for at in range(0, len(text), 4):
            step = stream.feed(text[at : at + 4])
            if step.replaces_tail:
                open_text = OpenText()
            open_text.feed(step.tail)


class OpenParts(Target):
    """Seams and places to break lines change no text and cut no character reference."""

    name = "open-text"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        while True:
            unit = written(rng, 30)
            yield (unit * rng.choice((1, 1, 50, 400)))[:20_000].encode("utf-8", "surrogatepass")

    def check(self, data: bytes) -> None:
        source = text_of(data)
        text = html.escape(source)
        if _bare(breakable(text)) != text:
            raise Finding("a place to break a line changes the text")
        longest = max(map(len, re.split(r"<wbr>|[^!-~]", breakable(text))), default=0)
        if longest > RUN + 40:
            raise Finding("a run without a place to break the line", str(longest))
        whole_text = OpenText().feed(text)
        for cuts in [[], *cuts_of(source)][:12]:
            open_text = OpenText()
            joined_text = "".join(
                open_text.feed(html.escape(piece)) for piece in pieces_of(source, cuts)
            )
            if _bare(joined_text) != normalized(text):
                raise Finding("a seam changes the text", str(cuts[:8]))
            if joined_text.replace(SEAM, "") != whole_text.replace(SEAM, ""):  # a seam may be late
                raise Finding("the open text depends on the cut", str(cuts[:8]))
            parts = joined_text.replace(SEAM, "\0").replace(WBR, "\0")
            if "&" in re.sub(r"&(?:amp|lt|gt|quot|#x27);", "_", parts):
                raise Finding("a character reference is cut", str(cuts[:8]))


def _bare(text: str) -> str:
    return text.replace(SEAM, "").replace(WBR, "")
