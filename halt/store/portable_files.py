"""The files in an export: read from base64 in pieces, never the whole of one in memory.

    "files": [{"hash": "SHA-256 of the content", "type": "image/png", "data": "base64"}]

Each is there once, however many messages have it. Its type is for people and other programs: an
import reads the content as it reads an upload.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import msgspec

from halt.errors import RequestError

#: Gives the content of a file in pieces, by its hash. Raises UnknownFile.
ContentReader = Callable[[str], Iterator[bytes]]

PIECE = 1 << 18  # characters that are decoded at a time; a multiple of 4
Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

_text = msgspec.json.Decoder(str)


class PortableFile(msgspec.Struct, omit_defaults=True):
    """A file of a message."""

    hash: Hash
    name: str
    type: str = ""  # its media type; an import does not use it


def encoded(file_hash: str, media_type: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The JSON of a file, in pieces. Raises UnknownFile before the first one."""
    first = next(pieces, b"")
    head = msgspec.json.encode({"hash": file_hash, "type": media_type, "data": ""})
    yield head.removesuffix(b'"}')
    rest = b""
    for piece in chain((first,), pieces):
        data = rest + piece
        whole = len(data) - len(data) % 3
        rest = data[whole:]
        yield base64.b64encode(data[:whole])
    yield base64.b64encode(rest) + b'"}'


@dataclass(frozen=True)
class EncodedFile:
    """A file in an export; its content is decoded piece by piece, each time it is read."""

    hash: str  # as the export says
    _data: memoryview | bytes  # base64

    @classmethod
    def from_json(cls, file_hash: str, raw: memoryview) -> EncodedFile:
        """A file with this JSON string as data. Raises MsgspecError for any other value."""
        ends = bytes(raw[:1]), bytes(raw[-1:])
        is_plain = ends == (b'"', b'"') and b"\\" not in bytes(raw[:PIECE])
        # Other programs than Halt may write "\/" for each slash.
        return cls(file_hash, raw[1:-1] if is_plain else _text.decode(raw).encode())

    @property
    def size(self) -> int:
        """Bytes of its content, if its data is valid."""
        padding = bytes(self._data[-2:]).count(b"=")
        return len(self._data) // 4 * 3 - padding

    def pieces(self) -> Iterator[bytes]:
        """Its content. Raises RequestError (`file`) where its data is no base64."""
        for at in range(0, len(self._data), PIECE):
            piece = self._data[at : at + PIECE]
            try:
                yield binascii.a2b_base64(piece, strict_mode=True)
            except ValueError:
                raise self.fault("its data is no base64") from None

    def check(self) -> None:
        """Raise RequestError (`file`) where its data is no base64 or has another hash."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        if digest.hexdigest() != self.hash:
            raise self.fault("its data has another hash")

    def fault(self, reason: str) -> RequestError:
        """The error of a file that is damaged."""
        return RequestError(
            f"This file can't be imported: the file {self.hash[:12]}… in it is damaged, {reason}. "
            "Export the chats again, then import that file.",
            field="file",
        )
