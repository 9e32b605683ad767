"""Imported files: other products, faults and their places, limits of items, and the search index."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.errors import RequestError, TooLarge
from halt.store import json_items, portable
from halt.store.exports import PIECE, to_json
from halt.store.portable import (
    ENDED_MAX,
    NAME_MAX,
    STEPS_MAX,
    PortableConversation,
    PortableMessage,
    PortableSettings,
)
from halt.store.search import INDEXED_MAX, snippet, trigrams
from tests.support.export_files import conversations_of, no_contents

MESSAGE = {"id": "m", "role": "user", "content": "Hi"}
CLAUDE = {"uuid": "u", "name": "Sky", "chat_messages": [{"sender": "human", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("file_content", "product"),
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
def test_import_of_another_products_export_names_the_product(
    file_content: Any, product: str
) -> None:
    """An import of another product's export is refused: the error names the product and the format
    that Halt reads.
    """
    with pytest.raises(RequestError) as error_info:
        conversations_of(msgspec.json.encode(file_content))
    assert str(error_info.value) == (
        f"This file can't be imported: it looks like an export of {product}. "
        "Choose the JSON file that “Export all as JSON” made."
    )
    assert error_info.value.field == "file"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"messages": []}]', "it is not an export of Halt. Choose the JSON file"),
        (b'{"messages": []}', "it is not an export of Halt. Choose the JSON file"),
        (b"[]", "it is not an export of Halt"),
        (b'"text"', "it is not an export of Halt"),
        (b"PK\x03\x04rest", "it is a ZIP archive. Choose the JSON file"),
        (b"<html>", "it is not JSON, or it is incomplete"),
        (b'{"format": "halt-conversations", "version": 1}', "the field “conversations” is missing"),
        (
            b'{"format": "halt-conversations", "version": 1, "conversations": [{"id": 1, "chat": 1}]}',
            "“id” must be a text",
        ),
    ],
)
def test_import_of_an_unreadable_file_explains_the_reason(data: bytes, message: str) -> None:
    """An import of an unreadable file is refused with the reason: another kind, no JSON, or a wrong
    field.
    """
    with pytest.raises(RequestError) as error_info:
        conversations_of(data)
    assert message in str(error_info.value)


# --- limits of items ------------------------------------------------------------------------------


def file(*messages: dict[str, Any], **fields: Any) -> bytes:
    """A file of one conversation with the title "Sky"."""
    conversation = {
        "id": "abcdefgh",
        "title": "Sky",
        "messages": messages or [MESSAGE_ITEM],
        **fields,
    }
    return msgspec.json.encode(
        {"format": "halt-conversations", "version": 1, "conversations": [conversation]}
    )


MESSAGE_ITEM: dict[str, Any] = {"id": 1, "role": "user", "content": "Hi"}
LONGEST = 1_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            file({**MESSAGE_ITEM, "content": "x" * 1_001}),
            "the message 1 is longer than 1,000 characters",
        ),
        (
            file(
                {**MESSAGE_ITEM, "folds": [{"number": 1, "kind": "tool", "result": "x" * 600}] * 2},
            ),
            "the message 1 has thoughts and tool calls of more than 1,000 characters",
        ),
        (
            file({**MESSAGE_ITEM, "folds": [{"number": 1, "kind": "thought"}] * (STEPS_MAX + 1)}),
            "the message 1 has more than 1,000 thoughts and tool calls",
        ),
        (
            file({**MESSAGE_ITEM, "ended": {"type": "done", "usage": {"x": "y" * ENDED_MAX}}}),
            "the message 1 has an end of more than 1,000,000 bytes",
        ),
        (
            file({**MESSAGE_ITEM, "model": "x" * (NAME_MAX + 1)}),
            "the message 1 has a model name of more than 10,000 characters",
        ),
        (
            file(settings={"system_prompt": "x" * 1_001}),
            "the system prompt is longer than 1,000 characters",
        ),
        (
            file(settings={"model": "x" * (NAME_MAX + 1)}),
            "the model's name is longer than 10,000 characters",
        ),
    ],
)
def test_import_of_a_too_long_item_names_the_conversation(data: bytes, reason: str) -> None:
    """An item over its limit refuses the file; the error names the conversation and the limit."""
    with pytest.raises(TooLarge) as error_info:
        conversations_of(data, LONGEST)
    assert str(error_info.value) == (
        f"This file can't be imported: in the conversation “Sky”, {reason}."
    )


def test_import_of_an_item_at_its_limit_is_accepted() -> None:
    """A message as long as the limit is imported; a longer title is cut to NAME_MAX."""
    data = file({**MESSAGE_ITEM, "content": "é" * LONGEST}, title="Sky " * 1_000_000)
    (conversation,) = conversations_of(data, LONGEST)
    assert conversation.messages[0].content == "é" * LONGEST
    assert conversation.title.startswith("Sky Sky ")
    assert len(conversation.title) == NAME_MAX


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            file({**MESSAGE_ITEM, "role": "x" * 1_000_000}),
            "message 1, the field “role” must be one of",
        ),
        (
            file({**MESSAGE_ITEM, "role": "a - at `$.b` c"}),
            "message 1, the field “role” must be one of",
        ),
        (
            file(MESSAGE_ITEM, {**MESSAGE_ITEM, "id": -1}),
            "in conversation 1, message 2, the field “id” must be 0",
        ),
        (
            file({**MESSAGE_ITEM, "folds": 7}),
            "message 1, the field “folds” must be a list, and is a whole",
        ),
        (file({**MESSAGE_ITEM, "folds": [7]}), "message 1, step 1 (folds[0]) must be an object"),
        (file(chosen=["a"]), "in conversation 1, chosen 1 must be a whole number"),
        (file({**MESSAGE_ITEM, "ended": {"type": "no"}}), "message 1, ended, the field “type”"),
        (file(messages={"a": 1}), "in conversation 1, the field “messages” must be a list"),
        (file(id="x" * 1_000_000), "the field “id” must be 8 to 64 letters"),
    ],
)
def test_import_of_a_wrong_field_names_its_place(data: bytes, message: str) -> None:
    """An import with a wrong field is refused with the field's place and a short quote of
    the file.
    """
    with pytest.raises(RequestError) as error_info:
        conversations_of(data)
    assert message in str(error_info.value)
    assert len(str(error_info.value)) < 500


def test_import_reads_conversations_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All conversations up to CONVERSATIONS_MAX are read, and unknown fields are ignored."""
    monkeypatch.setattr(portable, "CONVERSATIONS_MAX", 3)
    conversation = {
        "id": "abcdefgh",
        "title": "",
        "messages": [MESSAGE_ITEM],
        "more": [{"a": ["]}", 1]}],
    }
    for count in (0, 1, 3, 4):
        data = msgspec.json.encode(
            {"format": "halt-conversations", "version": 1, "conversations": [conversation] * count}
        )
        if count <= 3:
            assert len(conversations_of(data)) == count
            continue
        with pytest.raises(RequestError, match="must have 3 items at most"):
            conversations_of(data)


