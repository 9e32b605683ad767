"""The progress bar of an answer, which is an estimate."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import numbers
from tests.browser.conftest import OpenChat
from tests.support.halt_server import StartHalt


@pytest.mark.usefixtures("stepwise")
def test_progress_is_estimated_from_earlier_answers(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A new model has no bar; later a bar is estimated that never goes back and never fills up."""
    chat = open_chat(start_halt(fake), fake)
    bar = chat.answer.locator("progress")
    for n in range(3):
        chat.ask("stall?n=20&rest=30")
        expect(chat.page.locator(".exchange")).to_have_count(n + 1)
        chat.wait_text("18 19")
        expect(bar).to_have_count(0)
        chat.record().release()
        chat.wait_state("done")
    chat.ask("stepwise?n=150&at=20,60&gap_ms=2")
    expect(bar).to_have_attribute("value", "40")
    expect(chat.answer.locator(".progress")).to_contain_text("about 40 %")
    expect(bar).to_have_accessible_name("Progress, estimated")
    chat.reload()
    expect(bar).to_have_attribute("value", "40")
    chat.page.evaluate(
        """() => {
          window.bars = [];
          const look = () => {
            const bar = document.querySelector('.answer[data-state="running"] progress');
            if (bar && bars.at(-1) !== bar.value) bars.push(bar.value);
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    chat.release()
    chat.wait_text("58 59")
    expect(bar).not_to_have_attribute("value", "40")
    chat.frames()
    chat.release()
    chat.wait_state("done")
    expect(bar).to_have_count(0)
    bars = chat.page.evaluate("bars")
    assert bars == sorted(bars)
    assert 40 <= bars[0] < bars[-1] < 100
    assert chat.answer_text() == numbers(150)
