"""The readable state of a generation: its log, the text so far, and its viewers.

A `halt.core.run.Run` is a generation that this process produces. Others are read only: those that
another process produces, and those from the store. A view (an event stream, a page, a socket) needs
this class alone.

Threads: one at a time adds events (`record_text`, then the log). Any thread may read: texts and
times are appended before the log grows, so a thread that knows an event's number finds both.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from halt.clock import now
from halt.core.connection import TICK
from halt.core.events import Cancelled, Done, Event, Failed, ReasoningEnd, text_of
from halt.core.log import EventLog
from halt.core.stream_key import StreamKey
from halt.errors import OffsetLost

State = Literal["running", "done", "cancelled", "error"]

_STATES: dict[type, State] = {Done: "done", Cancelled: "cancelled", Failed: "error"}


class Viewer:
    """One reader of a generation. Its flags are set without a lock, and never reset.

    `gone`: its client has left, or has to. `is_refused`: it has to, because `credential`, by which
    its client was let in, is no longer valid; "" where there is none.
    """

    __slots__ = ("credential", "gone", "is_refused")

    def __init__(self) -> None:
        self.gone = False
        self.is_refused = False
        self.credential = ""


class Generation:
    """A generation as its readers see it.

    Its owner alone, the person in `key`, may read and stop it. `requested_model` is "" for the
    default model. `prefix` is the text of the same answer before this generation. Times are on the
    clock of `halt.clock.now`.
    """

    def __init__(
        self,
        key: StreamKey,
        log: EventLog,
        *,
        requested_model: str = "",
        prefix: str = "",
        started_at: float,
    ) -> None:
        self.key = key
        self.owner, self.id = key
        self.log = log
        self.requested_model = requested_model
        self.prefix = prefix
        self.started_at = started_at
        self.ended_at: float | None = None
        self.expected_tokens: float | None = None  # estimated tokens of the answer, None if unknown
        self.only_text = True  # all events so far were Content
        self._parts: list[str] = []  # parts[n] is the text of event n + 1, "" of other kinds
        self._reasoned: tuple[tuple[int, int], ...] = ()  # (n, m): events m+1 to n were reasoning
        self._times = array("d")  # times[n] is the arrival of event n + 1
        self._seen_events: int | None = None  # events that had been shown before the Stop
        #: The relay's newest frame, reused for readers at the same position: the function that made
        #: it, its first and last event, and its bytes. Used by the relay alone.
        self.newest_frame: tuple[object, int, int, bytes] | None = None
        self._viewers_lock = threading.Lock()  # protects the three below
        self._viewers: set[Viewer] = set()
        self.watched_at = now()
        self.was_watched = False

    def __repr__(self) -> str:
        name = f"{type(self).__name__} {self.id} {self.state}"
        return f"<{name} events={self.log.last} viewers={len(self._viewers)}>"

    # --- state ------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        ended = self.log.ended
        return "running" if ended is None else _STATES[type(ended)]

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known yet."""
        return self.requested_model

    @property
    def fingerprint(self) -> str:
        """The hash of its prompt (`halt.core.request.fingerprint`), "" if not known."""
        return ""

    @property
    def chunks(self) -> int:
        """Number of pieces that the provider has sent so far."""
        return len(self._parts)

    @property
    def characters(self) -> int:
        """Number of the answer's characters so far, without the prefix."""
        return sum(map(len, self.texts(self.log.last)))

    @property
    def seen_events(self) -> int | None:
        """Number of events that had been shown before the Stop, None if not known."""
        return self._seen_events

    def answer(self) -> tuple[int, str]:
        """The number of the last event and the text up to it.

        Of a stopped run: the text that had been shown.
        """
        count = min(self.log.last - (self.log.ended is not None), len(self._parts))
        if self._seen_events is not None:
            count = min(count, self._seen_events)
        return count, self.text(count)

    def text(self, upto: int) -> str:
        """The prefix, and the text of the events from 1 to `upto`."""
        return self.prefix + "".join(self.texts(upto))

    def texts(self, upto: int | None = None) -> list[str]:
        """The text that each event from 1 to `upto` has added to the answer, "" for reasoning.

        Without `upto` it includes an event that is not in the log yet.
        """
        texts = self._parts[:upto]
        for number, after in self._reasoned:
            if number <= len(texts):
                texts[after:number] = [""] * (number - after)
        return texts

    def texts_after(self, after: int) -> list[str]:
        """The text of each event after number `after`, also of text that was reasoning."""
        return self._parts[after:]

    def newest_texts(self, limit: int) -> Iterator[str]:
        """The texts of at most `limit` events after the reasoning, the newest first.

        Then the prefix, unless text was reclassified as reasoning.
        """
        first = self._reasoned[-1][0] if self._reasoned else 0
        yield from islice(reversed(self._parts), min(len(self._parts) - first, limit))
        if not first:
            yield self.prefix

    def event_text(self, number: int) -> str:
        """The text of one event, also after the log has dropped it; "" for other kinds."""
        reasoned = any(after < number <= upto for upto, after in self._reasoned)
        return "" if reasoned else self._parts[number - 1]

    def events(self, upto: int) -> list[tuple[int, Event]]:
        """The events from 1 to `upto` that the log still has, with their numbers."""
        while True:
            first = self.log.first
            try:
                return [(n, event) for n, event in self.log.read(first - 1) if n <= upto]
            except OffsetLost:  # the log has dropped more events in between
                continue

    def timed_texts(self, after: int, upto: int) -> list[tuple[float, str]]:
        """The arrival time and the added text of each event from `after` + 1 to `upto`."""
        return list(zip(self._times[after:upto], self.texts(upto)[after:], strict=True))

    def reasoning(self, end: ReasoningEnd) -> str:
        """The text that a ReasoningEnd declares to be reasoning."""
        upto = next((upto for upto, after in self._reasoned if after == end.after), end.after)
        return "".join(self._parts[end.after : upto])

    def arrival_time(self, number: int) -> float:
        """The arrival time of an event. Not for the terminal event."""
        return self._times[number - 1]

    def record_text(self, text: str, at: float) -> None:
        """Record the text that the next event adds to the answer, and its arrival time."""
        self.only_text = self.only_text and bool(text)
        self._parts.append(text)
        self._times.append(at)

    def record_event(self, event: Event, at: float) -> None:
        """Record the text and arrival time of the next event. Not for the terminal event."""
        if isinstance(event, ReasoningEnd):
            self._reasoned = (*self._reasoned, (len(self._parts) + 1, event.after))
        self.record_text(text_of(event), at)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def is_watched(self) -> bool:
        """Whether it has a viewer, including one whose client's departure is not processed yet."""
        return bool(self._viewers)

    def viewers(self) -> list[Viewer]:
        """Its viewers now."""
        with self._viewers_lock:
            return list(self._viewers)

    def join(self) -> Viewer:
        """Add a viewer."""
        viewer = Viewer()
        with self._viewers_lock:
            self._viewers.add(viewer)
            self.was_watched = True
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer. This may end a run (see `halt.core.run`). Idempotent."""
        viewer.gone = True
        with self._viewers_lock:
            self._viewers.discard(viewer)
            self.watched_at = now()
        self.log.wake()  # a thread that follows for this viewer returns

    def follow(
        self, after: int, viewer: Viewer, interval: float = 0.0
    ) -> Iterator[list[tuple[int, Event]]]:
        """Yield all events above `after` in groups as they arrive, until the terminal event.

        It yields an empty group after each TICK of silence, so that the caller can send a
        heartbeat. Groups are at least `interval` seconds apart, the first comes at once; in
        between, only the end wakes the thread. Returns early when the viewer has gone. Raises
        OffsetLost.
        """
        ready_at = 0.0
        log = self.log
        while not viewer.gone:
            ended = log.ended  # before the read: a thread that sees the end has read every event
            events = log.read(after)
            if not events:
                if ended is not None:
                    return
                log.wait(after, TICK)
                if log.last <= after and log.ended is None:
                    yield []
                continue
            if interval:
                while (wait := ready_at - now()) > 0 and log.ended is None and not viewer.gone:
                    log.wait(float("inf"), wait)
                events = log.read(after)
                ready_at = now() + interval
            after = events[-1][0]
            yield events
