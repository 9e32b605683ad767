"""Files in the store: parts, quotas, what uses them, and when they are removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from halt.errors import TooLarge
from halt.files.facts import Facts, Role
from halt.store.files import PART, UNFINISHED_FOR, UNUSED_FOR
from halt.store.models import StoredFile, UnknownFile
from halt.store.retention import DELETED_FOR
from halt.store.store import Store
from halt.store.tables import file_parts, files
from tests.support.files import row_counts, save
from tests.support.stores import WORKER, Chat


@pytest.fixture
def chat(store: Store) -> Chat:
    return Chat(store)


def test_file_is_stored_once_for_its_owner(store: Store) -> None:
    """The same content of one person is one file; that of another is another one."""
    content = b"x" * (2 * PART + 1)
    file = save(store, content)
    assert save(store, content) == file
    assert row_counts(store) == (1, 4)
    assert store.files.read("anna", file.hash, "content") == content
    assert store.files.read("anna", file.hash, "text") == content[:100]
    with pytest.raises(UnknownFile):
        store.files.get("ben", file.hash)
    save(store, content, "ben")
    assert row_counts(store) == (2, 8)


def test_files_of_a_person_are_limited(store: Store) -> None:
    """A file beyond the limit is refused and leaves nothing; the same file again takes no place."""
    save(store, b"a" * 900, max_bytes=1_000)
    save(store, b"a" * 900, max_bytes=1_000)
    with pytest.raises(TooLarge, match="at most 0 MB"):
        save(store, b"b" * 900, max_bytes=1_000)
    assert row_counts(store)[0] == 1
    save(store, b"b" * 900, "ben", max_bytes=1_000)


def test_files_of_a_person_are_limited_also_at_once(store: Store) -> None:
    """Of many uploads at the same moment only those that fit are stored."""
    count = 10
    save(store, b"The database is ready.", "ben")
    start = threading.Barrier(count)

    def save_one(number: int) -> bool:
        start.wait()
        try:
            save(store, bytes([number]) * 900, max_bytes=1_500)
        except TooLarge:
            return False
        return True

    with ThreadPoolExecutor(count) as threads:
        assert sum(threads.map(save_one, range(count))) == 1


def ask_with(chat: Chat, *attached: tuple[str, str]) -> None:
    """Add an exchange whose prompt has files (hash, name)."""
    key = chat.new_stream()
    chat.store.turns.add_prompt(
        chat.name, chat.owner, "Look.", [(key.id, "")], worker=WORKER, files=attached
    )
    chat.end(key, "I see.")


def names(chat: Chat) -> list[list[str]]:
    """The names of the prompts' files."""
    return [[file.name for file in exchange.files] for exchange in chat.read().exchanges]


def sweep(store: Store, seconds: float) -> None:
    """Remove what is due after this time."""
    while store.generations.sweep(time.time() + seconds):
        pass


def test_prompt_has_its_files_in_order(chat: Chat) -> None:
    """The names belong to the message, and the model's path has the files too."""
    first = save(chat.store, b"one", chat.owner).hash
    second = save(chat.store, b"two", chat.owner).hash
    ask_with(chat, (second, "b.txt"), (first, "a.txt"), (first, "again.txt"))
    ask_with(chat)
    assert names(chat) == [["b.txt", "a.txt", "again.txt"], []]
    path = chat.store.conversations.prompt_path(chat.name, chat.owner)
    assert [[file.name for file in turn.files] for turn in path.turns] == [
        ["b.txt", "a.txt", "again.txt"],
        [],
        [],
        [],
    ]
    assert chat.prompt_messages()[0] == (
        "user",
        "[file: b.txt]\n\n[file: a.txt]\n\n[file: again.txt]\n\nLook.",
    )


def test_files_of_others_and_unknown_ones_are_refused(chat: Chat) -> None:
    """Nothing of a refused prompt is kept."""
    theirs = save(chat.store, b"secret", "somebody").hash
    for file_hash in (theirs, "0" * 64, theirs.upper(), "\0", ""):
        with pytest.raises(UnknownFile):
            ask_with(chat, (file_hash, "x.txt"))
    assert chat.store.conversations.summaries(chat.owner).items == ()


def test_unsent_file_is_removed_after_a_day(store: Store) -> None:
    """A file that no message has is kept for UNUSED_FOR after its last upload."""
    save(store)
    sweep(store, UNUSED_FOR - 60)
    assert row_counts(store) == (1, 2)
    sweep(store, UNUSED_FOR + 60)
    assert row_counts(store) == (0, 0)


def test_upload_that_broke_off_is_removed(store: Store) -> None:
    """A file without all of its parts cannot be read, and is removed."""
    file = save(store)
    with store.database.writing() as connection:
        connection.execute(update(files).values(complete=False))
    with pytest.raises(UnknownFile):
        store.files.get("anna", file.hash)
    sweep(store, UNFINISHED_FOR + 60)
    assert row_counts(store) == (0, 0)


