"""The page Models: providers that are connected, changed and removed; models; own keys."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from halt.people.known import digest_of
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import connected_at, details
from tests.support.halt_server import HaltServer, settings
from tests.support.models_page import (
    ADD,
    HEADER_VALUE,
    KEY,
    OTHER_KEY,
    PATH,
    SECRETS,
    ModelsBrowser,
)
from tests.support.no_demo import without_demo
from tests.support.page_requests import FORM_HEADERS
from tests.support.server_people import ServerPeople
from tests.support.simple_model_server import ModelRequest, reply_with, serving
from tests.support.waiting import SERVER_TIMEOUT, wait_until

MANY = 250  # models of the server with a key
EVERY_WORKER = 8  # requests, of which both workers get some


def _lists(request: ModelRequest) -> None:
    """Many models, for requests with KEY."""
    if request.headers["Authorization"] != f"Bearer {KEY}":
        request.reply({"error": {"message": "That key is not one of ours."}}, 401)
        return
    models: list[dict[str, Any]] = [{"id": f"vendor/model-{n:03}"} for n in range(MANY)]
    models[0] |= {"context_length": 131072, "pricing": {"prompt": "0.000003"}}
    request.reply({"object": "list", "data": models})


@dataclass(frozen=True)
class Place:
    """A Halt of two workers, its people, and the address of a server that wants KEY."""

    server: HaltServer
    people: ServerPeople
    address: str

    def admin(self) -> ModelsBrowser:
        return ModelsBrowser(self.people.client(self.people.add("Ada", is_admin=True)))

    def person(self) -> ModelsBrowser:
        return ModelsBrowser(self.people.client(self.people.add("Bob")))


def wait_shown(browser: ModelsBrowser, path: str, *words: str) -> None:
    """Wait until the page has these words in each worker, which asks the servers by itself."""

    def shown() -> bool:
        pages = [browser.get(path) for _ in range(EVERY_WORKER)]
        return all(word in page for page in pages for word in words)

    wait_until(shown, SERVER_TIMEOUT)


@contextmanager
def a_place(fake: FakeOpenAI, **more: object) -> Iterator[Place]:
    server = HaltServer(settings(fake, HALT_USERS=1, WEB_CONCURRENCY=2, **more))
    try:
        with closing(ServerPeople(server)) as people, serving(_lists) as address:
            yield Place(server, people, address)
    finally:
        server.close()
        for secret in SECRETS:
            assert secret not in server.printed


@pytest.fixture(scope="module")
def place(shared_fake: FakeOpenAI) -> Iterator[Place]:
    with a_place(shared_fake, HALT_OWN_KEYS=1) as place:
        yield place


@pytest.fixture
def admin(place: Place) -> ModelsBrowser:
    return place.admin()


# --- who ------------------------------------------------------------------------------------------


def test_page_does_not_exist_for_strangers(halt: HaltServer) -> None:
    """Where browsers are strangers there is no page Models, and no link to one."""
    browser = halt.client(Accept="text/html")
    for path in (PATH, ADD, f"{PATH}/openai", f"{PATH}/model/openai?model=echo"):
        assert browser.get(path).status == 404
        assert browser.request("POST", path, b"do=connect", FORM_HEADERS).status in {404, 405}
    assert PATH.encode() not in browser.get("/").body
    assert PATH.encode() not in browser.get("/models").body


def test_page_of_the_only_person(shared_fake: FakeOpenAI) -> None:
    """The one person of a Halt connects, sees and removes providers."""
    server = HaltServer(settings(shared_fake, HALT_ALLOW_ANONYMOUS=""))
    try:
        browser = ModelsBrowser(server.client())
        assert PATH in browser.get("/")
        path = browser.connect(shared_fake.base_url, title="Second")
        assert path == f"{PATH}/second"
        assert "second/echo" in server.client().get("/v1/models").body.decode()
        assert browser.place(browser.send(path, do="remove")) == PATH
        assert "second/echo" not in server.client().get("/v1/models").body.decode()
        assert browser.send(path, do="remove").status == 400
    finally:
        server.close()


def test_person_who_is_no_administrator_has_own_keys_alone(
    place: Place, admin: ModelsBrowser
) -> None:
    """Nothing else exists for that person, and no address is shown."""
    path = admin.connect(place.address, title="Mine or yours", key=KEY, own_keys="on")
    bob = place.person()
    page = bob.get()
    assert "Mine or yours" in page
    assert place.address not in page
    assert "wxyz" not in page
    for other in (ADD, path, path.replace(PATH, f"{PATH}/model")):
        assert bob.client.get(other).status == 404
        assert bob.send(other, do="remove").status == 404
    assert "Mine or yours" in admin.get()
    admin.send(path, do="remove")


def test_without_own_keys_there_is_no_page_for_a_person(fake: FakeOpenAI) -> None:
    """Without HALT_OWN_KEYS only administrators have the page."""
    with a_place(fake) as place:
        bob, ada = place.person(), place.admin()
        assert bob.client.get(PATH).status == 404
        assert PATH not in bob.get("/")
        assert "own_keys" not in ada.get(ADD)
        assert PATH in ada.get("/")


def test_program_is_refused(place: Place) -> None:
    """An API token of an administrator cannot use the page."""
    ada = place.people.add("Ada", is_admin=True)
    token = f"halt_{'t' * 43}"
    place.people.sign_ins.add_token(ada, digest_of(token), "Script")
    response = place.server.client(Authorization=f"Bearer {token}").get(PATH)
    assert (response.status, response.error["code"]) == (403, "browsers_only")


def test_own_key_is_used_for_that_persons_messages(place: Place, admin: ModelsBrowser) -> None:
    """A person saves, replaces and removes an own key; others go on without it."""
    path = admin.connect(place.address, title="Own", models="one", own_keys="on")
    assert "You have saved no key." in (page := place.person().get())
    assert place.address not in page
    bob = place.person()
    wrong = bob.send(PATH, do="own-key", provider="own", key="two words")
    assert "visible ASCII" in bob.refused(wrong, "key")
    assert bob.send(PATH, do="own-key", provider="own", key=" ").status == 400
    assert bob.place(bob.send(PATH, do="own-key", provider="own", key=OTHER_KEY)) == PATH
    assert "Your key: …lmno" in bob.get()
    assert "Your key" not in place.person().get().replace("Your key for", "")
    bob.send(PATH, do="own-key", provider="own", key=KEY)
    assert "Your key: …wxyz" in bob.get()
    bob.send(PATH, do="no-own-key", provider="own")
    assert "You have saved no key." in bob.get()
    refused = bob.send(PATH, do="own-key", provider="openai", key=KEY)
    assert "no longer connected" in bob.refused(refused)
    admin.send(path, do="remove")


def test_message_is_sent_with_the_persons_own_key(
    place: Place, admin: ModelsBrowser, fake: FakeOpenAI
) -> None:
    """With an own key the person's messages carry it; others' messages have no key to carry."""
    path = admin.connect(fake.base_url, title="Paid", preset="openai", models="echo", own_keys="on")
    bob, eve = place.person(), place.person()
    bob.send(PATH, do="own-key", provider="paid", key=KEY)

    def ask(browser: ModelsBrowser) -> dict[str, Any]:
        with browser.client.chat("paid/echo") as stream:
            return stream.to_end().terminal

    # A worker that does not know the provider yet sends the name to that of the settings.
    wait_until(lambda: ask(bob) and fake.requests, SERVER_TIMEOUT)
    wait_until(lambda: "a key of your own" in str(ask(eve)), SERVER_TIMEOUT)
    bob.send(PATH, do="no-own-key", provider="paid")
    wait_until(lambda: "a key of your own" in str(ask(bob)), SERVER_TIMEOUT)
    assert {record.headers["authorization"] for record in fake.requests} == {f"Bearer {KEY}"}
    admin.send(path, do="remove")


# --- a provider -----------------------------------------------------------------------------------


def test_get_contacts_nobody(place: Place, admin: ModelsBrowser) -> None:
    """The address of a link is shown in the field, without what may be a secret."""
    with FakeOpenAI() as fake:
        page = admin.get(f"{ADD}?address={quote(fake.base_url)}")
        assert f'value="{fake.base_url}"' in page
        page = admin.get(f"{ADD}?address={quote(f'http://user:{KEY}@host/v1?key={OTHER_KEY}#x')}")
        assert 'value="http://host/v1"' in page
        assert not fake.requests
        assert not fake.open_connections


def test_presets_have_the_addresses_of_their_services(admin: ModelsBrowser) -> None:
    """Each kind of provider has a form of its own."""
    redirected = admin.client.get(f"{PATH}/add?preset=groq")
    assert redirected.headers["location"] == f"{PATH}/add/groq"
    groq = admin.get(f"{PATH}/add/groq")
    assert 'value="https://api.groq.com/openai/v1"' in groq
    assert "https://console.groq.com/keys" in groq
    assert 'name="api_version"' in admin.get(f"{PATH}/add/azure")
    assert 'name="max_tokens"' in admin.get(f"{PATH}/add/anthropic")
    assert admin.client.get(f"{PATH}/add/nobody").status == 404


def test_provider_is_connected_in_every_worker(place: Place, admin: ModelsBrowser) -> None:
    """The page that follows is right in each worker, and so is the list of models."""
    path = admin.connect(place.address, title="Zwölf Bäume", key=f" {KEY} ")
    assert path == f"{PATH}/zwolf-baume"
    for _ in range(EVERY_WORKER):
        assert "key …wxyz" in admin.get(path)
    wait_shown(admin, path, "Reachable")
    assert "Zwölf Bäume" in admin.get()
    admin.send(path, do="remove")
    for _ in range(EVERY_WORKER):
        assert admin.client.get(path).status == 404


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"base_url": ""}, "base_url", "Type the address"),
        ({"base_url": "ftp://host/v1"}, "base_url", "not an address of an API"),
        ({"base_url": f"http://u:{KEY}@host/v1"}, "base_url", "user name or password"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "base_url", "without ? or #"),
        ({"title": "x" * 61}, "title", "1 to 60"),
        ({"title": "☂"}, "title", "at least one of a-z"),
        ({"title": "openai"}, "title", "already"),
        ({"key": "two words"}, "key", "visible ASCII"),
        ({"models": "\x07"}, "models", "printable"),
        ({"preset": "anthropic", "max_tokens": "many"}, "max_tokens", "whole number"),
        ({"preset": "groq"}, "key", "needs a key"),
        ({"preset": "azure", "key": KEY}, "models", "deployments"),
        (
            {"preset": "azure", "key": KEY, "models": "a", "api_version": "?"},
            "api_version",
            "looks",
        ),
        ({"header_name": f"X-Key: {KEY}", "header_value": ""}, "headers", "follows the colon"),
        ({"header_name": "X-Key", "header_value": ""}, "headers", "X-Key is missing"),
        ({"header_name": "", "header_value": HEADER_VALUE}, "headers", "name of a header"),
        ({"header_name": "Host", "header_value": HEADER_VALUE}, "headers", "Halt sets"),
        ({"header_name": "X-Key", "header_value": "ü"}, "headers", "visible ASCII"),
    ],
)
def test_wrong_input_is_told_at_its_field(
    admin: ModelsBrowser, fields: dict[str, str], field: str, words: str
) -> None:
    """The form comes back with what was typed, but no secret, and the error at its field."""
    typed = {"preset": "compatible", "title": "Typed", "base_url": "http://127.0.0.1:9/v1"}
    path = f"{PATH}/add/{fields.get('preset', 'compatible')}"
    sent = (typed | {"key": KEY} if field == "base_url" else typed) | fields
    response = admin.send(path, **sent)
    assert response.status == 400
    assert words in admin.refused(response, field)
    page = response.body.decode()
    has_secret = bool(sent.get("key") or sent.get("header_value"))
    assert ("type them again" in page) == has_secret
    if field != "title":
        assert 'value="Typed"' in page
    if field != "base_url":
        assert 'value="http://127.0.0.1:9/v1"' in page


def test_changed_address_needs_the_key_anew(place: Place, admin: ModelsBrowser) -> None:
    """An empty key keeps the saved one, but never for another address."""
    header = [("header_name", "X-Team"), ("header_value", HEADER_VALUE)]
    path = admin.connect(place.address, *header, title="Kept", key=KEY)
    kept = [("header_name", "X-Team"), ("header_value", "")]
    page = admin.get(path)
    assert "X-Team" in page
    fields = {"do": "change", "preset": "openai", "title": "Renamed", "base_url": place.address}
    assert admin.place(admin.send(path, *kept, **fields)) == path
    wait_shown(admin, path, "Renamed", "…wxyz", "Reachable")
    moved = fields | {"base_url": place.address.replace("127.0.0.1", "localhost")}
    assert "X-Team is missing" in admin.refused(admin.send(path, *kept, **moved), "headers")
    assert "needs a key" in admin.refused(admin.send(path, **moved), "key")
    assert admin.place(admin.send(path, **moved, key=KEY)) == path
    assert "X-Team" not in admin.get(path)
    wait_shown(admin, path, "Reachable")
    admin.send(path, do="remove")


def test_last_header_can_be_removed(place: Place, admin: ModelsBrowser, fake: FakeOpenAI) -> None:
    """A provider without a key loses its only header where its name is emptied."""
    header = [("header_name", "X-Team"), ("header_value", HEADER_VALUE)]
    path = admin.connect(fake.base_url, *header, title="Only a header")
    assert "header <bdi>X-Team</bdi>" in admin.get(path)
    fields = {"preset": "compatible", "title": "Only a header", "base_url": fake.base_url}
    admin.send(path, ("header_name", ""), ("header_value", ""), do="change", **fields)
    assert "X-Team" not in admin.get(path)
    admin.send(path, do="remove")


def test_server_says_in_its_own_words_that_the_key_is_wrong(
    place: Place, admin: ModelsBrowser
) -> None:
    """A broken key gives the server's words on the page; the right one mends it."""
    path = admin.connect(place.address, title="Broken", key=OTHER_KEY)
    wait_shown(admin, path, "That key is not one of ours.")
    wait_shown(admin, PATH, "That key is not one of ours.")
    admin.send(
        path, do="change", preset="compatible", title="Broken", base_url=place.address, key=KEY
    )
    wait_shown(admin, path, "Reachable")
    assert "That key is not one of ours." not in admin.get(path)
    admin.send(path, do="remove")


