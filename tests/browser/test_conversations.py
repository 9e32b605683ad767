"""The list of conversations beside the page: what a person does with it, in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Locator, ViewportSize, expect

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.browser.chat import AWAY, Chat, numbers
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.support.export_files import export_file, exported_conversation
from tests.support.halt_server import HaltServer, StartHalt, request_record

WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
READABLE = 4.5


class Desk:
    """A tab with the list beside it, in the words of the person who uses it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.page = chat.page
        self.list = self.page.locator("#conversations")
        self.items = self.list.locator("> li[id]:visible")
        self.toast = self.page.locator("#toast")
        self.search = self.page.get_by_role("searchbox")
        self.hits = self.page.locator("#hits li a")

    def keep(self, *talks: dict[str, Any]) -> None:
        """Have these conversations, and see them."""
        file: FilePayload = {
            "name": "a.json",
            "mimeType": "application/json",
            "buffer": export_file(*talks),
        }
        url = f"{self.chat.server.url}/import"
        assert self.chat.context.request.post(url, multipart={"file": file}).ok
        self.page.reload()

    def item(self, title: str) -> Locator:
        """The item with this title."""
        exact = self.page.locator(".title", has_text=re.compile(f"^{re.escape(title)}$"))
        return self.items.filter(has=exact)

    def titles(self) -> list[str]:
        return self.items.locator(".title").all_text_contents()

    def open(self, title: str) -> None:
        self.item(title).get_by_role("link").click()
        expect(self.item(title).locator("[aria-current]")).to_be_visible()
        self.page.wait_for_load_state()  # its scripts are there

    def menu(self, title: str, entry: str) -> None:
        """Open an item's menu and choose an entry."""
        self.open_menu(title)
        self.entry(entry).click()

    def open_menu(self, title: str) -> None:
        self.item(title).hover()
        self.item(title).get_by_role("button", name="More for").click()

    def entry(self, name: str) -> Locator:
        return self.page.locator("#item-menu").get_by_text(name, exact=True)

    def new_chat(self) -> None:
        self.page.get_by_role("link", name="New chat").click()
        expect(self.page.locator(".exchange")).to_have_count(0)
        self.page.wait_for_load_state()


@pytest.fixture
def desk(open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI) -> Iterator[Desk]:
    """A tab on a wide screen; what is left running in it ends with the test."""
    made = Desk(open_chat(halt, shared_fake, viewport=WIDE))
    yield made
    made.chat.context.request.post(f"{halt.url}/stop-all")


# --- the list -------------------------------------------------------------------------------------


def test_list_shows_a_new_conversation_open_and_running(desk: Desk) -> None:
    """A new conversation is listed at once as open, and as running until its answer is done."""
    expect(desk.page.locator("#listed .none")).to_be_visible()
    said = desk.chat.ask("count?n=40&hold=10", "x")
    expect(desk.items).to_have_count(1)
    expect(desk.items.locator("[aria-current] .title")).to_have_text(said)
    expect(desk.items.locator(".live")).to_be_visible()
    expect(desk.page).to_have_title(f"{said} · Halt")
    desk.chat.release()
    desk.chat.wait_state("done")
    expect(desk.items.locator(".live")).to_have_count(0)
    expect(desk.items.locator("time")).not_to_be_empty()
    expect(desk.page.locator("#listed .none")).to_be_hidden()


def test_answers_of_two_conversations_run_at_once(desk: Desk) -> None:
    """An answer keeps running when its page is left; the list shows both, and both complete."""
    first = desk.chat.ask("count?n=60&hold=10", "first")
    desk.chat.wait_text("8 9")
    desk.new_chat()
    second = desk.chat.ask("count?n=60&hold=10", "second")
    expect(desk.items.locator(".live")).to_have_count(2)
    request_record(desk.chat.fake, first).release()
    expect(desk.items.locator(".live")).to_have_count(1)
    request_record(desk.chat.fake, second).release()
    desk.open(first)
    desk.chat.wait_state("done")
    desk.chat.wait_text("58 59")
    assert desk.chat.shown() == numbers(60)
    desk.open(second)
    desk.chat.wait_state("done")
    desk.chat.wait_text("58 59")
    assert desk.chat.shown() == numbers(60)
    expect(desk.items.locator(".live")).to_have_count(0)
    assert desk.titles() == [second, first]