@pytest.mark.parametrize("count", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1])
def test_export_in_pieces_equals_the_whole_file(count: int) -> None:
    """The pieces of an export join to the whole file, also where texts look like its syntax."""
    misleading_text = '"messages":[]'
    conversation = PortableConversation(
        "abcdefgh",
        misleading_text,
        [PortableMessage(n + 1, "user", misleading_text) for n in range(count)],
        settings=PortableSettings(system_prompt=misleading_text),
    )
    exported = b"".join(to_json([conversation, conversation], no_contents))
    assert (
        json.loads(exported)["conversations"] == [json.loads(msgspec.json.encode(conversation))] * 2
    )
    assert all(len(piece) < 70 * PIECE + 200 for piece in to_json([conversation], no_contents))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"system_prompt": "Review.", "prompt_name": "Reviewer", "top_p": 0.5}, ("Reviewer", 0.5)),
        ({"system_prompt": "Review.", "prompt_name": f" {'n' * 80}"}, ("n" * 59, None)),
        ({"prompt_name": "Reviewer"}, (None, None)),
        ({"system_prompt": "Review.", "prompt_name": ""}, (None, None)),
        ({"system_prompt": "Review.", "temperature": 1}, (None, None)),  # an older file
    ],
)
def test_imported_name_of_a_prompt_is_cut_or_removed(
    settings: dict[str, Any], expected: tuple[str | None, float | None]
) -> None:
    """A prompt's name is cut to its limit; without a system prompt there is none."""
    (conversation,) = conversations_of(file(settings=settings))
    assert (conversation.settings.prompt_name, conversation.settings.top_p) == expected


# --- items of a list ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.sampled_from('a"\\[]{},: é'), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.lists(JSON, max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([1, 2, 3, 5, 8, json_items.STEP]),
)
def test_items_of_a_list_equal_its_values_for_every_step_size(
    values: list[Any], indent: int | None, ascii_only: bool, step: int
) -> None:
    """`items` returns each value of a JSON list, wherever a step of reading ends."""
    raw = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "STEP", step)
        assert [json.loads(bytes(item)) for item in json_items.items(raw)] == values


@given(st.binary(max_size=40))
def test_items_of_arbitrary_bytes_end_without_an_error(raw: bytes) -> None:
    """For any bytes `items` ends without an error and returns no byte twice."""
    assert sum(map(len, json_items.items(b"[" + raw))) <= len(raw)


def test_reading_a_large_file_lets_other_threads_run() -> None:
    """Reading 8 MB releases the interpreter often enough for another thread to run."""
    texts = ['"' * 1_000_000, "\n" * 1_000_000, "é" * 1_000_000]
    messages = [{"id": n + 1, "role": "user", "content": ""} for n in range(60_000)]
    data = file(
        *messages, *({**MESSAGE_ITEM, "id": 10**6 + n, "content": t} for n, t in enumerate(texts))
    )
    turns, reading_ended = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not reading_ended.wait(0.001):
            turns += 1

    counting_thread = threading.Thread(target=count)
    interval_before = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    counting_thread.start()
    try:
        (conversation,) = conversations_of(data)
    finally:
        reading_ended.set()
        counting_thread.join()
        sys.setswitchinterval(interval_before)
    assert [message.content for message in conversation.messages[-3:]] == texts
    assert turns > 5  # hundreds are usual; reading in one call would allow one or two


# --- search index of a long text ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "indexed_text"),
    [
        ("word " * 10, None),
        ("wörd " * (INDEXED_MAX // 5), None),
        ("word " * INDEXED_MAX, ("word " * INDEXED_MAX)[:INDEXED_MAX]),
        ("中文字", " 中文字 文字 字 "),
        ("中文 " * INDEXED_MAX, (" 中文 文  " * INDEXED_MAX)[:INDEXED_MAX]),
    ],
)
def test_search_index_holds_the_first_part_of_a_long_text(
    text: str, indexed_text: str | None
) -> None:
    """Of a long text the first INDEXED_MAX characters are indexed."""
    assert trigrams(text) == indexed_text


def test_snippet_is_searched_in_the_indexed_part_alone() -> None:
    """A snippet marks hits within the first INDEXED_MAX characters and none behind them."""
    text = f"{'x' * INDEXED_MAX} sought"
    assert snippet(f"sought {text}", ["sought"])[0] == ("sought", True)
    assert not any(hit for _, hit in snippet(text, ["sought"]))
