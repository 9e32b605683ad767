"""One person with two devices: each lists, continues, watches and stops what the other began."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.browser.list_tab import WIDE, ListTab
from tests.support.halt_server import RECORD_TIMEOUT, StartHalt


@pytest.fixture
def devices(start_halt: StartHalt, open_chat: OpenChat, fake: FakeOpenAI) -> tuple[Chat, Chat]:
    """Two browsers that share no cookie, on a Halt with the default settings."""
    server = start_halt(fake, HALT_ALLOW_ANONYMOUS="")
    return open_chat(server, fake, viewport=WIDE), open_chat(server, fake, viewport=WIDE)


def open_only_conversation(device: Chat) -> None:
    """Load the page again, and open the one conversation of its list."""
    device.reload()
    items = ListTab(device).items
    expect(items).to_have_count(1)
    items.get_by_role("link").click()
    expect(items.locator("[aria-current]")).to_be_visible()
    device.page.wait_for_load_state()


def test_conversation_of_one_device_goes_on_at_the_other(devices: tuple[Chat, Chat]) -> None:
    """The other device lists the conversation once its page is loaded, and continues it."""
    first, second = devices
    first.ask("count?n=3")
    first.wait_state("done")
    open_only_conversation(second)
    second.wait_text("0 1 2")
    second.ask("count?n=5")
    second.wait_text("0 1 2 3 4")
    second.wait_state("done")
    open_only_conversation(first)
    first.wait_text("0 1 2 3 4")
    assert first.exchange_count() == 2


def test_running_answer_is_stopped_at_the_other_device(devices: tuple[Chat, Chat]) -> None:
    """The other device sees the answer grow and stops it; the first device shows the Stop."""
    first, second = devices
    first.ask("count?n=1000000&gap_ms=3")
    first.wait_text("20 21 22")
    open_only_conversation(second)
    second.wait_text(" 22 ")
    last_number = int(second.answer_text().split()[-1])
    second.wait_text(f" {last_number + 100} ")
    second.stop.click()
    assert first.record().closed.wait(RECORD_TIMEOUT)
    for device in devices:
        device.wait_state("stopped")
        device.reload()
        device.wait_state("stopped")
    assert first.answer_text() == second.answer_text()
