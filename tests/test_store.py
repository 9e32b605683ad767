"""Conversations: what the user saw is saved, and what is saved is what the model is told."""

from __future__ import annotations

from functools import partial

import pytest

from halt.errors import StreamInUse
from halt.events import Cancelled, Done, ErrorInfo, Failed
from halt.folds import Fold
from halt.metrics import Meter
from halt.store import (
    BROKEN_NOTE,
    EXCHANGE_OVERHEAD,
    STOPPED_NOTE,
    Busy,
    Conversation,
    Exchange,
    MemoryStore,
    UnknownConversation,
)
from tests.races import together

ROOMY = 10_000_000
METRICS = Meter().snapshot()
DONE = Done("stop", METRICS)
STOPPED = Cancelled(METRICS)
BROKEN = Failed(ErrorInfo("stalled", "It stalled.", True), METRICS)


class Chat:
    """One conversation of one session, told in short sentences."""

    def __init__(self, store: MemoryStore, name: str = "talk", owner: str = "anna") -> None:
        self.store, self.name, self.owner = store, name, owner
        self.asked = 0

    def ask(self, prompt: str) -> str:
        """Ask; the ID of the stream that will answer."""
        self.asked += 1
        stream_id = f"{self.name}-{self.asked}"
        self.store.begin(self.name, self.owner, prompt, stream_id)
        return stream_id

    def again(self) -> str:
        self.asked += 1
        stream_id = f"{self.name}-{self.asked}"
        self.store.again(self.name, self.owner, stream_id)
        return stream_id

    def ends(self, stream_id: str, answer: str, how: Done | Cancelled | Failed = DONE) -> None:
        self.store.finish(self.name, stream_id, answer, "m-1", how)

    def says(self, prompt: str, answer: str, how: Done | Cancelled | Failed = DONE) -> None:
        self.ends(self.ask(prompt), answer, how)

    def now(self) -> Conversation:
        return self.store.get(self.name, self.owner)

    def exchanges(self) -> list[tuple[str, str]]:
        return [(e.prompt, e.answer) for e in self.now().exchanges]

    def told(self, system: str = "") -> list[tuple[str, object]]:
        """What the model is told, as (role, content)."""
        return [(m.role, m.content) for m in self.now().messages(system)]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ROOMY)


@pytest.fixture
def chat(store: MemoryStore) -> Chat:
    return Chat(store)


def test_an_exchange_is_open_until_its_stream_ends(chat: Chat) -> None:
    """The prompt is there at once; answer, model and end are written when the stream ends."""
    stream_id = chat.ask("Hello?")
    assert chat.now().exchanges == [Exchange("Hello?", stream_id)]
    chat.ends(stream_id, "Hello.")
    assert chat.now().exchanges == [Exchange("Hello?", stream_id, "Hello.", "m-1", DONE)]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (DONE, "Half an"),
        (STOPPED, f"Half an\n\n{STOPPED_NOTE}"),
        (Cancelled(METRICS, "no_viewer"), f"Half an\n\n{STOPPED_NOTE}"),
        (BROKEN, f"Half an\n\n{BROKEN_NOTE}"),
    ],
    ids=["done", "stopped", "unwatched", "broken"],
)
def test_the_model_is_told_what_was_seen(
    chat: Chat, how: Done | Cancelled | Failed, told: str
) -> None:
    """A stopped or broken answer is saved as it was seen, and the model is told that it was cut."""
    chat.says("Tell me.", "Half an", how)
    chat.ask("Go on.")
    assert chat.exchanges() == [("Tell me.", "Half an"), ("Go on.", "")]
    assert chat.told() == [("user", "Tell me."), ("assistant", told), ("user", "Go on.")]


def test_the_system_prompt_comes_first_and_only_where_there_is_one(chat: Chat) -> None:
    """It is the first message, and no empty one is sent."""
    chat.ask("Hello?")
    assert chat.told("Be brief.") == [("system", "Be brief."), ("user", "Hello?")]
    assert chat.told() == [("user", "Hello?")]


def test_prompts_without_an_answer_go_as_one(chat: Chat) -> None:
    """After answers that failed before any text the prompts are merged: turns alternate."""
    chat.says("One?", "", BROKEN)
    chat.says("Two?", "", BROKEN)
    chat.ask("Three?")
    assert chat.told("S") == [("system", "S"), ("user", "One?\n\nTwo?\n\nThree?")]


