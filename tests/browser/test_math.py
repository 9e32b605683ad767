"""Formulas: the font that stretches their brackets and roots, and the width of the page."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.chat import Chat
from tests.support.export_files import exported_conversation

TEXT = r"""
Text with $x$.

\[ \left( \frac{a}{b} \right) + \sqrt{\frac{\frac{a}{b}}{c}} + \sum_{i=1}^{n} i \]
"""
WIDE = f"\\[ {' + '.join(f'x_{{{n}}}' for n in range(60))} \\]\n\n\u05d0\u05d1 $a-b$ \u05d2\u05d3"
HEIGHTS = """() => Object.fromEntries([...document.querySelectorAll('math[display] :is(mo, msqrt)')].map(
  e => [e.tagName === 'mo' ? e.textContent : 'root', e.getBoundingClientRect().height]))"""


def open_answer(chat: Chat, text: str) -> None:
    conversation = exported_conversation("A formula, please.", text)
    chat.import_conversations(conversation)
    chat.page.goto(f"{chat.server.url}/c/{conversation['id']}")
    chat.frames()


def test_brackets_stretch_with_a_font_that_only_formulas_load(chat: Chat) -> None:
    """The font comes from this server, with the first formula; brackets and roots stretch."""
    fonts: list[str] = []
    chat.page.on(
        "request", lambda request: fonts.append(request.url) if "woff" in request.url else None
    )
    open_answer(chat, "No formula.")
    chat.page.evaluate("document.fonts.ready.then(() => {})")
    assert fonts == []

    open_answer(chat, TEXT)
    chat.page.evaluate("document.fonts.ready.then(() => {})")
    (font,) = fonts
    assert re.fullmatch(rf"{chat.server.url}/static/\w+/vendor/stix-two-math-[\d.]+\.woff2", font)
    response = chat.page.request.get(font)
    assert response.headers["content-type"] == "font/woff2"
    assert "immutable" in response.headers["cache-control"]
    heights = chat.page.evaluate(HEIGHTS)
    line = chat.page.locator("math:not([display])").evaluate(
        "e => e.getBoundingClientRect().height"
    )
    assert heights["("] > 1.8 * line
    assert heights["root"] > 2.5 * line
    assert heights["∑"] > 1.3 * line


def test_wide_formula_scrolls_in_its_box_and_runs_from_the_left(chat: Chat) -> None:
    """A wide formula does not widen the page; in a right-to-left text, a formula is not turned."""
    chat.page.set_viewport_size({"width": 390, "height": 700})
    open_answer(chat, WIDE)
    box = chat.page.locator(".display")
    expect(box).to_have_attribute("tabindex", "0")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth + 100")
    assert chat.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    places = chat.page.locator("math:not([display]) mi").evaluate_all(
        "signs => signs.map(e => e.getBoundingClientRect().left)"
    )
    assert places == sorted(places)
