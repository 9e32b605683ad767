"""What a list of models says of each model's abilities, with entries as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from halt.model_info import UNKNOWN, Abilities
from halt.providers.model_list import parse_models

OPENROUTER = {
    "id": "qwen/qwen3-vl-8b-thinking",
    "canonical_slug": "qwen/qwen3-vl-8b-thinking",
    "name": "Qwen: Qwen3 VL 8B Thinking",
    "context_length": 131072,
    "architecture": {
        "modality": "text+image->text",
        "input_modalities": ["image", "text"],
        "output_modalities": ["text"],
        "tokenizer": "Qwen3",
        "instruct_type": None,
    },
    "top_provider": {"context_length": 65536, "max_completion_tokens": 32768},
    "per_request_limits": None,
    "supported_parameters": ["include_reasoning", "max_tokens", "reasoning", "tools"],
}
VLLM = {"id": "Qwen/Qwen3-8B", "owned_by": "vllm", "root": "Qwen/Qwen3-8B", "max_model_len": 40960}
LLAMA_CPP = {
    "id": "qwen3-8b.gguf",
    "aliases": [],
    "owned_by": "llamacpp",
    "meta": {"vocab_type": 2, "n_vocab": 151936, "n_ctx": 8192, "n_ctx_train": 40960},
}
OLD_LLAMA_CPP = {"id": "a.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 2048}}
LM_STUDIO = {
    "id": "qwen2-vl-7b-instruct",
    "type": "vlm",
    "publisher": "mlx-community",
    "state": "loaded",
    "max_context_length": 32768,
    "loaded_context_length": 4096,
    "capabilities": ["tool_use"],
}
OLLAMA_TAGS = {
    "name": "gemma3:4b",
    "model": "gemma3:4b",
    "details": {"format": "gguf", "family": "gemma3", "context_length": 131072},
    "capabilities": ["completion", "vision", "thinking"],
}
OLLAMA_PS = {"name": "qwen3:8b", "model": "qwen3:8b", "size": 6, "context_length": 4096}
ANTHROPIC = {
    "type": "model",
    "id": "claude-haiku-4-5",
    "display_name": "Claude Haiku 4.5",
    "max_input_tokens": 200_000,
    "max_tokens": 64_000,
    "capabilities": {
        "image_input": {"supported": True},
        "thinking": {"supported": True, "types": {"adaptive": {"supported": False}}},
        "pdf_input": {"supported": True},
    },
}
MISTRAL = {
    "id": "codestral-latest",
    "capabilities": {
        "completion_chat": True,
        "function_calling": True,
        "vision": False,
        "reasoning": False,
    },
    "max_context_length": 256000,
}
GROQ = {"id": "llama-3.3-70b-versatile", "active": True, "context_window": 131072}
FIREWORKS = {
    "id": "accounts/fireworks/models/kimi-k2",
    "kind": "HF_BASE_MODEL",
    "supports_chat": True,
    "supports_image_input": False,
    "supports_tools": True,
    "context_length": 131072,
}

OPENROUTER_PRICED = {
    "id": "openai/gpt-5-mini",
    "pricing": {
        "prompt": "0.00000025",
        "completion": "0.000002",
        "request": "0",
        "image": "0",
        "web_search": "0.01",
        "input_cache_read": "0.000000025",
    },
}
TOGETHER = {
    "id": "deepseek-ai/DeepSeek-V3.1",
    "type": "chat",
    "context_length": 131072,
    "pricing": {"hourly": 0, "input": 0.6, "output": 1.7, "base": 0, "cached_input": 0.06},
}


@pytest.mark.parametrize(
    ("entry", "abilities"),
    [
        (OPENROUTER, Abilities(context=131072, images=True, tools=True, thinking=True, pdf=False)),
        (
            {"id": "m", "architecture": {"input_modalities": ["text", "image", "file"]}},
            Abilities(images=True, pdf=True),
        ),
        (
            OPENROUTER
            | {"supported_parameters": ["seed"], "architecture": {"input_modalities": ["text"]}},
            Abilities(context=131072, images=False, tools=False, thinking=False, pdf=False),
        ),
        (
            {"id": "m", "supported_features": ["tools", "json_mode"], "input_modalities": ["text"]},
            Abilities(images=False, tools=True, thinking=False),
        ),
        (VLLM, Abilities(context=40960)),
        (LLAMA_CPP, Abilities(context=8192)),
        (OLD_LLAMA_CPP, Abilities(context=2048)),
        ({"id": "m", "capabilities": ["completion", "multimodal"]}, UNKNOWN),
        (LM_STUDIO, Abilities(context=4096, images=True, tools=True)),
        ({"id": "m", "type": "llm", "max_context_length": 8}, Abilities(context=8, images=False)),
        (OLLAMA_TAGS, Abilities(context=131072, images=True, thinking=True)),
        ({"name": "flux", "capabilities": ["image"]}, UNKNOWN),
        (OLLAMA_PS, Abilities(context=4096)),
        (ANTHROPIC, Abilities(context=200_000, images=True, thinking=True, pdf=True)),
        (MISTRAL, Abilities(context=256000, images=False, tools=True, thinking=False)),
        (GROQ, Abilities(context=131072)),
        (FIREWORKS, Abilities(context=131072, images=False, tools=True)),
        (
            OPENROUTER_PRICED,
            Abilities(input_price=0.25, cached_price=0.025, output_price=2.0),
        ),
        (
            {"id": "m:free", "pricing": {"prompt": "0", "completion": "0"}},
            Abilities(input_price=0.0, output_price=0.0),
        ),
        (
            {"id": "m", "pricing": {"prompt": 1.5e-07, "completion": 0.0000006}},
            Abilities(input_price=0.15, output_price=0.6),
        ),
        (
            TOGETHER,
            Abilities(context=131072, input_price=0.6, cached_price=0.06, output_price=1.7),
        ),
        (
            {"id": "m", "pricing": {"input": 3, "output": 7}},
            Abilities(input_price=3.0, output_price=7.0),
        ),
        ({"id": "m", "pricing": {"hourly": 12.6, "input": 0, "output": 0, "base": 0}}, UNKNOWN),
        ({"id": "gpt-5-mini", "object": "model", "owned_by": "system"}, UNKNOWN),
        ("qwen-vl-tools-128k", UNKNOWN),
    ],
)
def test_parse_models_reads_each_servers_words_for_abilities(
    entry: dict[str, Any] | str, abilities: Abilities
) -> None:
    """Each server's own fields are read; what a list does not say stays unknown."""
    models = parse_models([entry])
    assert models is not None
    assert models[0].abilities == abilities


