"""The environment of the commands, and chats in terminals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.chat_command import CHAT, Environment, Open
from tests.support.halt_server import ROOT, halt_environment
from tests.support.pseudo_terminal import Terminal


@pytest.fixture
def env(shared_fake: FakeOpenAI, tmp_path: Path) -> Environment:
    """The commands' environment: the fake upstream and a separate data folder."""
    return halt_environment(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "XDG_DATA_HOME": str(tmp_path),
            "HOME": str(tmp_path),
        }
    )


@pytest.fixture
def chat(env: Environment) -> Iterator[Open]:
    """Start a chat in a terminal, which is closed at the test's end."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, columns: int = 100, **environment: str) -> Terminal:
            command = [*CHAT, *options]
            terminal = Terminal(command, {**env, **environment}, str(ROOT), columns=columns)
            stack.callback(terminal.close)
            return terminal

        yield start
