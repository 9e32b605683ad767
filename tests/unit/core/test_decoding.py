"""Errors for JSON that is refused: a plain sentence with the field's name."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import pytest

from halt.core.decoding import CHAT_REQUEST, JSON_OBJECT
from halt.errors import RequestError
from halt.web.starts import START_REQUEST
from halt.web.websocket.messages import MESSAGE

HELLO = {"role": "user", "content": "Hello"}
HALF = r'{"messages": [{"role": "user", "content": "%s"}]}'
NAME = "8 to 64 characters of A-Z, a-z, 0-9, _ and -."


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        (b"", "body", "it is empty."),
        (b'{"messages": [', "body", "it ends in the middle."),
        (b'{"messages": [{"role": "user', "body", "it ends in the middle."),
        (HALF % r"\ud83d", "body", "half of a surrogate pair"),
        (HALF % r"\ud83d and so on, and so on, and so on", "body", "half of a surrogate pair"),
        (HALF % r"\ud83d\u0041", "body", "half of a surrogate pair"),
        (b'{"messages" 1}', "body", "expected ':' (byte 12)."),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', "body", "it is not UTF-8."),
        (b"[]", "body", "The body must be a JSON object."),
        (json.dumps({"messages": [HELLO], "id": "no"}), "id", f"id must be {NAME}"),
        (json.dumps({"messages": [HELLO, 1]}), "messages[1]", "messages[1] must be an object."),
        (json.dumps({"messages": [{}]}), "messages[0].role", "messages[0].role is missing."),
        (json.dumps({"id": "12345678"}), "messages", "messages is missing."),
        (json.dumps({"messages": [HELLO], "promt": 1}), "promt", "promt: unknown field"),
        (json.dumps({"messages": [{}], "mesages": 1}), "mesages", "mesages: unknown field"),
        (json.dumps({"temperature": 9, "promt": 1}), "promt", "promt: unknown field"),
        ('{"seed": 1e999, "promt": 1}', "promt", "promt: unknown field"),
        (json.dumps({"messages": [HELLO], "": 1}), "body", "a field with an empty name."),
        (json.dumps({"messages": [HELLO], "stream": False}), "stream", "stream must be true."),
    ],
)
def test_chat_request_invalid_json_is_refused_in_plain_words(
    body: bytes | str, field: str, expected: str
) -> None:
    """Invalid JSON is refused in plain words, without byte counts or regular expressions of the
    parser.
    """
    with pytest.raises(RequestError) as error_info:
        CHAT_REQUEST.decode(body)
    message = error_info.value.args[0]
    assert error_info.value.field == field
    assert expected in message
    assert "truncated" not in message
    assert "regex" not in message


def test_invalid_choice_is_refused_with_the_allowed_values() -> None:
    """An invalid `on_disconnect` is refused with the allowed values, and without repeating the
    wrong one.
    """
    for value in ("x", "x" * 1000):
        with pytest.raises(RequestError) as error_info:
            START_REQUEST.convert({"messages": [HELLO], "on_disconnect": value})
        assert error_info.value.args[0] == 'on_disconnect must be "stop" or "continue".'
        assert error_info.value.field == "on_disconnect"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 10,000,000."),
        ({"max_tokens": 10**8}, "max_tokens must be a whole number from 1 to 10,000,000."),
        ({"max_tokens": 10**30}, "max_tokens must be a whole number from 1 to 10,000,000."),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number from 1 to 10,000,000."),
        (
            {"max_tokens": "5"},
            "max_tokens must be a whole number from 1 to 10,000,000, not a text.",
        ),
        ({"temperature": 3}, "temperature must be a number from 0 to 2."),
        ({"presence_penalty": -2.5}, "presence_penalty must be a number from -2 to 2."),
        ({"model": ""}, "model must be a text of 1 to 200 characters."),
        ({"model": 5}, "model must be a text of 1 to 200 characters, not a number."),
        ({"id": 5}, f"id must be {NAME}"),
        ({"messages": []}, "messages must be a list that is not empty."),
        ({"messages": None}, "messages must be a list that is not empty."),
        ({"messages": [{"role": 1}]}, "messages[0].role must be a text."),
        ({"messages": [HELLO, {"role": None}]}, "messages[1].role is missing."),
        ({"stop": True}, "stop must be a text or a list, not a boolean."),
        ({"stop": ["a", 1]}, "stop[1] must be a text, not a number."),
        ({"tool_choice": []}, "tool_choice must be a text or an object, not a list."),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be true or false, not a number."),
        ({"on_disconnect": 5}, 'on_disconnect must be "stop" or "continue".'),
        ({"stream": None}, "stream must be true."),
    ],
)
def test_start_request_invalid_value_is_refused_with_the_allowed_range(
    fields: dict[str, Any], sentence: str
) -> None:
    """An invalid value is refused with the field's path, kind and range, in JSON text and in
    objects.
    """
    body = {"messages": [HELLO], **fields}
    for decode in (partial(START_REQUEST.decode, json.dumps(body)), partial(_convert, body)):
        with pytest.raises(RequestError) as error_info:
            decode()
        assert error_info.value.args[0] == sentence
        assert error_info.value.field == sentence.partition(" ")[0]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"type": "x"}, 'type must be "start", "stop", "follow", "unfollow" or "ping".'),
        ({"type": 5}, 'type must be "start", "stop", "follow", "unfollow" or "ping".'),
        ({}, "type is missing."),
        ({"type": "stop"}, "id is missing."),
        ({"type": "ping", "id": "12345678"}, "id: unknown field"),
        ({"type": "follow", "id": 5, "seen": 1}, "seen: unknown field"),
        ({"type": "follow", "afer": 1, "id": "12345678", "after": -1}, "afer: unknown field"),
        (
            {"type": "follow", "id": "12345678", "after": -1},
            "after must be a whole number from 0 to 999,999,999,999,999.",
        ),
        (
            {"type": "start", "messages": [HELLO], "on_disconnect": "x"},
            'on_disconnect must be "stop" or "continue".',
        ),
    ],
)
def test_websocket_message_invalid_value_is_refused_with_the_allowed_values(
    message: dict[str, Any], sentence: str
) -> None:
    """An invalid message is refused with the known types, or with the allowed range of
    the field.
    """
    with pytest.raises(RequestError) as error_info:
        MESSAGE.decode(json.dumps(message), "message")
    assert error_info.value.args[0] == sentence


def test_number_too_large_for_json_is_refused_by_field() -> None:
    """A number that no 64-bit float holds is called too large, with its field's name."""
    with pytest.raises(RequestError) as error_info:
        START_REQUEST.decode('{"temperature": 1e400, "messages": []}')
    assert error_info.value.args[0] == "temperature is a number that is too large."
    assert error_info.value.field == "temperature"


