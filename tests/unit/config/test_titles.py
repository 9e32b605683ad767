"""Titles of providers and model servers, for people."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from halt.config.model_servers import server_title, title_of_name


@pytest.mark.parametrize(
    ("url", "owned_by", "title"),
    [
        ("https://api.openai.com/v1", (), "OpenAI"),
        ("https://eu.api.openai.com/v1", (), "OpenAI"),
        ("https://openrouter.ai/api/v1", ("library",), "OpenRouter"),
        ("https://notopenrouter.ai/api/v1", (), "notopenrouter.ai"),
        ("http://127.0.0.1:11434/v1", ("library",), "Ollama"),
        ("http://127.0.0.1:11434/v1", (), "127.0.0.1:11434"),
        ("http://10.0.0.5:9000/v1", ("x", "llamacpp"), "llama.cpp"),
        ("https://user:secret@llm.example/v1", (), "llm.example"),
    ],
)
def test_server_title_is_the_providers_or_products(
    url: str, owned_by: Sequence[str], title: str
) -> None:
    """A known host or a server's own word gives the title; a port alone does not."""
    assert server_title(url, owned_by) == title


def test_title_of_name_is_the_usual_spelling() -> None:
    """A name of the providers' file that is a known provider's is spelt as usual."""
    names = ("openai", "ollama", "lmstudio", "mistral", "azure", "work")
    titles = ["OpenAI", "Ollama", "LM Studio", "Mistral", "Azure OpenAI", "work"]
    assert [title_of_name(name) for name in names] == titles
