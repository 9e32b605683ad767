"""One generation: how a thread and the relay take turns with it, and how it ends.

A thread opens the connection (`opening`: DNS, TLS, the wait for the head, retries) and runs tools
(`tool_loop`). Otherwise the relay (`relay`) reads the socket, and `intake` appends what arrives to
the log. The thread and the relay never have the run at the same time:

    a thread has it     `_is_worked` is true. It may block, and ends by posting `_take_over`.
    the relay has it    from `_take_over` on. It reads until the end, or until a thread is needed:
                        for a round of tools, or for a retry before the first event.

Only the relay closes the socket that it reads, and only the relay releases the run's resources
(`_begin_release`). Other threads may append to the log, end it, and shut the socket down.

Races and their winners:
- Two ends (Stop against the model's own): the log takes the first; the second changes nothing.
- Stop against a read: the log ends first, then the socket is shut down and the relay woken. The
  log refuses what the relay reads after the end.
- Stop against the hand-over to the relay: both post to it. The second post sees that the log has
  ended and that no thread has the run, and closes the connection.
- Stop against a round of tools: see `ToolLoop.run`. Before that the relay has the run, and waits
  for the end of the reply's framing: the log has not ended, and any end closes the connection.
- A Stop that leaves the connection open (`read_usage`) sets `reads_usage` before the log ends, so
  that `_begin_release` sees it and the relay reads on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from halt.clock import now
from halt.core.connection import NoData
from halt.core.deadlines import Deadlines
from halt.core.events import Cancelled, CancelReason, Done, ErrorInfo, Failed, Terminal
from halt.core.exact_usage import Usage, UsageDrain
from halt.core.finish_reasons import STOP, is_good
from halt.core.generation import Viewer
from halt.core.intake import Intake
from halt.core.limits import Limits
from halt.core.live import LiveGeneration
from halt.core.opening import Opening
from halt.core.relay import READ, Relay, Timer, contained
from halt.core.request import ChatRequest, Reply, Upstream
from halt.core.request_ids import about, quoted
from halt.core.stop import Pressed, StopSwitch
from halt.core.stream_key import StreamKey
from halt.core.tool_loop import ToolLoop, Tools
from halt.errors import Interrupted, UpstreamError, shortened

DRAIN_SECONDS = 0.25  # to wait for the end of the response after a complete answer
LOGGED_MAX = 500  # characters of a provider's error text in the server's log

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What a run needs from its service."""

    @property
    def config(self) -> Limits: ...

    upstream: Upstream
    relay: Relay

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        """Do `work` in a new thread. False: the system has none, and the run has failed."""

    def later(self, work: Callable[[], None]) -> None:
        """Do `work` in the keeper's thread, in the order of the calls; it must not block."""

    def release_place(self, run: Run) -> None:
        """Give back the run's place. Idempotent."""


