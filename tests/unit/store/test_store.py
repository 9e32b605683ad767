"""The contract of the store on SQLite and PostgreSQL: conversations, search, events, recovery."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, func, select

from halt.core import notes
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    ErrorInfo,
    Event,
    Failed,
    Reasoning,
    ReasoningEnd,
)
from halt.core.metrics import NO_FIGURES
from halt.core.steps import Step
from halt.core.stream_key import StreamKey
from halt.errors import RequestError, StreamInUse
from halt.store import admission, search
from halt.store import transfer as module
from halt.store.batches import Batch, Chunk, GenerationEnd
from halt.store.exports import to_json, to_markdown
from halt.store.generations import GAP
from halt.store.models import (
    Busy,
    Conversation,
    Exchange,
    Moved,
    Settings,
    UnknownConversation,
    Usage,
)
from halt.store.portable import PortableConversation, PortableMessage
from halt.store.store import Store
from halt.store.tables import chunks
from halt.store.title_text import TITLE_MOST
from tests.support.export_files import (
    conversations_of,
    export_file,
    exported_conversation,
    no_contents,
)
from tests.support.files import save
from tests.support.races import together
from tests.support.stores import (
    DONE,
    METRICS,
    WORKER,
    Chat,
    Databases,
    new_generation,
    open_store,
    write_end,
)
from tests.support.waiting import WAIT_TIMEOUT

STOPPED = Cancelled(METRICS)
UNWATCHED = Cancelled(METRICS, "no_viewer")
BROKEN = Failed(ErrorInfo("stalled", "It stalled.", True), METRICS)
DAY = 86_400.0


@pytest.fixture
def chat(store: Store) -> Chat:
    return Chat(store)


def test_exchange_runs_until_its_stream_ends(chat: Chat) -> None:
    """The prompt is saved at once; answer, model and end are saved when the stream ends."""
    key = chat.ask("Hello?")
    (running_exchange,) = chat.read().exchanges
    assert (running_exchange.prompt, running_exchange.stream_id, running_exchange.answer) == (
        "Hello?",
        key.id,
        "",
    )
    assert (running_exchange.ended, running_exchange.state, running_exchange.is_running) == (
        None,
        "running",
        True,
    )
    chat.end(key, "Hello.")
    (ended_exchange,) = chat.read().exchanges
    assert (
        ended_exchange.answer,
        ended_exchange.model,
        ended_exchange.ended,
        ended_exchange.state,
    ) == ("Hello.", "m-1", DONE, "done")
    assert (ended_exchange.prompt_id, ended_exchange.answer_id) == (
        running_exchange.prompt_id,
        running_exchange.answer_id,
    )


@pytest.mark.parametrize(
    ("terminal", "next_prompt"),
    [
        (DONE, "Go on."),
        (STOPPED, f"{notes.STOPPED}\n\nGo on."),
        (UNWATCHED, f"{notes.STOPPED}\n\nGo on."),
        (BROKEN, f"{notes.BROKEN}\n\nGo on."),
        (Done("abort", METRICS), f"{notes.BROKEN}\n\nGo on."),
        (Done("length", METRICS), "Go on."),
    ],
    ids=["done", "stopped", "unwatched", "broken", "aborted", "length"],
)
def test_prompt_after_a_cut_answer_carries_a_note(
    chat: Chat, terminal: Done | Cancelled | Failed, next_prompt: str
) -> None:
    """A cut answer is sent as it was seen; the next prompt says that it was cut.

    A note in the assistant's words would be imitated by the model.
    """
    chat.add_exchange("Tell me.", "Half an", terminal)
    chat.ask("Go on.")
    assert chat.exchanges() == [("Tell me.", "Half an"), ("Go on.", "")]
    assert chat.prompt_messages() == [
        ("user", "Tell me."),
        ("assistant", "Half an"),
        ("user", next_prompt),
    ]


def test_note_copied_by_a_model_is_not_sent_again(chat: Chat) -> None:
    """A note at the end of a saved answer, which earlier versions put there, is not sent."""
    chat.add_exchange("a", "Whole.\n\n[The user stopped this answer here.]")
    chat.add_exchange("b", "[This answer broke off here.]")
    key = chat.ask("c")
    assert chat.prompt_messages() == [("user", "a"), ("assistant", "Whole."), ("user", "b\n\nc")]
    chat.store.turns.cancel_start(chat.name, key)
    chat.ask("What does “[The user stopped this answer here.]” mean?")
    assert [role for role, _ in chat.prompt_messages()] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert chat.prompt_messages()[1] == (
        "assistant",
        "Whole.\n\n[The user stopped this answer here.]",
    )


@pytest.mark.parametrize(
    ("terminal", "answer", "state"),
    [
        (Done("insufficient_system_resource", METRICS), "Half an", "error"),
        (Done("stop", METRICS), "", "error"),
        (Done(None, METRICS), " \n", "error"),
        (Done("stop", METRICS), "Hello.", "done"),
        (Done("length", METRICS), "", "done"),
        (Done("content_filter", METRICS), "Half an", "done"),
    ],
)
def test_done_without_text_or_with_a_broken_finish_is_an_error(
    chat: Chat, terminal: Done, answer: str, state: str
) -> None:
    """An answer without text, or one that the model's server broke off, has the state "error"."""
    chat.add_exchange("a", answer, terminal)
    assert chat.read().exchanges[0].state == state


def test_system_prompt_if_set_is_the_first_message(chat: Chat) -> None:
    """The system prompt is the first message; an empty one is not sent."""
    chat.ask("Hello?")
    assert chat.prompt_messages("Be brief.") == [("system", "Be brief."), ("user", "Hello?")]
    assert chat.prompt_messages() == [("user", "Hello?")]


def test_prompts_without_answers_are_merged(chat: Chat) -> None:
    """Prompts whose answers failed before any text are sent as one message."""
    chat.add_exchange("One?", "", BROKEN)
    chat.add_exchange("Two?", "", BROKEN)
    chat.ask("Three?")
    assert chat.prompt_messages("S") == [("system", "S"), ("user", "One?\n\nTwo?\n\nThree?")]


@pytest.mark.parametrize("is_regeneration", [False, True], ids=["first answer", "regeneration"])
def test_prompt_of_an_unwatched_answer_is_kept(chat: Chat, is_regeneration: bool) -> None:
    """A prompt whose answer ended without viewers and text is kept and can be discarded."""
    if is_regeneration:
        chat.add_exchange("Why?", "So.")
    key = chat.regenerate() if is_regeneration else chat.ask("Why?")
    chat.end(key, "", UNWATCHED)
    assert (
        chat.last_exchange().prompt,
        chat.last_exchange().answer,
        chat.last_exchange().state,
    ) == ("Why?", "", "stopped")
    discarded_prompt = chat.store.turns.discard(
        chat.name, chat.owner, chat.last_exchange().answer_id
    )
    assert discarded_prompt == (None if is_regeneration else "Why?")
    assert chat.exchanges() == ([("Why?", "So.")] if is_regeneration else [])


def test_add_prompt_after_another_prompt_than_the_last_is_refused(chat: Chat) -> None:
    """A prompt that names another last prompt than the conversation's is refused and saved
    nowhere."""

    def ask(prompt_id: int) -> None:
        answers = [(chat.new_stream().id, "")]
        chat.store.turns.add_prompt(
            chat.name, chat.owner, "Next?", answers, worker=WORKER, after=prompt_id
        )

    chat.add_exchange("a", "1")
    first = chat.last_exchange().prompt_id
    chat.add_exchange("b", "2")
    for prompt_id in (first, 0):
        with pytest.raises(Moved):
            ask(prompt_id)
    assert chat.exchanges() == [("a", "1"), ("b", "2")]
    ask(chat.last_exchange().prompt_id)
    assert chat.exchanges() == [("a", "1"), ("b", "2"), ("Next?", "")]


def test_prompt_messages_alternate_between_the_roles(chat: Chat) -> None:
    """After any ends no two messages of one role follow each other."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "", BROKEN)
    chat.add_exchange("c", "", STOPPED)
    chat.add_exchange("d", "2", STOPPED)
    chat.add_exchange("e", "", DONE)
    chat.ask("f")
    roles = [role for role, _ in chat.prompt_messages()]
    assert roles == ["user", "assistant"] * 2 + ["user"]
    assert ("user", "b\n\nd") in chat.prompt_messages()


def test_stop_before_any_text_withdraws_the_prompt(chat: Chat) -> None:
    """A Stop before the first text removes the prompt from the conversation."""
    chat.add_exchange("Kept.", "Yes.")
    chat.add_exchange("Never mind.", "", STOPPED)
    assert chat.exchanges() == [("Kept.", "Yes.")]
    chat.add_exchange("Instead.", "Good.")
    assert chat.exchanges() == [("Kept.", "Yes."), ("Instead.", "Good.")]


def test_failure_before_any_text_is_kept(chat: Chat) -> None:
    """A failure before the first text stays in the conversation with its error."""
    chat.add_exchange("Hello?", "", BROKEN)
    assert chat.read().exchanges[-1].ended == BROKEN


def test_cancel_start_removes_the_prompt_and_its_events(chat: Chat) -> None:
    """A start that is cancelled leaves no prompt and no event; the next prompt is accepted."""
    key = chat.ask("Too much.")
    chat.store.generations.write(Batch(chunks=(Chunk(key, 1, content_events("early")),)))
    chat.store.turns.cancel_start(chat.name, key)
    assert chat.exchanges() == []
    with chat.store.database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(chunks)) == 0
    chat.add_exchange("Less.", "Fine.")
    assert chat.exchanges() == [("Less.", "Fine.")]


def test_end_of_an_unknown_stream_changes_nothing(chat: Chat) -> None:
    """An end or a cancelled start of an unknown stream or conversation is ignored."""
    chat.add_exchange("a", "1")
    chat.end(chat.key("unknown"), "text")
    write_end(chat.store, StreamKey("bert", "elsewhere"), "text")
    chat.store.turns.cancel_start(chat.name, chat.key("unknown"))
    chat.store.turns.cancel_start("unknown", chat.key("unknown"))
    assert chat.exchanges() == [("a", "1")]


def test_regenerate_replaces_the_last_answer(chat: Chat) -> None:
    """The model gets the same messages without the answer that is replaced."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "bad")
    key = chat.regenerate()
    assert chat.prompt_messages() == [("user", "a"), ("assistant", "1"), ("user", "b")]
    previous = chat.read().exchanges[-1].previous
    assert previous is not None
    assert previous.answer == "bad"
    chat.end(key, "good")
    assert chat.exchanges() == [("a", "1"), ("b", "good")]
    assert chat.read().exchanges[-1].previous is None


def test_regeneration_stopped_after_text_is_the_answer(chat: Chat) -> None:
    """A regeneration that is stopped after some text is the answer."""
    chat.add_exchange("a", "first")
    chat.end(chat.regenerate(), "seco", STOPPED)
    assert chat.exchanges() == [("a", "seco")]


