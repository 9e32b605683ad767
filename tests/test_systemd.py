"""Halt as a service: what it reports to systemd, and the unit and the image in `deploy/`."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halt.config import take_notify
from tests.conftest import ROOT, STARTS_WITHIN, HaltServer, eventually, settings
from tests.fake_openai import FakeOpenAI
from tests.resilience.servers import workers
from tests.reverse_proxies import binary

UNIT = ROOT / "deploy" / "halt.service"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
#: So short that each turn of the master's loop may report; the workers' heartbeat is slower.
WATCHDOG_MICROSECONDS = 40_000
TURNS = 5


class Systemd:
    """The socket on which systemd takes reports of a service."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))
        self.senders: set[int] = set()

    def report(self, within: float = STARTS_WITHIN) -> dict[str, str]:
        """The next report, awaited; BlockingIOError where there is none."""
        select.select([self._socket], [], [], within)
        size = socket.CMSG_SPACE(struct.calcsize("3i"))
        data, ancillary, _, _ = self._socket.recvmsg(4096, size)
        self.senders.add(struct.unpack("3i", ancillary[0][2])[0])
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def until(self, name: str) -> dict[str, str]:
        """The next report with this name, awaited; nothing but WATCHDOG=1 may come before it."""
        while name not in (report := self.report()):
            assert report == {"WATCHDOG": "1"}
        return report

    def left(self) -> list[dict[str, str]]:
        """The reports that are there now."""
        reports = []
        try:
            while True:
                reports.append(self.report(within=0))
        except BlockingIOError:
            return reports

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """systemd, with an abstract socket where the test's parameter says so."""
    kind = getattr(request, "param", "path")
    made = Systemd(f"@{tmp_path}/notify" if kind == "abstract" else str(tmp_path / "notify"))
    yield made
    made.close()


class HeldServer(HaltServer):
    """See `tests.held_app`."""

    command = ("-m", "gunicorn", "tests.held_app:app")

    def turn(self) -> None:
        """Have the master's main loop turn, by a signal that it logs and that changes nothing."""
        count = len(re.findall("signal: winch", self.printed))
        self.process.send_signal(signal.SIGWINCH)
        self.wait_printed(f"(?s)(signal: winch.*){{{count + 1}}}")


class Service:
    """A Halt that is started by systemd, whose workers wait while they load."""

    def __init__(self, folder: Path, fake: FakeOpenAI, systemd: Systemd, **more: object) -> None:
        os.mkfifo(folder / "pipe")
        self._pipe = os.open(folder / "pipe", os.O_RDWR)
        environment = {
            "NOTIFY_SOCKET": systemd.address,
            "WATCHDOG_USEC": WATCHDOG_MICROSECONDS,
            "HELD_BY": folder / "pipe",
            **more,
        }
        self.server = HeldServer(settings(fake, **environment), "--log-level", "info")

    def load(self, count: int = 1) -> None:
        """Let so many workers load."""
        os.write(self._pipe, b"." * count)

    def close(self) -> None:
        self.load(100)
        self.server.close()
        os.close(self._pipe)


StartService = Callable[..., Service]


@pytest.fixture
def start_service(
    tmp_path: Path, shared_fake: FakeOpenAI, systemd: Systemd
) -> Iterator[StartService]:
    """Start a service with settings; it leaves at the test's end."""
    with contextlib.ExitStack() as stack:

        def start(**more: object) -> Service:
            service = Service(tmp_path, shared_fake, systemd, **more)
            stack.callback(service.close)
            return service

        yield start


@pytest.mark.parametrize("systemd", ["path", "abstract"], indirect=True)
def test_a_service_is_ready_when_a_worker_serves(
    start_service: StartService, systemd: Systemd
) -> None:
    """READY=1 comes from the master once a worker has loaded, which then answers a request.

    STOPPING=1 comes at SIGTERM, and asks for the time that the setting gives.
    """
    service = start_service(HALT_GRACEFUL_TIMEOUT=100)
    server = service.server
    for _ in range(TURNS):  # it listens, and its main loop runs
        server.turn()
    assert systemd.left() == []
    service.load()
    assert systemd.report() == {"READY": "1"}
    assert server.client().get("/healthz").status == 200
    server.terminate()
    assert systemd.until("STOPPING") == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "120000000"}
    assert server.wait() == 0
    assert systemd.left() == []
    assert systemd.senders == {server.process.pid}


def test_the_watchdog_hears_of_workers_that_turn(
    start_service: StartService, systemd: Systemd
) -> None:
    """WATCHDOG=1 comes while one of two workers runs, never while both hang, and then again."""
    service = start_service(WEB_CONCURRENCY=2)
    server = service.server
    service.load(2)
    systemd.until("READY")
    first, second = workers(server)
    os.kill(first, signal.SIGSTOP)
    for _ in range(3):
        assert systemd.report() == {"WATCHDOG": "1"}
    os.kill(second, signal.SIGSTOP)
    server.turn()  # its last heartbeat may be told of
    server.turn()
    systemd.left()
    for _ in range(TURNS):
        server.turn()
    assert systemd.left() == []
    os.kill(first, signal.SIGCONT)
    assert systemd.report() == {"WATCHDOG": "1"}
    os.kill(second, signal.SIGCONT)


def test_a_reload_is_over_when_a_new_worker_serves(
    start_service: StartService, systemd: Systemd
) -> None:
    """RELOADING=1 comes at SIGHUP; READY=1 when a worker that was started since has loaded."""
    service = start_service()
    service.load()
    assert systemd.report() == {"READY": "1"}
    before = time.monotonic_ns()
    service.server.process.send_signal(signal.SIGHUP)
    reloading = systemd.until("RELOADING")
    assert before <= int(reloading["MONOTONIC_USEC"]) * 1000 <= time.monotonic_ns()
    for _ in range(TURNS):
        service.server.turn()
    assert {"READY": "1"} not in systemd.left()
    service.load()
    assert systemd.until("READY") == {"READY": "1"}
    assert service.server.client().get("/healthz").status == 200


def test_the_watchdog_of_another_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHDOG_PID names the process that is watched. All variables are taken away."""
    for process, seconds in ((os.getpid(), 1.5), (os.getpid() + 1, 0.0)):
        monkeypatch.setenv("NOTIFY_SOCKET", "@systemd")
        monkeypatch.setenv("WATCHDOG_USEC", "1500000")
        monkeypatch.setenv("WATCHDOG_PID", str(process))
        assert take_notify() == ("@systemd", seconds)
        assert take_notify() == ("", 0.0)
