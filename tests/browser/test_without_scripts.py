"""The page without its scripts: a typed message is sent by the browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chat import PATIENCE
from tests.support.halt_server import HaltServer
from tests.support.reverse_proxies import nginx_below_path
from tests.support.waiting import SERVER_TIMEOUT, wait_until


@pytest.mark.parametrize("scripts", ["switched off", "not found below a path"])
def test_message_without_scripts_is_sent(
    browser: Browser, halt: HaltServer, tmp_path: Path, scripts: str
) -> None:
    """Without scripts a message is sent by POST and shown, and no URL contains it.

    Below a path the page finds neither its scripts nor its styles.
    """
    with nginx_below_path(tmp_path, halt.url) as proxy:
        root = f"{proxy}/halt/" if "path" in scripts else f"{halt.url}/"
        context = browser.new_context(java_script_enabled="path" in scripts)
        context.set_default_timeout(PATIENCE)
        addresses: list[str] = []
        context.on("request", lambda request: addresses.append(request.url))
        page = context.new_page()
        page.goto(root)
        running = page.locator("[data-state=running]")
        for count, message in enumerate(("first message", "second message"), 1):
            page.locator("#prompt").fill(message)
            page.locator("#send").click()
            expect(page.locator(".exchange .prompt")).to_have_count(count)
            expect(page.locator("#messages")).to_contain_text(message)
            assert page.url.startswith(f"{root}c/")
            expect(page.locator("#prompt")).to_have_value("")
            wait_until(lambda: not running.count() or not page.reload(), SERVER_TIMEOUT)
        assert not any("message" in address.partition("?")[2] for address in addresses)
        context.close()


def test_model_without_scripts_is_chosen_in_a_list(browser: Browser, halt: HaltServer) -> None:
    """Without scripts the list of options is there, and no button that would do nothing."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(halt.url)
    expect(page.get_by_role("combobox", name="Model")).to_be_visible()
    expect(page.locator("#open-models")).to_be_hidden()
    expect(page.locator(".ideas")).to_be_hidden()
    expect(page.locator("#search")).to_be_hidden()
    context.close()
