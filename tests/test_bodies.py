"""What is said of JSON that cannot be taken: a person's sentence, with the field's name."""

from __future__ import annotations

import json

import pytest

from halt.chat import CHAT_REQUEST
from halt.errors import RequestError

HELLO = {"role": "user", "content": "Hello"}
HALF = r'{"messages": [{"role": "user", "content": "%s"}]}'
NAME = "8 to 64 characters of A-Z, a-z, 0-9, _ and -."


@pytest.mark.parametrize(
    ("body", "field", "said"),
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
        (json.dumps({"messages": [HELLO, 1]}), "messages[1]", "Expected `object`"),
        (json.dumps({"messages": [{}]}), "messages[0].role", "missing required field `role`"),
    ],
)
def test_json_that_cannot_be_taken_is_refused_in_plain_words(
    body: bytes | str, field: str, said: str
) -> None:
    """No program's words: neither where a parser stood, nor a regular expression."""
    with pytest.raises(RequestError) as refused:
        CHAT_REQUEST.decode(body)
    message = refused.value.args[0]
    assert refused.value.field == field
    assert said in message
    assert "truncated" not in message
    assert "regex" not in message


def test_a_bad_id_is_refused_alike_wherever_it_comes_from() -> None:
    """Also in JSON that was decoded before."""
    with pytest.raises(RequestError, match=r"^id must be 8 to 64 characters"):
        CHAT_REQUEST.convert({"messages": [HELLO], "id": "no"})


@pytest.mark.parametrize("name", ["stream", "model", "messages"])
def test_further_fields_replace_none_of_halts_own(name: str) -> None:
    """A server that is told not to stream answers with what is no stream, and bills it."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "extra_body": {name: False}}
    with pytest.raises(RequestError, match=f"extra_body.{name}") as refused:
        CHAT_REQUEST.convert(body)
    assert refused.value.field == f"extra_body.{name}"
