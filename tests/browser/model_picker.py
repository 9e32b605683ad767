"""The fields of the page in which models are chosen."""

from __future__ import annotations

from playwright.sync_api import Locator, expect

from tests.browser.chat import Chat


def picker(chat: Chat) -> Locator:
    """The field of the first model."""
    return chat.page.get_by_role("combobox", name="Model", exact=True)


def choose(chat: Chat, model: str) -> None:
    """Choose a model, once the list has it."""
    expect(picker(chat).locator(f'option[value="{model}"]')).to_have_count(1)
    picker(chat).select_option(model)


def add_models(chat: Chat, *models: str) -> None:
    """Add scenarios with arguments to the list of models."""
    choose(chat, "echo")  # the list has been loaded
    for model in models:
        chat.page.locator("#model").evaluate("(e, name) => e.add(new Option(name, name))", model)
