"""Fields that Halt does not know: joined from a stream's pieces, and sent back to the provider."""

from __future__ import annotations

from typing import Any

import pytest

from halt.core.events import Extra, ToolCall
from halt.core.extra_fields import Extras, joined
from halt.core.request import Message, ToolTurn
from halt.providers.chat_completions import ChatDecoder
from halt.providers.round_trip import outgoing_message, round_trip_names
from halt.testing.shapes import call_chunk, delta_chunk
from halt.testing.wire import as_json


@pytest.mark.parametrize(
    ("pieces", "value"),
    [
        (["one"], "one"),
        (["a", "b", "a"], "aba"),
        (["ID", "", "ID"], "ID"),  # the same with each piece
        ([1, 2], 2),
        ([True, False], False),
        (["a", {"b": 1}], {"b": 1}),  # a value of another type replaces the first one
        ([[1], [2, 3]], [1, 2, 3]),
        ([{"a": "x", "n": 1}, {"a": "y", "b": None}], {"a": "xy", "n": 1}),
        (  # OpenRouter's details of thoughts
            [
                [{"type": "reasoning.text", "index": 0, "text": "ha", "format": "f"}],
                [{"type": "reasoning.text", "index": 0, "text": " ha"}],
                [{"type": "reasoning.text", "index": 0, "signature": "s"}],
                [{"type": "reasoning.encrypted", "index": 0, "data": "d"}],
            ],
            [
                {
                    "type": "reasoning.text",
                    "index": 0,
                    "text": "ha ha",
                    "format": "f",
                    "signature": "s",
                },
                {"type": "reasoning.encrypted", "index": 0, "data": "d"},
            ],
        ),
    ],
)
def test_joined_pieces_are_one_value(pieces: list[Any], value: Any) -> None:
    """Objects are joined by field, lists and texts end to end, list items by their index."""
    assert joined(pieces) == value


def test_extras_join_chunk_choice_and_delta_fields_by_their_rules() -> None:
    """In a chunk the newest value counts, in a choice lists grow, in a delta texts and lists grow."""
    extras = Extras()
    extras.add(Extra(chunk={"citations": ["a"], "provider": "p"}, choice={"word": "x"}))
    extras.add(Extra(chunk={"citations": ["a", "b"]}, choice={"logprobs": {"content": [1]}}))
    extras.add(Extra(choice={"logprobs": {"content": [1]}, "word": "y"}, delta={"images": [{}]}))
    extras.add(Extra(delta={"images": [{}], "note": None}))
    assert extras.chunk == {"citations": ["a", "b"], "provider": "p"}
    assert extras.choice == {"logprobs": {"content": [1, 1]}, "word": "y"}
    assert extras.delta == {"images": [{}, {}]}


def returned_fields(*chunks: Any) -> dict[str, Any] | None:
    """The fields of an answer that a decoder keeps for the provider."""
    decoder = ChatDecoder()
    for chunk in chunks:
        decoder.feed(b"data: %b\n\n" % as_json(chunk))
    decoder.feed(b"data: [DONE]\n\n")
    return decoder.opaque


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}


@pytest.mark.parametrize(
    ("chunks", "fields"),
    [
        ([delta_chunk(content="Hello"), delta_chunk(content=" you")], None),
        ([delta_chunk(role="assistant", content=None), call_chunk(index=0, name="f", arguments="{}")], None),
        (
            [delta_chunk(reasoning_content="h"), delta_chunk(reasoning_content="m"), delta_chunk(content="Hi")],
            {"reasoning_content": "hm"},
        ),
        ([delta_chunk(reasoning="hm"), delta_chunk(content="Hi")], {"reasoning": "hm"}),
        (
            [delta_chunk(reasoning="hm", reasoning_content="hm"), delta_chunk(content="Hi")],
            {"reasoning_content": "hm"},
        ),
        (
            [delta_chunk(content="<thi"), delta_chunk(content="nk>hm</think>\n"), delta_chunk(content="Hi")],
            {"content": "<think>hm</think>\nHi"},
        ),
        ([delta_chunk(content=" "), delta_chunk(content="<b>Hi")], None),
        (
            [delta_chunk(content=[THINKING]), delta_chunk(content=[THINKING]), delta_chunk(content="Hi"),
             delta_chunk(content=" you")],
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "HmHm"}]},
                    {"type": "text", "text": "Hi you"},
                ]
            },
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_decoder_keeps_thoughts_in_the_form_they_came(
    chunks: list[Any], fields: dict[str, Any] | None
) -> None:
    """Thoughts are kept as they came: by field name, by marks in the text, or as parts.

    An answer without thoughts has no such fields.
    """
    assert returned_fields(*chunks) == fields


def test_outgoing_tool_turn_has_its_fields_except_refused_ones() -> None:
    """The message and its calls have their extra fields, except those that the server has refused."""
    function = {"name": "f", "arguments": "{}"}
    call = ToolCall("c1", "f", "{}", extra={"extra_content": 1, "function": {"note": 2}})
    tool_turn = ToolTurn("Hi", [call], {"reasoning": "hm", "content": "<think>hm</think>Hi"})
    call_json = {"id": "c1", "type": "function", "function": {"note": 2, **function}}
    assert outgoing_message(tool_turn) == {
        "role": "assistant",
        "content": "<think>hm</think>Hi",
        "reasoning": "hm",
        "tool_calls": [{**call_json, "extra_content": 1}],
    }
    assert round_trip_names(tool_turn) == {"reasoning", "content", "extra_content"}
    assert outgoing_message(tool_turn, frozenset(round_trip_names(tool_turn))) == {
        "role": "assistant",
        "content": "Hi",
        "tool_calls": [call_json],
    }
    assert "reasoning" not in tool_turn


def test_outgoing_client_message_loses_only_refused_fields_of_answers() -> None:
    """Only an answer's own fields can be left out where a server refuses them."""
    message = Message("assistant", "Hi", reasoning_content="hm", prefix=True, audio={"id": "a"})
    assert round_trip_names(message) == {"reasoning_content", "audio"}
    refused_fields = frozenset({"reasoning_content", "prefix"})
    assert outgoing_message(message, refused_fields) == {
        "role": "assistant",
        "content": "Hi",
        "prefix": True,
        "audio": {"id": "a"},
    }
    prompt = Message("user", "Hi", audio=1)
    assert (round_trip_names(prompt), outgoing_message(prompt, refused_fields)) == (
        set(),
        dict(prompt),
    )