def test_back_and_forward_show_conversation_title_and_list_entry(desk: Desk) -> None:
    """Back and Forward show the conversation of the address, its title and its list entry."""
    desk.keep(
        exported_conversation("Hi", "One is here", title="One"),
        exported_conversation("Hi", "Two is here", title="Two"),
    )
    desk.open("One")
    desk.chat.wait_text("One is here")
    one = desk.page.url
    expect(desk.page).to_have_title("One · Halt")
    desk.open("Two")
    desk.chat.wait_text("Two is here")
    desk.page.go_back()
    desk.chat.wait_text("One is here")
    assert desk.page.url == one
    expect(desk.item("One").locator("[aria-current]")).to_be_visible()
    desk.page.go_forward()
    desk.chat.wait_text("Two is here")
    expect(desk.item("Two").locator("[aria-current]")).to_be_visible()


def test_list_of_150_loads_more_on_scrolling(desk: Desk) -> None:
    """Scrolling loads each list entry once and in order; a new conversation then comes first."""
    talks = [
        exported_conversation("Hi", "Ho", title=f"Talk {n}", at=1_760_000_000.0 + n)
        for n in range(150)
    ]
    desk.keep(*talks)
    assert desk.items.count() < 60
    while desk.items.count() < 150:
        seen = desk.items.count()
        desk.page.locator("#listed").evaluate("box => box.scrollTo(0, box.scrollHeight)")
        expect(desk.items.nth(seen)).to_be_attached()
    wanted = [f"Talk {n}" for n in reversed(range(150))]
    assert desk.titles() == wanted
    desk.chat.ask("count?n=2", "newest")
    expect(desk.items).to_have_count(151)
    expect(desk.items.locator(".live")).to_have_count(0)
    assert desk.titles() == ["/fake count?n=2 newest", *wanted]


def test_list_follows_another_tab_on_focus(desk: Desk, open_chat: OpenChat) -> None:
    """A deletion in another tab is in the list when this tab gets the focus."""
    desk.keep(
        exported_conversation("Hi", "Ho", title="Here"),
        exported_conversation("Hi", "Ho", title="Gone"),
    )
    other = Desk(open_chat(desk.chat.server, desk.chat.fake, same=desk.chat))
    other.page.set_viewport_size(WIDE)
    other.menu("Gone", "Delete")
    expect(other.items).to_have_count(1)
    desk.page.evaluate("dispatchEvent(new Event('focus'))")
    expect(desk.items).to_have_count(1)
    assert desk.titles() == ["Here"]


def is_completion(record: Record) -> bool:
    """Whether this request is one for an answer or a title."""
    return record.method == "POST"


