"""The contents of prompts with files, as models get them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.chat.file_contents import (
    PARTS_MAX,
    FileContents,
    ImagesNotRead,
    messages_with_files,
)
from halt.config.settings import Config
from halt.core.parts import FilePart
from halt.errors import TooLarge
from halt.files.facts import Facts, Kind, Role
from halt.model_info import UNKNOWN, Abilities
from halt.store.models import Attachment, StoredFile
from halt.store.prompt_messages import Contents, PathMessage, PromptPath
from halt.store.store import Store
from tests.support.stores import open_store

NO_IMAGES, READS_PDF = Abilities(images=False), Abilities(pdf=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


def attach(
    store: Store,
    name: str,
    kind: Kind = "text",
    text: str = "",
    content: bytes = b"",
    pages: int = 0,
    text_pages: int = 0,
) -> Attachment:
    """A stored file."""
    content = content or name.encode()
    facts = Facts(
        kind,
        {"image": "image/png", "pdf": "application/pdf"}.get(kind, "text/plain"),
        "X",
        1,
        pages=pages,
        text_pages=text_pages,
        chars=len(text),
        text_chars=len(text),
    )
    data: dict[Role, bytes] = {"content": content, "text": text.encode(), "thumbnail": b""}
    file = StoredFile(
        hashlib.sha256(content).hexdigest(), facts, {role: len(d) for role, d in data.items()}
    )
    stored = store.files.save("anna", file, lambda role: iter([data[role]]), max_bytes=10**9)
    return Attachment(name, stored)


def contents(
    store: Store,
    *turns: tuple[str, list[Attachment]],
    abilities: Abilities = UNKNOWN,
    max_bytes: int = 10**6,
    max_chars: int = 10**6,
    refused: frozenset[str] = frozenset(),
) -> list[Contents]:
    """The contents of these prompts."""
    path = [PathMessage("user", "done", text, files=tuple(files)) for text, files in turns]
    maker = FileContents(
        store.files,
        "anna",
        path,
        abilities,
        max_bytes=max_bytes,
        max_chars=max_chars,
        refused=refused,
    )
    return [maker.contents(turn.text, turn.files) for turn in path]


def test_text_goes_under_a_heading_with_the_files_name(store: Store) -> None:
    """A whole file has its name alone; of a cut one it is said what is there."""
    whole = attach(store, "a.txt", text="One.")
    cut = attach(store, "b.pdf", "pdf", text="Two.", pages=212, text_pages=40)
    empty = attach(store, "scan.pdf", "pdf", pages=1, text_pages=1)
    assert contents(store, ("Look.", [whole, cut, empty])) == [
        "# a.txt\n\nOne.\n\n# b.pdf (pages 1 to 40 of 212)\n\nTwo.\n\n"
        "# scan.pdf\n\n(No text was found in this file.)\n\nLook."
    ]


def test_image_is_a_part_before_the_text(store: Store) -> None:
    """An image goes as OpenAI's image part; a message may have no text."""
    image = attach(store, "a.png", "image", content=b"pixels")
    url = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    assert contents(store, ("Look.", [image]), ("", [image])) == [
        [part, {"type": "text", "text": "Look."}],
        [part],
    ]


def test_pdf_is_a_part_for_a_model_that_reads_pdfs(store: Store) -> None:
    """The part has the text too, for a server that refuses it."""
    pdf = attach(store, "a.pdf", "pdf", text="One.", content=b"%PDF-", pages=1, text_pages=1)
    (made,) = contents(store, ("Look.", [pdf]), abilities=READS_PDF)
    assert isinstance(made, list)
    part, text = made
    assert isinstance(part, FilePart)
    assert part == {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
    }
    assert part.as_text() == {"type": "text", "text": "# a.pdf\n\nOne."}
    assert text == {"type": "text", "text": "Look."}


def test_model_without_images_gets_the_names_of_earlier_ones(store: Store) -> None:
    """An image of the last prompt is refused instead: the user may choose another model."""
    image = attach(store, "a.png", "image")
    assert contents(store, ("Look.", [image]), ("And now?", []), abilities=NO_IMAGES) == [
        "[image: a.png]\n\nLook.",
        "And now?",
    ]
    with pytest.raises(ImagesNotRead):
        contents(store, ("Look.", [image]), abilities=NO_IMAGES)


