"""Export of conversations as files, and import of exported files."""

from __future__ import annotations

import contextlib
import mmap
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain

from flask import Response, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge

from halt.chat.imports import Imports
from halt.errors import RequestError, TooLarge
from halt.store.exports import path, to_json, to_markdown, to_zip
from halt.store.import_faults import OWN_ALONE
from halt.store.portable import MESSAGE_MAX, PortableConversation
from halt.web.form_files import breaks_off
from halt.web.identity import owner
from halt.web.page.downloads import download_response
from halt.web.page.toast import toast
from halt.web.requests import conversation_ids
from halt.web.services import services

#: The formats by their names: their files' extension and MIME type.
KINDS = {
    "json": ("json", "application/json"),
    "markdown": ("md", "text/markdown"),
    "zip": ("zip", "application/zip"),  # Markdown with files
}
FORMATS = ("json", "markdown")
NAMES_SHOWN = 3  # of files that were not imported


def export_all() -> Response:
    """All conversations of the person as one file."""
    return _export_many(None)


def export_selected() -> Response:
    """The selected conversations of the person as one file."""
    return _export_many(conversation_ids())


def _export_many(ids: list[str] | None) -> Response:
    title = f"Halt {datetime.now(UTC):%Y-%m-%d}"
    transfer, format_name = services().store.transfer, _format()
    has_files = format_name == "markdown" and transfer.have_files(owner(), ids)
    return _download(transfer.export_many(owner(), ids), title, format_name, has_files=has_files)


def export(conversation_id: str) -> Response:
    """One conversation as a file."""
    format_name = _format()
    conversations = services().store.transfer.export(owner(), conversation_id)
    with services().exporting:
        conversation = next(conversations)
    has_files = any(message.files for message in path(conversation))
    return _download(
        chain([conversation], conversations), conversation.title, format_name, has_files=has_files
    )


def _format() -> str:
    """The format in the request. Raises RequestError (`format`)."""
    name = request.values.get("format", "json")
    if name not in FORMATS:
        raise RequestError(f"format must be one of {', '.join(FORMATS)}.", field="format")
    return name


def _download(
    conversations: Iterator[PortableConversation], title: str, kind: str, *, has_files: bool
) -> Response:
    """A file that is generated while it is sent.

    `has_files`: whether Markdown has files beside it, in a ZIP.
    """
    contents = services().store.files.contents(owner())
    if kind == "json":
        parts = to_json(conversations, contents)
    elif has_files:
        kind, parts = "zip", to_zip(conversations, file_stem(title), contents)
    else:
        parts = to_markdown(conversations)
    ending, mimetype = KINDS[kind]
    pieces = _in_turn(parts, services().exporting)
    return download_response(pieces, f"{file_stem(title)}.{ending}", mimetype)


def _in_turn(parts: Iterator[bytes], making: threading.Lock) -> Iterator[bytes]:
    """Yield the parts of a file. `making` is held while a part is made (`Services.exporting`)."""
    while True:
        with making:
            part = next(parts, None)
        if part is None:
            return
        yield part


def file_stem(title: str) -> str:
    """A file name made of the characters of the title that every system accepts, never empty."""
    words = re.sub(r"[^\w.-]", " ", title).split()
    return "-".join(words)[:60].strip("-.") or "conversation"


def import_() -> Response:
    """Import a file that Halt has exported as JSON."""
    limit = services().config.max_import_bytes
    request.max_content_length = request.max_form_memory_size = limit
    uploads, readers = services().uploads, services().generations.readers
    with uploads.receiving(owner()), readers.place():  # a large file may take long to arrive
        try:
            with breaks_off():
                file = request.files.get("file")
            data = _bytes_of(file) if file else b""
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
        imports = Imports(services().store, uploads, services().config.max_file_bytes)
        imported = imports.take(owner(), data, message_max)
    count = len(imported.ids)
    message = f"{count:,} chat{' was' if count == 1 else 's were'} imported."
    if not count:
        message = "The file has no chats. Nothing was imported."
    if imported.unread:
        message += f" {_unread(imported.unread)}"
    return toast(message, opens=imported.ids[0] if count == 1 else "")


def _bytes_of(file: FileStorage) -> bytes | memoryview:
    """The bytes of an uploaded file. A large one is on the disk, and not read into memory."""
    with contextlib.suppress(OSError, ValueError):  # it is in memory, or empty
        file.stream.flush()
        return memoryview(mmap.mmap(file.stream.fileno(), 0, access=mmap.ACCESS_READ))
    data: bytes = file.read()
    return data


def _unread(names: list[str]) -> str:
    """What became of the files that were not imported."""
    listed = ", ".join(names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        listed += f" and {len(names) - NAMES_SHOWN} more"
    subject = "A file was" if len(names) == 1 else f"{len(names)} files were"
    return f"{subject} not imported, only named in the text: {listed}."
