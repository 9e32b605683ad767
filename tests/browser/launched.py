"""The browser of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.chat import PATIENCE

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # In place of Playwright's `ignore_https_errors`, with which a request begins anew at each new
    # connection, and fails after 32 of them if others take its connections.
    "--ignore-certificate-errors",
]


def installed_browser() -> str | None:
    """The path of the system's browser; None: use the one of Playwright."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    return path or (MAC if os.path.exists(MAC) else None)


@contextlib.contextmanager
def launched_browser() -> Iterator[Browser]:
    """A browser without a window."""
    expect.set_options(timeout=PATIENCE)
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed_browser(), args=flags)
        yield chromium
        chromium.close()
