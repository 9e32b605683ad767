"""A long paragraph while it is written: drawn in parts, with one layout per frame."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import CDPSession

from tests.browser.chat import Chat

pytestmark = pytest.mark.slow

WORDS = ("AV", "To", "fi", "flow", "office", "waffle", "“quoted”", "words", "—", "e.g.", "A/V", "I")
TAIL = ".answer .tail"

#: Joins the pieces of an open paragraph and returns the position of each word in it.
PLACES = """tail => {
  tail.normalize();
  const corner = tail.getBoundingClientRect();
  const places = [], range = new Range();
  for (const node of tail.childNodes) {
    for (const { index } of node.data?.matchAll(/\\S+/g) ?? []) {
      range.setStart(node, index);
      range.setEnd(node, index + 1);
      const { x, y } = range.getBoundingClientRect();
      places.push([x - corner.x, y - corner.y]);
    }
  }
  return places;
}"""


def paragraph(size: int) -> str:
    """Words of `size` characters in total, without a newline."""
    draw = random.Random(3)
    return " ".join(draw.choices(WORDS, k=size // 3))[:size].rstrip()


def ask_for_open(chat: Chat, text: str) -> None:
    """Let the model write this text and then be silent, so that the paragraph stays open."""
    key = f"open {len(text)}"
    chat.fake.texts[key] = text
    chat.ask(f"go_on?key={key.replace(' ', '+')}&first={len(text)}&rate=2000")
    chat.page.wait_for_function(
        "([tail, length]) => document.querySelector(tail)?.textContent.length === length",
        arg=[TAIL, len(text)],
    )
    chat.frames()


def layouts(session: CDPSession) -> float:
    """The number of layouts of the page so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["name"] == "LayoutCount")


def test_messages_within_a_frame_cause_one_layout(chat: Chat) -> None:
    """A hundred changes of an open paragraph cause no layout before the frame is drawn."""
    ask_for_open(chat, paragraph(300))
    session = chat.page.context.new_cdp_session(chat.page)
    session.send("Performance.enable")
    layouts_before = layouts(session)
    added = chat.page.evaluate(
        """async selector => {
          const tail = document.querySelector(selector);
          for (let i = 0; i < 100; i++) {
            tail.append(`message ${i} `);
            await null; // the page's observers run
            await null;
          }
          return tail.textContent.length;
        }""",
        TAIL,
    )
    chat.frames()
    assert added > 1000
    assert layouts(session) - layouts_before < 10
    assert chat.pixels_below() < 2, "the page follows the text"
    chat.stop.click()
    chat.wait_state("stopped")


def test_long_paragraph_is_drawn_in_bounded_parts(chat: Chat) -> None:
    """Each part is one text node of bounded length; reading and copying give the whole text."""
    text = paragraph(20_000)
    ask_for_open(chat, text)
    measured = chat.page.evaluate(
        """selector => {
          const tail = document.querySelector(selector), nodes = [...tail.childNodes];
          const last = nodes.findLastIndex(node => node.nodeType === Node.ELEMENT_NODE);
          getSelection().selectAllChildren(tail);
          const selected = getSelection().toString();
          getSelection().removeAllRanges();
          return {
            parts: nodes.slice(0, last).filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.length),
            seams: nodes.filter(node => node.nodeType === Node.ELEMENT_NODE).map(node => node.outerHTML),
            read: tail.textContent, selected,
          };
        }""",
        TAIL,
    )
    assert set(measured["seams"]) == {'<span class="seam"></span>'}
    assert len(measured["parts"]) == len(measured["seams"]) >= 5
    assert max(measured["parts"]) <= 4000
    assert measured["read"] == measured["selected"] == text
    chat.stop.click()
    chat.wait_state("stopped")
    assert chat.page.locator(".seam").count() == 0
    assert chat.answer_text() == text


@pytest.mark.parametrize("width", [1000, 390])
def test_seams_move_no_word(chat: Chat, width: int) -> None:
    """With seams or without them, each word of a paragraph stands in the same place."""
    chat.page.set_viewport_size({"width": width, "height": 800})
    ask_for_open(chat, paragraph(9_000))
    assert chat.page.locator(".tail .seam").count() >= 3
    tail = chat.page.locator(TAIL)
    with_seams = tail.evaluate(PLACES)
    tail.evaluate("tail => { for (const seam of tail.querySelectorAll('.seam')) seam.remove(); }")
    without = tail.evaluate(PLACES)
    assert len(with_seams) == len(without) > 1_000
    for (x, y), place in zip(with_seams, without, strict=True):
        assert place == [pytest.approx(x, abs=0.1), pytest.approx(y, abs=0.1)]
    chat.stop.click()
    chat.wait_state("stopped")


def test_selection_stays_when_a_part_is_completed(chat: Chat) -> None:
    """Pieces are joined around the reader's selection, which stays across them."""
    ask_for_open(chat, paragraph(1_500))
    selected = chat.page.evaluate(
        """async selector => {
          const tail = document.querySelector(selector), texts = tail.childNodes, range = new Range();
          range.setStart(texts[1], 2);
          range.setEnd(texts[texts.length - 2], 3);
          getSelection().removeAllRanges();
          getSelection().addRange(range);
          const before = getSelection().toString();
          const seam = document.createElement('span');
          seam.className = 'seam';
          tail.append(seam, 'more');
          await null;
          await null;
          return [before, getSelection().toString(), texts.length];
        }""",
        TAIL,
    )
    assert len(selected[0]) > 100
    assert selected[1] == selected[0]
    assert selected[2] == 3, "the pieces were joined"
    chat.stop.click()
    chat.wait_state("stopped")


def test_smoothing_covers_the_end_of_a_part(chat: Chat) -> None:
    """New text is smoothed also where a part ends and its pieces are joined."""
    ask_for_open(chat, paragraph(1_500))
    hidden = chat.page.evaluate(
        """async selector => {
          const tail = document.querySelector(selector), seam = document.createElement('span');
          seam.className = 'seam';
          tail.append('x'.repeat(500), seam, 'y'.repeat(500));
          await null;
          await null;
          await null;
          return [...CSS.highlights.get('unread')].reduce((sum, range) => sum + range.toString().length, 0);
        }""",
        TAIL,
    )
    assert hidden > 900
    chat.stop.click()
    chat.wait_state("stopped")
