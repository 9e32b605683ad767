"""A program's handle on one generation: read it, wait for it, or stop it, from any thread.

A handle is a viewer of its run, so the generation continues as long as the program holds the
handle, a callback or an iterator: it may need the result much later. `Config.orphan_grace` seconds
after the last of them is dropped, the run is stopped, as after a browser has disconnected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import msgspec

from halt.clock import now
from halt.core.connection import TICK
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    ErrorInfo,
    Event,
    Failed,
    ReasoningEnd,
    Terminal,
    is_terminal,
)
from halt.core.finish_reasons import is_good
from halt.core.generation import Viewer
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.errors import HaltError, OffsetLost
from halt.library.aio import AsyncStream, read_feed
from halt.library.feed import Feed, Followers, Item

logger = logging.getLogger(__name__)


class Result(msgspec.Struct, frozen=True):
    """The result of a generation.

    `text` is the answer, possibly partial; `terminal` is the event that ended the generation.
    """

    id: str
    model: str
    text: str
    terminal: Terminal

    @property
    def stopped(self) -> bool:
        """True if it was stopped on purpose; `text` is the answer up to then."""
        return isinstance(self.terminal, Cancelled)

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended the answer; None if it did not end it, or gave no reason.

        "stop", "tool_calls", "length", "content_filter", or another reason in the words of the
        model server.
        """
        return self.terminal.finish_reason if isinstance(self.terminal, Done) else None

    @property
    def whole(self) -> bool:
        """True if the model completed the answer: no Stop, limit, filter or server cut it off."""
        return isinstance(self.terminal, Done) and is_good(self.terminal.finish_reason)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The token usage reported by the provider; None if it reported none."""
        return self.terminal.usage if isinstance(self.terminal, Done) else None

    @property
    def metrics(self) -> Metrics:
        """The figures of the generation: times and tokens."""
        return self.terminal.metrics


class GenerationError(HaltError):
    """A generation failed. `code` is in `halt.errors.CODES`; `result` has the partial answer."""

    def __init__(self, error: ErrorInfo, result: Result) -> None:
        super().__init__(error.message, retry_after=error.retry_after)
        self.code = error.code
        self.retryable = error.retryable
        self.result = result

    @property
    def text(self) -> str:
        """The partial answer."""
        return self.result.text


def result_of(run: Run) -> Result:
    """The result of a run that has ended. Raises GenerationError if it failed."""
    ended = run.log.ended
    assert ended is not None  # noqa: S101 - callers wait for the end
    result = Result(run.id, run.model, run.answer()[1], ended)
    if isinstance(ended, Failed):
        raise GenerationError(ended.error, result)
    return result


class Generation:
    """One generation, running or ended. Any number of readers and threads may use it.

    It can be read repeatedly, each time from the beginning. Leaving a `with` block stops it.
    """

    def __init__(self, generations: GenerationService, followers: Followers, run: Run) -> None:
        self._generations = generations
        self._followers = followers
        self._run = run
        self._viewer = run.join()

    def __del__(self) -> None:
        # `__del__` must not take a lock; the relay checks `gone`.
        self._viewer.gone = True
        self._run.check_limits_soon()

    def __repr__(self) -> str:
        return f"<Generation {self.id} {self.state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    # --- what it is now ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The ID of the stream: the requested one, or a random one."""
        return self._run.id

    @property
    def state(self) -> Literal["running", "done", "cancelled", "error"]:
        """The current state: "running", or how the generation ended."""
        return self._run.state

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known yet."""
        return self._run.model

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._run.answer()[1]

    @property
    def metrics(self) -> Metrics:
        """The current figures; after the end, the final ones."""
        ended = self._run.log.ended
        return self._run.meter.snapshot() if ended is None else ended.metrics

    # --- reading ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event]:
        """All events as they arrive; only the last one is terminal. Raises OffsetLost."""
        return (event for _, event in self.events())

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """The events after number `after` as they arrive, with their numbers, which begin at 1.

        Leaving early does not affect the generation; Ctrl-C while waiting here stops it. Raises
        OffsetLost if the event log has grown so long that these events are no longer kept.
        """
        run = self._run
        viewer = run.join()
        try:
            for events in run.follow(after, viewer):
                yield from events
        except (KeyboardInterrupt, SystemExit):
            run.cancel("stop")
            raise
        finally:
            run.leave(viewer)

    @property
    def text_stream(self) -> Iterator[str]:
        """The pieces of the answer's text as they arrive.

        Text that turns out later to be reasoning (`ReasoningEnd`) was yielded as well, but is not
        part of `text`. Ends also when the generation is stopped. Raises GenerationError, after the
        partial text, if the generation fails, and OffsetLost like `events`.
        """
        for event in self:
            if isinstance(event, Content | ReasoningEnd):
                yield event.content
            elif is_terminal(event):
                result_of(self._run)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. A stopped generation has a result as well: see `Result.stopped`.

        Raises GenerationError, with the partial text, if the generation fails, and TimeoutError
        after `timeout` seconds, which does not affect the generation. Ctrl-C stops it.
        """
        run = self._run
        deadline = None if timeout is None else now() + timeout
        try:
            while run.log.ended is None:
                seconds_left = TICK if deadline is None else deadline - now()
                if seconds_left <= 0:
                    raise TimeoutError(f"The generation did not end within {timeout:g} s.")
                run.log.wait(float("inf"), min(seconds_left, TICK))
        except (KeyboardInterrupt, SystemExit):
            run.cancel("stop")
            raise
        return result_of(run)

    # --- reading in an event loop -----------------------------------------------------------------

    def aiter(self, after: int = 0, *, owner: bool = True) -> AsyncStream[Event]:
        """The events after number `after`, for `async for`.

        Leaving the iteration before the end stops the generation: by `aclose`, at the end of an
        `async with`, by `break`, or when the task is cancelled. With `owner=False` it continues.
        Raises AtCapacity, OffsetLost at the first event.
        """
        stop: Callable[[], object] = self.cancel if owner else bool

        def open_feed(on_arrival: Callable[[], object]) -> Feed:
            feed = Feed(on_arrival)
            self.feed(feed, self.id, after)
            return feed

        return AsyncStream(read_feed(open_feed, _event, stop), stop)

    async def aresult(self) -> Result:
        """`result` for an event loop. Cancelling the waiting task stops the generation."""
        async with self.aiter(self._run.log.last) as events:
            async for _ in events:
                pass
        return result_of(self._run)

    def feed(self, feed: Feed, label: str, after: int = 0) -> None:
        """Put the events after number `after` into a feed. Raises AtCapacity."""
        feed.add(self._followers, label, self._run, after)

    # --- ending -----------------------------------------------------------------------------------

    def stop(self) -> Receipt:
        """Stop the generation in any phase; return a receipt of what happened.

        Waits at most 0.25 s for the connection to close; in an event loop, use `cancel`.
        """
        return self._generations.stop(self._run.key)

    def cancel(self) -> None:
        """Stop the generation without waiting; for an event loop. No effect after the end."""
        self._run.switch.press()


