"""The files of a prompt, as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass

from halt.files.facts import Kind
from halt.store.models import Attachment

THUMBNAIL_HEIGHT = 160  # pixels of a picture on the page, at most
FILES_HEIGHT = 170  # pixels of a row of files, estimated


@dataclass(frozen=True)
class FileView:
    """The data of `files.html`: one file."""

    id: str  # its hash
    name: str
    kind: Kind
    label: str  # of its format
    detail: str  # how much there is of it
    width: int = 0  # of the shown picture, in pixels
    height: int = 0


def file_view(attachment: Attachment) -> FileView:
    """The view of a file."""
    facts = attachment.file.facts
    scale = min(1.0, THUMBNAIL_HEIGHT / max(facts.height, 1))
    return FileView(
        attachment.file.hash,
        attachment.name,
        facts.kind,
        facts.label,
        facts.detail,
        round(facts.width * scale),
        round(facts.height * scale),
    )