def test_page_asks_a_provider_anew_that_has_failed(fake: FakeOpenAI) -> None:
    """What is mended at the server is seen when the page is loaded next."""
    is_mended = threading.Event()

    def lists(request: ModelRequest) -> None:
        if is_mended.is_set():
            request.reply({"data": [{"id": "mended"}]})
        else:
            request.reply({"error": {"message": "Pay your bill."}}, 402)

    server = HaltServer(settings(fake, HALT_ALLOW_ANONYMOUS=""))
    try:
        with serving(lists) as address:
            browser = ModelsBrowser(server.client())
            path = browser.connect(address, title="Mended")
            page = browser.get(f"{path}?done=added")
            assert "Pay your bill." in page
            assert "does not work yet" in page
            is_mended.set()
            for seen in (browser.get(path), browser.get()):
                assert "Pay your bill." not in seen
                assert "mended</bdi>" in seen
            assert "Start a chat" in browser.get(f"{path}?done=added")
    finally:
        server.close()


def test_lost_key_is_asked_for_again(place: Place, admin: ModelsBrowser) -> None:
    """The form says so, and Try does not go without the key that is saved."""
    secret = {"HALT_SECRET_KEY": "another secret than that of the server"}
    with connected_at(place.server.data_folder, **secret) as other:
        other.add(details(place.address, title="Lost", key=KEY))
    path = f"{PATH}/lost"
    wait_shown(admin, path, "enter the key again", "type it again")
    fields = {"preset": "compatible", "title": "Lost", "base_url": place.address}
    tried = admin.send(f"{PATH}/try/lost", do="try", **fields)
    assert "type it again" in admin.refused(tried, "key")
    assert admin.send(f"{PATH}/try/lost", do="try", key=KEY, **fields).status == 200
    admin.place(admin.send(path, do="change", key=KEY, **fields))
    page = admin.get(path)
    assert "Reachable" in page
    assert "type it again" not in page
    admin.send(path, do="remove")


