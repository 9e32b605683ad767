"""Pictures of answers become files: all kinds, limits, faults, and an end of the process."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from halt.chat import answer_pictures
from halt.chat.answer_pictures import PICTURES_MAX, AnswerPictures
from halt.chat.uploads import Uploaded, Uploads
from halt.config.settings import Config
from halt.core.steps import Step
from halt.files.faults import ReadersBusy, Unreadable
from halt.rendering.data_urls import labelled, replace_for_model, restored
from halt.store.models import Exchange
from halt.store.store import Store
from halt.testing.scenarios import png
from tests.support.files import huge_png, image
from tests.support.stores import Chat, open_store, write_end

WAIT = 30.0  # seconds
PNG = png(12)


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class Talk(Chat):
    """A conversation whose answers' pictures are kept."""

    def __init__(self, store: Store, folder: Path, **settings: Any) -> None:
        super().__init__(store)
        self.config = Config(data=str(folder), **settings)
        self.uploads = Uploads(self.config, store.files)
        self.pictures = AnswerPictures(store.pictures, self.uploads)

    def answer(self, text: str, *steps: Step) -> Exchange:
        """Add an answer, and return it after its pictures were looked at."""
        write_end(self.store, self.ask("Draw."), text, steps=steps)
        return self.look()

    def look(self) -> Exchange:
        answer_id = self.last_exchange().answer_id
        self.pictures.look(self.owner, answer_id)
        assert self.pictures.wait(self.owner, answer_id, WAIT)
        return self.last_exchange()

    def close(self) -> None:
        self.pictures.close()
        self.uploads.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened_store:
        yield opened_store


@pytest.fixture
def make_talk(store: Store, tmp_path: Path) -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def make(**settings: Any) -> Talk:
        talks.append(Talk(store, tmp_path, **settings))
        return talks[-1]

    yield make
    for talk in talks:
        talk.close()


@pytest.fixture
def talk(make_talk: Callable[..., Talk]) -> Talk:
    return make_talk()


def picture_step(result: str, number: int = 1) -> Step:
    return Step(number, "picture", "done", text="Picture (PNG, 1 kB)", result=result)


def test_pictures_become_files(talk: Talk) -> None:
    """In Markdown, as a bare URL, and beside the text; the same picture is one file."""
    jpeg = data_url(image(30, 20, "JPEG"), "jpeg")
    answer = talk.answer(
        f"One ![a cat](data:image/png;base64,{PNG}), two {jpeg} end.",
        picture_step(f"data:image/png;base64,{PNG}"),
    )
    cat, second = (picture.file.hash for picture in answer.images)
    assert answer.answer == f"One ![a cat](/files/{cat}), two ![](/files/{second}) end."
    assert [step.result for step in answer.steps] == [f"/files/{cat}"]
    assert [picture.name for picture in answer.images] == ["a cat.png", "picture.jpeg"]
    assert talk.store.files.get("anna", cat).facts.width == 12
    assert replace_for_model(answer.answer) == "One [picture], two [picture] end."
    assert labelled(answer.answer) == "One [Picture: a cat], two [Picture] end."


def test_other_data_stays(talk: Talk) -> None:
    """Pictures in code, other kinds of pictures and other data are left as they are."""
    text = (
        f"`{data_url(b'x' * 200)}` ![v](data:image/svg+xml;base64,{'AAAA' * 50}) "
        f"data:audio/mpeg;base64,{'AAAA' * 100}"
    )
    assert talk.answer(text).answer == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture at all, but a text of some length", "It is no image."),
        (huge_png(20_000, 20_000), "The image has 20,000 x 20,000 pixels; at most 100 million are"),
        (base64.b64decode(PNG)[:200], "The image is damaged."),
        (b"\0\1\2\3" * 40, "It is no image that Halt reads."),
    ],
    ids=["text", "bomb", "cut", "unknown"],
)
def test_picture_that_cannot_be_kept_says_why(talk: Talk, content: bytes, reason: str) -> None:
    """A lie, a bomb and a damaged picture are replaced by their label and the reason."""
    answer = talk.answer(f"See ![a cat]({data_url(content)})!", picture_step(data_url(content)))
    assert answer.answer.startswith("See [Picture (PNG, ")
    assert f"): a cat. Not kept: {reason}" in answer.answer
    assert answer.answer.endswith("]!")
    (step,) = answer.steps
    assert (step.result, step.text.startswith(f"Picture (PNG, 1 kB). Not kept: {reason}")) == (
        "",
        True,
    )
    assert answer.images == ()


