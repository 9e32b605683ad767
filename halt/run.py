"""One generation: its log, its upstream connection, and the threads that meet at them.

Who moves text from the upstream to the log? Whoever has nothing better to do. Pumping is a role,
kept by the lock `_pump`, not a thread: a viewer that has shown everything takes the role, reads the
upstream's socket itself and shows what came, without waking another thread for each token. Before
the first text, and when no viewer is free, a thread of the run's own has the role ("attendant").

    starts            attendant opens the upstream and pumps until text comes while a viewer waits
    a viewer is free  it pumps (`advance`); other viewers wait at the log
    tools are called  an attendant, the one that pumped or one that a viewer hands the role to,
                      waits for their results and opens the upstream again with them
    nobody pumps      for ATTEND_AFTER seconds (viewers gone, or stuck in a slow network):
                      the keeper of `generation` sends an attendant

Races, and who wins:
- Two ends (Stop against the model's own): the log takes the first; the other changes nothing.
- Stop against a pump that blocks: the log ends first, then the line is interrupted, the pump wakes
  and finds the log ended; the error it woke with is dropped.
- Stop against a round of tools: the round is shown before its first call starts, and the log is
  looked at in between. So either the ender aborts the round, or the round never starts.
- Closing the connection: the last one out does it. An ender ends the log and then tries for the
  role; a pump gives up the role and then looks whether the log has ended. So at least one of both
  gets in, and `_settled`, guarded by the role, lets only one close.
- A Stop that leaves the upstream open (`read_on`): says so before the log ends, so nobody closes
  before the reader has come for the role, and it lets whoever comes then close.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Literal

import msgspec

from halt import pictures
from halt.attachments import Picture, found
from halt.chat import (
    ChatRequest,
    Message,
    Part,
    Reply,
    ToolTurn,
    Upstream,
    fingerprint,
)
from halt.config import Config
from halt.continuing import unfinished
from halt.embedded import READY_LIMIT
from halt.errors import CODES, Interrupted, UpstreamError, shortened
from halt.events import (
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
from halt.finish_reasons import STOP, is_good
from halt.journal import MemoryLog
from halt.line import TICK, Line, Quiet
from halt.metrics import Meter, now
from halt.notes import LINE_END, NoteFilter, are_discussed
from halt.recording import Recording, Viewer
from halt.request_ids import about, current, quoted
from halt.stops import Pressed, StopSwitch
from halt.tools import Toolbox, ToolRound
from halt.unheard import Unheard

ATTEND_AFTER = 0.2  # seconds without a pump until an attendant is sent
FIRST_VIEW = 10.0  # seconds that the first viewer has to come, however short the grace
RETRY_BASE = 0.5  # seconds before the first retry; doubles, and varies by half to spread the load
LOADING_PAUSE = 0.25  # seconds before a server that loads its model is asked again; doubles
LOADING_PAUSE_MAX = 4.0  # seconds
LOGGED_MAX = 500  # characters of what a server said that go into the server's log
HELD_FOR = 2.0  # seconds of silence after which held text is shown: below every limit of silence
COUNT_MAX = 2**53  # of a usage: what every reader of JSON takes for the same number
PARTS_MOST = 1000  # events that are looked at for the answer's last line
BESIDE_MAX = 32_000_000  # characters of pictures and other fields beside one answer's text
RETRY_AFTER_MAX = 5.0  # seconds; a server that wants us to wait longer is shown to the user instead

logger = logging.getLogger(__name__)


class Run(Recording):
    """A generation from its request to its terminal event."""

    def __init__(
        self,
        stream_id: str,
        request: ChatRequest,
        upstream: Upstream,
        config: Config,
        owner: str | None,
        on_end: Callable[[Run], None] | None,
        on_settled: Callable[[Run], None],
        spawn: Callable[[Run, Callable[[], None]], bool],
        tools: Toolbox | None = None,
        grace: float | None = None,
        unheard: Unheard | None = None,
        on_usage: Callable[[Run, dict[str, Any]], None] | None = None,
    ) -> None:
        self.meter = Meter()
        super().__init__(
            stream_id,
            owner,
            MemoryLog(config.log_bytes),
            asked=request.model or "",
            prefix=unfinished(request),
            started_at=self.meter.started_at,
        )
        self.request = request
        self.request_id = current()  # of the request that starts it, "" where there is none
        self._question = request.messages  # as it was asked, without later rounds; [] once settled
        self._fingerprint = ""  # of those, once settled
        self.line = Line()
        self.switch = StopSwitch(self._pressed, owner)
        self._upstream = upstream
        self._config = config
        self._on_end = on_end
        self._on_settled = on_settled
        self._spawn = spawn
        self._unheard = unheard
        self._on_usage = on_usage
        self._reading_on = False  # after a Stop that left the upstream open
        self._grace = config.orphan_grace if grace is None else grace
        self._tools = tools if request.tools is None else None  # whoever brings tools runs them
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
        self._beside = 0  # characters of fields beside these: pictures, sources
        self._model = ""  # as the last round's reply named it
        self._usage: dict[str, Any] | None = {}  # of all rounds; None: one of them told none
        self._counted: Reply | None = None  # the newest reply whose usage is in there
        self._reply: Reply | None = None
        self._retries_left = config.retries
        self._loading_pause = LOADING_PAUSE
        self._pump = threading.Lock()  # the role; guards the reply, the parts and `_settled`
        self._pump.acquire()  # the first attendant's from the beginning: nobody comes before it
        self._settled = False
        self._pumped_at = now()

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

    # --- reading ----------------------------------------------------------------------------------

    def leave(self, viewer: Viewer) -> None:
        """Watch no more. A run whose grace is 0 ends with its last viewer."""
        super().leave(viewer)
        if self._grace == 0 and not self._viewers:
            self.cancel("no_viewer")

    def advance(self, after: int, timeout: float) -> None:
        """Return when there may be events above `after`, or after at most `timeout` seconds.

        Pumps when nobody else does, waits at the log otherwise.
        """
        if not self._pump.acquire(blocking=False):
            self.log.wait(after, timeout)
            return
        handed_over = False
        try:
            if self.log.ended is None and self.log.last <= after:
                self._guarded(self._pump_once, timeout)
                if self._calls_due and self.log.ended is None:
                    # An attendant takes the role as it is: nobody comes between.
                    handed_over = self._spawn(self, self.go_on)
        finally:
            if not handed_over:
                self._release()

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

        return self._end(make, interrupt=not read_on)

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

        if not self._end(make, interrupt=True):
            return False
        told = self.id, fault.code, shortened(fault.detail, LOGGED_MAX)
        logger.warning("stream %s failed: %s %s", *told, extra=about(self.request_id))
        return True

    def settle(self, *, drain: bool = False) -> bool:
        """After the end: let go of the upstream's connection. Called by anyone, any time.

        `drain` allows it to wait a moment for the end of a complete answer, so that the connection
        can be used again. True when it is let go of.
        """
        ended = self.log.ended
        if ended is None or self._reading_on or not self._pump.acquire(blocking=False):
            return False
        try:
            if self._settled:
                return True
            if self._reply is not None:
                if drain and isinstance(ended, Done):
                    self._reply.finish()
                else:
                    self._reply.close()
            self._forget_request()
            self._settled = True
        finally:
            self._pump.release()
        self._on_settled(self)
        return True

    def _forget_request(self) -> None:
        """Let go of the prompt, which a run that is over does not need. The role is held."""
        self._model, self._fingerprint = self.model, self.fingerprint
        self.request = ChatRequest([], id=self.id, model=self.request.model)
        self._question, self._calls, self._thoughts = [], [], []
        self._reply = self._counted = self._on_usage = None  # they hold the request too

    def _pressed(self, seen: int | None) -> Pressed:
        reporting = self._on_usage is not None and self.log.ended is None
        if not (reporting and self._unheard is not None and self._unheard.take(self)):
            return "stopped" if self.cancel("stop", seen) else "finished"
        if self.cancel("stop", seen, read_on=True):
            return "stopped"
        self._unheard.give_back(self)
        return "finished"

    def _end(self, make: Callable[[], Terminal], *, interrupt: bool) -> bool:
        if not self.log.end(make):
            return False
        self.ended_at = now()
        self.switch.event.set()
        if (running := self._tool_round) is not None:
            running.abort()
        if interrupt:
            self.line.interrupt()
            self.settle()
        on_end, self._on_end = self._on_end, None  # it may hold the conversation
        if on_end is not None:
            on_end(self)
        if self._reading_on:
            self._on_settled(self)  # it needs no place any more
            if not self._spawn(self, self.read_on):
                self.line.interrupt()
                self._let_go()
        return True

    # --- after a Stop that left the upstream open -------------------------------------------------

    @property
    def reading_on(self) -> bool:
        """Its log has ended, and its upstream is still read for its usage."""
        return self._reading_on

    def is_overdue(self, at: float) -> bool:
        """Whether a limit is over for an answer that nobody hears."""
        return self._over_limit(at) is not None

    def read_on(self) -> None:
        """Body of a thread: read the rest of the answer, and report the usage behind it."""
        usage = None
        with self._pump:
            try:
                usage = self._usage_behind()
            except (Interrupted, UpstreamError) as fault:
                logger.info("stream %s: no usage after its Stop: %s", self.id, fault.code)
            except Exception:
                logger.exception("stream %s, after its Stop", self.id)
        try:
            if usage and self._on_usage is not None:
                self._on_usage(self, usage)
        except Exception:
            logger.exception("stream %s, usage after its Stop", self.id)
        finally:
            self._let_go()

    def _usage_behind(self) -> dict[str, Any] | None:
        """Read until the provider has counted. Raises UpstreamError, Interrupted."""
        reply = self._reply
        if reply is not None:
            while not self._heard_out and (reply.finish_reason is None or reply.usage is None):
                try:
                    self._heard_out = reply.read(TICK).ended
                except Quiet:
                    continue
                self.meter.received(0, 0)  # a sign of life, for the limits
            self._count(reply)
        return self._usage or None

    def _let_go(self) -> None:
        self._reading_on = False
        self.settle()
        if self._unheard is not None:
            self._unheard.give_back(self)

    # --- producing --------------------------------------------------------------------------------

    def produce(self) -> None:
        """Body of the first attendant: open the upstream and pump until viewers can.

        The role was taken for it when the run was made.
        """
        try:
            self._guarded(self._open_and_begin)
        finally:
            self._release(drain=True)

    def go_on(self) -> None:
        """Body of an attendant that was handed the role: run the tools, then pump as before."""
        try:
            self._guarded(self._pump_until_watched)
        finally:
            self._release(drain=True)

    def discard(self) -> None:
        """Instead of `produce`, for a run that ended before it could begin."""
        self._release()

    def attend(self) -> None:
        """Body of a later attendant: pump until a viewer waits or the run ends."""
        if self._pump.acquire(blocking=False):
            try:
                self._guarded(self._pump_until_watched)
            finally:
                self._release(drain=True)

    def check(self, at: float) -> UpstreamError | CancelReason | Literal["attend"] | None:
        """What the keeper has to do about this run at the time `at`; a run over a limit, first."""
        if (fault := self._over_limit(at)) is not None:
            return fault
        with self._viewers_lock:
            gone = [viewer for viewer in self._viewers if viewer.gone]
        for viewer in gone:
            self.leave(viewer)
        if not self._viewers and at - self._watched_at > self._patience:
            return "no_viewer"
        if not self._pump.locked() and at - self._pumped_at > ATTEND_AFTER:
            return "attend"
        return None

    @property
    def _patience(self) -> float:
        """Seconds that it goes on with nobody watching."""
        return self._grace if self._was_watched else max(FIRST_VIEW, self._grace)

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

    def _guarded(self, body: Callable[..., None], *args: Any) -> None:
        """Run `body`; whatever it raises ends the run, so that no reader waits for ever."""
        try:
            body(*args)
        except Interrupted:
            pass  # the log has ended; that is why
        except UpstreamError as fault:
            self.fail(fault)
        except Exception as exc:
            logger.exception("stream %s", self.id, extra=about(self.request_id))
            self.fail(UpstreamError("internal", type(exc).__name__))
        except BaseException:  # Ctrl-C in a program's own thread, in the middle of a read
            self.cancel("stop")
            raise

    def _open_and_begin(self) -> None:
        self._open()
        self._pump_until_watched()

    def _pump_until_watched(self) -> None:
        while self.log.ended is None:
            if self._calls_due:
                self._run_tools()
            watched = self.log.waiting
            self._pump_once(TICK)
            if watched and self._answering and not self._calls_due:
                return

    def _open(self) -> None:
        """Open the upstream, with retries. Raises UpstreamError, Interrupted."""
        while True:
            if self.log.ended is not None:
                raise Interrupted("ended before it was opened")
            try:
                self._reply = self._upstream.open(self.request, self.line)
                return
            except UpstreamError as fault:
                if self._tools and _refuses_tools(fault):
                    raise fault.instead("tools_refused") from fault
                self._wait_for_retry(fault)

    def _wait_for_retry(self, fault: UpstreamError) -> None:
        """Return when another try may begin. Raises the fault where there is none, Interrupted."""
        if self.log.ended is not None:
            raise Interrupted("ended while it was opened") from fault
        if self._is_loading(fault):
            self._wait_for_model(fault)
            return
        asked, growth = fault.retry_after, 2 ** (self._config.retries - self._retries_left)
        again = fault.retryable and fault.resend and self._retries_left
        if not again or (asked or 0.0) > RETRY_AFTER_MAX:
            raise fault
        wait = RETRY_BASE * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, keeps no secret
        wait = wait * growth if asked is None else asked + wait  # all were told the same
        self._retries_left -= 1
        told = self.id, fault.code, wait
        logger.info("stream %s: %s, trying again in %.1f s", *told, extra=about(self.request_id))
        if self.switch.event.wait(wait):
            raise Interrupted("ended while it waited for a retry")

    def _is_loading(self, fault: UpstreamError) -> bool:
        """The demo model, which starts with Halt, is being loaded, and will answer when it has.

        Its port is reserved before the model listens: there a refusal means the same. Of a server
        of its own the person is told, because only the person knows whether to wait for it.
        """
        is_demo = self._config.wants_embedded and bool(self._config.embedded_url)
        return is_demo and fault.code in {"model_loading", "upstream_refused"} and fault.retryable

    def _wait_for_model(self, fault: UpstreamError) -> None:
        """Return when the server may have loaded its model. Raises the fault, Interrupted.

        The server has done nothing yet that could be billed, so HALT_RETRIES does not count here;
        HALT_FIRST_BYTE_TIMEOUT is the limit, for a demo model that does not listen READY_LIMIT.
        """
        wait = self._loading_pause * random.uniform(0.75, 1.25)  # noqa: S311 - as for a retry
        wait = max(wait, fault.retry_after or 0.0)
        self._loading_pause = min(2 * self._loading_pause, LOADING_PAUSE_MAX)
        limit = self._config.first_byte_timeout
        waited_then = now() + wait - self.meter.last_at
        if fault.code != "model_loading" and waited_then > READY_LIMIT:
            raise fault
        if waited_then > limit:
            raise fault.hinting(
                f"Halt waits for {limit:g} s. HALT_FIRST_BYTE_TIMEOUT sets this limit."
            )
        told = self.id, fault.code, wait
        logger.info("stream %s: %s, asking again in %.1f s", *told, extra=about(self.request_id))
        if self.switch.event.wait(wait):
            raise Interrupted("ended while the model was being loaded")

    def _pump_once(self, timeout: float) -> None:
        """Move what comes within `timeout` seconds to the log. The role is held."""
        reply = self._reply
        if reply is None:  # over before it was opened
            return
        try:
            part = reply.read(timeout)
        except Quiet:
            if self._notes.held and now() - self.meter.last_at > HELD_FOR:
                self._say(self._notes.waited())
            return
        except UpstreamError as fault:
            self._say(self._notes.end())
            self._broke(reply, fault)
            return
        self._take(reply, part)

    def _take(self, reply: Reply, part: Part) -> None:
        """Put what one read brought into the log."""
        if part.ended:
            self._heard_out = True
        if part.events:
            self._answering = True
            if not self._add(part):
                return
            if self._size > self._config.max_answer_chars:
                self.fail(self._too_long())
                return
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
        """Log text that came before, and was held back. The role is held."""
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
        """Whether the question is about the notes of `halt.notes`."""
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
            told = reply.usage
            self._usage = None if told is None else _sum(self._usage, _counts(told))

    def _run_tools(self) -> None:
        """Run what the model asked for, then ask it again with the results. The role is held."""
        reply = self._reply
        assert reply is not None  # noqa: S101 - it has brought the calls
        self._model = reply.model
        reply.finish()
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
            ToolTurn(pictures.told(said) or None, calls, reply.opaque),
            *(Message("tool", each.result, tool_call_id=each.id) for each in results),
        ]
        self.request = msgspec.structs.replace(
            self.request,
            messages=[*self.request.messages, *told],
            tool_choice=None,  # what the first round had to call need not be called for ever
        )
        self._open()

    def _too_long(self) -> UpstreamError:
        most = self._config.max_answer_chars
        hint = f"It may have {most} characters: HALT_MAX_ANSWER_CHARS."
        return UpstreamError("answer_too_long", hint=hint)

    def _results_of(self, calls: list[ToolCall]) -> list[ToolResult]:
        """Run the calls; their results in the order of the calls, some missing after an end."""
        assert self._tools is not None  # noqa: S101 - else none is asked for
        under_way = self._tool_round = self._tools.round(calls)
        if self.log.ended is not None:  # by one who did not see the round
            under_way.abort()
        for result in under_way.results():
            self._size += len(result.result)
            if self._size > self._config.max_answer_chars:
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
        self._end(lambda: Done(reply.finish_reason, self.meter.snapshot(), usage), interrupt=False)

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
        reply.close()
        try:
            self._wait_for_retry(fault)
            self._open()
        except Interrupted:
            pass
        except UpstreamError as last:
            self.fail(last)

    def _release(self, *, drain: bool = False) -> None:
        """Give up the role, then look whether there is something to clean up.

        A viewer first shows what it has, and drains a complete answer's connection afterwards; an
        attendant (`drain`) does it here, for the viewers that were through before it let go.
        """
        self._pumped_at = now()
        self._pump.release()
        ended = self.log.ended
        if ended is None or self._settled:
            return
        if not isinstance(ended, Done):
            self.settle()
        elif drain or not self._viewers:
            self.settle(drain=True)


def _silent(code: str, seconds: float, setting: str) -> UpstreamError:
    return UpstreamError(code, hint=f"Nothing came for {seconds:g} s: {setting} sets this limit.")


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """A server's usage without whole numbers that count nothing: negative, or past any sense."""
    return {
        name: _counts(value) if isinstance(value, dict) else value
        for name, value in usage.items()
        if not isinstance(value, int) or 0 <= value <= COUNT_MAX
    }


def _sum(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two counts as one: numbers are added, what is no number is the newer one's."""
    out = dict(total)
    for name, value in more.items():
        before = out.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            out[name] = _sum(before, value)
        elif isinstance(value, int | float) and isinstance(before, int | float):
            out[name] = before + value
        elif value is not None or before is None:
            out[name] = value
    return out


def _refuses_tools(fault: UpstreamError) -> bool:
    """The server names tools in its refusal: it, or the model, cannot call any.

    Servers do not agree on the status: 400 and 422 are usual, 404 and 500 are seen too.
    """
    refusals = {"bad_request", "model_not_found", "upstream_server_error"}
    return fault.code in refusals and "tool" in fault.detail.lower()


assert {"no_model", "interrupted"} <= set(CODES)  # noqa: S101
