"""Connected providers, their sealed keys and the settings of models, on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from halt.config.providers import ModelSettings
from halt.errors import RequestError, SignInEnded, Unstorable
from halt.store import connected, model_rows
from halt.store.connected import KeyRow, ModelRow, ProviderRow, Snapshot, UnknownProvider
from halt.store.people import PersonRow
from halt.store.store import Store
from tests.support.races import together

GROQ = ProviderRow(
    "groq",
    "openai",
    preset="groq",
    title="Groq",
    base_url="https://api.groq.example/v1",
    models=("m-1", "m-2"),
)
AZURE = ProviderRow(
    "azure", "azure", base_url="https://a.example", api_version="v", max_tokens=9, own_keys=True
)
HIDDEN = ModelSettings(hidden=True, extra_body={"reasoning": {"effort": "low"}})


def key(provider: str = "groq", person: str = "", sealed: bytes = b"sealed") -> KeyRow:
    return KeyRow(provider, person, sealed, "last", ("X-One",))


def new_person(store: Store, name: str) -> str:
    store.people.ensure(PersonRow(name, "header", "", name, name))
    return name


def untimed(snapshot: Snapshot) -> Snapshot:
    """The snapshot without times."""
    return replace(
        snapshot,
        providers=tuple(replace(row, created_at=0.0) for row in snapshot.providers),
        keys=tuple(replace(row, updated_at=0.0) for row in snapshot.keys),
    )


def keys_of(store: Store) -> dict[tuple[str, str], bytes]:
    return {(row.provider, row.person): row.sealed for row in store.connected.snapshot().keys}


def test_empty_store_has_version_0(store: Store) -> None:
    """Without a change there is nothing, at version 0."""
    assert store.connected.version() == 0
    assert store.connected.snapshot() == Snapshot(0, (), (), (), None)


def test_snapshot_has_all_that_was_saved(store: Store) -> None:
    """A snapshot has every field; the providers in the order in which they were added."""
    rows = store.connected
    person = new_person(store, "anna")
    rows.add(GROQ, key())
    rows.add(AZURE)
    rows.save_key(key("azure", person))
    rows.set_model("of the settings", "m", HIDDEN)
    rows.order_models("groq", ["m-2", "m-1", "m-2"])
    version = rows.set_default(("groq", "m/1"))
    snapshot = rows.snapshot()
    assert untimed(snapshot) == Snapshot(
        version,
        (GROQ, AZURE),
        (key("azure", person), key()),
        (
            ModelRow("groq", "m-1", ModelSettings(), 1),
            ModelRow("groq", "m-2", ModelSettings(), 0),
            ModelRow("of the settings", "m", HIDDEN, None),
        ),
        ("groq", "m/1"),
    )
    assert [row.created_at > 1.7e9 for row in snapshot.providers] == [True, True]
    assert [row.updated_at > 1.7e9 for row in snapshot.keys] == [True, True]
    assert b"sealed" not in repr(snapshot).encode()


def test_every_change_adds_1_to_the_version(store: Store) -> None:
    """Each change returns the next version, and a refused one leaves it as it was."""
    rows = store.connected
    person = new_person(store, "anna")
    changes: list[Callable[[], Any]] = [
        partial(rows.add, GROQ, key()),
        partial(rows.change, GROQ, drop_keys=False),
        partial(rows.save_key, key()),
        partial(rows.save_key, key("groq", person)),
        partial(rows.remove_key, "groq", person),
        partial(rows.set_model, "groq", "m", HIDDEN),
        partial(rows.order_models, "groq", ["m"]),
        partial(rows.set_default, ("groq", "m")),
        partial(rows.set_default, None),
        partial(rows.remove, "groq"),
    ]
    for number, change in enumerate(changes, 1):
        assert change() == number
        assert rows.version() == rows.snapshot().version == number
    with pytest.raises(UnknownProvider):
        rows.change(GROQ, drop_keys=False)
    assert rows.version() == len(changes)
    assert rows.remove("groq") is rows.remove_key("groq", person) is None


def test_name_can_be_taken_once(store: Store) -> None:
    """A taken name is refused, and nothing of the provider that has it changes."""
    rows = store.connected
    rows.add(GROQ, key())
    before = rows.snapshot()
    with pytest.raises(RequestError, match="There is a provider with the name 'groq' already"):
        rows.add(replace(AZURE, name="groq"), key(sealed=b"other"))
    assert rows.snapshot() == before


def test_providers_are_limited(store: Store) -> None:
    """Beyond PROVIDERS_MAX a further provider is refused."""
    for number in range(connected.PROVIDERS_MAX):
        store.connected.add(replace(GROQ, name=f"p-{number}"))
    with pytest.raises(RequestError, match="100 providers are connected already") as caught:
        store.connected.add(GROQ)
    assert caught.value.field == "name"


def test_order_of_the_providers_survives_a_clock_that_was_set_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that is added later comes later, whatever the clock says."""
    for name, at in (("z", 2e9), ("b", 1e9), ("a", 1e9)):
        monkeypatch.setattr("halt.store.connected.time.time", lambda at=at: at)
        store.connected.add(replace(GROQ, name=name))
    assert [row.name for row in store.connected.snapshot().providers] == ["z", "b", "a"]