def test_two_administrators_at_once(place: Place) -> None:
    """What one has removed the other can neither change nor remove; nothing else happens."""
    ada, grace = place.admin(), place.admin()
    path = ada.connect(place.address, title="Contested", key=KEY)
    same = grace.send(
        ADD, do="connect", preset="compatible", title="Contested", base_url="http://h"
    )
    assert "already" in grace.refused(same, "title")
    assert ada.place(ada.send(path, do="remove")) == PATH
    assert grace.send(path, do="remove").status == 400
    form = {"preset": "compatible", "title": "x", "base_url": place.address}
    assert grace.send(path, do="change", **form).status == 404
    assert grace.send(path, do="hide", model="vendor/model-000").status == 404


def test_form_that_is_out_of_date_changes_nothing(place: Place) -> None:
    """What somebody else has saved meanwhile is not undone unseen."""
    ada, grace = place.admin(), place.admin()
    path = ada.connect(place.address, title="Shared", key=KEY)

    def seen(page: str) -> str:
        (state,) = re.findall(r'name="seen" value="([0-9a-f]+)"', page)
        return str(state)

    before = seen(ada.get(path))
    form = {"do": "change", "preset": "compatible", "base_url": place.address}
    assert grace.place(grace.send(path, **form, title="By Grace", seen=before)) == path
    refused = ada.send(path, **form, title="By Ada", seen=before)
    assert "Somebody else" in ada.refused(refused)
    assert 'value="By Ada"' in refused.body.decode()
    assert "By Grace" in ada.get(path)
    again = ada.send(path, **form, title="By Ada", seen=seen(refused.body.decode()))
    assert ada.place(again) == path
    assert "By Ada" in grace.get(path)
    grace.send(path, do="remove")


