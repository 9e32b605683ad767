"""Trials of providers for the page: a worker runs few at once, each in a thread of its own.

The response's thread reads the findings as they come. When its client leaves, or the response is
closed, the trial is cancelled, which closes its connection to the server that is tried.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.relay import Departure
from halt.core.service import GenerationService
from halt.doctor.cancellation import Cancellation
from halt.doctor.providers import service_of
from halt.doctor.report import Finding
from halt.doctor.trial import try_provider
from halt.web.responses import RequestRefused

TRIALS_MAX = 4  # at once
RETRY_AFTER = 15.0  # seconds
BEAT = 1.0  # seconds without a finding after which the response writes something


class Trials:
    """The trials of one worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the set of those that run
        self._running: set[Trial] = set()

    def start(self, settings: ProviderSettings, config: Config, instance_id: str) -> Trial:
        """Start the trial of a provider. Raises RequestRefused where too many run."""
        trial = Trial(self._end)
        with self._lock:
            if len(self._running) >= TRIALS_MAX:
                raise _busy(f"{TRIALS_MAX} providers are being tried at the moment.")
            self._running.add(trial)
        try:
            trial.start(settings, config, instance_id)
        except RuntimeError as exc:  # the system has no further thread
            self._end(trial)
            raise _busy("The system has no further thread for a trial.") from exc
        return trial

    def close(self) -> None:
        """Cancel all trials."""
        with self._lock:
            running = list(self._running)
        for trial in running:
            trial.cancel()

    def _end(self, trial: Trial) -> None:
        with self._lock:
            self._running.discard(trial)


class Trial:
    """One trial. Its thread makes the findings, one other thread reads them."""

    def __init__(self, on_end: Callable[[Trial], object]) -> None:
        self._on_end = on_end
        self._found: queue.SimpleQueue[Finding | bool] = queue.SimpleQueue()  # last the result
        self._cancellation = Cancellation()
        self.is_well = False  # no check has failed; known after the last finding
        self.is_cancelled = False

    def start(self, settings: ProviderSettings, config: Config, instance_id: str) -> None:
        """Start the thread. Raises RuntimeError if the system has none."""

        make = partial(service_of, instance_id=instance_id)

        def run() -> None:
            is_well = False
            try:
                is_well = try_provider(settings, config, make, self._found.put, self._cancellation)
            finally:  # the reader never waits for a thread that is gone
                self._on_end(self)
                self._found.put(is_well)

        threading.Thread(target=run, name="halt-trial", daemon=True).start()

    def cancel(self) -> None:
        """End the trial at once. Idempotent."""
        self.is_cancelled = True
        self._cancellation.cancel()

    def findings(
        self, service: GenerationService, client: socket.socket | None
    ) -> Iterator[Finding | None]:
        """Each finding as it comes; None after each BEAT without one.

        The departure of `client`, the closing of this generator and the shutdown of `service`
        cancel the trial.
        """
        departure = None if client is None else Departure(service.relay, client, self.cancel)
        try:
            while True:
                found: Finding | bool | None = None
                with contextlib.suppress(queue.Empty):
                    found = self._found.get(timeout=BEAT)
                if isinstance(found, bool):
                    self.is_well = found
                    return
                if service.draining:
                    self.cancel()
                yield found
        except GeneratorExit:
            self.cancel()
            raise
        finally:
            if departure is not None:
                departure.cancel()


def _busy(message: str) -> RequestRefused:
    return RequestRefused(
        503,
        "too_many_trials",
        f"{message} Try again in {RETRY_AFTER:g} seconds.",
        retryable=True,
        retry_after=RETRY_AFTER,
    )
