"""Bytes and JSON values that are nearly right."""

from __future__ import annotations

import json
import random
from typing import Any

#: Pieces that decoders give a meaning to, or stumble over.
TOKENS = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"\0",
        b"\x00\x00",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xfe",
    ),
    *(
        b"\xc3",
        b"\xe2\x80",
        b"\xed\xa0\xbd",
        b"\xed\xb8\x80",
        b"\xf0\x9f\x98",
        b"\xe2\x80\xa8",
        b"\x85",
    ),
    *(
        b"data:",
        b"data: ",
        b"event: error\n",
        b"event:",
        b"id: 1\n",
        b"retry: 1\n",
        b":\n",
        b"[DONE]",
    ),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u", b"\\ud83d", b"\\ude00", b"\\u0000", b",", b":"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"-1", b"18446744073709551616"),
    *(
        b"<",
        b">",
        b"<think>",
        b"</think>",
        b"<!doctype html>",
        b"</title>",
        b"error: no",
        b" ",
        b"\t",
    ),
)

NO_UTF8 = (b"\xff", b"\xc3", b"\xe2\x80", b"\xed\xa0\xbd", b"\x80", b"\xf5\x80\x80\x80")

NUMBERS = (
    *(
        0,
        -1,
        1,
        -0.0,
        0.5,
        1e308,
        -1e308,
        2**31,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
        -(2**63) - 1,
    ),
    *(10**30, -(10**30), 10**400, -(10**400)),
)

TEXTS = (
    *(
        "",
        " ",
        "\n",
        "a",
        "Hello",
        "\0",
        "\r",
        "\ud83d",
        "\ude00",
        "\U0001f600",
        "\u05d0\u200f",
        "\u2028",
    ),
    *(
        "<think>",
        "</think>",
        "<think>a</think>b",
        "<br>",
        "```\n",
        "null",
        "0",
        "[DONE]",
        "error",
        "stop",
    ),
    *(
        " - at `$`",
        "at `key in $.a`",
        "a.b[0]",
        "`",
        "{}",
        "{field}",
        "%s",
        "..",
        "a" * 300,
        " " * 300,
    ),
)


def mutated(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """The data with up to `most` changes."""
    for _ in range(rng.randrange(most + 1)):
        at = rng.randrange(len(data) + 1)
        size = 1 << rng.randrange(6)
        kind = rng.randrange(7)
        if kind == 0:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif kind == 1:
            data = data[:at] + rng.choice(TOKENS) + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at + size :]
        elif kind == 3:
            data = data[:at] + data[at : at + size] * rng.randrange(2, 20) + data[at + size :]
        elif kind == 4:
            data = data[:at] + rng.randbytes(rng.randrange(1, 4)) + data[at + 1 :]
        elif kind == 5:
            quote = data.find(b'"', at) + 1
            data = data[:quote] + rng.choice(NO_UTF8) + data[quote:]
        else:
            other_at = rng.randrange(len(data) + 1)
            data = data[:at] + data[other_at : other_at + size * 4] + data[at:]
    return data


def any_value(rng: random.Random, keys: tuple[str, ...] = ("a",), depth: int = 3) -> Any:
    """A JSON value of any kind, its keys from `keys` for the most part."""
    kind = rng.randrange(10 if depth > 0 else 7)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice((None, True, False, "", 0, "a"))
    if kind == 7:
        return [any_value(rng, keys, depth - 1) for _ in range(rng.randrange(4))]
    names = [*keys, rng.choice(TEXTS)]
    return {rng.choice(names): any_value(rng, keys, depth - 1) for _ in range(rng.randrange(5))}


def altered(rng: random.Random, value: Any, keys: tuple[str, ...] = ("a",)) -> Any:
    """The value with one part of it, at any depth, changed, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != name}
        if kind == 1:
            return {**value, rng.choice((*keys, *TEXTS)): any_value(rng, keys)}
        return {**value, name: altered(rng, value[name], keys)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        kind = rng.randrange(8)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], altered(rng, value[at], keys), *value[at + 1 :]]
    return any_value(rng, keys)


def dumped(rng: random.Random, value: Any) -> bytes:
    """The value as JSON, in one of the ways in which it is written."""
    text = json.dumps(
        value,
        ensure_ascii=rng.random() < 0.5,
        indent=rng.choice((None, None, None, 1)),
        separators=rng.choice(((",", ":"), (", ", ": "))),
    )
    return text.encode("utf-8", "surrogatepass")
