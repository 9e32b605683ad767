"""Opens the page in this desktop's browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit

from halt.config.environment import variable

#: Wildcard address, which no browser can open -> the loopback address to open instead.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - no server listens here


def has_desktop() -> bool:
    """Whether this process has a terminal on a desktop where a browser can open a window."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or variable("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(variable("DISPLAY") or variable("WAYLAND_DISPLAY"))


def page_of(addresses: Iterable[str]) -> str:
    """The page's URL at the first address that a browser can open; empty if there is none."""
    for address in addresses:
        url = urlsplit(address)
        if url.scheme in {"http", "https"} and url.port:
            host = _WILDCARDS.get(url.hostname or "", url.netloc.rpartition(":")[0])
            return f"{url.scheme}://{host}:{url.port}/"
    return ""


def open_page(url: str) -> None:
    """Open a URL by a separate process: a browser may take seconds, or write to the terminal."""
    subprocess.Popen(  # noqa: S603 - our own interpreter; gunicorn's master waits for its children
        [sys.executable, "-P", "-m", "webbrowser", "-t", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
