"""Halt: a streaming chat for any OpenAI-compatible model, whose Stop closes the connection.

For programs: `from halt import Halt`; see `halt.library.halt`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

VERSION = "0.1.0"

if TYPE_CHECKING:
    from halt.library.halt import ChatRequest as ChatRequest
    from halt.library.halt import ConfigError as ConfigError
    from halt.library.halt import Generation as Generation
    from halt.library.halt import GenerationError as GenerationError
    from halt.library.halt import Halt as Halt
    from halt.library.halt import HaltError as HaltError
    from halt.library.halt import Merged as Merged
    from halt.library.halt import Message as Message
    from halt.library.halt import Receipt as Receipt
    from halt.library.halt import Result as Result
    from halt.library.halt import Tool as Tool
    from halt.library.halt import ToolError as ToolError

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
        return getattr(import_module("halt.library.halt"), name)
    raise AttributeError(f"module 'halt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "VERSION"]
