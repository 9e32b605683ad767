"""A cache of rendered HTML, by a digest of its source; evicts the least recently used entry."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from hashlib import blake2b

from halt.rendering.protocol import Rendered

ENTRY = 300  # bytes of an entry beside its HTML


def key_of(*parts: str) -> bytes:
    """The cache key of these texts: a digest of 16 bytes."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.digest()


class Cache:
    """HTML by key. Thread-safe: `_lock` protects the table and its size."""

    def __init__(self, kept_max: int) -> None:
        """`kept_max`: bytes of HTML."""
        self._kept_max = kept_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Rendered] = OrderedDict()  # the last one was used last
        self._bytes = 0

    def find(self, key: bytes) -> Rendered | None:
        """The entry under this key, None if there is none."""
        with self._lock:
            rendered = self._kept.get(key)
            if rendered is not None:
                self._kept.move_to_end(key)
            return rendered

    def keep(self, key: bytes, rendered: Rendered) -> Rendered:
        """Store an entry and return it; evict the least recently used ones beyond the limit."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = rendered
                self._bytes += _memory(rendered)
            while self._bytes > self._kept_max:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _memory(oldest)
        return rendered


def _memory(rendered: Rendered) -> int:
    """Bytes of memory of one entry."""
    return sys.getsizeof(rendered.html) + ENTRY