def test_picture_that_broke_off_is_a_label(talk: Talk) -> None:
    """A Stop in the middle of the data leaves a line, and no data."""
    answer = talk.answer(f"Here:\n\n![a cat](data:image/png;base64,{PNG[:300]}")
    assert answer.answer == "Here:\n\n[Picture (PNG, 225 B, incomplete)]"


def test_number_of_pictures_is_limited(talk: Talk) -> None:
    """Those beyond the limit have a line that says so; the text is whole."""
    count = PICTURES_MAX + 2
    urls = [data_url(image(10 + n, 10)) for n in range(count)]
    answer = talk.answer(" ".join(f"![p{n}]({url})" for n, url in enumerate(urls)))
    assert len(answer.images) == PICTURES_MAX
    assert answer.answer.count(f"Not kept: An answer has at most {PICTURES_MAX} pictures.") == 2


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("max_file_bytes", "The file is larger than 0 MB."),
        ("max_person_bytes", "Your files take 0 MB already"),
    ],
)
def test_limits_of_files_hold_for_pictures(
    make_talk: Callable[..., Talk], setting: str, reason: str
) -> None:
    """The limits of bytes of one file and of a person's files; the reason is on the page."""
    answer = make_talk(**{setting: 1024}).answer(f"![n](data:image/png;base64,{png(40)})")
    assert f"n. Not kept: {reason}" in answer.answer


def test_busy_readers_are_waited_for(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes is tried again."""
    monkeypatch.setattr(answer_pictures, "PAUSE", 0.01)
    take, calls = talk.uploads.take, []

    def busy_once(*args: Any) -> Uploaded:
        calls.append(args)
        if len(calls) == 1:
            raise ReadersBusy("Too many files are being read.")
        return take(*args)

    monkeypatch.setattr(talk.uploads, "take", busy_once)
    assert len(talk.answer(f"![n](data:image/png;base64,{PNG})").images) == 1
    assert len(calls) == 2


def test_end_of_the_process_leaves_the_answer_for_the_next(
    make_talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that is being read when the process ends is kept by the next look."""
    talk = make_talk()
    reading, ending = threading.Event(), threading.Event()

    def killed(*_: Any) -> Uploaded:
        reading.set()
        assert ending.wait(WAIT)
        raise Unreadable("a.png", "Reading the file took too much time or memory.")

    monkeypatch.setattr(talk.uploads, "take", killed)
    text = f"![n](data:image/png;base64,{PNG})"
    write_end(talk.store, talk.ask("Draw."), text)
    answer_id = talk.last_exchange().answer_id
    talk.pictures.look("anna", answer_id)
    assert reading.wait(WAIT)
    monkeypatch.setattr(answer_pictures, "CLOSE_WAIT", 0.0)
    talk.pictures.close()
    ending.set()
    assert talk.pictures.wait("anna", answer_id, WAIT)
    assert talk.last_exchange().answer == text
    assert len(make_talk().look().images) == 1


def test_continued_answer_is_looked_at_again(talk: Talk) -> None:
    """Pictures of a later part join those of the first, and the prefix is found again."""
    first = talk.answer(f"![one](data:image/png;base64,{PNG}) and")
    key = talk.continue_answer()
    assert talk.look().images == first.images  # nothing happens to it while it is written
    write_end(talk.store, key, f"{first.answer} ![two](data:image/png;base64,{png(14)})")
    answer = talk.look()
    assert [picture.name for picture in answer.images] == ["one.png", "two.png"]
    record = talk.store.generations.get_ended(key)
    assert record is not None
    assert record.prefix == first.answer


def test_edited_text_gets_its_pictures_back(talk: Talk) -> None:
    """Labels that were copied into the editor before or after the storing stand for the picture."""
    text = f"A ![a cat](data:image/png;base64,{PNG}) B ![](data:image/png;base64,{png(14)}) C"
    answer = talk.answer(text).answer
    for label in (labelled(text), labelled(answer)):
        assert restored(label.replace("B", "more"), answer) == answer.replace("B", "more")
    assert restored("no label", answer) == "no label"
