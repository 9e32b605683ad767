"""The rendering process: Markdown and colours in limited time, for one worker of the server.

Started by `halt.rendering.child` with one end of a socket as its standard input; it leaves when
the other end is closed, however its worker went. It runs no thread: a signal that comes when a
piece of work has used its CPU time raises OutOfTime in the middle of it, also within a pattern that
backtracks (`re` looks for signals every few thousand steps). Work in C that looks for none is the
worker's matter, which ends this process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

from halt.rendering import protocol
from halt.rendering.blocks import Block, split_blocks
from halt.rendering.highlighting import Colours
from halt.rendering.markdown import plain_block, render, render_block
from halt.rendering.protocol import Rendered, Reply, Request, frame

T = TypeVar("T")

TICK = 0.005  # CPU seconds between two signals once a limit is reached: one may have been swallowed
CPU_GRACE = 5  # CPU seconds beyond a request's limit after which the system ends this process
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class OutOfTime(BaseException):
    """The work has used its time. Not an Exception: no lexer is to take it for one of its own."""


class Timer:
    """Limits of CPU time, one within the other. For the main thread."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        signal.signal(signal.SIGPROF, self._look)

    def within(self, seconds: float, work: Callable[[], T]) -> T | None:
        """What the work returns, None if it takes longer. Raises OutOfTime for an outer limit."""
        depth = len(self._ends)
        end = time.process_time() + seconds
        try:
            self._ends.append(min([end, *self._ends[-1:]]))
            self._set()
            return work()
        except OutOfTime:  # raised on for the limit around this one, if that is over as well
            if depth and time.process_time() >= self._ends[depth - 1]:
                raise
            return None
        finally:
            del self._ends[depth:]
            self._set()

    def _set(self) -> None:
        left = max(self._ends[-1] - time.process_time(), TICK) if self._ends else 0.0
        signal.setitimer(signal.ITIMER_PROF, left, TICK if left else 0.0)

    def _look(self, _number: int, _frame: FrameType | None) -> None:
        if self._ends and time.process_time() >= self._ends[-1]:
            raise OutOfTime


class LimitedRenderer:
    """Renders one request."""

    def __init__(self, timer: Timer, size: int) -> None:
        self._timer = timer
        self._colours = Colours(self._limit)
        self._left = protocol.colours_limit(size)  # CPU seconds for colours
        self._over = False  # colours were left out
        self._text_limit = protocol.text_limit(size)

    def text(self, text: str) -> Rendered:
        """A whole text; block by block where it takes too long as one."""
        seconds = self._text_limit + self._left
        html = self._timer.within(seconds, lambda: render(text, self._colours))
        if html is not None:
            return Rendered(html, self._over)
        self._text_limit *= protocol.AGAIN
        return Rendered(
            "".join([each.html for each in self.blocks(split_blocks(text))]), timed_out=True
        )

    def blocks(self, blocks: list[Block]) -> list[Rendered]:
        """Each of them; one that takes too long is plain, and so is each behind the last one that
        there was time for."""
        return [self._block(each) for each in blocks]

    def _block(self, block: Block) -> Rendered:
        self._over = False
        html = None
        if self._text_limit > 0:
            began, left = time.process_time(), self._left
            seconds = self._text_limit + (self._left if block.is_fence else 0.0)
            html = self._timer.within(seconds, lambda: render_block(block, self._colours))
            self._text_limit -= time.process_time() - began - (left - self._left)
        if html is None:
            return Rendered(plain_block(block), timed_out=True)
        return Rendered(html, self._over)

    def _limit(self, size: int, work: Callable[[], str]) -> str | None:
        began = time.process_time()
        limit = min(protocol.code_limit(size), self._left)
        html = self._timer.within(limit, work) if limit > 0 else None
        self._left -= time.process_time() - began
        self._over = self._over or html is None
        return html


def answer(timer: Timer, request: Request) -> Reply:
    """What is rendered of a request. A fault of ours is named and nothing is rendered."""
    used = int(time.process_time())
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = used + 1 + int(request.limit) + CPU_GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most < 0 else min(soft, most), most))
    renderer = LimitedRenderer(timer, request.size)
    try:
        if request.text is not None:
            return Reply([renderer.text(request.text)])
        return Reply(renderer.blocks([protocol.block_of(*each) for each in request.blocks]))
    except Exception as exc:  # noqa: BLE001 - the kind alone: its words may hold the user's text
        return Reply([], type(exc).__name__)
    except OutOfTime:  # it came when the work was done
        return Reply([], OutOfTime.__name__)


def main() -> NoReturn:
    """Answer requests until the worker's end is closed."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the worker decides
        signal.signal(ignored, signal.SIG_IGN)
    if sys.platform == "linux":  # also during work in C, where the closed socket is not seen
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.freeze()
    timer = Timer()
    with socket.socket(fileno=0) as worker:
        worker.sendall(frame(Reply([])))
        while True:
            size = protocol.length_of(_exactly(worker, protocol.HEAD))
            request = protocol.requests.decode(_exactly(worker, size))
            worker.sendall(frame(answer(timer, request)))
            del request


def _exactly(worker: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = worker.recv(min(size - len(data), 1 << 18))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
