"""Renders Markdown as HTML without holding the interpreter's lock (GIL) for long.

Short and shallow texts without fenced code and formulas take milliseconds at worst. The calling
thread renders them at once. Every other text is sent to a rendering process
(`halt.rendering.process`), which limits the CPU time of each. A text that is not rendered in time
is shown plain: readable, with its line breaks, and code in its box without colours. Results are
cached, and a text that several users open at the same time is rendered once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import Protocol, TypeVar

from halt.clock import now
from halt.rendering.cache import Cache, key_of
from halt.rendering.markdown import render, render_block
from halt.rendering.open_text import normalized
from halt.rendering.plain import plain, plain_block
from halt.rendering.pool import IDLE, Pool, completed
from halt.rendering.protocol import Rendered, Request
from halt.rendering.streaming.blocks import Block, BlockStep, Kind, Patch

#: Characters of a text that the calling thread renders: the worst known text takes 9 ms
#: (definitions of links that are not closed). Without DEEP it would be 15 ms.
SHORT = 500
#: Blocks of one step that the calling thread renders: ordinary ones take 0.1 ms each.
QUICK_MAX = 20
#: Four marks of quotes and lists in a row; the time for a line is proportional to their number.
DEEP = re.compile(r"^(?:[ \t]*+(?:[>*+-]|[0-9]{1,9}[.)])){4}", re.MULTILINE)

KEPT_MAX = 16_000_000  # bytes of HTML that are kept
#: What may begin a formula: math-core is native code, and a fault of it must not end a worker.
FORMULA = re.compile(r"\$|\\[(\[b]")

BLOCK_WAIT = 1.0  # longest wait for the blocks of a running answer, in seconds
TEXT_WAIT = 2.0  # longest wait for a whole text, in seconds

S = TypeVar("S")
T = TypeVar("T")


class PageRenderer(Protocol):
    """Renders the texts of one page, all of them by one deadline."""

    def text_html(self, text: str) -> str:
        """A whole text as HTML; plain after the deadline."""

    def patch(self, step: BlockStep) -> Patch:
        """The step with its blocks as HTML; plain after the deadline."""


class Renderer:
    """Renders texts and blocks; see the module. One for each application; thread-safe."""

    def __init__(self, command: Sequence[str] = (), idle: float = IDLE) -> None:
        """`command` starts a rendering process (empty: the usual one); `idle`: see `Pool`."""
        self._cache = Cache(KEPT_MAX)
        self._pool = Pool(self._cache, command, idle)

    @property
    def pids(self) -> list[int]:
        """The process IDs of the rendering processes that are ready."""
        return self._pool.pids

    def with_deadline(self, seconds: float) -> PageRenderer:
        """A renderer for one page, with a deadline in `seconds` for all of its texts."""
        return _DeadlineRenderer(self, now() + seconds)

    def submit_text(self, text: str) -> Future[Rendered]:
        """Render a whole text. The future is resolved within TEXT_WAIT seconds."""
        text = normalized(text)
        key = key_of("text", text)
        cached = self._cache.find(key)
        if cached is None and is_quick_to_render(text):
            cached = self._cache.keep(key, Rendered(render(text)))
        if cached is not None:
            return completed(cached)
        future = self._pool.submit(key, Request(text, []), [key], now() + TEXT_WAIT)
        return _then(future, lambda rendered: rendered[0] if rendered else Rendered(plain(text)))

    def submit_blocks(
        self, blocks: Sequence[Block], plain_fence_values: AbstractSet[bool] = frozenset()
    ) -> Future[list[Rendered]]:
        """Render blocks, in order. The future is resolved within BLOCK_WAIT seconds.

        `plain_fence_values`: values of `Block.is_fence`. Blocks with one of them are shown plain if
        their rendering would take more than milliseconds.
        """
        results: list[Rendered | None] = []
        quick_left = QUICK_MAX
        sources, keys = list[tuple[str, Kind]](), list[bytes]()
        for block in blocks:
            source = block.source
            rendered: Rendered | None
            if quick_left > 0 and not block.is_fence and is_quick_to_render(source):
                quick_left -= 1
                rendered = Rendered(render_block(block))
            elif block.is_fence in plain_fence_values:
                rendered = Rendered(plain_block(block))
            else:
                key = key_of(block.kind, source)
                if (rendered := self._cache.find(key)) is None:
                    sources.append((source, block.kind))
                    keys.append(key)
            results.append(rendered)
        if not keys:
            return completed([result for result in results if result is not None])
        key = key_of("blocks", *[block_key.hex() for block_key in keys])
        future = self._pool.submit(key, Request(None, sources), keys, now() + BLOCK_WAIT)

        def merge(rendered: list[Rendered] | None) -> list[Rendered]:
            new_results = iter(rendered or ())
            return [
                result or next(new_results, None) or Rendered(plain_block(block))
                for block, result in zip(blocks, results, strict=True)
            ]

        return _then(future, merge)

    def is_immediate(self, text: str) -> bool:
        """True if `submit_text` returns a resolved future for this text."""
        text = normalized(text)
        return is_quick_to_render(text) or self._cache.find(key_of("text", text)) is not None

    def warm_up(self) -> None:
        """Start a process, so that it is ready when a running answer needs it."""
        self._pool.warm_up()

    def close(self) -> None:
        """End the processes; texts that need one are shown plain from now on. May be repeated."""
        self._pool.close()


class Prerendered:
    """A `PageRenderer` with the HTML of one text. Everything else is plain."""

    def __init__(self, text: str, html: str) -> None:
        self._text = text
        self._html = html

    def text_html(self, text: str) -> str:
        return self._html if text == self._text else plain(text)

    def patch(self, step: BlockStep) -> Patch:
        return step.patch(map(plain_block, step.blocks))


class _DeadlineRenderer:
    """A `PageRenderer` that calls `Renderer` until its deadline."""

    def __init__(self, renderer: Renderer, deadline: float) -> None:
        self._renderer = renderer
        self._deadline = deadline

    def text_html(self, text: str) -> str:
        if self._is_over and not self._renderer.is_immediate(text):
            return plain(text)
        rendered = self._result(self._renderer.submit_text(text))
        return plain(text) if rendered is None else rendered.html

    def patch(self, step: BlockStep) -> Patch:
        results = None if self._is_over else self._result(self._renderer.submit_blocks(step.blocks))
        if results is None:
            return step.patch(map(plain_block, step.blocks))
        return step.patch(result.html for result in results)

    @property
    def _is_over(self) -> bool:
        return now() >= self._deadline

    def _result(self, future: Future[T]) -> T | None:
        try:
            return future.result(max(0.0, self._deadline - now()))
        except TimeoutError:
            return None


def is_quick_to_render(text: str) -> bool:
    """True if rendering this text takes milliseconds at worst, in Python alone."""
    return (
        len(text) <= SHORT
        and "```" not in text
        and "~~~" not in text
        and not DEEP.search(text)
        and not FORMULA.search(text)
    )


def _then(future: Future[S], convert: Callable[[S], T]) -> Future[T]:
    """A future for `convert(result)`."""
    converted: Future[T] = Future()

    def convert_result(done: Future[S]) -> None:
        try:
            converted.set_result(convert(done.result()))
        except BaseException as exc:  # noqa: BLE001 - raised by `result()`
            converted.set_exception(exc)

    future.add_done_callback(convert_result)
    return converted
