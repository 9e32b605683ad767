"""Imports of conversations with files: what is kept, what is refused, and what is left behind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from halt.chat.imports import Imported, Imports
from halt.chat.uploads import Uploads
from halt.config.settings import Config
from halt.errors import RequestError, TooLarge
from halt.files.readers import Readers
from halt.store.exports import to_json
from halt.store.files import attach
from halt.store.store import Store
from tests.support.export_files import exported_conversation
from tests.support.files import image, packed, pdf, row_counts
from tests.support.stores import WORKER, Chat, open_store

MESSAGE_MAX = 10_000


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    readers = Readers()
    yield readers
    readers.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


Setup = Callable[..., tuple[Imports, Uploads]]


@pytest.fixture
def setup(store: Store, tmp_path: Path, readers: Readers) -> Setup:
    """The imports of a Halt with these settings, and its uploads."""

    def made(**settings: Any) -> tuple[Imports, Uploads]:
        config = Config(data=str(tmp_path), **settings)
        uploads = Uploads(config, store.files, lambda: readers)
        return Imports(store, uploads, config.max_file_bytes), uploads

    return made


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def item(content: bytes, **fields: Any) -> dict[str, Any]:
    """A file in an export."""
    data = base64.b64encode(content).decode()
    return {"hash": hash_of(content), "type": "text/plain", "data": data, **fields}


def picture_step(file_hash: str, number: int) -> dict[str, Any]:
    """A picture beside an answer."""
    result = f"/files/{file_hash}"
    return {"number": number, "kind": "picture", "state": "done", "text": "Sky", "result": result}


def export(
    *items: dict[str, Any], attached: list[dict[str, str]], answer: str = "Yes.", **fields: Any
) -> bytes:
    """An export of another program: a prompt and an answer, both with these files."""
    conversation = exported_conversation("Look.", answer)
    for message in conversation["messages"]:
        message["files"] = attached
    conversation["messages"][1] |= fields
    head = {"format": "halt-conversations", "version": 1}
    return json.dumps(head | {"conversations": [conversation], "files": items}).encode()


def texts(store: Store, imported: Imported, owner: str = "anna") -> list[str]:
    """The prompt and the answer of the imported conversation."""
    (exchange,) = store.conversations.get(imported.ids[0], owner).exchanges
    return [exchange.prompt, exchange.answer]


def test_export_is_imported_with_its_files(store: Store, setup: Setup) -> None:
    """Another person gets the same files under the same hashes, in prompts and in answers."""
    imports, uploads = setup()
    photo = io.BytesIO()
    Image.effect_noise((60, 40), 50).convert("RGB").save(photo, "JPEG", comment=b"At home")
    contents = {
        "photo.jpg": photo.getvalue(),
        "shot.png": image(),
        "plan.pdf": pdf(["The plan"]),
        "data.csv": b"a,b\n1,2\n",
    }
    taken = {
        name: uploads.take("anna", name, io.BytesIO(content)).file
        for name, content in contents.items()
    }
    chat = Chat(store, "talk-with-files")
    attached = [(file.hash, name) for name, file in taken.items()]
    key = chat.new_stream()
    store.turns.add_prompt(
        chat.name, "anna", "Look.", [(key.id, "")], worker=WORKER, files=attached
    )
    picture = taken["shot.png"].hash
    chat.end(key, f"![Sky](/files/{picture})")
    with store.database.writing() as connection:
        answer_id = chat.last_exchange().answer_id
        attach(connection, "anna", answer_id, [(picture, "Sky.png")])
    data = b"".join(to_json(store.transfer.export("anna"), store.files.contents("anna")))
    assert len(json.loads(data)["files"]) == 4
    assert b"At home" not in base64.b64decode(json.loads(data)["files"][0]["data"])

    imported = imports.take("ben", data, MESSAGE_MAX)
    assert imported.unread == []
    (exchange,) = store.conversations.get(imported.ids[0], "ben").exchanges
    assert [(file.name, file.file.hash, file.file.facts) for file in exchange.files] == [
        (name, file.hash, file.facts) for name, file in taken.items()
    ]
    assert [(file.name, file.file.hash) for file in exchange.images] == [("Sky.png", picture)]
    assert exchange.answer == f"![Sky](/files/{picture})"
    for file in taken.values():
        for role in ("content", "text"):
            assert store.files.read("ben", file.hash, role) == store.files.read(
                "anna", file.hash, role
            )
        has_thumbnail = file.facts.kind == "image"
        assert bool(store.files.read("ben", file.hash, "thumbnail")) == has_thumbnail
    exported = b"".join(to_json(store.transfer.export("ben"), store.files.contents("ben")))
    assert json.loads(exported)["files"] == json.loads(data)["files"]


def test_own_files_are_not_read_again(store: Store, setup: Setup, readers: Readers) -> None:
    """An export without data, or with the same, refers to the files that the person has."""
    _, uploads = setup()
    file = uploads.take("anna", "a.txt", io.BytesIO(b"text")).file
    imports, uploads = setup(max_person_bytes=1024)
    uploads.take = None  # type: ignore[method-assign, assignment]
    for items in ([item(b"text")], []):
        data = export(*items, attached=[{"hash": file.hash, "name": "b.txt"}])
        imported = imports.take("anna", data, MESSAGE_MAX)
        (exchange,) = store.conversations.get(imported.ids[0], "anna").exchanges
        assert [(f.name, f.file) for f in (*exchange.files, *exchange.images)] == [
            ("b.txt", file)
        ] * 2
    assert row_counts(store)[0] == 1


def test_foreign_facts_are_not_trusted(store: Store, setup: Setup) -> None:
    """A file is what its content is; its name becomes one line, and its data may be escaped."""
    imports, _ = setup()
    content = bytes(range(0x3F, 0x80)) * 3  # has slashes in base64
    data = export(
        item(content, type="image/png", facts={"kind": "image"}),
        attached=[{"hash": hash_of(content), "name": "../../etc/\npasswd", "type": "image/png"}],
    )
    assert b"/" in data.partition(b'"data"')[2]
    imported = imports.take("anna", data.replace(b"/", rb"\/"), MESSAGE_MAX)
    (exchange,) = store.conversations.get(imported.ids[0], "anna").exchanges
    (file,) = exchange.files
    assert (file.name, file.file.facts.kind) == ("passwd", "text")
    assert store.files.read("anna", file.file.hash, "content") == content


def test_image_of_another_program_loses_its_metadata(store: Store, setup: Setup) -> None:
    """Its hash changes by that, and the links in the answer with it."""
    imports, _ = setup()
    exif = Image.Exif()
    exif[0x010F] = "Camera of Anna"
    content = image(kind="JPEG", exif=exif)
    link = f"A ![sky [1]](/files/{hash_of(content)}) and ![no](/files/{'0' * 64})."
    data = export(
        item(content),
        attached=[{"hash": hash_of(content), "name": "x.jpg"}],
        answer=link,
        folds=[picture_step(hash_of(content), 1), picture_step("0" * 64, 2)],
    )
    imported = imports.take("anna", data, MESSAGE_MAX)
    (exchange,) = store.conversations.get(imported.ids[0], "anna").exchanges
    (file,) = exchange.images
    assert file.file.hash != hash_of(content)
    assert b"Anna" not in store.files.read("anna", file.file.hash, "content")
    assert exchange.answer == link.replace(hash_of(content), file.file.hash)
    assert [step.result for step in exchange.steps] == [
        f"/files/{file.file.hash}",
        f"/files/{'0' * 64}",
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file | {"data": "?" + file["data"][1:]}, "damaged, its data is no base64"),
        (lambda file: file | {"data": file["data"][:-4]}, "damaged, its data has another hash"),
        (lambda file: file | {"data": item(b"other")["data"]}, "its data has another hash"),
        (lambda file: file | {"data": ""}, "its data has another hash"),
        (lambda file: file | {"data": 5}, "in file 2, the field “data” must be a text"),
        (lambda file: file | {"hash": "x"}, "“hash” must be 64 digits from 0 to f"),
        (lambda file: {"hash": file["hash"]}, "the field “data” is missing"),
    ],
    ids=["base64", "cut", "other", "empty", "number", "hash", "missing"],
)
def test_damaged_file_refuses_the_import(
    store: Store, setup: Setup, damage: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    """Nothing of the import is left, also not the file before the damaged one."""
    imports, _ = setup()
    good, bad = b"good" * 100, b"bad" * 100
    attached = [{"hash": hash_of(content), "name": "a.txt"} for content in (good, bad)]
    data = export(item(good), damage(item(bad)), attached=attached)
    with pytest.raises(RequestError, match=words) as error_info:
        imports.take("anna", data, MESSAGE_MAX)
    assert error_info.value.field == "file"
    assert row_counts(store) == (0, 0)
    assert store.conversations.summaries("anna").items == ()


def test_import_over_the_quota_leaves_nothing(store: Store, setup: Setup) -> None:
    """The person's other files stay, also one that was uploaded and not sent yet."""
    imports, uploads = setup(max_person_bytes=4_000)
    unsent = uploads.take("anna", "unsent.txt", io.BytesIO(b"unsent")).file.hash
    contents = [bytes([letter]) * 900 for letter in b"abc"]
    attached = [{"hash": hash_of(content), "name": "a.txt"} for content in contents]
    attached.append({"hash": unsent, "name": "b.txt"})
    data = export(*map(item, contents), attached=attached)
    with pytest.raises(TooLarge, match="at most 0 MB are kept"):
        imports.take("anna", data, MESSAGE_MAX)
    assert row_counts(store)[0] == 1
    assert store.files.read("anna", unsent, "content") == b"unsent"
    assert store.conversations.summaries("anna").items == ()


def test_file_that_is_not_there_becomes_its_name(store: Store, setup: Setup) -> None:
    """The model reads the name as it would that of a file it does not read."""
    imports, _ = setup()
    there, other = hash_of(b"there"), hash_of(b"not there")
    attached = [
        {"hash": hash_of(b"picture"), "name": "sky.png", "type": "image/png"},
        {"hash": there, "name": "there.txt"},
        {"hash": other, "name": "plan.pdf"},
    ]
    data = export(
        item(b"there"),
        attached=attached,
        answer=f"See ![the sky](/files/{hash_of(b'picture')})!",
        folds=[picture_step(hash_of(b"picture"), 1)],
    )
    imported = imports.take("anna", data, MESSAGE_MAX)
    assert imported.unread == ["sky.png", "plan.pdf"]
    assert texts(store, imported) == [
        "[image: sky.png]\n\n[file: plan.pdf]\n\nLook.",
        "[file: plan.pdf]\n\nSee [image: sky.png]!",
    ]
    (exchange,) = store.conversations.get(imported.ids[0], "anna").exchanges
    assert [file.name for file in (*exchange.files, *exchange.images)] == ["there.txt"] * 2
    assert [(step.text, step.result) for step in exchange.steps] == [("Sky", "")]


@pytest.mark.parametrize("content", [packed({"a.txt": b"a"}), b"long " * 300, b"\x00\x01\x02"])
def test_file_that_is_not_read_becomes_its_name(store: Store, setup: Setup, content: bytes) -> None:
    """A ZIP, one over this Halt's limit, one of an unknown kind: the conversations come anyway."""
    imports, _ = setup(max_file_bytes=1024)
    data = export(item(content), attached=[{"hash": hash_of(content), "name": "x.bin"}])
    imported = imports.take("anna", data, MESSAGE_MAX)
    assert imported.unread == ["x.bin"]
    assert texts(store, imported) == ["[file: x.bin]\n\nLook.", "[file: x.bin]\n\nYes."]
    assert row_counts(store) == (0, 0)