class Run(LiveGeneration):
    """A generation from its request to its terminal event."""

    def __init__(
        self,
        key: StreamKey,
        request: ChatRequest,
        host: Host,
        on_end: Callable[[Run], None] | None,
        tools: Tools | None = None,
        grace: float | None = None,
        usage_drain: UsageDrain | None = None,
        on_usage: Callable[[Run, dict[str, Any]], None] | None = None,
    ) -> None:
        limits = host.config
        super().__init__(key, request, limits.log_bytes)
        if request.tools is not None:  # the client runs its own
            tools = None
        elif tools:
            self.request = msgspec.structs.replace(request, tools=tools.specs)
        self.switch = StopSwitch(self._on_press)
        self._host = host
        self._on_end = on_end
        max_chars = limits.max_answer_chars
        self._intake = Intake(self, host.relay, self.on_fault, max_chars, keeps_calls=bool(tools))
        self._opening = Opening(
            self, host.upstream, limits, self.switch.event, offers_tools=bool(tools)
        )
        self._tool_loop = ToolLoop(self, self._intake, tools, limits.tool_rounds)
        self.deadlines = Deadlines(self, self._intake, self._tool_loop, limits, grace)
        report = None if on_usage is None else partial(on_usage, self)
        self._usage = Usage(self, usage_drain, partial(host.spawn, self), report)
        # Used by the relay alone:
        self._is_worked = True  # a thread has the run
        self._is_registered = False  # the relay reads its reply
        self._is_whole = False  # all of the reply has arrived, except the end of its framing
        self._is_released = False
        self._limits: Timer | None = None
        self._drain: Timer | None = None

    # --- its readers ------------------------------------------------------------------------------

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer. A run ends when it has had no viewer for longer than its grace."""
        super().leave(viewer)
        if not self.is_watched and self.log.ended is None:
            self.check_limits_soon()

    def expect_viewer(self) -> None:
        """Keep the run for REMOTE_VIEWER_WAIT seconds, for a viewer of another process.

        The viewer's last connection, to this process, may be closed already.
        """
        self.deadlines.expect_viewer()

    def check_limits_soon(self) -> None:
        """Make the relay check the run's limits and viewers. Takes no lock."""
        self._host.relay.post(self._check_limits)

    # --- ending -----------------------------------------------------------------------------------

    def cancel(
        self, reason: CancelReason, seen: int | None = None, *, read_usage: bool = False
    ) -> bool:
        """End the run with Cancelled. False: it had ended already.

        `seen`: the last event that had been shown, if known. `read_usage`: the relay reads on for
        the usage; the caller has taken a place of the UsageDrain.
        """

        def make() -> Terminal:
            # Limited to the log's last event: it comes from a client, and is saved.
            self._seen_events = None if seen is None else min(seen, self.log.last)
            self.reads_usage = read_usage
            unwatched = self.deadlines.grace if reason == "no_viewer" else msgspec.UNSET
            return Cancelled(self.meter.snapshot(), reason, unwatched=unwatched)

        return self._end(make)

    def fail(self, fault: UpstreamError) -> bool:
        """End the run with an error. False: it had ended already."""
        message = fault.message
        if fault.code == "internal":  # the details are in the server's log alone
            message += quoted(self.request_id)
        info = ErrorInfo(
            fault.code,
            message,
            fault.retryable,
            fault.retry_after,
            fault.own_status,
            fault.quote,
            fault.hint,
            fault.upstream_status,
            self.request_id,
        )
        return self._end(lambda: Failed(info, self.meter.snapshot()), fault)

    def _on_press(self, seen: int | None) -> Pressed:
        if not self._usage.take_place():
            return "stopped" if self.cancel("stop", seen) else "finished"
        if self.cancel("stop", seen, read_usage=True):
            return "stopped"
        self._usage.give_place_back()
        return "finished"

    def _end(self, make: Callable[[], Terminal], fault: UpstreamError | None = None) -> bool:
        if not self.log.end(make):
            return False
        self.ended_at = now()
        self.switch.event.set()
        self._tool_loop.abort()
        if not (self.reads_usage or isinstance(self.log.ended, Done)):
            self.connection.interrupt()
        relay = self._host.relay
        relay.post(self._begin_release)
        if relay.is_current:
            self._host.later(partial(self._report_end, fault))
        else:
            self._report_end(fault)
        return True

    def _report_end(self, fault: UpstreamError | None) -> None:
        """Write a fault to the server's log and call `on_end`. Not called in the relay."""
        if fault is not None:
            detail = shortened(fault.detail, LOGGED_MAX)
            text = f"{fault.code}: {detail}" if detail else fault.code
            logger.warning("stream %s failed: %s", self.id, text, extra=about(self.request_id))
        on_end, self._on_end = self._on_end, None  # it may reference the conversation
        if on_end is not None:
            on_end(self)
        if self.reads_usage:
            self._host.release_place(self)  # reading the usage needs no place

    # --- the thread's part ------------------------------------------------------------------------

    def work(self) -> None:
        """Body of the thread that has the run: run the tools that are due, open the upstream.

        Every exception ends the run, so that no reader waits for ever.
        """
        try:
            if not self._tool_loop.is_due or self._tool_loop.run():
                self._opening.open()
        except Interrupted:
            pass  # the log has ended
        except UpstreamError as fault:
            self.fail(fault)
        except Exception as exc:  # noqa: BLE001 - logged
            self._log_surprise(exc)
            self.fail(UpstreamError("internal", type(exc).__name__))
        finally:
            self._host.relay.post(self._take_over)

    def start_work(self) -> None:
        """Start the thread that does `work`. Not called in the relay: the start blocks."""
        if not self._host.spawn(self, self.work):
            self.discard()

    def discard(self) -> None:
        """Called instead of `work` for a run that ended before it began."""
        self._host.relay.post(self._take_over)

    def _log_surprise(self, exc: Exception) -> None:
        logger.error("stream %s", self.id, exc_info=exc, extra=about(self.request_id))

    # --- the relay's part -------------------------------------------------------------------------

    def on_fault(self, exc: Exception) -> None:
        """In the relay: end the run because of an exception in Halt's own code."""
        self._host.later(partial(self._log_surprise, exc))
        fault = UpstreamError("internal", type(exc).__name__)
        self.fail(fault)
        if self.reads_usage:
            self._end_usage(fault)
        if not self._is_worked:  # else `_take_over` follows
            self._release_upstream()

    @contained
    def _check_limits(self) -> None:
        """In the relay: end a run that exceeds a limit or has no viewer; check again later.

        The relay reads arrived data first (see `halt.core.relay`), so a stall of Halt ends no run.
        """
        if self._limits is not None:
            self._limits.cancel()
        if self.log.ended is not None and not self.reads_usage:
            return
        at = now()
        for viewer in self.viewers():
            if viewer.gone:
                self.leave(viewer)
        if (fault := self.deadlines.error_if_exceeded(at)) is not None:
            if not self.fail(fault):  # it is read for its usage: the end of file ends that
                self.connection.interrupt()
            return
        if not (self.deadlines.is_abandoned(at) and self.cancel("no_viewer")):
            self._limits = self._host.relay.at(self.deadlines.next_check(at), self._check_limits)

    @contained
    def _take_over(self) -> None:
        """In the relay: take the run from the thread, which has done its part."""
        self._is_worked = False
        reply = self.reply
        if self.reads_usage and reply is None:  # stopped in a round of tools, or before the head
            self._end_usage(None)
        elif reply is None or (self.log.ended is not None and not self.reads_usage):
            self._begin_release()
        else:
            reply.unblock()
            self._host.relay.watch(reply.fileno(), READ, self._on_readable)
            self._is_registered = True
            self._on_readable()  # the start of the body may have arrived with the head

    def _unwatch(self) -> None:
        if self._is_registered and self.reply is not None:
            self._is_registered = False
            self._host.relay.unwatch(self.reply.fileno())

    @contained
    def _on_readable(self, _: int = READ) -> None:
        """In the relay: read the reply, whose socket is readable."""
        reply = self.reply
        if not self._is_registered or reply is None:
            return
        if self._is_whole or self.log.ended is not None:
            self._read_after_end(reply)
        else:
            self._read(reply)
        if self._is_registered and reply.pending:
            self._host.relay.call_next_turn(self._on_readable)

    def _read(self, reply: Reply) -> None:
        """Append what has arrived to the log."""
        try:
            part = reply.read()
        except NoData:
            return
        except UpstreamError as fault:
            self._on_read_fault(reply, fault)
            return
        try:
            if self._intake.take(part) and part.ended:
                self._on_answer_end(reply)
        except UpstreamError as fault:
            self.fail(fault)

    def _on_answer_end(self, reply: Reply) -> None:
        """End the log, or prepare a round of tools: all of the answer has arrived."""
        self._usage.count(reply)
        if self._intake.calls and is_good(reply.finish_reason):  # else a call may be cut
            self._drain_reply(reply)
            return
        usage = self._usage.total
        reported = usage.get("completion_tokens") if usage else None
        if isinstance(reported, int):
            self.meter.reported = reported
        if reply.finish_reason in {None, STOP}:
            self._intake.show_thoughts()
        self._end(lambda: Done(reply.finish_reason, self.meter.snapshot(), usage))

    def _on_read_fault(self, reply: Reply, fault: UpstreamError) -> None:
        """Fail the run, or retry where the answer has not begun: a read has failed."""
        self._intake.flush()
        if self._intake.answering:
            self.fail(fault)  # changes nothing after an earlier end, which explains the fault
            return
        if self.log.ended is not None:
            return
        self._unwatch()
        reply.close()
        self.reply = None
        self._opening.prepare_retry(fault)
        self._need_thread()

    def _need_thread(self) -> None:
        """Give the run to a new thread, which runs tools and opens the upstream again."""
        self._is_worked = True
        self._host.later(self.start_work)  # not here: `Thread.start` blocks

    def _drain_reply(self, reply: Reply) -> None:
        """Wait at most DRAIN_SECONDS for the end of a complete answer's framing.

        After that end the connection can be reused, for the next round or by another run.
        """
        self._is_whole = True
        if reply.complete or not self._is_registered:
            self._on_drained()
        elif self._drain is None:
            self._drain = self._host.relay.at(now() + DRAIN_SECONDS, self._on_drained)

    @contained
    def _on_drained(self, fault: UpstreamError | None = None) -> None:
        """In the relay: close the reply. A round of tools is next if the log has not ended."""
        reply = self.reply
        if self.reads_usage:
            self._end_usage(fault)
        elif self.log.ended is not None or reply is None:
            self._release_upstream()
        else:
            self._is_whole = False
            if self._drain is not None:
                self._drain.cancel()
                self._drain = None
            self._unwatch()
            reply.close()
            self._tool_loop.expect(reply)
            self.end_round()
            self._need_thread()

    def _read_after_end(self, reply: Reply) -> None:
        """Read on for the usage of a stopped answer, or for the end of a complete one's framing."""
        fault = None
        try:
            if self.reads_usage:
                is_over = self._usage.read(reply)
            else:
                reply.read()
                is_over = reply.complete
        except NoData:
            return
        except UpstreamError as exc:
            is_over, fault = True, exc
        if is_over:
            self._on_drained(fault)

    def _end_usage(self, fault: UpstreamError | None) -> None:
        """Report the usage of a stopped answer, or that it stays unknown; release the run."""
        report = self._usage.end(fault)
        self._begin_release()
        self._host.later(report)

    @contained
    def _begin_release(self) -> None:
        """In the relay: the log has ended. Release the upstream as soon as possible."""
        if self._is_worked or self._is_released:
            return
        if self.reads_usage:
            self._on_readable()
        elif self.reply is not None and isinstance(self.log.ended, Done):
            self._drain_reply(self.reply)
        else:
            self._release_upstream()

    @contained
    def _release_upstream(self) -> None:
        """In the relay: close the connection or give it back, and forget the request."""
        if self._is_released:
            return
        self._is_released = True
        for timer in (self._limits, self._drain):
            if timer is not None:
                timer.cancel()
        try:
            self._unwatch()
            if self.reply is not None:
                self.reply.close()
        finally:
            self.forget_request()
            self._intake.forget()
            self._usage.forget()
            self._host.later(partial(self._host.release_place, self))
