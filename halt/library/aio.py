"""A thin bridge from runs to asyncio.

A follower (see `halt.library.feed`) waits for the run; the event loop is told once for each time
that it has to wait, and takes everything that is there. Nothing polls, nothing blocks the loop.

A task that reads this way owns what it reads: leaving before the end, by `aclose`, by leaving the
`async with`, by `break`, or because the task is cancelled, presses Stop. So `asyncio.timeout`
and a TaskGroup end the generation together with the task that waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Generic, Self, TypeVar

from halt.library.feed import Feed, Item

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """Events as they come: `async for`, best inside `async with`, which stops what it leaves."""

    def __init__(self, source: AsyncGenerator[T, None], stop: Callable[[], object]) -> None:
        self._source = source
        self._stop = stop
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # made before there is a loop
            self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        # A task that is cancelled before its first step never comes to a `finally`. Stop takes
        # locks, which nothing may do here, so the loop does it.
        if self._loop is not None and not self._is_closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stop)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._loop = self._loop or asyncio.get_running_loop()
        return await self._source.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, and read no more. Harmless after the end, and when repeated."""
        self._is_closed = True
        self._stop()
        with contextlib.suppress(RuntimeError):  # another task waits in it, and now gets the end
            await self._source.aclose()


async def read_feed(
    open_feed: Callable[[Callable[[], object]], Feed],
    convert: Callable[[Item], T],
    stop: Callable[[], object],
) -> AsyncGenerator[T, None]:
    """All that a feed brings, as `convert` makes it, which may raise; then `stop` is called.

    `open_feed` gives the feed, and is told what to call when something has arrived.
    """
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    feed: Feed | None = None
    try:
        feed = open_feed(partial(loop.call_soon_threadsafe, arrived.set))
        while True:
            items = feed.take(wait=False)
            for item in items:
                yield convert(item)
            if items:
                await asyncio.sleep(0)  # a flood leaves the loop to others, too
            elif feed.is_over:
                return
            else:
                await arrived.wait()
                arrived.clear()
    finally:
        stop()
        if feed is not None:
            feed.close()
