"""A program's handle on one generation: read it, wait for it, stop it, from any thread.

A handle is a viewer of its run, so an answer goes on as long as the program keeps the handle, a
callback, or an iterator: it may need the result much later. When the last of them is dropped, the
run is stopped after `Config.orphan_grace` seconds, like one whose browser has left.
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
    """A generation that has ended.

    `text` is the whole answer, or what there was of it; `terminal` is the event that ended it.
    """

    id: str
    model: str
    text: str
    terminal: Terminal

    @property
    def stopped(self) -> bool:
        """It was stopped on purpose; `text` is what came before."""
        return isinstance(self.terminal, Cancelled)

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended; None where it did not, or gave no reason.

        "stop", "tool_calls", "length", "content_filter", or a word of the model's server for
        another reason to break off.
        """
        return self.terminal.finish_reason if isinstance(self.terminal, Done) else None

    @property
    def whole(self) -> bool:
        """The model came to its own end: no Stop, no limit, filter or server cut it."""
        return isinstance(self.terminal, Done) and is_good(self.terminal.finish_reason)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The provider's own count; None where it reported none."""
        return self.terminal.usage if isinstance(self.terminal, Done) else None

    @property
    def metrics(self) -> Metrics:
        """What it took."""
        return self.terminal.metrics


class GenerationError(HaltError):
    """A generation failed. `code` is one of `halt.errors.CODES`; `result` has what there was."""

    def __init__(self, error: ErrorInfo, result: Result) -> None:
        super().__init__(error.message, retry_after=error.retry_after)
        self.code = error.code
        self.retryable = error.retryable
        self.result = result

    @property
    def text(self) -> str:
        """The part of the answer that had come."""
        return self.result.text


def result_of(run: Run) -> Result:
    """How a run that is over ended. Raises GenerationError where it failed."""
    ended = run.log.ended
    assert ended is not None  # noqa: S101 - it is not asked before
    result = Result(run.id, run.model, run.answer()[1], ended)
    if isinstance(ended, Failed):
        raise GenerationError(ended.error, result)
    return result


class Generation:
    """One answer that is being written, or has been. Any number of readers and threads may use it.

    It can be read again and again, each time from its beginning. Leaving a `with` stops it.
    """

    def __init__(self, generations: GenerationService, followers: Followers, run: Run) -> None:
        self._generations = generations
        self._followers = followers
        self._run = run
        self._viewer = run.join()

    def __del__(self) -> None:
        # No lock may be taken here. The relay sees it.
        self._viewer.gone = True
        self._run.look_soon()

    def __repr__(self) -> str:
        return f"<Generation {self.id} {self.state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    # --- what it is now ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The stream's ID: the one that was asked for, or a random one."""
        return self._run.id

    @property
    def state(self) -> Literal["running", "done", "cancelled", "error"]:
        """What it does, or how it ended."""
        return self._run.state

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known by now."""
        return self._run.model

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._run.answer()[1]

    @property
    def metrics(self) -> Metrics:
        """The figures as of now; of one that has ended, the final ones."""
        ended = self._run.log.ended
        return self._run.meter.snapshot() if ended is None else ended.metrics

    # --- reading ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event]:
        """All events as they come; the last one, and only that, is terminal. Raises OffsetLost."""
        return (event for _, event in self.events())

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """The events behind number `after` as they come, with their numbers, from 1.

        Leaving early changes nothing for the generation; Ctrl-C while it waits here stops it.
        Raises OffsetLost when the log has grown so long that those events are no longer kept.
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
        """The pieces of the answer's text as they come.

        What turns out to be a thought (`ReasoningEnd`) was given out, and is no part of `text`.
        Ends when it was stopped, too. Raises GenerationError behind the text that had come when
        the generation fails, and OffsetLost as `events` does.
        """
        for event in self:
            if isinstance(event, Content | ReasoningEnd):
                yield event.content
            elif is_terminal(event):
                result_of(self._run)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. One that was stopped is a result, too: see `Result.stopped`.

        Raises GenerationError, with the partial text, when the generation fails, and TimeoutError
        after `timeout` seconds, which changes nothing for it. Ctrl-C stops it.
        """
        run = self._run
        deadline = None if timeout is None else now() + timeout
        try:
            while run.log.ended is None:
                left = TICK if deadline is None else deadline - now()
                if left <= 0:
                    raise TimeoutError(f"The generation is not over within {timeout:g} s.")
                run.log.wait(float("inf"), min(left, TICK))
        except (KeyboardInterrupt, SystemExit):
            run.cancel("stop")
            raise
        return result_of(run)

    # --- reading in an event loop -----------------------------------------------------------------

    def aiter(self, after: int = 0, *, owner: bool = True) -> AsyncStream[Event]:
        """The events behind number `after`, for `async for`.

        The generation is stopped when this is left before the end: by `aclose`, at the end of an
        `async with`, by `break`, or when the task is cancelled. With `owner=False` it goes on.
        Raises AtCapacity, OffsetLost at the first event.
        """
        stop: Callable[[], object] = self.cancel if owner else bool

        def begin(on_arrival: Callable[[], object]) -> Feed:
            feed = Feed(on_arrival)
            self.feed(feed, self.id, after)
            return feed

        return AsyncStream(read_feed(begin, _event, stop), stop)

    async def aresult(self) -> Result:
        """`result` for an event loop. When the task that waits is cancelled, it is stopped."""
        async with self.aiter(self._run.log.last) as events:
            async for _ in events:
                pass
        return result_of(self._run)

    def feed(self, feed: Feed, label: str, after: int = 0) -> None:
        """Have the events behind number `after` handed over there. Raises AtCapacity."""
        feed.add(self._followers, label, self._run, after)

    # --- ending -----------------------------------------------------------------------------------

    def stop(self) -> Receipt:
        """Stop it, in whatever phase it is, and say what was seen to happen.

        Waits at most 0.25 s to see the connection closed; in an event loop, use `cancel`.
        """
        return self._generations.stop(self.id, self._run.owner)

    def cancel(self) -> None:
        """Stop it without waiting for anything; for an event loop. Harmless after the end."""
        self._run.switch.press()


def _event(item: Item) -> Event:
    if isinstance(item[1], HaltError):
        raise item[1]
    return item[1]


@dataclass
class Callbacks:
    """What a program wants to be told of one generation, in a thread that follows it.

    One that raises is reported once, with its traceback, and called again: it ends nothing.
    """

    on_token: Callable[[str], object] | None
    on_complete: Callable[[Result], object] | None
    on_error: Callable[[HaltError], object] | None
    _reported: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.on_token, self.on_complete, self.on_error))

    def follow(self, run: Run, followers: Followers) -> None:
        """Call them as the run goes on. Raises AtCapacity."""
        # No daemon: a program that ends waits for its callbacks, as it does for any other thread.
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
        except BaseException:  # a SystemExit would end this thread without a word
            if name not in self._reported:
                self._reported.add(name)
                logger.exception("%s of stream %s", name, run.id)
