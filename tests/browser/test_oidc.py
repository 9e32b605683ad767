"""Sign-in by OpenID Connect in a browser, at a provider that is another site."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import PATIENCE
from tests.support.halt_server import StartHalt
from tests.support.oidc_provider import SIGNED_OUT, OidcProvider


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with OidcProvider() as server:
        yield server


def test_person_signs_in_chats_and_signs_out_at_the_provider(
    browser: Browser, start_halt: StartHalt, fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """The page that was asked for leads to the provider and back; chats stay; sign-out ends both.

    Halt is at `localhost` and the provider at 127.0.0.1, so that each is the other's other site.
    """
    provider.has_form = True
    server = start_halt(fake, **provider.settings)
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text))
        page.goto(f"http://localhost:{server.port}/?ask=1")
        page.get_by_role("link", name=f"Sign in with {provider.host}").click()
        page.get_by_role("button", name="Allow").click()
        page.wait_for_url(f"http://localhost:{server.port}/?ask=1")
        message = page.get_by_role("textbox", name="Message", exact=True)
        message.fill("/fake count?n=3")
        message.press("Enter")
        expect(page.locator(".exchange").get_by_text("0 1 2")).to_be_visible()
        page.wait_for_url(re.compile("/c/"))
        page.reload()
        expect(page.locator(".exchange").get_by_text("0 1 2")).to_be_visible()

        page.get_by_role("button", name="Display, archive, export and import").click()
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("link", name=f"Sign out of {provider.host}").click()
        expect(page.get_by_text(SIGNED_OUT)).to_be_visible()
        page.get_by_role("link", name="Back").click()
        expect(page.get_by_role("link", name=f"Sign in with {provider.host}")).to_be_visible()
        page.goto(f"http://localhost:{server.port}/")
        expect(page.get_by_role("link", name=f"Sign in with {provider.host}")).to_be_visible()
        assert faults == []
