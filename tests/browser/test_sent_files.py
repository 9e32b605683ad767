"""The files of a sent message on the page: pictures that open larger, and cards that download."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat import Chat, send_files
from tests.support.files import image, pdf


@pytest.fixture
def sent(chat: Chat) -> Chat:
    """A message with a picture and a document."""
    given = {"A view <of> “it”.png": image(1600, 1200), "report.pdf": pdf(["One", "Two"])}
    path = send_files(chat.context, chat.server.url, "Look at these", given)
    chat.page.goto(chat.server.url + path)
    chat.wait_state("done")
    return chat


@pytest.mark.parametrize("way", ["a click", "the keyboard"])
def test_picture_opens_whole_in_its_own_tab(sent: Chat, way: str) -> None:
    """By a click or by Enter. Its alternative text is its name."""
    picture = sent.page.get_by_role("img", name="A view <of> “it”.png", exact=True)
    expect(picture).to_be_visible()
    assert picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.width])") == [320, 211]
    link = sent.page.get_by_role("link", name="A view <of> “it”.png", exact=True)
    with sent.page.context.expect_page() as opened:
        if way == "a click":
            picture.click()
        else:
            link.press("Enter")
    tab = opened.value
    whole = tab.locator("img")
    expect(whole).to_be_visible()
    assert whole.evaluate("e => e.decode().then(() => e.naturalWidth)") == 1600
    assert tab.evaluate("opener") is None
    assert tab.evaluate("origin") == "null"  # the tab has none of the page's rights
    tab.close()


def test_card_downloads_its_file_under_its_name(sent: Chat, tmp_path: Path) -> None:
    """The card says what the file is, and how much there is of it."""
    card = sent.page.get_by_role("link", name="report.pdf")
    expect(card).to_contain_text("PDF")
    expect(card).to_contain_text("2 pages")
    with sent.page.expect_download() as started:
        card.press("Enter")
    assert started.value.suggested_filename == "report.pdf"
    started.value.save_as(tmp_path / "saved.pdf")
    assert (tmp_path / "saved.pdf").read_bytes() == pdf(["One", "Two"])


def test_styles_of_files_come_with_the_first_message_of_a_tab(chat: Chat) -> None:
    """An empty chat has not loaded them; then each picture has its place before it is loaded."""
    expect(chat.page.locator("body.empty")).to_be_attached()
    path = send_files(chat.context, chat.server.url, "Look", {"a.png": image(1600, 1200)})
    chat.submit("Hello")
    chat.wait_state("done")
    chat.page.evaluate(
        """path => fetch(path).then(answer => answer.text()).then(text => {
          const page = new DOMParser().parseFromString(text, 'text/html');
          document.querySelector('#messages').append(page.querySelector('.exchange'));
        })""",
        path,
    )
    files = chat.page.locator(".files")
    expect(files).to_have_css("display", "flex")
    expect(files.locator("img")).to_have_css("max-width", "100%")
