"""The model picker of the page, used as a person uses it."""

from __future__ import annotations

from playwright.sync_api import Locator, expect

from tests.browser.chat import Chat


def value(chat: Chat) -> Locator:
    """The field with the name of the first model; empty for the default."""
    return chat.page.locator("#model")


def button(chat: Chat) -> Locator:
    """The button that shows the model and opens the panel."""
    return chat.page.get_by_role("button", name="Model:")


def panel(chat: Chat) -> Locator:
    """The open panel."""
    return chat.page.get_by_role("dialog", name="Models", exact=True)


def row(chat: Chat, model: str) -> Locator:
    """A model in the open panel, by its full name."""
    return panel(chat).get_by_role("option").and_(chat.page.locator(f'[data-name="{model}"]'))


def wait_offered(chat: Chat, model: str) -> None:
    """Wait until the list of models has arrived, with this one."""
    expect(value(chat).locator(f'option[value="{model}"]')).to_have_count(1)


def choose(chat: Chat, model: str) -> None:
    """Choose a model alone, once the list has it."""
    wait_offered(chat, model)
    if chat.page.locator("#one-model").is_visible():
        choose_one(chat)
    button(chat).click()
    row(chat, model).click()
    expect(panel(chat)).to_be_hidden()


def choose_several(chat: Chat, *models: str) -> None:
    """Choose a model, and others to compare it with, in this order."""
    choose(chat, models[0])
    button(chat).click()
    panel(chat).get_by_role("button", name="Compare…").click()
    for model in models[1:]:
        row(chat, model).click()
    panel(chat).get_by_role("button", name="Done").click()
    expect(panel(chat)).to_be_hidden()


def choose_one(chat: Chat) -> None:
    """Leave the comparison: the first model alone."""
    chat.page.get_by_role("button", name="Back to one model").click()


def add_models(chat: Chat, *models: str) -> None:
    """Add scenarios with arguments to the list of models, which stays like this on this page."""
    wait_offered(chat, "echo")
    chat.page.evaluate(
        "addEventListener('halt:models', event => event.stopImmediatePropagation(), true)"
    )
    for model in models:
        chat.page.locator("#model").evaluate("(e, name) => e.add(new Option(name, name))", model)