@pytest.mark.parametrize("regenerations", [1, 2, 3])
def test_regeneration_stopped_before_any_text_keeps_the_old_answer(
    chat: Chat, regenerations: int
) -> None:
    """Regenerations that are stopped before any text leave the old answer, however many they
    are."""
    chat.add_exchange("a", "first", STOPPED)
    exchange_before = chat.last_exchange()
    for _ in range(regenerations):
        chat.end(chat.regenerate(), "", STOPPED)
    assert chat.last_exchange() == exchange_before


def test_regeneration_failed_before_any_text_keeps_the_old_answer(chat: Chat) -> None:
    """A regeneration that fails before any text does not lose the old answer."""
    chat.add_exchange("a", "first")
    chat.end(chat.regenerate(), "", BROKEN)
    exchange = chat.read().exchanges[-1]
    assert "first" in {exchange.answer, exchange.previous.answer if exchange.previous else ""}


def test_prompt_messages_after_failed_regenerations_hold_the_kept_answer(chat: Chat) -> None:
    """After regenerations without text the model gets the answer that was kept."""
    chat.add_exchange("a", "first", STOPPED)
    for _ in range(2):
        chat.end(chat.regenerate(), "", BROKEN)
    chat.ask("b")
    sent_messages = chat.prompt_messages()
    assert sent_messages == [
        ("user", "a"),
        ("assistant", "first"),
        ("user", f"{notes.STOPPED}\n\nb"),
    ]


def test_cancel_start_of_a_regeneration_restores_the_old_answer(chat: Chat) -> None:
    """A regeneration whose start is cancelled leaves the old answer as it was."""
    chat.add_exchange("a", "first")
    exchange_before = chat.last_exchange()
    chat.store.turns.cancel_start(chat.name, chat.regenerate())
    assert chat.last_exchange() == exchange_before


def test_prompt_during_a_running_answer_is_refused(chat: Chat) -> None:
    """While an answer runs, a prompt and a regeneration are refused as busy."""
    key = chat.ask("a")
    with pytest.raises(Busy):
        chat.ask("b")
    with pytest.raises(Busy):
        chat.regenerate()
    chat.end(key, "1")
    chat.add_exchange("b", "2")
    assert chat.exchanges() == [("a", "1"), ("b", "2")]


def test_concurrent_prompts_add_one_exchange(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Property: of two prompts at the same moment one is added and the other is refused as busy."""
    # The second waits for the first, however long a busy machine takes for that one.
    monkeypatch.setattr(admission, "PATIENCE", WAIT_TIMEOUT)

    def send(name: str, number: int) -> bool:
        try:
            store.turns.add_prompt(name, "anna", "a", [(f"{name}-{number}", "")], worker=WORKER)
        except Busy:
            return False
        return True

    for repeat in range(30):
        name = f"c{repeat}"
        outcomes = together(partial(send, name, 1), partial(send, name, 2))
        assert sorted(outcomes) == [False, True]
        assert len(store.conversations.get(name, "anna").exchanges) == 1


def test_stream_id_of_an_earlier_answer_is_refused(chat: Chat) -> None:
    """A stream ID that has answered in the conversation is refused for another answer."""
    chat.add_exchange("a", "1")
    with pytest.raises(StreamInUse):
        chat.store.turns.add_prompt(chat.name, chat.owner, "b", [("talk-1", "")], worker=WORKER)
    with pytest.raises(StreamInUse):
        chat.store.turns.regenerate(chat.name, chat.owner, "talk-1", worker=WORKER)
    assert chat.exchanges() == [("a", "1")]


def test_conversation_of_another_session_is_unknown(chat: Chat) -> None:
    """Another session gets the same error for a foreign conversation as for an unknown one."""
    chat.add_exchange("secret", "yes")
    other_session_chat = Chat(chat.store, chat.name, "bert")
    with pytest.raises(UnknownConversation) as foreign_error:
        other_session_chat.read()
    with pytest.raises(UnknownConversation) as absent_error:
        Chat(chat.store, "no-such", "bert").read()
    assert str(foreign_error.value) == str(absent_error.value)
    with pytest.raises(UnknownConversation):
        other_session_chat.ask("mine?")
    with pytest.raises(UnknownConversation):
        other_session_chat.regenerate()
    assert chat.exchanges() == [("secret", "yes")]


def test_regenerate_without_a_prompt_is_refused(chat: Chat) -> None:
    """A regeneration in an unknown or empty conversation is refused."""
    with pytest.raises(UnknownConversation):
        chat.regenerate()
    chat.add_exchange("Never mind.", "", STOPPED)
    with pytest.raises(UnknownConversation):
        chat.regenerate()


# --- versions: edits, regenerations, Continue, Discard ------------------------------------------------


def test_versions_of_an_answer_can_be_selected(chat: Chat) -> None:
    """Each regeneration is a version; the model gets the version that is selected."""
    chat.add_exchange("a", "one")
    chat.end(chat.regenerate(), "two")
    chat.end(chat.regenerate(), "three")
    versions = chat.last_exchange().versions
    assert (versions.number, len(versions.ids), versions.later) == (3, 3, None)
    assert versions.earlier is not None
    exchange = chat.store.turns.show(chat.name, chat.owner, versions.earlier).exchanges[-1]
    assert (exchange.answer, exchange.versions.number) == ("two", 2)
    assert (exchange.versions.earlier, exchange.versions.later) == (
        versions.ids[0],
        versions.ids[2],
    )
    chat.ask("b")
    assert chat.prompt_messages() == [("user", "a"), ("assistant", "two"), ("user", "b")]


def test_edited_prompt_opens_a_branch_and_keeps_the_old_one(chat: Chat) -> None:
    """An edit opens a branch; the old branch is complete when it is selected again."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2")
    chat.add_exchange("c", "3")
    second = chat.read().exchanges[1]
    chat.add_exchange("B", "two", edit_of=second.prompt_id)
    assert chat.exchanges() == [("a", "1"), ("B", "two")]
    versions = chat.last_exchange().prompts
    assert versions.number == 2
    assert versions.earlier == second.prompt_id
    chat.store.turns.show(chat.name, chat.owner, second.prompt_id)
    assert chat.exchanges() == [("a", "1"), ("b", "2"), ("c", "3")]
    chat.add_exchange("A", "new", edit_of=chat.read().exchanges[0].prompt_id)
    assert chat.exchanges() == [("A", "new")]
    chat.ask("z")
    assert chat.prompt_messages() == [("user", "A"), ("assistant", "new"), ("user", "z")]


def test_edit_stopped_before_any_text_keeps_the_old_branch(chat: Chat) -> None:
    """An edit that is stopped before any text leaves the conversation as it was."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2")
    conversation_before = chat.read()
    chat.add_exchange("B", "", STOPPED, edit_of=conversation_before.exchanges[1].prompt_id)
    assert chat.read().exchanges == conversation_before.exchanges
    chat.add_exchange("A", "", STOPPED, edit_of=conversation_before.exchanges[0].prompt_id)
    assert chat.read().exchanges == conversation_before.exchanges


def test_regenerate_of_an_earlier_prompt_keeps_the_later_messages(chat: Chat) -> None:
    """A regeneration of an earlier prompt ends the path there; the other version keeps what follows
    it."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2")
    first = chat.read().exchanges[0]
    key = chat.regenerate(first.prompt_id)
    assert chat.prompt_messages() == [("user", "a")]
    chat.end(key, "one")
    assert chat.exchanges() == [("a", "one")]
    chat.store.turns.show(chat.name, chat.owner, first.answer_id)
    assert chat.exchanges() == [("a", "1"), ("b", "2")]


def test_show_of_a_message_selects_its_whole_path(chat: Chat) -> None:
    """Showing a message of another branch selects the whole path to it; unknown IDs are refused."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2")
    deepest_id = chat.last_exchange().answer_id
    chat.end(chat.regenerate(chat.read().exchanges[0].prompt_id), "one")
    chat.add_exchange("A", "new", edit_of=chat.read().exchanges[0].prompt_id)
    conversation = chat.store.turns.show(chat.name, chat.owner, deepest_id)
    assert [(e.prompt, e.answer) for e in conversation.exchanges] == [("a", "1"), ("b", "2")]
    for message_id in (deepest_id + 1000, 0, -1, 2**70):
        with pytest.raises(UnknownConversation):
            chat.store.turns.show(chat.name, chat.owner, message_id)


def test_continued_answer_is_one_message(chat: Chat) -> None:
    """The model gets the partial answer as the last message; the continued text is one answer."""
    chat.add_exchange("a", "Half an", STOPPED)
    exchange_before = chat.last_exchange()
    key = chat.continue_answer()
    running_exchange = chat.last_exchange()
    assert (running_exchange.prefix, running_exchange.answer_id, running_exchange.ended) == (
        "Half an",
        exchange_before.answer_id,
        None,
    )
    assert chat.prompt_messages() == [("user", "a"), ("assistant", "Half an")]
    write_end(chat.store, key, "Half an answer.", new_events=[Content(" answer.")])
    ended_exchange = chat.last_exchange()
    assert (ended_exchange.answer, ended_exchange.state, ended_exchange.answer_id) == (
        "Half an answer.",
        "done",
        exchange_before.answer_id,
    )
    assert chat.prompt_messages() == [("user", "a"), ("assistant", "Half an answer.")]
    generation = chat.store.generations.get_ended(key)
    assert generation is not None
    assert generation.prefix == "Half an"
    assert [event for _, _, event in generation.events] == [Content(" answer."), DONE]


def test_continue_without_new_text_changes_nothing(chat: Chat) -> None:
    """A Continue that is cancelled or stopped before any text leaves the answer as it was."""
    chat.add_exchange("a", "Half an", STOPPED)
    exchange_before = chat.last_exchange()
    chat.store.turns.cancel_start(chat.name, chat.continue_answer())
    assert chat.last_exchange() == exchange_before
    chat.end(chat.continue_answer(), "Half an", STOPPED)
    exchange_after = chat.last_exchange()
    assert (exchange_after.answer, exchange_after.state) == ("Half an", "stopped")


def test_continue_of_other_than_the_last_answer_is_refused(chat: Chat) -> None:
    """An earlier answer, an answer without text, a prompt and an unknown ID cannot be continued."""
    chat.add_exchange("a", "1")
    first = chat.last_exchange()
    chat.add_exchange("b", "", BROKEN)
    empty = chat.last_exchange()
    for message_id in (first.answer_id, empty.answer_id, empty.prompt_id, 10**9):
        with pytest.raises(UnknownConversation):
            chat.store.turns.continue_answer(
                chat.name, chat.owner, message_id, "new-stream", worker=WORKER
            )
    assert not chat.store.generations.exists(chat.key("new-stream"))


def test_steps_of_a_continued_answer_are_numbered_anew(store: Store, chat: Chat) -> None:
    """The steps of both parts are kept in order, each with its own number."""
    saved_steps = [
        Step(1, "thought", "done", text="first"),
        Step(1, "thought", "done", text="second"),
    ]
    write_end(store, chat.ask("a"), "Half", STOPPED, steps=(saved_steps[0],))
    write_end(store, chat.continue_answer(), "Half more", steps=(saved_steps[1],))
    shown_steps = chat.last_exchange().steps
    assert [step.text for step in shown_steps] == ["first", "second"]
    assert len({step.number for step in shown_steps}) == 2


def test_edited_answer_is_a_version_that_the_model_is_told_of(store: Store, chat: Chat) -> None:
    """The edited text is a new version; the next prompt has a note; the original can return.

    Thoughts and figures stay with the original.
    """
    thought, sources = Step(1, "thought", "done", text="Hm"), Step(2, "sources", "done", text="u T")
    write_end(store, chat.ask("a"), "one", STOPPED, steps=(thought, sources))
    (exchange,) = chat.edit_answer("One.").exchanges
    assert (exchange.answer, exchange.state, exchange.is_edited) == ("One.", "done", True)
    assert (exchange.model, exchange.steps, exchange.usage) == ("m-1", (sources,), Usage())
    assert (exchange.versions.number, len(exchange.versions.ids)) == (2, 2)
    assert chat.edit_answer("One.").exchanges == (exchange,)  # the same text adds no version
    assert [hit.message_id for hit in store.search.find("anna", "one").items] == [
        exchange.answer_id,
        exchange.versions.ids[0],
    ]
    chat.add_exchange("b", "two")
    assert chat.prompt_messages() == [
        ("user", "a"),
        ("assistant", "One."),
        ("user", f"{notes.EDITED}\n\nb"),
        ("assistant", "two"),
    ]
    store.turns.show(chat.name, chat.owner, exchange.versions.ids[0])
    assert [(e.answer, e.is_edited) for e in chat.read().exchanges] == [("one", False)]


def test_edit_of_an_earlier_answer_ends_the_path_there(chat: Chat) -> None:
    """The messages after the edited answer stay with its original; "Write again" adds a version."""
    chat.add_exchange("a", "one")
    chat.add_exchange("b", "two")
    original_id = chat.read().exchanges[0].answer_id
    chat.edit_answer("One.", original_id)
    assert chat.exchanges() == [("a", "One.")]
    chat.end(chat.regenerate(), "", BROKEN)
    assert chat.last_exchange().shown_version().is_edited
    chat.end(chat.regenerate(), "three")
    assert len(chat.last_exchange().versions.ids) == 4
    assert not chat.last_exchange().is_edited
    chat.store.turns.show(chat.name, chat.owner, original_id)
    assert chat.exchanges() == [("a", "one"), ("b", "two")]


def test_edited_answer_is_discarded_and_not_continued(chat: Chat) -> None:
    """Discard brings the original back. Continue is refused: no generation wrote the text."""
    chat.add_exchange("a", "one", STOPPED)
    chat.edit_answer("One.")
    with pytest.raises(UnknownConversation, match="you have edited it"):
        chat.continue_answer()
    assert chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id) is None
    assert chat.exchanges() == [("a", "one")]


def test_edit_is_refused_while_an_answer_runs_and_for_prompts(chat: Chat) -> None:
    """An edit never meets a running answer, and a prompt is no answer."""
    chat.add_exchange("a", "one")
    exchange = chat.last_exchange()
    with pytest.raises(UnknownConversation):
        chat.edit_answer("A", exchange.prompt_id)
    chat.ask("b")
    with pytest.raises(Busy):
        chat.edit_answer("One.", exchange.answer_id)
    assert chat.exchanges() == [("a", "one"), ("b", "")]


def test_discard_of_the_only_answer_returns_the_prompt(chat: Chat) -> None:
    """Discarding the only answer removes its prompt as well and returns the prompt's text."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2", STOPPED)
    assert chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id) == "b"
    assert chat.exchanges() == [("a", "1")]
    assert chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id) == "a"
    assert chat.exchanges() == []


