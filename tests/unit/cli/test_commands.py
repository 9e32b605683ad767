"""The command `halt-chat`: without a subcommand, its options, the browser, the demo model."""

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
    halt_environment,
    refused_command,
)
from tests.support.pseudo_terminal import TAKE_TERMINAL, Terminal
from tests.support.waiting import SERVER_TIMEOUT, wait_until

HALT = [sys.executable, "-m", "halt"]
#: For a shell in any folder: load everything, check the settings, and end.
CHECK = shlex.join([sys.executable, str(ROOT / "halt"), "--check-config"])


class Command(HaltServer):
    """Halt as `halt-chat` starts it."""

    command = ("-m", "halt")


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `halt-chat` with these arguments to its end."""
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
def test_halt_chat_options_override_their_variables(
    name: tuple[str, ...], shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """`halt-chat OPTIONS` is `halt-chat serve OPTIONS`; other options are gunicorn's."""
    server = Command(
        {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "HALT_DATA": "/nowhere", "PORT": "1"},
        *(*name, "--port", "0", "--base-url", shared_fake.base_url, "--model", "count?n=3"),
        *("--data", str(tmp_path / "data"), "--host", "127.0.0.2", "--keep-alive", "7"),
    )
    try:
        assert server.host == "127.0.0.2"
        server.wait_printed(re.escape(f"Model server: count?n=3 at {shared_fake.base_url}"))
        assert server.client().get("/").status == 200
        assert (tmp_path / "data" / "halt.db").exists()
    finally:
        server.close()


def test_halt_chat_wrong_setting_ends_it_with_one_line() -> None:
    """A wrong setting ends `halt-chat` with the same line as `python app.py`."""
    process = run("--port", "none")
    assert (process.returncode, process.stdout) == (1, "")
    assert (
        process.stderr == "halt: PORT='none' is not allowed: use a whole number from 0 to 65,535.\n"
    )


@pytest.mark.parametrize("arguments", [("sevre",), ("serve", "app:app"), ("--prto",)])
def test_halt_chat_unknown_word_is_named(arguments: tuple[str, ...]) -> None:
    """An unknown command, argument or option is named, and nothing is served."""
    process = run(*arguments)
    assert process.returncode == 2
    assert arguments[-1] in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["app.py", "halt"])
