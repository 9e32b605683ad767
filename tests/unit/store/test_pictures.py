"""Pictures of answers in the store: what happens between reading an answer and replacing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from halt.core.events import Cancelled
from halt.store.models import UnknownFile
from halt.store.pictures import EndedAnswer
from halt.store.store import Store
from tests.support.files import save
from tests.support.stores import METRICS, Chat

DATA = "![a](data:image/png;base64,AAAA)"


@pytest.fixture
def chat(store: Store) -> Chat:
    chat = Chat(store)
    chat.add_exchange("Draw.", f"Here: {DATA}")
    return chat


def answer_of(chat: Chat) -> EndedAnswer:
    answer = chat.store.pictures.get(chat.owner, chat.last_exchange().answer_id)
    assert answer is not None
    return answer


def with_picture(chat: Chat, before: EndedAnswer) -> tuple[EndedAnswer, str]:
    """The answer with a stored picture in place of the data, and the new text."""
    file_hash = save(chat.store, b"picture", chat.owner).hash
    text = before.text.replace(DATA, f"![a](/files/{file_hash})")
    return replace(before, text=text, pictures={file_hash: "a.png"}), text


def images(chat: Chat) -> list[str]:
    return [image.name for image in chat.last_exchange().images]


def test_answer_gets_its_pictures(chat: Chat) -> None:
    """The text, the files and the search have the new form; the model gets a word."""
    before = answer_of(chat)
    after, text = with_picture(chat, before)
    assert chat.store.pictures.replace(chat.owner, before, after)
    assert chat.exchanges() == [("Draw.", text)]
    assert images(chat) == ["a.png"]
    assert chat.prompt_messages()[-1] == ("assistant", "Here: [picture]")
    assert answer_of(chat) == after
    assert chat.store.pictures.place(chat.owner, "talk-1") == ("talk", before.message_id)


def test_second_worker_changes_nothing(chat: Chat) -> None:
    """Of two that replace the same answer one succeeds, and the files are its own once."""
    before = answer_of(chat)
    after, text = with_picture(chat, before)
    assert chat.store.pictures.replace(chat.owner, before, after)
    assert not chat.store.pictures.replace(chat.owner, before, after)
    assert chat.exchanges() == [("Draw.", text)]
    assert images(chat) == ["a.png"]


def test_pictures_beside_the_text_are_replaced_twice_alike(chat: Chat) -> None:
    """Where the text is the same, the second worker's files take the place of the first one's."""
    before = answer_of(chat)
    file_hash = save(chat.store, b"picture", chat.owner).hash
    after = replace(before, pictures={file_hash: "a.png"})
    for _ in range(2):
        assert chat.store.pictures.replace(chat.owner, before, after)
    assert images(chat) == ["a.png"]


def continued(chat: Chat) -> None:
    chat.continue_answer()


def continued_and_ended(chat: Chat) -> None:
    chat.end(chat.continue_answer(), f"Here: {DATA}")


def discarded(chat: Chat) -> None:
    chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id)


def given_away(chat: Chat) -> None:
    chat.store.owners.give([chat.owner], "ben")


@pytest.mark.parametrize("change", [continued, continued_and_ended, discarded, given_away])
def test_answer_that_has_changed_is_left_alone(chat: Chat, change: Callable[[Chat], None]) -> None:
    """A Continue, a discard and a new owner win against pictures that come later."""
    before = answer_of(chat)
    after, _ = with_picture(chat, before)
    change(chat)
    assert not chat.store.pictures.replace(chat.owner, before, after)
    for exchange in chat.store.conversations.summaries(chat.owner).items:
        assert exchange.id == chat.name
        assert images(chat) == []


def test_running_answer_is_not_read(chat: Chat) -> None:
    """An answer that is being written has no text yet that could be replaced."""
    message_id = chat.last_exchange().answer_id
    chat.continue_answer()
    assert chat.store.pictures.get(chat.owner, message_id) is None
    assert chat.store.pictures.get("ben", message_id) is None


def test_edit_before_and_after_the_pictures(chat: Chat) -> None:
    """An edit is a version of its own: the original gets its pictures, the edit keeps its text."""
    before = answer_of(chat)
    after, text = with_picture(chat, before)
    chat.edit_answer("Mine.")
    assert chat.store.pictures.replace(chat.owner, before, after)
    assert chat.exchanges() == [("Draw.", "Mine.")]
    chat.store.turns.show(chat.name, chat.owner, before.message_id)
    assert chat.exchanges() == [("Draw.", text)]
    chat.edit_answer(f"Mine: {text}")
    assert images(chat) == ["a.png"]


def test_continued_answer_keeps_its_prefix(chat: Chat) -> None:
    """The text before a Continue is found again after the pictures were replaced."""
    before = answer_of(chat)
    key = chat.continue_answer()
    chat.end(key, f"{before.text} and more", Cancelled(METRICS))
    before = answer_of(chat)
    assert before.prefixes == {key.id: len(f"Here: {DATA}")}
    after, text = with_picture(chat, before)
    prefix = text.removesuffix(" and more")
    after = replace(after, prefixes={key.id: len(prefix)})
    assert chat.store.pictures.replace(chat.owner, before, after)
    record = chat.store.generations.get_ended(key)
    assert record is not None
    assert record.prefix == prefix


def test_deleted_conversation_has_its_pictures_after_undo(chat: Chat) -> None:
    """A deletion can be undone, so the answer gets its pictures meanwhile."""
    before = answer_of(chat)
    after, text = with_picture(chat, before)
    chat.store.conversations.delete(chat.name, chat.owner)
    assert chat.store.pictures.replace(chat.owner, before, after)
    chat.store.conversations.undelete(chat.name, chat.owner)
    assert chat.exchanges() == [("Draw.", text)]


def test_picture_that_was_removed_meanwhile_changes_nothing(chat: Chat) -> None:
    """A file that is gone is an error, after which the answer is as it was."""
    before = answer_of(chat)
    after = replace(before, text="Here: ", pictures={"0" * 64: "a.png"})
    with pytest.raises(UnknownFile):
        chat.store.pictures.replace(chat.owner, before, after)
    assert answer_of(chat) == before