def test_discard_of_one_version_selects_another(chat: Chat) -> None:
    """Discarding one version keeps the prompt and selects another version."""
    chat.add_exchange("a", "one")
    chat.end(chat.regenerate(), "two")
    assert chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id) is None
    assert chat.exchanges() == [("a", "one")]
    assert len(chat.last_exchange().versions.ids) == 1


def test_discard_of_an_answer_with_followers_is_refused(chat: Chat) -> None:
    """An answer with messages behind it, a prompt and a running answer cannot be discarded."""
    chat.add_exchange("a", "1")
    chat.add_exchange("b", "2")
    with pytest.raises(RequestError, match="Messages follow") as error_info:
        chat.store.turns.discard(chat.name, chat.owner, chat.read().exchanges[0].answer_id)
    assert error_info.value.field == "answer"
    with pytest.raises(UnknownConversation):
        chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().prompt_id)
    chat.ask("c")
    with pytest.raises(Busy):
        chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id)


# --- several models for one prompt ----------------------------------------------------------------


class Comparison(Chat):
    """A conversation whose first prompt was sent to three models, with the streams a, b and c."""

    def __init__(self, store: Store, name: str = "talk") -> None:
        super().__init__(store, name)
        answers = [(f"{name}-{letter}", f"m-{letter}") for letter in "abc"]
        store.turns.add_prompt(self.name, self.owner, "Who?", answers, worker=WORKER)

    def all_end(self, **answers: str) -> None:
        for letter, answer in answers.items():
            self.end(self.key(f"{self.name}-{letter}"), answer, DONE if answer else STOPPED)

    def streams(self) -> list[str]:
        """The streams of the last exchange, the selected one first."""
        return [
            candidate.stream_id.removeprefix(f"{self.name}-")
            for candidate in self.last_exchange().candidates
        ]


@pytest.fixture
def comparison(store: Store) -> Comparison:
    return Comparison(store)


def test_comparison_runs_until_its_last_answer_ends(comparison: Comparison) -> None:
    """Each answer of a comparison is saved in its place; prompts are refused until all have
    ended."""
    for letter in "ca":
        comparison.end(comparison.key(f"talk-{letter}"), f"I am {letter}.")
        with pytest.raises(Busy):
            comparison.ask("And?")
    comparison.end(comparison.key("talk-b"), "I am b.")
    answers = [(e.requested_model, e.answer) for e in comparison.last_exchange().candidates]
    assert answers == [("m-a", "I am a."), ("m-b", "I am b."), ("m-c", "I am c.")]
    comparison.ask("And?")


def test_comparison_continues_with_its_first_answer_with_text(comparison: Comparison) -> None:
    """Without a selection the model gets the first answer of the comparison that has text."""
    comparison.all_end(a="", b="I am b.", c="I am c.")
    assert comparison.streams() == ["a", "b", "c"]
    comparison.ask("And?")
    assert comparison.prompt_messages() == [
        ("user", "Who?"),
        ("assistant", "I am b."),
        ("user", "And?"),
    ]


def test_selected_answer_and_its_model_continue_the_conversation(comparison: Comparison) -> None:
    """The selected answer is sent, its model is set, and the selection ends with the next
    prompt."""
    comparison.all_end(a="I am a.", b="I am b.", c="I am c.")
    for letter, stream_order in (("c", ["c", "a", "b"]), ("b", ["b", "a", "c"])):
        conversation = comparison.store.turns.select(
            comparison.name, comparison.owner, f"talk-{letter}"
        )
        assert comparison.streams() == stream_order
        assert (conversation.settings.model, conversation.exchanges[-1].selected) == (
            f"m-{letter}",
            True,
        )
    comparison.ask("And?")
    assert comparison.prompt_messages() == [
        ("user", "Who?"),
        ("assistant", "I am b."),
        ("user", "And?"),
    ]
    with pytest.raises(UnknownConversation):
        comparison.store.turns.select(comparison.name, comparison.owner, "talk-a")


def test_select_outside_a_finished_comparison_is_refused(
    comparison: Comparison, store: Store
) -> None:
    """A running, a foreign, an unknown and a single answer cannot be selected."""
    with pytest.raises(Busy):
        store.turns.select(comparison.name, comparison.owner, "talk-a")
    comparison.all_end(a="I am a.", b="I am b.", c="I am c.")
    for owner, stream_id in (("bert", "talk-a"), ("anna", "unknown")):
        with pytest.raises(UnknownConversation):
            store.turns.select(comparison.name, owner, stream_id)
    single_chat = Chat(store, "single")
    single_chat.add_exchange("One?", "One.")
    with pytest.raises(UnknownConversation):
        store.turns.select("single", "anna", "single-1")


def test_comparison_stopped_before_any_text_is_withdrawn(comparison: Comparison) -> None:
    """A comparison without any text is withdrawn; text of one model keeps it."""
    comparison.all_end(a="", b="", c="")
    assert comparison.exchanges() == []
    other_comparison = Comparison(comparison.store, "other")
    other_comparison.all_end(c="", b="Hm", a="")
    assert other_comparison.streams() == ["a", "b", "c"]


def test_cancel_start_of_one_stream_removes_the_comparison(comparison: Comparison) -> None:
    """Cancelling the start of one stream of a comparison removes all of its streams."""
    comparison.store.turns.cancel_start(comparison.name, comparison.key("talk-b"))
    assert comparison.exchanges() == []
    keys = [comparison.key(f"talk-{letter}") for letter in "abc"]
    assert not any(map(comparison.store.generations.exists, keys))


def test_regenerate_of_a_comparison_keeps_its_answers(comparison: Comparison) -> None:
    """A regeneration is a further version; withdrawn, it restores the selected answer."""
    comparison.all_end(a="I am a.", b="I am b.", c="I am c.")
    comparison.store.turns.select(comparison.name, comparison.owner, "talk-b")
    key = comparison.regenerate()
    assert len(comparison.last_exchange().versions.ids) == 4
    comparison.end(key, "", STOPPED)
    assert comparison.streams() == ["b", "a", "c"]
    comparison.end(comparison.regenerate(), "I am new.")
    assert comparison.prompt_messages()[-1] == ("assistant", "I am new.")
    comparison.store.turns.show(
        comparison.name, comparison.owner, comparison.last_exchange().versions.ids[2]
    )
    assert comparison.streams() == ["c", "a", "b"]


def test_stream_ids_of_a_comparison_are_refused_again(comparison: Comparison, store: Store) -> None:
    """The stream IDs of a comparison are refused in other prompts, and so are equal IDs in one."""
    comparison.all_end(a="I am a.", b="I am b.", c="I am c.")
    conversation_before = comparison.read()
    for used_streams in ([("talk-a", "")], [("talk-c", "")], [("x", ""), ("x", "")]):
        with pytest.raises(StreamInUse):
            store.turns.add_prompt(
                comparison.name, comparison.owner, "And?", used_streams, worker=WORKER
            )
        with pytest.raises(StreamInUse):
            store.turns.add_prompt("other", "anna", "And?", used_streams, worker=WORKER)
    assert comparison.read() == conversation_before
    with pytest.raises(UnknownConversation):
        store.conversations.get("other", "anna")


def test_steps_are_saved_and_not_sent_to_the_model(store: Store, chat: Chat) -> None:
    """The steps of an answer are saved and are in no message to a model."""
    step = Step(1, "thought", "done", text="secret thoughts " * 10, ms=5.0)
    write_end(store, chat.ask("Why?"), "Because.", steps=(step,))
    assert chat.last_exchange().steps == (step,)
    chat.ask("And?")
    assert "secret" not in str(chat.prompt_messages())


