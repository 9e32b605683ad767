"""How one conversation's answers are asked for, as people and files say it: checked."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TypeVar

from halt.errors import RequestError, TooLarge
from halt.providers.catalog import checked_model
from halt.store.models import Settings

N = TypeVar("N", int, float)

TEMPERATURE_MAX = 2.0  # as in `halt.core.request.ChatRequest`
TOKENS_MAX = 10_000_000
SYSTEM_PROMPT_MAX = 100_000  # characters


def checked_settings(settings: Settings) -> Settings:
    """The same. Raises RequestError that names the field at fault."""
    checked_model(settings.model)
    if len(settings.system_prompt or "") > SYSTEM_PROMPT_MAX:
        raise TooLarge(
            f"The system prompt is longer than {SYSTEM_PROMPT_MAX:,} characters.",
            field="system_prompt",
        )
    heat, most = settings.temperature, settings.max_tokens
    if heat is not None and not (isfinite(heat) and 0 <= heat <= TEMPERATURE_MAX):
        raise RequestError(
            f"The temperature must be a number from 0 to {TEMPERATURE_MAX:g}.", field="temperature"
        )
    if most is not None and not 1 <= most <= TOKENS_MAX:
        raise RequestError(
            f"Max tokens must be a whole number from 1 to {TOKENS_MAX:,}.",
            field="max_tokens",
        )
    return settings


def settings_from_form(form: Mapping[str, str], *system_prompts: str) -> Settings:
    """What a form says; an empty field means the default. Raises RequestError.

    `system_prompts` are the server's own, one of which was shown in the form: it is kept as the
    default where it was left as it is. An emptied one means that there is to be none.
    """
    told = form.get("system_prompt", system_prompts[0]).replace("\r\n", "\n").strip()
    settings = Settings(
        model=form.get("model", ""),
        system_prompt=None if told in map(str.strip, system_prompts) else told,
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
        return kind(-1)  # which no field takes: it is refused with what the field does take
