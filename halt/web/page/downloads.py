"""Responses that a browser saves as a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from flask import Response
from werkzeug.wsgi import ClosingIterator

from halt.web.services import services


def download_response(
    pieces: Iterator[bytes], name: str, mimetype: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A file that is read while it is sent, as a reader, because that may take long.

    `name`: of one line. `headers` are added. Raises AtCapacity, Draining.
    """
    readers = services().generations.readers
    response = Response(
        ClosingIterator(pieces, readers.give_back_place), mimetype=mimetype, headers=headers
    )
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode() or "file"
    names = {"filename": ascii_name, "filename*": f"UTF-8''{quote(name)}"}
    response.headers.set("Content-Disposition", "attachment", **names)
    readers.take_place()  # last: the response's close gives it back
    return response