def test_stopped_answer_with_thoughts_is_kept(store: Store, chat: Chat) -> None:
    """An answer that is stopped after thoughts alone is a version and can be discarded."""
    thought = Step(1, "thought", "done", text="Hm.", ms=5.0)
    write_end(store, chat.ask("Why?"), "", STOPPED, steps=(thought,))
    assert (chat.last_exchange().state, chat.last_exchange().is_withdrawn) == ("stopped", False)
    assert chat.last_exchange().steps == (thought,)
    chat.end(chat.regenerate(), "So.")
    assert len(chat.last_exchange().versions.ids) == 2
    write_end(store, chat.regenerate(), "", STOPPED, steps=(thought,))
    exchange = chat.last_exchange()
    assert (exchange.shown_version().steps, exchange.previous, len(exchange.versions.ids)) == (
        (thought,),
        None,
        3,
    )
    chat.ask("And?")
    assert chat.prompt_messages() == [
        ("user", "Why?\n\nAnd?")
    ]  # an answer without text is not sent
    chat.store.turns.cancel_start(chat.name, chat.key(chat.last_exchange().stream_id))
    assert chat.store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id) is None
    assert chat.exchanges() == [("Why?", "So.")]


# --- windows ----------------------------------------------------------------------------------------


@pytest.fixture
def long(store: Store) -> Chat:
    """An imported conversation of twenty exchanges."""
    messages = [
        PortableMessage(n, "assistant" if n % 2 else "user", f"{n}", n - 1 if n else None)
        for n in range(40)
    ]
    conversation = PortableConversation("long-conversation", "Long", messages, list(range(40)))
    store.transfer.import_("anna", [conversation])
    return Chat(store, "long-conversation")


