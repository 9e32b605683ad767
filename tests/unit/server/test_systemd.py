"""Halt as a service: what it reports to systemd, and the unit and the image in `deploy/`."""

from __future__ import annotations

import contextlib
import json
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
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from halt import VERSION
from halt.config import open_files
from halt.config.environment import load
from halt.config.settings import Config, ConfigError
from halt.server import gunicorn_conf
from halt.server.command_line import commands
from halt.server.systemd import CLOSES_WITHIN, take_notify
from halt.testing.fake_openai import FakeOpenAI
from tests.resilience.servers import workers
from tests.support.halt_server import ROOT, START_TIMEOUT, HaltServer, settings
from tests.support.ports import free_port
from tests.support.reverse_proxies import binary, replace_all
from tests.support.waiting import SERVER_TIMEOUT, wait_until

pytestmark = pytest.mark.slow

UNIT = ROOT / "deploy" / "halt.service"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
#: So short that each turn of the master's loop may report; the workers' heartbeat is slower.
WATCHDOG_MICROSECONDS = 40
TURNS = 5


class Systemd:
    """The socket on which systemd receives the reports of a service."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))
        self.senders: set[int] = set()

    def report(self, timeout: float = START_TIMEOUT) -> dict[str, str]:
        """Wait for the next report and return it. Raises BlockingIOError if none comes."""
        select.select([self._socket], [], [], timeout)
        size = socket.CMSG_SPACE(struct.calcsize("3i"))
        data, ancillary, _, _ = self._socket.recvmsg(4096, size)
        self.senders.add(struct.unpack("3i", ancillary[0][2])[0])
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def wait_report(self, name: str) -> dict[str, str]:
        """Wait for the report with this name; only WATCHDOG=1 may come before it."""
        while name not in (report := self.report()):
            assert report == {"WATCHDOG": "1"}
        return report

    def reports(self) -> list[dict[str, str]]:
        """The reports that have arrived."""
        reports = []
        try:
            while True:
                reports.append(self.report(timeout=0))
        except BlockingIOError:
            return reports

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """systemd, with an abstract socket if the test's parameter is "abstract"."""
    kind = getattr(request, "param", "path")
    receiver = Systemd(f"@{tmp_path}/notify" if kind == "abstract" else str(tmp_path / "notify"))
    yield receiver
    receiver.close()


class HeldServer(HaltServer):
    """See `tests.support.held_app`."""

    command = ("-m", "gunicorn", "tests.support.held_app:app")

    def turn_main_loop(self) -> None:
        """Make the master's main loop turn, by a signal that it logs and that changes nothing."""
        count = self.printed.count("signal: winch")
        self.process.send_signal(signal.SIGWINCH)
        wait_until(lambda: self.printed.count("signal: winch") > count, SERVER_TIMEOUT)