def test_upload_that_broke_off_can_be_repeated(store: Store) -> None:
    """The second upload completes the rows of the first."""
    file = save(store)
    with store.database.writing() as connection:
        connection.execute(update(files).values(complete=False))
        connection.execute(file_parts.delete().where(file_parts.c.role == "text"))
    assert save(store) == file
    assert row_counts(store) == (1, 2)
    assert store.files.read("anna", file.hash, "text") == b"content"


def test_upload_that_broke_off_stays_while_it_is_repeated(store: Store) -> None:
    """A sweep during the second upload, long after the first one."""
    content, facts = b"x" * (2 * PART), Facts("text", "text/plain", "TXT", 3)
    file = StoredFile("0" * 64, facts, {"content": len(content)})

    def broken_off(role: Role) -> Iterator[bytes]:
        yield content[:PART]
        raise ConnectionError

    def swept(role: Role) -> Iterator[bytes]:
        yield content[:PART]
        while store.generations.sweep(time.time()):
            pass
        yield content[PART:]

    with pytest.raises(ConnectionError):
        store.files.save("anna", file, broken_off, max_bytes=10**9)
    with store.database.writing() as connection:
        long_ago = time.time() - UNFINISHED_FOR - 60
        connection.execute(update(files).values(unused_since=long_ago, uploaded_at=long_ago))
    assert store.files.save("anna", file, swept, max_bytes=10**9) == file
    assert store.files.read("anna", file.hash, "content") == content


def test_file_goes_with_the_last_conversation_that_has_it(store: Store) -> None:
    """A file stays while any conversation has it, also a deleted one that can be restored."""
    chats = Chat(store), Chat(store, "second")
    file = save(store, owner=chats[0].owner)
    for chat in chats:
        ask_with(chat, (file.hash, "a.txt"))
    store.conversations.delete(chats[0].name, chats[0].owner)
    sweep(store, DELETED_FOR + 60)
    assert row_counts(store) == (1, 2)
    assert names(chats[1]) == [["a.txt"]]
    store.conversations.delete(chats[1].name, chats[1].owner)
    sweep(store, DELETED_FOR - 60)
    assert row_counts(store) == (1, 2)
    sweep(store, DELETED_FOR + 60)
    assert row_counts(store) == (0, 0)


def test_deleted_conversation_is_restored_with_its_files(chat: Chat) -> None:
    """A deletion that is undone within its time loses no file."""
    file = save(chat.store, owner=chat.owner)
    ask_with(chat, (file.hash, "a.txt"))
    chat.store.conversations.delete(chat.name, chat.owner)
    sweep(chat.store, DELETED_FOR - 60)
    chat.store.conversations.undelete(chat.name, chat.owner)
    sweep(chat.store, 10 * DELETED_FOR)
    assert names(chat) == [["a.txt"]]
    assert chat.store.files.read(chat.owner, file.hash, "content") == b"content"


def test_file_whose_person_is_removed_while_it_is_stored_leaves_nothing(store: Store) -> None:
    """The parts that come after the removal go too."""
    content = b"x" * (2 * PART)
    facts = Facts("text", "text/plain", "TXT", 3)

    def parts(role: Role) -> Iterator[bytes]:
        yield content[:PART]
        store.accounts.remove("anna")
        yield content[PART:]

    with pytest.raises(UnknownFile):
        store.files.save(
            "anna", StoredFile("0" * 64, facts, {"content": len(content)}), parts, max_bytes=10**9
        )
    assert row_counts(store) == (0, 0)


def test_unused_files_are_removed_at_once_and_others_stay(store: Store) -> None:
    """What a failed import has added goes; a message's file stays."""
    chat = Chat(store)
    used, unused = save(store, b"used").hash, save(store, b"unused").hash
    ask_with(chat, (used, "a.txt"))
    save(store, b"unused", "ben")
    store.files.remove_unused("anna", [used, unused])
    store.files.remove_unused("anna", [])
    assert store.files.many("anna", [used, unused]).keys() == {used}
    assert store.files.read("ben", unused, "content") == b"unused"
    assert row_counts(store) == (2, 4)


def test_refreshed_file_is_kept_for_another_day(store: Store) -> None:
    """An import refers to a file that was uploaded before and is not sent yet."""
    file = save(store)
    with store.database.writing() as connection:
        connection.execute(update(files).values(unused_since=time.time() - UNUSED_FOR - 60))
    assert store.files.refresh("anna", file.hash)
    assert not store.files.refresh("ben", file.hash)
    sweep(store, 0)
    assert row_counts(store) == (1, 2)
    with store.database.writing() as connection:
        connection.execute(update(files).values(complete=False))
    assert not store.files.refresh("anna", file.hash)


def test_discarded_prompt_leaves_its_files_for_a_day(chat: Chat) -> None:
    """The text of a discarded prompt goes back into the composer, and its files with it."""
    file = save(chat.store, owner=chat.owner)
    ask_with(chat, (file.hash, "a.txt"))
    chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id)
    sweep(chat.store, UNUSED_FOR - 60)
    ask_with(chat, (file.hash, "a.txt"))
    assert names(chat) == [["a.txt"]]
    sweep(chat.store, 10 * UNUSED_FOR)
    assert row_counts(chat.store) == (1, 2)
