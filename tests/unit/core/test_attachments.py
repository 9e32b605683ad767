"""Pictures and sources in the fields that a server sends beside the text."""

from __future__ import annotations

import time
from typing import Any

import pytest

from halt.core.attachments import Media, Source, attachments_of
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
def test_attachments_of_picture_fields_are_pictures(fields: dict[str, Any]) -> None:
    """A picture is found under every field name that servers use, at any depth."""
    for extra in (Extra(delta=fields), Extra(chunk=fields), Extra(choice={"message": fields})):
        assert list(attachments_of(extra)) == [Media("image/png", URL)]


@pytest.mark.parametrize(
    ("fields", "sources"),
    [
        ({"citations": [A, B]}, [(A, ""), (B, "")]),  # Perplexity, xAI
        (
            {"search_results": [{"title": "One", "url": A, "date": "2026"}, {"url": B}]},
            [(A, "One"), (B, "")],
        ),
        (  # a document keeps its place, since the text counts them
            {"sources": [{"name": "a.pdf", "url": "file:///a.pdf"}, {"name": "One", "url": A}]},
            [("", "a.pdf"), (A, "One")],
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
def test_attachments_of_source_fields_are_web_addresses_with_titles(
    fields: dict[str, Any], sources: list[tuple[str, str]]
) -> None:
    """Only http and https addresses with their titles are sources; addresses of icons and of the
    API are not."""
    for extra in (Extra(delta=fields), Extra(chunk=fields), Extra(choice=fields)):
        assert list(attachments_of(extra)) == [Source(*source) for source in sources]


def test_attachments_of_picture_address_is_a_link() -> None:
    """A picture given by its web address becomes a link; Halt loads nothing from there."""
    fields = {"images": [{"image_url": {"url": A}}, B]}
    assert list(attachments_of(Extra(delta=fields))) == [Media("image", A), Media("image", B)]


def test_attachments_of_untyped_data_url_takes_the_type_from_its_field() -> None:
    """A data: URL without a media type is a picture if its field is one for pictures."""
    fields = {"images": [{"image_url": {"url": "data:,0"}}], "files": ["data:,1"]}
    assert list(attachments_of(Extra(delta=fields))) == [
        Media("image", "data:,0"),
        Media("text/plain", "data:,1"),
    ]


def test_attachments_of_deep_nesting_stops_at_a_bound() -> None:
    """Addresses nested 500 levels deep are ignored."""
    nested: Any = [A]
    for _ in range(500):
        nested = [nested]
    assert list(attachments_of(Extra(chunk={"a": nested}))) == []


def steps_of_events(*events: Event) -> tuple[Step, ...]:
    """The steps of these events, which arrive a second apart."""
    stream = StepStream()
    for number, event in enumerate(events, 1):
        stream.feed(number, event, float(number))
    return stream.end(100.0)


def test_step_stream_sources_are_one_step_without_repetitions() -> None:
    """All sources are one step, each once, also if a server repeats them or sends titles later."""
    first, second = Extra(chunk={"citations": [A]}), Extra(chunk={"citations": [A, B]})
    extra_with_title = Extra(chunk={"search_results": [{"url": A, "title": "One"}]})
    (step,) = steps_of_events(first, Content("a"), second, second, extra_with_title, first)
    assert (step.kind, step.state, step.text) == ("sources", "done", f"{A} One\n{B}")


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"citations": [A, B, A]}, [A, B, A]),
        (
            {"citations": [A, A], "search_results": [{"url": A, "title": "One"}] * 2},
            [f"{A} One"] * 2,
        ),
        ({"search_results": [{"url": A, "link": A, "title": "One"}, {"url": B}]}, [f"{A} One", B]),
        ({"citations": [A, "doc_1 of mine", B]}, [A, " doc_1 of mine", B]),
        ({"executed_tools": [{"results": [{"url": A}]}, {"results": [{"url": A}]}]}, [A]),
        ({"annotations": [{"url_citation": {"url": u}} for u in (A, B, A)]}, [A, B]),
    ],
)
def test_step_stream_sources_keep_their_places_in_the_list(
    fields: dict[str, Any], lines: list[str]
) -> None:
    """What a list repeats counts again, so that `[3]` in the text is its third item; places in
    the text (`annotations`) are no such list.
    """
    (step,) = steps_of_events(Extra(chunk=fields), Content("a[3]"), Extra(chunk=fields))
    assert step.text.split("\n") == lines


def test_step_stream_fields_between_thoughts_do_not_end_the_thought() -> None:
    """A thought goes on across the fields that some servers send with each chunk."""
    steps = steps_of_events(
        Reasoning("a"), Extra(chunk={"citations": [A]}), Reasoning("b"), Content("c")
    )
    assert [(step.kind, step.text) for step in steps] == [("thought", "ab"), ("sources", A)]


def test_step_stream_picture_keeps_its_data_up_to_a_bound() -> None:
    """A picture's step has its description always, and its data up to a total size."""
    event = Extra(delta={"images": [{"image_url": {"url": URL}}]})
    (step,) = steps_of_events(event, event)
    assert (step.kind, step.state, step.text) == ("picture", "done", "Picture (PNG, 16 B)")
    assert step.result == URL
    large_extras = [
        Extra(delta={"image": f"{URL}{letter * (PICTURE_CHARS_MAX // 2)}"}) for letter in "ab"
    ]
    assert [(step.text, bool(step.result)) for step in steps_of_events(*large_extras)] == [
        ("Picture (PNG, 4.5 MB)", True),
        (
            "Picture (PNG, 4.5 MB). Not kept: the pictures of an answer have at most 9 MB.",
            False,
        ),
    ]


def test_step_stream_sources_are_limited_in_number() -> None:
    """Of more than SOURCES_MAX sources the step holds SOURCES_MAX."""
    events = [Extra(chunk={"citations": [f"{A}/{n}"]}) for n in range(SOURCES_MAX + 50)]
    (step,) = steps_of_events(*events)
    assert len(step.text.split("\n")) == SOURCES_MAX


def test_attachments_of_long_near_data_url_takes_bounded_time() -> None:
    """Long texts that begin like a data: URL are checked in under a second of CPU time."""
    start = time.thread_time()
    fields = {"images": [f"data:a/b{'a' * 100_000} x"] * 20}
    assert not list(attachments_of(Extra(delta=fields)))
    assert time.thread_time() - start < 1
