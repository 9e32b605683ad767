"""What browsers or persons own becomes another person's, on SQLite and PostgreSQL."""

from __future__ import annotations

import time
from functools import partial

import pytest
from sqlalchemy import insert, select

from halt.chat.prompts import Prompts
from halt.config.settings import SAVED_NAME_MAX
from halt.core.events import Cancelled, Content
from halt.core.stream_key import StreamKey
from halt.store.batches import Batch, Chunk
from halt.store.models import Busy, NamedPrompt, Preset, Settings, UnknownConversation
from halt.store.owners import BROWSER, Owners
from halt.store.rows import PINS_MAX
from halt.store.store import Store
from halt.store.tables import people
from tests.support.files import save
from tests.support.races import together
from tests.support.stores import METRICS, WORKER, Chat, new_generation, write_end


@pytest.fixture
def owners(store: Store) -> Owners:
    return Owners(store.database)


def add_browser(store: Store, owner: str) -> None:
    """The row that the migration makes for a browser of an earlier version."""
    with store.database.writing() as connection:
        connection.execute(insert(people).values(id=owner, mode=BROWSER, subject=owner))


def titles(store: Store, owner: str) -> list[str]:
    return sorted(item.title for item in store.conversations.summaries(owner).items)


def chat_with_streams(store: Store, name: str, owner: str, stream_name: str) -> Chat:
    """A chat with an ended answer, whose streams are named after another conversation."""
    chat = Chat(store, name, owner)
    key = StreamKey(owner, f"{stream_name}-1")
    store.turns.add_prompt(name, owner, f"of {owner}", [(key.id, "")], worker=WORKER)
    chat.end(key, f"to {owner}")
    return chat


def test_give_makes_everything_the_persons(store: Store, owners: Owners) -> None:
    """Conversations, their streams, prompts and presets are the person's, and of nobody else."""
    add_browser(store, "anna")
    chat = Chat(store)
    chat.add_exchange("zebra?", "yes")
    Chat(store, "deleted").add_exchange("gone", "1")
    store.conversations.delete("deleted", "anna")
    store.named_prompts.save("anna", NamedPrompt("Poet", "Rhyme."))
    store.presets.save("anna", Preset("cold", 0.1))
    Chat(store, "own", "me").add_exchange("mine", "1")
    Chat(store, "foreign", "bert").add_exchange("his", "1")
    assert owners.give(["anna"], "me") == 1
    assert titles(store, "me") == ["mine", "zebra?"]
    assert titles(store, "bert") == ["his"]
    assert titles(store, "anna") == []
    assert store.generations.get_ended(StreamKey("me", "talk-1")) is not None
    assert store.generations.get_ended(StreamKey("anna", "talk-1")) is None
    assert store.named_prompts.names("me") == ["Poet"]
    assert store.presets.all("me") == [Preset("cold", 0.1)]
    assert [item.id for item in store.conversations.undelete("deleted", "me")] == ["deleted"]
    assert {owner.id for owner in owners.all()} == {"me", "bert"}
    with pytest.raises(UnknownConversation):
        chat.read()


def test_given_conversation_goes_on(store: Store, owners: Owners) -> None:
    """The person continues a conversation that was given, and finds its texts old and new."""
    Chat(store).add_exchange("zebra?", "giraffe")
    owners.give(["anna"], "bert")
    owners.give(["bert"], "me")
    Chat(store, "other", "me").add_exchange("zebra too?", "1")
    chat = Chat(store, owner="me")
    chat.stream_count = 1
    chat.add_exchange("okapi?", "zebra")
    assert chat.exchanges() == [("zebra?", "giraffe"), ("okapi?", "zebra")]
    for query, count in (("zebra", 3), ("giraffe", 1), ("okapi", 1)):
        assert len(store.search.find("me", query).items) == count
        for former in ("anna", "bert"):
            assert store.search.find(former, query).items == ()
    for exchange in reversed(chat.read().exchanges):
        store.turns.discard(chat.name, "me", exchange.answer_id)
    assert store.search.find("me", "giraffe").items == ()


def test_search_of_a_person_who_took_over_many_browsers(store: Store, owners: Owners) -> None:
    """A person who took over 300 browsers' conversations finds a text in each of them.

    SQLite's index of words takes expressions of a depth of 256.
    """
    browsers = [f"browser-{n}" for n in range(300)]
    for browser in browsers:
        Chat(store, browser, browser).ask("zebra?")
    assert owners.give(browsers, "me", also_running=True) == 300
    assert len(store.search.find("me", "zebra", limit=1000).items) == 300


