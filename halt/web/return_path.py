"""The page that a browser asked for before it had to sign in, and to which it returns."""

from __future__ import annotations

import re

from flask import request, url_for

from halt.web.requests import wants_page

PATH_MAX = 1_000  # characters; a longer one is forgotten

#: A path of this Halt with its query. `//host`, `/\host` and control characters, which browsers
#: remove, could lead to another server.
_OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


def login_url() -> str:
    """The address of the sign-in, which returns to the page that this request is for."""
    path = request.full_path.removesuffix("?")
    if request.method != "GET" or not wants_page() or path == "/" or not _is_own(path):
        return url_for("pages.login")
    return url_for("pages.login", next=path)


def return_path() -> str:
    """The path of `next` in the request, without Halt's prefix; "" where there is none."""
    path = request.values.get("next", "")
    return path if _is_own(path) else ""


def return_url() -> str:
    """Where a browser goes after it has signed in."""
    path = return_path()
    return f"{request.script_root}{path}" if path else url_for("pages.index")


def _is_own(path: str) -> bool:
    return len(path) <= PATH_MAX and _OWN_PATH.fullmatch(path) is not None
