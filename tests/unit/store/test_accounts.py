"""The table of accounts, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import select, text

from halt.errors import NameTaken
from halt.people.accounts import new_link, new_person
from halt.people.names import name_key
from halt.store.connected import KeyRow
from halt.store.models import NamedPrompt
from halt.store.people import PersonRow
from halt.store.sign_ins import SignIn
from halt.store.store import Store
from halt.store.tables import metadata
from tests.support.files import save
from tests.support.stores import WORKER, Chat


def add(store: Store, name: str) -> PersonRow:
    person = new_person(name)
    return store.accounts.add(person, name_key(person.name), password=f"hash of {name}")


def sign_in(store: Store, person_id: str, digest: str) -> None:
    at = time.time()
    store.sign_ins.begin(person_id, SignIn(digest, at, at, at + 60, "a browser", "192.0.2.1"))


def test_first_account_is_administrator_also_of_several_at_once(store: Store) -> None:
    """Of accounts that are added at the same time exactly one is the first."""
    names = [f"Person {n}" for n in range(4)]
    threads = [threading.Thread(target=add, args=(store, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accounts = store.accounts.summaries()
    assert [account.name for account in accounts] == names
    assert sorted(account.is_admin for account in accounts) == [False, False, False, True]


def test_name_is_taken_without_regard_to_case_and_composition(store: Store) -> None:
    """Two accounts never have names that look the same; a name is free again after a removal."""
    first = add(store, "Änn")
    with pytest.raises(NameTaken):
        add(store, "a\u0308NN")
    store.accounts.begin_removal(first.id)
    store.accounts.remove(first.id)
    assert add(store, "ÄNN").id != first.id


def test_link_is_used_once_and_ends_sign_ins(store: Store) -> None:
    """A one-time link sets one password; while it is open no password works."""
    person = add(store, "Ann")
    sign_in(store, person.id, "a digest")
    _, link = new_link()
    assert store.accounts.set_link(person.id, link) == 1
    account = store.accounts.of_link(link.digest)
    assert account is not None
    assert account.password is None
    used = store.accounts.use_link(link.digest, "new hash")
    assert used is not None
    assert used.id == person.id
    assert store.accounts.use_link(link.digest, "another hash") is None
    account = store.accounts.of_person(person.id)
    assert account is not None
    assert account.password == "new hash"


def test_link_out_of_time_sets_nothing(store: Store) -> None:
    """A link that is out of time sets no password."""
    person = add(store, "Ann")
    _, link = new_link()
    store.accounts.set_link(person.id, replace(link, until=time.time() - 1))
    assert store.accounts.use_link(link.digest, "new hash") is None


def test_password_is_replaced_only_if_it_is_the_compared_one(store: Store) -> None:
    """A change that was begun with a password that is no longer set changes nothing."""
    person = add(store, "Ann")
    sign_in(store, person.id, "this browser")
    sign_in(store, person.id, "another browser")
    accounts = store.accounts
    assert accounts.set_password(person.id, "new", replaced="not this one") is None
    assert len(store.sign_ins.of_person(person.id)) == 2
    ended = accounts.set_password(person.id, "new", replaced="hash of Ann", keep="this browser")
    assert ended == 1
    assert [kept.digest for kept in store.sign_ins.of_person(person.id)] == ["this browser"]
    accounts.set_password(person.id, "newer", keep="this browser", renewed="new digest")
    assert [kept.digest for kept in store.sign_ins.of_person(person.id)] == ["new digest"]


def test_removal_leaves_no_row_of_the_person(store: Store) -> None:
    """After a removal no table has anything of the person, and other people have all of theirs."""
    ann, bob = add(store, "Ann"), add(store, "Bob")
    for person in (ann, bob):
        for n in range(12):  # more than one transaction removes
            chat = Chat(store, f"{person.name}-chat-{n}", person.id)
            chat.end(chat.ask("Pineapple?"), "Pineapple.")
        Chat(store, f"{person.name}-runs", person.id).ask("Pineapple?")
        hashes = [save(store, b"%d" % n, person.id).hash for n in range(5)]  # one is not sent
        chat = Chat(store, f"{person.name}-files", person.id)
        key, attached = chat.new_stream(), [(file_hash, "a.txt") for file_hash in hashes[1:]]
        store.turns.add_prompt(
            chat.name, person.id, "Look.", [(key.id, "")], worker=WORKER, files=attached
        )
        chat.end(key, "I see.")
        store.named_prompts.save(person.id, NamedPrompt("A name", "A text"))
        sign_in(store, person.id, f"browser of {person.name}")
        store.sign_ins.add_token(person.id, f"token of {person.name}", "A script")
        store.connected.save_key(KeyRow("groq", person.id, b"sealed"))
    assert store.accounts.running(ann.id) == 1
    assert store.accounts.begin_removal(ann.id) == 2
    assert store.people.barred([ann.id, bob.id, "nobody"]) == {
        ann.id: "removed",
        "nobody": "removed",
    }
    store.accounts.remove(ann.id)
    with store.database.reading() as connection:
        rows = [
            tuple(row)
            for table in metadata.sorted_tables
            for row in connection.execute(select(table))
        ]
        if store.database.sqlite:
            words = connection.scalar(
                text("SELECT count(*) FROM messages_words WHERE messages_words MATCH 'pineapple'")
            )
            assert words == 25
    assert rows
    assert not [row for row in rows if ann.id in row or "Ann-chat-1" in row]
    assert len(store.search.find(bob.id, "pineapple", limit=50).items) == 25
    assert len(store.sign_ins.tokens(bob.id)) == 1
    assert store.files.many(ann.id, hashes) == {}
    assert [store.files.read(bob.id, one, "content") for one in hashes] == [
        b"%d" % n for n in range(5)
    ]
    assert len(chat.last_exchange().files) == 4
