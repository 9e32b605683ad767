"""Helpers for tests of the Python library."""

from __future__ import annotations

import threading
from typing import Any

from halt import Halt
from halt.config.settings import Config
from halt.core.events import Event, is_terminal, text_of
from halt.core.service import GenerationService
from halt.testing.fake_openai import FakeOpenAI
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import wait_until


def fake_config(fake: FakeOpenAI, **more: Any) -> Config:
    """A Config for a fake upstream; this shell's settings are ignored."""
    return Config(
        **{"base_url": fake.base_url, "api_key": "fake", "model": "echo", "retries": 0, **more}
    )


def scripted_halt(upstream: ScriptedUpstream, **more: Any) -> Halt:
    """A library Halt with a scripted upstream."""
    return Halt(config=Config(**{"base_url": "http://scripted/v1", **more}), upstream=upstream)


def service_of(halt: Halt) -> GenerationService:
    """The service of a library Halt, which programs do not see."""
    return halt._generations


THREAD_PREFIXES = (
    "halt-follow-",
    "halt-run-",
    "halt-tool-",
    "halt-keeper",
    "halt-relay",
    "halt-frames",
)


def halt_threads() -> list[str]:
    """Names of the library's live threads."""
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_PREFIXES)
    ]


def wait_no_threads() -> None:
    """Wait until every thread of the library has ended."""
    wait_until(lambda: not halt_threads())


def complete_text(events: list[Event]) -> str:
    """The text of events, of which the last one, and no other, is terminal."""
    assert [is_terminal(event) for event in events].count(True) == 1
    assert is_terminal(events[-1])
    return "".join(text_of(event) for event in events)
