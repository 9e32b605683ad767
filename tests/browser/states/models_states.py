"""The states of the page Models. `STATES` has those of all pages."""

from __future__ import annotations

import secrets
from typing import Any

from playwright.sync_api import expect

from tests.browser.chat import LOAD_ERRORS, Chat
from tests.browser.states import page_answers
from tests.browser.states.page_states import STATES, Visit, signed_in, state
from tests.support.models_page import ADD, KEY, PATH
from tests.support.ports import free_port
from tests.support.simple_model_server import ModelRequest, serving

__all__ = ["STATES"]

MANY = 120  # models of a server
FACTS = {
    "context_length": 131072,
    "architecture": {"input_modalities": ["text", "image"]},
    "supported_parameters": ["tools", "reasoning"],
    "pricing": {"prompt": "0.000003", "completion": "0.000015"},
}


def _lists(request: ModelRequest) -> None:
    names = [f"vendor/model-{n:03}" for n in range(MANY - 1)]
    long = page_answers.LONG_TITLE[:150].replace(" ", "-")
    models: list[dict[str, Any]] = [{"id": name} for name in (names[0], long, *names[1:])]
    for model in models[:3]:
        model.update(FACTS)
    request.reply({"object": "list", "data": models})


def administrator(visit: Visit, path: str = PATH) -> Chat:
    """An administrator's page at this path."""
    chat = signed_in(visit, is_admin=True)
    chat.page.goto(f"{chat.server.url}{path}")
    return chat


def connected(visit: Visit, address: str = "", **fields: str) -> Chat:
    """The page of a provider that was connected for this visit, by default of one with models."""
    chat = signed_in(visit, is_admin=True)
    address = address or visit.cleanup.enter_context(serving(_lists))
    title = f"Server {secrets.token_hex(4)}"
    form: dict[str, Any] = {
        "preset": "compatible",
        "title": title,
        "base_url": address,
        "key": KEY,
        **fields,
    }
    answer = visit.context.request.post(f"{chat.server.url}{ADD}", form=form)
    assert answer.ok, answer.text()
    chat.page.goto(answer.url)

    def remove() -> None:
        visit.context.request.post(answer.url.partition("?")[0], form={"do": "remove"})

    visit.cleanup.callback(remove)
    expect(chat.page.get_by_role("heading", name=title)).to_be_visible()
    return chat


@state()
def models(visit: Visit) -> Chat:
    """All providers: one of the settings, one with many models, one that is down."""
    connected(visit, f"http://127.0.0.1:{free_port()}/v1")
    chat = connected(visit, own_keys="on")
    chat.page.goto(f"{chat.server.url}{PATH}")
    expect(chat.page.get_by_text(f"All {MANY} models")).to_be_visible()
    expect(chat.page.locator("p.fault")).to_be_visible()
    return chat


@state()
def models_own_key(visit: Visit) -> Chat:
    """A person's page: a wrong key beside a saved one."""
    chat = connected(visit, own_keys="on")
    chat.page.goto(f"{chat.server.url}{PATH}")
    chat.page.get_by_text("Add…").first.click()
    chat.page.get_by_label("Your key for").first.fill("sk-0123456789abcdef")
    chat.page.get_by_role("button", name="Save key").first.click()
    expect(chat.page.get_by_text("Your key: …cdef")).to_be_visible()
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_text("Replace…").first.click()
    chat.page.get_by_label("Your key for").first.fill("two words")
    chat.page.get_by_role("button", name="Save key").first.click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def connect_provider(visit: Visit) -> Chat:
    """The form with everything in it."""
    chat = administrator(visit, f"{PATH}/add/anthropic")
    chat.page.get_by_text("Headers, models").click()
    expect(chat.page.get_by_label("Name of header 1")).to_be_visible()
    return chat


@state()
def connect_compatible(visit: Visit) -> Chat:
    chat = administrator(visit, ADD)
    expect(chat.page.get_by_label("Address")).to_be_visible()
    return chat


@state()
def connect_refused(visit: Visit) -> Chat:
    """Deployments are missing."""
    chat = administrator(visit, f"{PATH}/add/azure")
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_label("Address").fill("https://example.openai.azure.com")
    chat.page.get_by_label("Key", exact=True).fill(KEY)
    chat.page.get_by_role("button", name="Connect").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def trying(visit: Visit) -> Chat:
    """A trial that waits for the model."""
    chat = connect_compatible(visit)
    chat.page.get_by_label("Address").fill(visit.stage.fake.base_url)
    chat.page.get_by_text("Headers, models").click()
    chat.page.get_by_label("Models", exact=True).fill("stall?n=0")
    chat.page.get_by_role("button", name="Try").click()
    expect(chat.page.locator("#trial")).to_contain_text("models")
    return chat


@state()
def tried(visit: Visit) -> Chat:
    """A trial with a limitation."""
    chat = connect_compatible(visit)
    chat.page.get_by_label("Address").fill(visit.stage.fake.base_url)
    chat.page.get_by_role("button", name="Try").click()
    expect(chat.page.locator("#trial .end")).to_be_visible()
    return chat


@state()
def tried_in_vain(visit: Visit) -> Chat:
    chat = connect_compatible(visit)
    chat.page.get_by_label("Address").fill(f"http://127.0.0.1:{free_port()}/v1")
    chat.page.get_by_role("button", name="Try").click()
    expect(chat.page.locator("#trial [data-status=fail]")).to_be_visible()
    return chat


@state()
def provider(visit: Visit) -> Chat:
    """A provider with many models, one of them hidden."""
    chat = connected(visit)
    chat.page.get_by_role("button", name="Hide").nth(1).click()
    expect(chat.page.get_by_text("Hidden", exact=True)).to_be_visible()
    return chat


@state()
def provider_changed(visit: Visit) -> Chat:
    """The forms of a provider are open, the last page of its models is shown."""
    chat = connected(visit)
    chat.page.goto(f"{chat.page.url.partition('?')[0]}?page=2")
    chat.page.get_by_text("Remove…").click()
    chat.page.get_by_text("Change…").click()
    expect(chat.page.get_by_label("Remove the saved key")).to_be_visible()
    return chat


@state()
def provider_silent(visit: Visit) -> Chat:
    """A server that has not answered yet."""
    chat = connected(visit, visit.cleanup.enter_context(visit.stage.fake.unaccepting()))
    expect(chat.page.locator("[data-state=asking]")).to_be_visible()
    return chat


@state()
def model_form(visit: Visit) -> Chat:
    """A model of which the server says all but the price of cached input."""
    chat = connected(visit)
    chat.page.get_by_role("link", name="Edit").first.click()
    expect(chat.page.get_by_text("The server says this.").first).to_be_visible()
    return chat


@state()
def model_form_refused(visit: Visit) -> Chat:
    chat = connected(visit)
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_role("link", name="Edit").nth(3).click()
    chat.page.get_by_label("Input", exact=True).fill("-1")
    chat.page.get_by_role("button", name="Save").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat
