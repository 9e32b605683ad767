"""Static files, which browsers keep for a year: their addresses have a digest of all of them.

`url_for("static", filename="js/main.js")` gives `/static/DIGEST/js/main.js`. The digest is in the
path, so that it applies to files with relative addresses too: modules that a script imports.

Halt's own scripts and styles are sent without comments and indentation. Each line keeps its number.

`css/tokens+base.css` is both style sheets in one: a page is drawn when all of its style sheets have
arrived, and has many.
"""

from __future__ import annotations

import hashlib
import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Flask, Response, send_file, send_from_directory
from werkzeug.exceptions import NotFound

from halt.assets import STATIC

YEAR = 365 * 24 * 3600  # seconds
_VERSIONED = re.compile(r"([0-9a-f]{8})/(.+)", re.DOTALL)
_JOINED = re.compile(r"css/([a-z]+(?:\+[a-z]+)+)\.css")
#: Scripts that are no module.
_CLASSIC = frozenset({"js/early.js"})
#: Comments and indentation, by the file's suffix. A comment behind code follows a sign that can end
#: it and has no quotation mark, so that no text is taken for one. In styles also spaces and line
#: ends behind a sign that separates, and the last semicolon of a line's rule; a space before
#: another sign may join selectors.
_UNSENT = {
    ".js": re.compile(r"^[ \t]*//.*|^[ \t]+|(?<=[;{},()\[\]]) +// [^\"'`\n]*$", re.MULTILINE),
    ".css": re.compile(
        r"/\*(?:[^*]|\*(?!/))*+(?:\*/|\Z)|^[ \t]+|;? +(?=\})|(?<=[;{},:]) +|(?<! ) +(?=\{)"
        r"| (?=> )|(?<= >) |(?<=[;{},\n])\n",
        re.MULTILINE,
    ),
}


def digest_of(folder: Path) -> str:
    """Eight hexadecimal digits that change with any file's name or content."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:8]


def modules_in(folder: Path) -> list[str]:
    """Names of the modules that a page begins with.

    It preloads them, so that none waits for its importer. Modules in `on_demand` come later.
    """
    names = (path.relative_to(folder).as_posix() for path in (folder / "js").rglob("*.js"))
    return sorted(name for name in names if name not in _CLASSIC and "/on_demand/" not in name)


@lru_cache(maxsize=256)
def sent_text(path: Path, _changed_ns: int) -> bytes:
    """The content of a script or style without comments and indentation, with all its lines."""
    text = path.read_text("utf-8")
    return _UNSENT[path.suffix].sub(lambda match: "\n" * match[0].count("\n"), text).encode()


def joined_styles(names: list[str]) -> bytes:
    """Several style sheets in one.

    Raises:
        NotFound: one of them does not exist, or is named twice.
    """
    paths = [STATIC / "css" / f"{name}.css" for name in names]
    if len(set(names)) < len(names) or not all(path.is_file() for path in paths):
        raise NotFound
    return b"\n".join(sent_text(path, path.stat().st_mtime_ns) for path in paths)


def install(app: Flask) -> None:
    """Serve static files under versioned addresses, and make `url_for` return those.

    A file's plain address works too, and so does that of another version, which a page has that
    another version of Halt made; browsers then ask for the file each time.
    """
    current_digest = digest_of(STATIC)

    def send(filename: str) -> Response:
        match = _VERSIONED.fullmatch(filename)
        digest, name = match.groups() if match else (None, filename)
        is_current = digest == current_digest
        age, path = YEAR if is_current else None, STATIC / name
        if joined := _JOINED.fullmatch(name):
            styles = io.BytesIO(joined_styles(joined[1].split("+")))
            response = send_file(styles, "text/css", etag=current_digest, max_age=age)
        else:
            response = send_from_directory(STATIC, name, max_age=age)
        is_own = path.suffix in _UNSENT and "vendor" not in path.parts and not joined
        if response.status_code == 200 and is_own:
            response.close()
            response.direct_passthrough = False
            response.set_data(sent_text(path, path.stat().st_mtime_ns))
        if is_current:
            response.cache_control.immutable = True
        return response

    def add_version(endpoint: str, values: dict[str, Any]) -> None:
        if endpoint == "static":
            values["filename"] = f"{current_digest}/{values['filename']}"

    app.view_functions["static"] = send
    app.url_defaults(add_version)
    app.jinja_env.globals["script_modules"] = modules_in(STATIC)
