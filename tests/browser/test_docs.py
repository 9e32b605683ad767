"""The API's page on screens of all widths."""

from __future__ import annotations

import contextlib
from typing import Literal

import pytest
from playwright.sync_api import Browser

from tests.browser.chat import CONTRASTS
from tests.support.halt_server import HaltServer

SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_api_can_be_read_on_a_phone(
    browser: Browser, halt: HaltServer, scheme: Literal["light", "dark"]
) -> None:
    """Nothing is wider than the screen or too faint, and the browser has nothing to complain of."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    with contextlib.closing(context):
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text))
        page.goto(f"{halt.url}/docs")
        page.get_by_role("link", name="POST /chat/stream").click()
        assert page.url.endswith("#startStream")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#ChatRequest").is_visible()
        assert {k: v for k, v in page.evaluate(CONTRASTS).items() if v < 4.5} == {}
        assert complaints == []