def test_providers_of_variables_have_no_form(place: Place, admin: ModelsBrowser) -> None:
    """They are shown with where they are set."""
    page = admin.get(f"{PATH}/openai")
    assert "Set by OPENAI_BASE_URL and OPENAI_API_KEY" in page
    assert 'name="base_url"' not in page
    assert "restart Halt" in page
    assert admin.send(f"{PATH}/openai", do="remove").status == 400


def test_found_servers_are_offered() -> None:
    """A server that wants a key, and one that answers, lead to the form with their address."""

    def refuse(request: ModelRequest) -> None:
        request.reply({"error": {"message": "A key, please."}}, 401)

    with without_demo() as env, serving(refuse) as locked, serving() as found:
        env |= {"HALT_DISCOVER": f"{locked},{found}", "OPENAI_BASE_URL": ""}
        server = HaltServer(env)
        try:
            browser = ModelsBrowser(server.client())
            # On a busy machine the first probe finds no server yet.
            wait_shown(browser, PATH, "These servers answer, and need a key.")
            page = browser.get()
            link = f"{ADD}?address={quote(locked, safe=':/')}"
            assert f'href="{link}"' in page
            assert f'value="{locked}"' in browser.get(link)
            (name,) = re.findall(rf'href="{PATH}/([a-z0-9_-]+)"><bdi>', page)
            page = browser.get(f"{PATH}/{name}")
            assert "found at" in page.lower()
            assert f'href="{ADD}?address={quote(found, safe=":/")}"' in page
        finally:
            server.close()


