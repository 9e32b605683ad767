"""The list of conversations: its entries, menus, search, settings and files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import ViewportSize, expect

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.browser.chat import LOAD_ERRORS, numbers, send_files
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.browser.list_tab import PHONE, WIDE, ListTab
from tests.support.export_files import exported_conversation
from tests.support.files import image, pdf
from tests.support.halt_server import StartHalt, request_record

# --- the list -------------------------------------------------------------------------------------


def test_list_shows_a_new_conversation_open_and_running(list_tab: ListTab) -> None:
    """A new conversation is listed at once as open, and as running until its answer is done."""
    expect(list_tab.page.locator("#listed .none:not(.of-archive)")).to_be_visible()
    prompt_text = list_tab.chat.ask("count?n=40&hold=10", "x")
    expect(list_tab.items).to_have_count(1)
    expect(list_tab.items.locator("[aria-current] .title")).to_have_text(prompt_text)
    expect(list_tab.items.locator(".live")).to_be_visible()
    expect(list_tab.page).to_have_title(f"{prompt_text} · Halt")
    list_tab.chat.release()
    list_tab.chat.wait_state("done")
    expect(list_tab.items.locator(".live")).to_have_count(0)
    expect(list_tab.page.locator("#listed .none:not(.of-archive)")).to_be_hidden()


def test_answers_of_two_conversations_run_at_once(list_tab: ListTab) -> None:
    """An answer keeps running when its page is left; the list shows both, and both complete."""
    first = list_tab.chat.ask("count?n=60&hold=10", "first")
    list_tab.chat.wait_text("8 9")
    list_tab.new_chat()
    second = list_tab.chat.ask("count?n=60&hold=10", "second")
    expect(list_tab.items.locator(".live")).to_have_count(2)
    request_record(list_tab.chat.fake, first).release()
    expect(list_tab.items.locator(".live")).to_have_count(1)
    request_record(list_tab.chat.fake, second).release()
    list_tab.open(first)
    list_tab.chat.wait_state("done")
    list_tab.chat.wait_text("58 59")
    assert list_tab.chat.answer_text() == numbers(60)
    list_tab.open(second)
    list_tab.chat.wait_state("done")
    list_tab.chat.wait_text("58 59")
    assert list_tab.chat.answer_text() == numbers(60)
    expect(list_tab.items.locator(".live")).to_have_count(0)
    assert list_tab.titles() == [second, first]


def test_back_and_forward_show_conversation_title_and_list_entry(list_tab: ListTab) -> None:
    """Back and Forward show the conversation of the address, its title and its list entry."""
    list_tab.keep(
        exported_conversation("Hi", "One is here", title="One"),
        exported_conversation("Hi", "Two is here", title="Two"),
    )
    list_tab.open("One")
    list_tab.chat.wait_text("One is here")
    first_url = list_tab.page.url
    expect(list_tab.page).to_have_title("One · Halt")
    list_tab.open("Two")
    list_tab.chat.wait_text("Two is here")
    list_tab.page.go_back()
    list_tab.chat.wait_text("One is here")
    assert list_tab.page.url == first_url
    expect(list_tab.item("One").locator("[aria-current]")).to_be_visible()
    list_tab.page.go_forward()
    list_tab.chat.wait_text("Two is here")
    expect(list_tab.item("Two").locator("[aria-current]")).to_be_visible()


def test_list_of_150_loads_more_on_scrolling(list_tab: ListTab) -> None:
    """Scrolling loads each list entry once and in order; a new conversation then comes first."""
    talks = [
        exported_conversation("Hi", "Ho", title=f"Talk {n}", at=1_760_000_000.0 + n)
        for n in range(150)
    ]
    list_tab.keep(*talks)
    assert list_tab.items.count() < 60
    while list_tab.items.count() < 150:
        item_count = list_tab.items.count()
        list_tab.page.locator("#listed").evaluate("box => box.scrollTo(0, box.scrollHeight)")
        expect(list_tab.items.nth(item_count)).to_be_attached()
    wanted = [f"Talk {n}" for n in reversed(range(150))]
    assert list_tab.titles() == wanted
    list_tab.chat.ask("count?n=2", "newest")
    expect(list_tab.items).to_have_count(151)
    expect(list_tab.items.locator(".live")).to_have_count(0)
    assert list_tab.titles() == ["/fake count?n=2 newest", *wanted]


def test_list_follows_another_tab_on_focus(list_tab: ListTab, open_chat: OpenChat) -> None:
    """A deletion in another tab is in the list when this tab gets the focus."""
    list_tab.keep(
        exported_conversation("Hi", "Ho", title="Here"),
        exported_conversation("Hi", "Ho", title="Gone"),
    )
    other_tab = ListTab(open_chat(list_tab.chat.server, list_tab.chat.fake, same=list_tab.chat))
    other_tab.page.set_viewport_size(WIDE)
    other_tab.menu("Gone", "Delete")
    expect(other_tab.items).to_have_count(1)
    list_tab.page.evaluate("dispatchEvent(new Event('focus'))")
    expect(list_tab.items).to_have_count(1)
    assert list_tab.titles() == ["Here"]


def is_completion(record: Record) -> bool:
    """Whether this request is one for an answer or a title."""
    return record.method == "POST"


def test_title_of_the_model_replaces_the_first_words(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The title is the first words at first, and then the model's, in the list and the tab."""
    fake.texts["t"] = "Storms at sea"
    halt = start_halt(fake, HALT_TITLES="model", HALT_MODEL="text?key=t&hold=0")
    list_tab = ListTab(open_chat(halt, fake, viewport=WIDE))
    list_tab.chat.submit("What of storms?")
    expect(list_tab.items.locator(".title")).to_have_text("What of storms?")
    fake.wait_request(is_completion, nth=0).release()
    list_tab.chat.wait_state("done")
    title_request = fake.wait_request(is_completion, nth=1)
    expect(list_tab.items.locator(".title")).to_have_text("What of storms?")
    title_request.release()
    expect(list_tab.items.locator(".title")).to_have_text("Storms at sea")
    expect(list_tab.page).to_have_title("Storms at sea · Halt")