def test_turns_always_alternate(chat: Chat) -> None:
    """Whatever happened before, no two messages of one role follow each other."""
    chat.says("a", "1")
    chat.says("b", "", BROKEN)
    chat.says("c", "", STOPPED)
    chat.says("d", "2", STOPPED)
    chat.says("e", "", DONE)
    chat.ask("f")
    roles = [role for role, _ in chat.told()]
    assert roles == ["user", "assistant"] * 2 + ["user"]
    assert ("user", "b\n\nd") in chat.told()


def test_a_prompt_that_was_stopped_before_any_text_is_taken_back(chat: Chat) -> None:
    """Stop before the first word means "never mind": the page gives the prompt back to the user."""
    chat.says("Kept.", "Yes.")
    chat.says("Never mind.", "", STOPPED)
    assert chat.exchanges() == [("Kept.", "Yes.")]
    chat.says("Instead.", "Good.")
    assert chat.exchanges() == [("Kept.", "Yes."), ("Instead.", "Good.")]


def test_a_failure_before_any_text_is_kept(chat: Chat) -> None:
    """The user sees why there is no answer, also after a reload."""
    chat.says("Hello?", "", BROKEN)
    assert chat.now().exchanges[-1].ended == BROKEN


def test_taking_back_is_as_if_it_had_never_been_asked(chat: Chat) -> None:
    """A stream that could not be started leaves nothing, and asking again works at once."""
    stream_id = chat.ask("Too much.")
    chat.store.take_back(chat.name, stream_id)
    assert chat.exchanges() == []
    chat.says("Less.", "Fine.")
    assert chat.exchanges() == [("Less.", "Fine.")]


def test_what_ends_after_it_was_forgotten_changes_nothing(chat: Chat) -> None:
    """A late end for an unknown stream or conversation is passed over."""
    chat.says("a", "1")
    chat.ends("unknown", "text")
    chat.store.finish("unknown", "unknown", "text", "m", DONE)
    chat.store.take_back(chat.name, "unknown")
    chat.store.take_back("unknown", "unknown")
    assert chat.exchanges() == [("a", "1")]


def test_asking_again_replaces_the_last_answer(chat: Chat) -> None:
    """The model is asked the same once more, and not told the answer that is to be replaced."""
    chat.says("a", "1")
    chat.says("b", "bad")
    stream_id = chat.again()
    assert chat.told() == [("user", "a"), ("assistant", "1"), ("user", "b")]
    previous = chat.now().exchanges[-1].previous
    assert previous is not None
    assert previous.answer == "bad"
    chat.ends(stream_id, "good")
    assert chat.exchanges() == [("a", "1"), ("b", "good")]
    assert chat.now().exchanges[-1].previous is None


def test_a_new_try_that_is_stopped_with_text_is_the_answer(chat: Chat) -> None:
    """What the user saw of the second try, and stopped, is what is saved."""
    chat.says("a", "first")
    chat.ends(chat.again(), "seco", STOPPED)
    assert chat.exchanges() == [("a", "seco")]


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_new_try_that_is_stopped_before_any_text_gives_the_old_answer_back(
    chat: Chat, tries: int
) -> None:
    """Changing one's mind about "again" loses nothing, however often."""
    chat.says("a", "first", STOPPED)
    before = chat.now()
    for _ in range(tries):
        chat.ends(chat.again(), "", STOPPED)
    assert chat.now() == before


def test_a_new_try_that_fails_before_any_text_does_not_lose_the_old_answer(chat: Chat) -> None:
    """The earlier answer is kept until there is something better; an error is nothing better."""
    chat.says("a", "first")
    chat.ends(chat.again(), "", BROKEN)
    last = chat.now().exchanges[-1]
    assert "first" in {last.answer, last.previous.answer if last.previous else ""}


def test_the_model_is_told_the_answer_that_was_kept(chat: Chat) -> None:
    """After new tries that failed without text, the talk goes on from the answer that is there."""
    chat.says("a", "first", STOPPED)
    for _ in range(2):
        chat.ends(chat.again(), "", BROKEN)
    chat.ask("b")
    told = chat.told()
    assert told == [("user", "a"), ("assistant", f"first\n\n{STOPPED_NOTE}"), ("user", "b")]


def test_a_new_try_that_cannot_start_gives_the_old_answer_back(chat: Chat) -> None:
    """When there is no place for the stream of a new try, the answer stands as before."""
    chat.says("a", "first")
    before = chat.now()
    chat.store.take_back(chat.name, chat.again())
    assert chat.now() == before


def test_one_answer_at_a_time(chat: Chat) -> None:
    """While an answer is written, neither a new prompt nor a new try is taken."""
    stream_id = chat.ask("a")
    with pytest.raises(Busy):
        chat.ask("b")
    with pytest.raises(Busy):
        chat.again()
    chat.ends(stream_id, "1")
    chat.says("b", "2")
    assert chat.exchanges() == [("a", "1"), ("b", "2")]


