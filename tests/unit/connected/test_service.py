"""Connected providers in use: changes, runs that go on, keys that are lost, own keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from halt.config.providers import ModelSettings
from halt.config.settings import Config
from halt.connected.listing import Listing
from halt.connected.service import ConnectedProviders
from halt.connected.settings import SHARED
from halt.connected.vault import Vault
from halt.core.connection import UpstreamConnection
from halt.core.request import ChatRequest, Message
from halt.errors import RequestError, UpstreamError
from halt.providers.factory import make_provider, make_upstream
from halt.providers.router import Providers, names_in
from halt.store.connected import ConnectedRows
from halt.store.people import PersonRow
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import details
from tests.support.provider_answers import read, request_answer
from tests.support.waiting import wait_until

KEY, OTHER_KEY = "sk-connected-1111", "sk-connected-2222"
HEADER = "tenant-secret-3333"

Make = Callable[..., ConnectedProviders]


def providers_of(connected: ConnectedProviders) -> Providers:
    return connected.providers


def answer_of(connected: ConnectedProviders, model: str, person: str = "") -> str:
    """The text of an answer of this model, for this person."""
    request = ChatRequest([Message("user", "Hello")], model=model)
    with_person = UpstreamConnection(person=person)
    return read(providers_of(connected).open(request, with_person)).text


def refusal(connected: ConnectedProviders, model: str, person: str = "") -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        answer_of(connected, model, person)
    return caught.value


@pytest.fixture
def make(store: Store) -> Iterator[Make]:
    """Makes the service of a worker, with the settings of the arguments; all share the store."""
    services: list[ConnectedProviders] = []

    def make(secret: str = "a" * 32, old: str = "", **settings: Any) -> ConnectedProviders:
        config = Config(**{"discover": "0", **settings})
        vault = Vault([secret, old] if old else [secret])
        upstream = make_upstream(config)
        service = ConnectedProviders(config, store.connected, vault, upstream, make_provider)
        service.look()
        services.append(service)
        return service

    yield make
    for service in services:
        service.close(1.0)
        providers_of(service).close()


# --- connect, change, remove ----------------------------------------------------------------------


def test_connected_provider_answers_under_its_name(make: Make, fake: FakeOpenAI) -> None:
    """Its models begin with its name, and its key and headers are sent."""
    connected = make()
    row = connected.add(details(fake.base_url, title="My vLLM 2", key=KEY, headers={"X-T": HEADER}))
    assert row.name == "my-vllm-2"
    assert answer_of(connected, "my-vllm-2/count?n=2") == "0 1 "
    (record,) = fake.requests
    assert record.body["model"] == "count?n=2"
    assert record.headers["authorization"] == f"Bearer {KEY}"
    assert record.headers["x-t"] == HEADER


def test_a_second_provider_renames_nothing(make: Make, fake: FakeOpenAI) -> None:
    """The models of the sole provider of the settings keep their names, in lists and requests."""
    connected = make(base_url=fake.base_url, api_key="sk-first-0000")
    upstream = providers_of(connected)
    before = upstream.models(UpstreamConnection())
    with FakeOpenAI() as second:
        connected.add(details(second.base_url, key=KEY))
        names = names_in(upstream.catalog(UpstreamConnection()))
        assert names[: len(before)] == before
        assert names[len(before) :] == [f"second/{name}" for name in before]
        assert answer_of(connected, "count?n=1") == "0 "
        assert fake.requests[-1].headers["authorization"] == "Bearer sk-first-0000"
        assert answer_of(connected, "second/count?n=2") == "0 1 "
        assert second.requests[-1].headers["authorization"] == f"Bearer {KEY}"


def test_names_of_a_sole_provider_may_contain_slashes(make: Make, fake: FakeOpenAI) -> None:
    """Beside a connected provider they still go to the provider of the settings, unchanged."""
    connected = make(base_url=fake.base_url)
    connected.add(details(fake.base_url, key=KEY))
    answer_of(connected, "org/count?n=1")
    assert fake.requests[-1].body["model"] == "org/count?n=1"


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_run_goes_on_after_its_provider_has_changed(
    make: Make, fake: FakeOpenAI, change: str
) -> None:
    """An answer is read to its end, and further requests of its run go to the same server."""
    connected = make()
    connected.add(details(fake.base_url, key=KEY))
    request = ChatRequest([Message("user", "Hello")], model="second/count?n=3")
    connection = UpstreamConnection()
    reply = providers_of(connected).open(request, connection)
    with FakeOpenAI() as other:
        if change == "edit":
            connected.change("second", details(other.base_url, key=OTHER_KEY))
        else:
            connected.remove("second")
        assert read(reply).text == "0 1 2 "
        read(providers_of(connected).open(request, connection))  # as after a call of a tool
        assert [r.headers["authorization"] for r in fake.requests] == [f"Bearer {KEY}"] * 2
        if change == "edit":
            assert answer_of(connected, "second/count?n=1") == "0 "
            assert other.requests[-1].headers["authorization"] == f"Bearer {OTHER_KEY}"
        else:
            assert refusal(connected, "second/count?n=1").code == "no_model"


def test_other_workers_apply_a_change_at_their_next_look(make: Make, fake: FakeOpenAI) -> None:
    """Each worker has the same providers, and keeps the upstream of one that did not change."""
    first, second = make(), make()
    first.add(details(fake.base_url, key=KEY))
    second.look()
    assert answer_of(second, "second/count?n=1") == "0 "
    member = providers_of(second).member("second")
    first.add(details(fake.base_url, title="Third"))
    second.look()
    assert providers_of(second).names == ["second", "third"]
    assert providers_of(second).member("second") is member
    first.remove("second")
    second.look()
    assert providers_of(second).names == ["third"]


def test_change_keeps_what_is_not_typed(make: Make, fake: FakeOpenAI) -> None:
    """An empty key or header keeps the saved one; one that is not named is dropped."""
    connected = make()
    connected.add(details(fake.base_url, key=KEY, headers={"X-A": HEADER, "X-B": "bbb"}))
    connected.change("second", details(fake.base_url, title="New name", headers={"X-A": ""}))
    answer_of(connected, "second/echo")
    headers = fake.requests[-1].headers
    assert (headers["authorization"], headers["x-a"]) == (f"Bearer {KEY}", HEADER)
    assert "x-b" not in headers
    assert connected.snapshot.providers[0].title == "New name"


def test_new_address_needs_the_key_anew(make: Make, fake: FakeOpenAI) -> None:
    """Neither the key nor a header is ever sent to another address than it was typed for."""
    connected = make()
    connected.add(details(fake.base_url, key=KEY, headers={"X-A": HEADER}))
    with FakeOpenAI() as other:
        with pytest.raises(RequestError) as caught:
            connected.change("second", details(other.base_url, headers={"X-A": ""}))
        assert caught.value.field == "headers"
        connected.change("second", details(other.base_url))
        answer_of(connected, "second/echo")
        headers = other.requests[-1].headers
        assert KEY not in str(headers)
        assert "x-a" not in headers
    assert connected.snapshot.keys == ()


def test_key_can_be_dropped(make: Make, fake: FakeOpenAI) -> None:
    """A server that needs none gets none any more."""
    connected = make()
    connected.add(details(fake.base_url, key=KEY))
    connected.change("second", details(fake.base_url, without_key=True))
    answer_of(connected, "second/echo")
    assert KEY not in str(fake.requests[-1].headers)
    assert connected.snapshot.keys == ()


# --- lost keys ------------------------------------------------------------------------------------


def test_lost_secret_asks_for_the_key_again(make: Make, fake: FakeOpenAI) -> None:
    """Without the secret that sealed it a key is gone; the other providers work."""
    make(base_url=fake.base_url).add(details(fake.base_url, key=KEY))
    lost = make("b" * 32, base_url=fake.base_url)
    error = refusal(lost, "second/echo")
    assert error.code == "key_needed"
    assert "enter the key again" in error.message
    assert answer_of(lost, "count?n=1") == "0 "
    lost.change("second", details(fake.base_url, key=OTHER_KEY))
    assert answer_of(lost, "second/count?n=2") == "0 1 "
    assert fake.requests[-1].headers["authorization"] == f"Bearer {OTHER_KEY}"


def test_former_secret_opens_and_seals_anew(make: Make, fake: FakeOpenAI) -> None:
    """After one start with HALT_SECRET_KEY_OLD the former secret is not needed any more."""
    make("a" * 32).add(details(fake.base_url, key=KEY))
    make("b" * 32, "a" * 32)
    assert answer_of(make("b" * 32), "second/count?n=1") == "0 "


# --- own keys -------------------------------------------------------------------------------------


def test_each_person_uses_an_own_key(make: Make, fake: FakeOpenAI, store: Store) -> None:
    """With HALT_OWN_KEYS a person's key is used for that person alone; others need their own."""
    for name in ("ann", "bob"):
        store.people.ensure(PersonRow(name, "accounts", "", name, name))
    connected = make(own_keys=True)
    connected.add(details(fake.base_url, preset="groq", models=("count?n=1",), own_keys=True))
    connected.save_own_key("second", "ann", KEY)
    assert answer_of(connected, "second/count?n=1", "ann") == "0 "
    assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert refusal(connected, "second/count?n=1", "bob").code == "key_needed"
    connected.save_own_key("second", "ann", OTHER_KEY)
    answer_of(connected, "second/count?n=1", "ann")
    assert fake.requests[-1].headers["authorization"] == f"Bearer {OTHER_KEY}"
    connected.remove_own_key("second", "ann")
    assert refusal(connected, "second/count?n=1", "ann").code == "key_needed"


