"""Markdown to HTML without a text that holds the interpreter's lock for long.

Short and shallow texts without code take milliseconds at worst and are rendered at once. Every
other text goes to a rendering process (`halt.rendering.process`), which limits the CPU time of
each. What is not there in time is shown plain: readable, with its line breaks, code in its box
without colours. What was rendered is kept, and a text that several readers open at once is rendered
once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import Protocol, TypeVar

from halt.clock import now
from halt.rendering.blocks import Block, BlockStep, Patch
from halt.rendering.cache import Cache, key_of
from halt.rendering.markdown import plain, plain_block, render, render_block
from halt.rendering.open_text import normalized
from halt.rendering.pool import IDLE, Pool, completed
from halt.rendering.protocol import Rendered, Request

#: Characters of a text that is rendered by the thread that asks for it: the worst text found takes
#: 9 ms (definitions of links that are not closed). Without DEEP it would be 15 ms.
SHORT = 500
#: Four marks of quotes and lists in a row. The cost of a line is proportional to their number.
DEEP = re.compile(r"^(?:[ \t]*+(?:[>*+-]|[0-9]{1,9}[.)])){4}", re.MULTILINE)

BLOCK_WAIT = 1.0  # seconds that the blocks of a running answer are waited for
TEXT_WAIT = 2.0  # seconds that a whole text is waited for

S = TypeVar("S")
T = TypeVar("T")


class PageRenderer(Protocol):
    """Renders what one page shows; all together by one deadline."""

    def text_html(self, text: str) -> str:
        """A whole text as HTML."""

    def patch(self, step: BlockStep) -> Patch:
        """The step with its blocks as HTML."""


class Renderer:
    """See the module. One for each application; any thread may call it."""

    def __init__(self, command: Sequence[str] = (), idle: float = IDLE) -> None:
        """`command` starts a rendering process, where it is not the usual one."""
        self._cache = Cache()
        self._pool = Pool(self._cache, command, idle)

    @property
    def pids(self) -> list[int]:
        """The process IDs of the rendering processes that are ready."""
        return self._pool.pids

    def within(self, seconds: float) -> PageRenderer:
        """To render what a page shows, in so many seconds altogether."""
        return _Within(self, now() + seconds)

    def submit_text(self, text: str) -> Future[Rendered]:
        """A whole text. Resolved within TEXT_WAIT."""
        text = normalized(text)
        key = key_of("text", text)
        kept = self._cache.find(key)
        if kept is None and _is_light(text):
            kept = self._cache.keep(key, Rendered(render(text)))
        if kept is not None:
            return completed(kept)
        found = self._pool.submit(key, Request(text, []), [key], now() + TEXT_WAIT)
        return _then(found, lambda drawn: drawn[0] if drawn else Rendered(plain(text)))

    def submit_blocks(
        self, blocks: Sequence[Block], plain_kinds: AbstractSet[bool] = frozenset()
    ) -> Future[list[Rendered]]:
        """Each of these blocks. Resolved within BLOCK_WAIT.

        `plain_kinds`: True stands for fences, False for the others; those that would take more than
        milliseconds are shown plain.
        """
        out: list[Rendered | None] = []
        sources, keys = list[tuple[str, bool]](), list[bytes]()
        for block in blocks:
            source = block.source
            drawn: Rendered | None
            if not block.is_fence and _is_light(source):
                drawn = Rendered(render_block(block))
            elif block.is_fence in plain_kinds:
                drawn = Rendered(plain_block(block))
            else:
                key = key_of("fence" if block.is_fence else "block", source)
                if (drawn := self._cache.find(key)) is None:
                    sources.append((source, block.is_fence))
                    keys.append(key)
            out.append(drawn)
        if not keys:
            return completed([each for each in out if each is not None])
        key = key_of("blocks", *[each.hex() for each in keys])
        found = self._pool.submit(key, Request(None, sources), keys, now() + BLOCK_WAIT)

        def put_together(drawn: list[Rendered] | None) -> list[Rendered]:
            fresh = iter(drawn or ())
            return [
                each or next(fresh, None) or Rendered(plain_block(block))
                for block, each in zip(blocks, out, strict=True)
            ]

        return _then(found, put_together)

    def is_immediate(self, text: str) -> bool:
        """Whether a whole text is there without waiting."""
        text = normalized(text)
        return _is_light(text) or self._cache.find(key_of("text", text)) is not None

    def warm_up(self) -> None:
        """Have a process ready soon: a page follows an answer that is being written."""
        self._pool.warm_up()

    def close(self) -> None:
        """End the processes. What is rendered from now on is plain. Harmless when repeated."""
        self._pool.close()


class Prerendered:
    """See `PageRenderer`: one text whose HTML is there. Everything else is plain."""

    def __init__(self, text: str, html: str) -> None:
        self._text = text
        self._html = html

    def text_html(self, text: str) -> str:
        return self._html if text == self._text else plain(text)

    def patch(self, step: BlockStep) -> Patch:
        return step.patch(map(plain_block, step.blocks))


class _Within:
    """See `PageRenderer`."""

    def __init__(self, renderer: Renderer, until: float) -> None:
        self._renderer = renderer
        self._until = until

    def text_html(self, text: str) -> str:
        if self._is_over and not self._renderer.is_immediate(text):
            return plain(text)
        drawn = self._result(self._renderer.submit_text(text))
        return plain(text) if drawn is None else drawn.html

    def patch(self, step: BlockStep) -> Patch:
        blocks = None if self._is_over else self._result(self._renderer.submit_blocks(step.blocks))
        if blocks is None:
            return step.patch(map(plain_block, step.blocks))
        return step.patch(each.html for each in blocks)

    @property
    def _is_over(self) -> bool:
        return now() >= self._until

    def _result(self, future: Future[T]) -> T | None:
        try:
            return future.result(max(0.0, self._until - now()))
        except TimeoutError:
            return None


def _is_light(text: str) -> bool:
    """Whether a text takes milliseconds at worst."""
    return len(text) <= SHORT and "```" not in text and "~~~" not in text and not DEEP.search(text)


def _then(future: Future[S], convert: Callable[[S], T]) -> Future[T]:
    """What `convert` makes of its result."""
    made: Future[T] = Future()

    def go_on(done: Future[S]) -> None:
        try:
            made.set_result(convert(done.result()))
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            made.set_exception(exc)

    future.add_done_callback(go_on)
    return made