class Service:
    """A Halt as started by systemd; its workers wait while they load."""

    def __init__(
        self, folder: Path, fake: FakeOpenAI, systemd: Systemd, **other_settings: object
    ) -> None:
        os.mkfifo(folder / "pipe")
        self._pipe = os.open(folder / "pipe", os.O_RDWR)
        environment = {
            "NOTIFY_SOCKET": systemd.address,
            "WATCHDOG_USEC": WATCHDOG_MICROSECONDS,
            "HELD_BY": folder / "pipe",
            **other_settings,
        }
        self.server = HeldServer(settings(fake, **environment), "--log-level", "info")

    def load(self, count: int = 1) -> None:
        """Let this many workers load."""
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
    """Start a service with settings; it is stopped at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(**environment: object) -> Service:
            service = Service(tmp_path, shared_fake, systemd, **environment)
            stack.callback(service.close)
            return service

        yield start


def test_service_is_ready_once_a_worker_serves(
    start_service: StartService, systemd: Systemd
) -> None:
    """The master reports READY=1 once a worker has loaded, which then answers.

    STOPPING=1 comes at SIGTERM, and requests the time that the setting gives.
    """
    service = start_service(HALT_GRACEFUL_TIMEOUT=100)
    server = service.server
    for _ in range(TURNS):  # it listens, and its main loop runs
        server.turn_main_loop()
    assert systemd.reports() == []
    service.load()
    assert systemd.report() == {"READY": "1"}
    assert server.client().get("/healthz").status == 200
    server.terminate()
    assert systemd.wait_report("STOPPING") == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "120000000"}
    assert server.wait() == 0
    assert systemd.reports() == []
    assert systemd.senders == {server.process.pid}


def suspend_process(process: int) -> None:
    """Suspend a process; return once it does not run any more."""
    os.kill(process, signal.SIGSTOP)
    stat = Path(f"/proc/{process}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", SERVER_TIMEOUT)


@pytest.mark.parametrize("systemd", ["abstract"], indirect=True)
def test_watchdog_is_fed_while_a_worker_runs(start_service: StartService, systemd: Systemd) -> None:
    """WATCHDOG=1 comes while one of two workers runs, never while both hang, and then again."""
    service = start_service(WEB_CONCURRENCY=2)
    server = service.server
    service.load(2)
    systemd.wait_report("READY")
    first, second = workers(server)
    suspend_process(first)
    for _ in range(2):
        assert systemd.report() == {"WATCHDOG": "1"}
    suspend_process(second)
    server.turn_main_loop()  # may report its last heartbeat
    server.turn_main_loop()
    systemd.reports()
    for _ in range(TURNS):
        server.turn_main_loop()
    assert systemd.reports() == []
    os.kill(first, signal.SIGCONT)
    assert systemd.report() == {"WATCHDOG": "1"}
    os.kill(second, signal.SIGCONT)


def test_reload_is_ready_once_a_new_worker_serves(
    start_service: StartService, systemd: Systemd
) -> None:
    """RELOADING=1 comes at SIGHUP; READY=1 when a worker that was started since has loaded."""
    service = start_service()
    service.load()
    assert systemd.report() == {"READY": "1"}
    start = time.monotonic_ns()
    service.server.process.send_signal(signal.SIGHUP)
    reloading = systemd.wait_report("RELOADING")
    assert start <= int(reloading["MONOTONIC_USEC"]) * 1000 <= time.monotonic_ns()
    for _ in range(TURNS):
        service.server.turn_main_loop()
    assert {"READY": "1"} not in systemd.reports()
    service.load()
    assert systemd.wait_report("READY") == {"READY": "1"}
    assert service.server.client().get("/healthz").status == 200


def test_take_notify_ignores_the_watchdog_of_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A watchdog of another process (WATCHDOG_PID) is ignored; all variables are removed from the
    environment.
    """
    for process, seconds in ((os.getpid(), 1.5), (os.getpid() + 1, 0.0)):
        monkeypatch.setenv("NOTIFY_SOCKET", "@systemd")
        monkeypatch.setenv("WATCHDOG_USEC", "1500000")
        monkeypatch.setenv("WATCHDOG_PID", str(process))
        assert take_notify() == ("@systemd", seconds)
        assert take_notify() == ("", 0.0)
    for value in ("", "soon", "-1", "9" * 400, "9" * 5000):
        monkeypatch.setenv("WATCHDOG_USEC", value)
        assert take_notify() == ("", 0.0)


# --- the unit -------------------------------------------------------------------------------------


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which needs no running systemd."""
    return subprocess.run(
        [binary("systemd-analyze"), *args],
        env={**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_unit_is_valid_for_systemd(tmp_path: Path) -> None:
    """The unit has no misspelt directive and no refused value; the test replaces only the
    program.
    """
    unit = tmp_path / UNIT.name
    unit.write_text(replace_all(UNIT.read_text(), ("/opt/halt/bin/halt-chat", sys.executable)))
    result = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_unit_exposure_is_below_two() -> None:
    """systemd rates the unit's exposure below 2 of 10."""
    result = analyze("security", "--offline=true", "--threshold=19", str(UNIT))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Overall exposure level for halt\.service: [01]\.\d ", result.stdout)


