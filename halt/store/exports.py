"""Writes exports of conversations: JSON for an import, Markdown for people."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from urllib.parse import quote

import msgspec

from halt.files.names import clean_name
from halt.store.models import UnknownFile
from halt.store.portable import FORMAT, VERSION, PortableConversation, PortableMessage
from halt.store.portable_files import ContentReader, PortableFile, encoded

PIECE = 200  # messages that are encoded in one call

_encode = msgspec.json.Encoder().encode


def to_json(
    conversations: Iterable[PortableConversation], contents: ContentReader
) -> Iterator[bytes]:
    """The JSON file of these conversations with their files, in pieces.

    A piece has up to PIECE messages, or a piece of a file. A file that `contents` does not have is
    left out.
    """
    types: dict[str, str] = {}  # of all files, by their hashes
    yield b'{"format":"%b","version":%d,"conversations":[' % (FORMAT.encode(), VERSION)
    for number, conversation in enumerate(conversations):
        # Quotes within texts are escaped, so the first occurrence is the empty list itself.
        empty = _encode(msgspec.structs.replace(conversation, messages=[]))
        head, _, rest = empty.partition(b'"messages":[]')
        piece = (b",\n" if number else b"\n") + head + b'"messages":['
        for first in range(0, len(conversation.messages), PIECE):
            messages = conversation.messages[first : first + PIECE]
            types |= {file.hash: file.type for message in messages for file in message.files}
            yield piece + (b"," if first else b"") + _encode(messages)[1:-1]
            piece = b""
        yield piece + b"]" + rest
    yield b"\n]"
    separator = b',"files":[\n'
    for file_hash, media_type in types.items():
        try:
            for piece in encoded(file_hash, media_type, contents(file_hash)):
                yield separator + piece
                separator = b""
        except UnknownFile:
            if not separator:
                raise
            continue
        separator = b",\n"
    yield b"]}\n" if separator == b",\n" else b"}\n"


def to_markdown(conversations: Iterable[PortableConversation]) -> Iterator[bytes]:
    """A Markdown file with the shown path of each conversation, without files."""
    return _markdown(conversations, None)


def to_zip(
    conversations: Iterable[PortableConversation], name: str, contents: ContentReader
) -> Iterator[bytes]:
    """A ZIP of NAME.md, as `to_markdown` writes it, and the files that it links, in pieces.

    A file that `contents` does not have is left out.
    """
    out, linked = _Output(), _Linked()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(_entry(f"{name}.md"), "w") as entry:
            for piece in _markdown(conversations, linked):
                entry.write(piece)
                yield from out.taken()
        for file_hash, path in linked.paths.items():
            try:
                pieces = contents(file_hash)
                first = next(pieces, b"")
            except UnknownFile:
                continue
            with archive.open(_entry(path), "w") as entry:
                entry.write(first)
                for piece in pieces:
                    yield from out.taken()
                    entry.write(piece)
            yield from out.taken()
    yield from out.taken()


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, time.localtime()[:6])
    # Many programs do not read an uncompressed entry whose size comes after it.
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


class _Output:
    """The file that a ZIP is written to: its bytes are taken as they come, so it cannot seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> Iterator[bytes]:
        """What was written since the last call, in one piece."""
        pieces, self._pieces = self._pieces, []
        if pieces:
            yield b"".join(pieces)


class _Linked:
    """The files of a Markdown export: each is there once, under its number and its first name."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}  # by the hashes

    def link(self, file: PortableFile) -> str:
        """Markdown that shows the file, or leads to it."""
        path = self._path(file)
        mark = "!" if file.type.startswith("image/") else ""
        return f"{mark}[{_MARKS.sub(_escaped, file.name)}]({path})"

    def relinked(self, message: PortableMessage) -> str:
        """The text of a message with the addresses of its files in the archive."""
        files = {file.hash: file for file in message.files}

        def address(match: re.Match[str]) -> str:
            file = files.get(match[1])
            return f"]({self._path(file)})" if file else match[0]

        return _ADDRESS.sub(address, message.content)

    def _path(self, file: PortableFile) -> str:
        if file.hash not in self.paths:
            number = len(self.paths) + 1
            self.paths[file.hash] = f"files/{number}-{_portable_name(file)}"
        return quote(self.paths[file.hash])


_MARKS = re.compile(r"[\\`*_\[\]<>&]")
_ADDRESS = re.compile(r"\]\(/files/([0-9a-f]{64})\)")
_REFUSED_IN_NAMES = re.compile(r'[<>:"|?*]')  # by Windows
_ENDINGS = {"image/png": (".png",), "image/jpeg": (".jpg", ".jpeg")}


def _escaped(mark: re.Match[str]) -> str:
    return f"\\{mark[0]}"


def _portable_name(file: PortableFile) -> str:
    """The name of a file on any system; an image's ends as its type says, whatever it was."""
    name = _REFUSED_IN_NAMES.sub("-", clean_name(file.name)).rstrip(". ")
    endings = _ENDINGS.get(file.type, ())
    if endings and PurePath(name).suffix.lower() not in endings:
        return PurePath(name).stem + endings[0]
    return name


def _markdown(
    conversations: Iterable[PortableConversation], linked: _Linked | None
) -> Iterator[bytes]:
    for number, conversation in enumerate(conversations):
        yield f"{chr(10) if number else ''}# {conversation.title or 'Conversation'}\n".encode()
        settings = conversation.settings
        if settings.system_prompt:
            name = f": {settings.prompt_name}" if settings.prompt_name else ""
            yield f"\n## System prompt{name}\n\n{settings.system_prompt}\n".encode()
        for message in path(conversation):
            author = message.model or message.requested_model or "Answer"
            if message.role == "user":
                author = "You"
            note = _EDITED if message.edited else _NOTES.get(message.state, "")
            text = "\n\n".join(_parts(message, linked))
            yield f"\n## {author}\n\n{text}\n{note}".encode()


def _parts(message: PortableMessage, linked: _Linked | None) -> list[str]:
    """The files of a message, and its text, which comes first in an answer."""
    if linked is None or not message.files:
        return [message.content]
    text = linked.relinked(message)
    if message.role == "assistant":
        unseen = [file for file in message.files if f"/files/{file.hash})" not in message.content]
        return [text, *map(linked.link, unseen)]
    return [*map(linked.link, message.files), *filter(None, [text])]


_EDITED = "\n*Edited by you.*\n"
_NOTES = {
    "stopped": "\n*Stopped here.*\n",
    "error": "\n*This answer broke off here.*\n",
    "interrupted": "\n*This answer broke off here.*\n",
}


def path(conversation: PortableConversation) -> list[PortableMessage]:
    """The messages of the shown path, in order."""
    chosen = set(conversation.chosen)
    chosen_child = {
        message.parent: message for message in conversation.messages if message.id in chosen
    }
    out: list[PortableMessage] = []
    last_id: int | None = None
    while (message := chosen_child.get(last_id)) is not None:
        out.append(message)
        last_id = message.id
    return out
