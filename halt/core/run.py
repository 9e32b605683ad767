"""One generation: its log, its connection to the model, and the threads that work for it.

A thread opens the connection (DNS, TLS, the wait for the head, retries) and runs tools. In between,
the relay (`halt.core.relay`) reads the socket and appends to the log. Both never have the run at
once:

    a thread has it     `_is_worked` is true. The thread may block; it ends by posting `_arrived`.
    the relay has it    from `_arrived` on. It reads, until the end, or until a thread is needed:
                        for a round of tools, or for another try before the first event.

Only the relay closes the socket that it reads, and only it decides when the run has let go of
everything (`_wind_up`). Other threads may append to the log, end it, and shut the socket down.

Races, and their winners:
- Two ends (Stop against the model's own): the log takes the first; the other changes nothing.
- Stop against a read: the log ends first, then the socket is shut down and the relay woken. What
  the relay reads behind the end is refused by the log.
- Stop against the hand-over to the relay: both post to it. Whichever post comes second finds that
  the log has ended and that no thread has the run, and closes the connection.
- Stop against a round of tools: the round is known before its first call starts, and the log is
  looked at in between. So either the ender aborts the round, or the round never starts.
- A Stop that leaves the connection open (`read_on`) says so before the log ends, so `_wind_up`
  finds it and lets the relay read on.
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

import msgspec

from halt.clock import now
from halt.core import via
from halt.core.attachments import Picture, found
from halt.core.connection import Line, Quiet
from halt.core.events import (
    Cancelled,
    CancelReason,
    Content,
    Delta,
    Done,
    ErrorInfo,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    Terminal,
    ToolCall,
    ToolResult,
    size_of,
    text_of,
)
from halt.core.exact_usage import Unheard
from halt.core.finish_reasons import STOP, is_good
from halt.core.generation import Recording, Viewer
from halt.core.limits import Limits
from halt.core.log import Log
from halt.core.metrics import Meter
from halt.core.notes import LINE_END, NoteFilter, are_discussed
from halt.core.relay import READ, Relay, Timer, contained
from halt.core.request import (
    ChatRequest,
    Message,
    Part,
    Reply,
    ToolTurn,
    Upstream,
    fingerprint,
    unfinished,
)
from halt.core.request_ids import about, current, quoted
from halt.core.retries import Retries
from halt.core.stop import Pressed, StopSwitch
from halt.core.tools import Toolbox, ToolRound
from halt.core.usage import cleaned, summed
from halt.errors import CODES, Interrupted, UpstreamError, shortened
from halt.rendering import data_urls

LOOK_MIN, LOOK_MAX = 0.02, 1.0  # seconds between two looks at a run's limits
DRAIN_SECONDS = 0.25  # to wait for the end of a response whose answer is complete
HAND_OVER = 2.0  # seconds for a reader of another process to follow a run that it has asked for
FIRST_VIEW = 10.0  # seconds that the first viewer has to come, however short the grace
LOGGED_MAX = 500  # characters of what a server said that go into the server's log
HELD_FOR = 2.0  # seconds of silence after which held text is shown: below every limit of silence
PARTS_MOST = 1000  # events that are looked at for the answer's last line
BESIDE_MAX = 32_000_000  # characters of pictures and other fields beside one answer's text

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What a run needs of the service that has it."""

    @property
    def config(self) -> Limits: ...

    upstream: Upstream
    relay: Relay

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        """Do this in a thread. False: there is none to be had, and the run has failed."""

    def later(self, work: Callable[[], None]) -> None:
        """Do this in the keeper's thread, in the order of the calls; it must not wait."""

    def settled(self, run: Run) -> None:
        """The run needs its place no longer. Harmless when repeated."""