def numbers(conversation: Conversation) -> list[int]:
    return [int(exchange.prompt) // 2 for exchange in conversation.exchanges]


def test_conversation_windows_cover_all_exchanges_in_both_directions(long: Chat) -> None:
    """Windows follow one another without a gap or an overlap and say whether there are more."""
    window = long.read(limit=6)
    assert numbers(window) == list(range(14, 20))
    assert (window.has_earlier, window.has_later) == (True, False)
    upward_numbers = numbers(window)
    while window.has_earlier:
        window = long.store.conversations.get(long.name, long.owner, before=window.first, limit=6)
        assert window.has_later
        upward_numbers = numbers(window) + upward_numbers
    assert upward_numbers == list(range(20))
    downward_numbers = numbers(window)
    while window.has_later:
        window = long.store.conversations.get(long.name, long.owner, after=window.last, limit=6)
        downward_numbers += numbers(window)
    assert downward_numbers == list(range(20))
    assert (
        numbers(long.store.conversations.get(long.name, long.owner, after=window.last, limit=6))
        == []
    )


@pytest.mark.parametrize(
    ("index", "window"), [(0, [0, 1, 2, 3]), (10, [8, 9, 10, 11]), (19, [16, 17, 18, 19])]
)
def test_window_around_a_message_contains_it(long: Chat, index: int, window: list[int]) -> None:
    """A window around a prompt or its answer contains it and is full at both ends."""
    exchange = long.read().exchanges[index]
    for message_id in (exchange.prompt_id, exchange.answer_id):
        conversation = long.store.conversations.get(
            long.name, long.owner, around=message_id, limit=4
        )
        assert numbers(conversation) == window


def test_conversation_is_read_in_one_snapshot(store: Store, chat: Chat) -> None:
    """A change during the reading of a conversation is visible to the next reading alone."""
    chat.add_exchange("Hi", "first")
    chat.end(chat.regenerate(), "second")
    last_exchange = chat.last_exchange()

    unread_ids = [last_exchange.answer_id]

    def change(connection: object, cursor: object, statement: str, *_: object) -> None:
        if unread_ids and statement.startswith("SELECT"):
            store.turns.discard(chat.name, chat.owner, unread_ids.pop())

    event.listen(store.database.engine, "after_cursor_execute", change)
    assert chat.read().exchanges == (last_exchange,)
    assert chat.exchanges() == [("Hi", "first")]


def test_window_around_an_unknown_message_is_the_last_one(long: Chat) -> None:
    """A window around or before an unknown message is the last window."""
    assert numbers(long.store.conversations.get(long.name, long.owner, around=10**9, limit=2)) == [
        18,
        19,
    ]
    assert numbers(long.store.conversations.get(long.name, long.owner, before=-1, limit=2)) == [
        18,
        19,
    ]


# --- the list, titles, settings ---------------------------------------------------------------------


def test_summaries_are_ordered_by_last_use_and_show_running_answers(store: Store) -> None:
    """The list has the owner's conversations page by page, the last used first."""
    chats = [Chat(store, f"chat-{n}") for n in range(5)]
    for chat in chats:
        chat.add_exchange("Hello?", "Hello.")
    Chat(store, "foreign", "bert").add_exchange("a", "1")
    Chat(store, "empty").add_exchange("Never mind.", "", STOPPED)
    chats[1].ask("More?")
    summaries: list[tuple[str, bool]] = []
    cursor: str | None = None
    while True:
        page = store.conversations.summaries("anna", cursor, limit=2)
        summaries += [(item.id, item.is_running) for item in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert summaries == [("chat-1", True), *((f"chat-{n}", False) for n in (4, 3, 2, 0))]
    assert store.conversations.summary("chat-1", "anna").is_running
    with pytest.raises(RequestError) as error_info:
        store.conversations.summaries("anna", "nonsense")
    assert error_info.value.field == "cursor"


def all_pages(store: Store, *, archived: bool = False, limit: int = 2) -> list[str]:
    """The IDs of anna's list, read page by page."""
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = store.conversations.summaries("anna", cursor, limit, archived=archived)
        ids += [item.id for item in page.items]
        if (cursor := page.cursor) is None:
            return ids


def test_pinned_conversations_are_first_and_on_no_other_page(store: Store) -> None:
    """The pinned ones are whole on the first page, the last pinned first; each is listed once."""
    for n in range(7):
        Chat(store, f"chat-{n}").add_exchange("Hello?", "Hello.")
    for name in ("chat-1", "chat-5", "chat-3"):
        assert store.conversations.set_pinned([name], "anna", pinned=True) == 1
    store.conversations.set_pinned(["chat-1"], "anna", pinned=True)  # it keeps its place
    first_page = store.conversations.summaries("anna", limit=2)
    assert [(item.id, item.is_pinned) for item in first_page.items] == [
        ("chat-3", True),
        ("chat-5", True),
        ("chat-1", True),
        ("chat-6", False),
        ("chat-4", False),
    ]
    assert all_pages(store) == [f"chat-{n}" for n in (3, 5, 1, 6, 4, 2, 0)]
    assert store.conversations.set_pinned(["chat-3", "chat-5"], "anna", pinned=False) == 2
    assert all_pages(store) == [f"chat-{n}" for n in (1, 6, 5, 4, 3, 2, 0)]
    assert store.conversations.get("chat-1", "anna").is_pinned


def test_pins_have_a_limit_that_every_way_keeps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pins beyond the limit are refused; an undone deletion and an import remove the oldest."""
    for place in ("halt.store.conversations", "halt.store.rows"):
        monkeypatch.setattr(f"{place}.PINS_MAX", 2)
    for n in range(4):
        Chat(store, f"chat-{n}").add_exchange("Hello?", "Hello.")
    store.conversations.set_pinned(["chat-0"], "anna", pinned=True)
    with pytest.raises(RequestError, match="At most 2 conversations can be pinned") as error_info:
        store.conversations.set_pinned(["chat-1", "chat-2"], "anna", pinned=True)
    assert error_info.value.field == "id"
    assert [item.id for item in store.conversations.summaries("anna").items if item.is_pinned] == [
        "chat-0"
    ]
    store.conversations.delete("chat-0", "anna")
    store.conversations.set_pinned(["chat-1"], "anna", pinned=True)
    store.conversations.set_pinned(["chat-2"], "anna", pinned=True)
    store.conversations.undelete("chat-0", "anna")
    assert all_pages(store)[:2] == ["chat-2", "chat-1"]
    exported = list(store.transfer.export_many("anna", ["chat-1", "chat-2"]))
    store.transfer.import_("anna", exported)
    pinned = [item for item in store.conversations.summaries("anna").items if item.is_pinned]
    assert len(pinned) == 2


def test_titled_finds_words_in_titles_in_either_case(store: Store) -> None:
    """Words match inside of words and in either case, also archived; the last used is first."""
    titles = {"a": "Ärger mit 100 % CPU", "b": "the ärger_log", "c": "Anger", "d": "ÄRGER"}
    for name, title in titles.items():
        Chat(store, name).add_exchange("Hello?", "Hello.")
        store.conversations.rename(name, "anna", title)
    Chat(store, "foreign", "ben").add_exchange("Hello?", "Hello.")
    store.conversations.rename("foreign", "ben", "Ärger")
    store.conversations.set_archived(["b"], "anna", archived=True)

    def found(*words: str, limit: int = 9) -> str:
        return "".join(item.id for item in store.conversations.titled("anna", words, limit))

    assert found("ärger") == "dba"
    assert found("ärger", limit=2) == "db"
    assert found("rg", "cpu") == "a"
    assert (found("%"), found("_")) == ("a", "b")  # no pattern of LIKE
    assert found("\\") == ""


def test_archived_conversations_have_a_list_of_their_own(store: Store) -> None:
    """An archived conversation is in the archive's list alone; search finds it, and it opens."""
    for n in range(5):
        Chat(store, f"chat-{n}").add_exchange(f"zebra {n}", "Hello.")
    store.conversations.set_pinned(["chat-3"], "anna", pinned=True)
    assert store.conversations.set_archived(["chat-1", "chat-3", "chat-4"], "anna", True) == 3
    assert all_pages(store) == ["chat-2", "chat-0"]
    assert all_pages(store, archived=True) == ["chat-4", "chat-3", "chat-1"]
    hits = store.search.find("anna", "zebra").items
    assert [(hit.conversation_id, hit.is_archived) for hit in hits] == [
        ("chat-4", True),
        ("chat-3", True),
        ("chat-2", False),
        ("chat-1", True),
        ("chat-0", False),
    ]
    assert store.conversations.get("chat-1", "anna").is_archived
    store.conversations.set_archived(["chat-3"], "anna", False)  # it has kept its pin
    assert all_pages(store) == ["chat-3", "chat-2", "chat-0"]


@pytest.mark.parametrize("way", ["ask", "regenerate", "continue_answer"])
def test_answer_takes_its_conversation_out_of_the_archive(chat: Chat, way: str) -> None:
    """A new message, another answer or a Continue takes the conversation out of the archive."""
    chat.add_exchange("Hello?", "Hello.")
    chat.store.conversations.set_archived([chat.name], chat.owner, True)
    getattr(chat, way)(*(["And on?"] if way == "ask" else []))
    assert [item.id for item in chat.store.conversations.summaries(chat.owner).items] == [chat.name]
    assert not chat.read().is_archived


def test_deletion_of_several_is_undone_as_a_whole(store: Store) -> None:
    """Several are deleted in one call, which returns their streams; one Undo restores them all."""
    chats = [Chat(store, f"chat-{n}") for n in range(5)]
    for chat in chats:
        chat.add_exchange("Hello?", "Hello.")
    running = chats[2].ask("More?")
    foreign = Chat(store, "foreign", "bert")
    foreign.add_exchange("Hello?", "Hello.")
    store.conversations.delete("chat-4", "anna")
    assert store.conversations.delete_many(["chat-1", "foreign", "chat-2", "gone"], "anna") == (
        ["chat-1", "chat-2"],
        [running.id],
    )
    assert foreign.exchanges() == [("Hello?", "Hello.")]
    assert all_pages(store) == ["chat-3", "chat-0"]
    restored = store.conversations.undelete("chat-2", "anna")
    assert [summary.id for summary in restored] == ["chat-2", "chat-1"]
    assert all_pages(store) == ["chat-2", "chat-3", "chat-1", "chat-0"]


def test_changes_of_several_refuse_only_unknown_conversations_alone(store: Store) -> None:
    """Pins, archive and deletion raise UnknownConversation if no ID is one of the owner's."""
    Chat(store, "foreign", "bert").add_exchange("Hello?", "Hello.")
    talk = store.conversations
    for change in (
        partial(talk.set_pinned, pinned=True),
        partial(talk.set_archived, archived=True),
        talk.delete_many,
    ):
        for ids in (["foreign", "unknown"], []):
            with pytest.raises(UnknownConversation):
                change(ids, "anna")
    (summary,) = talk.summaries("bert").items
    assert (summary.is_pinned, summary.is_archived) == (False, False)


def test_lists_of_many_conversations_read_an_index(databases: Databases) -> None:
    """Each list is read in the order of an index, so that its first page costs the same with
    10,000 conversations as with ten.
    """
    with open_store(*databases.new("sqlite")) as store:
        statements: list[tuple[str, Any]] = []

        def note(connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
            statements.append((statement, values))

        event.listen(store.database.engine, "before_cursor_execute", note)
        store.conversations.summaries("anna")
        store.conversations.summaries("anna", f"{time.time()!r}~chat-1")
        store.conversations.summaries("anna", archived=True)
        event.remove(store.database.engine, "before_cursor_execute", note)
        with store.database.reading() as connection:
            plans = [
                " ".join(
                    row[3]
                    for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                )
                for statement, values in statements
                if statement.startswith("SELECT")
            ]
    indexes = ["listed", "pinned", "listed", "archived"]
    assert len(plans) == len(indexes)
    for plan, index in zip(plans, indexes, strict=True):
        assert f"USING INDEX conversations_{index}" in plan
        assert index == "pinned" or "TEMP B-TREE" not in plan


def test_title_of_the_user_replaces_the_models_and_the_first_words(chat: Chat) -> None:
    """The first words are replaced by the model's title, and both by the user's, which stays."""
    chat.add_exchange("## What  *is* the `capital` of " + "a very " * 20 + "far country?", "1")
    first = chat.read().title
    assert not chat.read().is_named
    assert first.startswith("What is the capital of a very")
    assert first.endswith("…")
    assert len(first) <= TITLE_MOST
    assert chat.store.conversations.title_from_model(chat.name, "A far capital")
    assert chat.read().title == "A far capital"
    assert chat.store.conversations.title_from_model(chat.name, "A capital far away")
    assert chat.read().title == "A capital far away"
    assert chat.read().is_named
    assert (
        chat.store.conversations.rename(chat.name, chat.owner, "  My   title ").title == "My title"
    )
    assert not chat.store.conversations.title_from_model(chat.name, "Another")
    chat.add_exchange("B", "2")
    assert chat.read().title == "My title"
    for title in ("", "   ", "x" * 201):
        with pytest.raises(RequestError) as error_info:
            chat.store.conversations.rename(chat.name, chat.owner, title)
        assert error_info.value.field == "title"


def test_settings_belong_to_one_conversation(chat: Chat) -> None:
    """Settings may be saved before the first prompt and hold for their conversation alone."""
    settings = Settings("m-2", "Be brief.", "Terse", 0.5, 0.9, 100)
    assert (
        chat.store.conversations.set_settings(chat.name, chat.owner, settings).settings == settings
    )
    chat.ask("Hello?")
    assert chat.read().settings == Settings("", "Be brief.", "Terse", 0.5, 0.9, 100)
    assert chat.prompt_messages("Be long.")[0] == ("system", "Be brief.")
    chat.store.conversations.set_settings(chat.name, chat.owner, Settings(system_prompt=""))
    assert chat.prompt_messages("Be long.") == [("user", "Hello?")]
    with pytest.raises(UnknownConversation):
        chat.store.conversations.set_settings(chat.name, "bert", settings)


def test_deleted_conversation_can_be_restored_for_a_day(chat: Chat) -> None:
    """A deleted conversation is in no list, search or export; after a day it is removed."""
    chat.add_exchange("apple", "pear")
    with pytest.raises(UnknownConversation):
        chat.store.conversations.delete(chat.name, "bert")
    for _ in range(2):
        chat.store.conversations.delete(chat.name, chat.owner)
        assert chat.store.conversations.summaries(chat.owner).items == ()
        assert chat.store.search.find(chat.owner, "apple").items == ()
        assert list(chat.store.transfer.export(chat.owner)) == []
        with pytest.raises(UnknownConversation):
            chat.read()
        with pytest.raises(UnknownConversation):
            chat.ask("more")
        assert not chat.store.conversations.title_from_model(chat.name, "x")
        assert [one.id for one in chat.store.conversations.undelete(chat.name, chat.owner)] == [
            chat.name
        ]
        assert chat.exchanges() == [("apple", "pear")]
    chat.store.conversations.delete(chat.name, chat.owner)
    assert chat.store.generations.sweep(time.time() + DAY - 60) == 0
    assert chat.store.generations.sweep(time.time() + DAY + 60) == 1
    with pytest.raises(UnknownConversation):
        chat.store.conversations.undelete(chat.name, chat.owner)
    assert not chat.store.generations.exists(chat.key(f"{chat.name}-1"))


def test_delete_returns_the_running_streams_and_keeps_their_ends(chat: Chat) -> None:
    """Deleting returns the IDs of running streams; a restored conversation has their text."""
    chat.add_exchange("a", "1")
    running = chat.ask("b")
    assert chat.store.conversations.delete(chat.name, chat.owner) == [running.id]
    chat.end(running, "half", STOPPED)
    chat.store.conversations.undelete(chat.name, chat.owner)
    assert chat.exchanges() == [("a", "1"), ("b", "half")]
    assert chat.store.conversations.delete(chat.name, chat.owner) == []


def test_prompt_in_a_deleted_conversation_is_not_withdrawn(chat: Chat) -> None:
    """A Stop before any text keeps the prompt of a deleted conversation."""
    running = chat.ask("a")
    assert chat.store.conversations.delete(chat.name, chat.owner) == [running.id]
    chat.end(running, "", STOPPED)
    assert [one.title for one in chat.store.conversations.undelete(chat.name, chat.owner)] == ["a"]
    assert chat.exchanges() == [("a", "")]
    chat.end(chat.regenerate(), "1")
    assert chat.exchanges() == [("a", "1")]


# --- search -----------------------------------------------------------------------------------------


def test_search_finds_words_by_their_beginnings(store: Store) -> None:
    """A search finds prompts and answers, the newest first, with marked hits, page by page."""
    chat = Chat(store)
    chat.add_exchange("Where do giraffes sleep?", "Standing, mostly.")
    chat.add_exchange("And do they snore?", "No GIRAFFE was ever heard to.")
    Chat(store, "foreign", "bert").add_exchange("giraffe", "giraffe")
    page = store.search.find("anna", "giraffe", limit=1)
    (newest,) = page.items
    assert (newest.role, newest.conversation_id, newest.title) == (
        "assistant",
        "talk",
        "Where do giraffes sleep?",
    )
    assert newest.message_id == chat.last_exchange().answer_id
    assert newest.snippet == (("No ", False), ("GIRAFFE", True), (" was ever heard to.", False))
    next_page = store.search.find("anna", "giraffe", page.cursor, limit=1)
    assert [hit.role for hit in next_page.items] == ["user"]
    assert next_page.cursor is None
    assert [hit.role for hit in store.search.find("anna", "do snor").items] == ["user"]
    assert store.search.find("anna", "raffe").items == ()
    assert store.search.find("anna", "giraffe snore").items == ()


def test_search_finds_by_time_and_then_by_id(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old messages that were imported late come after newer ones; the pages hold each hit once."""
    monkeypatch.setattr(search, "NEWEST", 2)  # the rest takes the whole index
    Chat(store).add_exchange("giraffe 1", "giraffe 2")
    talk = exported_conversation(*(f"giraffe {n}" for n in range(3, 9)), at=1_000.0)
    store.transfer.import_("anna", conversations_of(export_file(talk)))
    found: list[str] = []
    cursor = None
    while len(found) < 9:
        page = store.search.find("anna", "giraffe", cursor, limit=1)
        found += ["".join(text for text, _ in hit.snippet) for hit in page.items]
        if (cursor := page.cursor) is None:
            break
    assert found == [f"giraffe {n}" for n in (2, 1, 8, 7, 6, 5, 4, 3)]


@pytest.mark.parametrize(
    ("query", "marked_text"),
    [
        ("京都", "京都"),
        ("東京都", "東京都"),
        ("都に住", "都に住"),
        ("む", "む"),
        ("都", "都"),
        ("住む タワー", "住む"),
        ("ประเทศ", "ประเทศ"),
        ("เทศไทย", "เทศไทย"),
        ("东西", ""),
        ("都東", ""),
        ("タワ東", ""),
        ("vie", "view"),
        ("iew", ""),
    ],
)
def test_search_finds_parts_of_text_without_blanks(
    store: Store, query: str, marked_text: str
) -> None:
    """In scripts without blanks a search finds any part of a text, in others word beginnings."""
    chat = Chat(store)
    chat.add_exchange("Hi", "Nothing of it.")
    chat.add_exchange("東京都に住む。タワーのview", "อยู่ในประเทศไทย 東京都に住むタワー view")
    hits = store.search.find("anna", query).items
    expected_count = 1 if query.startswith(("ป", "เ")) else 2
    assert len(hits) == (expected_count if marked_text else 0)
    for hit in hits:
        assert marked_text in [piece for piece, is_hit in hit.snippet if is_hit]


@pytest.mark.parametrize(
    "query", ['"', "* AND (", "owner:bert", "a' OR 1=1 --", "NEAR(", "-", "\0", "%_", ":*&|!", "💥"]
)
def test_search_query_syntax_is_plain_text(store: Store, query: str) -> None:
    """Characters of the database's own query language are plain text in a query."""
    Chat(store, "foreign", "bert").add_exchange("secret", "bert")
    Chat(store).add_exchange("Hello?", "Hello.")
    assert store.search.find("anna", query).items == ()


def test_search_follows_changed_texts(store: Store) -> None:
    """Continued, discarded and withdrawn texts are found as they are now."""
    chat = Chat(store)
    chat.add_exchange("alpha", "bravo", STOPPED)
    write_end(store, chat.continue_answer(), "bravo charlie", new_events=[Content(" charlie")])
    assert len(store.search.find("anna", "bravo charlie").items) == 1
    chat.add_exchange("delta", "", STOPPED)
    assert store.search.find("anna", "delta").items == ()
    store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id)
    assert (
        store.search.find("anna", "alpha").items == store.search.find("anna", "bravo").items == ()
    )
    with pytest.raises(RequestError):
        store.search.find("anna", "a", cursor="x")


def ask_with_files(chat: Chat, prompt: str, *names: str) -> None:
    """Add an exchange whose prompt has a file under each of these names."""
    key, file = chat.new_stream(), save(chat.store, owner=chat.owner)
    files = [(file.hash, name) for name in names]
    chat.store.turns.add_prompt(
        chat.name, chat.owner, prompt, [(key.id, "")], worker=WORKER, files=files
    )
    chat.end(key, "Yes.")


@pytest.mark.parametrize(
    ("query", "pieces"),
    [
        ("plan", (("Floor-", False), ("Plan", True), (" ÜBER 100%.pdf", False))),
        ("PDF floor", (("Floor", True), ("-Plan ÜBER 100%.", False), ("pdf", True))),
        ("lan", (("Floor-P", False), ("lan", True), (" ÜBER 100%.pdf", False))),
        ("über", (("Floor-Plan ", False), ("ÜBER", True), (" 100%.pdf", False))),
        ("100%.pdf", (("Floor-Plan ÜBER ", False), ("100%.pdf", True))),
        ("1%", None),
        ("plan photo", None),
        ("a\0b", None),
    ],
)
def test_search_finds_files_by_their_names(
    store: Store, query: str, pieces: tuple[tuple[str, bool], ...] | None
) -> None:
    """All words match somewhere in a name, in either case; wildcards are plain characters."""
    chat = Chat(store)
    ask_with_files(chat, "", "Floor-Plan ÜBER 100%.pdf", "photo.png")
    Chat(store, "foreign", "bert").add_exchange("Hello?", "Hello.")
    ask_with_files(Chat(store, "second-foreign", "bert"), "", "plan 100%.pdf", "über")
    hits = store.search.find("anna", query).items
    assert [hit.snippet for hit in hits] == ([] if pieces is None else [pieces])
    for hit in hits:
        assert (hit.role, hit.message_id) == ("user", chat.last_exchange().prompt_id)
    store.conversations.delete(chat.name, "anna")
    assert store.search.find("anna", query).items == ()


def test_search_merges_texts_and_names(store: Store) -> None:
    """The newest hit comes first, whatever matched; a message is found once, on one page."""
    chat = Chat(store)
    ask_with_files(chat, "1 giraffe", "giraffe.png", "Giraffe 2.png", "cat.png")
    ask_with_files(chat, "2", "giraffe.png", "cat.png", "Giraffe 2.png")
    chat.add_exchange("3", "4 giraffe")
    ask_with_files(chat, "5", "no.png")
    ask_with_files(chat, "6", "a giraffe")
    found: list[str] = []
    cursor = None
    while True:
        page = store.search.find("anna", "giraffe", cursor, limit=1)
        found += ["".join(text for text, _ in hit.snippet) for hit in page.items]
        if (cursor := page.cursor) is None:
            break
    assert found == ["a giraffe", "4 giraffe", "giraffe.png, Giraffe 2.png", "1 giraffe"]
    assert len(store.search.find("anna", "giraffe").items) == 4


# --- export and import ------------------------------------------------------------------------------


def full_chat(store: Store) -> Chat:
    """A conversation with branches, versions, alternatives, steps and several ends."""
    chat = Chat(store, "everything-there-is")
    store.conversations.set_settings(
        chat.name, chat.owner, Settings("m-1", "Be *brief*.", "Terse", 0.25, 0.75, 50)
    )
    chat.add_exchange("a", "1")
    write_end(
        store, chat.regenerate(), "one", STOPPED, steps=(Step(1, "thought", "done", text="Hm"),)
    )
    chat.edit_answer("eins")
    chat.add_exchange("b", "2", BROKEN)
    chat.add_exchange("B", "two", edit_of=chat.last_exchange().prompt_id)
    answers = [("rival-one", "m-a"), ("rival-two", "m-b")]
    store.turns.add_prompt(chat.name, chat.owner, "Who?", answers, worker=WORKER)
    for stream_id, _ in answers:
        chat.end(chat.key(stream_id), f"I, {stream_id}")
    store.turns.select(chat.name, chat.owner, "rival-two")
    return chat


def comparable(exchange: Exchange) -> tuple[object, ...]:
    """The parts of an exchange that an export keeps."""
    return (
        exchange.prompt,
        [
            (e.answer, e.model, e.requested_model, e.state, e.ended, e.steps, e.is_edited)
            for e in exchange.candidates
        ],
        exchange.selected,
        exchange.prompts.number,
        exchange.versions.number,
        len(exchange.versions.ids),
    )


def test_import_of_an_export_restores_the_conversation(store: Store) -> None:
    """An import restores all branches for the importing owner; a used ID is replaced."""
    chat = full_chat(store)
    conversation_before = chat.read()
    data = b"".join(to_json(store.transfer.export("anna"), no_contents))
    for owner in ("anna", "bert"):
        (new_id,) = store.transfer.import_(owner, conversations_of(data))
        assert new_id != chat.name
        conversation_after = store.conversations.get(new_id, owner)
        assert list(map(comparable, conversation_after.exchanges)) == list(
            map(comparable, conversation_before.exchanges)
        )
        assert (conversation_after.title, conversation_after.settings) == (
            conversation_before.title,
            conversation_before.settings,
        )
        assert (conversation_after.created_at, conversation_after.updated_at) == (
            conversation_before.created_at,
            conversation_before.updated_at,
        )
        second = conversation_before.exchanges[1].prompts.ids.index(
            conversation_before.exchanges[1].prompt_id
        )
        assert second == 1
        old = store.turns.show(new_id, owner, conversation_after.exchanges[1].prompts.ids[0])
        assert [(e.prompt, e.answer) for e in old.exchanges] == [("a", "eins"), ("b", "2")]
    assert chat.read() == conversation_before


def test_export_contains_each_conversation_of_the_owner_once(store: Store) -> None:
    """An export contains each of the owner's conversations once, or a chosen one, and no foreign
    one."""
    for n in range(3):
        Chat(store, f"chat-{n}").add_exchange("a", "1")
    Chat(store, "foreign", "bert").add_exchange("secret", "1")
    assert [conversation.id for conversation in store.transfer.export("anna")] == [
        "chat-0",
        "chat-1",
        "chat-2",
    ]
    assert [conversation.id for conversation in store.transfer.export("anna", "chat-1")] == [
        "chat-1"
    ]
    some = store.transfer.export_many("anna", ["chat-2", "foreign", "chat-0"])
    assert [conversation.id for conversation in some] == ["chat-0", "chat-2"]
    with pytest.raises(UnknownConversation):
        store.transfer.export("anna", "foreign")


def test_export_and_import_carry_pins_and_archive(store: Store) -> None:
    """A file carries pins and archive; one from before them has neither."""
    for n in range(3):
        Chat(store, f"talk-no-{n}").add_exchange("a", "1")
    store.conversations.set_pinned(["talk-no-0"], "anna", pinned=True)
    store.conversations.set_archived(["talk-no-1"], "anna", archived=True)
    data = b"".join(to_json(store.transfer.export("anna"), no_contents))
    store.transfer.import_("bert", conversations_of(data))
    listed = store.conversations.summaries("bert").items
    assert [summary.is_pinned for summary in listed] == [True, False]
    (archived,) = store.conversations.summaries("bert", archived=True).items
    assert archived.is_archived
    older_data = re.sub(rb',"(pinned|archived)_at":[0-9.]+', b"", data)
    assert older_data != data
    assert len(store.transfer.import_("carl", conversations_of(older_data))) == 3
    assert [summary.is_pinned for summary in store.conversations.summaries("carl").items] == [
        False
    ] * 3


def test_markdown_export_contains_the_selected_path(store: Store) -> None:
    """A Markdown export contains the selected path, the system prompt and marks of edited
    answers."""
    chat = full_chat(store)
    text = b"".join(to_markdown(store.transfer.export("anna", chat.name))).decode()
    assert text == (
        "# a\n\n## System prompt: Terse\n\nBe *brief*.\n\n## You\n\na\n\n## m-1\n\neins\n\n*Edited by you.*\n"
        "\n## You\n\nB\n\n## m-1\n\ntwo\n\n## You\n\nWho?\n\n## m-1\n\nI, rival-two\n"
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("", "^This file can't be imported: the conversation 'bad-conversation' holds no message"),
        (
            '{"id":1,"role":"user","content":"a"},{"id":1,"role":"user","content":"b"}',
            "there twice",
        ),
        (
            '{"id":2,"role":"user","content":"a","parent":1}',
            "^This file can't be imported: the message 2 of .* which does not come before it.$",
        ),
        ('{"id":1,"role":"assistant","content":"a"}', "follows no prompt"),
        ('{"id":1,"role":"user","content":"a","rivals":1}', "same prompt as the others"),
        ('{"id":1,"role":"robot","content":"a"}', "in conversation 2, message 1, the field “role”"),
        ('{"id":1,"role":"user"}', "the field “content” is missing"),
        ('{"id":1,"role":"user","content":"a","state":"running"}', "state"),
    ],
)
def test_import_of_a_wrong_file_is_refused_as_a_whole(
    store: Store, messages: str, reason: str
) -> None:
    """An import of a wrong file saves no conversation, and the error names the place of
    the fault.
    """
    valid_item = (
        '{"id":"good-conversation","title":"","messages":[{"id":1,"role":"user","content":"a"}]}'
    )
    wrong_item = f'{{"id":"bad-conversation","title":"","messages":[{messages}]}}'
    file = (
        f'{{"format":"halt-conversations","version":1,"conversations":[{valid_item},{wrong_item}]}}'
    )
    with pytest.raises(RequestError, match=reason) as error_info:
        store.transfer.import_("anna", conversations_of(file.encode()))
    assert error_info.value.field == "file"
    assert store.conversations.summaries("anna").items == ()


def test_import_corrects_impossible_values(store: Store) -> None:
    """An import removes a byte order mark and corrects future times, running steps and wrong
    figures."""
    impossible_metrics = msgspec.structs.replace(METRICS, tokens=10**30)
    message = PortableMessage(
        2, "assistant", "Ho.", parent=1, ended=Done("stop", impossible_metrics)
    )
    message.steps = [
        Step(1, "thought", "running", text="Hm", ms=1e300),
        Step(2, "tool", "running", name="ask", ms=-5.0),
        Step(3, "tool", "done", name="ask", ms=5.0),
    ]
    imported_file = PortableConversation(
        "of-tomorrow", "", [PortableMessage(1, "user", "Hi?"), message]
    )
    imported_file.created_at = imported_file.updated_at = time.time() + 10 * DAY
    data = b"\xef\xbb\xbf" + b"".join(to_json([imported_file], no_contents))
    store.transfer.import_("anna", conversations_of(data))
    conversation = store.conversations.get("of-tomorrow", "anna")
    assert max(conversation.created_at, conversation.updated_at) <= time.time()
    (exchange,) = conversation.exchanges
    assert exchange.ended == Done("stop", NO_FIGURES)
    assert [(step.state, step.ms) for step in exchange.steps] == [
        ("done", None),
        ("called", None),
        ("done", 5.0),
    ]


def test_import_without_a_selection_selects_the_last_messages(store: Store) -> None:
    """Without a selection the last messages are selected; a blank title is replaced."""
    messages = [
        PortableMessage(1, "user", "Hello?"),
        PortableMessage(2, "assistant", "Yes?", parent=1),
        PortableMessage(3, "assistant", "Hello.", parent=1),
    ]
    for name, selected_ids, answer in [("no-choice", [], "Hello."), ("a-choice", [1, 2], "Yes?")]:
        store.transfer.import_("anna", [PortableConversation(name, "  ", messages, selected_ids)])
        (exchange,) = store.conversations.get(name, "anna").exchanges
        assert (exchange.prompt, exchange.answer) == ("Hello?", answer)
    assert [item.title for item in store.conversations.summaries("anna").items] == [
        "Hello?",
        "Hello?",
    ]


def test_export_of_a_running_answer_contains_its_saved_text(store: Store, chat: Chat) -> None:
    """A running continued answer is exported with all text saved so far, as interrupted."""
    chat.add_exchange("Hello?", "One ", STOPPED)
    key = chat.continue_answer()
    events = [(1.0, Content("two ")), (2.0, Content("three"))]
    store.generations.write(Batch(chunks=(Chunk(key, 1, events),)))
    (conversation,) = store.transfer.export("anna", chat.name)
    assert [(message.content, message.state) for message in conversation.messages] == [
        ("Hello?", "done"),
        ("One two three", "interrupted"),
    ]


def test_import_that_fails_midway_adds_nothing(store: Store) -> None:
    """After an import that failed midway its conversations are in no list, search or export."""
    chat = Chat(store)
    chat.add_exchange("zebra", "1")
    (exported_conversation,) = store.transfer.export("anna")

    def failing_import() -> Iterator[PortableConversation]:
        yield exported_conversation
        raise RuntimeError("the middle")

    with pytest.raises(RuntimeError):
        store.transfer.import_("anna", failing_import())
    assert [item.id for item in store.conversations.summaries("anna").items] == [chat.name]
    assert [item.conversation_id for item in store.search.find("anna", "zebra").items] == [
        chat.name
    ]
    assert [conversation.id for conversation in store.transfer.export("anna")] == [chat.name]


@pytest.mark.parametrize(("limit", "steps"), [("IMPORT_STEP", 8), ("IMPORT_CHARS", 12)])
def test_import_writes_long_conversations_in_several_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, steps: int
) -> None:
    """The messages of an import are written in steps, and the whole tree is saved at the end."""
    monkeypatch.setattr(module, limit, 3)
    chat = Chat(store)
    for number in range(5):
        chat.add_exchange(f"prompt {number}", f"answer {number}")
    chat.end(chat.regenerate(), "another answer")
    (conversation,) = store.transfer.export("anna")
    transactions: list[object] = []
    event.listen(store.database.engine, "commit", transactions.append)
    (name,) = store.transfer.import_("bert", [conversation])
    assert len(transactions) >= steps
    (imported_conversation,) = store.transfer.export("bert", name)
    assert [
        (message.role, message.content, message.parent)
        for message in imported_conversation.messages
    ] == [(message.role, message.content, message.parent) for message in conversation.messages]
    assert imported_conversation.chosen == conversation.chosen


def test_sweep_during_an_import_keeps_its_conversation(store: Store) -> None:
    """A sweep removes no old conversation whose import has not written its messages yet."""

    class SweepingList(list[PortableMessage]):
        def __iter__(self) -> Iterator[PortableMessage]:
            assert store.generations.sweep(time.time()) == 0
            return super().__iter__()

    messages = SweepingList([PortableMessage(1, "user", "Hi?", created_at=1.0)])
    conversation = PortableConversation("of-long-ago", "", messages, created_at=1.0, updated_at=1.0)
    (name,) = store.transfer.import_("anna", [conversation])
    assert [item.id for item in store.conversations.summaries("anna").items] == [name]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format":"x","version":1,"conversations":[]}'],
    ids=["empty", "list", "not utf-8", "deeply nested", "other format"],
)
def test_read_of_another_file_is_refused(data: bytes) -> None:
    """Bytes that are no export of Halt are refused."""
    with pytest.raises(RequestError) as error_info:
        conversations_of(data)
    assert error_info.value.field == "file"