# --- rename, delete, undo -------------------------------------------------------------------------


def test_title_is_renamed_in_place_by_keyboard(list_tab: ListTab) -> None:
    """Enter and leaving the field save a title, Esc does not; a title is text, never markup."""
    list_tab.keep(exported_conversation("Hi", "Ho", title="Before"))
    list_tab.open("Before")
    link = list_tab.items.get_by_role("link")
    link.focus()
    list_tab.page.keyboard.press("Tab")
    list_tab.page.keyboard.press("Enter")
    expect(list_tab.page.get_by_role("button", name="Rename")).to_be_focused()
    list_tab.page.keyboard.press("Enter")
    field = list_tab.page.get_by_role("textbox", name="Title")
    expect(field).to_be_focused()
    list_tab.page.keyboard.type("<b>After</b>")
    list_tab.page.keyboard.press("Enter")
    expect(list_tab.items.locator(".title")).to_have_text("<b>After</b>")
    expect(list_tab.items.get_by_role("link")).to_be_focused()
    expect(list_tab.page).to_have_title("<b>After</b> · Halt")
    list_tab.menu("<b>After</b>", "Rename")
    field.fill("Never")
    field.press("Escape")
    expect(field).to_have_count(0)
    expect(list_tab.items.get_by_role("link")).to_be_focused()
    list_tab.menu("<b>After</b>", "Rename")
    field.fill("By leaving")
    list_tab.chat.prompt.click()
    expect(list_tab.items.locator(".title")).to_have_text("By leaving")


def test_title_is_renamed_while_an_answer_streams(list_tab: ListTab) -> None:
    """A title is saved while text arrives; the page and its answer stay."""
    list_tab.chat.ask("count?n=100000&gap_ms=5", "Before")
    list_tab.chat.wait_state("running")
    list_tab.items.get_by_role("button").focus()
    list_tab.page.keyboard.press("Enter")
    list_tab.page.get_by_role("button", name="Rename").click()
    field = list_tab.page.get_by_role("textbox", name="Title")
    field.fill("After")
    field.press("Enter")
    expect(list_tab.items.locator(".title")).to_have_text("After")
    expect(field).to_have_count(0)
    list_tab.page.keyboard.press("Escape")
    list_tab.chat.wait_state("stopped")


def test_escape_closes_menu_and_search_before_it_stops(list_tab: ListTab) -> None:
    """Esc closes an open menu or search first; the next Esc stops the answer."""
    prompt_text = list_tab.chat.ask("stall", "x")
    list_tab.chat.wait_text("2")
    list_tab.open_menu(prompt_text)
    list_tab.page.keyboard.press("Escape")
    expect(list_tab.page.locator("#item-menu")).to_be_hidden()
    list_tab.search("words")
    list_tab.page.keyboard.press("Escape")
    expect(list_tab.palette).to_have_count(0)
    list_tab.chat.wait_state("running")
    list_tab.page.keyboard.press("Escape")
    list_tab.chat.wait_state("stopped")


