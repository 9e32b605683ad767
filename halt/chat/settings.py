"""Validates a conversation's settings: model, system prompt, temperature, max tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TypeVar

from halt.errors import RequestError, TooLarge
from halt.providers.catalog import valid_model_name
from halt.store.models import Settings

N = TypeVar("N", int, float)

TEMPERATURE_MAX = 2.0  # as in `halt.core.request.ChatRequest`
TOKENS_MAX = 10_000_000
SYSTEM_PROMPT_MAX = 100_000  # characters


def checked_settings(settings: Settings) -> Settings:
    """Return the settings unchanged. Raises RequestError (TooLarge) that names the wrong field."""
    valid_model_name(settings.model)
    if len(settings.system_prompt or "") > SYSTEM_PROMPT_MAX:
        raise TooLarge(
            f"The system prompt is longer than {SYSTEM_PROMPT_MAX:,} characters.",
            field="system_prompt",
        )
    temperature, max_tokens = settings.temperature, settings.max_tokens
    if temperature is not None and not (
        isfinite(temperature) and 0 <= temperature <= TEMPERATURE_MAX
    ):
        raise RequestError(
            f"The temperature must be a number from 0 to {TEMPERATURE_MAX:g}.", field="temperature"
        )
    if max_tokens is not None and not 1 <= max_tokens <= TOKENS_MAX:
        raise RequestError(
            f"Max tokens must be a whole number from 1 to {TOKENS_MAX:,}.",
            field="max_tokens",
        )
    return settings


def settings_from_form(form: Mapping[str, str], *system_prompts: str) -> Settings:
    """The settings in a form; an empty field means the default. Raises RequestError.

    `system_prompts`: the server's prompts; the form was filled with one of them. A field that
    still equals one of them means the default (None). An empty field means no system prompt.
    """
    system_prompt = form.get("system_prompt", system_prompts[0]).replace("\r\n", "\n").strip()
    settings = Settings(
        model=form.get("model", ""),
        system_prompt=None if system_prompt in map(str.strip, system_prompts) else system_prompt,
        temperature=_number(form.get("temperature", ""), float),
        max_tokens=_number(form.get("max_tokens", ""), int),
    )
    return checked_settings(settings)


def _number(raw: str, kind: type[N]) -> N | None:
    text = raw.strip()
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        return kind(-1)  # out of range for every field: its check names the valid range
