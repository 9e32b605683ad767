"""The command `chat` of tests: in a pipe, and in terminals (the fixture `chat`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from tests.support.halt_server import ROOT
from tests.support.pseudo_terminal import Terminal

CHAT = [sys.executable, "-m", "flask", "--app", "app", "chat"]

Environment = dict[str, str]
Open = Callable[..., Terminal]


def run_piped(
    env: Environment, prompt: str, *options: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Pipe a prompt in and wait for the end."""
    return subprocess.run(
        [*CHAT, *options],
        cwd=ROOT,
        env=env,
        input=prompt,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
