"""Reports to systemd (sd_notify) that the server is ready, that it serves, and that it leaves.

The master alone reports, in each turn of its main loop (at least once a second) and while it waits
for workers, so a master that is dead or stopped is silent, and `NotifyAccess=main` is enough.
READY=1 means that the main loop of a worker runs, with the application loaded; after a SIGHUP, of
a worker with the new settings. WATCHDOG=1 means that the main loop of a worker has turned since the
last one: if every worker hangs there is none, and a single one of several is replaced by the master
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

#: Reports of WATCHDOG=1 in the time after which systemd ends a service without one.
PINGS = 4
#: Seconds beyond the grace of requests in which a server that leaves closes what it has open.
CLOSES_WITHIN = 20

logger = logging.getLogger(__name__)


def take_notify() -> tuple[str, float]:
    """The socket on which systemd awaits reports of this process, and the seconds of its watchdog.

    Empty and 0 where there is none. The variables are removed: with them gunicorn would report that
    it is ready before a worker is, and processes that Halt starts would take them for their own.
    """
    address = environment.take("NOTIFY_SOCKET")
    microseconds = environment.take("WATCHDOG_USEC")
    process = environment.take("WATCHDOG_PID")
    is_time = microseconds.isdecimal() and len(microseconds) <= 20  # of 64 bits
    if not is_time or process not in {"", str(os.getpid())}:
        return address, 0.0
    return address, int(microseconds) / 1_000_000


class Notifier:
    """Watches a gunicorn master and its workers. Used by the main thread of the master alone."""

    def __init__(self, server: Any, address: str, watchdog: float) -> None:
        """`address` is systemd's socket (`@NAME`: an abstract one); `watchdog` seconds, 0: none."""
        self._server = server
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._ping_every = watchdog / PINGS
        self._ping_at = 0.0
        self._beat = 0.0  # the newest heartbeat that was reported
        self._ready_from: int | None = 0  # workers older than this do not count; None: reported
        self._stops = False
        self._has_failed = False
        for name in ("murder_workers", "reap_workers"):
            setattr(server, name, self._then_look(getattr(server, name)))
        server.stop = self._first_say_stopping(server.stop)

    def reloading(self) -> None:
        """The settings were read again, and workers that have them are going to be started."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._ready_from = self._server.worker_age + 1

    def _then_look(self, step: Callable[[], None]) -> Callable[[], None]:
        @wraps(step)
        def with_look() -> None:
            step()
            self._look()

        return with_look

    def _first_say_stopping(self, stop: Callable[..., None]) -> Callable[..., None]:
        @wraps(stop)
        def with_report(graceful: bool = True) -> None:
            if not self._stops:
                self._stops = True
                seconds = self._server.cfg.graceful_timeout + CLOSES_WITHIN
                self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={seconds * 1_000_000}")
            stop(graceful)

        return with_report

    def _look(self) -> None:
        """Report what has changed. A report that cannot be sent is tried again at the next look."""
        if self._stops:
            return
        at = time.monotonic()
        newest = 0.0
        for worker in list(self._server.WORKERS.values()):
            beat = worker.tmp.last_update()
            if beat > at:  # the time of day, at which its file was made: it has not begun
                continue
            newest = max(newest, beat)
            if self._ready_from is not None and worker.age >= self._ready_from:
                self._ready_from = None if self._send("READY=1") else self._ready_from
        is_due = self._ping_every > 0 and at >= self._ping_at
        if is_due and newest > self._beat and self._send("WATCHDOG=1"):
            self._beat, self._ping_at = newest, at + self._ping_every

    def _send(self, state: str) -> bool:
        """Whether systemd has it. Never waits; the first failure is logged."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError as exc:
            if not self._has_failed:
                self._has_failed = True
                logger.warning("systemd does not take %s: %s.", state.partition("\n")[0], exc)
            return False
        return True
