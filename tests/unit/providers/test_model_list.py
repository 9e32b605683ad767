"""The list of models in every shape that servers send, and the default model."""

from __future__ import annotations

from typing import Any

import pytest

from halt.providers.model_list import default_model_name, parse_models


def names(value: object) -> list[str] | None:
    models = parse_models(value)
    return None if models is None else [model.name for model in models]


def chats(name: str, **fields: Any) -> bool:
    models = parse_models([{"id": name, **fields}])
    assert models is not None
    return models[0].can_chat


@pytest.mark.parametrize(
    "value",
    [
        {"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b"}]},
        [{"id": "a"}, {"id": "b"}],  # Together
        ["a", "b"],
        {"models": ["a", "b"]},
        {"models": [{"name": "a", "model": "a"}, {"name": "b"}]},  # Ollama
        {"models": [{"name": "a"}], "object": "list", "data": [{"id": "a"}, {"id": "b"}]},
        {"data": [], "models": [{"name": "a"}, {"name": "b"}]},
        {"data": None, "models": [{"name": "a"}, {"name": "b"}]},
        {"data": {"models": [{"id": "a"}, {"id": "b"}]}, "success": True},
        {"result": [{"id": "x", "name": "a"} | {"id": "a"}, {"id": "b"}], "success": True},
        [{"id": "a"}, {"id": "b"}, {"id": "a"}],
        [None, {"id": None}, {"id": 5}, {"id": "a"}, {"id": "b"}],
        [{"id": "a", "created": "2026", "owned_by": None, "extra": {"x": 1}}, {"id": "b"}],
    ],
)
def test_parse_models_reads_every_shape_of_a_list(value: object) -> None:
    """An array, another field, or names alone are read; a repeated name counts once."""
    assert names(value) == ["a", "b"]


@pytest.mark.parametrize("value", [{"data": []}, {"models": []}, [], {"data": None}])
def test_parse_models_returns_an_empty_list(value: object) -> None:
    """The list of a server that has loaded nothing is empty."""
    assert names(value) == []


@pytest.mark.parametrize(
    "value",
    [{}, None, 7, "a", {"error": "x"}, [{}], [7], [None], {"data": [{"x": 1}]}, {"id": "a"}],
)
def test_parse_models_returns_none_for_anything_else(value: object) -> None:
    """A value that is no list gives None, so that the caller reports it."""
    assert names(value) is None


@pytest.mark.parametrize(
    ("field", "value", "chat"),
    [
        ("type", "llm", True),  # LM Studio
        ("type", "vlm", True),
        ("type", "embeddings", False),
        ("type", "chat", True),  # Together
        ("type", "language", True),
        ("type", "rerank", False),
        ("type", "image", False),
        ("type", "moderation", False),
        ("type", "transcribe", False),
        ("capabilities", {"completion_chat": True, "vision": False}, True),  # Mistral
        ("capabilities", {"completion_chat": False, "audio": True}, False),
        ("capabilities", ["completion", "tools"], True),  # Ollama, llama.cpp
        ("capabilities", ["embedding"], False),
        ("supports_chat", True, True),  # Fireworks
        ("supports_chat", False, False),
        ("mode", "chat", True),  # LiteLLM
        ("mode", "embedding", False),
        ("mode", "audio_transcription", False),
        ("endpoints", ["generate", "chat"], True),  # Cohere
        ("endpoints", ["embed"], False),
        ("task", {"name": "Text Generation"}, True),  # Cloudflare
        ("task", {"name": "Text Embeddings"}, False),
        ("task", "feature-extraction", False),
        ("pipeline_tag", "text-generation", True),
        ("architecture", {"output_modalities": ["text"]}, True),  # OpenRouter
        ("architecture", {"output_modalities": ["image"]}, False),
        ("supportedGenerationMethods", ["generateContent"], True),  # Gemini
        ("supportedGenerationMethods", ["embedContent"], False),
        ("active", False, False),  # Groq
    ],
)
def test_fields_of_a_model_decide_whether_it_chats(field: str, value: object, chat: bool) -> None:
    """The fields of a model decide whether it chats, before its name."""
    name = "embed-chat" if chat else "sage"
    assert chats(name, **{field: value}) is chat


@pytest.mark.parametrize(
    "name",
    [
        "text-embedding-3-small",
        "text-embedding-nomic-embed-text-v1.5",
        "nomic-embed-text:latest",
        "BAAI/bge-m3",
        "bge-reranker-v2",
        "thenlper/gte-large",
        "intfloat/e5-mistral-7b-instruct",
        "mxbai-embed-large",
        "sentence-transformers/all-MiniLM-L6-v2",
        "jina-reranker-v2",
        "whisper-1",
        "openai/whisper-large-v3",
        "distil-whisper-large-v3-en",
        "tts-1-hd",
        "gpt-4o-mini-tts",
        "playai-tts",
        "gpt-4o-transcribe",
        "dall-e-3",
        "gpt-image-1",
        "black-forest-labs/flux-schnell",
        "stabilityai/stable-diffusion-xl",
        "imagen-4",
        "sora-2",
        "omni-moderation-latest",
        "meta-llama/Llama-Guard-3-8B",
        "llama-guard3:8b",
        "davinci-002",
        "gpt-realtime",
    ],
)
def test_model_whose_name_excludes_chat_is_no_default(name: str) -> None:
    """A model for embeddings, speech or images is listed and is no default."""
    models = parse_models([{"id": name, "object": "model"}, {"id": "qwen3-8b"}])
    assert models is not None
    assert default_model_name(models) == "qwen3-8b"
    assert models[0].name == name


@pytest.mark.parametrize(
    "name",
    [
        "gpt-5-mini",
        "llama3.2:latest",
        "qwen3-8b",
        "mistral-small-latest",
        "claude-haiku-4-5",
        "deepseek-ai/DeepSeek-R1",
        "gemini-2.5-flash",
        "models/gemini-2.5-pro",
        "google/gemma-3-27b-it",
        "phi4",
        "command-r-plus",
        "glm-4.6",
        "kimi-k2",
        "grok-4",
        "openai/gpt-oss-120b",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "llava:13b",
        "codestral-latest",
        "safeguarding-tutor",
        "m-1",
    ],
)
def test_first_model_that_may_chat_is_the_default(name: str) -> None:
    """The first model that may chat is the default; a name that says nothing may chat."""
    models = parse_models({"data": [{"id": name, "type": "model"}, {"id": "other"}]})
    assert models is not None
    assert default_model_name(models) == name


def test_default_of_a_list_without_chat_models_is_its_first() -> None:
    """Without a chat model the first model is the default; an empty list has none."""
    models = parse_models([{"id": "my-embed"}, {"id": "whisper-1"}])
    assert models is not None
    assert default_model_name(models) == "my-embed"
    assert default_model_name([]) == ""