class Run(Recording):
    """A generation from its request to its terminal event."""

    def __init__(
        self,
        stream_id: str,
        request: ChatRequest,
        host: Host,
        owner: str | None,
        on_end: Callable[[Run], None] | None,
        tools: Toolbox | None = None,
        grace: float | None = None,
        unheard: Unheard | None = None,
        on_usage: Callable[[Run, dict[str, Any]], None] | None = None,
    ) -> None:
        config = host.config
        self.meter = Meter()
        super().__init__(
            stream_id,
            owner,
            Log(config.log_bytes),
            asked=request.model or "",
            prefix=unfinished(request),
            started_at=self.meter.started_at,
        )
        self.request = request
        self.request_id = current()  # of the request that starts it, "" where there is none
        self._question = request.messages  # as it was asked, without later rounds; [] once settled
        self._fingerprint = ""  # of those, once settled
        self.line = Line(via.current())
        self.switch = StopSwitch(self._pressed, owner)
        self._host = host
        self._config = config
        self._on_end = on_end
        self._unheard = unheard
        self._on_usage = on_usage
        self._reading_on = False  # after a Stop that left the upstream open
        self._expected_until = 0.0  # a reader of another process comes until then
        self._grace = config.orphan_grace if grace is None else grace
        self._tools = tools if request.tools is None else None  # else the client runs its own
        if self._tools:
            self.request = msgspec.structs.replace(request, tools=self._tools.specs)
        self._calls: list[ToolCall] = []  # what the model has asked for in this round
        self._calls_due = False  # it has asked for all of it: the next thing is to run them
        self._round_from = 0  # events before this round
        self._new_paragraph = False  # the next text is the first behind a round of tools
        self._notes = NoteFilter(self._discusses_notes, self._last_line)
        self._thoughts: list[str] = []  # of the answer, for one that is nothing else
        self._called = False  # the model has called tools, its own or the client's
        self._rounds_left = config.tool_rounds
        self._tool_round: ToolRound | None = None  # while tools run
        self._answering = False  # the reply of this round has brought something
        self._heard_out = False  # it has brought everything
        self._size = 0  # characters of all events: text, reasoning, calls, results
        self._received = 0  # those of the model's that came, shown or not, and of results
        self._beside = 0  # characters of fields beside these: pictures, sources
        self._model = ""  # as the last round's reply named it
        self._usage: dict[str, Any] | None = {}  # of all rounds; None: one of them told none
        self._counted: Reply | None = None  # the newest reply whose usage is in there
        self._reply: Reply | None = None
        self._retries = Retries(config)
        self._fault: UpstreamError | None = None  # why the thread is to try again
        # The relay's own:
        self._is_worked = True  # a thread has the run
        self._is_registered = False  # the relay reads its reply
        self._settled = False
        self._limits: Timer | None = None
        self._held: Timer | None = None  # until text that is held back is shown
        self._drain: Timer | None = None

    # --- what it is now ---------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model that answers, as far as it is known by now."""
        reply = self._reply
        return (reply.model if reply is not None else self._model) or self.request.model or ""

    @property
    def fingerprint(self) -> str:
        question = self._question  # read first: it is emptied after `_fingerprint` is set
        return self._fingerprint or fingerprint(question)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes once it is settled, roughly."""
        return self.log.size + len(self.prefix)

    @property
    def chunks(self) -> int:
        return self.meter.chunks

    @property
    def characters(self) -> int:
        return self.meter.characters

    # --- its readers ------------------------------------------------------------------------------

    def leave(self, viewer: Viewer) -> None:
        """Watch no more. A run ends when its last viewer has left for longer than its grace."""
        super().leave(viewer)
        if not self._viewers and self.log.ended is None:
            self.look_soon()

    def expect(self) -> None:
        """A reader of another process asks for the run, and will follow it within HAND_OVER.

        Until then the run does not end for want of a viewer: the reader's last connection, to
        this process, may be closed already.
        """
        self._expected_until = now() + HAND_OVER

    def look_soon(self) -> None:
        """Have the relay look whether the run is over a limit, or has no viewer. Takes no lock."""
        self._host.relay.post(self._look)

    # --- ending -----------------------------------------------------------------------------------

    def cancel(
        self, reason: CancelReason, seen: int | None = None, *, read_on: bool = False
    ) -> bool:
        """End the run on purpose. False: it had ended already.

        `read_on`: the upstream is read on for its usage; a place among the unheard was taken.
        """

        def make() -> Terminal:
            # No more than there is: a client may name any number, and this one is saved.
            self._kept = None if seen is None else min(seen, self.log.last)
            self._reading_on = read_on
            if reason == "no_viewer":
                return Cancelled(self.meter.snapshot(), reason, unwatched=self._patience)
            return Cancelled(self.meter.snapshot(), reason)

        return self._end(make)

    def fail(self, fault: UpstreamError) -> bool:
        """End the run with an error. False: it had ended already."""

        def make() -> Terminal:
            message = fault.message
            if fault.code == "internal":  # what has happened stands in the log alone
                message += quoted(self.request_id)
            info = ErrorInfo(
                fault.code, message, fault.retryable, fault.retry_after, fault.own_status
            )
            return Failed(info, self.meter.snapshot())

        return self._end(make, fault)

    def _pressed(self, seen: int | None) -> Pressed:
        reporting = self._on_usage is not None and self.log.ended is None
        if not (reporting and self._unheard is not None and self._unheard.take(self)):
            return "stopped" if self.cancel("stop", seen) else "finished"
        if self.cancel("stop", seen, read_on=True):
            return "stopped"
        self._unheard.give_back(self)
        return "finished"

    def _end(self, make: Callable[[], Terminal], fault: UpstreamError | None = None) -> bool:
        if not self.log.end(make):
            return False
        self.ended_at = now()
        self.switch.event.set()
        if (running := self._tool_round) is not None:
            running.abort()
        if not (self._reading_on or isinstance(self.log.ended, Done)):
            self.line.interrupt()
        relay = self._host.relay
        relay.post(self._wind_up)
        if relay.is_current:
            self._host.later(partial(self._report_end, fault))
        else:
            self._report_end(fault)
        return True

    def _report_end(self, fault: UpstreamError | None) -> None:
        """Log a fault, and call what is to be called at the end. Not in the relay."""
        if fault is not None:
            told = self.id, fault.code, shortened(fault.detail, LOGGED_MAX)
            logger.warning("stream %s failed: %s %s", *told, extra=about(self.request_id))
        on_end, self._on_end = self._on_end, None  # it may hold the conversation
        if on_end is not None:
            on_end(self)
        if self._reading_on:
            self._host.settled(self)  # it needs no place any more

    # --- after a Stop that left the upstream open -------------------------------------------------

    @property
    def reading_on(self) -> bool:
        """Its log has ended, and its upstream is still read for its usage."""
        return self._reading_on

    def _read_on(self, reply: Reply) -> None:
        """Read some more of an answer that was stopped, until the provider has counted."""
        if not _has_counted(reply):
            self._heard_out = reply.read().ended
            self.meter.received(0, 0)  # a sign of life, for the limits
        if self._heard_out or _has_counted(reply):
            self._count(reply)
            self._end_reading_on()

    def _end_reading_on(self, fault: UpstreamError | None = None) -> None:
        """The usage is known, or will not be."""
        usage, on_usage = self._usage or None, self._on_usage
        self._reading_on = False
        self._wind_up()
        report = None if on_usage is None or not usage else partial(on_usage, self, usage)
        self._host.later(partial(self._report_usage, report, fault))

    def _report_usage(self, report: Callable[[], None] | None, fault: UpstreamError | None) -> None:
        """By the keeper: `report` has a thread of its own, since it may write to a database."""
        if fault is not None:
            logger.info("stream %s: no usage after its Stop: %s", self.id, fault.code)

        def work() -> None:
            try:
                if report is not None:
                    report()
            except Exception:
                logger.exception("stream %s, usage after its Stop", self.id)
            finally:
                if self._unheard is not None:
                    self._unheard.give_back(self)

        if report is None or not self._host.spawn(self, work):
            report = None
            work()

    # --- what a thread does for the run -----------------------------------------------------------

    def work(self) -> None:
        """Body of a thread: do what is due before the relay can read on. The thread has the run."""
        try:
            self._guarded(self._prepare)
        finally:
            self._host.relay.post(self._arrived)

    def start_work(self) -> None:
        """Start the thread that does `work`. Not in the relay."""
        if not self._host.spawn(self, self.work):
            self.discard()

    def discard(self) -> None:
        """Instead of `work`, for a run that ended before it could begin."""
        self._host.relay.post(self._arrived)

    def _prepare(self) -> None:
        """Open the upstream, behind tools that are due. Raises UpstreamError, Interrupted."""
        fault, self._fault = self._fault, None
        if self._calls_due:
            self._run_tools()
        elif fault is not None:
            self._wait_for_retry(fault)
            self._open()
        else:
            self._open()

    def _guarded(self, body: Callable[[], None]) -> None:
        """By a thread: run `body`; what it raises ends the run, so that no reader waits on."""
        try:
            body()
        except Interrupted:
            pass  # the log has ended; that is why
        except UpstreamError as fault:
            self.fail(fault)
        except Exception as exc:  # noqa: BLE001 - logged
            self._log_surprise(exc)
            self.fail(UpstreamError("internal", type(exc).__name__))

    def _log_surprise(self, exc: Exception) -> None:
        logger.error("stream %s", self.id, exc_info=exc, extra=about(self.request_id))

    # --- what the relay does for the run ----------------------------------------------------------

    def broken(self, exc: Exception) -> None:
        """By the relay: a fault of Halt's own ends the run."""
        self._host.later(partial(self._log_surprise, exc))
        fault = UpstreamError("internal", type(exc).__name__)
        self.fail(fault)
        if self._reading_on:
            self._end_reading_on(fault)
        if not self._is_worked:  # else `_arrived` comes
            self._let_go()

    @contained
    def _look(self) -> None:
        """By the relay: end a run that is over a limit, or has no viewer; look again later.

        What has arrived is read before (see `halt.core.relay`), so a stall of Halt ends no run.
        """
        if self._limits is not None:
            self._limits.cancel()
        if self.log.ended is not None and not self._reading_on:
            return
        at = now()
        with self._viewers_lock:
            gone = [viewer for viewer in self._viewers if viewer.gone]
        for viewer in gone:
            self.leave(viewer)
        if (fault := self._over_limit(at)) is not None:
            if not self.fail(fault):  # it is read on: the end of file ends that
                self.line.interrupt()
            return
        is_unwatched = not self._viewers and at >= self._unwatched_until
        if not (is_unwatched and self.cancel("no_viewer")):
            again = min(max(self._next_limit(at), at + LOOK_MIN), at + LOOK_MAX)
            self._limits = self._host.relay.at(again, self._look)

    @property
    def _patience(self) -> float:
        """Seconds that it goes on without a viewer."""
        return self._grace if self._was_watched else max(FIRST_VIEW, self._grace)

    @property
    def _unwatched_until(self) -> float:
        """The time up to which it goes on without a viewer."""
        return max(self._watched_at + self._patience, self._expected_until)

    def _next_limit(self, at: float) -> float:
        """The time of the first limit that can be over next."""
        config, meter = self._config, self.meter
        silence = config.gap_timeout if self._answering else config.first_byte_timeout
        limit = min(meter.started_at + config.run_timeout, meter.last_at + silence)
        if self._viewers or self.log.ended is not None:
            return limit
        return min(limit, self._unwatched_until)

    def _over_limit(self, at: float) -> UpstreamError | None:
        """The limit that is over at this time."""
        config, meter = self._config, self.meter
        if at - meter.started_at > config.run_timeout:
            return UpstreamError(
                "run_too_long",
                hint=f"It may take {config.run_timeout:g} s: HALT_RUN_TIMEOUT sets this limit.",
            )
        silent = at - meter.last_at
        if self._tool_round is not None:
            pass  # tools have limits of their own
        elif not self._answering:
            if silent > config.first_byte_timeout:
                return _silent(
                    "first_byte_timeout", config.first_byte_timeout, "HALT_FIRST_BYTE_TIMEOUT"
                )
        elif silent > config.gap_timeout:
            return _silent("stalled", config.gap_timeout, "HALT_GAP_TIMEOUT")
        return None

    @contained
    def _arrived(self) -> None:
        """By the relay: the thread has done its part, and gives the run back."""
        self._is_worked = False
        reply = self._reply
        if self._reading_on and reply is None:  # stopped while tools ran, or before it was open
            self._end_reading_on()
        elif reply is None or (self.log.ended is not None and not self._reading_on):
            self._wind_up()
        else:
            self._watch(reply)

    def _watch(self, reply: Reply) -> None:
        reply.unblock()
        self._host.relay.watch(reply.fileno(), READ, self._readable)
        self._is_registered = True
        self._readable()  # some of the body may have come with the head

    def _unwatch(self) -> None:
        if self._is_registered and self._reply is not None:
            self._is_registered = False
            self._host.relay.unwatch(self._reply.fileno())

    @contained
    def _readable(self, _: int = READ) -> None:
        """By the relay: the reply can be read."""
        reply = self._reply
        if not self._is_registered or reply is None:
            return
        if self.log.ended is None:
            self._read(reply)
        else:
            self._read_behind(reply)
        if self._is_registered and reply.pending:
            self._host.relay.again(self._readable)

    def _read_behind(self, reply: Reply) -> None:
        """The log has ended: read for the usage, or for the end of a complete answer's framing."""
        try:
            if self._reading_on:
                self._read_on(reply)
                return
            reply.read()
        except Quiet:
            return
        except UpstreamError as fault:
            if self._reading_on:
                self._end_reading_on(fault)
                return
            self._let_go()
        else:
            if reply.complete:
                self._let_go()

    def _read(self, reply: Reply) -> None:
        """Append what has come to the log."""
        try:
            part = reply.read()
        except Quiet:
            return
        except UpstreamError as fault:
            self._say(self._notes.end())
            self._broke(reply, fault)
            return
        self._take(reply, part)
        if self._notes.held and self._held is None:
            self._held = self._host.relay.at(self.meter.last_at + HELD_FOR, self._show_held)

    @contained
    def _show_held(self) -> None:
        """By the relay: text that is held back is shown where nothing more has come of it."""
        self._held = None
        if self.log.ended is not None or self._is_worked or not self._notes.held:
            return
        due = self.meter.last_at + HELD_FOR
        if now() < due:
            self._held = self._host.relay.at(due, self._show_held)
        else:
            self._say(self._notes.waited())

    def _need_thread(self) -> None:
        """Give the run to a thread, which opens the upstream again."""
        self._unwatch()
        self._is_worked = True
        self._host.later(self.start_work)  # not here: `Thread.start` waits for the thread

    @contained
    def _wind_up(self) -> None:
        """By the relay: the log has ended. Let go of everything, as soon as that can be."""
        if self._is_worked or self._settled:
            return
        if self._reading_on:
            self._readable()
            return
        is_complete = self._reply is None or self._reply.complete
        if self._is_registered and isinstance(self.log.ended, Done) and not is_complete:
            # Some bytes of the framing are still to come: with them the connection can be kept.
            if self._drain is None:
                self._drain = self._host.relay.at(now() + DRAIN_SECONDS, self._let_go)
            return
        self._let_go()

    @contained
    def _let_go(self) -> None:
        """By the relay: close the connection or give it back, and forget the request."""
        if self._settled:
            return
        self._settled = True
        for timer in (self._limits, self._held, self._drain):
            if timer is not None:
                timer.cancel()
        self._limits = self._held = self._drain = None
        try:
            self._unwatch()
            if self._reply is not None:
                self._reply.close()
        finally:
            self._forget_request()
            self._host.later(partial(self._host.settled, self))

    def _forget_request(self) -> None:
        """Let go of the prompt, which a run that is over does not need."""
        self._model, self._fingerprint = self.model, self.fingerprint
        self.request = ChatRequest([], id=self.id, model=self.request.model)
        self._question, self._calls, self._thoughts = [], [], []
        self._reply = self._counted = self._on_usage = None  # they hold the request too

    # --- opening ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the upstream, with retries. Raises UpstreamError, Interrupted."""
        while True:
            if self.log.ended is not None and not self._reading_on:
                raise Interrupted("ended before it was opened")
            try:
                self._reply = self._host.upstream.open(self.request, self.line)
                return
            except UpstreamError as fault:
                if self._tools and _refuses_tools(fault):
                    raise fault.instead("tools_refused") from fault
                self._wait_for_retry(fault)

    def _wait_for_retry(self, fault: UpstreamError) -> None:
        """Return when another try may begin. Raises the fault where there is none, Interrupted."""
        if self.log.ended is not None:
            raise Interrupted("ended while it was opened") from fault
        pause = self._retries.pause(fault, now() - self.meter.last_at)
        told = self.id, fault.code, pause
        logger.info("stream %s: %s, trying again in %.1f s", *told, extra=about(self.request_id))
        if self.switch.event.wait(pause):
            raise Interrupted("ended while it waited for a retry")

    # --- what comes -------------------------------------------------------------------------------

    def _take(self, reply: Reply, part: Part) -> None:
        """Put what one read brought into the log."""
        if part.ended:
            self._heard_out = True
        self._received += part.arrived
        if part.events:
            self._answering = True
            if not self._add(part):
                return
        if self._is_too_long:
            self.fail(self._too_long())
            return
        if part.events:
            if self._beside > BESIDE_MAX:
                hint = f"What came beside its text has more than {BESIDE_MAX:,} characters."
                self.fail(UpstreamError("answer_too_long", hint=hint))
                return
        else:
            self.meter.received(0, 0)
        if part.ended:
            self._say(self._notes.end())
            self._count(reply)
            if self._calls and is_good(reply.finish_reason):  # else a call may not be whole
                self._calls_due = True
                self._need_thread()
            else:
                self._done(reply)

    def _add(self, part: Part) -> bool:
        """Log the events of a part. False: the log has ended."""
        events = part.events
        first = events[0]
        if (  # the usual part, once for each token
            len(events) == 1
            and isinstance(first, Content)
            and "[" not in first.content
            and not (self._notes.held or self._new_paragraph)
        ):
            text = first.content
            self._size += len(text)
            self.meter.received(len(text), part.chunks)
            # Before the log, so that `answer` finds what that counts.
            self.note(text, self.meter.last_at)
            return self.log.append(first)
        prepared = [self._prepared(event) for event in self._notes.filtered(events)]
        self.meter.received(sum(len(text_of(event)) for event in prepared), part.chunks)
        for event in prepared:
            if isinstance(event, Extra):
                self._beside += size_of(event)
            else:
                self._size += size_of(event)
            self.note_event(event, self.meter.last_at)
            if isinstance(event, ReasoningEnd):
                thought = self.reasoning(event)
                self._thoughts.append(thought)
                self.meter.reclassified(len(thought), all_text=not self._earlier_rounds)
            elif self.meter.answer_at is None and text_of(event):
                self.meter.answer_at = self.meter.last_at  # of the same read
            if not self.log.append(event):
                return False
        return True

    @property
    def _earlier_rounds(self) -> str:
        """The answer's text of the rounds before this one."""
        return "".join(self._texts(self._round_from)).strip()

    def _prepared(self, event: Delta) -> Delta:
        """The event as it goes to the log."""
        if isinstance(event, Content):
            if self._new_paragraph:
                self._new_paragraph = False
                return Content("\n\n" + event.content)
        elif isinstance(event, Reasoning):
            self.meter.reasoned = True
            self._thoughts.append(event.text)
        elif isinstance(event, ReasoningEnd):
            self._new_paragraph = bool(self._earlier_rounds)
            return ReasoningEnd(self._round_from)
        elif isinstance(event, ToolCall):
            self._called = True
            if self._tools:
                self._calls.append(event)
        return event

    def _say(self, text: str) -> None:
        """Log text that came before, and was held back."""
        if text:
            text = text_of(self._prepared(Content(text)))
            self.meter.characters += len(text)
            self.note(text, self.meter.last_at)
            self.log.append(Content(text))

    def _last_line(self) -> str:
        """The last line of the answer so far, or the end of it where that is long."""
        line = "\n" if self._new_paragraph else ""
        first = self._reasoned[-1][0] if self._reasoned else 0  # what came before is reasoning
        newest = islice(reversed(self._parts), min(len(self._parts) - first, PARTS_MOST))
        for text in chain(newest, [] if first else [self.prefix]):
            if len(line) > LINE_END or "\n" in line:
                break
            line = text[-LINE_END:] + line
        return line.rpartition("\n")[2]

    def _discusses_notes(self) -> bool:
        """Whether the question is about the notes of `halt.core.notes`."""
        return are_discussed(
            message.content
            for message in self._question
            if message.role != "assistant" and isinstance(message.content, str)
        )

    def _count(self, reply: Reply) -> None:
        """Add a round's usage to that of the rounds before. Harmless when repeated."""
        if self._counted is reply:
            return
        self._counted = reply
        if self._usage is not None:
            usage = reply.usage
            self._usage = None if usage is None else summed(self._usage, cleaned(usage))

    def _run_tools(self) -> None:
        """Run what the model asked for, then ask it again with the results."""
        reply = self._reply
        assert reply is not None  # noqa: S101 - it has brought the calls
        self._model = reply.model
        _drain(reply)
        self._reply, self._calls_due, self._heard_out = None, False, False
        calls, self._calls = self._calls, []
        if not self._rounds_left:
            rounds = self._config.tool_rounds
            hint = f"It may do so {rounds} times: HALT_TOOL_ROUNDS."
            raise UpstreamError("too_many_tool_rounds", hint=hint)
        self._rounds_left -= 1
        results = self._results_of(calls)
        if self.log.ended is not None:
            return
        said = "".join(self._texts(len(self._parts))[self._round_from :]).strip()
        self._new_paragraph = self._new_paragraph or bool(said)
        self._round_from = len(self._parts)
        told: list[Message] = [
            ToolTurn(data_urls.told(said) or None, calls, reply.opaque),
            *(Message("tool", each.result, tool_call_id=each.id) for each in results),
        ]
        self.request = msgspec.structs.replace(
            self.request,
            messages=[*self.request.messages, *told],
            tool_choice=None,  # what the first round had to call need not be called for ever
        )
        self._open()

    @property
    def _is_too_long(self) -> bool:
        """The answer is over its limit. Text that is held back or left out counts as well.

        A model that writes nothing but blanks behind a thought, or in a call's arguments, would
        otherwise write on without an end.
        """
        return max(self._size, self._received) > self._config.max_answer_chars

    def _too_long(self) -> UpstreamError:
        most = self._config.max_answer_chars
        hint = f"It may have {most} characters: HALT_MAX_ANSWER_CHARS."
        return UpstreamError("answer_too_long", hint=hint)

    def _results_of(self, calls: list[ToolCall]) -> list[ToolResult]:
        """Run the calls; their results in the order of the calls, some missing after an end."""
        assert self._tools is not None  # noqa: S101 - else none is asked for
        under_way = self._tool_round = self._tools.round(calls)
        if self.log.ended is not None:  # by a thread that did not see the round
            under_way.abort()
        for result in under_way.results():
            self._size += len(result.result)
            self._received += len(result.result)
            if self._is_too_long:
                raise self._too_long()
            self.meter.tools_ran()
            self.note("", self.meter.last_at)
            if not self.log.append(result):
                break
        self._answering = False
        self.meter.tools_ran()  # the limits of a silent model count from here
        self._tool_round = None
        return under_way.told

    def _done(self, reply: Reply) -> None:
        usage = self._usage or None
        reported = usage.get("completion_tokens") if usage else None
        if isinstance(reported, int):
            self.meter.reported = reported
        if reply.finish_reason in {None, STOP} and self._is_all_thought():
            # Some servers put the answer among the thoughts: it is the text that there is.
            self._say("".join(self._thoughts).strip())
        self._end(lambda: Done(reply.finish_reason, self.meter.snapshot(), usage))

    def _is_all_thought(self) -> bool:
        """Nothing but thoughts has come: no text, no call, no picture."""
        texts = (self.prefix, *self._texts(len(self._parts)))
        if not self._thoughts or self._called or any(t and not t.isspace() for t in texts):
            return False
        return not any(
            isinstance(each, Picture)
            for _, event in self.events(self.log.last)
            if isinstance(event, Extra)
            for each in found(event)
        )

    def _broke(self, reply: Reply, fault: UpstreamError) -> None:
        """The upstream failed while the answer was read. An end that came before explains it."""
        if self.log.ended is not None:
            return
        if self._answering:
            self.fail(fault)
            return
        self._unwatch()
        reply.close()
        self._reply = None
        self._fault = fault
        self._need_thread()


