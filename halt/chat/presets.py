"""Sampling settings by name: the ones that Halt ships, and a person's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from halt.chat.settings import checked_name, checked_sampling
from halt.errors import NameTaken, RequestError
from halt.store.models import Preset
from halt.store.named_rows import NamedRows

#: They set no top_p, since several models refuse it together with a temperature.
BUILT_IN = (
    Preset("Model defaults"),
    Preset("Precise", temperature=0.2),
    Preset("Creative", temperature=1.2),
)
_RESERVED = {preset.name.casefold() for preset in BUILT_IN}


@dataclass(frozen=True)
class Presets:
    """The presets of one application. Threads may share it."""

    own: NamedRows[Preset]

    def save(self, owner: str, preset: Preset, *, replace: bool = False) -> Preset:
        """Save a preset of the person and return it. Raises RequestError, NameTaken."""
        preset = dataclasses.replace(preset, name=checked_name(preset.name))
        checked_sampling(preset)
        if preset.name.casefold() in _RESERVED:
            raise RequestError(
                f"“{preset.name}” is a preset of Halt. Choose another name.", field="name"
            )
        if not self.own.save(owner, preset, replace=replace):
            raise NameTaken(f"You have a preset “{preset.name}” already.", field="name")
        return preset
