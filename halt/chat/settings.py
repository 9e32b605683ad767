"""Validates a conversation's settings: model, system prompt and its name, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TypeVar

from halt.config.settings import SAVED_NAME_MAX, SYSTEM_PROMPT_MAX
from halt.errors import RequestError, TooLarge
from halt.providers.catalog import valid_model_name
from halt.store.models import Preset, Settings

N = TypeVar("N", int, float)

TEMPERATURE_MAX = 2.0  # as in `halt.core.request.ChatRequest`
TOP_P_MAX = 1.0
TOKENS_MAX = 10_000_000


def checked_settings(settings: Settings) -> Settings:
    """Return the settings unchanged. Raises RequestError (TooLarge) that names the wrong field."""
    valid_model_name(settings.model)
    checked_system_prompt(settings.system_prompt or "")
    checked_sampling(settings)
    return settings


def checked_system_prompt(text: str) -> str:
    """The text with normalized line ends, stripped. Raises TooLarge."""
    text = text.replace("\r\n", "\n").strip()
    if len(text) > SYSTEM_PROMPT_MAX:
        raise TooLarge(
            f"The system prompt is longer than {SYSTEM_PROMPT_MAX:,} characters.",
            field="system_prompt",
        )
    return text


def checked_sampling(settings: Settings | Preset) -> None:
    """Raise RequestError that names the wrong field: temperature, top_p or max_tokens."""
    for name, field, value, most in (
        ("The temperature", "temperature", settings.temperature, TEMPERATURE_MAX),
        ("Top p", "top_p", settings.top_p, TOP_P_MAX),
    ):
        if value is not None and not (isfinite(value) and 0 <= value <= most):
            raise RequestError(f"{name} must be a number from 0 to {most:g}.", field=field)
    if settings.max_tokens is not None and not 1 <= settings.max_tokens <= TOKENS_MAX:
        raise RequestError(
            f"Max tokens must be a whole number from 1 to {TOKENS_MAX:,}.",
            field="max_tokens",
        )


def checked_name(raw: str) -> str:
    """The name of a prompt or a preset, on one line. Raises RequestError (`name`)."""
    name = " ".join(raw.split())
    if not 0 < len(name) <= SAVED_NAME_MAX:
        raise RequestError(f"Use 1 to {SAVED_NAME_MAX} characters as a name.", field="name")
    return name


def settings_from_form(form: Mapping[str, str], *system_prompts: str) -> Settings:
    """The settings in a form; an empty field means the default. Raises RequestError.

    `system_prompts`: the server's prompts; the form was filled with one of them. A field that
    still equals one of them means the default (None). An empty field means no system prompt.
    `prompt_name` is not checked: see `halt.chat.prompts`.
    """
    text = checked_system_prompt(form.get("system_prompt", system_prompts[0]))
    prompt_name = form.get("prompt_name") or None
    is_default = prompt_name is None and text in map(str.strip, system_prompts)
    system_prompt = None if is_default else text
    settings = Settings(
        model=form.get("model", ""),
        system_prompt=system_prompt,
        prompt_name=prompt_name if system_prompt else None,
        temperature=_number(form.get("temperature", ""), float),
        top_p=_number(form.get("top_p", ""), float),
        max_tokens=_number(form.get("max_tokens", ""), int),
    )
    return checked_settings(settings)


def preset_from_form(form: Mapping[str, str]) -> Preset:
    """The preset in a form, not checked; an empty field means the model's default."""
    return Preset(
        form.get("name", ""),
        temperature=_number(form.get("temperature", ""), float),
        top_p=_number(form.get("top_p", ""), float),
        max_tokens=_number(form.get("max_tokens", ""), int),
    )


def _number(raw: str, kind: type[N]) -> N | None:
    text = raw.strip().replace(",", ".")
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        return kind(-1)  # out of range for every field: its check names the valid range
