"""Reads from an entry of a list of models what the model can do.

Servers do not agree on the names of these facts. Where they are documented:

- OpenRouter (https://openrouter.ai/docs/models): `context_length`, `architecture.input_modalities`
  with "image" and, for PDFs, "file"; `supported_parameters` with "tools" and "reasoning", which
  servers that it lists name `supported_features`
  (https://openrouter.ai/docs/use-cases/for-providers). `pricing` with `prompt`, `completion` and
  `input_cache_read`: dollars per token, as texts.
- vLLM (`ModelCard` in vllm/entrypoints/openai/protocol.py), SGLang: `max_model_len`.
- llama.cpp (`get_res_model_info` in tools/server/server-context.cpp): `meta.n_ctx`, the context of
  a slot, and `meta.n_ctx_train`, all that the model could have. "multimodal" in its `capabilities`
  may mean images or sound, so it says nothing here.
- LM Studio (https://lmstudio.ai/docs/developer/rest/endpoints, /api/v0/models): `type` "vlm" or
  "llm", `max_context_length`, `loaded_context_length`, `capabilities` with "tool_use".
- Ollama (docs/api.md, /api/tags and /api/ps): `capabilities` with "vision", "tools" and "thinking",
  `context_length`, also in `details`. "image" in its `capabilities` means that it draws.
- Anthropic (`ModelInfo` of its client): `max_input_tokens`, and `capabilities` with `image_input`,
  `pdf_input` and `thinking`, each {"supported": bool}.
- Mistral (https://docs.mistral.ai/api, List Models): `max_context_length`, and `capabilities` with
  the flags `vision`, `function_calling` and `reasoning`.
- Groq (https://console.groq.com/docs/api-reference): `context_window`. Together, Fireworks:
  `context_length`; Fireworks also `supports_image_input` and `supports_tools`.
- Together (https://docs.together.ai/reference/models-1): `pricing` with `input`, `output` and
  `cached_input`: dollars per million tokens, as numbers. Models that are paid by the hour have 0.

A fact that a list does not have stays unknown: it is not guessed from the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from halt.model_info import Abilities
from halt.providers.error_body import plain_fields, plain_name

CONTEXT_MAX = 1_000_000_000  # tokens; a greater number is no context
PRICE_MAX = 10_000  # US dollars per million tokens; a greater number has another unit
PRICE_MIN = Decimal("0.0001")  # the same; a smaller number other than 0 has another unit

# Names are in the form that `plain_name` returns.

#: Fields with the length of the context: the one in use first, then the one that the model allows.
_CONTEXTS = (
    *("loadedcontextlength", "nctx", "maxmodellen", "contextlength", "contextwindow"),
    *("maxcontextlength", "maxinputtokens", "nctxtrain"),
)
#: Objects in which some servers put it.
_HOLDERS = ("meta", "details", "topprovider", "metadata", "limits")

_IMAGES = frozenset({"vision", "imageinput", "supportsvision", "supportsimageinput"})
_TOOLS = frozenset(
    {"tools", "tooluse", "toolcalling", "functioncalling", "supportstools"}
    | {"supportsfunctioncalling"}
)
_THINKING = frozenset({"thinking", "reasoning", "supportsreasoning"})
#: Fields of `pricing` per token, and those per million tokens: input, cached input, output.
_PER_TOKEN = ("prompt", "inputcacheread", "completion")
_PER_MILLION = ("input", "cachedinput", "output")
_DECIMAL = re.compile(r"(?=.{1,30}\Z)[0-9]*\.?[0-9]+(?:[eE]-?[0-9]{1,2})?\Z")
#: Lists that are complete: what is not in them, the model cannot do.
_COMPLETE_LISTS = ("supportedparameters", "supportedfeatures")


def abilities_of(fields: Mapping[str, Any]) -> Abilities:
    """Return what an entry says of its model. `fields`: the entry, by plain names."""
    labels, flags = _labels_and_flags(fields)
    input_price, cached_price, output_price = _prices(fields)
    return Abilities(
        context=_context(fields),
        images=_first(_reads_images(fields), _flag(_IMAGES, labels, flags)),
        tools=_first(_in_complete_list(_TOOLS, fields), _flag(_TOOLS, labels, flags)),
        thinking=_first(_in_complete_list(_THINKING, fields), _flag(_THINKING, labels, flags)),
        pdf=_reads_pdf(fields, flags),
        input_price=input_price,
        cached_price=cached_price,
        output_price=output_price,
    )


def _prices(fields: Mapping[str, Any]) -> list[float | None]:
    """Return the prices of input, cached input and output, None where the entry does not say."""
    pricing = fields.get("pricing")
    if not isinstance(pricing, dict):
        return [None, None, None]
    named = plain_fields(pricing)
    if any(name in named for name in _PER_TOKEN):
        return [_price(named.get(name), 1_000_000) for name in _PER_TOKEN]
    values = [named.get(name) for name in _PER_MILLION]
    # A text would be in another unit.
    prices = [None if isinstance(value, str) else _price(value, 1) for value in values]
    return prices if any(prices) else [None, None, None]


def _price(value: object, tokens: int) -> float | None:
    """Return dollars per million tokens, None if the value is no price.

    `tokens`: by which it is multiplied.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= PRICE_MAX:
        value = repr(value)
    if not isinstance(value, str) or not _DECIMAL.match(value):
        return None
    price = Decimal(value) * tokens
    return float(price) if not price or PRICE_MIN <= price <= PRICE_MAX else None


