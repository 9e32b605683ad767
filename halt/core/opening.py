"""Opening the connection to the model's server: by a thread, with retries, until a Stop."""

from __future__ import annotations

import logging
import threading

from halt.clock import now
from halt.core.limits import Limits
from halt.core.live import LiveGeneration
from halt.core.request import Upstream
from halt.core.request_ids import about
from halt.core.retries import Retries
from halt.errors import Interrupted, UpstreamError

logger = logging.getLogger(__name__)


class Opening:
    """Opens the upstream of one run, for each of its rounds. Used by the thread that has the run.

    A Stop interrupts it in every phase: the run's line while it connects and waits for the head,
    `ended` while it waits for a retry.
    """

    def __init__(
        self,
        live: LiveGeneration,
        upstream: Upstream,
        limits: Limits,
        ended: threading.Event,
        *,
        offers_tools: bool,
    ) -> None:
        """`ended` is set when the log has ended. `offers_tools`: Halt's own, not the client's."""
        self._live = live
        self._upstream = upstream
        self._ended = ended
        self._offers_tools = offers_tools
        self._fault: UpstreamError | None = None
        self.retries = Retries(limits)

    def again(self, fault: UpstreamError) -> None:
        """By the relay: the reply broke before its first event, and `open` is to try again."""
        self._fault = fault

    def open(self) -> None:
        """Open the upstream, with retries. Raises UpstreamError, Interrupted."""
        live = self._live
        fault, self._fault = self._fault, None
        while True:
            if fault is not None:
                self._wait(fault)
            if live.log.ended is not None and not live.reading_on:
                raise Interrupted("ended before it was opened")
            try:
                live.reply = self._upstream.open(live.request, live.line)
                return
            except UpstreamError as exc:
                if self._offers_tools and _refuses_tools(exc):
                    raise exc.instead("tools_refused") from exc
                fault = exc

    def _wait(self, fault: UpstreamError) -> None:
        """Return when another try may begin. Raises the fault where there is none, Interrupted."""
        live = self._live
        if live.log.ended is not None:
            raise Interrupted("ended while it was opened") from fault
        pause = self.retries.pause(fault, now() - live.meter.last_at)
        told = live.id, fault.code, pause
        logger.info("stream %s: %s, trying again in %.1f s", *told, extra=about(live.request_id))
        if self._ended.wait(pause):
            raise Interrupted("ended while it waited for a retry")


def _refuses_tools(fault: UpstreamError) -> bool:
    """The server names tools in its refusal: it, or the model, cannot call any.

    Servers do not agree on the status: 400 and 422 are usual, 404 and 500 are seen too.
    """
    refusals = {"bad_request", "model_not_found", "upstream_server_error"}
    return fault.code in refusals and "tool" in fault.detail.lower()