def test_of_prompts_at_the_same_moment_one_is_taken(store: MemoryStore) -> None:
    """Law: two tabs that send at once get one exchange; the other is told that it is busy."""

    def send(name: str, number: int) -> bool:
        try:
            store.begin(name, "anna", "a", f"{name}-{number}")
        except Busy:
            return False
        return True

    for repeat in range(200):
        name = f"c{repeat}"
        taken = together(partial(send, name, 1), partial(send, name, 2))
        assert sorted(taken) == [False, True]
        assert len(store.get(name, "anna").exchanges) == 1


def test_a_stream_id_answers_once(chat: Chat) -> None:
    """An ID that has answered in this conversation is refused: its text would be mixed up."""
    chat.says("a", "1")
    with pytest.raises(StreamInUse):
        chat.store.begin(chat.name, chat.owner, "b", "talk-1")
    with pytest.raises(StreamInUse):
        chat.store.again(chat.name, chat.owner, "talk-1")
    assert chat.exchanges() == [("a", "1")]


def test_another_session_sees_nothing_and_changes_nothing(chat: Chat) -> None:
    """A foreign conversation is answered like one that does not exist."""
    chat.says("secret", "yes")
    stranger = Chat(chat.store, chat.name, "bert")
    with pytest.raises(UnknownConversation) as foreign:
        stranger.now()
    with pytest.raises(UnknownConversation) as absent:
        Chat(chat.store, "no-such", "bert").now()
    assert str(foreign.value) == str(absent.value)
    with pytest.raises(UnknownConversation):
        stranger.ask("mine?")
    with pytest.raises(UnknownConversation):
        stranger.again()
    assert chat.exchanges() == [("secret", "yes")]


def test_there_must_be_a_prompt_to_ask_again(chat: Chat) -> None:
    """Asking again in an unknown or an emptied conversation is refused."""
    with pytest.raises(UnknownConversation):
        chat.again()
    chat.says("Never mind.", "", STOPPED)
    with pytest.raises(UnknownConversation):
        chat.again()


def test_what_is_handed_out_is_a_copy(chat: Chat) -> None:
    """Whoever changes what they got changes nothing for others."""
    chat.says("a", "1")
    chat.now().exchanges.clear()
    assert chat.exchanges() == [("a", "1")]


def test_the_least_recently_used_conversations_go_first() -> None:
    """Memory is bounded; a conversation that was looked at lately outlives one that was not."""
    room = 3 * (2 * EXCHANGE_OVERHEAD + 2_000)
    store = MemoryStore(room)
    chats = [Chat(store, f"chat-{n}") for n in range(4)]
    for each in chats[:3]:
        each.says("x" * 500, "y" * 400)
    chats[0].now()
    chats[3].says("x" * 500, "y" * 400)
    assert chats[0].exchanges()
    assert chats[3].exchanges()
    with pytest.raises(UnknownConversation):
        chats[1].now()


def test_the_conversation_that_grows_is_never_the_one_to_go() -> None:
    """Even one that is larger than the whole bound stays while it is the newest."""
    store = MemoryStore(10_000)
    small, large = Chat(store, "small"), Chat(store, "large")
    small.says("a", "b")
    large.says("x", "y" * 100_000)
    assert large.exchanges() == [("x", "y" * 100_000)]
    with pytest.raises(UnknownConversation):
        small.now()


def test_memory_is_counted_down_again() -> None:
    """What is taken back or let go is no longer counted: the store does not shrink over time."""
    store = MemoryStore(100_000)
    for number in range(500):
        each = Chat(store, f"chat-{number}")
        each.says("x" * 1_000, "y" * 1_000)
        each.ends(each.again(), "z", STOPPED)
        each.ends(each.ask("w" * 1_000), "", STOPPED)
    left = [n for n in range(500) if f"chat-{n}" in store._conversations]
    assert len(left) >= 5
    assert left == list(range(500 - len(left), 500))
    assert store._size == sum(c.size() for c in store._conversations.values()) <= 100_000


# --- several models, one prompt ---------------------------------------------------------------------


