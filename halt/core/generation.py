"""What can be read of a generation: its log, the text so far, and its viewers.

A `halt.core.run.Run` is a recording that is being made in this process. Others are read only: of a
generation that another process makes, or one that the store has kept. A view of a generation
(an event stream, a page, a socket) needs a recording and nothing more.

Threads: one at a time adds events (`note`, then the log). Any may read: the two lists grow before
the log does, so a thread that knows an event's number finds its text and its time.
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
from halt.errors import OffsetLost

State = Literal["running", "done", "cancelled", "error"]

_STATES: dict[type, State] = {Done: "done", Cancelled: "cancelled", Failed: "error"}


class Viewer:
    """One reader of a generation. `gone` is set when its client has left; that takes no lock."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False


class Generation:
    """A generation as its readers know it.

    `owner` is the session it belongs to, None: all that know its ID. `asked` is the model that was
    asked for, "" for the default one. `prefix` is text of the same answer that was there before.
    Times are on the clock of `halt.clock.now`.
    """

    def __init__(
        self,
        stream_id: str,
        owner: str | None,
        log: EventLog,
        *,
        requested_model: str = "",
        prefix: str = "",
        started_at: float,
    ) -> None:
        self.id = stream_id
        self.owner = owner
        self.log = log
        self.requested_model = requested_model
        self.prefix = prefix
        self.started_at = started_at
        self.ended_at: float | None = None
        self.expected_tokens: float | None = None  # tokens that it may come to, where that is known
        self.only_text = True  # no event so far was anything else
        self._parts: list[str] = []  # parts[n] is the text of event n + 1, "" of other kinds
        self._reasoned: tuple[tuple[int, int], ...] = ()  # (n, m): text of events m+1 to n was none
        self._times = array("d")  # times[n] is when event n + 1 came
        self._kept: int | None = None  # events that had been shown where it was stopped
        #: The frame that the relay has made last for readers that are shown the same: by which
        #: function, from which event, up to which event, and its bytes. The relay's own.
        self.newest_frame: tuple[object, int, int, bytes] | None = None
        self._viewers_lock = threading.Lock()  # protects the three below
        self._viewers: set[Viewer] = set()
        self.watched_at = now()
        self.was_watched = False

    def __repr__(self) -> str:
        what = f"{type(self).__name__} {self.id} {self.state}"
        return f"<{what} events={self.log.last} viewers={len(self._viewers)}>"

    # --- what it is now ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        ended = self.log.ended
        return "running" if ended is None else _STATES[type(ended)]

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known by now."""
        return self.requested_model

    @property
    def fingerprint(self) -> str:
        """What tells its question from others (`halt.core.request.fingerprint`), "" where not
        known."""
        return ""

    @property
    def chunks(self) -> int:
        """Pieces that the model's server has sent so far."""
        return len(self._parts)

    @property
    def characters(self) -> int:
        """Characters of the answer that were made so far, without the prefix."""
        return sum(map(len, self.texts(self.log.last)))

    @property
    def kept(self) -> int | None:
        """Events that had been shown where it was stopped, as far as that is known."""
        return self._kept

    def answer(self) -> tuple[int, str]:
        """The text so far and the number of its last event.

        Of a stopped run: the text that had been shown there.
        """
        count = min(self.log.last - (self.log.ended is not None), len(self._parts))
        if self._kept is not None:
            count = min(count, self._kept)
        return count, self.text(count)

    def text(self, upto: int) -> str:
        """The prefix, and the text of the events from 1 to `upto`."""
        return self.prefix + "".join(self.texts(upto))

    def texts(self, upto: int | None = None) -> list[str]:
        """What each event has added to the answer, without what was reasoning.

        Those of the events from 1 to `upto`; without it also of one that is not in the log yet.
        """
        texts = self._parts[:upto]
        for number, after in self._reasoned:
            if number <= len(texts):
                texts[after:number] = [""] * (number - after)
        return texts

    def newest(self, most: int) -> Iterator[str]:
        """The text of so many of the newest events, the newest first, then the prefix.

        It begins behind what was reasoning.
        """
        first = self._reasoned[-1][0] if self._reasoned else 0
        yield from islice(reversed(self._parts), min(len(self._parts) - first, most))
        if not first:
            yield self.prefix

    def piece(self, number: int) -> str:
        """The text of one event, also of one that the log has let go of; "" of other kinds."""
        reasoned = any(after < number <= upto for upto, after in self._reasoned)
        return "" if reasoned else self._parts[number - 1]

    def events(self, upto: int) -> list[tuple[int, Event]]:
        """The events from 1 to `upto`, as far as the log still has them."""
        while True:
            first = self.log.first
            try:
                return [each for each in self.log.read(first - 1) if each[0] <= upto]
            except OffsetLost:  # it has let go of some more in between
                continue

    def pieces(self, after: int, upto: int) -> list[tuple[float, str]]:
        """When each event above `after` and up to `upto` came, and the text that it added."""
        return list(zip(self._times[after:upto], self.texts(upto)[after:], strict=True))

    def reasoning(self, end: ReasoningEnd) -> str:
        """The text that was reasoning, by the event that says so."""
        upto = next((upto for upto, after in self._reasoned if after == end.after), end.after)
        return "".join(self._parts[end.after : upto])

    def arrival_time(self, number: int) -> float:
        """When an event came that is not the terminal one."""
        return self._times[number - 1]

    def record_text(self, text: str, at: float) -> None:
        """Keep what the next event adds to the answer, and when it came."""
        self.only_text = self.only_text and bool(text)
        self._parts.append(text)
        self._times.append(at)

    def record_event(self, event: Event, at: float) -> None:
        """Keep of the next event, which is not the terminal one, what is needed of it."""
        if isinstance(event, ReasoningEnd):
            self._reasoned = (*self._reasoned, (len(self._parts) + 1, event.after))
        self.record_text(text_of(event), at)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def is_watched(self) -> bool:
        """It has a viewer, also one whose client has left since the last look."""
        return bool(self._viewers)

    def viewers(self) -> list[Viewer]:
        """Those that watch now."""
        with self._viewers_lock:
            return list(self._viewers)

    def join(self) -> Viewer:
        """Begin to watch."""
        viewer = Viewer()
        with self._viewers_lock:
            self._viewers.add(viewer)
            self.was_watched = True
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Watch no more. A run may end by it (see `halt.core.run`). Harmless when repeated."""
        viewer.gone = True
        with self._viewers_lock:
            self._viewers.discard(viewer)
            self.watched_at = now()
        self.log.wake()  # a thread that follows for this viewer returns

    def follow(
        self, after: int, viewer: Viewer, interval: float = 0.0
    ) -> Iterator[list[tuple[int, Event]]]:
        """All events above `after` as they come, in groups; the last one ends with the terminal.

        Yields an empty group after each TICK of silence, so that the caller can send a heartbeat.
        Groups come at least `interval` seconds apart, the first at once; in between, only the end
        wakes the thread. Returns early when the viewer has gone. Raises OffsetLost.
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
                while (left := ready_at - now()) > 0 and log.ended is None and not viewer.gone:
                    log.wait(float("inf"), left)
                events = log.read(after)
                ready_at = now() + interval
            after = events[-1][0]
            yield events