# --- recorded events ------------------------------------------------------------------------------


def content_events(*texts: str) -> list[tuple[float, Event]]:
    return [(10.0 * n, Content(text)) for n, text in enumerate(texts)]


def test_recorded_events_are_read_back_exactly(store: Store, chat: Chat) -> None:
    """Each event is read once and in order with its number and time, whatever its batches were."""
    key = chat.ask("a")
    events: list[tuple[float, Event]] = [
        (1.5, Reasoning("Hm\0")),
        (2.25, Content("He")),
        (3.0, Content("llo \U0001f44b")),
        (4.0, DONE),
    ]
    first = Chunk(key, 1, events[:2])
    store.generations.write(Batch(chunks=(first,)))
    assert store.generations.get_ended(key) is None  # it is running
    store.generations.write(Batch(chunks=(first,)))  # repeated
    store.generations.write(Batch(chunks=(Chunk(key, 1, events[:3]),)))  # repeated with more events
    end = GenerationEnd(key, DONE, time.time(), 4, "Hello \U0001f44b", "m-1", seen=3)
    batch = Batch(chunks=(Chunk(key, 3, events[2:]),), ends=(end,))
    store.generations.write(batch)
    store.generations.write(batch)
    generation = store.generations.get_ended(key)
    assert generation is not None
    assert generation.events == tuple(
        (n, arrival, event) for n, (arrival, event) in enumerate(events, 1)
    )
    assert (generation.state, generation.last_seq, generation.seen, generation.model) == (
        "done",
        4,
        3,
        "m-1",
    )
    assert (generation.conversation_id, generation.message_id) == (
        "talk",
        chat.last_exchange().answer_id,
    )
    assert chat.exchanges() == [("a", "Hello \U0001f44b")]


