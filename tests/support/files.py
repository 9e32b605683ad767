"""Files of tests: stored ones, and the bytes of images and documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from halt.files.facts import Facts, Role
from halt.store.files import PART
from halt.store.models import StoredFile
from halt.store.store import Store

PLENTY = 10**9  # bytes


def save(
    store: Store, content: bytes = b"content", owner: str = "anna", max_bytes: int = PLENTY
) -> StoredFile:
    """Save a text file with this content."""
    facts = Facts("text", "text/plain", "TXT", 3, chars=len(content), text_chars=len(content))
    data: dict[Role, bytes] = {"content": content, "text": content[:100], "thumbnail": b""}
    file = StoredFile(
        hashlib.sha256(content).hexdigest(), facts, {role: len(d) for role, d in data.items()}
    )

    def parts(role: Role) -> Iterator[bytes]:
        for at in range(0, len(data[role]), PART):
            yield data[role][at : at + PART]

    return store.files.save(owner, file, parts, max_bytes=max_bytes)
