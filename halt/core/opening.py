"""Opens the connection to the provider: in a thread, with retries, until a Stop."""

from __future__ import annotations

import logging
import random
import threading

from halt.clock import now
from halt.core.limits import Limits
from halt.core.live import LiveGeneration
from halt.core.refusals import named_refusal
from halt.core.request import Upstream
from halt.core.request_ids import about
from halt.errors import Interrupted, UpstreamError

RETRY_BASE = 0.5  # seconds before the first retry; doubles, and varies by half to spread the load
RETRY_AFTER_MAX = 5.0  # seconds; a fault with a longer Retry-After is shown to the user instead
LOADING_PAUSE = 0.25  # seconds between requests to a server that loads its model; doubles
LOADING_PAUSE_MAX = 4.0  # seconds
DEMO_READY_LIMIT = 60.0  # seconds that the demo model may take to load

logger = logging.getLogger(__name__)


class Opening:
    """Opens the upstream of one run, for each of its rounds. Used by the thread that has the run.

    A Stop interrupts it in every phase: by the run's connection while it connects or waits for the
    head, by `ended` while it waits for a retry.
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
        """`ended` is set when the log has ended. `offers_tools`: the request has Halt's tools."""
        self._live = live
        self._upstream = upstream
        self._ended = ended
        self._offers_tools = offers_tools
        self._fault: UpstreamError | None = None
        self.retries = Retries(limits)

    def prepare_retry(self, fault: UpstreamError) -> None:
        """In the relay: let the next `open` retry after a reply that failed before an event."""
        self._fault = self._named(fault)

    def open(self) -> None:
        """Open the upstream, with retries. Raises UpstreamError, Interrupted."""
        live = self._live
        fault, self._fault = self._fault, None
        while True:
            if fault is not None:
                self._wait(fault)
            if live.log.ended is not None and not live.reads_usage:
                raise Interrupted("ended before it was opened")
            try:
                live.reply = self._upstream.open(live.request, live.connection)
                return
            except UpstreamError as exc:
                fault = self._named(exc)

    def _named(self, fault: UpstreamError) -> UpstreamError:
        messages = self._live.request.messages
        return named_refusal(fault, messages, offers_tools=self._offers_tools)

    def _wait(self, fault: UpstreamError) -> None:
        """Wait until the next attempt. Raises the fault if none may follow, or Interrupted."""
        live = self._live
        if live.log.ended is not None:
            raise Interrupted("ended while it was opened") from fault
        pause = self.retries.pause(fault, now() - live.meter.last_at)
        values = live.id, fault.code, pause
        logger.info("stream %s: %s, trying again in %.1f s", *values, extra=about(live.request_id))
        if self._ended.wait(pause):
            raise Interrupted("ended while it waited for a retry")


class Retries:
    """Decides whether a run retries, and after which pause. Used by one thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.attempts = 0  # retries that HALT_RETRIES counts
        self._loading_pause = LOADING_PAUSE

    def pause(self, fault: UpstreamError, waited: float) -> float:
        """Seconds until the next attempt. Raises the fault if none may follow.

        `waited`: seconds since the provider's last sign of life.
        """
        if self._is_demo_loading(fault):
            return self._demo_pause(fault, waited)
        requested = fault.retry_after
        is_left = fault.retryable and fault.resend and self.attempts < self._limits.retries
        if not is_left or (requested or 0.0) > RETRY_AFTER_MAX:
            raise fault
        pause = RETRY_BASE * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, keeps no secret
        # A Retry-After is the same for all clients of a server, so it gets a random part too.
        pause = pause * 2**self.attempts if requested is None else requested + pause
        self.attempts += 1
        return pause

    def _is_demo_loading(self, fault: UpstreamError) -> bool:
        """Whether the fault means that the demo model, which starts with Halt, is loading.

        Its port is reserved before the model listens, so a refused connection means that too. The
        fault of another server is shown: only the user knows whether waiting makes sense.
        """
        is_known = fault.code in {"model_loading", "upstream_refused"}
        return fault.of_demo and is_known and fault.retryable

    def _demo_pause(self, fault: UpstreamError, waited: float) -> float:
        """Seconds until the next request to a loading server. Raises the fault at the limit.

        The server has done nothing that could be billed, so HALT_RETRIES does not count here. The
        limit is HALT_FIRST_BYTE_TIMEOUT, or DEMO_READY_LIMIT while a demo model does not listen.
        """
        pause = self._loading_pause * random.uniform(0.75, 1.25)  # noqa: S311 - as for a retry
        pause = max(pause, fault.retry_after or 0.0)
        self._loading_pause = min(2 * self._loading_pause, LOADING_PAUSE_MAX)
        limit = self._limits.first_byte_timeout
        if fault.code != "model_loading" and waited + pause > DEMO_READY_LIMIT:
            raise fault
        if waited + pause > limit:
            raise fault.with_hint(
                f"Halt waits for {limit:g} s. HALT_FIRST_BYTE_TIMEOUT sets this limit."
            )
        return pause