def test_unit_starts_the_installed_command_with_known_settings() -> None:
    """The unit starts the installed command with its arguments and with settings that exist."""
    unit = directives(UNIT)
    (start,) = unit["ExecStart"]
    assert_is_the_command(shlex.split(start.removeprefix("/opt/halt/bin/")))
    names = {field.metadata["env"] for field in fields(Config)}
    assert {setting.partition("=")[0] for setting in unit["Environment"]} <= names
    example = (ROOT / "deploy" / "halt.env").read_text()
    assert set(re.findall(r"^#?(\w+)=", example, re.M)) <= names


def test_unit_times_exceed_those_of_the_master() -> None:
    """The unit's times exceed the master's: it replaces a hanging worker before the watchdog; a
    stop includes the grace.
    """
    unit = directives(UNIT)
    assert int(unit["WatchdogSec"][0]) >= 1.5 * gunicorn_conf.HANGS_AFTER
    assert int(unit["TimeoutStopSec"][0]) >= Config().graceful_timeout + CLOSES_WITHIN
    assert int(unit["LimitNOFILE"][0]) == open_files.WANTED


def directives(unit: Path) -> dict[str, list[str]]:
    """The values of each directive."""
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.M):
        values.setdefault(name, []).append(value)
    return values


def assert_is_the_command(arguments: list[str]) -> None:
    """The words are a command line of an installed Halt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments[0] in project["scripts"]
    assert arguments[1:] == ["serve"]
    assert "serve" in commands.commands


# --- the image ------------------------------------------------------------------------------------


INSTRUCTIONS = {
    *("FROM", "ARG", "RUN", "USER", "ENV", "VOLUME", "EXPOSE"),
    *("STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),  # COPY needs nothing: pip has all of it
}


class Image:
    """A Containerfile: its instructions in order, and the last one of each kind."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"^#.*\n", "", text, flags=re.M)
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        self.steps = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line]
        self.last = dict(self.steps)


@pytest.fixture(scope="module")
def image() -> Image:
    """The image of `deploy/`, which no test builds."""
    return Image(CONTAINERFILE.read_text())


def test_image_runs_halt_as_its_own_user(image: Image) -> None:
    """The instructions are known, the command and the version are Halt's, the user is not root."""
    assert image.last.keys() <= INSTRUCTIONS
    assert_is_the_command([*json.loads(image.last["ENTRYPOINT"]), *json.loads(image.last["CMD"])])
    assert image.last["ARG"] == f"HALT_VERSION={VERSION}"
    user = image.last["USER"]
    kinds = [kind for kind, _ in image.steps]
    assert user != "root"
    assert f" {user} " in image.last["RUN"].partition("&&")[2]
    assert kinds.index("USER") > kinds.index("RUN")
    assert image.last["STOPSIGNAL"] == "SIGTERM"


def test_image_keeps_data_in_the_volume_and_needs_a_token(image: Image) -> None:
    """The image keeps its data in the volume and listens for other machines, which needs
    HALT_TOKEN.
    """
    environment = dict(setting.split("=") for setting in shlex.split(image.last["ENV"]))
    names = {field.metadata["env"] for field in fields(Config)}
    assert environment.keys() <= names | {"PYTHONUNBUFFERED"}
    assert environment["HALT_DATA"] == image.last["VOLUME"]
    assert environment["PORT"] == image.last["EXPOSE"]
    with pytest.raises(ConfigError, match="no HALT_TOKEN is set"):
        load(environment)
    assert load({**environment, "HALT_TOKEN": "a-long-token"}).host == "0.0.0.0"


def test_image_health_check_fails_where_nothing_listens(image: Image, halt: HaltServer) -> None:
    """The image's health check needs Python alone, passes at a Halt, and fails at a closed port."""
    command = json.loads(image.last["HEALTHCHECK"].partition("CMD ")[2])
    assert command[0] == "python"
    for port, is_healthy in ((halt.port, True), (free_port(), False)):
        result = subprocess.run(
            [sys.executable, *command[1:]],
            env={"PORT": str(port)},
            capture_output=True,
            check=False,
        )
        assert (result.returncode == 0) == is_healthy, result.stderr
