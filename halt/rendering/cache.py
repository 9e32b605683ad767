"""HTML that was rendered: kept under a digest of its source, what was used last the longest."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from hashlib import blake2b

from halt.rendering.protocol import Rendered

KEPT_MAX = 16_000_000  # bytes of HTML that are kept
ENTRY = 300  # bytes beside the HTML of one


def key_of(*parts: str) -> bytes:
    """What these texts are kept under."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.digest()


class Cache:
    """HTML by key. Any thread may call it: `_lock` protects the table and its size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Rendered] = OrderedDict()  # the one used last is the last
        self._bytes = 0

    def find(self, key: bytes) -> Rendered | None:
        """What is kept under this key."""
        with self._lock:
            drawn = self._kept.get(key)
            if drawn is not None:
                self._kept.move_to_end(key)
            return drawn

    def keep(self, key: bytes, drawn: Rendered) -> Rendered:
        """Keep it; what was not used for longest goes where there is no room."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = drawn
                self._bytes += _memory(drawn)
            while self._bytes > KEPT_MAX:
                _, old = self._kept.popitem(last=False)
                self._bytes -= _memory(old)
        return drawn


def _memory(drawn: Rendered) -> int:
    """Bytes that it takes among what is kept."""
    return sys.getsizeof(drawn.html) + ENTRY