def test_recorded_log_keeps_a_gap(store: Store) -> None:
    """Events that were not written leave their numbers unused."""
    end = GenerationEnd(StreamKey("", "gappy-one"), DONE, time.time(), 9, "ab")
    chunks = (
        Chunk(StreamKey("", "gappy-one"), 1, content_events("a")),
        Chunk(StreamKey("", "gappy-one"), 8, [*content_events("b"), (9.0, DONE)]),
    )
    store.generations.write(Batch((new_generation(StreamKey("", "gappy-one")),), chunks, (end,)))
    generation = store.generations.get_ended(StreamKey("", "gappy-one"))
    assert generation is not None
    assert [seq for seq, _, _ in generation.events] == [1, 8, 9]


def test_generation_is_readable_by_its_person_alone(store: Store, chat: Chat) -> None:
    """A person's generation is read by that person alone; for others it does not exist."""
    key = chat.ask("a")
    chat.end(key, "1")
    for owner in ("bert", ""):
        other_key = StreamKey(owner, key.id)
        assert store.generations.get_ended(other_key) is None
        assert store.generations.state(other_key) is None
        assert not store.generations.exists(other_key)
        assert not store.generations.interrupt(other_key)
    assert store.generations.get_ended(key) is not None
    assert store.generations.get_ended(chat.key("unknown")) is None


def test_generations_of_two_people_with_one_id_are_separate(store: Store) -> None:
    """Rows, events, counts, ends and removals of two people with the same stream IDs are separate."""
    anna, bert = chats = [Chat(store, owner, owner) for owner in ("anna", "bert")]
    for chat in chats:
        chat.name, name = "talk", chat.name  # so that their streams have the same IDs
        key = chat.new_stream()
        chat.name = name
        store.turns.add_prompt(name, chat.owner, "Hello?", [(key.id, "")], worker=WORKER)
    keys = [chat.key("talk-1") for chat in chats]
    for key in keys:
        chunk = Chunk(key, 1, content_events(f"I am {key.owner}."))
        store.generations.write(Batch(chunks=(chunk,)))
    assert sorted(store.generations.running_of(WORKER)) == keys
    text = "I am anna."
    write_end(store, keys[0], text, new_events=[Content(text)])
    assert [store.generations.state(key) for key in keys] == ["done", "running"]
    assert store.generations.interrupt(keys[1])
    store.generations.count(keys[1], {"prompt_tokens": 5, "completion_tokens": 40})
    for chat, key in zip(chats, keys, strict=True):
        record = store.generations.get_ended(key)
        assert record is not None
        assert record.key == key
        assert record.events[0][2] == Content(f"I am {key.owner}.")
        assert chat.exchanges() == [("Hello?", f"I am {key.owner}.")]
    assert bert.last_exchange().usage == Usage(5, 40)
    assert anna.last_exchange().usage != bert.last_exchange().usage
    store.conversations.delete(anna.name, "anna")
    store.generations.sweep(time.time() + DAY + 60)
    assert [store.generations.exists(key) for key in keys] == [False, True]
    assert bert.exchanges() == [("Hello?", "I am bert.")]


def test_programs_generations_of_two_people_expire_separately(store: Store) -> None:
    """The removal of one person's old generation leaves another one with the same ID."""
    keys = [StreamKey(owner, "program-1") for owner in ("anna", "bert")]
    store.generations.write(Batch(new=tuple(map(new_generation, keys))))
    write_end(store, keys[0], "Hello.")
    assert store.generations.sweep(time.time() + 7.1 * DAY) == 1
    assert [store.generations.exists(key) for key in keys] == [False, True]


def test_second_end_of_a_generation_is_ignored(store: Store, chat: Chat) -> None:
    """An ended generation accepts neither further text nor a second end."""
    key = chat.ask("a")
    assert store.generations.interrupt(key)
    exchange_before = chat.last_exchange()
    chat.end(key, "late")
    store.generations.write(Batch(chunks=(Chunk(key, 1, content_events("late")),)))
    assert chat.last_exchange() == exchange_before
    assert not store.generations.interrupt(key)


def test_token_usage_sums_reported_and_estimated_tokens(store: Store, chat: Chat) -> None:
    """Usage adds reported and estimated tokens and still counts those of discarded answers."""
    metrics = METRICS.__class__(None, 1.0, 7, False, None, 0)
    terminal = Done("stop", metrics, {"prompt_tokens": 5, "completion_tokens": 7})
    chat.add_exchange("a", "1", terminal)
    chat.add_exchange("b", "2", terminal)
    assert chat.last_exchange().usage == Usage(5, 7)
    estimated_end = Cancelled(METRICS.__class__(None, 1.0, 3, True, None, 0))
    chat.end(chat.regenerate(), "x", estimated_end)
    assert chat.last_exchange().usage == Usage(0, 3, True)
    total = Usage(10, 17, True)
    assert store.conversations.token_usage(chat.name, chat.owner) == chat.read().usage == total
    store.turns.discard(chat.name, chat.owner, chat.last_exchange().answer_id)
    assert store.conversations.token_usage(chat.name, chat.owner) == total
    with pytest.raises(UnknownConversation):
        store.conversations.token_usage(chat.name, "bert")


