"""Makes the contents of prompts with files, as one model takes them.

A text, a Word document, and a PDF for a model that does not read PDFs: their text under a heading
with the file's name. An image, and a PDF for a model that reads them: a part of its own, in
OpenAI's form. The newest files come first: of those that exceed a limit of the request only the
names are sent, or the beginning of their text. A model that reads no images gets their names.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any, Protocol

from halt.config.settings import Config
from halt.core.parts import FilePart
from halt.core.request import Message
from halt.errors import RequestError, TooLarge
from halt.files.facts import Role
from halt.model_info import Abilities
from halt.store.models import Attachment, StoredFile
from halt.store.prompt_messages import Contents, PathMessage, PromptPath

#: Parts of one request. Anthropic's API takes only smaller images where there are more.
PARTS_MAX = 20
#: Of all PDFs that are sent as parts of one request; OpenAI and Anthropic take no more.
PDF_PAGES_MAX, PDF_BYTES_MAX = 100, 23_000_000
#: Characters of a text of which only the beginning fits; shorter ones are left out.
BEGINNING_MIN = 500
PIECE = 3 * 65_536  # bytes that are encoded at once; divisible by 3, so that no padding is within
#: Characters of HALT_MAX_PROMPT_CHARS left for notes and headings.
MARGIN = 2_000


class FileData(Protocol):
    """Where the files are: `halt.store.files.Files`, or the memory of a program."""

    def read(self, owner: str, file_hash: str, role: Role) -> bytes:
        """All bytes of a part of a file."""


class ImagesNotRead(RequestError):
    """The last prompt has an image, and the model's server says that the model reads none."""

    code = "images_not_read"


class FileContents:
    """The contents of the prompts of one path. Used by one thread."""

    def __init__(
        self,
        files: FileData,
        owner: str,
        turns: list[PathMessage],
        abilities: Abilities,
        *,
        max_bytes: int,
        max_chars: int,
        refused: frozenset[str] = frozenset(),
    ) -> None:
        """`max_bytes`: of all parts, before they are encoded; `max_chars`: of all messages;
        `refused`: the hashes of images that the model gets only where the last prompt has them.

        Raises ImagesNotRead, TooLarge.
        """
        self._files = files
        self._owner = owner
        self._abilities = abilities
        self._parts: set[str] = set()  # the hashes of the files that are sent as parts
        self._chars: dict[str, int] = {}  # of the texts that are sent, by the hash
        self._pdf_pages, self._pdf_bytes = PDF_PAGES_MAX, PDF_BYTES_MAX  # that are left
        self._refused = refused
        max_bytes = min(max_bytes, abilities.parts_bytes or max_bytes)
        prompts = [turn for turn in turns if turn.role == "user"]
        if abilities.images is False and prompts and _has_image(prompts[-1].files):
            raise ImagesNotRead("This model does not read images. Choose another model.")
        if prompts:
            self._refused -= {attachment.file.hash for attachment in prompts[-1].files}
        chars = max_chars - sum(len(turn.text) for turn in turns)
        for turn in reversed(prompts):
            for attachment in turn.files:
                max_bytes, chars = self._plan(attachment, max_bytes, chars)
            if turn is prompts[-1]:
                self._check_images(turn.files)

    def _plan(self, attachment: Attachment, max_bytes: int, chars: int) -> tuple[int, int]:
        """Decide what is sent of a file; returns what is left of the limits."""
        file, facts = attachment.file, attachment.file.facts
        if file.hash in self._parts or file.hash in self._chars or file.hash in self._refused:
            return max_bytes, chars
        size = file.sizes["content"]
        is_part = self._fits_as_pdf(file) if facts.kind == "pdf" else facts.kind == "image"
        if is_part and size <= max_bytes and len(self._parts) < PARTS_MAX:
            self._parts.add(file.hash)
            if facts.kind == "pdf":
                self._pdf_pages -= facts.pages
                self._pdf_bytes -= size
            return max_bytes - size, chars
        if facts.kind == "image":
            return max_bytes, chars
        chars -= len(attachment.name) + 100  # the heading
        fits = min(facts.text_chars, max(chars, 0))
        if fits < min(facts.text_chars, BEGINNING_MIN):
            return max_bytes, chars
        self._chars[file.hash] = fits
        return max_bytes, chars - fits

    def _fits_as_pdf(self, file: StoredFile) -> bool:
        is_small = file.facts.pages <= self._pdf_pages and file.sizes["content"] <= self._pdf_bytes
        return self._abilities.pdf is True and is_small

    def _check_images(self, attached: tuple[Attachment, ...]) -> None:
        """Raise TooLarge if an image of the last prompt would not be sent."""
        files = [attachment.file for attachment in attached]
        if all(file.hash in self._parts for file in files if file.facts.kind == "image"):
            return
        limit = self._abilities.parts_bytes
        size = f" of {limit / 1e6:,.0f} MB in all" if limit else ""
        raise TooLarge(
            f"A message to this model has at most {PARTS_MAX} images{size}.", field="file"
        )

    def contents(self, prompt: str, attached: tuple[Attachment, ...]) -> Contents:
        """The content of a prompt with files. Raises UnknownFile, StoreUnavailable."""
        texts: list[str] = []
        parts: list[dict[str, Any]] = []
        sends_images = self._abilities.images is not False
        for attachment in attached:
            file = attachment.file
            if file.hash in self._parts and (sends_images or file.facts.kind != "image"):
                parts.append(self._part(attachment))
            elif file.hash in self._chars:
                texts.append(self._text(attachment, self._chars[file.hash]))
            else:
                noun = "image" if file.facts.kind == "image" else "file"
                texts.append(f"[{noun}: {attachment.name}]")
        if prompt:
            texts.append(prompt)
        text = "\n\n".join(texts)
        if not parts:
            return text
        return [*parts, *([{"type": "text", "text": text}] if text else [])]

    def _part(self, attachment: Attachment) -> dict[str, Any]:
        file = attachment.file
        data = self._files.read(self._owner, file.hash, "content")
        url = data_url(file.facts.media_type, data)
        if file.facts.kind == "image":
            return {"type": "image_url", "image_url": {"url": url}}
        return FilePart(attachment.name, url, self._text(attachment, file.facts.text_chars))

    def _text(self, attachment: Attachment, chars: int) -> str:
        """The text of a file under a heading with its name."""
        file, facts = attachment.file, attachment.file.facts
        text = self._files.read(self._owner, file.hash, "text").decode(errors="replace")
        extent = ""
        if chars < facts.text_chars:
            text = text[:chars]
            extent = f" (the first {chars:,} characters)"
        elif facts.is_cut:
            extent = f" ({facts.extent})"
        return f"# {attachment.name}{extent}\n\n{text or '(No text was found in this file.)'}"