def test_own_key_uses_what_was_chosen_for_the_model(
    make: Make, fake: FakeOpenAI, store: Store
) -> None:
    """Further fields of requests are sent with a person's own key, too, also after a change."""
    store.people.ensure(PersonRow("ann", "accounts", "", "ann", "ann"))
    connected = make(own_keys=True)
    connected.add(details(fake.base_url, preset="groq", models=("echo",), own_keys=True))
    connected.save_own_key("second", "ann", KEY)
    for value in (7, 8):
        connected.set_model("second", "echo", ModelSettings(extra_body={"top_k": value}))
        answer_of(connected, "second/echo", "ann")
        assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
        assert fake.requests[-1].body["top_k"] == value


def test_removal_of_no_key_wakes_nobody(store: Store) -> None:
    """A person without a key cannot make every worker read all rows again and again."""
    woken: list[None] = []
    config = Config(discover="0", own_keys=True)
    connected = ConnectedProviders(
        config,
        store.connected,
        Vault(["a" * 32]),
        Providers({}),
        make_provider,
        lambda: woken.append(None),
    )
    connected.remove_own_key("second", "ann")
    assert not woken
    connected.close(1.0)


def test_own_keys_need_the_setting_and_the_providers_consent(
    make: Make, fake: FakeOpenAI, store: Store
) -> None:
    """Neither without HALT_OWN_KEYS nor at a provider that is not listed for it."""
    store.people.ensure(PersonRow("ann", "accounts", "", "ann", "ann"))
    with_setting = make(own_keys=True)
    with_setting.add(details(fake.base_url, key=KEY, own_keys=True))
    with_setting.add(details(fake.base_url, title="Third", key=KEY))
    with_setting.save_own_key("second", "ann", OTHER_KEY)
    with pytest.raises(RequestError):
        with_setting.save_own_key("third", "ann", OTHER_KEY)
    without = make()
    answer_of(without, "second/echo", "ann")
    assert fake.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    with pytest.raises(RequestError):
        without.save_own_key("second", "ann", OTHER_KEY)


