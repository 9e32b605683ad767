"""Pictures in texts: which are found, what takes their place, and how kept ones are rendered."""

from __future__ import annotations

import base64

import pytest

from halt.rendering import pictures
from halt.rendering.markdown import render
from halt.rendering.pictures import Picture, incomplete_label, picture_of, swapped

HASH = "ab" * 32
DATA = base64.b64encode(bytes(range(256)) * 4).decode()


@pytest.mark.parametrize("part", [1, 7, 1_000, 100_000])
def test_swapped_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Markdown images and bare URLs, with what is around them; code is left alone."""
    monkeypatch.setattr(pictures, "PART", part)
    text = (
        f'a ![x](data:image/png;base64,{DATA} "title") b data:image/webp;base64,{DATA}, c\n\n'
        f"```\ndata:image/png;base64,{DATA}\n```\n![y](<data:image/gif;base64,{DATA}>)"
    )
    found: list[Picture] = []

    def swap(picture: Picture) -> str:
        found.append(picture)
        return f"({len(found)})"

    assert swapped(text, swap) == (f"a (1) b (2), c\n\n```\ndata:image/png;base64,{DATA}\n```\n(3)")
    assert [(p.alt, p.media_type, p.is_complete) for p in found] == [
        ("x", "image/png", True),
        ("", "image/webp", True),
        ("y", "image/gif", True),
    ]
    assert all(b"".join(p.content()) == bytes(range(256)) * 4 for p in found)
    assert swapped(text, lambda _: None) == text


def test_picture_that_broke_off_is_incomplete() -> None:
    """Only Markdown shows that the end is missing."""
    cut = f"![x](data:image/png;base64,{DATA[:400]}"
    assert swapped(cut, lambda p: None if p.is_complete else incomplete_label(p)) == (
        "[Picture (PNG, 300 B, incomplete)]"
    )
    for unchanged in ("![x](data:image/png;base64,", "![x](data:ima", "no data:image/ here"):
        assert swapped(unchanged, lambda _: "X") == unchanged


@pytest.mark.parametrize(
    "data",
    [DATA, DATA.rstrip("="), DATA.replace("+", "-").replace("/", "_"), DATA.replace("=", "%3D")],
)
def test_forms_of_base64(data: str) -> None:
    """With and without padding, of URLs, and percent-encoded."""
    assert b"".join(Picture("", "image/png", data).content()) == bytes(range(256)) * 4


def test_data_that_is_no_base64_is_refused() -> None:
    """A single character at the end is no byte."""
    with pytest.raises(ValueError, match="not base64"):
        list(Picture("", "image/png", "AAAAA").content())


def test_picture_of_an_address() -> None:
    """Only data: URLs of images are pictures."""
    picture = picture_of("data:image/svg+xml,%3Csvg%3E")
    assert picture is not None
    assert list(picture.content()) == [b"<svg>"]
    for address in ("https://a.example/a.png", "data:text/plain;base64,AAAA", "data:image/png", ""):
        assert picture_of(address) is None


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (f"![a <b> cat](/files/{HASH})", f'<p><span data-file="{HASH}">a &lt;b&gt; cat</span></p>'),
        (f"![](/files/{HASH})", f'<p><span data-file="{HASH}">Picture</span></p>'),
        (f"[link](/files/{HASH})", "<p>link</p>"),
        (f"`![x](/files/{HASH})`", f"<p><code>![x](/files/{HASH})</code></p>"),
        (f"![x](/files/{HASH}/x)", f"<p>![x](/files/{HASH}/x)</p>"),
        (f"![x](/FILES/{HASH})", f"<p>![x](/FILES/{HASH})</p>"),
        (f"![x](//files/{HASH})", f"<p>![x](//files/{HASH})</p>"),
    ],
)
def test_only_the_exact_address_is_a_mark(text: str, html: str) -> None:
    """The page shows a mark as a picture if the file belongs to the answer."""
    assert render(text).strip() == html


def test_model_cannot_write_a_mark() -> None:
    """HTML that looks like one stays text."""
    assert "<span" not in render(f'<span data-file="{HASH}">x</span>')
