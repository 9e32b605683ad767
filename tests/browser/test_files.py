"""Files in the composer: picked, pasted and dropped, uploaded, and sent with the message."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Locator, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, PASTE, Chat
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.browser.model_picker import choose, panel, row, wait_offered
from tests.browser.network import Network
from tests.support.files import image, pdf
from tests.support.halt_server import HaltServer, settings
from tests.support.simple_model_server import ModelRequest, serving

UPLOADS = "**/files?*"

#: Pastes files, and texts by their types, into a field.
PASTE_FILES = """(field, [files, texts]) => {
  const clipboardData = new DataTransfer();
  for (const [name, type, data] of files) {
    const bytes = Uint8Array.from(atob(data), byte => byte.charCodeAt(0));
    clipboardData.items.add(new File([bytes], name, { type }));
  }
  for (const [type, text] of Object.entries(texts)) clipboardData.setData(type, text);
  const event = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true });
  field.dispatchEvent(event);
  return event.defaultPrevented;
}"""


def payload(name: str, data: bytes, kind: str = "text/plain") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


HARBOUR = payload("harbour.png", image(400, 300), "image/png")
CONTRACT = payload("contract.pdf", pdf(["A contract."] * 3), "application/pdf")
NOTES = payload("notes.txt", b"Some notes.")
PROGRAM = payload("program.bin", bytes(range(256)) * 9, "application/octet-stream")


def cards(chat: Chat, within: Locator | None = None) -> Locator:
    """The cards above the message field, or of an edited prompt."""
    files = (within or chat.page.locator("#composer")).get_by_role("list", name="Attached files")
    return files.get_by_role("listitem")


def pick(chat: Chat, *files: FilePayload, within: Locator | None = None) -> None:
    """Choose files by the button."""
    place = within or chat.page.locator("#composer")
    with chat.page.expect_file_chooser() as chooser:
        place.get_by_role("button", name="Attach files").click()
    chooser.value.set_files(files)


def attach(chat: Chat, *files: FilePayload) -> None:
    """Choose files, and wait until they are there."""
    pick(chat, *files)
    for file in files:
        wait_there(chat, file["name"])


def wait_there(chat: Chat, name: str) -> None:
    """Wait until a file is uploaded."""
    card = cards(chat).filter(has=chat.page.get_by_role("button", name=f"Remove {name}"))
    expect(card).to_have_count(1)
    expect(card.get_by_role("progressbar")).to_have_count(0)


def paste(chat: Chat, *files: FilePayload, **texts: str) -> bool:
    """Paste files and texts; returns whether the page has taken them."""
    named = [[f["name"], f["mimeType"], base64.b64encode(f["buffer"]).decode()] for f in files]
    types = {kind.replace("_", "/"): text for kind, text in texts.items()}
    is_taken: bool = chat.prompt.evaluate(PASTE_FILES, [named, types])
    return is_taken


def sent_files(chat: Chat) -> Locator:
    """The files of the last prompt."""
    return chat.page.locator(".exchange:last-child .prompt .files li")


def sent_parts(chat: Chat) -> Any:
    """The content of the last message that the model has got."""
    return chat.record().body["messages"][-1]["content"]


# --- attaching ------------------------------------------------------------------------------------


def test_picked_files_are_shown_and_sent(chat: Chat) -> None:
    """Each file has a card with what the server says of it; the message takes them all along."""
    attach(chat, HARBOUR, CONTRACT, NOTES)
    expect(cards(chat).first.get_by_role("img", name="harbour.png")).to_be_visible()
    expect(cards(chat)).to_contain_text(
        ["", "contract.pdf3 pages · about", "notes.txt11 characters · about"]
    )
    chat.submit("What is this?")
    expect(cards(chat)).to_have_count(0)
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(3)
    record = chat.fake.wait_request(lambda record: "What is this?" in str(record.body))
    picture, text = record.body["messages"][-1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "# contract.pdf" in text["text"]
    assert "# notes.txt\n\nSome notes." in text["text"]
    chat.reload()
    expect(sent_files(chat)).to_have_count(3)
    expect(cards(chat)).to_have_count(0)


def test_files_are_sent_without_text(chat: Chat) -> None:
    """A message may have files alone. Its prompt can be edited."""
    attach(chat, NOTES)
    chat.send.click()
    chat.wait_state("done")
    expect(sent_files(chat)).to_contain_text(["notes.txt"])
    chat.page.locator(".prompt").hover()
    chat.page.get_by_role("button", name="Edit message").click()
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    expect(editor).to_have_value("")
    expect(cards(chat, chat.page.locator(".editor"))).to_contain_text(["notes.txt"])
    editor.press("Escape")
    expect(sent_files(chat)).to_be_visible()


def test_pasted_files_are_attached(chat: Chat) -> None:
    """Pasted pictures get names of their own. The text of a document is pasted as text."""
    picture = payload("image.png", image(20, 20), "image/png")
    assert paste(chat, picture)
    wait_there(chat, "image.png")
    assert paste(chat, payload("image.png", image(30, 30), "image/png"))
    wait_there(chat, "image 2.png")
    assert not paste(chat, picture, text_plain="the text", text_html="<b>the text</b>")
    expect(cards(chat)).to_have_count(2)


def test_picture_that_the_browser_cannot_show_is_that_of_the_server(chat: Chat) -> None:
    """A browser may say only after the upload that it does not show this kind, as for a HEIC."""
    attach(chat, HARBOUR)
    picture = cards(chat).get_by_role("img", name="harbour.png")
    expect(picture).to_have_attribute("src", re.compile("^blob:"))
    picture.dispatch_event("error")
    expect(picture).to_have_attribute("src", re.compile("/thumbnail$"))
    picture.dispatch_event("error")
    expect(picture).to_have_count(0)
    expect(cards(chat)).to_contain_text(["harbour.png400 x 300"])


@pytest.mark.parametrize("width", [390, 1000])
def test_all_that_is_said_of_a_file_can_be_read(chat: Chat, width: int) -> None:
    """A card cuts the name of its file, never the part that is used and its tokens."""
    chat.page.set_viewport_size({"width": width, "height": 800})
    attach(chat, payload("long name " * 9 + ".txt", b"word " * 100_000), NOTES)
    is_cut = "small => small.scrollWidth > small.clientWidth"
    said = "the first 120,000 of 500,000 characters · about 30,000 tokens"
    in_composer = cards(chat).first.get_by_text(said, exact=True)
    assert not in_composer.evaluate(is_cut)
    chat.ask("count?n=2")
    in_message = sent_files(chat).first.get_by_text(said, exact=True)
    assert not in_message.evaluate(is_cut)


def test_same_file_is_attached_once(chat: Chat) -> None:
    """The second card of the same content goes."""
    attach(chat, NOTES)
    pick(chat, payload("copy.txt", NOTES["buffer"]))
    expect(chat.page.locator("#notice")).to_have_text("copy.txt is attached already.")
    expect(cards(chat)).to_have_count(1)


def test_files_dropped_anywhere_are_attached(chat: Chat, tmp_path: Path) -> None:
    """Files that are dragged over the page: the page says that they can be dropped, and takes them."""
    (tmp_path / "notes.txt").write_bytes(b"Some notes.")
    veil = chat.page.get_by_text("Drop to attach")
    devtools = chat.context.new_cdp_session(chat.page)

    def drag(kind: str, x: int = 300, y: int = 200) -> None:
        data = {"items": [], "files": [f"{tmp_path}/notes.txt"], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    files = chat.page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['x'], 'x'));
          return data;
        }"""
    )
    for gone in ("dragleave", "pointermove"):  # some browsers tell of no end
        chat.page.dispatch_event("main", "dragenter", {"dataTransfer": files})
        expect(veil).to_be_visible()
        chat.page.dispatch_event("main", gone, {"dataTransfer": files, "bubbles": True})
        expect(veil).to_be_hidden()
    drag("dragEnter")
    drag("dragOver")
    expect(veil).to_be_visible()
    drag("drop")
    expect(veil).to_be_hidden()
    wait_there(chat, "notes.txt")
    assert chat.page.url.startswith(chat.server.url)


