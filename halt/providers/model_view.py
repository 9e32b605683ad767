"""What was chosen on the page for models: their names for people, order, facts and the default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from halt.config.providers import ModelSettings
from halt.model_info import Abilities, ModelInfo

DEFAULTS = ModelSettings()


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """The choices for the models of all providers, each by the provider's name."""

    settings: Mapping[str, Mapping[str, ModelSettings]] = {}  # by the model's name there
    order: Mapping[str, Mapping[str, int]] = {}  # the places of moved models; others follow them
    default: tuple[str, str] | None = None  # the provider and the model

    def of(self, provider: str) -> Mapping[str, ModelSettings]:
        """The settings of a provider's models; only of those that have some."""
        return self.settings.get(provider, {})

    def listed(
        self, provider: str, models: Iterable[ModelInfo], *, hidden: bool = False
    ) -> list[ModelInfo]:
        """A provider's models in their order, with labels and facts; `hidden`: also hidden ones.

        What the provider itself says of a model is not replaced.
        """
        chosen, places = self.of(provider), self.order.get(provider, {})
        with_settings = ((model, chosen.get(model.name, DEFAULTS)) for model in models)
        shown = [
            _with_settings(model, settings)
            for model, settings in with_settings
            if hidden or not settings.hidden
        ]
        if places:
            shown.sort(key=lambda model: places.get(model.name, len(places)))
        return shown


def _with_settings(model: ModelInfo, settings: ModelSettings) -> ModelInfo:
    if settings is DEFAULTS:
        return model
    chosen = Abilities(
        context=settings.context,
        input_price=settings.input_price,
        cached_price=settings.cached_price,
        output_price=settings.output_price,
    )
    return model._replace(
        label=settings.label or model.label, abilities=chosen.replaced_by(model.abilities)
    )