def test_provider_named_add_has_a_page(tmp_path: Path, fake: FakeOpenAI) -> None:
    """A file may give any name; its page says which table of which file to change."""
    file = tmp_path / "halt.toml"
    file.write_text(f'[providers.add]\nkind = "openai"\nbase_url = "{fake.base_url}"\n')
    server = HaltServer({"HALT_CONFIG": str(file), "HALT_ALLOW_ANONYMOUS": ""})
    try:
        browser = ModelsBrowser(server.client())
        page = browser.get(f"{PATH}/add")
        assert f"[providers.add] of {file}" in page
        assert "Change it in that file" in page
        assert "echo" in browser.get(f"{PATH}/model/add?model=echo")
        assert 'name="base_url"' in browser.get(ADD)
    finally:
        server.close()


# --- its models -----------------------------------------------------------------------------------


@pytest.fixture
def many(place: Place, admin: ModelsBrowser) -> Iterator[str]:
    """The path of a provider with many models, connected anew."""
    path = admin.connect(place.address, title="Many", key=KEY)
    wait_shown(admin, path, "vendor/model-099")
    yield path
    admin.send(path, do="remove")


def names(page: str) -> list[str]:
    """The names of the models on a page, in order."""
    return re.findall(r'name="model" value="([^"]*)"', page)


