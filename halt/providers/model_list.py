"""The list of models that a server gives, in whatever shape, and which of them hold a conversation.

OpenAI's is `{"data": [{"id": ...}]}`; others are a bare array, have `models` in place of `data`,
or names in place of objects. Models of other kinds (embeddings, speech, pictures) stay in the list,
but none of them answers where a request names no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from halt.providers.error_body import plain_fields

NAME_MAX = 200  # characters of a model's name that a request may give
#: Fields of an object that hold its list, the usual one first.
_LISTS = ("data", "models", "results", "items", "result")
#: Fields that hold a model's name as a request has to give it.
_NAMES = ("id", "model", "name", "modelid", "modelname")
#: Fields that say of which kind a model is; `type` is "model" in some lists and says nothing.
_KINDS = ("type", "modeltype", "mode", "task", "pipelinetag", "kind", "purpose")

_CHATS = re.compile(
    r"^text$|\b(?:chat|llm|vlm|language|completion|completions|generate|text.?generation"
    r"|image.?text.?to.?text|conversational|responses)\b"
)
_OTHER = re.compile(
    r"embed|rerank|rank|whisper|speech|audio|voice|\btts\b|\bstt\b|\basr\b|transcri|image|video"
    r"|moderation|classif|feature.?extraction|similarity|translation|ocr|detection|segmentation"
)
#: How models that hold no conversation are called, where nothing else says so.
_OTHER_NAMES = re.compile(
    r"embed|rerank|(?:^|[/_:-])(?:bge|gte|e5|minilm|colbert|colpali|clip|siglip|whisper|parakeet"
    r"|tts|stt|asr|kokoro|bark|xtts|piper|sdxl|sd3|flux|dall-?e|imagen|veo|sora|kling|musicgen"
    r"|davinci|babbage|ocr|guard|shieldgemma)(?=$|[/_:.\d-])"
    r"|sentence-?transformers|all-mpnet|moderation|stable-?diffusion|-tts|-stt|-asr|transcri"
    r"|speech|gpt-image|-image(?:-|$)|realtime|(?:^|[/_-])[a-z]*guard(?:[-_.]|$)|aqa$"
)


class Model(NamedTuple):
    """A model of a list. `chats`: it holds a conversation, as far as its server or name tells."""

    name: str
    owner: str
    chats: bool


def parse_models(value: object) -> list[Model] | None:
    """The models of a decoded list, in its order; None where it is no list of models.

    An item without a name is passed over.
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
    """The model that answers where none is named: the first that holds a conversation."""
    return next((model.name for model in models if model.chats), models[0].name if models else "")


def is_name(text: str) -> bool:
    """Whether a request may name a model so."""
    return 0 < len(text) <= NAME_MAX and text.isprintable()


def _items(value: object) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    fields = plain_fields(value)
    lists = [fields[name] for name in _LISTS if name in fields]
    for each in lists:  # one that is empty or null may stand beside another
        if isinstance(each, list | dict) and each and (items := _items(each)):
            return items
    return [] if any(each == [] or each is None for each in lists) else None


def _model(item: object) -> Model | None:
    if isinstance(item, str):
        return Model(item, "", _named_for_chat(item)) if item else None
    if not isinstance(item, dict):
        return None
    fields = plain_fields(item)
    for field in _NAMES:
        name = fields.get(field)
        if isinstance(name, str) and name:
            owner = fields.get("ownedby")
            return Model(name, owner if isinstance(owner, str) else "", _chats(name, fields))
    return None


def _chats(name: str, fields: Mapping[str, Any]) -> bool:
    if fields.get("active") is False or fields.get("deprecated") is True:
        return False
    told = _told(fields)
    return _named_for_chat(name) if told is None else told


def _told(fields: Mapping[str, Any]) -> bool | None:
    """What a model's own fields say, None where they say nothing."""
    can = fields.get("capabilities", fields.get("supportedgenerationmethods"))
    if isinstance(can, dict):  # {"completion_chat": true, "vision": false}
        flags = {_words(name): bool(each) for name, each in can.items()}
        chats = [each for name, each in flags.items() if re.search(r"\bchat\b", name)]
        if chats:
            return any(chats)
        fields = {**fields, **plain_fields(can)}
        can = None
    for flag in ("supportschat", "chat", "supportschatcompletions", "chatcompletion"):
        if isinstance(fields.get(flag), bool):
            return bool(fields[flag])
    methods = fields.get("endpoints", fields.get("supportedendpoints"))
    for listed in (can, methods, fields.get("tasks")):
        if isinstance(listed, list) and listed and all(isinstance(each, str) for each in listed):
            return any(_CHATS.search(_words(each)) for each in listed) or (
                None if not any(_OTHER.search(_words(each)) for each in listed) else False
            )
    shape = fields.get("architecture")
    output = (shape if isinstance(shape, dict) else fields).get("output_modalities")
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
    """A label with blanks in place of its separators."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(label)).lower()
    return re.sub(r"[^a-z0-9]+", " ", spaced).strip()


def _named_for_chat(name: str) -> bool:
    return _OTHER_NAMES.search(name.lower()) is None
