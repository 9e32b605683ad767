"""Tells images that have nothing but their pixels, as Halt writes them itself."""

from __future__ import annotations

import re
import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS = 8
_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF, _SCAN_START = 0xE0, 0xDA
_JFIF_SIZE = 16  # without a thumbnail
#: The other segments that decoding takes: DQT, DHT, DRI, and two kinds of frames.
_SEGMENTS = frozenset({0xDB, 0xC4, 0xDD, 0xC0, 0xC2})
_SCAN = re.compile(rb"(?:[^\xff]++|\xff[\x00\xd0-\xd7])*+")


def is_bare(data: bytes) -> bool:
    """Whether this PNG or JPEG has no metadata, no profile, and nothing after its end."""
    if data.startswith(_SIGNATURE):
        return _is_bare_png(data)
    return data.startswith(_START) and _is_bare_jpeg(data)


def _is_bare_png(data: bytes) -> bool:
    """Of 8 bits, with the chunks IHDR, IDAT and IEND alone."""
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return size == 0 and at + 12 == len(data)
        if kind not in {b"IHDR", b"IDAT"}:
            return False
        if kind == b"IHDR" and data[at + 16] != _EIGHT_BITS:
            return False
        at += 12 + size
    return False


def _is_bare_jpeg(data: bytes) -> bool:
    at = len(_START)
    while at + 4 <= len(data):
        marker, kind, size = struct.unpack_from(">BBH", data, at)
        if marker != 0xFF or (kind == _JFIF and size != _JFIF_SIZE):
            return False
        at += 2 + size
        if kind == _SCAN_START:
            scan = _SCAN.match(data, at)
            at = scan.end() if scan else at
            if data[at : at + 2] == _END:
                return at + 2 == len(data)
        elif kind != _JFIF and kind not in _SEGMENTS:
            return False
    return False
