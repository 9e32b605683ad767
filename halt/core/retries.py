"""When a request that brought nothing is sent to the model's server again."""

from __future__ import annotations

import random

from halt.core.limits import Limits
from halt.errors import UpstreamError

RETRY_BASE = 0.5  # seconds before the first retry; doubles, and varies by half to spread the load
RETRY_AFTER_MAX = 5.0  # seconds; a server that asks for a longer wait is shown to the user instead
LOADING_PAUSE = 0.25  # seconds before a server that loads its model is asked again; doubles
LOADING_PAUSE_MAX = 4.0  # seconds
DEMO_READY_LIMIT = 60.0  # seconds that the demo model may take to load


class Retries:
    """The retries of one run. Used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.made = 0  # those that HALT_RETRIES counts
        self._loading_pause = LOADING_PAUSE

    def pause(self, fault: UpstreamError, waited: float) -> float:
        """Seconds until the next attempt. Raises the fault where none may follow.

        `waited`: seconds since the run's server last gave a sign of life.
        """
        if self._is_loading(fault):
            return self._until_loaded(fault, waited)
        requested = fault.retry_after
        is_left = fault.retryable and fault.resend and self.made < self._limits.retries
        if not is_left or (requested or 0.0) > RETRY_AFTER_MAX:
            raise fault
        pause = RETRY_BASE * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, keeps no secret
        # A time that a server asks for is the same for all its clients, so it varies too.
        pause = pause * 2**self.made if requested is None else requested + pause
        self.made += 1
        return pause

    def _is_loading(self, fault: UpstreamError) -> bool:
        """Whether the demo model, which starts with Halt, is being loaded.

        Its port is reserved before the model listens, so a refused connection means the same there.
        The fault of any other server is shown: only the user knows whether to wait for it.
        """
        is_known = fault.code in {"model_loading", "upstream_refused"}
        return fault.of_demo and is_known and fault.retryable

    def _until_loaded(self, fault: UpstreamError, waited: float) -> float:
        """Seconds until the server may have loaded its model. Raises the fault.

        The server has done nothing yet that could be billed, so HALT_RETRIES does not count here;
        HALT_FIRST_BYTE_TIMEOUT is the limit; DEMO_READY_LIMIT where a demo model does not listen.
        """
        pause = self._loading_pause * random.uniform(0.75, 1.25)  # noqa: S311 - as for a retry
        pause = max(pause, fault.retry_after or 0.0)
        self._loading_pause = min(2 * self._loading_pause, LOADING_PAUSE_MAX)
        limit = self._limits.first_byte_timeout
        if fault.code != "model_loading" and waited + pause > DEMO_READY_LIMIT:
            raise fault
        if waited + pause > limit:
            raise fault.hinting(
                f"Halt waits for {limit:g} s. HALT_FIRST_BYTE_TIMEOUT sets this limit."
            )
        return pause