# --- models ---------------------------------------------------------------------------------------


def test_models_are_hidden_renamed_and_ordered(make: Make, fake: FakeOpenAI) -> None:
    """Lists show what was chosen; a hidden model still answers."""
    connected = make(base_url=fake.base_url)
    connected.add(details(fake.base_url, models=("a", "count?n=1", "c")))
    connected.set_model("second", "a", ModelSettings(hidden=True))
    connected.set_model("second", "c", ModelSettings(label="Cee", input_price=3.0, context=1000))
    connected.order_models("second", ["c", "count?n=1"])
    group = providers_of(connected).catalog(UpstreamConnection())[-1]
    assert [(model.name, model.label) for model in group.models] == [
        ("second/c", "Cee"),
        ("second/count?n=1", "count?n=1"),
    ]
    assert (group.models[0].abilities.input_price, group.models[0].abilities.context) == (3, 1000)
    connected.set_model("second", "count?n=1", ModelSettings(hidden=True))
    assert answer_of(connected, "second/count?n=1") == "0 "


def test_default_is_chosen_unless_it_is_set(make: Make, fake: FakeOpenAI) -> None:
    """A default of the settings wins; without one requests that name no model use the chosen."""
    connected = make(base_url=fake.base_url)
    connected.add(details(fake.base_url, models=("a", "count?n=2")))
    connected.set_default(("second", "count?n=2"))
    assert providers_of(connected).known_model == "second/count?n=2"
    assert request_answer(providers_of(connected)).text == "0 1 "
    assert providers_of(make(base_url=fake.base_url, model="echo")).known_model == "echo"
    connected.remove("second")
    assert providers_of(connected).known_model == ""