def test_refused_image_is_sent_where_the_last_prompt_has_it(store: Store) -> None:
    """Of earlier prompts the model gets its name, and the other images."""
    refused, other = (attach(store, name, "image") for name in ("a.png", "b.png"))
    hashes = frozenset({refused.file.hash})
    first, _ = contents(store, ("Look.", [refused, other]), ("And now?", []), refused=hashes)
    assert isinstance(first, list)
    assert [part["type"] for part in first] == ["image_url", "text"]
    assert first[1]["text"] == "[image: a.png]\n\nLook."
    (again,) = contents(store, ("Look.", [refused]), refused=hashes)
    assert isinstance(again, list)
    assert [part["type"] for part in again] == ["image_url", "text"]


def test_newest_images_are_sent_first(store: Store) -> None:
    """Of those beyond a limit of bytes or number the names are sent."""
    images = [attach(store, f"{n}.png", "image", content=b"x" * (n + 1)) for n in range(3)]
    turns = [(f"{n}", [image]) for n, image in enumerate(images)]
    assert contents(store, *turns, max_bytes=3)[:2] == [
        "[image: 0.png]\n\n0",
        "[image: 1.png]\n\n1",
    ]
    many = [attach(store, f"m{n}.png", "image") for n in range(PARTS_MAX + 1)]
    made = contents(store, *((image.name, [image]) for image in many))
    assert made[0] == "[image: m0.png]\n\nm0.png"
    assert all(isinstance(content, list) for content in made[1:])


def test_newest_texts_fit_into_the_request(store: Store) -> None:
    """Older texts are cut, then left out, so that a long conversation can go on."""
    texts = [attach(store, f"{n}.txt", text=f"{n}" * 5_000) for n in range(3)]
    oldest, older, newest = contents(
        store, *((text.name, [text]) for text in texts), max_chars=8_000
    )
    assert oldest == "[file: 0.txt]\n\n0.txt"
    assert str(older).startswith("# 1.txt (the first 2,")
    assert newest == f"# 2.txt\n\n{'2' * 5_000}\n\n2.txt"
    assert len(str(oldest) + str(older) + str(newest)) <= 8_000


def test_texts_leave_room_for_the_conversations_own_system_prompt(store: Store) -> None:
    """The request has that prompt, not the server's."""
    text = attach(store, "a.txt", text="1" * 5_000)
    turns = [PathMessage("user", "done", "Look.", files=(text,))]
    config = Config(max_prompt_chars=9_000)
    for system_prompt, default_prompt, is_whole in (
        ("x" * 5_000, "", False),
        ("", "x" * 5_000, True),
        (None, "x" * 5_000, False),
    ):
        path = PromptPath(system_prompt, turns)
        messages = messages_with_files(config, store.files, "anna", path, default_prompt, UNKNOWN)
        assert sum(message.size for message in messages) <= 9_000
        assert messages[-1].content.startswith("# a.txt\n\n1") == is_whole


def test_pdf_beyond_the_limits_of_providers_goes_as_text(store: Store) -> None:
    """At most 100 pages in a request are sent as PDFs, the newest first."""
    long, short, newest = (
        attach(store, f"{n}.pdf", "pdf", text=f"Text {n}.", pages=n, text_pages=n)
        for n in (101, 60, 50)
    )
    made = contents(store, ("a", [short]), ("b", [newest]), ("c", [long]), abilities=READS_PDF)
    assert made[0] == "# 60.pdf\n\nText 60.\n\na"
    assert isinstance(made[1], list)
    assert made[2] == "# 101.pdf\n\nText 101.\n\nc"


def test_new_images_beyond_the_providers_limit_are_refused(store: Store) -> None:
    """No image of the last prompt is left out silently; earlier ones are named."""
    images = [attach(store, f"{n}.png", "image", content=bytes([n]) * 10) for n in range(3)]
    small = Abilities(parts_bytes=25)
    made = contents(store, ("a", images[:1]), ("b", images[1:]), abilities=small)
    assert made[0] == "[image: 0.png]\n\na"
    with pytest.raises(TooLarge, match=r"at most 20 images of 0 MB in all"):
        contents(store, ("a", images), abilities=small)
    many = [attach(store, f"m{n}.png", "image") for n in range(PARTS_MAX + 1)]
    with pytest.raises(TooLarge, match=r"at most 20 images\."):
        contents(store, ("a", many))
