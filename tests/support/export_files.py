"""Files of exported conversations, as GET /export writes and POST /import reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from halt.store.models import UnknownFile
from halt.store.portable import MESSAGE_MAX, PortableConversation, read
from tests.support.halt_server import new_id


def export_file(*conversations: dict[str, Any]) -> bytes:
    """The file of these conversations."""
    head = {"format": "halt-conversations", "version": 1}
    return json.dumps(head | {"conversations": conversations}).encode()


def exported_conversation(
    *texts: str, title: str = "A talk", at: float = 1_760_000_000.0, **fields: Any
) -> dict[str, Any]:
    """A conversation in such a file; `texts` are its prompts and answers in turn."""
    messages = [
        {
            "id": number,
            "parent": number - 1 or None,
            "role": "user" if number % 2 else "assistant",
            "content": text,
            "created_at": at + number,
        }
        for number, text in enumerate(texts, 1)
    ]
    ids = [message["id"] for message in messages]
    times = {"created_at": at, "updated_at": at}
    return {"id": new_id(), "title": title, "messages": messages, "chosen": ids, **times, **fields}


def conversations_of(data: bytes, longest: int = MESSAGE_MAX) -> list[PortableConversation]:
    """The checked conversations of an exported file."""
    return read(data, longest).conversations


def no_contents(file_hash: str) -> Iterator[bytes]:
    """No file is there: for exports of conversations without files."""
    raise UnknownFile("There is no such file here.")