NO_PRICES: tuple[Any, ...] = (
    *(None, True, [1], {"usd": 1}, "", "free", "$1", " 1", "1\n", "\u0661"),
    *(-1, "-1", "-0.5", float("nan"), "NaN", "inf", float("inf"), 10**400, "9" * 5000),
    *(10_001, "1e30", "1e-99", "1e99999999", 1e-12),
)
NO_PRICING: tuple[Any, ...] = (None, [], "0.1", 0.1, {}, {"prompt": {"prompt": "0.1"}})


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": value}
        for value in (None, True, -1, 0, 1e400, float("nan"), "many", [8], {"x": 1}, 10**30)
    ]
    + [
        {"architecture": "text"},
        {"architecture": {"input_modalities": "image"}},
        {"architecture": {"input_modalities": [None, {}]}},
        {"supported_parameters": {"tools": 1}},
        {"supported_parameters": []},
        {"capabilities": "vision"},
        {"capabilities": {"vision": "yes", "tools": {"supported": 1}}},
        {"meta": [1], "details": None, "top_provider": "x"},
        {"type": ["vlm"]},
    ]
    + [{"pricing": {name: value}} for name in ("prompt", "input", "output") for value in NO_PRICES]
    + [{"pricing": value} for value in NO_PRICING],
)
def test_odd_fields_of_a_model_say_nothing(fields: dict[str, Any]) -> None:
    """A field of another type says nothing, and its model is listed."""
    models = parse_models([{"id": "m", **fields}, {"id": "n"}])
    assert models is not None
    assert [(model.name, model.abilities) for model in models] == [("m", UNKNOWN), ("n", UNKNOWN)]


def test_number_in_a_text_is_a_context() -> None:
    """Some servers send numbers as texts."""
    models = parse_models([{"id": "m", "context_length": "32768"}])
    assert models is not None
    assert models[0].abilities == Abilities(context=32768)
