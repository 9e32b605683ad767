"""Halt: a streaming chat for any OpenAI-compatible model; Stop closes the connection to the model.

For programs: `from halt import Halt`; see `halt.library.halt`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

VERSION = "0.1.0"

if TYPE_CHECKING:
    from halt.config.settings import ConfigError
    from halt.core.receipts import Receipt
    from halt.core.request import ChatRequest, Message
    from halt.core.tools import Tool, ToolError
    from halt.errors import HaltError
    from halt.library.halt import Halt
    from halt.library.handle import Generation, GenerationError, Result
    from halt.library.merge import Merged

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
    """Load the library on first use, since server and demo model do not need it."""
    if name in __all__:
        return getattr(import_module("halt.library.halt"), name)
    raise AttributeError(f"module 'halt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "VERSION"]