def test_given_prompt_with_a_taken_name_gets_a_number(store: Store, owners: Owners) -> None:
    """A prompt or preset with a taken name gets a free one; an equal one is given once."""
    long_name = "n" * SAVED_NAME_MAX
    for owner, text in (("me", "mine"), ("anna", "hers"), ("bert", "his")):
        store.named_prompts.save(owner, NamedPrompt("Poet", text))
        store.named_prompts.save(owner, NamedPrompt("Same", "equal"))
        store.named_prompts.save(owner, NamedPrompt(long_name, text))
        store.presets.save(owner, Preset("cold", 0.1, None, 5))
    store.presets.save("anna", Preset("warm", 1.0))
    store.presets.save("me", Preset("warm", 1.5))
    owners.give(["anna", "bert"], "me")
    prompts = {prompt.name: prompt.content for prompt in store.named_prompts.all("me")}
    assert prompts == {
        "Poet": "mine",
        "Poet (2)": "hers",
        "Poet (3)": "his",
        "Same": "equal",
        long_name: "mine",
        long_name[:-4] + " (2)": "hers",
        long_name[:-4] + " (3)": "his",
    }
    assert store.presets.all("me") == [
        Preset("cold", 0.1, None, 5),
        Preset("warm", 1.5),
        Preset("warm (2)", 1.0),
    ]
    assert store.named_prompts.names("anna") == store.presets.names("bert") == []


def test_given_conversation_names_its_own_prompt(store: Store, owners: Owners) -> None:
    """A conversation whose named prompt got a number names it, so that its settings stay valid."""
    for owner, name, text in (
        ("me", "Poet", "Rhyme."),
        ("anna", "Poet", "Sing."),
        ("anna", "Poet (2)", "Hum."),
    ):
        store.named_prompts.save(owner, NamedPrompt(name, text))
    chats = {"first": ("Poet", "Sing."), "second": ("Poet (2)", "Hum.")}
    for chat_name, (prompt_name, text) in chats.items():
        Chat(store, chat_name).add_exchange("a", "1")
        store.conversations.set_settings(
            chat_name, "anna", Settings(system_prompt=text, prompt_name=prompt_name)
        )
    owners.give(["anna"], "me")
    prompts = Prompts(store.named_prompts, {})
    for chat_name, (_, text) in chats.items():
        settings = store.conversations.get(chat_name, "me").settings
        assert settings.prompt_name not in {None, "Poet"}
        assert prompts.text("me", settings.prompt_name or "") == settings.system_prompt == text


def test_given_stream_with_a_taken_id_gets_another(store: Store, owners: Owners) -> None:
    """Streams with the same ID stay separate: each conversation replays its own events."""
    chats = {
        owner: chat_with_streams(store, f"chat-of-{owner}", owner, "same")
        for owner in ("me", "anna", "bert")
    }
    for owner in ("me", "anna"):  # and those of programs
        key = StreamKey(owner, "program-1")
        store.generations.write(Batch(new=(new_generation(key),)))
        write_end(store, key, f"for {owner}")
    owners.give(["anna", "bert"], "me")
    stream_ids = set()
    for former, chat in chats.items():
        chat.owner = "me"
        (exchange,) = chat.read().exchanges
        assert exchange.answer == f"to {former}"
        record = store.generations.get_ended(chat.key(exchange.stream_id))
        assert record is not None
        assert record.conversation_id == chat.name
        assert record.events[0][2] == Content(f"to {former}")
        stream_ids.add(exchange.stream_id)
    assert len(stream_ids) == 3
    own = store.generations.get_ended(StreamKey("me", "program-1"))
    assert own is not None
    assert own.events[0][2] == Content("for me")


def test_give_during_an_answer_is_refused(store: Store, owners: Owners) -> None:
    """While an answer is being written nothing is given; after its end everything is."""
    add_browser(store, "anna")
    store.named_prompts.save("anna", NamedPrompt("Poet", "Rhyme."))
    chat = Chat(store)
    key = chat.ask("Hello?")
    with pytest.raises(Busy):
        owners.give(["anna"], "me")
    assert chat.last_exchange().is_running
    assert store.named_prompts.names("anna") == ["Poet"]
    assert owners.browsers() == ["anna"]
    chat.end(key, "Hello.")
    assert owners.give(["anna"], "me") == 1
    assert owners.browsers() == []


def test_give_at_a_start_takes_interrupted_streams_too(store: Store, owners: Owners) -> None:
    """At a start a dead worker's running streams are given with their saved events.

    The recovery then ends each, also where the person has a stream with the same ID.
    """
    chats = []
    for owner in ("anna", "bert"):
        chat = Chat(store, f"chat-of-{owner}", owner)
        key = chat.key("same")
        store.turns.add_prompt(chat.name, owner, "Hello?", [(key.id, "")], worker=WORKER)
        chunk = Chunk(key, 1, [(1.0, Content(f"I am {owner}."))])
        store.generations.write(Batch(chunks=(chunk,)))
        chats.append(chat)
    assert owners.give(["anna", "bert"], "me", also_running=True) == 2
    running = store.generations.running_of(WORKER)
    assert {key.owner for key in running} == {"me"}
    assert [store.generations.interrupt(key) for key in running] == [True, True]
    for former, chat in zip(("anna", "bert"), chats, strict=True):
        chat.owner = "me"
        assert (chat.last_exchange().answer, chat.last_exchange().state) == (
            f"I am {former}.",
            "interrupted",
        )