def test_title_of_the_model_replaces_the_first_words(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The title is the first words at first, and then the model's, in the list and the tab."""
    fake.texts["t"] = "Storms at sea"
    halt = start_halt(fake, HALT_TITLES="model", HALT_MODEL="text?key=t&hold=0")
    desk = Desk(open_chat(halt, fake, viewport=WIDE))
    desk.chat.say("What of storms?")
    expect(desk.items.locator(".title")).to_have_text("What of storms?")
    fake.wait_request(is_completion, nth=0).release()
    desk.chat.wait_state("done")
    title_request = fake.wait_request(is_completion, nth=1)
    expect(desk.items.locator(".title")).to_have_text("What of storms?")
    title_request.release()
    expect(desk.items.locator(".title")).to_have_text("Storms at sea")
    expect(desk.page).to_have_title("Storms at sea · Halt")


# --- rename, delete, undo -------------------------------------------------------------------------


def test_title_is_renamed_in_place_by_keyboard(desk: Desk) -> None:
    """Enter and leaving the field save a title, Esc does not; a title is text, never markup."""
    desk.keep(exported_conversation("Hi", "Ho", title="Before"))
    desk.open("Before")
    link = desk.items.get_by_role("link")
    link.focus()
    desk.page.keyboard.press("Tab")
    desk.page.keyboard.press("Enter")
    expect(desk.page.get_by_role("button", name="Rename")).to_be_focused()
    desk.page.keyboard.press("Enter")
    field = desk.page.get_by_role("textbox", name="Title")
    expect(field).to_be_focused()
    desk.page.keyboard.type("<b>After</b>")
    desk.page.keyboard.press("Enter")
    expect(desk.items.locator(".title")).to_have_text("<b>After</b>")
    expect(desk.items.get_by_role("link")).to_be_focused()
    expect(desk.page).to_have_title("<b>After</b> · Halt")
    desk.menu("<b>After</b>", "Rename")
    field.fill("Never")
    field.press("Escape")
    expect(field).to_have_count(0)
    expect(desk.items.get_by_role("link")).to_be_focused()
    desk.menu("<b>After</b>", "Rename")
    field.fill("By leaving")
    desk.chat.prompt.click()
    expect(desk.items.locator(".title")).to_have_text("By leaving")


def test_escape_closes_menu_and_search_before_it_stops(desk: Desk) -> None:
    """Esc closes an open menu or search first; the next Esc stops the answer."""
    said = desk.chat.ask("stall", "x")
    desk.chat.wait_text("2")
    desk.open_menu(said)
    desk.page.keyboard.press("Escape")
    expect(desk.page.locator("#item-menu")).to_be_hidden()
    desk.page.keyboard.press("Control+k")
    desk.page.keyboard.type("words")
    desk.page.keyboard.press("Escape")
    expect(desk.search).to_have_value("")
    desk.chat.wait_state("running")
    desk.page.keyboard.press("Escape")
    desk.chat.wait_state("stopped")


def test_undo_restores_a_deleted_conversation_at_its_place(desk: Desk) -> None:
    """Undo puts a deleted conversation back at its place, and opens it if it was open."""
    desk.keep(
        *(exported_conversation("Hi", f"{n} is here", title=n) for n in ("One", "Two", "Three"))
    )
    before = desk.titles()
    desk.menu("Two", "Delete")
    expect(desk.item("Two")).to_have_count(0)
    undo = desk.toast.get_by_role("button", name="Undo")
    undo.click()
    expect(desk.item("Two")).to_be_visible()
    assert desk.titles() == before
    desk.open("Two")
    desk.menu("Two", "Delete")
    expect(desk.page.locator(".exchange")).to_have_count(0)
    expect(desk.item("Two")).to_have_count(0)
    expect(undo).to_be_visible()
    expect(desk.page).to_have_url(f"{desk.chat.server.url}/")
    undo.click()
    desk.chat.wait_text("Two is here")
    assert desk.titles() == before


def test_menu_opened_on_a_loading_page_acts_on_its_entry(desk: Desk) -> None:
    """A menu that opens before the scripts have loaded acts on the entry it belongs to."""
    desk.keep(
        *(exported_conversation("Hi", f"{n} is here", title=n) for n in ("One", "Two", "Three"))
    )
    held = HeldRequests(desk.chat, "**/sidebar.js*")
    desk.page.reload(wait_until="commit")
    desk.open_menu("Two")
    expect(desk.entry("Delete")).to_be_visible()
    held.wait()
    held.release()
    desk.page.wait_for_load_state()
    desk.entry("Delete").click()
    expect(desk.item("Two")).to_have_count(0)
    assert sorted(desk.titles()) == ["One", "Three"]


def test_delete_stops_a_running_answer_and_undo_restores_it(desk: Desk) -> None:
    """Delete stops the running answer and says so; Undo restores the text written so far."""
    said = desk.chat.ask("stall", "x")
    desk.chat.wait_text("2")
    desk.menu(said, "Delete")
    expect(desk.toast).to_contain_text("deleted, and its answer stopped")
    expect(desk.page).to_have_url(f"{desk.chat.server.url}/")
    desk.toast.get_by_role("button", name="Undo").click()
    desk.chat.wait_text("2")
    desk.chat.wait_state("stopped")


# --- the head of the page ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desktop", "phone"])
def test_header_and_composer_stay_in_view_when_scrolled(desk: Desk, size: ViewportSize) -> None:
    """Settings, model and Send stay in view in a long conversation; using them scrolls nothing."""
    desk.chat.page.set_viewport_size(size)
    desk.keep(exported_conversation(*["some words " * 60] * 20, title="Long"))
    place = desk.page.locator("#conversations a").get_attribute("href")
    desk.page.goto(f"{desk.chat.server.url}{place}")
    desk.page.evaluate("scrollTo(0, 700)")
    desk.page.get_by_text("Display", exact=True).click()
    desk.page.get_by_label("Smooth out text").focus()
    for each in ("Display", "Smooth out text that arrives in bursts"):
        expect(desk.page.get_by_text(each, exact=True)).to_be_in_viewport(ratio=1)
    for each in ("#open-settings", "#model", "#send"):
        expect(desk.page.locator(each)).to_be_in_viewport(ratio=1)
    assert desk.page.evaluate("scrollY") == 700
    assert desk.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    covered = "document.elementFromPoint(innerWidth - 200, 10).closest('body > header') !== null"
    assert desk.page.evaluate(covered)


# --- search ---------------------------------------------------------------------------------------


def test_search_hit_opens_at_its_message_and_loads_both_sides(desk: Desk) -> None:
    """A hit opens at its marked message; loading more on both sides moves nothing in view."""
    said = [f"said {n}" + " and more words of it" * 20 for n in range(600)]
    said[301] = "Here are **pelicans** <img src=x onerror=alert(1)>."
    desk.keep(
        exported_conversation(*said, title="Long"),
        exported_conversation("Other", "thing", title="Other"),
    )
    desk.search.fill("pelic")
    expect(desk.hits).to_have_count(1)
    expect(desk.hits.locator("mark")).to_have_text("pelicans")
    expect(desk.hits).to_contain_text("<img src=x")
    desk.hits.click()
    found = desk.page.locator(".answer.found")
    expect(found).to_contain_text("Here are pelicans")
    expect(found).to_be_in_viewport()
    assert desk.page.evaluate("CSS.highlights.get('found').size") == 1
    for side, edge in (("earlier", "first"), ("later", "last")):
        sentinel = desk.page.locator(f".{side}")
        prompts = desk.page.locator(".prompt")
        before = prompts.count()
        known = getattr(prompts, edge).text_content()
        mark = desk.page.locator(".prompt", has_text=re.compile(f"^{re.escape(str(known))}$"))
        sentinel.evaluate(
            "(e, side) => scrollBy(0, e.getBoundingClientRect().top - (side == 'earlier' ? 0 : innerHeight))",
            side,
        )
        place = mark.evaluate("e => e.getBoundingClientRect().top")
        expect(prompts.nth(before)).to_be_attached()
        desk.chat.frames()
        assert abs(mark.evaluate("e => e.getBoundingClientRect().top") - place) < 2


def test_search_hit_in_an_unselected_answer_is_unfolded(desk: Desk) -> None:
    """A hit in an unselected answer unfolds the alternatives and marks the words."""
    given = exported_conversation("Which?", "A heron", "Thanks", "Welcome", title="Compared")
    rival = {"id": 9, "parent": 1, "role": "assistant", "content": "A cormorant", "rivals": 1}
    given["messages"][1] |= {"rivals": 1, "picked": True}
    given["messages"].append(rival)
    desk.keep(given)
    desk.search.fill("cormorant")
    desk.hits.click()
    expect(desk.page.get_by_text("A cormorant")).to_be_in_viewport()
    assert desk.page.evaluate("CSS.highlights.get('found').size") == 1


def test_search_without_hits_says_so_and_clearing_shows_the_list(desk: Desk) -> None:
    """A search without hits says so; the emptied field shows the list again."""
    desk.keep(exported_conversation("Hi", "Ho", title="One"))
    desk.search.fill("walrus")
    expect(desk.page.get_by_text("No messages found.")).to_be_visible()
    expect(desk.list).to_be_hidden()
    desk.search.fill("")
    expect(desk.item("One")).to_be_visible()


# --- long conversations ---------------------------------------------------------------------------


def test_long_conversation_loads_upwards_without_a_jump(desk: Desk) -> None:
    """A long conversation opens at its end; loading earlier messages moves nothing in view."""
    desk.keep(
        exported_conversation(
            *(f"said {n}" + " and more of it" * 30 for n in range(2000)), title="Long"
        )
    )
    desk.open("Long")
    expect(desk.chat.answer).to_contain_text("said 1999 ")
    assert desk.chat.below() < 2
    prompts = desk.page.locator(".prompt")
    for _ in range(3):
        before = prompts.count()
        first = prompts.first.text_content() or ""
        mark = desk.page.locator(".prompt", has_text=re.compile(f"^{re.escape(first)}$"))
        desk.page.evaluate("scrollTo(0, 300)")
        place = mark.evaluate("e => e.getBoundingClientRect().top")
        expect(prompts.nth(before)).to_be_attached()
        desk.chat.frames()
        assert abs(mark.evaluate("e => e.getBoundingClientRect().top") - place) < 2
    assert prompts.count() < 500


def test_prompt_sent_from_a_search_hit_shows_the_end(desk: Desk) -> None:
    """A prompt that is sent from a search hit goes to the end, and the page scrolls there."""
    said = [f"said {n}" + " and more words of it" * 20 for n in range(400)]
    said[100] = "A pelican"
    desk.keep(exported_conversation(*said, title="Long"))
    desk.search.fill("pelican")
    desk.hits.click()
    expect(desk.page.locator(".prompt.found")).to_be_in_viewport()
    desk.chat.ask("count?n=30&gap_ms=20", "on")
    expect(desk.page).not_to_have_url(re.compile("at="))
    desk.chat.wait_state("done")
    desk.chat.wait_text("28 29")
    assert desk.chat.shown() == numbers(30)
    expect(desk.page.locator(".exchange").nth(-2)).to_contain_text("said 399 ")
    assert desk.chat.below() < 40


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_kept_and_sent(desk: Desk) -> None:
    """Settings, also of a new conversation, are in the request, the panel and after a reload."""
    opener = desk.page.get_by_role("button", name="Settings")
    opener.click()
    panel = desk.page.get_by_role("dialog")
    expect(panel.get_by_label("Temperature")).to_have_attribute("placeholder", "Model's default")
    panel.get_by_label("Model").select_option("count")
    panel.get_by_label("System prompt").fill("<b>Be short.</b>")
    panel.get_by_label("Temperature").fill("0.5")
    panel.get_by_label("Max tokens").fill("50")
    panel.get_by_role("button", name="Save").click()
    expect(panel).to_be_hidden()
    expect(desk.page.get_by_label("Model", exact=True)).to_have_value("count")
    desk.page.reload()
    desk.page.get_by_text("System prompt", exact=True).click()
    expect(desk.page.locator("#system p")).to_have_text("<b>Be short.</b>")
    desk.chat.ask("count?n=3")
    desk.chat.wait_state("done")
    body = desk.chat.record().body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("count", 0.5, 50)
    assert body["messages"][0] == {"role": "system", "content": "<b>Be short.</b>"}
    opener.click()
    expect(panel.get_by_label("Temperature")).to_have_value("0.5")
    panel.get_by_label("Temperature").fill("3")
    panel.get_by_role("button", name="Save").click()
    expect(panel).to_be_visible()  # the field says what it takes
    desk.page.keyboard.press("Escape")
    expect(panel).to_be_hidden()


# --- files ----------------------------------------------------------------------------------------


def test_export_and_import_round_trip_and_refuse_a_wrong_file(desk: Desk, tmp_path: Path) -> None:
    """One or all conversations are exported and imported; a wrong file is refused with the reason."""
    desk.chat.forgives = AWAY
    desk.keep(exported_conversation("Hi", "Ho there", title="One"))
    with desk.page.expect_download() as saved:
        desk.menu("One", "Export as Markdown")
    assert saved.value.suggested_filename == "One.md"
    assert "Ho there" in saved.value.path().read_text()
    all_menu = desk.page.get_by_role("button", name="Export and import")
    all_menu.click()
    with desk.page.expect_download() as saved:
        desk.page.get_by_role("link", name="Export all as JSON").click()
    assert saved.value.suggested_filename.endswith(".json")
    file = tmp_path / "all.json"
    saved.value.save_as(file)
    all_menu.click()
    desk.page.get_by_label("Import JSON…").set_input_files(file)
    expect(desk.toast).to_contain_text("1 conversation was imported.")
    expect(desk.items).to_have_count(2)
    expect(desk.page.locator("#all-menu")).to_be_hidden()
    broken = json.loads(file.read_bytes())
    broken["conversations"][0]["messages"][1]["role"] = "nobody"
    file.write_text(json.dumps(broken))
    all_menu.click()
    desk.page.get_by_label("Import JSON…").set_input_files(file)
    expect(desk.toast).to_contain_text("in conversation 1, message 2, the field “role” must be")
    expect(desk.items).to_have_count(2)


# --- the drawer, and what everybody can see and reach -----------------------------------------------


def test_drawer_takes_the_focus_and_closes_three_ways(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a phone the list is a drawer that takes the focus; Esc, the page and a button close it."""
    desk = Desk(open_chat(halt, shared_fake, viewport=PHONE, has_touch=True, is_mobile=True))
    desk.keep(
        exported_conversation("Hi", "Ho", title="A long title " * 10),
        exported_conversation("Hi", "Ho", title="שלום עולם"),
    )
    opener = desk.page.get_by_role("button", name="Conversations")
    sidebar = desk.page.get_by_role("complementary", name="Conversations")
    expect(sidebar).to_be_hidden()
    ways: list[Callable[[], object]] = [
        lambda: desk.page.keyboard.press("Escape"),
        lambda: desk.page.mouse.click(350, 400),
        lambda: desk.page.get_by_role("button", name="Close the conversation list").click(),
    ]
    for close in ways:
        opener.click()
        expect(sidebar).to_be_visible()
        expect(opener).to_have_attribute("aria-expanded", "true")
        expect(desk.page.get_by_role("button", name="Close the conversation list")).to_be_focused()
        for _ in range(12):
            desk.page.keyboard.press("Tab")
            assert desk.page.evaluate(
                "!document.activeElement.closest('main, body > header, body > footer')"
            )
        close()
        expect(sidebar).to_be_hidden()
        expect(opener).to_be_focused()
    opener.click()
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert desk.items.first.evaluate(  # at one moment: the drawer is still moving
        """item => item.querySelector('.when').getBoundingClientRect().right
          <= item.querySelector('.more').getBoundingClientRect().left"""
    )
    desk.items.first.get_by_role("link").click()
    desk.chat.wait_text("Ho")
    expect(sidebar).to_be_hidden()
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_list_menus_panel_and_toast_have_a_contrast_of_4_5(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI, scheme: str
) -> None:
    """In light and dark the list, hits, menus, panel and toast have a contrast of 4.5."""
    desk = Desk(open_chat(halt, shared_fake, viewport=WIDE, color_scheme=scheme))
    desk.keep(
        exported_conversation("Hi", "A zebra", title="One"),
        exported_conversation("Hi", "Ho", title="Two"),
    )
    looks: list[Callable[[], object]] = [
        lambda: desk.open("One"),
        lambda: desk.item("Two").get_by_role("button").click(),
        lambda: desk.page.keyboard.press("Escape"),
        lambda: desk.menu("Two", "Delete"),
        lambda: desk.search.fill("zebra"),
        lambda: desk.page.get_by_role("button", name="Settings").click(),
    ]
    for look in looks:
        look()
        desk.chat.frames()
        poor = {k: v for k, v in desk.chat.contrasts().items() if v < READABLE}
        assert not poor, poor
