"""Signing in with a name and a password, and changing one's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.security import check_password_hash

from halt.errors import RequestError
from halt.people import passwords
from halt.people.accounts import Accounts, Disabled, LinkGone, new_link, new_person
from halt.people.attempts import Attempts, Origin, WrongPassword
from halt.people.names import name_key
from halt.people.passwords import Passwords
from halt.store.people import PersonRow
from halt.store.rate_counters import counters_in
from halt.store.sign_ins import SignIn
from halt.store.store import Store
from tests.support.stores import open_store

PASSWORD = "a good password"
HERE = Origin("192.0.2.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened_store:
        yield opened_store


@pytest.fixture
def accounts(store: Store, tmp_path: Path) -> Accounts:
    return Accounts(store.accounts, Attempts(counters_in(tmp_path)))


@pytest.fixture
def ann(store: Store) -> PersonRow:
    person = new_person("Ann")
    return store.accounts.add(person, name_key(person.name), password=Passwords().hash(PASSWORD))


def sign_in(store: Store, person_id: str, digest: str) -> None:
    at = time.time()
    store.sign_ins.begin(person_id, SignIn(digest, at, at, at + 60, "a browser", "192.0.2.1"))


def test_wrong_name_and_wrong_password_are_the_same(
    accounts: Accounts, ann: PersonRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get the same answer after the same computation: nothing tells which names exist."""
    compared: list[str] = []

    def counting(saved: str, password: str) -> bool:
        compared.append(saved.rpartition("$")[0].partition("$")[0])
        return check_password_hash(saved, password)

    monkeypatch.setattr(passwords, "check_password_hash", counting)
    messages = set()
    for name, password in (("Ann", "a wrong one"), ("Bob", PASSWORD), ("x\0" * 10_000, PASSWORD)):
        with pytest.raises(WrongPassword) as refused:
            accounts.sign_in(name, password, HERE)
        messages.add(refused.value.message)
    assert len(messages) == 1
    assert compared == [passwords.METHOD] * 3
    assert accounts.sign_in(" aNN", PASSWORD, HERE).person == ann


def test_disabled_account_is_told_only_to_who_has_its_password(
    accounts: Accounts, store: Store, ann: PersonRow
) -> None:
    """With the right password the answer says that the account is disabled; enabled it works."""
    store.accounts.set_disabled(ann.id, disabled=True)
    with pytest.raises(WrongPassword):
        accounts.sign_in("Ann", "a wrong one", HERE)
    with pytest.raises(Disabled):
        accounts.sign_in("Ann", PASSWORD, HERE)
    store.accounts.set_disabled(ann.id, disabled=False)
    assert accounts.sign_in("Ann", PASSWORD, HERE).person.id == ann.id


def test_removed_account_does_not_exist(accounts: Accounts, store: Store, ann: PersonRow) -> None:
    """From the beginning of a removal on the name and its link are unknown."""
    token, link = new_link()
    store.accounts.begin_removal(ann.id)
    with pytest.raises(WrongPassword):
        accounts.sign_in("Ann", PASSWORD, HERE)
    store.accounts.set_link(ann.id, link)
    with pytest.raises(LinkGone):
        accounts.link_account(token)


def test_change_of_password_ends_the_other_sign_ins(
    accounts: Accounts, store: Store, ann: PersonRow
) -> None:
    """The new password works, the old one does not; only this browser stays signed in."""
    sign_in(store, ann.id, "this")
    sign_in(store, ann.id, "another")
    account = accounts.sign_in("Ann", PASSWORD, HERE)
    new = "a better password"
    with pytest.raises(WrongPassword):
        accounts.change_password(ann.id, "a wrong one", new, origin=HERE, keep="this")
    with pytest.raises(RequestError):
        accounts.change_password(ann.id, PASSWORD, "short", origin=HERE, keep="this")
    assert accounts.change_password(ann.id, PASSWORD, new, origin=HERE, keep="this") == 1
    assert [kept.digest for kept in store.sign_ins.of_person(ann.id)] == ["this"]
    assert not accounts.is_current(account)
    with pytest.raises(WrongPassword):
        accounts.sign_in("Ann", PASSWORD, HERE)
    assert accounts.sign_in("Ann", new, HERE).person.id == ann.id