def test_give_keeps_the_newest_pins(store: Store, owners: Owners) -> None:
    """No more than PINS_MAX conversations are pinned afterwards; the oldest pins are removed."""
    for n in range(PINS_MAX):
        Chat(store, f"chat-{n}").ask("a")
    Chat(store, "own", "me").ask("b")
    store.conversations.set_pinned([f"chat-{n}" for n in range(PINS_MAX)], "anna", True)
    store.conversations.set_pinned(["own"], "me", True)
    owners.give(["anna"], "me", also_running=True)
    items = store.conversations.summaries("me", limit=1000).items
    pinned = {item.id for item in items if item.is_pinned}
    assert len(pinned) == PINS_MAX
    assert "own" in pinned


def test_concurrent_gives_move_everything_once(store: Store, owners: Owners) -> None:
    """Of concurrent calls for one person each conversation is counted by one."""
    for n in range(5):
        Chat(store, f"chat-{n}").add_exchange("a", "1")
    store.named_prompts.save("anna", NamedPrompt("Poet", "Rhyme."))
    store.named_prompts.save("me", NamedPrompt("Poet", "Sing."))
    counts = together(*[partial(owners.give, ["anna"], "me")] * 4)
    assert sorted(counts) == [0, 0, 0, 5]
    assert store.named_prompts.names("me") == ["Poet", "Poet (2)"]
    assert len(titles(store, "me")) == 5


def test_start_of_an_answer_during_a_give_leaves_one_owner(store: Store, owners: Owners) -> None:
    """Property: a start at the same moment is refused, or the give is; no stream loses its owner."""
    for n in range(10):
        chat = Chat(store, f"chat-{n}")
        chat.add_exchange("a", "1")
        outcomes = together(partial(outcome_of_start, chat), partial(outcome_of_give, owners))
        assert outcomes in (["started", "busy"], ["refused", "given"])
        if outcomes[0] == "started":
            (running,) = store.generations.running_of(WORKER)
            assert running.owner == "anna"
            chat.end(running, "2", Cancelled(METRICS))
            assert chat.exchanges() == [("a", "1"), ("b", "2")]
            assert outcome_of_give(owners) == "given"


def outcome_of_start(chat: Chat) -> str:
    try:
        chat.ask("b")
    except UnknownConversation:
        return "refused"
    return "started"


def outcome_of_give(owners: Owners) -> str:
    try:
        owners.give(["anna"], "me")
    except Busy:
        return "busy"
    return "given"


def test_owners_are_listed_with_counts_and_times(store: Store, owners: Owners) -> None:
    """Each owner and person is listed once with counts of what is not deleted, last used first."""
    add_browser(store, "browser")
    store.named_prompts.save("prompter", NamedPrompt("Poet", "Rhyme."))
    before = time.time()
    for name, owner in (("a", "anna"), ("b", "anna"), ("c", "bert")):
        Chat(store, name, owner).add_exchange("a", "1")
    Chat(store, "c", "bert").read()
    store.conversations.delete("b", "anna")
    rows = {owner.id: owner for owner in owners.all()}
    assert list(rows)[:1] == ["bert"]
    assert {id_: (row.mode, row.conversations, row.messages) for id_, row in rows.items()} == {
        "bert": ("", 1, 2),
        "anna": ("", 1, 2),
        "browser": (BROWSER, 0, 0),
        "prompter": ("", 0, 0),
    }
    assert before <= rows["anna"].began_at <= rows["anna"].used_at <= time.time()
    assert (rows["prompter"].began_at, rows["browser"].used_at) == (0, 0)
    with store.database.reading() as connection:
        assert connection.scalar(select(people.c.mode)) == BROWSER


def test_given_files_are_merged(store: Store, owners: Owners) -> None:
    """Of a file that both have, one is left; all messages have theirs, and none is removed."""
    both, own, sent = (
        [(save(store, text, owner).hash, name) for owner in ("anna", "me")]
        for text, name in ((b"both", "both.txt"), (b"own", "own.txt"), (b"sent", "sent.txt"))
    )
    anna, me = Chat(store), Chat(store, "mine", "me")
    for chat, attached in ((anna, [both[0], own[0]]), (me, [both[1], sent[1]])):
        key = chat.new_stream()
        store.turns.add_prompt(
            chat.name, chat.owner, "Look.", [(key.id, "")], worker=WORKER, files=attached
        )
        chat.end(key, "I see.")
    owners.give(["anna"], "me")
    while store.generations.sweep(time.time() + 10 * 86_400):
        pass
    given = store.conversations.get("talk", "me").exchanges[0].files
    assert [(file.name, store.files.read("me", file.file.hash, "content")) for file in given] == [
        ("both.txt", b"both"),
        ("own.txt", b"own"),
    ]
    assert len(me.last_exchange().files) == 2
    assert store.files.many("anna", [file_hash for file_hash, _ in (*both, *own, *sent)]) == {}