def _context(fields: Mapping[str, Any]) -> int | None:
    holders = [fields[name] for name in _HOLDERS if isinstance(fields.get(name), dict)]
    places = [fields, *map(plain_fields, holders)]
    lengths = (_tokens(place.get(name)) for name in _CONTEXTS for place in places)
    return next((length for length in lengths if length), None)


def _tokens(value: object) -> int | None:
    """Return a number of tokens, None if the value is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 1 <= value <= CONTEXT_MAX else None


def _labels_and_flags(fields: Mapping[str, Any]) -> tuple[frozenset[str], dict[str, bool]]:
    """Return the abilities that are listed by name, and those that have a flag."""
    capabilities = fields.get("capabilities")
    flags = _flags(fields)
    if isinstance(capabilities, dict):
        return frozenset(), flags | _flags(plain_fields(capabilities))
    return _names(capabilities), flags


def _flags(fields: Mapping[str, Any]) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    for name, value in fields.items():
        flag = value.get("supported") if isinstance(value, dict) else value
        if isinstance(flag, bool):
            flags[name] = flag
    return flags


def _names(value: object) -> frozenset[str]:
    """Return the plain names in a list; none if it is no list."""
    if not isinstance(value, list):
        return frozenset()
    return frozenset(plain_name(item) for item in value if isinstance(item, str))


def _flag(names: frozenset[str], labels: frozenset[str], flags: Mapping[str, bool]) -> bool | None:
    """Return whether an entry has an ability that has these names, None if it does not say."""
    if names & labels:
        return True
    return _any(flags[name] for name in names & flags.keys())


def _in_complete_list(names: frozenset[str], fields: Mapping[str, Any]) -> bool | None:
    lists = [listed for name in _COMPLETE_LISTS if (listed := _names(fields.get(name)))]
    return _any(bool(names & listed) for listed in lists)


def _reads_images(fields: Mapping[str, Any]) -> bool | None:
    """Return whether an entry says that images are among the model's inputs."""
    architecture = fields.get("architecture")
    places = [plain_fields(architecture) if isinstance(architecture, dict) else {}, fields]
    for place in places:
        for name in ("inputmodalities", "supportedinputmodalities"):
            if inputs := _names(place.get(name)):
                return "image" in inputs
    return {"vlm": True, "llm": False}.get(str(fields.get("type")))


def _reads_pdf(fields: Mapping[str, Any], flags: Mapping[str, bool]) -> bool | None:
    """Return whether an entry says that PDFs are among the model's inputs."""
    architecture = fields.get("architecture")
    inputs = (
        _names(plain_fields(architecture).get("inputmodalities"))
        if isinstance(architecture, dict)
        else frozenset()
    )
    return "file" in inputs if inputs else flags.get("pdfinput")


def _any(flags: Iterable[bool]) -> bool | None:
    """Return whether one of the flags is set, None if there is none."""
    known_flags = list(flags)
    return any(known_flags) if known_flags else None


def _first(*facts: bool | None) -> bool | None:
    return next((fact for fact in facts if fact is not None), None)