def test_change_keeps_the_keys_unless_the_address_changes(store: Store) -> None:
    """A change keeps the keys or replaces the common one; `drop_keys` removes all people's."""
    rows = store.connected
    person = new_person(store, "anna")
    rows.add(GROQ, key())
    rows.add(AZURE, key("azure"))
    rows.save_key(key("groq", person))
    created = rows.snapshot().providers[0].created_at
    renamed = replace(GROQ, title="New", models=(), own_keys=True, max_tokens=5)
    rows.change(renamed, drop_keys=False)
    assert rows.snapshot().providers[0] == replace(renamed, created_at=created)
    assert set(keys_of(store)) == {("groq", ""), ("groq", person), ("azure", "")}
    rows.change(renamed, key(sealed=b"new"), drop_keys=False)
    assert keys_of(store)["groq", ""] == b"new"
    rows.change(replace(renamed, base_url="https://b.example"), drop_keys=True)
    assert set(keys_of(store)) == {("azure", "")}
    rows.change(GROQ, key(sealed=b"newer"), drop_keys=True)
    assert keys_of(store) == {("azure", ""): b"sealed", ("groq", ""): b"newer"}


def test_removed_provider_takes_all_of_its_rows_along(store: Store) -> None:
    """Its keys, its models' settings and the default go; a change does not bring it back."""
    rows = store.connected
    person = new_person(store, "anna")
    for row in (GROQ, AZURE):
        rows.add(row, key(row.name))
        rows.save_key(key(row.name, person))
        rows.set_model(row.name, "m", HIDDEN)
    rows.set_default(("azure", "m"))
    rows.remove("groq")
    assert rows.snapshot().default == ("azure", "m")
    with pytest.raises(UnknownProvider, match="'groq' was removed"):
        rows.change(GROQ, key(), drop_keys=False)
    with pytest.raises(UnknownProvider):
        rows.save_key(key())
    snapshot = rows.snapshot()
    assert [row.name for row in snapshot.providers] == ["azure"]
    assert {row.provider for row in snapshot.keys} == {"azure"}
    assert {row.provider for row in snapshot.models} == {"azure"}
    rows.remove("azure")
    assert rows.snapshot() == Snapshot(rows.version(), (), (), (), None)


def test_new_provider_gets_no_key_that_was_left_under_its_name(store: Store) -> None:
    """An own key for a provider of the settings is not sent to a new one with its name."""
    person = new_person(store, "anna")
    store.connected.save_key(key("groq", person))
    store.connected.add(GROQ)
    assert keys_of(store) == {}


def test_key_is_not_saved_for_another_address(store: Store) -> None:
    """A key for an address that the provider has no longer is refused."""
    rows = store.connected
    person = new_person(store, "anna")
    rows.add(GROQ)
    for owner in ("", person):
        rows.save_key(key("groq", owner), base_url=GROQ.base_url)
    rows.change(replace(GROQ, base_url="https://evil.example/v1"), drop_keys=True)
    for owner in ("", person):
        with pytest.raises(UnknownProvider):
            rows.save_key(key("groq", owner), base_url=GROQ.base_url)
        with pytest.raises(UnknownProvider):
            rows.save_key(key("nobody", owner), base_url=GROQ.base_url)
    assert keys_of(store) == {}


