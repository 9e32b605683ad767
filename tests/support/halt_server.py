"""A Halt server in its own process, started as a user starts it, and helpers for its tests."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halt.core.notes import BROKEN, EDITED, STOPPED, before_prompt
from halt.testing.fake_openai import FakeOpenAI, Record
from halt.testing.scenarios import last_user_message
from tests.support.http_client import Client

ROOT = Path(__file__).parents[2]
# Deadlines in seconds, long enough for a machine under load.
START_TIMEOUT = 60.0  # a second is usual
EXIT_TIMEOUT = 20.0  # shorter than the waits that a fault would cause
REFUSAL_TIMEOUT = 60.0
PERSON_SETTINGS = {"HALT_TOKEN", "HALT_USERS", "HALT_USER_HEADER", "HALT_OIDC_ISSUER"}
RECORD_TIMEOUT = 20.0  # until the fake has recorded a request or a close


def halt_environment(env: dict[str, str]) -> dict[str, str]:
    """The environment of a Halt: the settings in `env`, and none of this shell's settings."""
    setting_prefixes = (
        "HALT_",
        "OPENAI_",
        "AZURE_",
        "ANTHROPIC_",
        "HOST",
        "PORT",
        "WEB_CONCURRENCY",
        "GUNICORN_CMD_ARGS",
        "DATABASE_URL",
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(setting_prefixes)}
    # Titles are the first words, so that the upstream gets the requests of the test alone.
    test_settings = {
        "PORT": "0",
        "PYTHONUNBUFFERED": "1",
        "HALT_TITLES": "words",
        "HALT_DISCOVER": "0",
    }
    return clean | test_settings | env


def refused_start(*args: str, **settings: Any) -> tuple[int, str]:
    """Start Halt with settings that it must refuse; return its exit status and output."""
    return refused_command([sys.executable, "app.py", *args], ROOT, settings)


def refused_command(command: list[str], folder: Path, settings: dict[str, Any]) -> tuple[int, str]:
    """Run a command that must refuse to start Halt; return its exit status and output."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=halt_environment({name: str(value) for name, value in settings.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=REFUSAL_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"Halt has started and printed:\n{process.communicate()[0]}")
    return process.returncode, printed


def new_id() -> str:
    """A new stream ID, chosen by the client."""
    return f"test-{secrets.token_hex(12)}"


def request_record(
    fake: FakeOpenAI, prompt: str, nth: int = 0, timeout: float = RECORD_TIMEOUT
) -> Record:
    """Wait for the nth request (from 0) whose last user message is `prompt`.

    A note of Halt before the prompt, about an incomplete or edited answer, is ignored.
    """

    def prompt_of(record: Record) -> str:
        text = last_user_message(record.body)
        for note in (STOPPED, BROKEN, EDITED):
            text = text.removeprefix(before_prompt(note, ""))
        return text

    def matches(record: Record) -> bool:
        return record.method == "POST" and prompt_of(record) == prompt

    return fake.wait_request(matches, timeout, nth)


class HaltServer:
    """gunicorn with Halt, as a user starts it, on a free port. Its output is kept."""

    python = sys.executable
    folder = ROOT
    command: tuple[str, ...] = ("app.py",)  # arguments of Python
    address_line = r"Halt is at http://([^\s,]+):(\d+)"  # printed when it listens

    def __init__(self, env: dict[str, str], *args: str) -> None:
        self._temporary_folder = tempfile.TemporaryDirectory(prefix="halt-data-")
        self.data_folder = Path(self._temporary_folder.name)
        test_defaults = {
            "HALT_DATA": str(self.data_folder),
            # Each browser of a test is a person of its own, unless the test sets another mode.
            "HALT_ALLOW_ANONYMOUS": "" if PERSON_SETTINGS & env.keys() else "1",
            # A flooding model reaches the default limit in four seconds, and a test on a busy
            # machine may need that long to stop it.
            "HALT_MAX_ANSWER_CHARS": "50000000",
        }
        clean = halt_environment({**test_defaults, **env})
        self.process = subprocess.Popen(
            [self.python, *self.command, *args],
            cwd=self.folder,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its own group, so that `gone` finds remaining processes
        )
        self._printed: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="halt-output", daemon=True)
        self._reader.start()
        match = self.wait_printed(self.address_line)
        self.host, self.port = match[1].strip("[]"), int(match[2])
        self.url = f"http://{match[1]}:{match[2]}"

    def client(self, **headers: str) -> Client:
        """A new client of this server."""
        return Client(self.host, self.port, **headers)

    @property
    def printed(self) -> str:
        """Its standard output and error so far."""
        return "".join(self._printed)

    def wait_printed(self, pattern: str, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """Wait until the output matches; fail with the output otherwise."""
        with self._changed:
            self._changed.wait_for(
                lambda: re.search(pattern, self.printed) or self.process.poll() is not None, timeout
            )
            match = re.search(pattern, self.printed)
        if match is None:
            self.kill()
            pytest.fail(f"Halt did not print {pattern!r}, but:\n{self.printed}")
        return match

    def terminate(self) -> None:
        """Send SIGTERM to the master."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = EXIT_TIMEOUT) -> int:
        """Wait for the exit; return the exit status."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """Kill master and workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def gone(self) -> bool:
        """Whether master and workers have exited."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def close(self) -> None:
        """Stop the server with SIGTERM; fail if it does not exit."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                pytest.fail(f"Halt did not leave after SIGTERM. It printed:\n{self.printed}")
        self._reader.join(5)
        stream = self.process.stdout
        if stream is not None:
            stream.close()
        self._temporary_folder.cleanup()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        for line in stream:
            with self._changed:
                self._printed.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


StartHalt = Callable[..., HaltServer]


def settings(upstream: FakeOpenAI | str, **more: object) -> dict[str, str]:
    """The settings of a Halt with this fake upstream, or with the upstream at this address."""
    url = upstream if isinstance(upstream, str) else upstream.base_url
    values = {name: str(value) for name, value in more.items()}
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "fake", **values}