def test_long_list_has_pages_and_a_search(admin: ModelsBrowser, many: str) -> None:
    """100 models are on a page; the search needs no script."""
    assert len(names(admin.get(many))) == 100
    assert names(admin.get(f"{many}?page=3")) == [f"vendor/model-{n}" for n in range(200, 250)]
    assert names(admin.get(f"{many}?q=MODEL-24+vendor")) == [
        f"vendor/model-{n}" for n in range(240, 250)
    ]
    assert "0 found" in admin.get(f"{many}?q=%3Cscript%3E")
    assert names(admin.get(f"{many}?page=99&q=x")) == names(admin.get(f"{many}?q=x"))
    assert names(admin.get(f"{many}?page=99")) == names(admin.get(f"{many}?page=3"))
    overview = admin.get()
    assert "All 250 models" in overview
    assert overview.count("vendor/model-") == 5


def test_models_are_hidden_and_moved(place: Place, admin: ModelsBrowser, many: str) -> None:
    """Each button does what it says, for one model, in the menu of every browser."""

    def offered() -> list[str]:
        return re.findall(r'value="(many/[^"]*)"', place.person().get("/models"))

    wait_until(lambda: "many/vendor/model-001" in offered(), SERVER_TIMEOUT)
    admin.send(many, do="hide", model="vendor/model-001")
    wait_until(lambda: "many/vendor/model-001" not in offered(), SERVER_TIMEOUT)
    assert "Hidden" in admin.get(many)
    admin.send(many, do="show", model="vendor/model-001")
    wait_until(lambda: "many/vendor/model-001" in offered(), SERVER_TIMEOUT)
    moved = admin.send(many, do="top", model="vendor/model-249")
    assert "page=1" in moved.headers["location"]
    assert names(admin.get(many))[:2] == ["vendor/model-249", "vendor/model-000"]
    admin.send(many, do="down", model="vendor/model-249")
    admin.send(many, do="up", model="vendor/model-002")
    order = [f"vendor/model-{n}" for n in ("000", "249", "002", "001", "003")]
    assert names(admin.get(many))[:5] == order
    wait_until(lambda: offered()[:5] == [f"many/{name}" for name in order], SERVER_TIMEOUT)
    admin.send(many, do="up", model="vendor/model-000")  # the first stays the first
    assert names(admin.get(many))[:5] == order
    assert admin.send(many, do="up", model="vendor/gone").status == 404
    assert admin.send(many, do="dance", model="vendor/model-000").status == 400


def test_model_is_the_default_until_another_one_is(
    place: Place, admin: ModelsBrowser, many: str
) -> None:
    """The default is marked, and can be taken back."""
    form = f"{PATH}/model/many?model=vendor/model-007"
    admin.send(many, do="default", model="vendor/model-007")
    assert "Default</span>" in admin.get(form)
    label = 'data-label="vendor/model-007"'
    wait_until(lambda: label in place.person().get("/models"), SERVER_TIMEOUT)
    admin.send(many, do="no-default", model="vendor/model-007")
    assert "Default</span>" not in admin.get(form)


def test_default_of_the_settings_wins(fake: FakeOpenAI) -> None:
    """With HALT_MODEL no other default can be chosen, and the page says so."""
    with a_place(fake, HALT_MODEL="echo") as place:
        admin = place.admin()
        form = admin.get(f"{PATH}/model/openai?model=count")
        assert "echo</bdi> is the default model" in form
        assert 'value="default"' not in form
        refused = admin.send(f"{PATH}/openai", do="default", model="count")
        assert "The settings say that echo" in admin.refused(refused)


def test_facts_of_a_model_are_chosen_where_the_server_does_not_say(
    admin: ModelsBrowser, many: str
) -> None:
    """The server's own facts are shown and stay."""
    path = f"{PATH}/model/many?model=vendor/model-000"
    page = admin.get(path)
    assert "131,072" in page
    assert 'name="context"' not in page
    assert 'name="input_price"' not in page
    fields = {"label": " The  <b>first</b> ", "output_price": "$1,000.5", "cached_price": "0"}
    fields |= {"context": "7", "input_price": "9", "extra_body": '{"top_k": 40}'}
    saved = admin.send(path, model="vendor/model-000", continues="prefix", **fields)
    assert admin.place(saved) == many
    page = admin.get(many)
    assert "The &lt;b&gt;first&lt;/b&gt;" in page
    assert "128k context · $3 / $1,000.50 per million tokens · $0 cached" in page
    page = admin.get(path)
    assert 'value="1000.5"' in page
    assert "&#34;top_k&#34;: 40" in page
    assert '<option value="prefix" selected>' in page
    admin.send(path, model="vendor/model-000")
    assert "The &lt;b&gt;" not in admin.get(many)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("label", "x" * 101, "at most 100"),
        ("label", "a\x00b", "printable"),
        *(("input_price", value, "0 to 10,000") for value in ("-1", "10001", "nan", "inf", "x")),
        ("cached_price", "1e9", "0 to 10,000"),
        ("output_price", "٣", "0 to 10,000"),
        *(("context", value, "1 to 1,000,000,000") for value in ("0", "1.5", "1" * 11, "-1", "²")),
        ("extra_body", "[]", "JSON object"),
        ("extra_body", "{", "JSON object"),
        ("extra_body", "[" * 9_999, "JSON object"),
        ("extra_body", '{"a": "' + "x" * 10_000 + '"}', "10,000 characters"),
        ("extra_body", '{"stream": false, "model": "x"}', "model and stream"),
        ("extra_body", '{"stream_options": {}}', "stream_options"),
        ("continues", "somehow", "Choose"),
    ],
)
def test_wrong_fact_is_told_at_its_field(
    place: Place, admin: ModelsBrowser, field: str, value: str, words: str
) -> None:
    """What was typed is still there, and nothing is saved."""
    path = f"{PATH}/model/openai?model=echo"
    typed = {"label": "A name", "context": "4096", field: value}
    response = admin.send(path, model="echo", **typed)
    assert response.status == 400
    assert words in admin.refused(response, field)
    if field != "label":
        assert 'value="A name"' in response.body.decode()
    assert "A name" not in admin.get(f"{PATH}/openai")


def test_names_of_a_hostile_list_are_text(admin: ModelsBrowser) -> None:
    """Markup is shown as such; names that no request may have are not shown at all."""
    shown = ["<script>alert(1)</script>", '"><img src=x>', "a&amp;b", "{{ 7 * 7 }}"]
    others = ["\u202emorf", "x" * 201, "y" * 1_000_000, "\0", "two\nlines"]
    with serving(reply_with({"data": [{"id": name} for name in (*shown, *others)]})) as address:
        path = admin.connect(address, title="Hostile", key=KEY)
        page = admin.get(path)
        for name in shown:
            assert f'name="model" value="{html.escape(name)}"' in page.replace("&#34;", "&quot;")
            assert admin.client.get(f"{PATH}/model/hostile?model={quote(name)}").status == 200
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "\u202e" not in page
        assert len(page) < 100_000
        admin.send(path, do="remove")
