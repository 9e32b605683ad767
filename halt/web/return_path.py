"""The page that a browser asked for before it had to sign in, and to which it returns."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from flask import request, url_for

from halt.web.requests import wants_fragment, wants_page

PATH_MAX = 1_000  # characters; a longer one is forgotten

#: A path of this Halt with its query. `//host`, `/\host` and control characters, which browsers
#: remove, could lead to another server.
_OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


def login_url() -> str:
    """The address of the sign-in, which returns to the page that the request is for or is from."""
    path = _requested_path()
    if path == "/" or not _is_own(path):
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


def _requested_path() -> str:
    """The path of the page that this request is for, or that has sent it; "" if unknown."""
    if wants_page():
        return request.full_path.removesuffix("?")
    header = "HX-Current-URL" if wants_fragment() else "Referer"
    try:
        page = urlsplit(request.headers.get(header, ""))
    except ValueError:  # a malformed address
        return ""
    prefix = request.script_root
    if page.netloc != request.host or not page.path.startswith(f"{prefix}/"):
        return ""
    path = page.path.removeprefix(prefix)
    return f"{path}?{page.query}" if page.query else path


def _is_own(path: str) -> bool:
    """Whether a browser may be led to this path: to a page of this Halt, none to sign in or out."""
    if len(path) > PATH_MAX or _OWN_PATH.fullmatch(path) is None:
        return False
    first = posixpath.normpath(unquote(path.partition("?")[0])).split("/")[1]
    return first not in {"login", "logout"}
