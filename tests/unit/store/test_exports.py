"""Exports with files: JSON and ZIP, in pieces, on SQLite and PostgreSQL."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator, Sequence

import pytest

from halt.store.exports import to_json, to_zip
from halt.store.files import PART, attach
from halt.store.models import UnknownFile
from halt.store.portable import PortableConversation, PortableMessage
from halt.store.portable_files import PortableFile
from halt.store.store import Store
from tests.support.export_files import conversations_of
from tests.support.files import save
from tests.support.stores import WORKER, Chat


def ask_with(
    chat: Chat, *attached: tuple[str, str], images: Sequence[tuple[str, str]] = ()
) -> None:
    """Add an exchange whose prompt has files (hash, name), and its answer images."""
    key = chat.new_stream()
    chat.store.turns.add_prompt(
        chat.name, chat.owner, "Look.", [(key.id, "")], worker=WORKER, files=attached
    )
    chat.end(key, "I see.")
    with chat.store.database.writing() as connection:
        attach(connection, chat.owner, chat.last_exchange().answer_id, images)


def test_json_has_each_file_once_and_names_in_messages(store: Store) -> None:
    """Files come after the conversations, in pieces; those of other people are not there."""
    content = b"x" * (2 * PART + 1)
    large, small = save(store, content).hash, save(store, b"small").hash
    save(store, b"of ben", "ben")
    first, second = Chat(store, "first-talk"), Chat(store, "second-talk")
    ask_with(first, (large, "b.txt"), (small, "a.txt"), images=[(small, "c.txt")])
    ask_with(second, (large, "d.txt"))
    pieces = list(to_json(store.transfer.export("anna"), store.files.contents("anna")))
    assert all(len(piece) <= PART * 4 // 3 + 10 for piece in pieces)
    exported = json.loads(b"".join(pieces))
    assert {file["hash"]: base64.b64decode(file["data"]) for file in exported["files"]} == {
        large: content,
        small: b"small",
    }
    assert [file["type"] for file in exported["files"]] == ["text/plain"] * 2
    messages = [message for talk in exported["conversations"] for message in talk["messages"]]
    assert [[file["name"] for file in message.get("files", ())] for message in messages] == [
        ["b.txt", "a.txt"],
        ["c.txt"],
        ["d.txt"],
        [],
    ]


def test_import_attaches_the_files_that_the_person_has(store: Store) -> None:
    """A file that the person does not have refuses the import."""
    file = save(store)
    ask_with(Chat(store, "first-talk"), (file.hash, "a.txt"), images=[(file.hash, "b.txt")])
    data = b"".join(to_json(store.transfer.export("anna"), store.files.contents("anna")))
    with pytest.raises(UnknownFile):
        store.transfer.import_("ben", conversations_of(data))
    assert store.conversations.summaries("ben").items == ()
    save(store, owner="ben")
    (name,) = store.transfer.import_("ben", conversations_of(data))
    (exchange,) = store.conversations.get(name, "ben").exchanges
    assert [(f.name, f.file) for f in (*exchange.files, *exchange.images)] == [
        ("a.txt", file),
        ("b.txt", file),
    ]


def test_export_leaves_out_a_file_that_is_gone(store: Store) -> None:
    """The export is complete without it."""
    file = save(store, b"there")

    def conversations() -> Iterator[PortableConversation]:
        attached = [PortableFile("0" * 64, "gone.txt"), PortableFile(file.hash, "there.txt")]
        message = PortableMessage(1, "user", "Look.", files=attached)
        yield PortableConversation("talk-with-files", "Talk", [message], [1])

    contents = store.files.contents("anna")
    exported = json.loads(b"".join(to_json(conversations(), contents)))
    assert [item["hash"] for item in exported["files"]] == [file.hash]
    with zipfile.ZipFile(
        io.BytesIO(b"".join(to_zip(conversations(), "Talk", contents)))
    ) as archive:
        assert archive.namelist() == ["Talk.md", "files/2-there.txt"]


def test_zip_has_markdown_that_links_its_files(store: Store) -> None:
    """Names are safe, numbered, and end as an image's type says; links in answers lead there."""
    content = b"y" * (3 * PART)
    large, small = save(store, content).hash, save(store, b"small").hash

    def conversations() -> Iterator[PortableConversation]:
        text = PortableFile(large, "my [plan]: v1?.txt", "text/plain")
        photo = PortableFile(small, "IMG 1.HEIC", "image/jpeg")
        prompt = PortableMessage(1, "user", "Look.", files=[text, photo])
        answer = PortableMessage(
            2,
            "assistant",
            f"![sky](/files/{small})\n\n![no](/files/{'0' * 64})",
            parent=1,
            files=[PortableFile(small, "sky.png", "image/jpeg")],
        )
        again = PortableMessage(3, "user", "", parent=2, files=[text])
        last = PortableMessage(4, "assistant", "Yes.", parent=3, files=[photo])
        yield PortableConversation(
            "talk-with-files", "Talk", [prompt, answer, again, last], [1, 2, 3, 4]
        )

    pieces = list(to_zip(conversations(), "Talk", store.files.contents("anna")))
    assert len(pieces) > 3
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "Talk.md",
            "files/1-my [plan]- v1-.txt",
            "files/2-IMG 1.jpg",
        ]
        assert archive.read("files/1-my [plan]- v1-.txt") == content
        assert archive.read("Talk.md").decode() == (
            "# Talk\n\n## You\n\n"
            "[my \\[plan\\]: v1?.txt](files/1-my%20%5Bplan%5D-%20v1-.txt)\n\n"
            "![IMG 1.HEIC](files/2-IMG%201.jpg)\n\nLook.\n"
            f"\n## Answer\n\n![sky](files/2-IMG%201.jpg)\n\n![no](/files/{'0' * 64})\n"
            "\n## You\n\n[my \\[plan\\]: v1?.txt](files/1-my%20%5Bplan%5D-%20v1-.txt)\n"
            "\n## Answer\n\nYes.\n\n![IMG 1.HEIC](files/2-IMG%201.jpg)\n"
        )


def test_conversations_with_files_are_told(store: Store) -> None:
    """Only those of the person, and only the named ones; deleted ones are not exported."""
    file = save(store)
    ask_with(Chat(store, "with-files"), (file.hash, "a.txt"))
    ask_with(Chat(store, "without-files"))
    have_files = store.transfer.have_files
    assert (have_files("anna"), have_files("ben")) == (True, False)
    assert have_files("anna", ["with-files", "without-files"])
    assert not have_files("anna", ["without-files"])
    store.conversations.delete("with-files", "anna")
    assert not have_files("anna")


def test_imported_prompt_without_text_gives_the_names_as_title(store: Store) -> None:
    """As a new conversation would."""
    file = save(store)
    message = PortableMessage(1, "user", "", files=[PortableFile(file.hash, "plan.pdf")])
    store.transfer.import_("anna", [PortableConversation("no-text-here", "", [message])])
    assert store.conversations.summary("no-text-here", "anna").title == "plan.pdf"
