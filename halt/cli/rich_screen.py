"""Renders Markdown in a terminal while it is being written.

A finished block is printed once. Only the open block, cut to the screen's height, is redrawn, at
most FRAMES times a second. So the work is linear in the length of the answer, and a long answer
neither flickers nor moves text that was already printed.
"""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, ListItem, Markdown, TableElement
from rich.segment import Segment, SegmentLines
from rich.table import Table
from rich.text import Text

from halt.cli.screen import WAS_THOUGHT, Screen, seconds
from halt.clock import now
from halt.rendering.code_names import code_name
from halt.rendering.grammar import answer_parser
from halt.rendering.grammar.details import flat_details
from halt.rendering.plain_lines import clean
from halt.rendering.streaming.stream import BlockStream

FRAMES = 20  # a second
TAIL_MAX = 2_000  # characters of an open block that are drawn; all are printed at its end
THOUGHTS_MAX = 300  # characters of a running thought that are shown
CODE_THEME = "ansi_dark"  # the terminal's own colours


class _Heading(Heading):
    """A heading that is aligned to the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Table(TableElement):
    """A table in which a word that is wider than its column continues in the next line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                for column in part.columns:
                    column.overflow = "fold"
            yield part


#: Terminal styles for the elements of tags; the others have none.
STYLED = {"kbd": "strong", "mark": "strong", "u": "em"}
LOWERED = str.maketrans("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")
RAISED = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")


class _ListItem(ListItem):
    """A list item; a task has its box in place of the bullet."""

    def __init__(self, box: str) -> None:
        super().__init__()
        self._box = box

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _ListItem:
        return cls(_box(token))

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in super().render_bullet(console, options):
            is_bullet = isinstance(segment, Segment) and segment.text == " • "
            yield Segment(f" {self._box}") if is_bullet and self._box else segment


def _box(item: Token) -> str:
    """The box of a task; "" for another item."""
    return "" if "checked" not in item.meta else "☑ " if item.meta["checked"] else "☐ "


def _adapt(state: StateCore) -> None:
    """Replace tokens that rich does not know, line breaks of a paragraph, and labels of code."""
    box = ""
    for token in state.tokens:
        token.type = token.type.replace("formula_", "paragraph_")
        if token.type == "fence":
            label, _, _, language = code_name(token.info, token.content)
            token.info = label or language
        if token.type == "list_item_open" and token.markup in ".)":
            box = _box(token)
        elif token.type == "inline" and box:
            token.children = [Token("text", "", 0, content=box), *(token.children or ())]
            box = ""
        if token.children:
            token.children = list(_adapted(token.children))


def _adapted(tokens: list[Token]) -> Iterator[Token]:
    script: dict[int, int] | None = None  # of the text that follows `<sub>` or `<sup>`
    for token in tokens:
        if token.type == "formula":
            token.type = "text"
        elif token.type == "softbreak":
            token.type = "hardbreak"
        if token.markup == "autolink":  # rich would show the address twice
            continue
        if token.tag in ("sub", "sup"):
            script = (LOWERED if token.tag == "sub" else RAISED) if token.nesting > 0 else None
        elif token.tag in STYLED:
            token.tag = STYLED[token.tag]
            yield token
        elif token.tag != "small":
            if (
                script
                and token.type == "text"
                and all(ord(char) in script for char in token.content)
            ):
                token.content = token.content.translate(script)
            yield token


def _parser() -> MarkdownIt:
    parser = answer_parser().disable("reference")
    parser.core.ruler.at("details", flat_details)
    parser.core.ruler.push("adapt", _adapt)
    return parser


class RichMarkdown(Markdown):
    """One block of Markdown; HTML and link definitions stay text."""

    elements = {  # noqa: RUF012 - as rich has it
        **Markdown.elements,
        "heading_open": _Heading,
        "list_item_open": _ListItem,
        "table_open": _Table,
    }
    parser = _parser()

    def __init__(self, source: str) -> None:
        super().__init__("", code_theme=CODE_THEME, hyperlinks=False)
        self.markup = source
        self.parsed = self.parser.parse(source)


