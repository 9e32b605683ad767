"""The protocol between a worker and its rendering process, and the time limits of requests.

A frame is its length, four bytes in network order, and as many bytes of msgpack. The worker sends a
`Request` and waits for its `Reply`; the process sends an empty `Reply` first, when it is ready.
"""

from __future__ import annotations

import struct

import msgspec

from halt.rendering.blocks import Block

# Seconds of CPU, and seconds for each character. What is over its limit is shown plain.
#: Markdown of a text: prose takes 1.3 us a character, a table 6, lazy lines in nested quotes 25.
TEXT_LIMIT, TEXT_LIMIT_A_CHARACTER, TEXT_LIMIT_MAX = 0.2, 20e-6, 2.0
#: Of that limit once more for its blocks one by one, where a text has taken too long as a whole.
AGAIN = 0.5
#: Colours of one block: ordinary code takes 1 to 3 us a character, the worst is exponential.
CODE_LIMIT, CODE_LIMIT_A_CHARACTER = 0.05, 10e-6
#: Colours of all blocks of one text.
COLOURS_LIMIT, COLOURS_LIMIT_A_CHARACTER, COLOURS_LIMIT_MAX = 0.15, 10e-6, 1.0

#: Seconds that a request may take by the clock: its process shares the machine with others.
SLOWEST = 5.0  # times its CPU seconds
GRACE = 1.0  # and so many more; then the process is taken to hang

_LENGTH = struct.Struct("!I")


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A whole text, or blocks: pairs of source and whether it is a fence."""

    text: str | None
    blocks: list[tuple[str, bool]]

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.text or "") + sum([len(source) for source, _ in self.blocks])

    @property
    def limit(self) -> float:
        """Seconds of CPU that it can take."""
        again = AGAIN if self.text is not None else 0.0
        return (1 + again) * text_limit(self.size) + colours_limit(self.size)

    @property
    def deadline(self) -> float:
        """Seconds after which its process is taken to hang."""
        return SLOWEST * self.limit + GRACE


class Rendered(msgspec.Struct, frozen=True, array_like=True):
    """The HTML of a text or a block; `timed_out`: something of it is plain, as it took too long."""

    html: str
    timed_out: bool = False


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """One for the text, or one for each block. `fault`: the kind of an exception, if there was."""

    results: list[Rendered]
    fault: str = ""


def text_limit(size: int) -> float:
    """Seconds of CPU for the Markdown of so many characters."""
    return min(TEXT_LIMIT + TEXT_LIMIT_A_CHARACTER * size, TEXT_LIMIT_MAX)


def code_limit(size: int) -> float:
    """Seconds of CPU for the colours of one block."""
    return CODE_LIMIT + CODE_LIMIT_A_CHARACTER * size


def colours_limit(size: int) -> float:
    """Seconds of CPU for the colours of all blocks in a text."""
    return min(COLOURS_LIMIT + COLOURS_LIMIT_A_CHARACTER * size, COLOURS_LIMIT_MAX)


def block_of(source: str, is_fence: bool) -> Block:
    """The block that a request names."""
    return Block(source.split("\n"), is_fence)


encode = msgspec.msgpack.Encoder().encode
requests = msgspec.msgpack.Decoder(Request)
replies = msgspec.msgpack.Decoder(Reply)
HEAD = _LENGTH.size


def frame(message: Request | Reply) -> bytes:
    """The message as it is sent."""
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes | bytearray) -> int:
    """How many bytes follow these first HEAD ones."""
    length: int = _LENGTH.unpack(head)[0]
    return length
