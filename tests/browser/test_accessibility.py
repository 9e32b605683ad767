"""All states of the page: accessibility, layout at every width, and style sheets without leftovers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.states import page_audit
from tests.browser.states.models_states import STATES
from tests.browser.states.page_states import Stage, Visit, Width

READABLE = 4.5  # contrast of a text
POINTER, TOUCH = 24, 44  # pixels of a control, least
FIRST_LOAD = 200_000  # bytes of an empty chat, all of it, before compression
SCRIPTS, STYLES = 90_000, 45_000  # Halt's own
#: What has its own ground, and with forced colours an edge instead.
GROUNDS = (
    "#stop, #send, .note, .fault:not(#toast *, #settings *), .banner, .prompt .text, .menu, dialog:not(#palette), .button, button.primary, "
    "a[aria-current], #connection, #saving, #toast:not(:empty)"
)


@pytest.fixture(scope="module")
def stage(browser: Browser) -> Iterator[Stage]:
    """The servers of all states."""
    with Stage(browser) as stage:
        yield stage


def faults_of(visit: Visit, page: Page, width: Width) -> dict[str, list[str]]:
    """The faults of a state by the check that found them; keys without faults are left out."""
    faint = [f"{c:.2f} {name}" for name, c in visit.chats[0].contrasts().items() if c < READABLE]
    faults = {
        "axe": page_audit.axe_faults(page),
        "faint text": faint,
        "faint edges": page_audit.faint_edges(page),
        "small targets": page_audit.small_targets(page, TOUCH if width == "phone" else POINTER),
        "motion": page_audit.motion(page),
        "flat": page_audit.flat_elements(page, GROUNDS),
    }
    # Half of the usual window, as zooming to 200 % makes it; the narrowest phone.
    size = (320, 640) if width == "phone" else (640, 400)
    faults["overflow"] = page_audit.overflow(page, *size)
    return {name: texts for name, texts in faults.items() if texts}


def test_every_state_is_accessible_and_every_rule_is_used(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    """In the light theme no state has a fault, and each rule of the CSS matches in a state."""
    matches: dict[str, bool] = {}
    for name, state in STATES.items():
        width = state.widths[0]
        with subtests.test(name), stage.visit(name, width, color_scheme="light") as (visit, page):
            for selector, is_matching in page_audit.selectors(page).items():
                matches[selector] = matches.get(selector, False) or is_matching
            assert faults_of(visit, page, width) == {}
            visit.check()
    assert [selector for selector, is_matching in matches.items() if is_matching is not True] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [("desktop", "dark"), ("phone", "light"), ("phone", "dark")]
)
def test_every_state_is_accessible_at_this_width_and_theme(
    stage: Stage, subtests: pytest.Subtests, width: Width, scheme: str
) -> None:
    """No state has a fault at the other widths and themes."""
    for name, state in STATES.items():
        if width not in state.widths or (width, scheme) == (state.widths[0], "light"):
            continue
        with subtests.test(name), stage.visit(name, width, color_scheme=scheme) as (visit, page):
            assert faults_of(visit, page, width) == {}
            visit.check()


def test_first_load_is_small_and_asks_no_other_server(stage: Stage) -> None:
    """An empty chat loads few bytes, and nothing from elsewhere."""
    sizes: dict[str, int] = {}
    with stage.visit("first-visit", "desktop") as (_, page):
        page.on("response", lambda response: sizes.update({response.url: len(response.body())}))
        page.reload(wait_until="networkidle")
        assert all(url.startswith(stage.halt.url) for url in sizes)

    def total(*parts: str) -> int:
        return sum(size for url, size in sizes.items() if any(part in url for part in parts))

    assert total("") < FIRST_LOAD, sizes
    assert 10_000 < total("/js/") < SCRIPTS, sizes
    assert 10_000 < total("/css/") < STYLES, sizes


#: What printing leaves out.
CONTROLS = "button, .button, input, textarea, select, .rail, .head, #composer, #usage, #toast"


def test_print_gives_the_conversation_alone_dark_on_white(stage: Stage) -> None:
    """Printing a conversation of the dark theme shows its texts on white, and no control."""
    with stage.visit("stopped", "desktop", color_scheme="dark") as (visit, page):
        page.emulate_media(media="print")
        expect(page.locator(".prompt .text").first).to_be_visible()
        expect(page.locator(".answer .text").first).to_be_visible()
        assert page.locator(CONTROLS).filter(visible=True).count() == 0
        faint = [
            f"{c:.2f} {name}" for name, c in visit.chats[0].contrasts().items() if c < READABLE
        ]
        assert faint == []
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        assert page.evaluate(ground) == "rgba(0, 0, 0, 0)"
        ink = page.locator(".answer .text p").first.evaluate("e => getComputedStyle(e).color")
        assert max(map(int, re.findall(r"\d+", ink))) < 80