class RichScreen(Screen):
    """Renders answers as Markdown, with a live line at the end."""

    def __init__(self, console: Console, *, typewriter: bool = False) -> None:
        super().__init__(typewriter=typewriter)
        self._console = console
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._drawn_silence = ""

    def _renew(self) -> None:
        super()._renew()
        self._blocks = BlockStream(whole_lists=True, whole_tables=True)
        self._ready: list[str] = []  # sources of finished blocks that are not printed yet
        self._printed = False  # a part of this answer has been printed
        self._thoughts = ""
        self._status, self._dirty = "…", True

    def begin(self) -> None:
        super().begin()
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()
        self._draw()

    def tick(self) -> float | None:
        delay = super().tick()
        # The shown seconds have to be updated.
        if self._thinking_since is not None or self._silence_text() != self._drawn_silence:
            self._dirty = True
        if not self._dirty:
            return delay
        wait = self._drawn_at + 1 / FRAMES - now()
        if wait > 0:
            return wait if delay is None else min(wait, delay)
        self._draw()
        return 1 / FRAMES if self._thinking_since is not None else delay

    def freeze(self) -> None:
        super().freeze()
        self._draw()

    def end(self) -> None:
        super().end()
        self._close_block()
        self._status = ""
        self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None
        for line in self._lines_below():
            self.note(line)

    def note(self, text: str, *, bad: bool = False) -> None:
        self._console.print(Text(clean(text), style="red" if bad else "dim"))

    def _show_text(self, text: str) -> None:
        self._status = ""
        self._ready += [block.source for block in self._blocks.feed(text).blocks]
        self._dirty = True

    def _show_thought_text(self, text: str) -> None:
        self._thoughts = (self._thoughts + text)[-THOUGHTS_MAX:]
        self._dirty = True

    def _show_thought_end(self, spent: float) -> None:
        self._thoughts = ""
        self._line(f"thought for {seconds(spent)}")

    def _mark_as_thought(self) -> None:
        self._line(WAS_THOUGHT)

    def _show_call(self, line: str) -> None:
        self._close_block()
        self._status = f"{line} …"
        self._draw()

    def _show_call_result(self, line: str) -> None:
        self._status = "…"
        self._line(line)

    def _line(self, text: str) -> None:
        """Print a line about the answer between its blocks."""
        self._close_block()
        self._draw()
        self._console.print(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        self._printed = True

    def _close_block(self) -> None:
        """Treat the open block as finished."""
        source = self._blocks.open_source()
        if source.strip():
            self._ready.append(source)
        self._blocks = BlockStream(whole_lists=True, whole_tables=True)

    def _draw(self) -> None:
        """Print the finished blocks and redraw the open one."""
        self._drawn_at, self._dirty = now(), False
        ready, self._ready = self._ready, []
        if self._live is None:
            return
        self._live.update(self._tail(), refresh=not ready)
        for source in ready:
            if self._printed:
                self._console.print()
            self._console.print(RichMarkdown(source))
            self._printed = True

    def _tail(self) -> SegmentLines:
        self._drawn_silence = silence = self._silence_text()
        wait_note = f"… {silence} (Ctrl-C stops it)" if silence else ""
        if self._thinking_since is not None:
            words = " ".join(self._thoughts.split())
            spent = seconds(now() - self._thinking_since)
            thinking = Text(f"thinking, {spent}: {words}", style="dim italic")
            return self._fitting(thinking, 3, wait_note)
        source = self._blocks.open_source(TAIL_MAX)
        if source.strip():
            room = max(1, self._console.height - 3)
            is_complete = len(source) <= TAIL_MAX
            return self._fitting(
                RichMarkdown(source) if is_complete else Text(source[-TAIL_MAX:]), room, wait_note
            )
        return self._fitting(Text("" if wait_note else self._status, style="dim"), 1, wait_note)

    def _fitting(self, renderable: RichMarkdown | Text, room: int, below: str = "") -> SegmentLines:
        """The last `room` lines of `renderable`, and the line `below`."""
        lines = self._console.render_lines(renderable, pad=False)
        while lines and not any(segment.text.strip() for segment in lines[-1]):
            lines.pop()
        lines = lines[-room:]
        if self._printed and len(lines) < room and (lines or below):
            lines.insert(0, [])
        if below:
            last = Text(below, style="dim", no_wrap=True, overflow="ellipsis")
            lines += self._console.render_lines(last, pad=False)
        return SegmentLines(lines, new_lines=True)
