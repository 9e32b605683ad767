"""Text in a stream that is no event: web pages, error lines, end marks."""

from __future__ import annotations

import re

from halt.errors import UpstreamError
from halt.providers.error_body import page_text
from halt.providers.errors import parse_error

WORDS_MAX = 20_000  # bytes of such lines that are stored

_PAGE = re.compile(
    rb"\s*+(?:<\?xml[^>]*+>\s*+|<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body|title|meta|h\d)\b",
    re.IGNORECASE | re.DOTALL,
)


def is_page(body: bytes) -> bool:
    """Whether the body begins like a web page."""
    return _PAGE.match(body[:WORDS_MAX]) is not None


def is_done(data: bytes) -> bool:
    """Whether the data is OpenAI's end mark, `[DONE]`, in one of its forms."""
    return data[:6].upper() == b"[DONE]" or data[:20].strip(b" \"'[]<|>").upper() == b"DONE"


class StrayText:
    """The last lines of a body that are no event: they may say why the stream ended."""

    def __init__(self) -> None:
        self.words = b""
        self.is_page = False  # the lines belong to a web page

    def add(self, line: bytes) -> None:
        """Store a line, up to WORDS_MAX bytes in all."""
        if len(self.words) < WORDS_MAX:
            self.words += line[: WORDS_MAX - len(self.words)] + b"\n"

    def add_of_page(self, line: bytes) -> None:
        """Store a line of a web page. Raises UpstreamError when its title is complete."""
        self.is_page = True
        self.add(line)
        if b"</title" in line.lower() or len(self.words) >= WORDS_MAX:
            raise self._web_page()

    def incomplete(self, *, understood: bool, label: str) -> UpstreamError:
        """Return the error of a body that ended before its answer did.

        `understood`: a part of an answer has arrived; `label`: see `EventDecoder.label`.
        """
        if self.is_page:
            return self._web_page()
        words = self._text()
        if not understood:
            if words and (fault := parse_error(words, event="error")):
                return fault
            if label:
                return UpstreamError("upstream_invalid", label)
        # A single word ("ping") is a keep-alive, and no reason for the end.
        return UpstreamError("upstream_incomplete", words if " " in words else "")

    def _web_page(self) -> UpstreamError:
        return UpstreamError("upstream_web_page", page_text(self._text()))

    def _text(self) -> str:
        """Return the lines as text, empty if they are binary data."""
        text = self.words.decode("utf-8", "replace").strip()
        readable = sum(char.isprintable() or char.isspace() for char in text)
        return text if readable * 10 > len(text) * 9 and "\ufffd" not in text else ""
