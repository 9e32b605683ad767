"""Parses a server's list of models, and decides which of them can chat.

OpenAI's list is `{"data": [{"id": ...}]}`; others are a bare array, have `models` in place of
`data`, or names in place of objects. Models of other kinds (embeddings, speech, images) stay in the
list, but are not the default if there is a chat model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from halt.model_info import UNKNOWN, Abilities
from halt.providers.error_body import plain_fields
from halt.providers.model_abilities import abilities_of

NAME_MAX = 200  # characters of a model's name in a request
#: Fields that hold the list, the usual one first.
_LISTS = ("data", "models", "results", "items", "result")
#: Fields that hold a model's name for requests.
_NAMES = ("id", "model", "name", "modelid", "modelname")
#: Fields that hold a model's kind. In some lists `type` is always "model", which says nothing.
_KINDS = ("type", "modeltype", "mode", "task", "pipelinetag", "kind", "purpose")

_CHATS = re.compile(
    r"^text$|\b(?:chat|llm|vlm|language|completion|completions|generate|text.?generation"
    r"|image.?text.?to.?text|conversational|responses)\b"
)
_OTHER = re.compile(
    r"embed|rerank|rank|whisper|speech|audio|voice|\btts\b|\bstt\b|\basr\b|transcri|image|video"
    r"|moderation|classif|feature.?extraction|similarity|translation|ocr|detection|segmentation"
)
#: Names of models that cannot chat, for lists without any field for it.
_OTHER_NAMES = re.compile(
    r"embed|rerank|(?:^|[/_:-])(?:bge|gte|e5|minilm|colbert|colpali|clip|siglip|whisper|parakeet"
    r"|tts|stt|asr|kokoro|bark|xtts|piper|sdxl|sd3|flux|dall-?e|imagen|veo|sora|kling|musicgen"
    r"|davinci|babbage|ocr|guard|shieldgemma)(?=$|[/_:.\d-])"
    r"|sentence-?transformers|all-mpnet|moderation|stable-?diffusion|-tts|-stt|-asr|transcri"
    r"|speech|gpt-image|-image(?:-|$)|realtime|(?:^|[/_-])[a-z]*guard(?:[-_.]|$)|aqa$"
)


class Model(NamedTuple):
    """A model of a list. `can_chat`: as far as its fields or its name say."""

    name: str
    owned_by: str
    can_chat: bool
    abilities: Abilities = UNKNOWN


def parse_models(value: object) -> list[Model] | None:
    """Return the models of a decoded list, in its order; None if it is no list of models.

    Items without a name are skipped.
    """
    items = _items(value)
    if items is None:
        return None
    models: dict[str, Model] = {}
    for item in items:
        if model := _model(item):
            models.setdefault(model.name, model)
    return list(models.values()) if models or not items else None


def default_model_name(models: list[Model]) -> str:
    """Return the model for requests that name none: the first that can chat, else the first.

    Empty if there are no models.
    """
    return next(
        (model.name for model in models if model.can_chat), models[0].name if models else ""
    )


def is_name(text: str) -> bool:
    """Whether the text is a valid name of a model in a request."""
    return 0 < len(text) <= NAME_MAX and text.isprintable()


def _items(value: object) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    fields = plain_fields(value)
    lists = [fields[name] for name in _LISTS if name in fields]
    for entry in lists:  # an empty list or null may stand beside the real list
        if isinstance(entry, list | dict) and entry and (items := _items(entry)):
            return items
    return [] if any(entry == [] or entry is None for entry in lists) else None


def _model(item: object) -> Model | None:
    if isinstance(item, str):
        return Model(item, "", _named_for_chat(item)) if item else None
    if not isinstance(item, dict):
        return None
    fields = plain_fields(item)
    for field in _NAMES:
        name = fields.get(field)
        if isinstance(name, str) and name:
            owned_by = fields.get("ownedby")
            owner = owned_by if isinstance(owned_by, str) else ""
            return Model(name, owner, _chats(name, fields), abilities_of(fields))
    return None


def _chats(name: str, fields: Mapping[str, Any]) -> bool:
    if fields.get("active") is False or fields.get("deprecated") is True:
        return False
    can_chat = _chat_field(fields)
    return _named_for_chat(name) if can_chat is None else can_chat


def _chat_field(fields: Mapping[str, Any]) -> bool | None:
    """Whether a model can chat according to its fields, None if they do not say."""
    capabilities = fields.get("capabilities", fields.get("supportedgenerationmethods"))
    if isinstance(capabilities, dict):  # {"completion_chat": true, "vision": false}
        flags = {_words(name): bool(value) for name, value in capabilities.items()}
        chat_flags = [flag for name, flag in flags.items() if re.search(r"\bchat\b", name)]
        if chat_flags:
            return any(chat_flags)
        fields = {**fields, **plain_fields(capabilities)}
        capabilities = None
    for flag in ("supportschat", "chat", "supportschatcompletions", "chatcompletion"):
        if isinstance(fields.get(flag), bool):
            return bool(fields[flag])
    methods = fields.get("endpoints", fields.get("supportedendpoints"))
    for labels in (capabilities, methods, fields.get("tasks")):
        if isinstance(labels, list) and labels and all(isinstance(item, str) for item in labels):
            return any(_CHATS.search(_words(label)) for label in labels) or (
                None if not any(_OTHER.search(_words(label)) for label in labels) else False
            )
    architecture = fields.get("architecture")
    output = (architecture if isinstance(architecture, dict) else fields).get("output_modalities")
    if isinstance(output, list) and output:
        return "text" in output
    for field in _KINDS:
        kind = fields.get(field)
        kind = kind.get("name") if isinstance(kind, dict) else kind
        if isinstance(kind, str):
            if _CHATS.search(_words(kind)):
                return True
            if _OTHER.search(_words(kind)):
                return False
    return None


def _words(label: str) -> str:
    """Return a label in lower case, with spaces in place of its separators."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(label)).lower()
    return re.sub(r"[^a-z0-9]+", " ", spaced).strip()


def _named_for_chat(name: str) -> bool:
    return _OTHER_NAMES.search(name.lower()) is None
