"""Halt: a streaming chat for any OpenAI-compatible model, whose Stop closes the connection.

For programs: `from halt import Halt`; see `halt.library`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

VERSION = "0.1.0"

if TYPE_CHECKING:
    from halt.library import ChatRequest as ChatRequest
    from halt.library import ConfigError as ConfigError
    from halt.library import Generation as Generation
    from halt.library import GenerationError as GenerationError
    from halt.library import Halt as Halt
    from halt.library import HaltError as HaltError
    from halt.library import Merged as Merged
    from halt.library import Message as Message
    from halt.library import Receipt as Receipt
    from halt.library import Result as Result
    from halt.library import Tool as Tool
    from halt.library import ToolError as ToolError

__all__ = [
    "ChatRequest",
    "ConfigError",
    "Generation",
    "GenerationError",
    "Halt",
    "HaltError",
    "Merged",
    "Message",
    "Receipt",
    "Result",
    "Tool",
    "ToolError",
]


def __getattr__(name: str) -> Any:
    """The library, loaded when it is first asked for: server and demo model start without it."""
    if name in __all__:
        return getattr(import_module("halt.library"), name)
    raise AttributeError(f"module 'halt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "VERSION"]
