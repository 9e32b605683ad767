"""Files in the store: parts, quotas, what uses them, and when they are removed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, update

from halt.errors import TooLarge
from halt.files.facts import Facts, Role
from halt.store.files import PART, UNFINISHED_FOR, UNUSED_FOR
from halt.store.models import StoredFile, UnknownFile
from halt.store.retention import DELETED_FOR
from halt.store.store import Store
from halt.store.tables import file_parts, files
from tests.support.stores import WORKER, Chat

PLENTY = 10**9


@pytest.fixture
def chat(store: Store) -> Chat:
    return Chat(store)


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


def rows(store: Store) -> tuple[int, int]:
    """The numbers of files and of their parts."""
    with store.database.reading() as connection:
        counts = [connection.scalar(select(func.count()).select_from(t)) for t in (files, file_parts)]
    return counts[0] or 0, counts[1] or 0


def test_file_is_stored_once_for_its_owner(store: Store) -> None:
    """The same content of one person is one file; that of another is another one."""
    content = b"x" * (2 * PART + 1)
    file = save(store, content)
    assert save(store, content) == file
    assert rows(store) == (1, 4)
    assert store.files.read("anna", file.hash, "content") == content
    assert store.files.read("anna", file.hash, "text") == content[:100]
    with pytest.raises(UnknownFile):
        store.files.get("ben", file.hash)
    save(store, content, "ben")
    assert rows(store) == (2, 8)


def test_files_of_a_person_are_limited(store: Store) -> None:
    """A file beyond the limit is refused and leaves nothing; the same file again takes no place."""
    save(store, b"a" * 900, max_bytes=1_000)
    save(store, b"a" * 900, max_bytes=1_000)
    with pytest.raises(TooLarge, match="at most 0 MB"):
        save(store, b"b" * 900, max_bytes=1_000)
    assert rows(store)[0] == 1
    save(store, b"b" * 900, "ben", max_bytes=1_000)


def ask_with(chat: Chat, *named: tuple[StoredFile, str]) -> None:
    pairs = [(file.hash, name) for file, name in named]
    number = len(chat.read().exchanges) if chat.exists else 0
    chat.store.turns.add_prompt(
        chat.name, chat.owner, "Look.", [(f"stream-{number}", "")], worker=WORKER, files=pairs
    )
