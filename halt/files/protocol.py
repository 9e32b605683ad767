"""The messages between a worker and its reading process, in msgpack (`halt.child_process`).

The worker sends a `Request` with two file descriptors: of the file, and of an empty file for what
is kept. It waits for the `Reply`. When the process is ready, it first sends an empty `Reply`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from halt.child_process import framed
from halt.files.facts import Facts

#: A process that reads one file longer than this is ended; seconds of its CPU, and of real time.
CPU_MAX, REAL_MAX = 20.0, 40.0
#: After this many seconds of CPU the rest of a PDF is left out.
ENOUGH = 10.0
MEMORY_MAX = 1_000_000_000  # bytes of address space of a reading process

FaultCode = Literal["", "kind", "unreadable", "too_large"]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A file to read."""

    name: str  # its ending tells the language of a text
    max_chars: int  # of the text that is used
    max_bytes: int  # of what a compressed file may unpack to


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What was read, or why nothing was.

    The second file has, one after the other, the content, the text and the thumbnail. Without a
    content, the file is kept as it came.
    """

    fault: FaultCode = ""
    reason: str = ""  # of the fault, a sentence for the user
    facts: Facts | None = None
    content: int = 0  # bytes
    text: int = 0
    thumbnail: int = 0
    is_last: bool = False  # the process ends after this reply
    surprise: str = ""  # the name of an exception in Halt's own code, for the log


encode = msgspec.msgpack.Encoder().encode
requests = msgspec.msgpack.Decoder(Request)
replies = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """The bytes of a message as sent."""
    return framed(encode(message))
