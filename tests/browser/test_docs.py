"""The API's page on screens of all widths."""

from __future__ import annotations

import contextlib
from typing import Literal

import pytest
from playwright.sync_api import Browser

from tests.browser.contrasts import CONTRASTS
from tests.support.halt_server import HaltServer

SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_api_page_fits_a_narrow_screen(
    browser: Browser, halt: HaltServer, scheme: Literal["light", "dark"]
) -> None:
    """At 360 pixels the API page has no overflow, no faint text and no console message."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    with contextlib.closing(context):
        page = context.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.goto(f"{halt.url}/docs")
        page.get_by_role("link", name="POST /chat/stream").click()
        assert page.url.endswith("#startStream")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#ChatRequest").is_visible()
        assert {k: v for k, v in page.evaluate(CONTRASTS).items() if v < 4.5} == {}
        assert messages == []