def _event(item: Item) -> Event:
    if isinstance(item[1], HaltError):
        raise item[1]
    return item[1]


@dataclass
class Callbacks:
    """The callbacks of one generation, called in a thread that follows it.

    An exception of a callback is logged once, with its traceback. The callback is still called
    later, and the generation continues.
    """

    on_token: Callable[[str], object] | None
    on_complete: Callable[[Result], object] | None
    on_error: Callable[[HaltError], object] | None
    _reported: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.on_token, self.on_complete, self.on_error))

    def follow(self, run: Run, followers: Followers) -> None:
        """Start the thread that calls them as the run goes on. Raises AtCapacity."""
        # Not a daemon thread: the interpreter waits at exit for the callbacks.
        followers.start(run, partial(self._follow, run), daemon=False)

    def _follow(self, run: Run, viewer: Viewer) -> None:
        try:
            for events in run.follow(0, viewer):
                for _, event in events:
                    if isinstance(event, Content | ReasoningEnd):
                        self._call(run, "on_token", self.on_token, event.content)
                    elif is_terminal(event):
                        self._call(run, "on_complete", self.on_complete, result_of(run))
        except (GenerationError, OffsetLost) as fault:
            self._call(run, "on_error", self.on_error, fault)

    def _call(
        self, run: Run, name: str, callback: Callable[[Any], object] | None, value: object
    ) -> None:
        if callback is None:
            return
        try:
            callback(value)
        except BaseException:  # a SystemExit would end this thread silently
            if name not in self._reported:
                self._reported.add(name)
                logger.exception("%s of stream %s", name, run.id)
