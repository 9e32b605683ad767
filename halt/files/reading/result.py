"""What the readers of the formats return and raise."""

from __future__ import annotations

from dataclasses import dataclass

from halt.files.facts import Facts
from halt.files.protocol import FaultCode


@dataclass(frozen=True)
class Limits:
    """What a file may take; see `halt.files.protocol.Request`."""

    max_chars: int
    max_bytes: int


@dataclass(frozen=True)
class Result:
    """A file that was read. Without `content` the file is kept as it came."""

    facts: Facts
    content: bytes = b""
    text: str = ""  # the part that is used
    thumbnail: bytes = b""


class Refused(Exception):
    """The file is not taken; `reason` is a sentence for the user."""

    def __init__(self, code: FaultCode, reason: str) -> None:
        super().__init__(reason)
        self.code: FaultCode = code
        self.reason = reason


def cut(text: str, limit: int) -> str:
    """The beginning of a text, of at most `limit` characters; whole lines where there are some."""
    if len(text) <= limit:
        return text
    end = text.rfind("\n", limit // 2, limit)
    return text[: end if end > 0 else limit]


def plain(text: str) -> str:
    """A text with `\\n` alone as line end, and without NUL and lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode()
