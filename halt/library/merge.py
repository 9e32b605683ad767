"""Reads several generations as one stream, in the order in which their events arrive.

Each run has one follower (see `halt.library.feed`), a thread that waits at the run's event log and
puts the events into the feed. The order of arrival is the order in which the followers do this,
under the lock of the feed; events are not sorted afterwards. Threads: one per run, each counting as
a reader; none for the merge itself, whose consumer takes all waiting events each time.

The runs stay independent: each has its own Stop, limits and figures, and a failure of one does not
affect the others. The consumer gets exactly one terminal event of each run: the run's own, or an
`error` instead if its events are no longer kept because the consumer was too slow.
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
    """Labelled events in order of arrival: `for label, event in merged`.

    One stream for one consumer: a second iteration continues where the first one ended.
    `merged["a"]` is the generation with that label, with its own Stop and result. Leaving a `with`
    block stops all generations; dropping the object stops none.
    """

    def __init__(
        self, generations: GenerationService, feed: Feed, members: Mapping[str, Generation]
    ) -> None:
        self._generations = generations
        self._feed = feed
        self._members = members
        self._pending: deque[Item] = deque()

    def __del__(self) -> None:
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_all()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the given order."""
        return tuple(self._members)

    def __getitem__(self, label: str) -> Generation:
        return self._members[label]

    # --- reading ----------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, Event]:
        if not self._pending:
            try:
                self._pending.extend(self._feed.take())
            except (KeyboardInterrupt, SystemExit):
                self._cancel_all()
                raise
            if not self._pending:
                raise StopIteration
        return self._labelled_event(self._pending.popleft())

    def aiter(self) -> AsyncStream[tuple[str, Event]]:
        """The same stream for `async for`; leaving it before the end stops all generations."""

        def open_feed(on_arrival: Callable[[], object]) -> Feed:
            self._feed.on_arrival = on_arrival
            return self._feed

        return AsyncStream(
            read_feed(open_feed, self._labelled_event, self._cancel_all), self._cancel_all
        )

    def _labelled_event(self, item: Item) -> tuple[str, Event]:
        label, event = item
        if isinstance(event, HaltError):
            info = ErrorInfo(event.code, event.message, event.retryable)
            return label, Failed(info, self._members[label].metrics)
        return label, event

    # --- ending -----------------------------------------------------------------------------------

    def stop(self) -> dict[str, Receipt]:
        """Stop all generations; return their receipts by label. The terminal events follow.

        All are stopped before the wait for their connections, which takes at most 0.25 s in all.
        """
        stops = [(member.id, None) for member in self._members.values()]
        return dict(zip(self._members, self._generations.stop_many(stops, ""), strict=True))

    def _cancel_all(self) -> None:
        for member in self._members.values():
            member.cancel()
