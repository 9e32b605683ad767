"""Writes pictures of the page's states: `python -m tests.screenshots FOLDER [--state NAME] ...`.

Each state at two widths, light and dark; some with forced colours. States are in
`tests/browser/states/`. Files are named STATE-WIDTH-THEME.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Error, Page, expect

from tests.browser.launched import launched_browser
from tests.browser.states.models_states import STATES
from tests.browser.states.page_states import WIDTHS, Stage, Visit

PATIENCE = 10_000  # milliseconds for each step to a state
#: States whose focus, chosen row, Stop and notes are seen with forced colours.
FORCED = (
    "empty",
    "pinned",
    "streaming",
    "stopped",
    "refused",
    "row-menu",
    "settings-dialog",
    "login-wrong",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--state", action="append", choices=STATES, help="instead of all states")
    parser.add_argument("--width", choices=WIDTHS, help="instead of both")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    with launched_browser() as browser, Stage(browser) as stage:
        expect.set_options(timeout=PATIENCE)
        for name in options.state or STATES:
            for width in STATES[name].widths:
                if options.width not in (None, width):
                    continue
                try:
                    with stage.visit(name, width) as (visit, page):
                        take(visit, page, f"{options.folder}/{name}-{width}", name in FORCED)
                except (AssertionError, Error) as fault:  # the other states are still of use
                    faults += 1
                    print(f"Not reached: {name}, {width}: {str(fault)[:1000]}", flush=True)
    parser.exit(min(1, faults))


def take(visit: Visit, page: Page, path: str, forced: bool) -> None:
    """Write the pictures of a state."""
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        visit.settle()
        page.screenshot(path=f"{path}-{theme}.png")
    if forced:
        page.emulate_media(color_scheme="light", forced_colors="active")
        page.screenshot(path=f"{path}-forced.png")


if __name__ == "__main__":
    main()
