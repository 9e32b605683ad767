"""The command `halt-chat`: what it does without a word, its options, the browser, the demo model."""

from __future__ import annotations

import gc
import importlib.util
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from halt import VERSION
from halt.config import environment
from halt.config.settings import Config
from halt.providers import embedded_model
from halt.server import command_line, gunicorn_conf, page_opener
from halt.server import serve as server
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import (
    EXIT_TIMEOUT,
    ROOT,
    HaltServer,
    StartHalt,
    eventually,
    halt_environment,
    refused_command,
)
from tests.support.pseudo_terminal import TAKE_TERMINAL, Terminal

HALT = [sys.executable, "-m", "halt"]
#: In a shell and from any folder: load all, say whether the settings will do, and leave.
CHECK = shlex.join([sys.executable, str(ROOT / "halt"), "--check-config"])


class Command(HaltServer):
    """Halt as `halt-chat` starts it."""

    command = ("-m", "halt")


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`halt-chat` with these arguments, to its end."""
    return subprocess.run(
        [*HALT, *args],
        cwd=ROOT,
        env=halt_environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", [(), ("serve",)])
def test_it_serves_and_its_options_come_before_their_variables(
    name: tuple[str, ...], shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """`halt-chat OPTIONS` is `halt-chat serve OPTIONS`; what is no option of Halt's is gunicorn's."""
    server = Command(
        {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HALT_DATA": "/nowhere", "PORT": "1"},
        *(*name, "--port", "0", "--base-url", shared_fake.base_url, "--model", "count?n=3"),
        *("--data", str(tmp_path / "data"), "--host", "127.0.0.2", "--keep-alive", "7"),
    )
    try:
        assert server.host == "127.0.0.2"
        server.wait_printed(re.escape(f"It talks to count?n=3 at {shared_fake.base_url}"))
        assert server.client().get("/").status == 200
        assert (tmp_path / "data" / "halt.db").exists()
    finally:
        server.close()


def test_a_wrong_setting_ends_it_with_one_line() -> None:
    """As it ends `python app.py`."""
    done = run("--port", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "halt: PORT='none' is not allowed: use a whole number from 0 to 65535.\n"


@pytest.mark.parametrize("wrong", [("sevre",), ("serve", "app:app"), ("--prto",)])
def test_a_word_that_is_none_of_its_own_is_named(wrong: tuple[str, ...]) -> None:
    """And nothing is served."""
    done = run(*wrong)
    assert done.returncode == 2
    assert wrong[-1] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["app.py", "halt"])
def test_settings_of_the_current_folder_are_not_gunicorns(tmp_path: Path, command: str) -> None:
    """Nor is a module that lies there imported; a relative path is one of the current folder."""
    (tmp_path / "gunicorn.conf.py").write_text("bind = 'nowhere.invalid:1'\n")
    for name in ("flask", "openai", "gunicorn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    status, printed = refused_command(
        [sys.executable, str(ROOT / command), "--check-config"],
        tmp_path,
        {"HALT_DATA": "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
    )
    assert (status, printed) == (0, "")


def test_sigusr2_starts_a_master_that_takes_over(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """The new one has the same port and settings, and serves once the old one has left."""
    server = start_halt(shared_fake)
    server.process.send_signal(signal.SIGUSR2)
    server.wait_printed(r"(?s)(Halt is at \S+\nIt talks to [^\n]+\n).*\1")
    try:
        server.terminate()
        assert server.wait() == 0
        assert server.client().get("/").status == 200
    finally:
        os.killpg(server.process.pid, signal.SIGTERM)
        eventually(lambda: server.gone)


def test_a_ctrl_c_while_it_loads_prints_nothing(tmp_path: Path) -> None:
    """Also before its own modules are there: the first of them sends the signal here."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run("version", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_it_runs_with_its_standard_streams_closed() -> None:
    """As a service manager may start it."""
    script = f"exec {shlex.join([*HALT, 'serve', '--check-config'])} <&- >&- 2>&-"
    env = halt_environment({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "DISPLAY": ":0"})
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=env, check=False, timeout=60)
    assert done.returncode == 0


