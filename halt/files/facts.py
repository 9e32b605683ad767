"""What is known of a file that was read."""

from __future__ import annotations

from typing import Literal

import msgspec

#: What a file is for a model: an image part, a document that some models read themselves, or text.
#: A Word document is text, because no model reads it.
Kind = Literal["image", "pdf", "text"]

#: What is kept of a file: the content that is sent or downloaded, the part of its text that a model
#: gets, a small picture.
Role = Literal["content", "text", "thumbnail"]


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """A file that was read. Its name is not among them: each message has its own."""

    kind: Kind
    media_type: str  # of what is kept
    label: str  # of the format, for people: "PDF", "PNG", "Python", "CSV"
    tokens: int  # about how many it takes in a prompt
    width: int = 0  # of an image, in pixels
    height: int = 0
    pages: int = 0  # of a PDF, all
    text_pages: int = 0  # of a PDF: the first ones, whose text is used
    chars: int = 0  # of all its text; of a PDF that was cut, only of the part that is used
    text_chars: int = 0  # of the part of the text that is used
    thumbnail_type: str = ""  # the media type of an image's thumbnail

    @property
    def is_cut(self) -> bool:
        """Whether only the beginning of its text is used."""
        return self.text_pages < self.pages or self.text_chars < self.chars

    @property
    def extent(self) -> str:
        """How much there is of it, and how much is used: "pages 1 to 40 of 212"."""
        if self.kind == "image":
            return f"{self.width:,} x {self.height:,}"
        if self.kind == "pdf":
            return self._pages()
        if self.is_cut:
            return f"the first {self.text_chars:,} of {self.chars:,} characters"
        return _count(self.chars, "character")

    @property
    def detail(self) -> str:
        """What a card or a line says of it beside its name: its extent and its tokens."""
        return f"{self.extent} · about {_count(self.tokens, 'token')}"

    def _pages(self) -> str:
        if self.text_pages < self.pages:
            if not self.text_pages:
                return f"a part of page 1 of {self.pages:,}"
            first = "page 1" if self.text_pages == 1 else f"pages 1 to {self.text_pages:,}"
            return f"{first} of {self.pages:,}"
        return _count(self.pages, "page")


def _count(number: int, noun: str) -> str:
    """As in "1 page" and "1,200 pages"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