def test_undo_restores_a_deleted_conversation_at_its_place(list_tab: ListTab) -> None:
    """Undo puts a deleted conversation back at its place, and opens it if it was open."""
    list_tab.keep(
        *(exported_conversation("Hi", f"{n} is here", title=n) for n in ("One", "Two", "Three"))
    )
    titles_before = list_tab.titles()
    list_tab.menu("Two", "Delete")
    expect(list_tab.item("Two")).to_have_count(0)
    undo = list_tab.toast.get_by_role("button", name="Undo")
    undo.click()
    expect(list_tab.item("Two")).to_be_visible()
    assert list_tab.titles() == titles_before
    list_tab.open("Two")
    list_tab.menu("Two", "Delete")
    expect(list_tab.page.locator(".exchange")).to_have_count(0)
    expect(list_tab.item("Two")).to_have_count(0)
    expect(undo).to_be_visible()
    expect(list_tab.page).to_have_url(f"{list_tab.chat.server.url}/")
    undo.click()
    list_tab.chat.wait_text("Two is here")
    assert list_tab.titles() == titles_before


def test_menu_opened_on_a_loading_page_acts_on_its_entry(list_tab: ListTab) -> None:
    """A menu that opens before the scripts have loaded acts on the entry it belongs to."""
    list_tab.keep(
        *(exported_conversation("Hi", f"{n} is here", title=n) for n in ("One", "Two", "Three"))
    )
    held = HeldRequests(list_tab.chat, "**/js/main.js")
    list_tab.page.reload(wait_until="commit")
    list_tab.open_menu("Two")
    expect(list_tab.entry("Delete")).to_be_visible()
    held.wait()
    held.release()
    list_tab.page.wait_for_load_state()
    list_tab.entry("Delete").click()
    expect(list_tab.item("Two")).to_have_count(0)
    assert sorted(list_tab.titles()) == ["One", "Three"]


def test_delete_stops_a_running_answer_and_undo_restores_it(list_tab: ListTab) -> None:
    """Delete stops the running answer and says so; Undo restores the text written so far."""
    prompt_text = list_tab.chat.ask("stall", "x")
    list_tab.chat.wait_text("2")
    list_tab.menu(prompt_text, "Delete")
    expect(list_tab.toast).to_contain_text("deleted, and its answer stopped")
    expect(list_tab.page).to_have_url(f"{list_tab.chat.server.url}/")
    list_tab.toast.get_by_role("button", name="Undo").click()
    list_tab.chat.wait_text("2")
    list_tab.chat.wait_state("stopped")


# --- header and composer -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desktop", "phone"])
def test_header_and_composer_stay_in_view_when_scrolled(
    list_tab: ListTab, size: ViewportSize
) -> None:
    """Settings, model and Send stay in view in a long conversation; using them scrolls nothing."""
    list_tab.chat.page.set_viewport_size(size)
    list_tab.keep(exported_conversation(*["some words " * 60] * 20, title="Long"))
    place = list_tab.page.locator("#conversations a").get_attribute("href")
    list_tab.page.goto(f"{list_tab.chat.server.url}{place}")
    list_tab.page.evaluate("scrollTo(0, 700)")
    for selector in ("#open-chat-menu", "#open-models", "#send"):
        expect(list_tab.page.locator(selector)).to_be_in_viewport(ratio=1)
    assert list_tab.page.evaluate("scrollY") == 700
    assert list_tab.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    covered = "document.elementFromPoint(innerWidth - 200, 10).closest('body > header') !== null"
    assert list_tab.page.evaluate(covered)


# --- search ---------------------------------------------------------------------------------------


