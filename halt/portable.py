"""Conversations as a file: the JSON that is exported and imported, and Markdown for people.

    {"format": "halt-conversations", "version": 1, "conversations": [
      {"id": "...", "title": "...", "created_at": 1760000000.0, "settings": {"model": "..."},
       "messages": [{"id": 1, "role": "user", "content": "..."},
                    {"id": 2, "parent": 1, "role": "assistant", "content": "...",
                     "state": "done"}],
       "chosen": [1, 2]}]}

`messages` are the whole tree, parents first; `chosen` are those that are the choice among their
siblings. All times are seconds since 1970.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class PortableMessage(msgspec.Struct, omit_defaults=True):
    """A message of an exported conversation; IDs count within the conversation only."""

    id: int
    role: Literal["user", "assistant"]
    content: str
    parent: int | None = None
    model: str = ""  # the model that answered
    asked: str = ""  # the model that was chosen
    state: Literal["done", "stopped", "withdrawn", "error", "interrupted"] = "done"
    rivals: int | None = None  # answers with the same number were asked for together
    picked: bool = False
    created_at: float = 0.0


class PortableSettings(msgspec.Struct, omit_defaults=True):
    """The settings of an exported conversation."""

    model: str = ""
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class PortableConversation(msgspec.Struct, omit_defaults=True):
    """An exported conversation."""

    id: str
    title: str
    messages: list[PortableMessage]
    chosen: list[int] = msgspec.field(default_factory=list)
    settings: PortableSettings = msgspec.field(default_factory=PortableSettings)
    created_at: float = 0.0
    updated_at: float = 0.0
