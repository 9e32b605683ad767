"""The models of a provider's list, with their abilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Abilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """The abilities of a model according to its server. None: the server does not say."""

    context: int | None = None  # tokens of a prompt and its answer
    images: bool | None = None  # whether it reads images
    tools: bool | None = None
    thinking: bool | None = None
    pdf: bool | None = None  # whether it reads PDFs
    parts_bytes: int | None = None  # of the images and PDFs of one request, before base64
    # US dollars per million tokens:
    input_price: float | None = None
    cached_price: float | None = None  # of prompt tokens that the provider had cached
    output_price: float | None = None

    def replaced_by(self, other: Abilities) -> Abilities:
        """A copy with what `other` knows."""
        known = {
            name: value
            for name, value in msgspec.structs.asdict(other).items()
            if value is not None
        }
        return msgspec.structs.replace(self, **known)


UNKNOWN = Abilities()


def ability_words(abilities: Abilities) -> str:
    """The known abilities of a model, as in "128k context, images, tools"; "" for none."""
    words = [f"{_thousands(abilities.context)} context"] if abilities.context else []
    words += [name for name in ("images", "tools", "thinking") if getattr(abilities, name)]
    return ", ".join(words)


def _thousands(tokens: int) -> str:
    """A number of tokens in the usual short form: 131072 is 128k, 200000 is 200k."""
    thousand = 1024 if tokens % 1024 == 0 and tokens % 1000 else 1000
    if tokens < thousand:
        return str(tokens)
    count = tokens / thousand
    unit = "k" if count < thousand else "M"
    count = count if unit == "k" else count / thousand
    return f"{count:.3g}{unit}" if count < 1000 else f"{count:.0f}{unit}"


class ModelInfo(NamedTuple):
    """A model of a list. `label` is its name at its provider."""

    name: str  # in requests to Halt
    label: str
    abilities: Abilities = UNKNOWN


class ModelGroup(NamedTuple):
    """The models of one provider. `title` is for people; empty: the provider has none."""

    title: str
    models: Sequence[ModelInfo]

    @classmethod
    def of(cls, title: str, names: Sequence[str]) -> ModelGroup:
        """A group of models of which only the names are known."""
        return cls(title, [ModelInfo(name, name) for name in names])


def with_abilities(groups: Sequence[ModelGroup], default: Abilities) -> list[ModelGroup]:
    """The groups, whose models have the abilities of `default` that are not known of them."""
    return [
        group._replace(
            models=[
                model._replace(abilities=default.replaced_by(model.abilities))
                for model in group.models
            ]
        )
        for group in groups
    ]
