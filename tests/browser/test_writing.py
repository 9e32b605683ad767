"""Special content of answers: lines, formulas, pictures, long words, sources."""

from __future__ import annotations

import pytest
from playwright.sync_api import CDPSession, expect

from tests.browser.chat import Chat
from tests.support.halt_server import new_id

PNG = "iVBORw0KGgo/8Qz+"
PICTURE = f"![a cat](data:image/tiff;base64,{PNG * 4_000})"  # of a kind that stays as it is
LINE = "[Picture (TIFF, 48 kB): a cat]"

#: Seconds of processor time that the page may use for the longest word. 0.25 are usual; without
#: places for a line break (`breakable` in halt/rendering/open_text.py) it takes 1.2 to 3.
WORK_MAX = 0.8


def ask_for_open(chat: Chat, text: str) -> None:
    """Let the model write this text and then be silent, so that its last block stays open."""
    key = new_id()
    chat.fake.texts[key] = text
    chat.ask(f"go_on?key={key}&first={len(text)}&rate=2000")


def work_seconds(session: CDPSession) -> float:
    """The processor time of the page's main thread so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")


def inner_text(chat: Chat) -> str:
    """The visible text of the answer, with its lines."""
    return chat.text.inner_text().strip()


def test_lines_of_a_poem_stay_lines(chat: Chat) -> None:
    """A poem has the same lines while it comes, at its end and after a reload."""
    poem = "Roses are red\nViolets are blue\nSugar is sweet"
    ask_for_open(chat, f"{poem}\n")
    chat.wait_text("sweet")
    assert inner_text(chat) == poem
    height = chat.text.evaluate("text => text.offsetHeight")
    chat.stop.click()
    chat.wait_state("stopped")
    assert inner_text(chat) == poem
    assert abs(chat.text.evaluate("text => text.querySelector('p').offsetHeight") - height) < 8
    chat.reload()
    assert inner_text(chat) == poem


def test_formulas_are_source_while_they_are_written_and_then_mathematics(chat: Chat) -> None:
    """Formulas keep their backslashes, asterisks and lines, in lists and beside prices."""
    text = (
        "It costs $5 or $10: $a*b$ and \\(c*d_1\\).\n\n\\[\n\\begin{aligned}\n  a &= b \\\\\n"
        "- c &< d \\, e\n\\end{aligned}\n\\]\n\n- one $$x_1 * y_1 * z$$"
    )
    ask_for_open(chat, text)
    chat.wait_text("one $$x_1 * y_1 * z")
    chat.stop.click()
    chat.wait_state("stopped")
    expect(chat.text.locator("math")).to_have_count(4)
    expect(chat.text).to_contain_text("It costs $5 or $10: ")
    assert chat.text.locator("em").count() == 0
    source = chat.answer.locator("template.source")
    assert source.evaluate("template => template.content.textContent") == text


def test_picture_is_shown_as_a_line_and_not_sent(chat: Chat) -> None:
    """A data: picture is one line on the page, and a placeholder in the next request."""
    chat.page.evaluate(
        f"""() => {{
          window.letters = 0;
          new MutationObserver(() => {{ if (document.body.textContent.includes('{PNG}')) letters++; }})
            .observe(document.querySelector('#messages'), {{ childList: true, subtree: true }});
        }}"""
    )
    chat.ask_for(f"Here:\n\n{PICTURE}\n\nNice.", piece=500, gap_ms=1)
    chat.wait_state("done")
    assert inner_text(chat) == f"Here:\n\n{LINE}\n\nNice."
    assert chat.page.evaluate("letters") == 0
    assert chat.answer.locator("template.source").evaluate(
        "template => template.content.textContent"
    ) == (f"Here:\n\n{LINE}\n\nNice.")
    chat.reload()
    assert inner_text(chat) == f"Here:\n\n{LINE}\n\nNice."
    assert PNG not in chat.page.content()
    chat.ask("count?n=2", f"and {new_id()}")
    chat.wait_state("done")
    answers = [
        message["content"]
        for message in chat.record().body["messages"]
        if message["role"] == "assistant"
    ]
    assert answers == ["Here:\n\n[picture]\n\nNice."]


@pytest.mark.parametrize("letter", ["A", "\u0e01"], ids=["latin", "thai"])
def test_endless_word_does_not_block_the_page(chat: Chat, letter: str) -> None:
    """A word of 60,000 letters takes little processor time, also on a reload."""
    session = chat.context.new_cdp_session(chat.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time
    chat.ask_for(letter * 60_000, piece=600, gap_ms=2)
    chat.wait_state("done")
    assert chat.answer_text() == letter * 60_000
    chat.frames()
    assert work_seconds(session) < WORK_MAX
    chat.reload()
    chat.frames()
    assert chat.answer_text() == letter * 60_000
    assert work_seconds(session) < WORK_MAX


def test_pictures_and_sources_stand_below_the_text(chat: Chat) -> None:
    """Pictures and sources are shown below the text: running, done and after a reload. The number
    of a source in the text of the ended answer leads to it.
    """
    chat.ask("illustrated")
    below = chat.page.locator(".below:not(:empty)")
    link = below.locator("a")
    for _ in range(2):
        expect(below.locator(".picture")).to_have_text("[Picture (PNG, 9 B)]")
        expect(link).to_have_attribute("href", "https://a.example/one")
        expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
        assert chat.answer_text() == "Paris[1]"
        chat.reload()
    chat.record().release()
    chat.wait_state("done")
    expect(link).to_have_attribute("href", "https://a.example/one")
    expect(chat.answer.locator(".step")).to_have_count(0)
    number = chat.text.get_by_role("link", name="[1]", exact=True)
    expect(number).to_have_attribute("href", "https://a.example/one")
    chat.reload()
    expect(number).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(below.locator(".picture")).to_have_text("[Picture (PNG, 9 B)]")
    expect(link).to_have_attribute("href", "https://a.example/one")
    assert "iVBOR" not in chat.page.content()
