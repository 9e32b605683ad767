"""The rail: groups, pins, archive, several at once, its sheet on a phone, and where the focus goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, SWIPE_IS_LOADED
from tests.browser.conftest import OpenChat
from tests.browser.list_tab import PHONE, WIDE, ListTab
from tests.support.export_files import exported_conversation
from tests.support.halt_server import HaltServer

DAY = 86_400.0


def talk(title: str, age: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A conversation that was last used `age` seconds ago."""
    return exported_conversation("Hi", "Ho", title=title, at=time.time() - age, **fields)


def talks(*titles: str) -> list[dict[str, Any]]:
    """Conversations of today, the first one the newest."""
    return [talk(title, n) for n, title in enumerate(titles)]


def lines(list_tab: ListTab) -> list[str]:
    """The headings (with a #) and titles of the list, in order."""
    found: list[str] = list_tab.list.evaluate(
        """list => [...list.children].filter(line => line.checkVisibility()).map(line => line.matches('.day')
          ? `# ${line.textContent.trim()}` : line.querySelector('.title').textContent)"""
    )
    return found


def wait_lines(list_tab: ListTab, *wanted: str) -> None:
    """Wait until the list has these headings and titles."""
    expect(list_tab.list.locator("> :visible")).to_have_count(len(wanted))
    assert lines(list_tab) == list(wanted)


def has_focus(list_tab: ListTab) -> bool:
    """Whether an element has the focus, which is not lost to the page."""
    return bool(list_tab.page.evaluate("document.activeElement !== document.body"))


# --- groups, pins, archive ------------------------------------------------------------------------


