"""Tokens of answers and of conversations: what providers reported, and estimates marked as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from halt.events import Done, Terminal

CHARS_A_TOKEN = 4  # of a prompt whose tokens nobody has counted: about right for English


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of prompts and of answers. `estimated`: some part of it is no provider's count."""

    prompt: int = 0
    answer: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.answer

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt,
            self.answer + other.answer,
            self.estimated or other.estimated,
        )


def tokens_of(
    ended: Terminal, usage: Mapping[str, Any] | None = None, prompt_chars: int = 0
) -> Tokens:
    """The tokens of one generation, from its terminal event.

    `usage` is what the provider has reported of it later (HALT_EXACT_USAGE), `prompt_chars` the
    characters it was asked with, for an estimate where there is no report. What was never sent to
    a model, or brought nothing back from one, costs nothing that could be known.
    """
    found: Mapping[str, Any] = usage or (ended.usage if isinstance(ended, Done) else None) or {}
    prompt, answer = _count(found, "prompt_tokens"), _count(found, "completion_tokens")
    if prompt is not None and answer is not None:
        return Tokens(prompt, answer)
    metrics = ended.metrics
    if answer is None:
        answer = metrics.tokens
        estimated = metrics.tokens_estimated and answer > 0
    else:
        estimated = False
    if prompt is None:
        prompt = -(-prompt_chars // CHARS_A_TOKEN) if answer else 0
        estimated = estimated or prompt > 0
    return Tokens(prompt, answer, estimated)


def total(tokens: list[Tokens]) -> Tokens:
    """The sum of several; marked as soon as one of them is an estimate."""
    return sum(tokens, Tokens())


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
