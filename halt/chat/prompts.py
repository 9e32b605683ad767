"""System prompts by name: the server's, from the TOML file, and a person's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from halt.chat.settings import checked_name, checked_system_prompt
from halt.errors import NameTaken, RequestError
from halt.store.models import NamedPrompt, Settings
from halt.store.named_rows import NamedRows


@dataclass(frozen=True)
class PromptNames:
    """The names that a person can choose, in the order of the page."""

    server: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """The named system prompts of one application. Threads may share it."""

    own: NamedRows[NamedPrompt]
    server: Mapping[str, str] = field(default_factory=dict)

    def names(self, owner: str) -> PromptNames:
        """All names. A prompt of the person hides one of the server with the same name."""
        own = tuple(self.own.names(owner))
        return PromptNames(tuple(name for name in self.server if name not in own), own)

    def text(self, owner: str, name: str) -> str | None:
        """The text of a prompt. None: there is none with this name."""
        if (prompt := self.own.get(owner, name)) is not None:
            return prompt.content
        return self.server.get(name)

    def save(self, owner: str, name: str, text: str, *, replace: bool = False) -> str:
        """Save a prompt of the person and return its name. Raises RequestError, NameTaken."""
        name, text = checked_name(name), checked_system_prompt(text)
        if not text:
            raise RequestError("Write the system prompt first.", field="system_prompt")
        if name in self.server:
            raise RequestError(
                f"“{name}” is a prompt of this server. Choose another name.", field="name"
            )
        if not self.own.save(owner, NamedPrompt(name, text), replace=replace):
            raise NameTaken(f"You have a prompt “{name}” already.", field="name")
        return name

    def delete(self, owner: str, name: str) -> bool:
        """Delete a prompt of the person. False if there is none. Raises RequestError."""
        if self.own.delete(owner, name):
            return True
        if name in self.server:
            raise RequestError(
                f"“{name}” is a prompt of this server. It cannot be changed here.", field="name"
            )
        return False

    def with_valid_name(self, owner: str, settings: Settings, saved: Settings) -> Settings:
        """The settings, without a prompt's name that does not belong to their system prompt.

        It belongs to it if the prompt of that name has this text, or `saved`, the settings before.
        """
        name, text = settings.prompt_name, settings.system_prompt
        if name is None or (text == saved.system_prompt and name == saved.prompt_name):
            return settings
        if text and self.text(owner, name) == text:
            return settings
        return dataclasses.replace(settings, prompt_name=None)
