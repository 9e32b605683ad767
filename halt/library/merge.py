"""Several generations read as one stream, in the order in which their events arrive.

Each run has one follower (see `halt.library.feed`), a thread that waits at the run's log and hands
events over. The order of arrival is the order in which the followers put their events into the
feed, under the feed's lock; nothing is sorted afterwards. Threads: one a run, each holding a
reader's place; none for the merge itself, whose consumer takes all that is there each time it had
to wait.

Runs stay runs: each has its own Stop, limits and figures, and one that fails leaves the others. The
consumer gets exactly one terminal event of each: the run's own, or an `error` in its place when
that run's events can't be had any more, because the consumer is slower than the log is long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Self

from halt.core.events import ErrorInfo, Event, Failed
from halt.core.receipts import Receipt
from halt.core.service import GenerationService
from halt.errors import HaltError
from halt.library.aio import AsyncStream, read_feed
from halt.library.feed import Feed, Item
from halt.library.handle import Generation


class Merged:
    """Labelled events in the order of their arrival: `for label, event in merged`.

    One stream for one consumer: iterating again goes on where it was. `merged["a"]` is the
    generation with that label, with a Stop and a result of its own. Leaving a `with` stops all of
    them; a merge that is dropped stops none.
    """

    def __init__(
        self, generations: GenerationService, feed: Feed, members: Mapping[str, Generation]
    ) -> None:
        self._generations = generations
        self._feed = feed
        self._members = members
        self._taken: deque[Item] = deque()

    def __del__(self) -> None:
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_all()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order in which they were given."""
        return tuple(self._members)

    def __getitem__(self, label: str) -> Generation:
        return self._members[label]

    # --- reading ----------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, Event]:
        if not self._taken:
            try:
                self._taken.extend(self._feed.take())
            except (KeyboardInterrupt, SystemExit):
                self._cancel_all()
                raise
            if not self._taken:
                raise StopIteration
        return self._present(self._taken.popleft())

    def aiter(self) -> AsyncStream[tuple[str, Event]]:
        """The same for `async for`; leaving it before the end stops all of them."""

        def begin(on_arrival: Callable[[], object]) -> Feed:
            self._feed.on_arrival = on_arrival
            return self._feed

        return AsyncStream(read_feed(begin, self._present, self._cancel_all), self._cancel_all)

    def _present(self, item: Item) -> tuple[str, Event]:
        label, event = item
        if isinstance(event, HaltError):
            info = ErrorInfo(event.code, event.message, event.retryable)
            return label, Failed(info, self._members[label].metrics)
        return label, event

    # --- ending -----------------------------------------------------------------------------------

    def stop(self) -> dict[str, Receipt]:
        """Stop all of them; what was seen to happen to each. The terminal events are still to come.

        All are stopped before the first connection is waited for, at most 0.25 s altogether.
        """
        stops = [(member.id, None) for member in self._members.values()]
        return dict(zip(self._members, self._generations.stop_each(stops, None), strict=True))

    def _cancel_all(self) -> None:
        for member in self._members.values():
            member.cancel()
