"""Files of other products: the error says whose they seem to be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from halt.errors import RequestError
from halt.portable import read

MESSAGE = {"id": "m", "role": "user", "content": "Hi"}
CLAUDE = {"uuid": "u", "name": "Sky", "chat_messages": [{"sender": "human", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("file", "product"),
    [
        ([{"title": "Sky", "create_time": 1.0, "mapping": {"a": {"id": "a"}}}], "ChatGPT"),
        ({"title": "Sky", "mapping": {}, "current_node": "a"}, "ChatGPT"),
        ([{"id": "a", "inserted_at": "2026", "mapping": {"root": {}}}], "DeepSeek"),
        ([CLAUDE], "Claude"),
        ({"conversations": [CLAUDE], "version": 3}, "Claude"),
        ([{"id": "a", "chat": {"history": {"messages": {"m": MESSAGE}}}}], "Open WebUI"),
        ({"conversationId": "a", "endpoint": "openAI", "messages": [MESSAGE]}, "LibreChat"),
        ({"conversations": [{"conversation": {}, "responses": []}]}, "Grok"),
        ([{"header": "Gemini Apps", "title": "Hi", "products": ["Gemini Apps"]}], "Gemini"),
        ({"data": {"chats": [{"conversationId": "a"}]}}, "LibreChat"),
    ],
)
def test_an_export_of_another_product_is_named(file: Any, product: str) -> None:
    """And what Halt reads instead."""
    with pytest.raises(RequestError) as refused:
        read(msgspec.json.encode(file))
    assert str(refused.value) == (
        f"This file can't be imported: it looks like an export of {product}. "
        "Halt reads JSON files that it has exported itself."
    )
    assert refused.value.field == "file"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"messages": []}]', "it is not an export of Halt's. Halt reads JSON files"),
        (b'{"messages": []}', "it is not an export of Halt's. Halt reads JSON files"),
        (b"[]", "it is not an export of Halt's"),
        (b'"text"', "it is not an export of Halt's"),
        (b"PK\x03\x04rest", "it is a ZIP archive. Halt reads JSON files"),
        (b"<html>", "it is not JSON, or not all of it"),
        (b'{"format": "halt-conversations", "version": 1}', "the field “conversations” is missing"),
        (
            b'{"format": "halt-conversations", "version": 1, "conversations": [{"id": 1, "chat": 1}]}',
            "“id” must be a text",
        ),
    ],
)
def test_other_files_are_told_apart(data: bytes, said: str) -> None:
    """A file of Halt's is told what is wrong in it, and where."""
    with pytest.raises(RequestError) as refused:
        read(data)
    assert said in str(refused.value)