def test_late_usage_of_a_provider_replaces_the_estimate(store: Store, chat: Chat) -> None:
    """A late count replaces a stopped answer's estimate; a running or unknown stream is
    unchanged."""
    estimated_end = Cancelled(METRICS.__class__(None, 1.0, 3, True, None, 0))
    key = chat.ask("a")
    usage = {"prompt_tokens": 5, "completion_tokens": 40}
    store.generations.count(key, usage)
    store.generations.count(StreamKey("", "unknown"), usage)
    chat.end(key, "x", estimated_end)
    assert chat.last_exchange().usage == Usage(0, 3, True)
    store.generations.count(key, usage)
    assert (
        chat.last_exchange().usage
        == store.conversations.token_usage(chat.name, chat.owner)
        == Usage(5, 40)
    )


def test_unstorable_characters_are_replaced(chat: Chat) -> None:
    """A NUL and half a surrogate pair are replaced in prompts and answers."""
    chat.add_exchange("a\0b\ud800", "c\0d")
    assert chat.exchanges() == [("a\ufffdb?", "c\ufffdd")]


# --- recovery ---------------------------------------------------------------------------------------


def test_interrupt_keeps_the_saved_text_and_thoughts(store: Store, chat: Chat) -> None:
    """The saved text and thoughts of a dead worker's generation are its answer, as interrupted."""
    key = chat.ask("a")
    timed_thought: list[tuple[float, Event]] = [(1.0, Reasoning("Hm"))]
    store.generations.write(
        Batch(chunks=(Chunk(key, 1, [*timed_thought, *content_events("Hel", "lo")]),))
    )
    assert store.generations.workers_running().keys() == {WORKER}
    assert store.generations.running_of(WORKER) == [key]
    assert store.generations.interrupt(key)
    assert store.generations.workers_running() == {}
    exchange = chat.last_exchange()
    assert (exchange.answer, exchange.state) == ("Hello", "interrupted")
    assert isinstance(exchange.ended, Failed)
    assert (exchange.ended.error.code, exchange.ended.error.retryable) == ("interrupted", True)
    assert exchange.ended.metrics.tokens_estimated
    assert [step.text for step in exchange.steps] == ["Hm"]
    generation = store.generations.get_ended(key)
    assert generation is not None
    assert generation.last_seq == 3 + GAP + 1
    assert [seq for seq, _, _ in generation.events] == [1, 2, 3, 3 + GAP + 1]
    assert generation.events[-1][2] == exchange.ended
    chat.ask("b")
    assert chat.prompt_messages()[1:] == [("assistant", "Hello"), ("user", f"{notes.BROKEN}\n\nb")]


def test_interrupt_separates_a_late_thought_from_the_answer(store: Store, chat: Chat) -> None:
    """Text that a late ReasoningEnd turned into a thought is a step and not part of the answer."""
    key = chat.ask("a")
    timed_end: list[tuple[float, Event]] = [(3.0, ReasoningEnd()), (4.0, Content("Hello"))]
    store.generations.write(
        Batch(chunks=(Chunk(key, 1, [*content_events("Ok", "ay."), *timed_end]),))
    )
    assert store.generations.interrupt(key)
    assert chat.last_exchange().answer == "Hello"
    assert [(step.kind, step.text) for step in chat.last_exchange().steps] == [("thought", "Okay.")]
    chat.ask("b")
    assert "Okay" not in str(chat.prompt_messages())


def test_interrupt_of_a_continue_keeps_the_earlier_text(store: Store, chat: Chat) -> None:
    """An interrupted Continue keeps the earlier text and the new text saved so far."""
    chat.add_exchange("a", "Half", STOPPED)
    key = chat.continue_answer()
    store.generations.write(Batch(chunks=(Chunk(key, 1, content_events(" an")),)))
    store.generations.interrupt(key)
    assert (chat.last_exchange().answer, chat.last_exchange().state) == ("Half an", "interrupted")
    chat.end(chat.continue_answer(), "Half an answer")
    assert chat.last_exchange().answer == "Half an answer"


def test_interrupt_without_text_keeps_the_prompt(store: Store, chat: Chat) -> None:
    """A generation interrupted before any text keeps its prompt, which can be regenerated."""
    store.generations.interrupt(chat.ask("a"))
    assert (chat.last_exchange().answer, chat.last_exchange().state) == ("", "interrupted")
    chat.end(chat.regenerate(), "1")
    assert chat.exchanges() == [("a", "1")]


def test_concurrent_interrupts_end_a_generation_once(store: Store, chat: Chat) -> None:
    """Property: of concurrent interruptions of a generation exactly one ends it."""
    for n in range(10):
        key = chat.ask(f"{n}")
        store.generations.write(Batch(chunks=(Chunk(key, 1, content_events("x")),)))
        outcomes = together(*[partial(store.generations.interrupt, key)] * 4)
        assert sorted(outcomes) == [False, False, False, True]
        assert chat.last_exchange().answer == "x"


def test_concurrent_end_and_interrupt_leave_one_end(store: Store, chat: Chat) -> None:
    """Property: an end and an interruption at the same moment leave one end in message and events."""
    for n in range(15):
        key = chat.ask(f"{n}")
        store.generations.write(Batch(chunks=(Chunk(key, 1, content_events("a")),)))
        end = partial(write_end, store, key, "ab", new_events=[Content("a"), Content("b")])
        interrupted, _ = together(partial(store.generations.interrupt, key), end)
        generation = store.generations.get_ended(key)
        assert generation is not None
        assert generation.events[-1][2] == chat.last_exchange().ended
        expected = ("a", "interrupted") if interrupted else ("ab", "done")
        assert (chat.last_exchange().answer, chat.last_exchange().state) == expected
        assert generation.state == chat.last_exchange().state


def test_one_batch_writes_many_streams(store: Store) -> None:
    """One batch writes the events of 100 streams and the ends of some of them."""
    keys = [StreamKey("", f"stream-{n:03}") for n in range(100)]
    store.generations.write(Batch(new=tuple(map(new_generation, keys))))
    for seq in (1, 2):
        store.generations.write(
            Batch(chunks=tuple(Chunk(key, seq, content_events(f"{seq}")) for key in keys))
        )
    now = time.time()
    ends = tuple(GenerationEnd(key, DONE, now, 3, "12") for key in keys[::2])
    store.generations.write(
        Batch(chunks=tuple(Chunk(key, 3, [(30.0, DONE)]) for key in keys[::2]), ends=ends)
    )
    assert sorted(store.generations.running_of(WORKER)) == keys[1::2]
    for key in keys[::2]:
        generation = store.generations.get_ended(key)
        assert generation is not None
        assert [event[2] for event in generation.events] == [Content("1"), Content("2"), DONE]
        assert all(a[0] < b[0] for a, b in pairwise(generation.events))


def test_sweep_removes_old_events_and_keeps_texts(store: Store, chat: Chat) -> None:
    """After seven days the events of an answer and whole generations of programs are removed."""
    key = chat.ask("a")
    chat.end(key, "1")
    store.generations.write(Batch(new=(new_generation(StreamKey("", "program-1")),)))
    write_end(store, StreamKey("", "program-1"), "Hello.")
    assert store.generations.sweep(time.time() + 6.9 * DAY) == 0
    assert store.generations.sweep(time.time() + 7.1 * DAY) == 2
    assert store.generations.sweep(time.time() + 7.1 * DAY) == 0
    assert store.generations.get_ended(key) is None
    assert store.generations.exists(key)
    assert not store.generations.exists(StreamKey("", "program-1"))
    assert chat.exchanges() == [("a", "1")]
    assert chat.last_exchange().usage.completion_tokens == METRICS.tokens


def test_sweep_removes_empty_conversations(store: Store) -> None:
    """A conversation whose only prompt was withdrawn is removed after a day."""
    chat = Chat(store, "empty")
    chat.add_exchange("Never mind.", "", STOPPED)
    assert chat.exchanges() == []
    assert store.generations.sweep(time.time() + DAY + 60) == 1
    with pytest.raises(UnknownConversation):
        chat.read()


def test_conversation_is_unchanged_after_a_restart(tmp_path: Path) -> None:
    """A conversation with branches, versions and alternatives is the same in a newly opened
    store."""
    with open_store(tmp_path) as store:
        full_chat(store)
        conversation_before = store.conversations.get("everything-there-is", "anna")
    with open_store(tmp_path) as store:
        assert store.conversations.get("everything-there-is", "anna") == conversation_before


def test_numbers_beyond_the_databases_range_lose_no_answer(store: Store, chat: Chat) -> None:
    """An answer with impossible token counts is saved without them."""
    end = Done("stop", METRICS.__class__(None, 1.0, 10**30, False, None, 0))
    key = chat.ask("a")
    timed_events: list[tuple[float, Event]] = [(0.0, Content("b")), (1.0, end)]
    generation_end = GenerationEnd(key, end, 1.0, 2, "b", "m-1", seen=10**15 - 1)
    store.generations.write(Batch(chunks=(Chunk(key, 1, timed_events),), ends=(generation_end,)))
    assert chat.exchanges() == [("a", "b")]
    generation = store.generations.get_ended(key)
    assert generation is not None
    assert generation.seen == 2
    assert chat.last_exchange().usage == Usage()


def test_generation_of_another_worker_with_the_same_id_is_not_saved(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A second generation with the same ID of another worker is not saved, and the log says so.

    The first one keeps its events. The store did not answer when the ID of the second one was checked.
    """
    own_batch = Batch(
        new=(new_generation(StreamKey("", "an-id")),),
        chunks=(Chunk(StreamKey("", "an-id"), 1, [(1.0, Content("first"))]),),
        worker=WORKER,
    )
    store.generations.write(own_batch)
    store.generations.write(own_batch)  # repeated: the first success was not reported
    assert not caplog.records
    other_generation = replace(new_generation(StreamKey("", "an-id")), worker="worker-2")
    timed_events: list[tuple[float, Event]] = [(1.0, Content("second")), (2.0, DONE)]
    end = GenerationEnd(StreamKey("", "an-id"), DONE, time.time(), 2, "second", "m-1")
    store.generations.write(
        Batch(
            (other_generation,),
            (Chunk(StreamKey("", "an-id"), 1, timed_events[:1]),),
            worker="worker-2",
        )
    )
    store.generations.write(
        Batch((), (Chunk(StreamKey("", "an-id"), 1, timed_events),), (end,), worker="worker-2")
    )
    assert [record.getMessage() for record in caplog.records] == [
        "stream an-id is not saved: an earlier one has its ID"
    ]
    assert store.generations.state(StreamKey("", "an-id")) == "running"
    assert store.generations.interrupt(StreamKey("", "an-id"))
    generation = store.generations.get_ended(StreamKey("", "an-id"))
    assert generation is not None
    assert [event.content for _, _, event in generation.events if isinstance(event, Content)] == [
        "first"
    ]