def test_extra_fields_of_a_model_are_sent(make: Make, fake: FakeOpenAI) -> None:
    """Also with requests to a provider of the settings, and from the next request on."""
    connected = make(base_url=fake.base_url)
    connected.set_model("openai", "echo", ModelSettings(extra_body={"top_k": 7}))
    answer_of(connected, "echo")
    assert fake.requests[-1].body["top_k"] == 7
    answer_of(connected, "count?n=1")
    assert "top_k" not in fake.requests[-1].body


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"preset": "other"}, "preset"),
        ({"title": "x" * 61}, "title"),
        ({"title": "\u2603"}, "title"),
        ({"title": "OpenAI"}, "title"),  # the name of the provider of the settings
        ({"base_url": ""}, "base_url"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://user:secret@host/v1"}, "base_url"),
        ({"base_url": "http://host/v1?key=1"}, "base_url"),
        ({"base_url": "http://[::1/v1"}, "base_url"),
        ({"key": "two words"}, "key"),
        ({"key": "schlüssel"}, "key"),
        ({"key": "k" * 4001}, "key"),
        ({"preset": "groq"}, "key"),
        ({"base_url": "https://api.openai.com/v1"}, "key"),
        ({"headers": {"Host": "x"}}, "headers"),
        ({"headers": {"content-length": "1"}}, "headers"),
        ({"headers": {"X Y": "x"}}, "headers"),
        ({"headers": {"X-Y": "a\nb"}}, "headers"),
        ({"headers": {"X-Y": ""}}, "headers"),
        ({"headers": {"X-Y": "1", "x-y": "2"}}, "headers"),
        ({"headers": {f"X-{n}": "1" for n in range(21)}}, "headers"),
        ({"models": ("a\0b",)}, "models"),
        ({"preset": "azure", "key": KEY}, "models"),
        ({"api_version": "a b"}, "api_version"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_details_are_refused_by_field(
    make: Make, fake: FakeOpenAI, typed: dict[str, Any], field: str
) -> None:
    """Nothing is saved, no server is asked, and no text of a password is repeated."""
    connected = make(base_url=fake.base_url)
    with pytest.raises(RequestError) as caught:
        connected.add(details(**{"address": fake.base_url} | {"key": "", **typed}))
    assert caught.value.field == field
    assert "secret" not in caught.value.message
    assert connected.snapshot.providers == ()
    assert fake.requests == []


def test_names_that_would_hide_others_are_refused(make: Make, fake: FakeOpenAI) -> None:
    """A name is taken once; that of a server on this machine gets a prefix."""
    connected = make()
    connected.add(details(fake.base_url))
    with pytest.raises(RequestError, match="already"):
        connected.add(details(fake.base_url))
    assert connected.add(details(fake.base_url, title="Ollama")).name == "my-ollama"
    assert connected.add(details(fake.base_url, title="Demo")).name == "my-demo"


def test_prefix_of_known_models_is_no_name(make: Make, fake: FakeOpenAI) -> None:
    """A provider named like the beginning of another one's models would take their requests."""
    connected = make()
    connected.add(details(fake.base_url, title="Router", models=("mistral/small",)))
    names_in(providers_of(connected).catalog(UpstreamConnection()))
    with pytest.raises(RequestError, match="mistral/"):
        connected.add(details(fake.base_url, title="Mistral", key=KEY))


# --- secrets --------------------------------------------------------------------------------------


def test_no_text_shows_a_secret(
    make: Make, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a log, nor a list, nor the representation of an object."""
    caplog.set_level(logging.DEBUG)
    connected = make()
    typed = details(fake.base_url, key=KEY, headers={"X-A": HEADER})
    connected.add(typed)
    connected.change("second", details(fake.base_url, key=OTHER_KEY, headers={"X-A": ""}))
    row, secrets = connected.prepared(typed, "second")
    listing = Listing(Config(discover="0"), providers_of(connected), None)
    lines = listing.lines(connected.snapshot, SHARED, 5.0)
    assert lines[0].key == "…2222"
    assert lines[0].state == "ok"
    settings = connected.settings_for(row, secrets)
    texts = [caplog.text, *map(repr, (typed, lines, connected.snapshot, row, secrets, settings))]
    for text in texts:
        for secret in (KEY, OTHER_KEY, HEADER):
            assert secret not in text


def test_unreadable_rows_are_logged_once(
    make: Make, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that this version of Halt cannot read leave in use what was applied before."""
    first, second = make(), make()
    first.add(details(fake.base_url, key=KEY))
    second.look()

    def fail(_: ConnectedRows) -> Any:
        raise ValueError("a row of a later version")

    first.add(details(fake.base_url, title="Third"))
    with monkeypatch.context() as patch:
        patch.setattr(ConnectedRows, "snapshot", fail)
        second.look()
        second.look()
    assert len([r for r in caplog.records if "cannot be read" in r.message]) == 1
    assert answer_of(second, "second/count?n=1") == "0 "


def test_saved_change_that_cannot_be_applied_is_no_error(
    make: Make, fake: FakeOpenAI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is logged, and a worker that can read the rows uses the provider."""

    def fail(_: ConnectedRows) -> Any:
        raise ValueError("a row of a later version")

    first, second = make(), make()
    with monkeypatch.context() as patch:
        patch.setattr(ConnectedRows, "snapshot", fail)
        first.add(details(fake.base_url, key=KEY))
    assert "cannot be read" in caplog.text
    second.look()
    assert answer_of(second, "second/count?n=1") == "0 "


def test_last_header_can_be_dropped(make: Make, fake: FakeOpenAI) -> None:
    """A provider without a key whose headers are removed has no secrets any more."""
    connected = make()
    connected.add(details(fake.base_url, headers={"X-A": HEADER}))
    connected.change("second", details(fake.base_url))
    answer_of(connected, "second/echo")
    assert "x-a" not in fake.requests[-1].headers
    assert connected.snapshot.keys == ()


def test_unreadable_key_is_asked_for_until_it_is_typed(make: Make, fake: FakeOpenAI) -> None:
    """A change of something else does not make a provider without a key of it."""
    make().add(details(fake.base_url, key=KEY))
    lost = make("b" * 32)
    lost.change("second", details(fake.base_url, title="New name"))
    assert refusal(lost, "second/echo").code == "key_needed"
    lost.change("second", details(fake.base_url, without_key=True))
    assert answer_of(lost, "second/count?n=1") == "0 "


def test_commit_changes_the_state_of_the_file(make: Make, fake: FakeOpenAI, store: Store) -> None:
    """The thread looks at the version where this has changed, and then finds the new one."""
    first, second = make(), make()
    before = store.connected.file_state
    assert before == store.connected.file_state != ()
    first.add(details(fake.base_url, key=KEY))
    assert store.connected.file_state != before
    second.start()
    wait_until(lambda: second.snapshot.version == first.snapshot.version)
    first.add(details(fake.base_url, title="Third"))
    wait_until(lambda: second.snapshot.version == first.snapshot.version)