def test_search_hit_opens_at_its_message_and_loads_both_sides(list_tab: ListTab) -> None:
    """A hit opens at its marked message; loading more on both sides moves nothing in view."""
    messages = [f"said {n}" + " and more words of it" * 20 for n in range(600)]
    messages[301] = "Here are **pelicans** <img src=x onerror=alert(1)>."
    list_tab.keep(
        exported_conversation(*messages, title="Long"),
        exported_conversation("Other", "thing", title="Other"),
    )
    list_tab.search("pelic")
    expect(list_tab.hits).to_have_count(1)
    expect(list_tab.hits.locator("mark")).to_have_text("pelicans")
    expect(list_tab.hits).to_contain_text("<img src=x")
    list_tab.hits.click()
    hit = list_tab.page.locator(".answer.found")
    expect(hit).to_contain_text("Here are pelicans")
    expect(hit).to_be_in_viewport()
    assert list_tab.page.evaluate("CSS.highlights.get('found').size") == 1
    for side, edge in (("earlier", "first"), ("later", "last")):
        sentinel = list_tab.page.locator(f".{side}")
        prompts = list_tab.page.locator(".prompt")
        prompt_count = prompts.count()
        prompt_text = getattr(prompts, edge).text_content()
        edge_prompt = list_tab.page.locator(
            ".prompt", has_text=re.compile(f"^{re.escape(str(prompt_text))}$")
        )
        held = HeldRequests(list_tab.chat, "**/exchanges?*")
        sentinel.evaluate(
            "(e, side) => scrollBy(0, e.getBoundingClientRect().top - (side == 'earlier' ? 0 : innerHeight))",
            side,
        )
        held.wait()
        list_tab.chat.frames()  # what is in view gets its real size
        top = edge_prompt.evaluate("e => e.getBoundingClientRect().top")
        held.release()
        expect(prompts.nth(prompt_count)).to_be_attached()
        list_tab.chat.frames()
        assert abs(edge_prompt.evaluate("e => e.getBoundingClientRect().top") - top) < 2


def test_search_hit_in_an_unselected_answer_is_unfolded(list_tab: ListTab) -> None:
    """A hit in an unselected answer unfolds the alternatives and marks the words."""
    compared = exported_conversation("Which?", "A heron", "Thanks", "Welcome", title="Compared")
    alternative = {"id": 9, "parent": 1, "role": "assistant", "content": "A cormorant", "rivals": 1}
    compared["messages"][1] |= {"rivals": 1, "picked": True}
    compared["messages"].append(alternative)
    list_tab.keep(compared)
    list_tab.search("cormorant")
    list_tab.hits.click()
    expect(list_tab.page.get_by_text("A cormorant")).to_be_in_viewport()
    assert list_tab.page.evaluate("CSS.highlights.get('found').size") == 1


def test_search_hit_by_a_name_marks_the_file(list_tab: ListTab) -> None:
    """A prompt is found by the name of its file, also one without text."""
    files = {"plan-of-pelicans.pdf": pdf(["Birds"]), "sky.png": image()}
    for prompt in ("", "Look."):
        send_files(list_tab.page.context, list_tab.chat.server.url, prompt, files)
    hits = list_tab.hits.filter(has_text="You ·")  # the model's answers have the name too
    for number, texts in ((0, 1), (1, 0)):
        list_tab.search("pelicans pdf")
        expect(hits).to_have_count(2)
        expect(hits.nth(number).locator("mark")).to_have_text(["pelicans", "pdf"])
        hits.nth(number).click()
        found = list_tab.page.locator(".prompt.found")
        expect(found.locator(".files")).to_contain_text("plan-of-pelicans.pdf")
        expect(found.locator(".text")).to_have_count(texts)
        list_tab.page.wait_for_function("CSS.highlights.get('found')?.size >= 2")


# --- long conversations ---------------------------------------------------------------------------


def test_long_conversation_loads_upwards_without_a_jump(list_tab: ListTab) -> None:
    """A long conversation opens at its end; loading earlier messages moves nothing in view."""
    list_tab.keep(
        exported_conversation(
            *(f"said {n}" + " and more of it" * 30 for n in range(2000)), title="Long"
        )
    )
    list_tab.open("Long")
    expect(list_tab.chat.answer).to_contain_text("said 1999 ")
    assert list_tab.chat.pixels_below() < 2
    prompts = list_tab.page.locator(".prompt")
    for _ in range(3):
        prompt_count = prompts.count()
        first = prompts.first.text_content() or ""
        edge_prompt = list_tab.page.locator(".prompt", has_text=re.compile(f"^{re.escape(first)}$"))
        list_tab.page.evaluate("scrollTo(0, 300)")
        top = edge_prompt.evaluate("e => e.getBoundingClientRect().top")
        expect(prompts.nth(prompt_count)).to_be_attached()
        list_tab.chat.frames()
        assert abs(edge_prompt.evaluate("e => e.getBoundingClientRect().top") - top) < 2
    assert prompts.count() < 500


