"""The page without its scripts: a typed message is sent by the browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import PATIENCE
from tests.support.files import image
from tests.support.halt_server import HaltServer, request_record
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


def test_files_without_scripts_are_sent(browser: Browser, halt: HaltServer) -> None:
    """Without scripts the browser's own field takes files, and Send sends them, twice."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(halt.url)
    for count, name in enumerate(("first.png", "second.png"), 1):
        picture: FilePayload = {"name": name, "mimeType": "image/png", "buffer": image(count, 9)}
        page.locator("#composer [name=files]").set_input_files(picture)
        page.locator("#prompt").fill(f"Picture {count}")
        expect(page.locator("#attach")).to_be_hidden()
        page.locator("#send").click()
        expect(page.get_by_role("img", name=name)).to_be_visible()
        expect(page.locator("#messages")).to_contain_text(f"Picture {count}")
        assert re.search(r"/c/[^/]+$", page.url)
        wait_until(
            lambda: not page.locator("[data-state=running]").count() or not page.reload(),
            SERVER_TIMEOUT,
        )
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


def test_stop_without_scripts_stops_the_answer(
    browser: Browser, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Without scripts Stop stops; each visible button does something."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(halt.url)
    prompt = "/fake stall?n=3 without scripts"
    page.locator("#prompt").fill(prompt)
    page.locator("#send").click()
    record = request_record(shared_fake, prompt)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".answer")).to_have_attribute("data-state", "stopped")
    expect(page).to_have_url(re.compile(r"/c/[^/]+$"))
    assert record.closed.wait(SERVER_TIMEOUT)
    idle = "button:visible:not([popovertarget]):not(form[action] button)"
    expect(page.locator(idle)).to_have_count(0)
    context.close()


def test_refused_file_without_scripts_leaves_the_typed_message(
    browser: Browser, halt: HaltServer
) -> None:
    """The page that names the file also has the message: the browser shows the last page empty."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(halt.url)
    empty: FilePayload = {"name": "empty.txt", "mimeType": "text/plain", "buffer": b""}
    page.locator("#composer [name=files]").set_input_files(empty)
    page.locator("#prompt").fill("<b>What</b> is this?")
    page.locator("#send").click()
    expect(page.get_by_role("alert")).to_have_text("empty.txt: The file is empty.")
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("<b>What</b> is this?")
    context.close()


@pytest.mark.parametrize("module", ["copy.js", "lib/dom.js", "main.js"])
def test_page_with_a_missing_module_says_so_and_sends_nothing(
    browser: Browser, halt: HaltServer, module: str
) -> None:
    """If a module does not load, the message stays, since its answer could not be stopped."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.route(f"**/js/{module}", lambda route: route.abort())
    page.goto(halt.url)
    expect(page.locator("#notice")).to_contain_text("could not be loaded")
    page.locator("#prompt").fill("Hello?")
    page.locator("#send").click()
    page.locator("#prompt").press("Enter")
    expect(page.locator("#prompt")).to_have_value("Hello?")
    expect(page).to_have_url(f"{halt.url}/")
    expect(page.locator(".exchange")).to_have_count(0)
    context.close()
