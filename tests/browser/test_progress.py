"""The progress of an answer, which is an estimate."""

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
    """A new model has no progress; later it is estimated, never goes back and is never complete."""
    chat = open_chat(start_halt(fake), fake)
    progress = chat.answer.locator(".progress")
    for n in range(3):
        chat.ask("stall?n=20&rest=30")
        expect(chat.page.locator(".exchange")).to_have_count(n + 1)
        chat.wait_text("18 19")
        expect(progress).to_have_text("")
        chat.record().release()
        chat.wait_state("done")
    chat.ask("stepwise?n=150&at=20,60&gap_ms=2")
    expect(progress).to_have_text("about 40 % written")
    expect(chat.answer.locator(".silence")).to_be_visible()
    expect(progress).to_be_hidden()
    chat.reload()
    expect(progress).to_have_text("about 40 % written")
    chat.page.evaluate(
        """() => {
          window.bars = [];
          const look = () => {
            const bar = document.querySelector('.answer[data-state="running"] .progress');
            const value = bar && parseInt(bar.textContent.slice(6));
            if (value && bars.at(-1) !== value) bars.push(value);
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    chat.release()
    chat.wait_text("58 59")
    expect(progress).not_to_have_text("about 40 % written")
    chat.frames()
    chat.release()
    chat.wait_state("done")
    expect(progress).to_have_count(0)
    bars = chat.page.evaluate("bars")
    assert bars == sorted(bars)
    assert 40 <= bars[0] < bars[-1] < 100
    assert chat.answer_text() == numbers(150)