def test_idea_of_a_document_opens_the_choice_of_files(chat: Chat) -> None:
    """The idea writes the message's beginning, and takes a file."""
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("button", name="Summarise a PDF").click()
    chooser.value.set_files([CONTRACT])
    wait_there(chat, "contract.pdf")
    expect(chat.prompt).to_have_value(re.compile("Summarise this document"))


# --- uploads --------------------------------------------------------------------------------------


def test_progress_is_shown_and_remove_ends_an_upload(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """A card shows how much is sent. Its removal ends the upload, and the focus stays near."""
    chat = open_chat(network, shared_fake)
    attach(chat, NOTES)
    network.hold_bodies("POST /files")
    pick(chat, payload("large.txt", b"words " * 3_000_000))
    network.wait_held()
    bar = cards(chat).last.get_by_role("progressbar", name="Uploading large.txt")
    expect(bar).to_be_visible()
    chat.page.wait_for_function("() => document.querySelector('#attached progress').value > 0")
    assert bar.evaluate("bar => bar.value") < 1
    expect(cards(chat).last).to_contain_text("Uploading…")
    cards(chat).last.get_by_role("button", name="Remove large.txt").press("Enter")
    expect(cards(chat)).to_have_count(1)
    expect(chat.page.get_by_role("button", name="Remove notes.txt")).to_be_focused()
    network.release()
    chat.page.keyboard.press("Enter")
    expect(cards(chat)).to_have_count(0)
    expect(chat.prompt).to_be_focused()


def test_three_files_are_uploaded_at_a_time(chat: Chat) -> None:
    """The others wait; all arrive."""
    held = HeldRequests(chat, UPLOADS)
    pick(chat, *(payload(f"{n}.txt", b"%d" % n) for n in range(5)))
    held.wait()
    expect(cards(chat).filter(has_text="Waiting…")).to_have_count(2)
    held.release()
    for n in range(5):
        wait_there(chat, f"{n}.txt")


def test_file_that_is_not_taken_says_why_and_holds_the_message(chat: Chat) -> None:
    """The server's words stand on the card. Send says so too; without the file it sends."""
    chat.allowed_problems = LOAD_ERRORS
    pick(chat, PROGRAM, NOTES)
    expect(cards(chat).first).to_contain_text("Halt reads images")
    expect(cards(chat).first).not_to_contain_text("program.bin: ")
    wait_there(chat, "notes.txt")
    chat.submit("/fake count?n=2 files")
    expect(chat.page.locator("#notice")).to_have_text(
        "program.bin was not attached. Remove it, then send the message."
    )
    expect(chat.page.get_by_role("button", name="Remove program.bin")).to_be_focused()
    assert chat.exchange_count() == 0
    chat.page.keyboard.press("Enter")
    chat.prompt.press("Enter")
    chat.wait_state("done")
    expect(sent_files(chat)).to_contain_text(["notes.txt"])


def test_upload_that_did_not_arrive_is_tried_again(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """Without a network the card says so, and takes the file later."""
    chat = open_chat(network, shared_fake)
    chat.allowed_problems = LOAD_ERRORS
    attach(chat, HARBOUR)
    network.disconnect()
    pick(chat, NOTES)
    expect(cards(chat).last).to_contain_text("The server could not be reached.")
    network.reconnect()
    cards(chat).last.get_by_role("button", name="Try again").click()
    wait_there(chat, "notes.txt")
    expect(cards(chat).last).to_contain_text("11 characters")


@pytest.fixture
def small(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt that takes few and small files."""
    server = HaltServer(settings(shared_fake, HALT_MAX_FILES=2, HALT_MAX_FILE_BYTES=1_000_000))
    yield server
    server.close()


def test_limits_are_kept_before_an_upload(
    open_chat: OpenChat, small: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Files that are too large or too many are refused with words, and not sent."""
    chat = open_chat(small, shared_fake)
    uploads: list[str] = []
    chat.page.on("request", lambda r: uploads.append(r.url) if "/files?" in r.url else None)
    pick(chat, payload("large.txt", b"x" * 1_000_001))
    expect(cards(chat)).to_contain_text(["The file is larger than 1 MB."])
    assert uploads == []
    pick(chat, NOTES, CONTRACT, HARBOUR)
    expect(chat.page.locator("#notice")).to_have_text(
        "A message has at most 2 files. 2 files were not attached."
    )
    wait_there(chat, "notes.txt")
    expect(cards(chat)).to_have_count(2)
    assert len(uploads) == 1


# --- sending --------------------------------------------------------------------------------------


def test_message_waits_for_its_files_and_esc_ends_the_wait(chat: Chat) -> None:
    """Send waits for uploads, with Stop in its place; Esc and Stop keep everything."""
    held = HeldRequests(chat, UPLOADS)
    pick(chat, HARBOUR)
    chat.ask("count?n=2")
    held.wait()
    waiting = chat.page.get_by_text("Waiting for the files…")
    expect(waiting).to_be_visible()
    expect(chat.send).to_be_hidden()
    chat.page.keyboard.press("Escape")
    expect(waiting).to_be_hidden()
    expect(chat.send).to_be_visible()
    chat.prompt.press("Enter")
    expect(waiting).to_be_visible()
    chat.stop.click()
    expect(waiting).to_be_hidden()
    expect(chat.prompt).to_be_focused()
    expect(chat.prompt).to_have_value(chat.last_prompt)
    expect(cards(chat)).to_have_count(1)
    chat.prompt.press("Enter")
    held.release()
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(1)
    assert sent_parts(chat)[0]["type"] == "image_url"


def test_refused_message_comes_back_with_its_files(chat: Chat) -> None:
    """A message that the server does not take comes back with its files, and can be sent."""
    chat.allowed_problems = LOAD_ERRORS
    attach(chat, HARBOUR, NOTES)
    held = HeldRequests(chat, "**/messages")
    prompt = chat.ask("count?n=2")
    held.wait()
    expect(cards(chat)).to_have_count(0)
    held.respond(503, "away")
    expect(chat.prompt).to_have_value(prompt)
    expect(cards(chat)).to_have_count(2)
    expect(cards(chat).get_by_role("img", name="harbour.png")).to_be_visible()
    chat.prompt.press("Enter")
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(2)


def test_files_come_back_when_an_answer_is_stopped_before_its_text(chat: Chat) -> None:
    """The prompt of a withdrawn answer is in the field again, with its files."""
    attach(chat, HARBOUR)
    prompt = chat.ask("stall?n=0")
    chat.record()
    chat.wait_state("running")
    chat.stop.click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    expect(chat.prompt).to_have_value(prompt)
    expect(cards(chat).get_by_role("img", name="harbour.png")).to_be_visible()


TEXT_ONLY, SEEING = "reads-text", "sees"


def _lists(request: ModelRequest) -> None:
    models = [
        {"id": name, "architecture": {"input_modalities": inputs}}
        for name, inputs in ((TEXT_ONLY, ["text"]), (SEEING, ["text", "image"]))
    ]
    request.reply({"object": "list", "data": models})


def test_model_that_reads_no_images_leaves_the_message_and_offers_others(
    open_chat: OpenChat, shared_fake: FakeOpenAI
) -> None:
    """The message stays with its image, and the picker of models is at hand."""
    with serving(_lists, lambda request: request.stream()) as url:
        server = HaltServer(settings(url, HALT_MODEL=TEXT_ONLY))
        try:
            chat = open_chat(server, shared_fake)
            chat.allowed_problems = LOAD_ERRORS
            wait_offered(chat, SEEING)
            attach(chat, HARBOUR)
            chat.submit("What is this?")
            notice = chat.page.locator("#notice")
            expect(notice).to_contain_text("This model does not read images.")
            expect(chat.prompt).to_have_value("What is this?")
            expect(cards(chat)).to_have_count(1)
            assert chat.exchange_count() == 0
            notice.get_by_role("button", name="Choose a model").click()
            panel(chat).get_by_role("option", name=SEEING).click()
            chat.prompt.press("Enter")
            chat.wait_state("done")
            expect(sent_files(chat)).to_have_count(1)
        finally:
            server.close()


def test_refusal_of_an_image_offers_other_models(chat: Chat) -> None:
    """The prompt stays with its image; another model, chosen at the note, answers it."""
    wait_offered(chat, "vision")
    attach(chat, HARBOUR)
    choose(chat, "no_images")
    chat.submit("What is this?")
    chat.wait_state("error")
    note = chat.answer.locator(".note")
    expect(note).to_contain_text("“image input is not supported")
    expect(note).to_contain_text("This model reads no images. Choose another model.")
    note.get_by_role("button", name="Choose a model").click()
    row(chat, "vision").click()
    chat.button("Try again").click()
    chat.wait_text("1 image: image/png 400x300. What is this?")
    expect(sent_files(chat)).to_have_count(1)


# --- drafts, queue, versions ----------------------------------------------------------------------


def test_draft_keeps_its_files(chat: Chat, tab: Callable[[], Chat]) -> None:
    """Files of an unsent message are there after a reload and in another tab, until it is sent."""
    attach(chat, HARBOUR, CONTRACT)
    chat.prompt.fill("/fake count?n=2 draft")
    chat.reload()
    expect(cards(chat)).to_contain_text(["", "contract.pdf3 pages"])
    expect(cards(chat).get_by_role("img", name="harbour.png")).to_be_visible()
    other = tab()
    expect(cards(other)).to_have_count(2)
    cards(other).last.get_by_role("button", name="Remove").click()
    expect(cards(chat)).to_have_count(1)
    expect(chat.prompt).to_have_value("/fake count?n=2 draft")
    chat.prompt.press("Enter")
    chat.wait_state("done")
    expect(cards(other)).to_have_count(0)
    expect(other.prompt).to_have_value("")


def test_upload_is_not_ended_by_another_tab(chat: Chat, tab: Callable[[], Chat]) -> None:
    """A tab that uploads keeps its files when the draft changes elsewhere."""
    other = tab()
    held = HeldRequests(chat, UPLOADS)
    pick(chat, NOTES)
    held.wait()
    other.prompt.fill("written elsewhere")
    other.page.wait_for_function("() => localStorage.getItem('halt.draft.new')")
    held.release()
    wait_there(chat, "notes.txt")


def test_queued_messages_have_their_files(chat: Chat) -> None:
    """A message that waits for an answer keeps its files, also over a reload."""
    chat.ask("stall?n=3&rest=2")
    chat.wait_text("0 1 2")
    record = chat.record()
    attach(chat, HARBOUR)
    prompt = "/fake count?n=4 queued"
    chat.submit(prompt)
    queued = chat.page.locator("#queue li")
    expect(queued).to_contain_text([f"{prompt} harbour.png"])
    expect(cards(chat)).to_have_count(0)
    chat.reload()
    expect(queued).to_contain_text(["harbour.png"])
    record.release()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(1)
    chat.last_prompt = prompt
    assert sent_parts(chat)[0]["type"] == "image_url"


def test_files_of_a_prompt_are_edited(chat: Chat) -> None:
    """The form of a prompt has its files: one is removed, another is added, the rest stays."""
    attach(chat, HARBOUR, NOTES)
    chat.ask("count?n=2")
    chat.page.keyboard.type("x")
    chat.prompt.fill("")
    expect(sent_files(chat)).to_have_count(2)
    chat.page.locator(".prompt").hover()
    chat.page.get_by_role("button", name="Edit message").click()
    form = chat.page.locator(".editor")
    expect(cards(chat, form)).to_have_count(2)
    form.get_by_role("button", name="Remove notes.txt").click()
    pick(chat, CONTRACT, within=form)
    expect(cards(chat, form)).to_contain_text(["", "contract.pdf3 pages"])
    expect(cards(chat)).to_have_count(0)
    form.get_by_role("button", name="Send").click()
    chat.wait_state("done")
    expect(sent_files(chat)).to_contain_text(["", "contract.pdf"])
    expect(sent_files(chat)).to_have_count(2)
    previous = chat.page.get_by_role("button", name="Previous version")
    previous.first.click()
    expect(sent_files(chat)).to_contain_text(["", "notes.txt"])


def test_files_are_attached_on_a_phone(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """By touch: the button, the removal and Send are large enough; a camera is offered."""
    chat = open_chat(
        halt, shared_fake, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    assert "image/*" in (chat.page.locator("#picker").get_attribute("accept") or "")
    attach(chat, HARBOUR, CONTRACT)
    for name in ("Attach files", "Remove harbour.png", "Remove contract.pdf", "Send"):
        box = chat.page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
    chat.page.get_by_role("button", name="Remove harbour.png").tap()
    expect(cards(chat)).to_have_count(1)
    chat.send.tap()
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(1)


def test_file_that_is_gone_is_named(chat: Chat) -> None:
    """A draft may have a file that the server has removed: the message stays, and its card says so."""
    chat.allowed_problems = LOAD_ERRORS
    attach(chat, NOTES)
    gone = {"id": "0" * 64, "name": "gone.txt", "kind": "text", "label": "TXT", "detail": "1 page"}
    chat.page.wait_for_function("() => localStorage.getItem('halt.draft.new')")
    chat.page.evaluate(
        """gone => {
          const draft = JSON.parse(localStorage.getItem('halt.draft.new'));
          draft.files.push(gone);
          localStorage.setItem('halt.draft.new', JSON.stringify(draft));
        }""",
        gone,
    )
    chat.reload()
    expect(cards(chat)).to_contain_text(["notes.txt", "gone.txt"])
    chat.submit("/fake count?n=2 gone")
    expect(chat.page.locator("#notice")).to_contain_text("no longer here")
    expect(cards(chat)).to_contain_text(["11 characters", "It is no longer here."])
    cards(chat).last.get_by_role("button", name="Remove").click()
    chat.prompt.press("Enter")
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(1)


def test_message_takes_along_a_file_that_was_pasted_just_before(chat: Chat) -> None:
    """Send waits also while the part of the page that uploads is loaded."""
    held = HeldRequests(chat, "**/on_demand/attachments.js")
    paste(chat, HARBOUR)
    held.wait()
    chat.ask("count?n=2")
    expect(chat.prompt).to_have_value(chat.last_prompt)
    held.release()
    chat.wait_state("done")
    expect(sent_files(chat)).to_have_count(1)


def test_message_that_waits_for_its_files_is_queued_when_an_answer_runs(chat: Chat) -> None:
    """During an answer, a message is queued once its files are there. Esc still stops the answer."""
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    held = HeldRequests(chat, UPLOADS)
    pick(chat, NOTES)
    held.wait()
    chat.submit("queued with a file")
    expect(chat.page.get_by_text("Waiting for the files…")).to_be_visible()
    expect(chat.page.locator("#queue")).to_be_hidden()
    held.release()
    expect(chat.page.locator("#queue li")).to_contain_text(["queued with a file notes.txt"])
    held = HeldRequests(chat, UPLOADS)
    pick(chat, HARBOUR)
    held.wait()
    chat.submit("stopped")
    chat.page.keyboard.press("Escape")
    chat.wait_state("stopped")
    expect(chat.page.get_by_text("Waiting for the files…")).to_be_hidden()
    expect(chat.prompt).to_have_value("stopped")
    expect(cards(chat)).to_have_count(1)
    held.release()


def test_message_for_a_changed_conversation_is_queued_with_its_files(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """Another tab has added messages: the message waits in the queue, with its files."""
    chat.allowed_problems = LOAD_ERRORS
    chat.ask("count?n=2")
    chat.wait_state("done")
    attach(chat, NOTES)
    held = HeldRequests(chat, "**/messages")
    chat.submit("from the first tab")
    held.wait()
    other = tab()
    other.page.goto(chat.page.url)
    other.ask("count?n=3")
    other.wait_state("done")
    held.release()
    expect(chat.page.locator("#queue li")).to_contain_text(["from the first tab notes.txt"])


def test_long_text_is_pasted_where_no_files_are_taken(
    open_chat: OpenChat, shared_fake: FakeOpenAI
) -> None:
    """Without files there is no button for them; long texts are attached all the same."""
    server = HaltServer(settings(shared_fake, HALT_MAX_FILES=0))
    try:
        chat = open_chat(server, shared_fake)
        expect(chat.page.get_by_role("button", name="Attach files")).to_have_count(0)
        expect(chat.page.get_by_role("button", name="Draft a message")).to_be_visible()
        assert not paste(chat, HARBOUR)
        chat.prompt.evaluate(PASTE, "word " * 5_000)
        texts = chat.page.get_by_role("list", name="Pasted texts").get_by_role("listitem")
        expect(texts).to_have_count(1)
        chat.reload()
        expect(texts).to_have_count(1)
    finally:
        server.close()
