"""Imports exported conversations with their files, which are read like uploads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from halt.chat.uploads import PieceSource, Uploads
from halt.core.steps import Step
from halt.errors import StoreUnavailable
from halt.files.faults import FileError
from halt.store.portable import PortableConversation, PortableMessage, read
from halt.store.portable_files import EncodedFile, PortableFile
from halt.store.store import Store

_IMAGE = re.compile(r"!\[[^\[\]\n]*+\]\(/files/([0-9a-f]{64})\)")


class Imported(NamedTuple):
    """What an import has added."""

    ids: list[str]  # of the conversations
    unread: list[str]  # the names of files that this Halt does not read; their names are kept


class Imports:
    """Imports exports of any person."""

    def __init__(self, store: Store, uploads: Uploads, max_file_bytes: int) -> None:
        self._store = store
        self._uploads = uploads
        self._max_file_bytes = max_file_bytes

    def take(self, owner: str, data: bytes | memoryview, message_max: int) -> Imported:
        """Import an exported file, whole or not at all.

        A file that the export lacks, or that this Halt does not read, becomes its name in the text
        of its message. `message_max`: characters of a message. Raises RequestError for an export
        that is damaged; TooLarge, also where the person's files would be too many; ReadersBusy,
        StoreUnavailable.
        """
        export = read(data, message_max)
        names = {
            file.hash: file.name
            for message in _messages(export.conversations)
            for file in message.files
        }
        stored: dict[str, str] = {}  # the hashes of what was stored, by those in the export
        added: list[str] = []
        unread: list[str] = []
        try:
            for file_hash, name in names.items():
                file = export.files.get(file_hash)
                if file is not None:
                    file.check()
                if self._store.files.refresh(owner, file_hash):
                    stored[file_hash] = file_hash
                elif file and (new_hash := self._take_file(owner, name, file)):
                    stored[file_hash] = new_hash
                    added.append(new_hash)
                else:
                    unread.append(name)
            for message in _messages(export.conversations):
                _replace_files(message, stored)
            ids = self._store.transfer.import_(owner, export.conversations)
        except BaseException:
            with contextlib.suppress(StoreUnavailable):  # then they are removed after a day
                self._store.files.remove_unused(owner, added)
            raise
        return Imported(ids, unread)

    def _take_file(self, owner: str, name: str, file: EncodedFile) -> str | None:
        """Read and store a file; its hash, None where it is not read."""
        if file.size > self._max_file_bytes:
            return None
        try:
            return self._uploads.take(owner, name, PieceSource(file.pieces()), file.size).file.hash
        except FileError:
            return None


def _messages(conversations: Iterable[PortableConversation]) -> Iterable[PortableMessage]:
    return (message for conversation in conversations for message in conversation.messages)


def _replace_files(message: PortableMessage, stored: Mapping[str, str]) -> None:
    """Let a message have the stored files, and the names of the others in its text."""
    lost = {file.hash: file for file in message.files if file.hash not in stored}
    text, named = message.content, set[str]()

    def name(match: re.Match[str]) -> str:
        if (file := lost.get(match[1])) is None:
            return match[0]
        named.add(file.hash)
        return _as_text(file)

    if message.role == "assistant" and message.files:
        text = _IMAGE.sub(name, text)
        for file in message.files:
            address = _address(stored.get(file.hash, file.hash))
            text = text.replace(_address(file.hash), address)
        addresses = {_address(file.hash): stored.get(file.hash) for file in message.files}
        message.steps = [_with_picture(step, addresses) for step in message.steps]
    names = [_as_text(file) for file in lost.values() if file.hash not in named]
    message.content = "\n\n".join(filter(None, [*names, text]))
    message.files = [
        PortableFile(stored[file.hash], file.name) for file in message.files if file.hash in stored
    ]


def _with_picture(step: Step, hashes: Mapping[str, str | None]) -> Step:
    """The step with its picture's new address; a picture that is lost keeps its label."""
    if step.kind != "picture" or step.result not in hashes:
        return step
    new_hash = hashes[step.result]
    return replace(step, result=_address(new_hash) if new_hash else "")


def _address(file_hash: str) -> str:
    return f"/files/{file_hash}"


def _as_text(file: PortableFile) -> str:
    """The name of a file in place of the file, as a model gets it that does not read the file."""
    return f"[{'image' if file.type.startswith('image/') else 'file'}: {file.name}]"
