"""Pictures of answers: shown once they are kept, never as base64, never from elsewhere."""

from __future__ import annotations

import re

from playwright.sync_api import Request, expect

from tests.browser.chat import Chat
from tests.support.halt_server import new_id

IS_LOADED = "image => image.complete && image.naturalWidth"
ADDRESS = re.compile(r"/files/([0-9a-f]{64})$")
INCOMPLETE = re.compile(r"^\s*Here it is:\s+\[Picture \(PNG, \d+ kB, incomplete\)\]\s*$")
COUNT_BASE64 = """() => {
  window.seen = 0;
  new MutationObserver(() => { if (/iVBORw0KGgo/.test(document.body.textContent)) seen += 1; })
    .observe(document.querySelector('#messages'), { childList: true, subtree: true });
}"""


def expect_picture(chat: Chat, alt: str, side: int) -> str:
    """The answer shows one picture; returns its hash."""
    image = chat.answer.locator("img")
    expect(image).to_have_count(1)
    expect(image).to_have_attribute("alt", alt)
    expect(image).to_have_attribute("width", str(side))
    image.scroll_into_view_if_needed()
    chat.page.wait_for_function(
        f"() => ({IS_LOADED})(document.querySelector('.answer img')) === {side}"
    )
    match = ADDRESS.search(image.get_attribute("src") or "")
    assert match
    return match[1]


def test_picture_in_the_text_is_shown_and_stays(chat: Chat) -> None:
    """A data: URL in the text becomes a picture at the end, on a reload too. The page never has its
    data; the next request has a word, and the copied text the label."""
    chat.page.evaluate(COUNT_BASE64)
    chat.ask("draws?side=60&gap_ms=1")
    chat.wait_state("done")
    file_hash = expect_picture(chat, "a square", 60)
    assert chat.page.evaluate("seen") == 0
    expect(chat.text).to_have_text(re.compile(r"^\s*Here it is:\s+Do you like it\?\s*$"))
    source = chat.answer.locator("template.source")
    assert source.evaluate("template => template.content.textContent") == (
        "Here it is:\n\n[Picture: a square]\n\nDo you like it?"
    )
    expect(chat.answer.locator("[id^=pictures-]")).to_have_count(0)
    chat.reload()
    assert expect_picture(chat, "a square", 60) == file_hash
    assert "iVBORw" not in chat.page.content()
    chat.ask("count?n=2", f"and {new_id()}")
    chat.wait_state("done")
    (answer,) = [m["content"] for m in chat.record().body["messages"] if m["role"] == "assistant"]
    assert answer == "Here it is:\n\n[picture]\n\nDo you like it?"


def test_picture_beside_the_text_is_shown_below_it(chat: Chat) -> None:
    """A picture of a delta's `images` is a label while the answer runs, then a picture."""
    chat.ask("draws_beside?side=50&seconds=inf")
    label = chat.page.locator(".below .picture")
    expect(label).to_have_text("[Picture (PNG, 8 kB)]")
    chat.record().release()
    chat.wait_state("done")
    file_hash = expect_picture(chat, "Picture (PNG, 8 kB)", 50)
    expect(chat.text).to_have_text("Here you are.")
    chat.reload()
    assert expect_picture(chat, "Picture (PNG, 8 kB)", 50) == file_hash


def test_stop_in_a_picture_leaves_a_label(chat: Chat) -> None:
    """A Stop in the middle of a picture's data leaves a line that says so, and no base64."""
    chat.ask("draws?side=200&until=80000&size=4000")
    expect(chat.page.locator(".tail")).to_contain_text("[Picture (PNG,")
    chat.stop.click()
    chat.wait_state("stopped")
    expect(chat.text).to_have_text(INCOMPLETE)
    assert "iVBORw" not in chat.page.content()
    chat.reload()
    expect(chat.text).to_have_text(INCOMPLETE)
    expect(chat.answer.locator("img")).to_have_count(0)
    assert "iVBORw" not in chat.page.content()


def test_continue_after_a_stop_in_a_picture(chat: Chat) -> None:
    """New text follows the label and does not join the data; the request has no base64."""
    chat.ask("draws?side=200&until=80000&size=4000")
    expect(chat.page.locator(".tail")).to_contain_text("[Picture (PNG,")
    chat.stop.click()
    chat.page.locator(".continue").click()
    # The fake repeats the request that makes it continue.
    continued = re.compile(
        r"incomplete\)\]\s*Your last message broke off.*repeat nothing else\.\s*$", re.S
    )
    for _ in range(2):
        chat.wait_state("done")
        expect(chat.text).to_have_text(continued)
        assert "iVBORw" not in chat.page.content()
        chat.reload()
    request = next(r for r in chat.fake.requests if "Your last message broke off" in str(r.body))
    assert "iVBORw" not in str(request.body)


def test_edited_answer_keeps_its_picture(chat: Chat) -> None:
    """A label in the editor stands for the picture."""
    chat.ask("draws?side=40")
    chat.wait_state("done")
    file_hash = expect_picture(chat, "a square", 40)
    chat.answer.locator(".edit-answer").click()
    field = chat.page.locator(".rewriter textarea")
    expect(field).to_have_value("Here it is:\n\n[Picture: a square]\n\nDo you like it?")
    field.fill("My text [Picture: a square] here.")
    chat.page.locator(".rewriter").get_by_role("button", name="Save").click()
    expect(chat.answer.locator(".edited")).to_be_visible()
    assert expect_picture(chat, "a square", 40) == file_hash
    expect(chat.text).to_contain_text("My text")


def test_foreign_pictures_are_not_requested(chat: Chat) -> None:
    """A picture of another host, and a file that does not belong to the answer, are words."""
    requested: list[str] = []

    def note(request: Request) -> None:
        requested.append(request.url)

    chat.page.on("request", note)
    foreign = f"/files/{'ab' * 32}"
    chat.ask_for(
        f"![one](https://evil.example/a.png) ![two]({foreign}) ![three]({foreign}/thumbnail) "
        f"![four](//evil.example/x) [five]({foreign})\n\nThe end."
    )
    chat.wait_state("done")
    for _ in range(2):
        expect(chat.answer.locator("img")).to_have_count(0)
        expect(chat.text).to_contain_text("[two]")
        chat.reload()
        expect(chat.text).to_contain_text("The end.")
    assert not [url for url in requested if "evil" in url or "/files/" in url]


def test_picture_that_lies_is_a_line_with_the_reason(chat: Chat) -> None:
    """What says that it is a PNG and is none has its label, and the reason."""
    chat.ask_for(f"![a cat](data:image/png;base64,{'bm90IGEgcGljdHVyZSAh' * 50}) done")
    chat.wait_state("done")
    expect(chat.text).to_contain_text("[Picture (PNG, 750 B): a cat. Not kept: ")
    chat.reload()
    expect(chat.text).to_contain_text("It is no image.] done")