class Comparison(Chat):
    """A conversation whose first prompt went to three models, with the streams a, b and c."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        store.begin(self.name, self.owner, "Who?", "a", "m-a", [("b", "m-b"), ("c", "m-c")])

    def all_end(self, **answers: str) -> None:
        for stream_id, answer in answers.items():
            self.ends(stream_id, answer, DONE if answer else STOPPED)

    def streams(self) -> list[str]:
        """The streams of the last exchange, the one that is gone on with first."""
        return [each.stream_id for each in self.now().exchanges[-1].candidates]


@pytest.fixture
def three(store: MemoryStore) -> Comparison:
    return Comparison(store)


def test_a_comparison_is_open_until_its_last_answer_has_ended(three: Comparison) -> None:
    """Each answer is written where it belongs, in whatever order they end."""
    for stream_id in ("c", "a"):
        three.ends(stream_id, f"I am {stream_id}.")
        with pytest.raises(Busy):
            three.ask("And?")
    three.ends("b", "I am b.")
    answers = [(e.asked, e.answer) for e in three.now().exchanges[0].candidates]
    assert answers == [("m-a", "I am a."), ("m-b", "I am b."), ("m-c", "I am c.")]
    three.ask("And?")


def test_the_model_is_told_the_first_answer_that_there_is(three: Comparison) -> None:
    """Of one that was stopped before any text nothing is told."""
    three.all_end(a="", b="I am b.", c="I am c.")
    three.ask("And?")
    assert three.told() == [("user", "Who?"), ("assistant", "I am b."), ("user", "And?")]


def test_the_one_that_is_picked_goes_on_with_its_model(three: Comparison) -> None:
    """The others stay beside it, and another can be picked as long as nothing more was said."""
    three.all_end(a="I am a.", b="I am b.", c="I am c.")
    for pick, streams in (("c", ["c", "a", "b"]), ("b", ["b", "c", "a"])):
        found = three.store.pick(three.name, three.owner, pick)
        assert three.streams() == streams
        assert found.model == f"m-{pick}"
    three.ask("And?")
    assert three.told() == [("user", "Who?"), ("assistant", "I am b."), ("user", "And?")]
    with pytest.raises(UnknownConversation):
        three.store.pick(three.name, three.owner, "a")


def test_only_an_answer_of_a_finished_comparison_can_be_picked(
    three: Comparison, store: MemoryStore
) -> None:
    """Not while one is written, not a stranger's, and not where there was no choice."""
    with pytest.raises(Busy):
        three.store.pick(three.name, three.owner, "a")
    three.all_end(a="I am a.", b="I am b.", c="I am c.")
    for owner, stream_id in (("bert", "a"), ("anna", "unknown")):
        with pytest.raises(UnknownConversation):
            three.store.pick(three.name, owner, stream_id)
    single = Chat(store, "single")
    single.says("One?", "One.")
    with pytest.raises(UnknownConversation):
        store.pick("single", "anna", "single-1")


def test_a_comparison_of_which_nothing_was_seen_is_taken_back(three: Comparison) -> None:
    """As a single answer is; one word of one model keeps it."""
    three.all_end(a="", b="", c="")
    assert three.exchanges() == []
    store_with_one = Comparison(MemoryStore(ROOMY))
    store_with_one.all_end(c="", b="Hm", a="")
    assert store_with_one.streams() == ["a", "b", "c"]


def test_asking_again_keeps_what_was_put_away(three: Comparison) -> None:
    """A new try replaces the picked answer; withdrawn, it brings that back with all the others."""
    three.all_end(a="I am a.", b="I am b.", c="I am c.")
    three.store.pick(three.name, three.owner, "b")
    again = three.again()
    assert three.streams() == [again, "a", "c"]
    three.ends(again, "", STOPPED)
    assert three.streams() == ["b", "a", "c"]
    again = three.again()
    three.ends(again, "I am new.")
    assert three.streams() == [again, "a", "c"]
    assert three.told()[-1] == ("assistant", "I am new.")


def test_no_stream_answers_twice(three: Comparison, store: MemoryStore) -> None:
    """The IDs of a comparison are in use, each of them, and differ from one another."""
    three.all_end(a="I am a.", b="I am b.", c="I am c.")
    for taken in ("a", "c"):
        with pytest.raises(StreamInUse):
            store.begin(three.name, three.owner, "And?", taken)
    with pytest.raises(StreamInUse):
        store.begin("other", "anna", "And?", "x", "", [("x", "")])


def test_folds_are_saved_counted_and_never_told(store: MemoryStore, chat: Chat) -> None:
    """What a model thought is for the eye."""
    stream_id = chat.ask("Why?")
    before = chat.now().size()
    fold = Fold(1, "thought", "done", text="secret thoughts " * 10, ms=5.0)
    store.finish(chat.name, stream_id, "Because.", "m-1", DONE, (fold,))
    assert chat.now().exchanges[0].folds == (fold,)
    assert chat.now().size() >= before + fold.size()
    chat.ask("And?")
    assert "secret" not in str(chat.told())
