"""The list of conversations in a browser's tab, as tests use it."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, ViewportSize, expect

from tests.browser.chat import Chat

WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}


class ListTab:
    """A tab with the list of conversations beside it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.page = chat.page
        self.list = self.page.locator("#conversations")
        self.items = self.list.locator("> li[id]:visible")
        self.toast = self.page.locator("#toast")
        self.palette = self.page.get_by_role("dialog", name="Search")
        self.hits = self.palette.get_by_role("group", name="Messages").get_by_role("option")

    def keep(self, *talks: dict[str, Any]) -> None:
        """Import these conversations and reload the page."""
        self.chat.import_conversations(*talks)
        self.page.reload()

    def search(self, words: str) -> None:
        """Search for words in the palette."""
        self.page.get_by_role("button", name="Search", exact=True).click()
        self.palette.get_by_role("combobox").fill(words)

    def item(self, title: str) -> Locator:
        """The entry with this title."""
        exact = self.page.locator(".title", has_text=re.compile(f"^{re.escape(title)}$"))
        return self.items.filter(has=exact)

    def titles(self) -> list[str]:
        return self.items.locator(".title").all_text_contents()

    def open(self, title: str) -> None:
        self.item(title).get_by_role("link").click()
        expect(self.item(title).locator("[aria-current]")).to_be_visible()
        self.page.wait_for_load_state()  # its scripts have run

    def menu(self, title: str, entry: str) -> None:
        """Open the menu of an entry and choose an item."""
        self.open_menu(title)
        self.entry(entry).click()

    def open_menu(self, title: str) -> None:
        self.item(title).hover()
        self.item(title).get_by_role("button", name="More for").click()

    def entry(self, name: str) -> Locator:
        return self.page.locator("#item-menu").get_by_text(name, exact=True)

    def new_chat(self) -> None:
        self.page.get_by_role("link", name="New chat").click()
        expect(self.page.locator(".exchange")).to_have_count(0)
        self.page.wait_for_load_state()