def test_chat_request_bad_id_in_decoded_json_is_refused_alike() -> None:
    """A bad ID in JSON that was decoded before is refused with the same sentence."""
    with pytest.raises(RequestError, match=r"^id must be 8 to 64 characters"):
        CHAT_REQUEST.convert({"messages": [HELLO], "id": "no"})


@pytest.mark.parametrize("name", ["stream", "model", "messages"])
def test_extra_body_with_a_field_of_halt_is_refused(name: str) -> None:
    """extra_body cannot replace stream, model or messages: Halt needs the stream that it requests."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "extra_body": {name: False}}
    with pytest.raises(RequestError, match=f"extra_body.{name}") as error_info:
        CHAT_REQUEST.convert(body)
    assert error_info.value.args[0] == (
        f"extra_body.{name}: unknown field. Give {name} as a top-level field."
    )
    assert error_info.value.field == f"extra_body.{name}"


#: Names that look like the text that msgspec appends to a name, and one that does not.
NAMES = [" - at `$" * 12_500, " - at `key in $." * 6_000 + "\n", "`" * 100_000, "n" * 100_000]


@pytest.mark.parametrize("name", NAMES, ids=["path", "key", "ticks", "letters"])
def test_long_unknown_field_is_refused_in_linear_time_and_shortened(name: str) -> None:
    """A long unknown field is refused in linear time, and shortened in the sentence and
    the field.
    """
    start = time.thread_time()
    for body in ({"messages": [HELLO], name: 1}, {"messages": [HELLO], "on_disconnect": name}):
        for decode in (partial(START_REQUEST.decode, json.dumps(body)), partial(_convert, body)):
            with pytest.raises(RequestError) as error_info:
                decode()
            assert len(error_info.value.args[0]) < 500
            assert len(error_info.value.field or "") < 150
    out_of_range = json.dumps({"a": 1, name: 0})[:-2] + "1e400}"
    with pytest.raises(RequestError, match="is a number that is too large") as error_info:
        JSON_OBJECT.decode(out_of_range)
    assert len(error_info.value.field or "") < 150
    assert time.thread_time() - start < 2.0


def _convert(body: dict[str, Any]) -> object:
    return START_REQUEST.convert(body)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("a - at `$.b` c", "a - at `$.b` c"),
        ("x` - at `$", "x` - at `$"),
        ("hue", "hue"),
        ("n" * 101, "n" * 99 + "…"),
    ],
)
def test_unknown_field_is_named_in_the_error(name: str, field: str) -> None:
    """An unknown field is named in the error, whatever characters are in it."""
    with pytest.raises(RequestError, match="unknown field") as error_info:
        START_REQUEST.decode(json.dumps({"messages": [HELLO], name: 1}))
    assert error_info.value.field == field


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({f"field{i}": i for i in range(300_000)}).encode(),
        json.dumps({"a": [[]] * 200_000}).encode(),
        json.dumps({"a": ["x"] * 200_000}).encode(),
        b'{"a":[' + b"1," * 200_000 + b"1]}",
        b'{"\\"\\\\":[' + b'"\\\\",' * 200_000 + b"1]}",
        b"[" * 3_000_000,
        b'"",' * 1_000_000,
    ],
    ids=["fields", "lists", "texts", "numbers", "escapes", "brackets", "no-json"],
)
def test_body_with_over_100000_values_is_refused_before_decoding(body: bytes) -> None:
    """A body of over 100,000 values is refused before it is decoded, which would hold the
    interpreter's lock long.
    """
    for decoder in (JSON_OBJECT, START_REQUEST):
        with pytest.raises(RequestError, match=r"holds more than 100,000 values\.") as error_info:
            decoder.decode(body)
        assert error_info.value.field == "body"


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, 2], "b": "c"},\n' * 120_000, ",:[{" * 800_000, "\\" * 1_700_000, '"' * 1_700_000],
    ids=["json", "signs", "backslashes", "quotes"],
)
def test_text_of_any_content_counts_as_one_value(text: str) -> None:
    """A text counts as one value, also 3 MB of pasted JSON, CSV or source code."""
    body = json.dumps({"messages": [{"role": "user", "content": text}]})
    assert CHAT_REQUEST.decode(body.encode()).messages[0].content == text
    assert CHAT_REQUEST.decode(body).messages[0].content == text


def test_body_nested_beyond_200_levels_is_refused() -> None:
    """A body that is nested beyond 200 levels is refused, and so causes no internal error later."""

    def nested_body(levels: int) -> bytes:
        return b'{"a":' + b'{"[":[' * (levels // 2) + b"1" + b"]}" * (levels // 2) + b"}"

    assert JSON_OBJECT.decode(nested_body(198))
    for levels in (202, 900, 20_000):
        with pytest.raises(RequestError, match="nested too deep"):
            JSON_OBJECT.decode(nested_body(levels))
