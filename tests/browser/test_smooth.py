"""Smoothing: text that arrives in bursts gets its ink evenly, and is kept as it was shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.support.halt_server import HaltServer

BURSTS = "count?n=300&gap_ms=8&burst=30"

#: Records for each frame: characters of the text, characters without ink, and the time.
WATCH = """() => {
  window.frames = [];
  const look = () => {
    const text = document.querySelector('.answer[data-state="running"] > .text');
    const hidden = [...(CSS.highlights.get('unread') ?? [])].map(range => range.toString().length);
    if (text) frames.push([text.textContent.length, hidden.reduce((a, b) => a + b, 0), performance.now()]);
    requestAnimationFrame(look);
  };
  look();
}"""


def test_smoothing_spreads_a_burst_over_several_frames(chat: Chat) -> None:
    """Ink comes in more steps than bursts, at most a quarter of a second after the text."""
    chat.page.evaluate(WATCH)
    chat.ask(BURSTS)
    chat.wait_state("done")
    frames = chat.page.evaluate("frames")
    inked = [count - hidden for count, hidden, _ in frames]
    bursts = sum(1 for (a, *_), (b, *_) in pairwise(frames) if b > a)
    steps = sum(1 for a, b in pairwise(inked) if b > a)
    assert steps > bursts, (steps, bursts)
    for count, _, text_time in frames:
        later = [
            ink
            for ink, (_, _, ink_time) in zip(inked, frames, strict=True)
            if ink_time > text_time + 250
        ]
        # The first of these frames may be late, and shows the state before it.
        assert len(later) < 2 or later[1] >= count
    assert chat.page.evaluate("CSS.highlights.get('unread').size") == 0


def test_stop_shows_all_smoothed_text_at_once(chat: Chat) -> None:
    """A frame after Stop all text has its ink, and that text is kept."""
    chat.ask(BURSTS.replace("300", "1000000"))
    chat.wait_text("100 101")
    chat.page.evaluate(
        """() => document.querySelector('#stop').addEventListener('click', () => requestAnimationFrame(() => {
          window.still = document.querySelector('.answer > .text').textContent.trim();
          window.unread = CSS.highlights.get('unread').size;
        }))"""
    )
    chat.stop.click()
    chat.wait_state("stopped")
    chat.page.wait_for_function("() => 'unread' in window")
    assert chat.page.evaluate("unread") == 0
    assert chat.page.evaluate("still") == chat.answer_text()
    chat.reload()
    assert chat.page.evaluate("document.querySelector('.answer > .text').textContent.trim()") == chat.answer_text()  # fmt: skip


@pytest.mark.parametrize("setting", ["switch", "reduced motion"])
def test_smoothing_is_off_by_switch_or_reduced_motion(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI, setting: str
) -> None:
    """A remembered switch and the system's reduced motion turn the smoothing off."""
    options = {"reduced_motion": "reduce"} if setting == "reduced motion" else {}
    chat = open_chat(halt, shared_fake, **options)
    if setting == "switch":
        chat.open_display().get_by_label("Smooth out text that arrives in bursts").uncheck()
        chat.reload()
        expect(chat.page.locator("#smooth")).not_to_be_checked()
    chat.page.evaluate(WATCH)
    chat.ask(BURSTS)
    chat.wait_state("done")
    assert not any(hidden for _, hidden, _ in chat.page.evaluate("frames"))
