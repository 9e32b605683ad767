"""Halt with custom tools, as a developer adds them: `gunicorn tests.support.tool_app:app`."""

from __future__ import annotations

import threading

from halt.app import create_app
from halt.core.tools import Tool


def obedient(ending: threading.Event) -> str:
    """Wait until the answer is stopped, then return."""
    print("obedient: at work", flush=True)
    ending.wait()
    print("obedient: told to stop", flush=True)
    return "stopped"


def stubborn() -> str:
    """Wait for ever, also after a Stop."""
    print("stubborn: at work", flush=True)
    threading.Event().wait()
    return "never"


def slow() -> str:
    """Take longer than the tool's timeout."""
    threading.Event().wait()
    return "never"


app = create_app(tools=[obedient, stubborn, Tool(slow, timeout=0.05)])
