"""The protocol between a worker and its rendering process, and the time limits of requests.

A frame (`halt.child_process`) is a message in msgpack. The worker sends a `Request`, and waits for
its `Reply`. When the process is ready, it first sends an empty `Reply`.
"""

from __future__ import annotations

import msgspec

from halt.child_process import framed
from halt.rendering.streaming.blocks import Block, Kind

# Seconds of CPU on the machine where they were chosen, seconds for each character, and the most.
# Slower machines have more (`halt.rendering.process.slowness`). Together they are below 0.5 s.
# Beyond its limit a text is shown plain.
#: Markdown of a text: prose takes 0.6 us a character, a table 3, lazy lines in nested quotes 25.
TEXT_LIMIT, TEXT_LIMIT_A_CHARACTER, TEXT_LIMIT_MAX = 0.06, 6e-6, 0.22
#: Share of that limit for a second try, block by block, if a text took too long as a whole.
RETRY_SHARE = 0.2
#: Colours of one block: ordinary code takes 0.5 to 1.5 us a character, the worst exponential time.
CODE_LIMIT, CODE_LIMIT_A_CHARACTER = 0.03, 4e-6
#: Colours of all blocks of one text.
COLOURS_LIMIT, COLOURS_LIMIT_A_CHARACTER, COLOURS_LIMIT_MAX = 0.06, 4e-6, 0.22
#: Most times that a machine may be slower and still has the limits prolonged.
SLOWNESS_MAX = 4.0

#: Seconds of real time for a request, after which its process is taken to hang: BUSIEST times its
#: CPU seconds on the slowest machine (the process shares it with others), plus GRACE.
BUSIEST = 4.0
GRACE = 1.0


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A whole text, or blocks as pairs of source and kind."""

    text: str | None
    blocks: list[tuple[str, Kind]]

    @property
    def size(self) -> int:
        """Characters of the text or of all blocks."""
        return len(self.text or "") + sum([len(source) for source, _ in self.blocks])

    @property
    def limit(self) -> float:
        """Seconds of CPU that the request may take, before they are prolonged."""
        retry = RETRY_SHARE if self.text is not None else 0.0
        return (1 + retry) * text_limit(self.size) + colours_limit(self.size)

    @property
    def deadline(self) -> float:
        """Seconds after which the process is taken to hang."""
        return BUSIEST * SLOWNESS_MAX * self.limit + GRACE


class Rendered(msgspec.Struct, frozen=True, array_like=True):
    """The HTML of a text or block; `timed_out`: some of it is plain, as it took too long."""

    html: str
    timed_out: bool = False


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """One result for a text, or one for each block. `fault`: the name of an exception, or ""."""

    results: list[Rendered]
    fault: str = ""


def text_limit(size: int) -> float:
    """Seconds of CPU for Markdown of `size` characters."""
    return min(TEXT_LIMIT + TEXT_LIMIT_A_CHARACTER * size, TEXT_LIMIT_MAX)


def code_limit(size: int) -> float:
    """Seconds of CPU for the colours of one block of `size` characters."""
    return CODE_LIMIT + CODE_LIMIT_A_CHARACTER * size


def colours_limit(size: int) -> float:
    """Seconds of CPU for the colours of all blocks in a text of `size` characters."""
    return min(COLOURS_LIMIT + COLOURS_LIMIT_A_CHARACTER * size, COLOURS_LIMIT_MAX)


def block_of(source: str, kind: Kind) -> Block:
    """The block of a request's pair."""
    return Block(source.split("\n"), kind)


encode = msgspec.msgpack.Encoder().encode
requests = msgspec.msgpack.Decoder(Request)
replies = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """The bytes of a message as sent."""
    return framed(encode(message))
