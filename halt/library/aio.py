"""Async iteration over the events of generations.

A follower thread (see `halt.library.feed`) waits for the run. It wakes the event loop once for each
time that the loop's task has to wait; the task then takes all events that are there. Nothing polls,
and nothing blocks the loop.

A task that reads this way owns the generation: it is stopped if the task stops reading before the
end, by `aclose`, by leaving the `async with`, by `break`, or because the task is cancelled. So
`asyncio.timeout` and a TaskGroup end a generation together with the task that waits for it.
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
    """Events as they arrive, for `async for`; an `async with` around it stops the generation."""

    def __init__(self, source: AsyncGenerator[T, None], stop: Callable[[], object]) -> None:
        self._source = source
        self._stop = stop
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # created before a loop runs
            self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        # A task cancelled before its first step runs no `finally`. Stop takes locks, which
        # `__del__` must not do, so the event loop calls it.
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
        """Stop the generation and the iteration. May be called after the end, and repeatedly."""
        self._is_closed = True
        self._stop()
        with contextlib.suppress(RuntimeError):  # another task waits in it, and gets the end
            await self._source.aclose()


async def read_feed(
    open_feed: Callable[[Callable[[], object]], Feed],
    convert: Callable[[Item], T],
    stop: Callable[[], object],
) -> AsyncGenerator[T, None]:
    """Yield `convert(item)` for each item of a feed; call `stop` at the end in any case.

    `open_feed` returns the feed; its argument is the function to call when an item has arrived.
    `convert` may raise, which ends the iteration.
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
                await asyncio.sleep(0)  # a fast stream must not starve other tasks
            elif feed.is_over:
                return
            else:
                await arrived.wait()
                arrived.clear()
    finally:
        stop()
        if feed is not None:
            feed.close()
