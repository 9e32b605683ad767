"""Secrets are removed from texts, however a server spells them."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest

from halt.errors import DETAIL_MAX, UpstreamError
from halt.redaction import without_secrets

KEY = "sk-te/st+0123 é&456789=abcdef"  # all characters that some spelling escapes
PLAIN = "sk-test-0123456789abcdef"
PASSWORD = "pass:word-0123456789"


def basic(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


@pytest.mark.parametrize(
    "spelling",
    [
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").lower(),
        quote_plus(KEY),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY, ensure_ascii=False)[1:-1],
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
        html.escape(KEY),
    ],
)
def test_secret_is_removed_in_each_spelling(spelling: str) -> None:
    """URLs, JSON and HTML escape characters of a secret; it is removed all the same."""
    text = f"Incorrect key: {spelling}. Get one."
    assert without_secrets(text, (KEY,)) == "Incorrect key: [key]. Get one."


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
@pytest.mark.parametrize("after", ["", "x", "xy"])
@pytest.mark.parametrize("urlsafe", [False, True])
def test_secret_is_removed_from_base64(before: str, after: str, *, urlsafe: bool) -> None:
    """A quoted Basic header has a secret at any position of its base64 text."""
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    secret = "\u00ff\u00fe?>key-0123456789"
    text = without_secrets(
        f"Basic {encode((before + secret + after).encode()).decode()}", (secret,)
    )
    assert "[key]" in text
    left = text.replace("Basic ", "").split("[key]")
    assert sum(map(len, left)) <= 4 * (len(before + after) // 3 + 3)


@pytest.mark.parametrize(
    ("secret", "quoted"),
    [
        (f"Bearer {PLAIN}", PLAIN),
        (f"Bearer {PLAIN}", f"Bearer {PLAIN}"),
        (f"Token {PLAIN}", quote(PLAIN)),
        (f"Basic {basic(f'user:{PASSWORD}')}", basic(f"user:{PASSWORD}")),
        (f"Basic {basic(f'user:{PASSWORD}')}", PASSWORD),
        (f"Basic {basic(f'user:{PASSWORD}')}", f"user:{PASSWORD}"),
    ],
)
def test_credentials_of_a_header_are_secrets_too(secret: str, quoted: str) -> None:
    """A header's value is removed, and what it says after `Bearer` or `Basic`, decoded too."""
    assert without_secrets(f"Bad: {quoted}!", (secret,)) == "Bad: [key]!"


@pytest.mark.parametrize("length", [8, 12, len(PLAIN) - 1])
@pytest.mark.parametrize("end", ["", "…", "...", "… "])
def test_beginning_of_a_secret_is_removed_where_a_text_was_cut(length: int, end: str) -> None:
    """A text that was cut within a key does not show the key's beginning."""
    assert without_secrets(f"Bad key: {PLAIN[:length]}{end}", (PLAIN,)) == f"Bad key: [key]{end}"


@pytest.mark.parametrize(
    "text",
    ["", "Bad key: sk-te***cdef", "Bad key: sk-test-0123***.", "Bad key: sk-test", "none is a key"],
)
def test_other_texts_stay(text: str) -> None:
    """A masked key stays, and so does a text with a few of its characters."""
    assert without_secrets(text, (PLAIN, "none", "")) == text


@pytest.mark.parametrize("length", [16, 20, len(PLAIN) - 1])
def test_long_part_of_a_secret_is_removed_anywhere(length: int) -> None:
    """Some servers quote a long beginning or end of a key, with words after it."""
    begin, end = PLAIN[:length], PLAIN[-length:]
    assert without_secrets(f"Key {begin}... is wrong", (PLAIN,)) == "Key [key]... is wrong"
    assert without_secrets(f"Key ...{end} or …{end}", (PLAIN,)) == "Key ...[key] or …[key]"
    assert without_secrets(f"{begin} {begin}|{end}", (PLAIN,)) == "[key] [key]|[key]"


def test_longer_secrets_are_removed_first() -> None:
    """A secret that contains another one leaves nothing of itself."""
    assert without_secrets(f"{PLAIN}-more", (PLAIN, f"{PLAIN}-more")) == "[key]"


@pytest.mark.parametrize("shown", range(8, len(PLAIN)))
def test_error_cut_within_a_key_does_not_show_it(shown: int) -> None:
    """A detail is cut before its secrets are known: what is left of one is removed then."""
    detail = "x" * (DETAIL_MAX - shown) + PLAIN + " is wrong"
    error = UpstreamError("unauthorized", detail, hint=PLAIN, sentence=f"Bad {PLAIN}.")
    clean = error.with_secrets_removed((PLAIN,))
    for text in (clean.detail, clean.message, clean.hint, repr(clean)):
        assert PLAIN[:8] not in text
    assert clean.detail.endswith("[key]")