def test_own_keys_are_limited_for_each_person(store: Store) -> None:
    """At the limit a further own key is refused, and a saved one may still be replaced."""
    rows = store.connected
    anna, bert = new_person(store, "anna"), new_person(store, "bert")
    for number in range(connected.OWN_KEYS_MAX):
        rows.save_key(key(f"p-{number}", anna))
    with pytest.raises(RequestError, match="You have saved 100 keys already") as caught:
        rows.save_key(key("new", anna))
    assert caught.value.field == "key"
    rows.save_key(key("p-7", anna, b"new"))
    rows.save_key(key("new", bert))
    assert keys_of(store)["p-7", anna] == b"new"


def test_removed_person_takes_the_own_keys_along(store: Store) -> None:
    """The keys go with the person, workers notice, and no key is saved for the person after it."""
    rows = store.connected
    anna, bert = new_person(store, "anna"), new_person(store, "bert")
    rows.add(GROQ, key())
    rows.save_key(key("groq", anna))
    rows.save_key(key("groq", bert))
    store.accounts.begin_removal(anna)
    with pytest.raises(SignInEnded):
        rows.save_key(key("groq", anna, b"late"))
    before = rows.version()
    store.accounts.remove(anna)
    assert set(keys_of(store)) == {("groq", ""), ("groq", bert)}
    assert rows.version() > before
    with pytest.raises(SignInEnded):
        rows.save_key(key("groq", anna))


def test_reseal_replaces_only_what_was_resealed(store: Store) -> None:
    """A key that was saved meanwhile is kept; resealing is no change."""
    rows = store.connected
    rows.add(GROQ, key())
    version = rows.version()
    assert rows.reseal("groq", "", b"sealed", b"resealed")
    assert not rows.reseal("groq", "", b"sealed", b"again")
    assert not rows.reseal("groq", "anna", b"resealed", b"again")
    assert keys_of(store) == {("groq", ""): b"resealed"}
    assert rows.version() == version


def test_model_without_settings_and_position_has_no_row(store: Store) -> None:
    """Settings keep the position, the order keeps the settings, and empty rows are deleted."""
    rows = store.connected
    rows.set_model("groq", "m-1", HIDDEN)
    rows.order_models("groq", ["m-2", "m-1"])
    rows.order_models("azure", ["m-1"])
    rows.set_model("groq", "m-2", ModelSettings(label="Two"))
    rows.set_model("groq", "m-1", ModelSettings())
    assert [row for row in rows.snapshot().models if row.provider == "groq"] == [
        ModelRow("groq", "m-1", ModelSettings(), 1),
        ModelRow("groq", "m-2", ModelSettings(label="Two"), 0),
    ]
    rows.order_models("groq", ["m-3"])
    assert [row for row in rows.snapshot().models if row.provider == "groq"] == [
        ModelRow("groq", "m-2", ModelSettings(label="Two"), None),
        ModelRow("groq", "m-3", ModelSettings(), 0),
    ]
    rows.set_model("groq", "m-2", ModelSettings())
    rows.order_models("groq", [])
    assert rows.snapshot().models == (ModelRow("azure", "m-1", ModelSettings(), 0),)