def test_prompt_sent_from_a_search_hit_shows_the_end(list_tab: ListTab) -> None:
    """A prompt that is sent from a search hit goes to the end, and the page scrolls there."""
    messages = [f"said {n}" + " and more words of it" * 20 for n in range(400)]
    messages[100] = "A pelican"
    list_tab.keep(exported_conversation(*messages, title="Long"))
    list_tab.search("pelican")
    list_tab.hits.click()
    expect(list_tab.page.locator(".prompt.found")).to_be_in_viewport()
    list_tab.chat.ask("count?n=30&gap_ms=20", "on")
    expect(list_tab.page).not_to_have_url(re.compile("at="))
    list_tab.chat.wait_state("done")
    list_tab.chat.wait_text("28 29")
    assert list_tab.chat.answer_text() == numbers(30)
    expect(list_tab.page.locator(".exchange").nth(-2)).to_contain_text("said 399 ")
    assert list_tab.chat.pixels_below() < 40


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_kept_and_sent(list_tab: ListTab) -> None:
    """Settings, also of a new conversation, are in the request, the panel and after a reload."""
    list_tab.chat.allowed_problems = LOAD_ERRORS
    panel = list_tab.chat.open_settings()
    expect(panel.get_by_label("Temperature")).to_have_attribute("placeholder", "Model default")
    panel.get_by_label("Model", exact=True).select_option("count")
    panel.get_by_label("System prompt", exact=True).fill("<b>Be short.</b>")
    panel.get_by_label("Temperature").fill("0.5")
    panel.get_by_label("Max tokens").fill("50")
    panel.get_by_role("button", name="Save", exact=True).click()
    expect(panel).to_be_hidden()
    expect(list_tab.page.get_by_label("Model", exact=True)).to_have_value("count")
    list_tab.page.reload()
    chip = list_tab.page.get_by_role("button", name="System prompt", exact=True)
    expect(chip).to_have_attribute("title", "<b>Be short.</b>")
    list_tab.chat.ask("count?n=3")
    list_tab.chat.wait_state("done")
    body = list_tab.chat.record().body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("count", 0.5, 50)
    assert body["messages"][0] == {"role": "system", "content": "<b>Be short.</b>"}
    list_tab.chat.open_settings()
    expect(panel.get_by_label("Temperature")).to_have_value("0.5")
    panel.get_by_label("Temperature").fill("3")
    panel.get_by_role("button", name="Save", exact=True).click()
    expect(panel.get_by_role("alert")).to_have_text("The temperature must be a number from 0 to 2.")
    list_tab.page.keyboard.press("Escape")
    panel.get_by_role("button", name="Discard").click()
    expect(panel).to_be_hidden()


# --- files ----------------------------------------------------------------------------------------


def test_export_and_import_round_trip_and_refuse_a_wrong_file(
    list_tab: ListTab, tmp_path: Path
) -> None:
    """One or all conversations are exported and imported; a wrong file is refused with the reason."""
    list_tab.chat.allowed_problems = LOAD_ERRORS
    list_tab.keep(exported_conversation("Hi", "Ho there", title="One"))
    with list_tab.page.expect_download() as saved:
        list_tab.menu("One", "Export as Markdown")
    assert saved.value.suggested_filename == "One.md"
    assert "Ho there" in saved.value.path().read_text()
    all_menu = list_tab.page.get_by_role("button", name="Export and import")
    all_menu.click()
    with list_tab.page.expect_download() as saved:
        list_tab.page.get_by_role("link", name="Export all as JSON").click()
    assert saved.value.suggested_filename.endswith(".json")
    file = tmp_path / "all.json"
    saved.value.save_as(file)
    all_menu.click()
    list_tab.page.get_by_label("Import JSON…").set_input_files(file)
    expect(list_tab.toast).to_contain_text("1 chat was imported.")
    expect(list_tab.items).to_have_count(2)
    expect(list_tab.page.locator("#all-menu")).to_be_hidden()
    wrong_export = json.loads(file.read_bytes())
    wrong_export["conversations"][0]["messages"][1]["role"] = "nobody"
    file.write_text(json.dumps(wrong_export))
    all_menu.click()
    list_tab.page.get_by_label("Import JSON…").set_input_files(file)
    expect(list_tab.toast).to_contain_text("in conversation 1, message 2, the field “role” must be")
    expect(list_tab.items).to_have_count(2)
