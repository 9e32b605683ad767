"""Export of conversations as files, and import of exported files."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import ClosingIterator

from halt.errors import RequestError, TooLarge
from halt.store.import_faults import OWN_ALONE
from halt.store.portable import MESSAGE_MAX, PortableConversation, read, to_json, to_markdown
from halt.web.identity import owner
from halt.web.page.toast import toast
from halt.web.requests import conversation_ids
from halt.web.services import services

Writer = Callable[[Iterable[PortableConversation]], Iterator[bytes]]

#: The formats by their names: the function that writes a file, its extension, its MIME type.
KINDS: dict[str, tuple[Writer, str, str]] = {
    "json": (to_json, "json", "application/json"),
    "markdown": (to_markdown, "md", "text/markdown"),
}


def export_all() -> Response:
    """All conversations of the person as one file."""
    title = f"Halt {datetime.now(UTC):%Y-%m-%d}"
    return _download(services().store.transfer.export(owner()), title)


def export_selected() -> Response:
    """The selected conversations of the person as one file."""
    ids = conversation_ids()
    title = f"Halt {datetime.now(UTC):%Y-%m-%d}"
    return _download(services().store.transfer.export_many(owner(), ids), title)


def export(conversation_id: str) -> Response:
    """One conversation as a file."""
    conversations = services().store.transfer.export(owner(), conversation_id)
    with services().exporting:
        conversation = next(conversations)
    return _download(chain([conversation], conversations), conversation.title)


def _download(conversations: Iterator[PortableConversation], title: str) -> Response:
    """A file that is generated while it is sent, as a reader, because that may take long."""
    kind = request.values.get("format", "json")
    if kind not in KINDS:
        raise RequestError(f"format must be one of {', '.join(KINDS)}.", field="format")
    write, ending, mimetype = KINDS[kind]
    name = file_name(title, ending)
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    names = {"filename": ascii_name, "filename*": f"UTF-8''{quote(name)}"}
    service = services().generations
    response = Response(
        ClosingIterator(
            _in_turn(write(conversations), services().exporting), service.readers.give_back_place
        ),
        mimetype=mimetype,
    )
    response.headers.set("Content-Disposition", "attachment", **names)
    service.readers.take_place()  # last: the response's close gives it back
    return response


def _in_turn(parts: Iterator[bytes], making: threading.Lock) -> Iterator[bytes]:
    """Yield the parts of a file. `making` is held while a part is made (`Services.exporting`)."""
    while True:
        with making:
            part = next(parts, None)
        if part is None:
            return
        yield part


def file_name(title: str, ending: str) -> str:
    """A file name made of the characters of the title that every system accepts, never empty."""
    words = re.sub(r"[^\w.-]", " ", title).split()
    return f"{'-'.join(words)[:60].strip('-.') or 'conversation'}.{ending}"


def import_() -> Response:
    """Import a file that Halt has exported as JSON."""
    limit = services().config.max_import_bytes
    request.max_content_length = request.max_form_memory_size = limit
    with services().generations.readers.place():  # a large file may take long to arrive
        try:
            file = request.files.get("file")
            data = file.read() if file else b""
        except RequestEntityTooLarge:
            raise TooLarge(
                f"The file is larger than {limit:,} bytes (HALT_MAX_IMPORT_BYTES). "
                "Export fewer chats at once.",
                field="file",
            ) from None
        if not data:
            raise RequestError(OWN_ALONE, field="file")
        # A file that Halt has exported must always be valid.
        message_max = max(MESSAGE_MAX, services().config.max_answer_chars)
        ids = services().store.transfer.import_(owner(), read(data, message_max))
    count = len(ids)
    message = f"{count:,} chat{' was' if count == 1 else 's were'} imported."
    if not ids:
        message = "The file has no chats. Nothing was imported."
    return toast(message, opens=ids[0] if count == 1 else "")
