"""The parts of a message's content, in OpenAI's form: texts, images, files, sound."""

from __future__ import annotations

from typing import Any

import msgspec


class FilePart(dict[str, Any]):
    """A file in a message's content, in OpenAI's form; `text` is for models that read no files."""

    def __init__(self, name: str, url: str, text: str) -> None:
        """`url`: a data: URL."""
        super().__init__(type="file", file={"filename": name, "file_data": url})
        self.text = text

    def as_text(self) -> dict[str, Any]:
        """The part with the text alone."""
        return {"type": "text", "text": self.text}


def is_image(part: Any) -> bool:
    """Whether a part is an image."""
    return isinstance(part, dict) and part.get("type") in {"image_url", "image"}


def has_data(part: Any) -> bool:
    """Whether a part has the data of an image, a file or a sound."""
    return _without_data(part) is not part


def characters(parts: list[Any]) -> int:
    """The size of the parts: characters of their texts, and everything else as JSON.

    The data of images, files and sounds does not count: models do not read it as text.
    """
    size = 0
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)} if len(part) == 2:
                size += len(text)
            case _:
                size += len(msgspec.json.encode(_without_data(part)))
    return size


def _without_data(part: Any) -> Any:
    """A part without the data of its image, file or sound; the part itself where it has none."""
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("data:"):
            return {"type": "image_url"}
        case {"type": "file", "file": {"file_data": str()}}:
            return {"type": "file"}
        case {"type": "input_audio", "input_audio": {"data": str()}}:
            return {"type": "input_audio"}
        case {"type": "image" | "document", "source": {"data": str()}}:
            return {"type": part["type"]}
    return part