class WithoutInput(HaltServer):
    """`python app.py <&-`"""

    command = (
        "-c",
        "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, 'app.py'])",
    )


def test_a_server_starts_without_a_standard_input(shared_fake: FakeOpenAI) -> None:
    """Whether it is at a terminal is asked of a stream that is not there."""
    server = WithoutInput({"OPENAI_BASE_URL": shared_fake.base_url})
    try:
        assert server.client().get("/").status == 200
    finally:
        server.close()


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    """gunicorn would end with a traceback."""
    script = f"rmdir {shlex.quote(str(tmp_path))}; exec {CHECK}"
    status, printed = refused_command(["sh", "-c", script], tmp_path, {})
    assert status == 1
    assert re.fullmatch(r"halt: the current folder cannot be used: .*\n", printed)


def test_a_current_folder_that_cannot_be_entered_is_no_hindrance(tmp_path: Path) -> None:
    """As after `sudo -u halt` in a home of root's; a root without its privileges stands for it."""
    as_another = "setpriv --bounding-set=-dac_override,-dac_read_search" if not os.geteuid() else ""
    folder = tmp_path / "closed"
    folder.mkdir()
    settings = {"HALT_DATA": tmp_path / "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    assert refused_command(
        ["sh", "-c", f"chmod 0 .; exec {as_another} {CHECK}"], folder, settings
    ) == (
        0,
        "",
    )


def test_an_address_of_ipv6_may_stand_in_brackets() -> None:
    """As it does in a URL."""
    done = run("--host", "[::1]", "--port", "9", "--print-config")
    assert re.search(r"^bind += \['\[::1\]:9'\]$", done.stdout, re.M)


def test_help_names_the_commands() -> None:
    """gunicorn's own help has defaults that are not Halt's."""
    done = run("-h")
    assert done.returncode == 0
    for name in ("serve", "chat", "doctor", "demo", "version"):
        assert re.search(rf"^  {name} ", done.stdout, re.M)


def test_its_version_is_halts() -> None:
    """`--check` says how to update, and connects to nothing."""
    for command in (["version"], ["--version"], ["serve", "-v"]):
        assert run(*command).stdout == f"halt-chat {VERSION}\n"
    assert "asks no server" in run("version", "--check").stdout


def test_windows_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn does not run there, and would say so with a traceback."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^halt: .* use WSL there\.$"):
        command_line.main()


# --- the browser ----------------------------------------------------------------------------------


def test_the_page_opens_in_the_browser_of_a_desktop(
    shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """The address that the browser is given answers at once, although the start goes on."""
    told = tmp_path / "told"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >{told}.new && mv {told}.new {told}\n')
    browser.chmod(0o755)
    env = halt_environment(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "HALT_DATA": str(tmp_path / "data"),
            "BROWSER": f"{browser} %s",
            "DISPLAY": ":99",
        }
    )
    env.pop("SSH_CONNECTION", None)
    terminal = Terminal(HALT, env, str(ROOT))
    try:
        eventually(told.exists)
        url = told.read_text().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with urllib.request.urlopen(url) as page:
            assert b"<title>Halt</title>" in page.read()
    finally:
        terminal.close()