def test_models_of_a_provider_are_limited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that is too long is refused, and so are settings of too many models."""
    rows = store.connected
    with pytest.raises(RequestError, match="The order has 5,001 models") as caught:
        rows.order_models("groq", [f"{number}" for number in range(model_rows.ORDER_MAX + 1)])
    assert caught.value.field == "models"
    monkeypatch.setattr(model_rows, "MODELS_MAX", 3)
    rows.order_models("groq", ["m-1", "m-2"])
    rows.set_model("groq", "m-3", HIDDEN)
    before = rows.snapshot()
    for change in (
        partial(rows.set_model, "groq", "m-4", HIDDEN),
        partial(rows.order_models, "groq", ["m-4", "m-5", "m-6"]),
    ):
        with pytest.raises(RequestError, match="3 models of this provider have settings already"):
            change()
    assert rows.snapshot() == before
    rows.set_model("groq", "m-3", ModelSettings(label="three"))
    rows.set_model("azure", "m-4", HIDDEN)


def test_largest_order_is_saved(store: Store) -> None:
    """ORDER_MAX models keep their order, whatever was stored before."""
    names = [f"model/{number}" for number in range(model_rows.ORDER_MAX)]
    store.connected.order_models("groq", names)
    store.connected.order_models("groq", names[::-1])
    positions = {row.model: row.position for row in store.connected.snapshot().models}
    assert positions == {name: at for at, name in enumerate(names[::-1])}


@pytest.mark.parametrize("text", ["nul \0 here", "half \ud800 here"])
def test_text_that_no_database_accepts_is_replaced(store: Store, text: str) -> None:
    """NUL and lone surrogates are replaced in every text, also where a row is looked up by it."""
    rows = store.connected
    person = new_person(store, "anna")
    row = ProviderRow(text, "openai", text, text, text, text, models=(text,))
    rows.add(row, KeyRow(text, "", b"sealed", text, (text,)))
    with pytest.raises(RequestError, match="There is a provider with the name"):
        rows.add(row)
    rows.change(row, drop_keys=False)
    rows.save_key(KeyRow(text, person, b"sealed"), base_url=text)
    rows.set_model(text, text, ModelSettings(label=text))
    rows.order_models(text, [text])
    rows.set_default((text, text))
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    snapshot = rows.snapshot()
    assert [(row.name, row.models) for row in snapshot.providers] == [(clean, (clean,))]
    assert snapshot.default == (clean, clean)
    assert [row.settings.label for row in snapshot.models] == [clean]
    assert rows.remove_key(text, person)
    assert rows.remove(text)
    assert rows.snapshot().default is None


def test_request_extras_that_are_no_json_are_refused(store: Store) -> None:
    """A lone surrogate in the extras is an error of the request, and nothing is saved."""
    with pytest.raises(Unstorable):
        store.connected.set_model("groq", "m", ModelSettings(extra_body={"a": ["\ud800"]}))
    assert store.connected.version() == 0


def test_one_of_simultaneous_additions_wins(store: Store) -> None:
    """Of several additions of one name one wins with its key; the others are refused."""

    def add(number: int) -> int | None:
        try:
            return store.connected.add(
                replace(GROQ, title=f"{number}"), key(sealed=f"{number}".encode())
            )
        except RequestError:
            return None

    results = together(*(partial(add, number) for number in range(5)))
    (winner,) = (number for number, result in enumerate(results) if result is not None)
    snapshot = store.connected.snapshot()
    assert [row.title for row in snapshot.providers] == [f"{winner}"]
    assert [row.sealed for row in snapshot.keys] == [f"{winner}".encode()]


def test_version_rises_with_each_of_simultaneous_changes(store: Store) -> None:
    """Simultaneous changes get different versions, and no version is left out."""

    def change(number: int) -> list[int]:
        return [store.connected.set_model(f"p-{number}", f"m-{turn}", HIDDEN) for turn in range(10)]

    versions = together(*(partial(change, number) for number in range(4)))
    assert sorted(version for mine in versions for version in mine) == list(range(1, 41))
    assert all(mine == sorted(mine) for mine in versions)
    assert len(store.connected.snapshot().models) == 40


def test_snapshot_is_of_one_moment(store: Store) -> None:
    """A snapshot that is taken during changes never has rows of two versions."""
    rows = store.connected

    def change() -> bool:
        for number in range(30):
            rows.add(replace(GROQ, name=f"p-{number}"), key(f"p-{number}"))
        return True

    def read() -> bool:
        while (snapshot := rows.snapshot()).version < 30:
            assert len(snapshot.providers) == len(snapshot.keys) == snapshot.version
        return True

    assert together(change, read) == [True, True]


def test_own_key_is_not_left_behind_by_a_simultaneous_removal(store: Store) -> None:
    """However a person's removal and the saving of a key interleave, no key is left."""
    for number in range(5):
        person = new_person(store, f"person-{number}")

        def save(person: str = person) -> None:
            with contextlib.suppress(SignInEnded):
                while True:
                    store.connected.save_key(key("groq", person))

        def remove(person: str = person) -> None:
            store.accounts.begin_removal(person)
            store.accounts.remove(person)

        together(save, remove)
        assert keys_of(store) == {}
