"""The forms of the page Models: what a person typed, and what a form shows again.

A form never shows a key or a header's value again, nor the parts of an address that may be one.
Each error names its field, where the page shows it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from werkzeug.datastructures import MultiDict

from halt.config.providers import MAX_TOKENS, ModelSettings
from halt.connected.details import TOKENS_MAX, Details
from halt.connected.listing import ProviderLine
from halt.connected.presets import COMPATIBLE, PRESETS, Preset, preset_for
from halt.core.decoding import is_number
from halt.core.request import OWN_FIELDS
from halt.errors import RequestError
from halt.model_info import Abilities
from halt.providers.model_abilities import PRICE_MAX
from halt.store.connected import ProviderRow

HEADER_ROWS = 3  # of the form, at least; there is always an empty one
LABEL_MAX = 100  # characters
CONTEXT_MAX = 1_000_000_000  # tokens
EXTRA_MAX = 10_000  # characters
CONTINUES = ("", "prefix", "instruction")
PRICES = ("input_price", "cached_price", "output_price")
_REFUSED_EXTRAS = frozenset({*OWN_FIELDS, "stream_options"})
_HEADER_NAME = re.compile(r"[^\s:]{0,100}")
_USER_INFO = re.compile(r"([a-z]+://)[^/?#@]*@([^@]*)", re.IGNORECASE)  # of a whole address

_FIELDS = msgspec.json.Decoder(dict[str, Any])

Form = MultiDict[str, str]


@dataclass(frozen=True)
class Fault:
    """An error on the page: the change that was refused, the field of its form, and the text."""

    action: str
    field: str | None
    message: str
    of: str = ""  # the provider or the model that the form is for


# --- a provider -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProviderForm:
    """What the form of a provider shows."""

    preset: Preset
    title: str = ""
    base_url: str = ""
    api_version: str = ""
    max_tokens: str = str(MAX_TOKENS)
    models: str = ""  # one a line
    header_names: tuple[str, ...] = ()
    own_keys: bool = False
    without_key: bool = False

    @property
    def header_rows(self) -> list[str]:
        """The names of the headers, and empty ones for further headers."""
        return [*self.header_names, *[""] * max(1, HEADER_ROWS - len(self.header_names))]


def new_form(preset_id: str, address: str) -> ProviderForm:
    """The form of a provider that is added. `address`: of a server that was found."""
    address = _shown(address)
    preset = PRESETS.get(preset_id) or (preset_for(address) if address else COMPATIBLE)
    return ProviderForm(
        preset=preset, base_url=address or preset.base_url, api_version=preset.api_version
    )


def saved_form(row: ProviderRow, header_names: tuple[str, ...]) -> ProviderForm:
    """The form of a connected provider."""
    return ProviderForm(
        preset=PRESETS.get(row.preset) or COMPATIBLE,
        title=row.title,
        base_url=row.base_url,
        api_version=row.api_version,
        max_tokens=str(row.max_tokens or MAX_TOKENS),
        models="\n".join(row.models),
        header_names=header_names,
        own_keys=row.own_keys,
    )


def state_of(line: ProviderLine) -> str:
    """Another text after each change of a provider: tells a form that is out of date."""
    shown = repr((line.row, line.key, line.header_names))
    return blake2b(shown.encode("utf-8", "backslashreplace"), digest_size=9).hexdigest()


def typed_form(form: Form) -> ProviderForm:
    """What was typed, without the secrets."""
    names = [name.strip() for name in form.getlist("header_name")]
    return ProviderForm(
        preset=PRESETS.get(form.get("preset", "")) or COMPATIBLE,
        title=form.get("title", ""),
        base_url=_shown(form.get("base_url", "")),
        api_version=form.get("api_version", ""),
        max_tokens=form.get("max_tokens", ""),
        models=form.get("models", ""),
        header_names=tuple(name for name in names if name and _HEADER_NAME.fullmatch(name)),
        own_keys="own_keys" in form,
        without_key="without_key" in form,
    )


def typed_details(form: Form) -> Details:
    """What was typed. Raises RequestError."""
    tokens = form.get("max_tokens", "").strip().replace(",", "") or str(MAX_TOKENS)
    if not is_number(tokens):
        raise RequestError(f"Use a whole number from 1 to {TOKENS_MAX:,}.", field="max_tokens")
    return Details(
        preset=form.get("preset", ""),
        title=form.get("title", ""),
        base_url=form.get("base_url", ""),
        key=form.get("key", ""),
        headers=_typed_headers(form.getlist("header_name"), form.getlist("header_value")),
        models=tuple(form.get("models", "").splitlines()),
        api_version=form.get("api_version", ""),
        max_tokens=int(tokens),
        own_keys="own_keys" in form,
        without_key="without_key" in form,
    )


def _typed_headers(names: list[str], values: list[str]) -> dict[str, str]:
    if len(names) != len(values):
        raise RequestError("Each header has a name and a value.", field="headers")
    headers: dict[str, str] = {}
    for typed_name, value in zip(names, values, strict=True):
        name = typed_name.strip()
        if not _HEADER_NAME.fullmatch(name):  # it may be a secret, so the error does not show it
            raise RequestError(
                "A header's name has letters, digits and hyphens: put what follows the colon into "
                "the field of its value.",
                field="headers",
            )
        if not name and value.strip():
            raise RequestError("The name of a header is missing.", field="headers")
        if name in headers:
            raise RequestError(f"The header {name} is named twice.", field="headers")
        if name:
            headers[name] = value
    return headers


def _shown(address: str) -> str:
    """A typed address without the parts that may be secret."""
    address = address.strip()
    if match := _USER_INFO.fullmatch(address):
        address = match[1] + match[2]
    if "@" in address:  # a password with characters that should have been encoded
        return ""
    return re.split("[?#]", address)[0]


# --- a model --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelForm:
    """What the form of a model shows. `known`: the fields of which its server says the value."""

    label: str = ""
    input_price: str = ""
    cached_price: str = ""
    output_price: str = ""
    context: str = ""
    extra_body: str = ""
    continues: str = ""
    known: frozenset[str] = frozenset()


def known_fields(abilities: Abilities, chosen: ModelSettings) -> frozenset[str]:
    """The fields that cannot be chosen, since the server says them. `abilities`: with `chosen`."""
    return frozenset(
        name
        for name in ("context", *PRICES)
        if (value := getattr(abilities, name)) is not None and value != getattr(chosen, name)
    )


def model_form(chosen: ModelSettings, abilities: Abilities) -> ModelForm:
    """The form of a model."""
    return ModelForm(
        label=chosen.label,
        **{name: _number_text(getattr(chosen, name)) for name in (*PRICES, "context")},
        extra_body=_pretty(chosen.extra_body),
        continues=chosen.continues,
        known=known_fields(abilities, chosen),
    )


def typed_model_form(form: Form, known: frozenset[str]) -> ModelForm:
    """What was typed for a model."""
    names = ("label", *PRICES, "context", "extra_body", "continues")
    return ModelForm(**{name: form.get(name, "") for name in names}, known=known)


def typed_model(form: Form, chosen: ModelSettings, known: frozenset[str]) -> ModelSettings:
    """The settings of a model as typed; those in `known` stay as they are. Raises RequestError."""
    numbers: dict[str, Any] = {
        name: _price(form.get(name, ""), name) for name in PRICES if name not in known
    }
    if "context" not in known:
        numbers["context"] = _context(form.get("context", ""))
    continues = form.get("continues", "")
    if continues not in CONTINUES:
        raise RequestError("Choose how the model continues.", field="continues")
    return msgspec.structs.replace(
        chosen,
        label=_label(form.get("label", "")),
        extra_body=_extra_body(form.get("extra_body", "")),
        continues=continues,
        **numbers,
    )


def _label(text: str) -> str:
    label = " ".join(text.split())
    if len(label) > LABEL_MAX or not label.isprintable():
        raise RequestError(f"A name has at most {LABEL_MAX} printable characters.", field="label")
    return label


def _price(text: str, field: str) -> float | None:
    text = text.strip().removeprefix("$").replace(",", "")
    if not text:
        return None
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (text.isascii() and 0 <= price <= PRICE_MAX):  # nan is in no range
        raise RequestError(
            f"Use a number of US dollars from 0 to {PRICE_MAX:,}, such as 0.25.", field=field
        )
    return price


def _context(text: str) -> int | None:
    text = text.strip().replace(",", "")
    if not text:
        return None
    if not (is_number(text) and 1 <= int(text) <= CONTEXT_MAX):
        raise RequestError(
            f"Use a whole number of tokens from 1 to {CONTEXT_MAX:,}, such as 131072.",
            field="context",
        )
    return int(text)


def _extra_body(text: str) -> dict[str, Any]:
    text = text.strip()
    if not text:
        return {}
    if len(text) > EXTRA_MAX:
        raise RequestError(f"Use at most {EXTRA_MAX:,} characters.", field="extra_body")
    try:
        fields = _FIELDS.decode(text)
    except (ValueError, RecursionError) as exc:
        raise RequestError(
            'This is not a JSON object: use one such as {"top_k": 40}.', field="extra_body"
        ) from exc
    if refused := sorted(_REFUSED_EXTRAS & fields.keys()):
        raise RequestError(
            f"Halt sets {' and '.join(refused)} itself: leave that out.", field="extra_body"
        )
    return fields


def _pretty(fields: dict[str, Any]) -> str:
    if not fields:
        return ""
    return msgspec.json.format(msgspec.json.encode(fields).decode(), indent=2)


def _number_text(value: float | None) -> str:
    """A number as a field shows it."""
    return "" if value is None else f"{value:.10f}".rstrip("0").rstrip(".")
