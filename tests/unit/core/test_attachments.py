"""Pictures and sources among the fields that a server sends beside the text."""

from __future__ import annotations

import time
from typing import Any

import pytest

from halt.core.attachments import Picture, Source, attachments_of
from halt.core.events import Content, Event, Extra, Reasoning
from halt.core.steps import PICTURE_CHARS_MAX, SOURCES_MAX, Step, StepStream

PNG = "iVBORw0KGgoAAAANSUhEUg=="
URL = f"data:image/png;base64,{PNG}"
A, B = "https://a.example/one", "http://b.example/two?q=1"


@pytest.mark.parametrize(
    "fields",
    [
        {"images": [{"type": "image_url", "image_url": {"url": URL}}]},  # OpenRouter
        {"images": [URL]},
        {"image": URL},
        {"image_url": URL},
        {"images": [{"b64_json": PNG}]},
        {"data": [{"b64_json": PNG, "revised_prompt": "a cat"}]},
        {"parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]},  # Gemini
        {"parts": [{"inline_data": {"mime_type": "image/png", "data": PNG}}]},
        {"attachments": [{"source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
        {"content": [{"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}]},
    ],
)
def test_pictures(fields: dict[str, Any]) -> None:
    """Whatever the field's name, and however deep it is."""
    for extra in (Extra(delta=fields), Extra(chunk=fields), Extra(choice={"message": fields})):
        assert list(attachments_of(extra)) == [Picture("image/png", URL)]


@pytest.mark.parametrize(
    ("fields", "sources"),
    [
        ({"citations": [A, B]}, [(A, ""), (B, "")]),  # Perplexity, xAI
        (
            {"search_results": [{"title": "One", "url": A, "date": "2026"}, {"url": B}]},
            [(A, "One"), (B, "")],
        ),
        (
            {"annotations": [{"type": "url_citation", "url_citation": {"url": A, "title": "One"}}]},
            [(A, "One")],
        ),
        ({"annotations": [{"type": "url_citation", "url": A, "title": "One"}]}, [(A, "One")]),
        (
            {"groundingMetadata": {"groundingChunks": [{"web": {"uri": A, "title": "One"}}]}},
            [(A, "One")],
        ),
        (
            {"web_search": [{"title": "One", "link": A, "icon": B, "media": "m", "content": "c"}]},
            [(A, "One")],
        ),  # Zhipu
        (
            {"search_info": {"search_results": [{"site_name": "One", "url": A, "index": 1}]}},
            [(A, "One")],
        ),  # DashScope
        (
            {"executed_tools": [{"search_results": {"results": [{"title": "One", "url": A}]}}]},
            [(A, "One")],
        ),
        (
            {"citation": {"type": "web_search_result_location", "url": A, "title": "One"}},
            [(A, "One")],
        ),
        ({"context": {"citations": [{"content": "c", "title": "One", "url": A}]}}, [(A, "One")]),
        ({"references": [{"title": " One\n two ", "href": A}]}, [(A, "One two")]),
        ({"related_questions": ["What?"], "id": A, "provider": B, "docs_url": A}, []),
        (
            {
                "citations": [
                    "javascript:alert(1)",
                    "file:///etc/passwd",
                    "/local",
                    "doc_1",
                    3,
                    None,
                ]
            },
            [],
        ),
        (
            {"citations": [{"url": "javascript:alert(1)", "title": "t"}, {"url": 'https://x"y z'}]},
            [],
        ),
    ],
)
def test_sources(fields: dict[str, Any], sources: list[tuple[str, str]]) -> None:
    """Addresses of the web alone, with their titles; those of icons and of the API are none."""
    for extra in (Extra(delta=fields), Extra(chunk=fields), Extra(choice=fields)):
        assert list(attachments_of(extra)) == [Source(*each) for each in sources]


def test_a_picture_that_is_elsewhere_is_a_link() -> None:
    """Nothing is loaded from anywhere."""
    fields = {"images": [{"image_url": {"url": A}}, B]}
    assert list(attachments_of(Extra(delta=fields))) == [Picture("image", A), Picture("image", B)]


def test_a_picture_without_a_type_is_known_by_its_field() -> None:
    """A data: URL may leave it out."""
    fields = {"images": [{"image_url": {"url": "data:,0"}}], "files": ["data:,1"]}
    assert list(attachments_of(Extra(delta=fields))) == [
        Picture("image", "data:,0"),
        Picture("text/plain", "data:,1"),
    ]


def test_what_is_deep_without_end_is_left() -> None:
    """A server's nesting has a bound."""
    deep: Any = [A]
    for _ in range(500):
        deep = [deep]
    assert list(attachments_of(Extra(chunk={"a": deep}))) == []


def folded(*events: Event) -> tuple[Step, ...]:
    """The folds of these events, a second apart."""
    stream = StepStream()
    for number, event in enumerate(events, 1):
        stream.feed(number, event, float(number))
    return stream.end(100.0)


def test_sources_are_one_fold_each_named_once() -> None:
    """Servers repeat them with each chunk, and some send the titles later."""
    first, again = Extra(chunk={"citations": [A]}), Extra(chunk={"citations": [A, B]})
    titled = Extra(chunk={"search_results": [{"url": A, "title": "One"}]})
    (fold,) = folded(first, Content("a"), again, again, titled, first)
    assert (fold.kind, fold.state, fold.text) == ("sources", "done", f"{A} One\n{B}")


def test_fields_between_thoughts_do_not_end_them() -> None:
    """Some servers send the same fields with each chunk."""
    folds = folded(Reasoning("a"), Extra(chunk={"citations": [A]}), Reasoning("b"), Content("c"))
    assert [(each.kind, each.text) for each in folds] == [("thought", "ab"), ("sources", A)]


def test_a_picture_is_kept_with_its_line() -> None:
    """Its data is there for whatever shows it, up to a bound; the line is there in any case."""
    once = Extra(delta={"images": [{"image_url": {"url": URL}}]})
    (fold,) = folded(once, once)
    assert (fold.kind, fold.state, fold.text) == ("picture", "done", "Picture (PNG, 16 B)")
    assert fold.result == URL
    large = [Extra(delta={"image": f"{URL}{letter * (PICTURE_CHARS_MAX // 2)}"}) for letter in "ab"]
    assert [(each.text, bool(each.result)) for each in folded(*large)] == [
        ("Picture (PNG, 3.0 MB)", True),
        ("Picture (PNG, 3.0 MB)", False),
    ]


def test_sources_are_bounded() -> None:
    """A server may send as many as it likes."""
    events = [Extra(chunk={"citations": [f"{A}/{n}"]}) for n in range(SOURCES_MAX + 50)]
    (fold,) = folded(*events)
    assert len(fold.text.split("\n")) == SOURCES_MAX


def test_a_long_text_takes_bounded_time() -> None:
    """Also where it begins like a data: URL."""
    start = time.process_time()
    fields = {"images": [f"data:a/b{'a' * 100_000} x"] * 20}
    assert not list(attachments_of(Extra(delta=fields)))
    assert time.process_time() - start < 1
