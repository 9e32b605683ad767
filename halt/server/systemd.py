"""Reports the server's state to systemd (sd_notify): ready, alive, stopping.

Only the master sends reports, in each turn of its main loop (at least once a second) and while it
waits for workers. So a dead or stopped master sends none, and `NotifyAccess=main` is enough.
READY=1 means that a worker has loaded the application and its main loop runs; after a SIGHUP, a
worker with the new settings. WATCHDOG=1 means that a worker's main loop has run since the last
report. If all workers hang, no report is sent; if one of several hangs, the master replaces it
(gunicorn's `timeout`).

gunicorn itself would report READY=1 as soon as it listens, and has no hook in its main loop.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from halt.config import environment

#: Reports of WATCHDOG=1 within the watchdog's time, after which systemd ends a silent service.
PINGS = 4
#: Seconds after the grace of requests in which a stopping server closes everything.
CLOSES_WITHIN = 20

logger = logging.getLogger(__name__)


def take_notify() -> tuple[str, float]:
    """systemd's socket for reports of this process ("" if none), and its watchdog's seconds (0 if
    none).

    Removes the environment variables: with them gunicorn would report READY=1 before a worker is
    ready, and processes that Halt starts would use them as their own.
    """
    address = environment.take("NOTIFY_SOCKET")
    microseconds = environment.take("WATCHDOG_USEC")
    process = environment.take("WATCHDOG_PID")
    is_time = microseconds.isdecimal() and len(microseconds) <= 20  # a number of 64 bits
    if not is_time or process not in {"", str(os.getpid())}:
        return address, 0.0
    return address, int(microseconds) / 1_000_000


class Notifier:
    """Sends the reports of a gunicorn master. Used by the master's main thread alone."""

    def __init__(self, server: Any, address: str, watchdog: float) -> None:
        """`address`: systemd's socket (`@NAME`: an abstract one). `watchdog`: seconds, 0: none."""
        self._server = server
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._ping_every = watchdog / PINGS
        self._ping_at = 0.0
        self._beat = 0.0  # the newest heartbeat that was reported
        self._ready_from: int | None = 0  # the least worker age that counts; None: reported
        self._is_stopping = False
        self._has_failed = False
        for name in ("murder_workers", "reap_workers"):
            setattr(server, name, self._with_report_after(getattr(server, name)))
        server.stop = self._with_stopping_before(server.stop)

    def reloading(self) -> None:
        """Report that the settings were read again. READY=1 then waits for a worker with them."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._ready_from = self._server.worker_age + 1

    def _with_report_after(self, step: Callable[[], None]) -> Callable[[], None]:
        @wraps(step)
        def with_report() -> None:
            step()
            self._report()

        return with_report

    def _with_stopping_before(self, stop: Callable[..., None]) -> Callable[..., None]:
        @wraps(stop)
        def with_report(graceful: bool = True) -> None:
            if not self._is_stopping:
                self._is_stopping = True
                seconds = self._server.cfg.graceful_timeout + CLOSES_WITHIN
                self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={seconds * 1_000_000}")
            stop(graceful)

        return with_report

    def _report(self) -> None:
        """Report what has changed. A report that fails is sent again at the next call."""
        if self._is_stopping:
            return
        at = time.monotonic()
        newest = 0.0
        for worker in list(self._server.WORKERS.values()):
            beat = worker.tmp.last_update()
            if beat > at:  # still the time of day of the file's creation: the worker has not begun
                continue
            newest = max(newest, beat)
            if self._ready_from is not None and worker.age >= self._ready_from:
                self._ready_from = None if self._send("READY=1") else self._ready_from
        is_due = self._ping_every > 0 and at >= self._ping_at
        if is_due and newest > self._beat and self._send("WATCHDOG=1"):
            self._beat, self._ping_at = newest, at + self._ping_every

    def _send(self, state: str) -> bool:
        """Send this report; False if it failed. Never waits. The first failure is logged."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError as exc:
            if not self._has_failed:
                self._has_failed = True
                logger.warning(
                    "sending %s to systemd has failed: %s.", state.partition("\n")[0], exc
                )
            return False
        return True