def test_the_server_leaves_with_its_terminal(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """The window is closed: the system's SIGHUP is no wish to read the settings again."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "HALT_DATA": str(tmp_path)}
    window, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *HALT, "--no-open"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=halt_environment(settings),
        start_new_session=True,
    )
    os.close(terminal)
    printed = b""
    try:
        while (at := re.search(rb"Halt is at (http://[\d.:]+)\r\n", printed)) is None:
            printed += os.read(window, 4096)
        with urllib.request.urlopen(at[1].decode()) as page:
            assert page.status == 200
        os.close(window)
        assert process.wait(EXIT_TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("more", "terminals", "opens"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({}, True, sys.platform == "darwin"),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "::1 1 ::1 22"}, True, False),
    ],
)
def test_a_browser_is_opened_for_a_person_at_a_desktop_alone(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], terminals: bool, opens: bool
) -> None:
    """Never without a terminal, a screen, or over SSH."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminals, raising=False)
    assert page_opener.has_desktop() is opens


@pytest.mark.parametrize("options", [[], ["--no-open"]])
def test_no_open_opens_nothing(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """At a desktop too."""
    published: dict[str, str] = {}

    def serve(_: Any) -> None:
        """Serve nothing."""

    monkeypatch.setattr(page_opener, "has_desktop", lambda: True)
    monkeypatch.setattr(environment, "publish", published.update)
    monkeypatch.setattr(server, "run_server", serve)
    assert CliRunner().invoke(command_line.commands, options).exit_code == 0
    assert published == ({} if options else {"HALT_OPEN_PAGE": "1"})


@pytest.mark.parametrize(("older_master", "opens"), [(0, True), (77, False)])
def test_a_master_that_replaces_another_opens_no_page(
    monkeypatch: pytest.MonkeyPatch, older_master: int, opens: bool
) -> None:
    """Nor does it where the one before it was started with `--no-open`: it has no such option."""
    opened: list[str] = []
    monkeypatch.setattr(page_opener, "open_page", opened.append)
    monkeypatch.setattr(gc, "freeze", lambda: None)  # of a master
    listeners = ["http://127.0.0.1:1"]
    master = SimpleNamespace(LISTENERS=listeners, halt_talks_to="m", master_pid=older_master)
    gunicorn_conf.when_ready(master, Config(open_page=True))
    assert opened == (["http://127.0.0.1:1/"] if opens else [])


@pytest.mark.parametrize(
    ("addresses", "page"),
    [
        (["http://127.0.0.1:8000"], "http://127.0.0.1:8000/"),
        (["http://[::1]:8000"], "http://[::1]:8000/"),
        (["http://0.0.0.0:80"], "http://127.0.0.1:80/"),
        (["http://[::]:80"], "http://[::1]:80/"),
        (["unix:/run/halt.sock", "https://192.168.1.2:8443"], "https://192.168.1.2:8443/"),
        (["unix:/run/halt.sock"], ""),
        ([], ""),
    ],
)
def test_the_page_is_at_an_address_that_a_browser_can_open(addresses: list[str], page: str) -> None:
    """Where Halt listens on all addresses it is this machine's own."""
    assert page_opener.page_of(addresses) == page


# --- the demo model -------------------------------------------------------------------------------


def demo(monkeypatch: pytest.MonkeyPatch, *options: str, there: bool) -> tuple[int, str, list[str]]:
    """Exit status and output of `halt-chat demo`, and the command that it ran."""
    ran: list[str] = []
    state = {"there": there}

    def install(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        ran.extend(command)
        state["there"] = True
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(embedded_model, "is_installed", lambda: state["there"])
    monkeypatch.setattr(
        embedded_model, "unavailable", lambda: None if state["there"] else "not there"
    )
    monkeypatch.setattr(subprocess, "run", install)
    done = CliRunner().invoke(command_line.commands, ["demo", *options])
    return done.exit_code, done.output, ran


def test_demo_says_that_the_model_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And installs nothing, asked to or not."""
    for options in ([], ["--install"]):
        status, said, ran = demo(monkeypatch, *options, there=True)
        assert (status, ran) == (0, [])
        assert said == f"The demo model {embedded_model.MODEL} is installed.\n"


def test_demo_prints_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the environment of this Halt; `--install` runs that very line."""
    status, said, ran = demo(monkeypatch, there=False)
    line = re.search(r"^    (.*)$", said, re.M)
    assert line is not None
    assert (status, ran) == (1, [])
    assert line[1].startswith(f"{sys.executable} -m pip install --no-deps --only-binary=:all: ")
    status, said, ran = demo(monkeypatch, "--install", there=False)
    assert (status, " ".join(ran)) == (0, line[1])
    assert said.endswith("is installed.\n")


def test_demo_uses_uv_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that uv made has none; where neither is there, a line says what to do."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    _, _, ran = demo(monkeypatch, "--install", there=False)
    assert ran[:5] == ["/bin/uv", "pip", "install", "--python", sys.executable]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, said, ran = demo(monkeypatch, "--install", there=False)
    assert (status, ran) == (1, [])
    assert f"{sys.executable} -m ensurepip" in said