def _has_counted(reply: Reply) -> bool:
    """The provider has sent its usage, which stands behind the end of the answer."""
    return reply.finish_reason is not None and reply.usage is not None


def _drain(reply: Reply) -> None:
    """In a thread: read what is left of a complete answer's framing, for DRAIN_SECONDS at most.

    Then the connection is closed, or kept if all of the response was read.
    """
    poller = select.poll()
    poller.register(reply.fileno(), select.POLLIN)
    deadline = now() + DRAIN_SECONDS
    with contextlib.suppress(UpstreamError):
        while not reply.complete and (left := deadline - now()) > 0:
            if not reply.pending:
                poller.poll(left * 1000)
            with contextlib.suppress(Quiet):
                reply.read()
    reply.close()


def _silent(code: str, seconds: float, setting: str) -> UpstreamError:
    return UpstreamError(code, hint=f"Nothing came for {seconds:g} s: {setting} sets this limit.")


def _refuses_tools(fault: UpstreamError) -> bool:
    """The server names tools in its refusal: it, or the model, cannot call any.

    Servers do not agree on the status: 400 and 422 are usual, 404 and 500 are seen too.
    """
    refusals = {"bad_request", "model_not_found", "upstream_server_error"}
    return fault.code in refusals and "tool" in fault.detail.lower()


assert {"no_model", "interrupted"} <= set(CODES)  # noqa: S101
