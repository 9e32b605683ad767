"""The rendering process: Markdown and highlighting in limited time, for one worker of the server.

It has no threads: when a piece of work has used its CPU time, a signal raises OutOfTime in the
middle of it, also within a pattern that backtracks (`re` checks for signals every few thousand
steps). C code that does not check for signals is handled by the worker, which kills this process at
the deadline.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

from halt import child_process
from halt.rendering import data_urls, protocol
from halt.rendering.cache import Cache
from halt.rendering.highlighting import Colours
from halt.rendering.markdown import render, render_block
from halt.rendering.open_text import normalized
from halt.rendering.plain import plain, plain_block
from halt.rendering.protocol import Rendered, Reply, Request, frame
from halt.rendering.streaming.blocks import Block, joined
from halt.rendering.streaming.stream import BlockStream

T = TypeVar("T")

TICK = 0.005  # CPU seconds between signals beyond a limit; repeated, as one may be swallowed
CPU_GRACE = 5  # CPU seconds beyond a request's limit, after which the kernel ends the process
PART = 10_000  # characters of a text that is split into blocks at a time
CODE_KEPT_MAX = 2_000_000  # bytes of HTML of highlighted code that are kept
#: A text for `slowness`, and the CPU seconds that it takes where the limits were chosen.
SAMPLE = "A **bold** word, `code` and [a link](https://example.org/).\n\n- one\n- two\n\n" * 20
SAMPLE_TIME = 0.005


class OutOfTime(BaseException):
    """The work has used its CPU time. No Exception, so that lexers do not catch it."""


class Timer:
    """Limits of CPU time; those of work within other work do not count for it.

    Main thread only: it uses SIGPROF.
    """

    def __init__(self) -> None:
        self._ends: list[float] = []
        signal.signal(signal.SIGPROF, self._check)

    def run_limited(self, seconds: float, work: Callable[[], T]) -> T | None:
        """Call `work` and return its result; None if it needs more than `seconds` of CPU time."""
        depth = len(self._ends)
        began = time.process_time()
        outer_left = self._ends[-1] - began if depth else 0.0
        try:
            if depth:
                self._ends[-1] = math.inf  # it is not running
            self._ends.append(began + seconds)
            self._set_timer()
            return work()
        except OutOfTime:
            return None
        finally:
            del self._ends[depth:]  # first, so that a signal that comes now raises nothing
            if depth:
                self._ends[-1] = time.process_time() + outer_left
            self._set_timer()

    def _set_timer(self) -> None:
        seconds_left = max(self._ends[-1] - time.process_time(), TICK) if self._ends else 0.0
        signal.setitimer(signal.ITIMER_PROF, seconds_left, TICK if seconds_left else 0.0)

    def _check(self, _number: int, _frame: FrameType | None) -> None:
        if self._ends and time.process_time() >= self._ends[-1]:
            raise OutOfTime


class LimitedRenderer:
    """Renders one request within its limits of CPU time."""

    def __init__(
        self, timer: Timer, size: int, slowness: float = 1.0, cache: Cache | None = None
    ) -> None:
        """`slowness` multiplies the limits for a text of `size` characters.

        `cache`: of highlighted code.
        """
        self._timer = timer
        self._slowness = slowness
        self._colours = Colours(self._limit, cache)
        self._colours_left = slowness * protocol.colours_limit(size)  # CPU seconds left for colours
        self._no_colours = False  # some code was left uncoloured
        self._text_left = slowness * protocol.text_limit(size)  # CPU seconds left for Markdown

    def text(self, text: str) -> Rendered:
        """Render a whole text; block by block if it takes too long as a whole."""
        html = self._timer.run_limited(self._text_left, lambda: render(text, self._colours))
        if html is not None:
            return Rendered(html, self._no_colours)
        self._text_left *= protocol.RETRY_SHARE
        return Rendered(self._by_block(data_urls.replace(normalized(text))), timed_out=True)

    def _by_block(self, text: str) -> str:
        """The blocks of a text as HTML; all after the limit is plain."""
        stream, blocks, rendered, rest = BlockStream(), list[Block](), list[Rendered](), ""
        for at in range(0, len(text), PART):
            began = time.process_time()
            new_blocks = stream.feed(text[at : at + PART]).blocks
            self._text_left -= time.process_time() - began
            blocks += new_blocks
            rendered += self.blocks(new_blocks)
            if self._text_left <= 0:
                rest = plain(stream.open_source() + text[at + PART :])
                break
        else:
            last = stream.close()
            blocks += last
            rendered += self.blocks(last)
        return "".join(joined(blocks, [block.html for block in rendered])) + rest

    def blocks(self, blocks: list[Block]) -> list[Rendered]:
        """Render blocks; a block that takes too long is plain, and so are all after the limit."""
        return [self._block(block) for block in blocks]

    def _block(self, block: Block) -> Rendered:
        self._no_colours = False
        html = None
        if self._text_left > 0:
            began, colours_left = time.process_time(), self._colours_left
            html = self._timer.run_limited(
                self._text_left, lambda: render_block(block, self._colours)
            )
            self._text_left -= time.process_time() - began - (colours_left - self._colours_left)
        if html is None:
            return Rendered(plain_block(block), timed_out=True)
        return Rendered(html, self._no_colours)

    def _limit(self, size: int, work: Callable[[], str]) -> str | None:
        began = time.process_time()
        limit = min(self._slowness * protocol.code_limit(size), self._colours_left)
        html = self._timer.run_limited(limit, work) if limit > 0 else None
        self._colours_left -= time.process_time() - began
        self._no_colours = self._no_colours or html is None
        return html


def slowness() -> float:
    """How many times slower this machine renders than the one where the limits were chosen.

    From 1 to SLOWNESS_MAX. Measured in CPU time, so other processes hardly change it.
    """
    fastest = 1.0
    for _ in range(3):
        began = time.process_time()
        render(SAMPLE)
        fastest = min(fastest, time.process_time() - began)
    return min(max(1.0, fastest / SAMPLE_TIME), protocol.SLOWNESS_MAX)


def render_request(
    timer: Timer, request: Request, slow: float = 1.0, cache: Cache | None = None
) -> Reply:
    """Render a request. After a fault the reply is empty and names the kind of exception.

    `slow`: see `slowness`; `cache`: see `LimitedRenderer`.
    """
    child_process.limit_cpu(slow * request.limit + CPU_GRACE, time.process_time())
    renderer = LimitedRenderer(timer, request.size, slow, cache)
    try:
        if request.text is not None:
            return Reply([renderer.text(request.text)])
        return Reply(renderer.blocks([protocol.block_of(*pair) for pair in request.blocks]))
    except Exception as exc:  # noqa: BLE001 - only the kind: the message may hold the user's text
        return Reply([], type(exc).__name__)
    except OutOfTime:  # the signal came after the work was done
        return Reply([], OutOfTime.__name__)


def main() -> NoReturn:
    """Reply to requests until the worker's end of the socket is closed."""
    with child_process.begin(ends_with_thread=True) as worker:
        gc.freeze()
        timer = Timer()
        slow, cache = slowness(), Cache(CODE_KEPT_MAX)
        worker.sendall(frame(Reply([])))
        while True:
            request = protocol.requests.decode(child_process.receive(worker)[0])
            worker.sendall(frame(render_request(timer, request, slow, cache)))
            del request


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
