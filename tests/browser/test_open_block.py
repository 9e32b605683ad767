"""The open block on the page: in the form of the finished one, which takes its place unmoved."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.chat import Chat

TEXT = """\
## A **title**

Before `code` and *emphasis*
on two lines:
1. **One** with `code`
1. Two
   - nested
1. Three **in bold** here
1. Four
"""
#: The places of all words, each with the elements around it that have a meaning.
PLACES = """() => {
  const walker = document.createTreeWalker(
    document.querySelector('.answer > .text'), NodeFilter.SHOW_TEXT);
  const places = [], range = new Range();
  while (walker.nextNode()) {
    for (const { index, 0: word } of walker.currentNode.data.matchAll(/[A-Za-z]+/g)) {
      range.setStart(walker.currentNode, index);
      range.setEnd(walker.currentNode, index + word.length);
      const { x, y } = range.getBoundingClientRect();
      places.push([word, Math.round(x), Math.round(y)]);
    }
  }
  return places;
}"""


def places(chat: Chat) -> Any:
    """The places of the answer's words."""
    return chat.page.evaluate(PLACES)


@pytest.mark.parametrize(
    "word", ["title", "emphasis", "lines:", "code`\n1.", "Two", "in bold*", "Four"]
)
def test_open_block_stays_in_place_when_it_is_finished(chat: Chat, word: str) -> None:
    """Words of the open block, and of those above, do not move at the end, nor by a reload."""
    before = TEXT.index(word) + len(word)
    shown = re.split("[`*]", word)[0]
    chat.ask_for(TEXT, piece=before, gap_ms=1, hold=1)
    chat.wait_text(shown)
    chat.frames(3)
    open_places = places(chat)
    assert open_places
    chat.reload()
    chat.wait_text(shown)
    assert places(chat) == open_places
    chat.release()
    chat.wait_state("done")
    assert places(chat)[: len(open_places)] == open_places


def test_items_come_into_the_list_that_is_shown(chat: Chat) -> None:
    """While a list is written, its finished items are in one list, with their numbers."""
    chat.ask_for(TEXT, piece=4, gap_ms=2, hold=TEXT.index("Four") // 4 + 1)
    expect(chat.text.locator("[id^=done] > ol > li")).to_have_count(3)
    expect(chat.text.locator("ol[start='4'] > .tail")).to_have_text("Fo")
    expect(chat.text.locator("[id^=done] > ol strong")).to_have_text(["One", "in bold"])
    chat.release()
    chat.wait_state("done")
    expect(chat.text.locator("ol > li")).to_have_count(4)


def test_rows_come_into_the_table_that_is_shown(chat: Chat) -> None:
    """While a table is written, its complete rows are in one table, which stays in its place."""
    table = "Now:\n\n| a | b |\n|---|---|\n| 1 | **2** |\n| 3 | 4 |\n| five | six |\n"
    chat.ask_for(table, piece=4, gap_ms=2, hold=table.index("six") // 4)
    expect(chat.text.locator("[id^=done] > .table tbody > tr")).to_have_count(2)
    expect(chat.text.locator(".tail")).to_contain_text("five")
    chat.reload()
    expect(chat.text.locator("[id^=done] > .table tbody > tr")).to_have_count(2)
    chat.release()
    chat.wait_state("done")
    expect(chat.text.locator("tbody > tr")).to_have_count(3)
