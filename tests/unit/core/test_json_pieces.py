"""JSON in pieces: the same bytes as in one piece, and no long hold of the interpreter's lock."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.json_pieces import PIECE, json_pieces
from halt.core.request import Message, fingerprint

LARGE = '"\\é日😀\n' * (PIECE // 2)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        LARGE,
        [LARGE, {"a": LARGE, "b": [1, "text", None, {"c": LARGE * 2}]}, LARGE],
        {"messages": [Message("user", [{"type": "text", "text": LARGE}])], "stream": True},
    ],
)
def test_pieces_are_the_json(value: object) -> None:
    """Together the pieces are the JSON of the value; none of them is large."""
    pieces = json_pieces(value)
    assert b"".join(pieces) == msgspec.json.encode(value)
    assert max(map(len, pieces)) <= 12 * PIECE


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=8,
    )
)
def test_value_without_large_texts_is_one_piece(value: object) -> None:
    """Usual requests are encoded as before."""
    assert json_pieces(value) == [msgspec.json.encode(value)]


def test_large_text_is_cut_into_pieces() -> None:
    """A large text is never encoded in one call, and stays as it is in its message."""
    message = Message("user", [{"type": "image_url", "image_url": {"url": "a" * (5 * PIECE)}}])
    assert len(json_pieces([message])) == 7
    assert message.content[0]["image_url"]["url"] == "a" * (5 * PIECE)


def test_fingerprint_depends_on_every_character_of_the_data() -> None:
    """Two images of one size have different fingerprints, wherever they differ."""
    url = "a" * (2 * PIECE)
    fingerprints = {
        fingerprint([Message("user", [{"type": "image_url", "image_url": {"url": text}}])])
        for text in (url, f"b{url[1:]}", f"{url[1:]}b")
    }
    assert len(fingerprints) == 3
