"""The kinds of providers that the page offers: addresses of services, and what their forms need."""

from __future__ import annotations

from typing import NamedTuple

from halt.config.providers import Kind
from halt.config.settings import ANTHROPIC_URL, AZURE_VERSION, OPENAI_URL


class Preset(NamedTuple):
    """A choice of the form. An empty `base_url` has to be typed."""

    id: str
    title: str
    kind: Kind
    base_url: str = ""
    example: str = ""  # of an address
    needs_key: bool = True
    key_page: str = ""  # where the service's keys are made
    api_version: str = ""


_EXAMPLE = "http://127.0.0.1:11434/v1"

#: By ID, in the order of the form.
PRESETS = {
    preset.id: preset
    for preset in (
        Preset("compatible", "OpenAI-compatible", "openai", example=_EXAMPLE, needs_key=False),
        Preset(
            "openai",
            "OpenAI",
            "openai",
            OPENAI_URL,
            key_page="https://platform.openai.com/api-keys",
        ),
        Preset(
            "azure",
            "Azure OpenAI",
            "azure",
            example="https://NAME.openai.azure.com",
            api_version=AZURE_VERSION,
        ),
        Preset(
            "anthropic",
            "Anthropic",
            "anthropic",
            ANTHROPIC_URL,
            key_page="https://console.anthropic.com/settings/keys",
        ),
        Preset(
            "openrouter",
            "OpenRouter",
            "openai",
            "https://openrouter.ai/api/v1",
            key_page="https://openrouter.ai/keys",
        ),
        Preset(
            "groq",
            "Groq",
            "openai",
            "https://api.groq.com/openai/v1",
            key_page="https://console.groq.com/keys",
        ),
        Preset(
            "mistral",
            "Mistral",
            "openai",
            "https://api.mistral.ai/v1",
            key_page="https://console.mistral.ai/api-keys",
        ),
        Preset(
            "deepseek",
            "DeepSeek",
            "openai",
            "https://api.deepseek.com/v1",
            key_page="https://platform.deepseek.com/api_keys",
        ),
        Preset(
            "together",
            "Together AI",
            "openai",
            "https://api.together.xyz/v1",
            key_page="https://api.together.ai/settings/api-keys",
        ),
    )
}
COMPATIBLE = PRESETS["compatible"]


def preset_for(base_url: str) -> Preset:
    """The preset whose service has this address; the general one for others."""
    address = base_url.rstrip("/")
    return next((one for one in PRESETS.values() if one.base_url == address), COMPATIBLE)