def test_headings_follow_the_browsers_days_and_change_at_midnight(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """The days are those of the browser's time zone; midnight changes them without a reload."""
    zone = "Pacific/Kiritimati"  # 14 hours before UTC
    list_tab = ListTab(open_chat(halt, shared_fake, viewport=WIDE, timezone_id=zone))
    noon = (time.time() + 14 * 3600) // DAY * DAY - 2 * 3600  # of this zone's today
    now = max(noon, time.time() + 60)
    ages = {"now": now - time.time(), "yesterday": DAY, "week": 5 * DAY, "month": 20 * DAY}
    list_tab.keep(
        *(exported_conversation("Hi", "Ho", title=t, at=noon - a) for t, a in ages.items())
    )
    list_tab.page.clock.install(time=noon)
    list_tab.page.reload()
    wait_lines(
        list_tab,
        *("# Today", "now", "# Yesterday", "yesterday"),
        *("# Last 7 days", "week", "# Last 30 days", "month"),
    )
    list_tab.page.clock.fast_forward("13:00:00")
    wait_lines(
        list_tab,
        *("# Yesterday", "now", "# Last 7 days", "yesterday", "week"),
        *("# Last 30 days", "month"),
    )


def test_pin_moves_an_entry_to_the_top_and_keeps_the_focus(list_tab: ListTab) -> None:
    """Pin and Unpin move an entry without a reload; the focus stays on it."""
    list_tab.keep(*talks("One", "Two", "Three"))
    list_tab.menu("Three", "Pin")
    wait_lines(list_tab, "# Pinned", "Three", "# Today", "One", "Two")
    expect(list_tab.item("Three").get_by_role("button")).to_be_focused()
    list_tab.page.reload()
    wait_lines(list_tab, "# Pinned", "Three", "# Today", "One", "Two")
    list_tab.menu("Three", "Unpin")
    wait_lines(list_tab, "# Today", "One", "Two", "Three")
    expect(list_tab.item("Three").get_by_role("button")).to_be_focused()


def test_unpinned_entry_takes_its_place_among_older_parts(list_tab: ListTab) -> None:
    """An entry older than the first part of the list is at its place after Unpin."""
    list_tab.keep(
        *(talk(f"Talk {n}", 60.0 * n) for n in range(100)), talk("Old", 60 * 45.5, pinned_at=1.0)
    )
    while list_tab.items.count() < 81:
        count = list_tab.items.count()
        list_tab.page.locator("#listed").evaluate("box => box.scrollTo(0, box.scrollHeight)")
        expect(list_tab.items.nth(count)).to_be_attached()
    list_tab.menu("Old", "Unpin")
    expect(list_tab.page.locator(".day", has_text="Pinned")).to_have_count(0)
    titles = list_tab.titles()
    assert titles[45:48] == ["Talk 45", "Old", "Talk 46"]
    assert len(set(titles)) == len(titles)


def test_archive_keeps_conversations_apart_until_a_message(list_tab: ListTab) -> None:
    """Archive takes an entry to the archive's list, Undo and a message bring it back."""
    list_tab.keep(*talks("One", "Two", "Three"))
    list_tab.menu("Two", "Archive")
    undo = list_tab.toast.get_by_role("button", name="Undo")
    expect(undo).to_be_focused()
    wait_lines(list_tab, "# Today", "One", "Three")
    undo.click()
    wait_lines(list_tab, "# Today", "One", "Two", "Three")
    expect(list_tab.item("Two").get_by_role("link")).to_be_focused()
    list_tab.menu("Two", "Archive")
    wait_lines(list_tab, "# Today", "One", "Three")
    list_tab.page.get_by_role("button", name="Archive, export and import").click()
    list_tab.page.get_by_role("link", name="Archived chats").click()
    wait_lines(list_tab, "# Today", "Two")
    expect(list_tab.page.get_by_role("link", name="Back to all chats")).to_be_focused()
    list_tab.item("Two").get_by_role("link").click()
    list_tab.chat.wait_text("Ho")
    list_tab.chat.ask("count?n=2", "on")
    expect(list_tab.items).to_have_count(3)
    assert list_tab.titles()[0] == "Two"


def test_archive_that_does_not_arrive_leaves_the_list(list_tab: ListTab) -> None:
    """If the archive can't be loaded, the list stays and a notice says why."""
    list_tab.keep(talk("One"))
    list_tab.open("One")
    list_tab.chat.allowed_problems = LOAD_ERRORS
    list_tab.page.route("**/conversations?*", lambda route: route.abort())
    list_tab.page.locator("#open-all").click()
    list_tab.page.get_by_role("link", name="Archived chats").click()
    expect(list_tab.page.locator("#notice")).to_have_text(
        "The server could not be reached. Try again."
    )
    expect(list_tab.items.locator(".title")).to_have_text("One")
    expect(list_tab.page.get_by_text("The archive is empty.")).to_be_hidden()


def test_archived_conversation_is_unarchived_from_the_archive(list_tab: ListTab) -> None:
    """The archive is a page without scripts too; Move back brings an entry back to the list."""
    list_tab.keep(talk("One"), talk("Two", 1.0, archived_at=1.0))
    list_tab.page.goto(f"{list_tab.chat.server.url}/?archived=1")
    wait_lines(list_tab, "# Today", "Two")
    list_tab.menu("Two", "Move back")
    expect(list_tab.page.get_by_text("The archive is empty.")).to_be_visible()
    list_tab.page.get_by_role("link", name="Back to all chats").click()
    wait_lines(list_tab, "# Today", "One", "Two")
    assert has_focus(list_tab)


def test_dot_follows_an_answer_of_another_tab(list_tab: ListTab, open_chat: OpenChat) -> None:
    """An answer that starts and ends in another tab has its dot here without a reload."""
    other = open_chat(list_tab.chat.server, list_tab.chat.fake, same=list_tab.chat)
    other.ask("count?n=40&hold=10", "there")
    expect(list_tab.items.locator(".live")).to_have_count(1)
    other.release()
    expect(list_tab.items.locator(".live")).to_have_count(0)
    expect(list_tab.items).to_have_count(1)


# --- the menu -------------------------------------------------------------------------------------


def test_menu_opens_by_right_click_and_menu_key(list_tab: ListTab) -> None:
    """A right click and the menu key open an entry's menu; arrow keys move within it."""
    list_tab.keep(*talks("One", "Two"))
    menu = list_tab.page.locator("#item-menu")
    list_tab.item("Two").get_by_role("link").click(button="right")
    expect(menu).to_be_visible()
    list_tab.page.keyboard.press("ArrowDown")
    expect(menu.get_by_role("button", name="Pin")).to_be_focused()
    list_tab.page.keyboard.press("ArrowUp")
    list_tab.page.keyboard.press("ArrowUp")
    expect(menu.get_by_role("button", name="Delete")).to_be_focused()
    list_tab.page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    list_tab.item("One").get_by_role("link").focus()
    list_tab.page.keyboard.press("ContextMenu")
    expect(menu).to_be_visible()
    list_tab.entry("Pin").click()
    wait_lines(list_tab, "# Pinned", "One", "# Today", "Two")
    list_tab.open("One")
    list_tab.page.locator("#open-chat-menu").click()
    list_tab.item("Two").get_by_role("button").dispatch_event("click")  # closes the head's menu
    list_tab.entry("Delete").click()
    wait_lines(list_tab, "# Pinned", "One")


def test_head_menu_acts_on_the_open_chat_also_without_its_entry(list_tab: ListTab) -> None:
    """An open chat that the list has not loaded is pinned, renamed, archived and deleted."""
    list_tab.keep(*(talk(f"Talk {n}", 60.0 * n) for n in range(60)), talk("Old", DAY * 99))
    url = list_tab.chat.server.url
    list_tab.search("Old")
    list_tab.palette.get_by_role("group", name="Chats").get_by_role("option").click()
    expect(list_tab.page).to_have_title("Old · Halt")
    list_tab.page.wait_for_load_state()
    expect(list_tab.item("Old")).to_have_count(0)
    menu, chip = list_tab.page.locator("#chat-menu"), list_tab.page.locator(".head .archived")

    def choose(name: str) -> None:
        list_tab.page.locator("#open-chat-menu").click()
        menu.get_by_text(name, exact=True).click()

    choose("Rename")
    list_tab.page.get_by_role("textbox", name="Title").fill("Older")
    list_tab.page.keyboard.press("Enter")
    expect(list_tab.page).to_have_title("Older · Halt")
    list_tab.page.keyboard.press("Alt+Shift+U")
    expect(list_tab.toast).to_contain_text("Pinned.")
    expect(list_tab.item("Older")).to_be_visible()
    choose("Unpin")
    expect(list_tab.item("Older")).to_have_count(0)
    choose("Archive")
    expect(list_tab.toast).to_contain_text("“Older” was moved to the archive.")
    expect(chip).to_be_visible()
    list_tab.toast.get_by_role("button", name="Undo").click()
    expect(chip).to_be_hidden()
    choose("Archive")
    expect(chip).to_be_visible()
    list_tab.page.reload()
    expect(chip).to_be_visible()
    choose("Move back")
    expect(chip).to_be_hidden()
    choose("Delete")
    expect(list_tab.page).to_have_url(f"{url}/")
    expect(list_tab.toast).to_contain_text("“Older” was deleted.")
    list_tab.toast.get_by_role("button", name="Undo").click()
    expect(list_tab.page).to_have_title("Older · Halt")


def test_fault_in_the_toast_stays_until_it_is_dismissed(list_tab: ListTab) -> None:
    """A refused import stays with its next step; Esc takes it away and stops the answer too."""
    list_tab.chat.allowed_problems = LOAD_ERRORS
    list_tab.page.clock.install()
    list_tab.page.reload()
    list_tab.chat.ask("stall?n=3")
    list_tab.chat.wait_text("0 1 2")
    file: Any = {"name": "a.json", "mimeType": "application/json", "buffer": b'{"format": "other"}'}
    list_tab.page.locator("#import input").set_input_files(file)
    expect(list_tab.toast).to_contain_text("it is not an export of Halt. Choose the JSON file")
    list_tab.page.clock.run_for(20_000)
    expect(list_tab.toast.get_by_role("button", name="Dismiss")).to_be_visible()
    list_tab.chat.prompt.focus()
    list_tab.page.keyboard.press("Escape")
    expect(list_tab.toast).to_be_empty()
    list_tab.chat.wait_state("stopped")


def test_focus_is_never_lost_by_a_change(list_tab: ListTab) -> None:
    """After a deletion whose message goes away the focus is on the entry beside it."""
    list_tab.keep(*talks("One", "Two", "Three"))
    for title, beside in (("Two", "Three"), ("Three", "One")):
        list_tab.menu(title, "Delete")
        expect(list_tab.toast.get_by_role("button", name="Undo")).to_be_focused()
        list_tab.toast.get_by_role("button", name="Dismiss").click()
        expect(list_tab.item(beside).get_by_role("link")).to_be_focused()
    list_tab.menu("One", "Delete")
    list_tab.toast.get_by_role("button", name="Dismiss").click()
    expect(list_tab.chat.prompt).to_be_focused()


# --- several at once ------------------------------------------------------------------------------


def test_several_are_selected_by_keyboard_deleted_and_restored(list_tab: ListTab) -> None:
    """Space and Shift with the arrows select; the number is announced; one Undo restores all."""
    list_tab.keep(*talks("One", "Two", "Three", "Four"))
    list_tab.item("One").get_by_role("button", name="More for").focus()
    list_tab.page.keyboard.press("Enter")
    list_tab.entry("Select").focus()
    list_tab.page.keyboard.press("Enter")
    box = list_tab.page.get_by_role("checkbox", name="Select One")
    expect(box).to_be_focused()
    announcer = list_tab.page.locator("#announcer")
    expect(announcer).to_have_text("1 selected")
    list_tab.page.keyboard.press("Space")
    expect(announcer).to_have_text("0 selected")
    list_tab.page.keyboard.press("ArrowDown")
    list_tab.page.keyboard.press("Shift+ArrowDown")
    expect(announcer).to_have_text("2 selected")
    list_tab.page.keyboard.press("Tab")
    list_tab.page.keyboard.press("Space")
    expect(announcer).to_have_text("3 selected")
    list_tab.page.get_by_role("group", name="Selected").get_by_role("button", name="Delete").click()
    expect(list_tab.toast).to_contain_text("3 chats were deleted.")
    wait_lines(list_tab, "# Today", "One")
    undo = list_tab.toast.get_by_role("button", name="Undo")
    expect(undo).to_be_focused()
    list_tab.page.keyboard.press("Enter")
    wait_lines(list_tab, "# Today", "One", "Two", "Three", "Four")
    assert has_focus(list_tab)
    expect(list_tab.page.get_by_role("checkbox", name="Select")).to_have_count(0)


def test_several_are_selected_by_pointer_pinned_and_exported(list_tab: ListTab) -> None:
    """Shift and a click select a range, a click one; they are pinned or exported at once."""
    list_tab.keep(*talks("One", "Two", "Three", "Four"))
    bar = list_tab.page.get_by_role("group", name="Selected")

    def click(title: str, *keys: Any) -> None:
        list_tab.item(title).get_by_role("link").click(modifiers=list(keys))

    click("One", "Shift")
    expect(bar).to_be_visible()
    click("Three", "Shift")
    click("Two")
    expect(bar.get_by_text("2 selected")).to_be_visible()
    bar.get_by_role("button", name="Select all").click()
    expect(bar.get_by_text("4 selected")).to_be_visible()
    click("Two")
    click("Four")
    bar.get_by_role("button", name="Export").click()
    with list_tab.page.expect_download() as saved:
        list_tab.page.locator("#export-menu").get_by_text("Export as JSON").click()
    exported = json.loads(saved.value.path().read_text())["conversations"]
    assert sorted(one["title"] for one in exported) == ["One", "Three"]
    bar.get_by_role("button", name="Pin").click()
    wait_lines(list_tab, "# Pinned", "One", "Three", "# Today", "Two", "Four")
    expect(bar).to_be_hidden()
    assert has_focus(list_tab)
    click("Two", "Shift")
    expect(bar).to_be_visible()
    list_tab.page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    expect(list_tab.item("Two").get_by_role("link")).to_be_focused()


def test_selection_stays_when_the_list_changes(list_tab: ListTab) -> None:
    """An entry that another tab renames stays selected, and the focus stays on its checkbox."""
    list_tab.keep(*talks("One", "Two"))
    list_tab.item("Two").get_by_role("link").click(modifiers=["Shift"])
    (conversation,) = [list_tab.item("Two").get_attribute("data-id")]
    url = f"{list_tab.chat.server.url}/c/{conversation}/title"
    assert list_tab.chat.context.request.post(url, form={"title": "New"}).ok
    list_tab.page.evaluate("dispatchEvent(new Event('focus'))")
    box = list_tab.page.get_by_role("checkbox", name="Select New")
    expect(box).to_be_checked()
    expect(box).to_be_focused()


# --- beside the page, and the sheet ---------------------------------------------------------------


def test_hidden_rail_stays_hidden_from_the_first_byte(list_tab: ListTab) -> None:
    """A hidden rail is hidden in the page that the server sends; the focus goes to its control."""
    rail = list_tab.page.get_by_role("complementary", name="Chats")
    list_tab.page.get_by_role("button", name="Hide the chat list").click()
    expect(rail).to_be_hidden()
    opener = list_tab.page.get_by_role("button", name="Show the chat list")
    expect(opener).to_be_focused()
    html = list_tab.chat.context.request.get(list_tab.chat.server.url).text()
    assert 'data-rail="hidden"' in html
    list_tab.page.reload()
    expect(rail).to_be_hidden()
    list_tab.page.get_by_role("button", name="Show the chat list").click()
    expect(rail).to_be_visible()
    expect(list_tab.page.get_by_role("button", name="Hide the chat list")).to_be_focused()
    assert "data-rail" not in list_tab.chat.context.request.get(list_tab.chat.server.url).text()


class Phone(ListTab):
    """A phone with a touch screen."""

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        if not hasattr(self, "_cdp"):
            self._cdp = self.page.context.new_cdp_session(self.page)
        touch_points = [{"x": x, "y": y} for x, y in points]
        self._cdp.send(
            "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touch_points}
        )

    def swipe(self, start: float, end: float) -> None:
        """Move a finger from one horizontal position to another."""
        self.page.wait_for_function(SWIPE_IS_LOADED)
        self.chat.frames()
        self.touch("Start", (start, 400))
        for part in range(1, 9):
            self.touch("Move", (start + (end - start) * part / 8, 400))
        self.touch("End")

    @property
    def rail(self) -> Any:
        return self.page.get_by_role("complementary", name="Chats")


@pytest.fixture
def phone(open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI) -> Phone:
    phone = Phone(open_chat(halt, shared_fake, viewport=PHONE, has_touch=True, is_mobile=True))
    phone.keep(*talks("One", "Two"))
    return phone


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_sheet_opens_and_closes_by_swipe(phone: Phone, motion: Any) -> None:
    """A swipe from the left edge opens the sheet, one to the left closes it."""
    phone.page.emulate_media(reduced_motion=motion)
    phone.swipe(5, 320)
    expect(phone.rail).to_be_visible()
    expect(phone.page.locator("main")).to_have_attribute("inert", "")
    phone.swipe(300, 20)
    expect(phone.rail).to_be_hidden()
    expect(phone.page.get_by_role("button", name="Show the chat list")).to_be_focused()
    phone.swipe(200, 340)  # not from the edge
    phone.touch("Start", (5, 400))  # to the edge and back
    phone.touch("Move", (40, 400))
    phone.touch("Move", (6, 400))
    phone.touch("End")
    phone.chat.frames()
    expect(phone.rail).to_be_hidden()


def test_sheet_takes_the_focus_and_closes_three_ways(phone: Phone) -> None:
    """The sheet of the list takes the focus; Esc, the page beside it and a button close it."""
    phone.keep(talk("A long title " * 10, -1), talk("שלום עולם", -1))
    opener = phone.page.get_by_role("button", name="Show the chat list")
    expect(phone.rail).to_be_hidden()
    ways: list[Callable[[], object]] = [
        lambda: phone.page.keyboard.press("Escape"),
        lambda: phone.page.mouse.click(350, 400),
        lambda: phone.page.get_by_role("button", name="Hide the chat list").click(),
    ]
    for close in ways:
        opener.click()
        expect(phone.rail).to_be_visible()
        expect(opener).to_have_attribute("aria-expanded", "true")
        expect(phone.page.get_by_role("button", name="Hide the chat list")).to_be_focused()
        for _ in range(12):
            phone.page.keyboard.press("Tab")
            assert phone.page.evaluate(
                "!document.activeElement.closest('main, body > header, body > footer')"
            )
        close()
        expect(phone.rail).to_be_hidden()
        expect(opener).to_be_focused()
    opener.click()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert phone.items.first.evaluate(  # at one moment: the sheet is still moving
        """item => item.querySelector('.title').getBoundingClientRect().right
          <= item.querySelector('.more').getBoundingClientRect().left"""
    )
    phone.items.first.get_by_role("link").click()
    phone.chat.wait_text("Ho")
    expect(phone.rail).to_be_hidden()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_back_closes_the_sheet_and_does_not_leave_the_page(phone: Phone) -> None:
    """Back closes the sheet without a reload; a page opened from it has one step back."""
    phone.page.evaluate("window.sameDocument = true")
    opener = phone.page.get_by_role("button", name="Show the chat list")
    first_url = phone.page.url
    for close in (phone.page.go_back, lambda: phone.page.keyboard.press("Escape")):
        opener.click()
        expect(phone.rail).to_be_visible()
        close()
        expect(phone.rail).to_be_hidden()
        expect(opener).to_be_focused()
        assert phone.page.url == first_url
    assert phone.page.evaluate("window.sameDocument")
    opener.click()
    phone.items.first.get_by_role("link").click()
    phone.chat.wait_text("Ho")
    expect(phone.rail).to_be_hidden()
    phone.page.go_back()
    expect(phone.page.locator(".exchange")).to_have_count(0)
    assert phone.page.url == first_url


def test_long_press_opens_the_menu_and_then_selects(phone: Phone) -> None:
    """A long press opens the menu and follows no link; in a selection it selects, as a tap does."""
    phone.page.emulate_media(reduced_motion="reduce")  # nothing moves
    phone.page.clock.install()
    phone.page.reload()
    phone.page.get_by_role("button", name="Show the chat list").click()
    menu = phone.page.locator("#item-menu")

    def press(title: str) -> None:
        box = phone.item(title).bounding_box()
        assert box
        phone.touch("Start", (box["x"] + 40, box["y"] + 20))
        phone.page.clock.run_for(600)
        phone.touch("End")
        phone.page.clock.run_for(10)

    expect(phone.item("One")).to_be_in_viewport(ratio=1)
    press("One")
    expect(menu).to_be_visible()
    menu.get_by_text("Select").tap()
    bar = phone.page.get_by_role("group", name="Selected")
    expect(bar.get_by_text("1 selected")).to_be_visible()
    press("Two")
    expect(bar.get_by_text("2 selected")).to_be_visible()
    phone.item("One").get_by_role("link").tap()
    expect(bar.get_by_text("1 selected")).to_be_visible()
    bar.get_by_role("button", name="Archive").tap()
    phone.page.clock.run_for(2000)
    expect(phone.items).to_have_count(1)
    assert phone.page.url == f"{phone.chat.server.url}/"