def messages_with_files(
    config: Config,
    files: FileData,
    owner: str,
    path: PromptPath,
    default_prompt: str,
    abilities: Abilities,
    refused: frozenset[str] = frozenset(),
) -> list[Message]:
    """The messages of a path, as a model with these abilities takes them.

    `default_prompt`: the system prompt of a conversation without one. `refused`: see
    `FileContents`. Raises ImagesNotRead, TooLarge, UnknownFile, StoreUnavailable.
    """
    if not path.has_files:
        return path.messages(default_prompt)
    system_prompt = default_prompt if path.system_prompt is None else path.system_prompt
    contents = FileContents(
        files,
        owner,
        path.turns,
        abilities,
        max_bytes=config.max_files_bytes,
        max_chars=config.max_prompt_chars - len(system_prompt) - MARGIN,
        refused=refused,
    )
    return path.messages(default_prompt, contents.contents)


def data_url(media_type: str, data: bytes) -> str:
    """The data: URL of a file, made in pieces: 20 MB at once would hold up other threads."""
    pieces = (base64.b64encode(data[at : at + PIECE]).decode() for at in range(0, len(data), PIECE))
    return "".join((f"data:{media_type};base64,", *pieces))


def check_limits(config: Config, number: int, files: Collection[StoredFile]) -> None:
    """Check the files of one message, and their number with repeated ones.

    Raises RequestError, TooLarge.
    """
    if number > config.max_files:
        raise RequestError(f"A message has at most {config.max_files} files.", field="file")
    limit = config.max_files_bytes
    if sum(file.sizes["content"] for file in files) > limit:
        raise TooLarge(f"The files of a message have at most {limit / 1e6:,.0f} MB.", field="file")


def _has_image(files: tuple[Attachment, ...]) -> bool:
    return any(attachment.file.facts.kind == "image" for attachment in files)