def test_current_folders_gunicorn_conf_and_modules_are_not_loaded(
    tmp_path: Path, command: str
) -> None:
    """Neither gunicorn.conf.py nor a module of the current folder is loaded; a relative path is one
    of that folder.
    """
    (tmp_path / "gunicorn.conf.py").write_text("bind = 'nowhere.invalid:1'\n")
    for name in ("flask", "openai", "gunicorn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    status, output = refused_command(
        [sys.executable, str(ROOT / command), "--check-config"],
        tmp_path,
        {"HALT_DATA": "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
    )
    assert (status, output) == (0, "")


@pytest.mark.slow
def test_sigusr2_starts_a_master_that_takes_over(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """After SIGUSR2 a new master with the same port and settings serves once the old one
    has ended.
    """
    server = start_halt(shared_fake)
    server.process.send_signal(signal.SIGUSR2)
    server.wait_printed(r"(?s)(Halt is at \S+\nModel server: [^\n]+\n).*\1")
    try:
        server.terminate()
        assert server.wait() == 0
        assert server.client().get("/").status == 200
    finally:
        os.killpg(server.process.pid, signal.SIGTERM)
        wait_until(lambda: server.gone, SERVER_TIMEOUT)


def test_halt_chat_ctrl_c_while_it_loads_prints_nothing(tmp_path: Path) -> None:
    """Ctrl-C while `halt-chat` loads prints nothing, also before its own modules are loaded."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = run("version", PYTHONPATH=str(tmp_path))
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.slow
def test_halt_chat_runs_with_closed_standard_streams() -> None:
    """`halt-chat` runs with closed standard streams, as a service manager may start it."""
    script = f"exec {shlex.join([*HALT, 'serve', '--check-config'])} <&- >&- 2>&-"
    env = halt_environment({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "DISPLAY": ":0"})
    process = subprocess.run(["sh", "-c", script], cwd=ROOT, env=env, check=False, timeout=60)
    assert process.returncode == 0


class WithoutInput(HaltServer):
    """`python app.py <&-`"""

    command = (
        "-c",
        "import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, 'app.py'])",
    )


@pytest.mark.slow
def test_server_starts_without_a_standard_input(shared_fake: FakeOpenAI) -> None:
    """The server starts where standard input is missing: its check for a terminal allows that."""
    server = WithoutInput({"OPENAI_BASE_URL": shared_fake.base_url})
    try:
        assert server.client().get("/").status == 200
    finally:
        server.close()


def test_deleted_current_folder_is_named(tmp_path: Path) -> None:
    """A deleted current folder ends the start with one line that names it, not with gunicorn's
    traceback.
    """
    script = f"rmdir {shlex.quote(str(tmp_path))}; exec {CHECK}"
    status, output = refused_command(["sh", "-c", script], tmp_path, {})
    assert status == 1
    assert re.fullmatch(r"halt: the current folder cannot be used: .*\n", output)


@pytest.mark.slow
def test_unreadable_current_folder_does_no_harm(tmp_path: Path) -> None:
    """The server starts in a folder that it cannot read, as after `sudo -u halt` in root's home."""
    command_prefix = (
        "setpriv --bounding-set=-dac_override,-dac_read_search" if not os.geteuid() else ""
    )
    folder = tmp_path / "closed"
    folder.mkdir()
    settings = {"HALT_DATA": tmp_path / "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    assert refused_command(
        ["sh", "-c", f"chmod 0 .; exec {command_prefix} {CHECK}"], folder, settings
    ) == (
        0,
        "",
    )


@pytest.mark.slow
def test_host_option_accepts_ipv6_in_brackets() -> None:
    """The option --host accepts an IPv6 address in brackets, as in a URL."""
    process = run("--host", "[::1]", "--port", "9", "--print-config")
    assert re.search(r"^bind += \['\[::1\]:9'\]$", process.stdout, re.M)


def test_help_names_the_commands() -> None:
    """The help is Halt's own and names its commands; gunicorn's has other defaults."""
    process = run("-h")
    assert process.returncode == 0
    for name in ("serve", "chat", "doctor", "adopt", "user", "demo", "version"):
        assert re.search(rf"^  {name} ", process.stdout, re.M)


def test_command_line_loads_the_store_for_its_commands_alone() -> None:
    """`halt-chat` and its help import no SQLAlchemy, which would double the time to start."""
    script = "import sys, halt.server.command_line; print('sqlalchemy' in sys.modules)"
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_version_is_halts() -> None:
    """`version` prints Halt's version; `--check` prints how to update, and connects to nothing."""
    for command in (["version"], ["--version"], ["serve", "-v"]):
        assert run(*command).stdout == f"halt-chat {VERSION}\n"
    assert "asks no server" in run("version", "--check").stdout


def test_halt_chat_on_windows_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, where gunicorn does not run, `halt-chat` ends with one line."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^halt: .* use WSL there\.$"):
        command_line.main()


# --- the browser ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_page_opens_in_the_browser_of_a_desktop(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """At a desktop the browser opens the page, whose address answers while the start goes on."""
    opened_file = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(
        f'#!/bin/sh\necho "$1" >{opened_file}.new && mv {opened_file}.new {opened_file}\n'
    )
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
        wait_until(opened_file.exists, SERVER_TIMEOUT)
        url = opened_file.read_text().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with urllib.request.urlopen(url) as page:
            assert b"<title>Halt</title>" in page.read()
    finally:
        terminal.close()


def test_server_ends_with_its_terminal(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """SIGHUP of a closed terminal window ends the server and does not reload the settings."""
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
    output = b""
    try:
        while (match := re.search(rb"Halt is at (http://[\d.:]+)\r\n", output)) is None:
            output += os.read(window, 4096)
        with urllib.request.urlopen(match[1].decode()) as page:
            assert page.status == 200
        os.close(window)
        assert process.wait(EXIT_TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("environment", "terminals", "is_desktop"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({}, True, sys.platform == "darwin"),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "::1 1 ::1 22"}, True, False),
    ],
)
def test_at_a_desktop_needs_a_terminal_and_a_screen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminals: bool, is_desktop: bool
) -> None:
    """No browser is opened without a terminal, without a screen, or over SSH."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminals, raising=False)
    assert page_opener.has_desktop() is is_desktop


@pytest.mark.parametrize("options", [[], ["--no-open"]])
def test_no_open_option_opens_no_page(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """With `--no-open` no page is opened at a desktop."""
    published_variables: dict[str, str] = {}

    def serve(_: Any) -> None:
        """Serve nothing."""

    monkeypatch.setattr(page_opener, "has_desktop", lambda: True)
    monkeypatch.setattr(environment, "publish", published_variables.update)
    monkeypatch.setattr(server, "run_server", serve)
    assert CliRunner().invoke(command_line.commands, options).exit_code == 0
    assert published_variables == ({} if options else {"HALT_OPEN_PAGE": "1"})


@pytest.mark.parametrize(("older_master", "is_opened"), [(0, True), (77, False)])
def test_master_that_replaces_another_opens_no_page(
    monkeypatch: pytest.MonkeyPatch, older_master: int, is_opened: bool
) -> None:
    """A master that replaces another one opens no page, with `--no-open` or without."""
    opened_pages: list[str] = []
    monkeypatch.setattr(page_opener, "open_page", opened_pages.append)
    monkeypatch.setattr(gc, "freeze", lambda: None)  # of a master
    listeners = ["http://127.0.0.1:1"]
    master = SimpleNamespace(LISTENERS=listeners, halt_model_server="m", master_pid=older_master)
    gunicorn_conf.when_ready(master, Config(open_page=True))
    assert opened_pages == (["http://127.0.0.1:1/"] if is_opened else [])


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
def test_page_of_gives_an_address_that_a_browser_can_open(addresses: list[str], page: str) -> None:
    """`page_of` gives this machine's own address where Halt listens on all, and none for a Unix
    socket.
    """
    assert page_opener.page_of(addresses) == page


# --- the demo model -------------------------------------------------------------------------------


def run_demo(
    monkeypatch: pytest.MonkeyPatch, *options: str, is_installed: bool
) -> tuple[int, str, list[str]]:
    """Exit status and output of `halt-chat demo`, and the command that it ran."""
    commands: list[str] = []
    state = {"there": is_installed}

    def install(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.extend(command)
        state["there"] = True
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(embedded_model, "is_installed", lambda: state["there"])
    monkeypatch.setattr(
        embedded_model, "unavailable", lambda: None if state["there"] else "not there"
    )
    monkeypatch.setattr(subprocess, "run", install)
    result = CliRunner().invoke(command_line.commands, ["demo", *options])
    return result.exit_code, result.output, commands


def test_demo_reports_an_installed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`halt-chat demo` reports an installed model and installs nothing, with `--install` or
    without.
    """
    for options in ([], ["--install"]):
        status, output, commands = run_demo(monkeypatch, *options, is_installed=True)
        assert (status, commands) == (0, [])
        assert output == f"The demo model {embedded_model.MODEL} is installed.\n"


def test_demo_prints_the_command_that_installs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`halt-chat demo` prints the command for this environment, and `--install` runs that
    command.
    """
    status, output, commands = run_demo(monkeypatch, is_installed=False)
    line = re.search(r"^    (.*)$", output, re.M)
    assert line is not None
    assert (status, commands) == (1, [])
    assert line[1].startswith(f"{sys.executable} -m pip install --no-deps --only-binary=:all: ")
    status, output, commands = run_demo(monkeypatch, "--install", is_installed=False)
    assert (status, " ".join(commands)) == (0, line[1])
    assert output.endswith("is installed.\n")


def test_demo_uses_uv_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pip, as in an environment of uv, uv installs the model; without both a line names the
    remedy.
    """
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    _, _, commands = run_demo(monkeypatch, "--install", is_installed=False)
    assert commands[:5] == ["/bin/uv", "pip", "install", "--python", sys.executable]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, output, commands = run_demo(monkeypatch, "--install", is_installed=False)
    assert (status, commands) == (1, [])
    assert f"{sys.executable} -m ensurepip" in output
