"""Pictures and other data in an answer, and the line that replaces each of them."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halt.core.request import ChatRequest, Message, unfinished
from halt.providers.continuation import by_instruction, by_prefix, continuation_request
from halt.rendering.data_urls import DataUrlFilter, replace, replace_for_model, restored
from halt.rendering.markdown import render, render_block
from halt.rendering.streaming.stream import BlockStream
from halt.store.prompt_messages import PathMessage, path_messages

LETTERS = "iVBORw0KGgo/8Qz+"
DATA = LETTERS * 100  # 1,600 characters of base64, 1,200 bytes
URL = f"data:image/png;base64,{DATA}"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (f"![image]({URL})", "[Picture (PNG, 1 kB)]"),
        (f"![]({URL})", "[Picture (PNG, 1 kB)]"),
        (f"a ![a cat]({URL}) b", "a [Picture (PNG, 1 kB): a cat] b"),
        (f'![a cat](<{URL}> "title") b', "[Picture (PNG, 1 kB): a cat] b"),
        (f"![image]({URL})Here it is.", "[Picture (PNG, 1 kB)]\nHere it is."),
        (f"| ![image]({URL})x |", "| [Picture (PNG, 1 kB)] x |"),
        (f"![a]({URL})![b]({URL})", "[Picture (PNG, 1 kB): a]\n[Picture (PNG, 1 kB): b]"),
        (f"[![b]({URL})](https://x.org)", "[[Picture (PNG, 1 kB): b]](https://x.org)"),
        ("![image](data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==)", "[Picture (PNG, 16 B)]"),
        ("![x](data:image/svg+xml,%3Csvg%3E)", "[Picture (SVG, 9 B): x]"),
        (
            "![x](data:image/svg+xml;charset=utf-8;base64,AAAA)",
            "[Picture (SVG, 3 B): x]",
        ),
        (f"see {URL}.", "see data:image/png;base64,[Picture (PNG, 1 kB)]."),
        (f"[open]({URL})", "[open](data:image/png;base64,[Picture (PNG, 1 kB)])"),
        (f'<img src="{URL}">', '<img src="data:image/png;base64,[Picture (PNG, 1 kB)]">'),
        (f"data:audio/mpeg;base64,{DATA}", "data:audio/mpeg;base64,[Audio (MPEG, 1 kB)]"),
        (f"data:application/pdf;base64,{DATA}", "data:application/pdf;base64,[File (PDF, 1 kB)]"),
        ("!" + f"![a]({URL})", "![Picture (PNG, 1 kB): a]"),
        (f"![image](data:image/png;base64,{DATA}", "[Picture (PNG, 1 kB, incomplete)]"),
        (f"![image](data:image/png;base64,{DATA}\n\nb", "[Picture (PNG, 1 kB)]\n\nb"),
        (f"```\n{DATA * 10}\n```\ndata:image/png;base64,{DATA * 10}", None),
        (f"```\nx = '{URL * 10}'\n```", None),
    ],
)
def test_replace_puts_type_size_and_description_for_a_picture(
    source: str, line: str | None
) -> None:
    """A picture is replaced by a line with its type, size and description; the text around it
    stays.
    """
    out = replace(source)
    if line is None:
        assert "[Picture (PNG, 12 kB)]" in out or f"'{URL * 10}'" in out
    else:
        assert out == line


@pytest.mark.parametrize(
    "source",
    [
        f"```html\n<img src='{URL}'>\n```",
        f"- a\n\n  ```\n  ![a]({URL})\n  ```",
        f"~~~\n![a]({URL})\n~~~",
        f"Write `![a]({URL})` for it.",
        "Write `![alt](data:image/png;base64,iVBORw0KGgo=)` for it.",
        "A tiny one: data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "![a](data:image/png;base64,...) and ![b](data:image/png;base64,iVBORw0...)",
        "![a](https://x.org/data:image.png) ![b] !(c) ![d](e) Hello! data: a, b, data:c,d",
        "Hello!",
        "![a [b](data:",
    ],
)
def test_replace_leaves_code_and_short_examples_unchanged(source: str) -> None:
    """Code that a user may want to copy, short examples, and text that is no data stay."""
    assert replace(source) == source
    assert replace_for_model(source) == source


def test_replace_for_model_puts_one_word_for_a_picture() -> None:
    """The model gets [picture] and none of the data."""
    assert replace_for_model(f"![a cat]({URL})\n\nHere.") == "[picture]\n\nHere."
    assert replace_for_model(f"see {URL}") == "see data:image/png;base64,[picture]"
    assert replace_for_model(f"![a]({URL}"[:-1]) == "[picture]"
    assert replace_for_model("plain") == "plain"


PIECES = st.sampled_from(
    [
        "![", "!", "a", "](", "](data:image/png;base64,", "data:", "image/png;base64,", DATA[:50],
        DATA[:70], DATA[:300], "==", ")", " ", "\n", "`", "```", "```\n", "~~~\n", '"t"', "<", ">",
        "|", "- ", ",", "data:image/gif;base64,", "data:text/plain,", "]", "[",
    ]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(st.integers(0, 2000), max_size=8))
def test_data_url_filter_does_not_depend_on_the_pieces(text: str, positions: list[int]) -> None:
    """Property: however a text is cut into pieces, the same is shown, during and at its end."""
    edges = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    for for_model in (False, True):
        whole, pieces, letters = (DataUrlFilter(for_model=for_model) for _ in range(3))
        out = whole.feed(text)
        cut = (text[a:b] for a, b in pairwise(edges))
        assert "".join(map(pieces.feed, cut)) == out
        assert "".join(map(letters.feed, text)) == out
        assert whole.rest() == pieces.rest() == letters.rest()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab!`~ \n[](),:;/", max_size=60))
def test_replace_leaves_text_without_data_unchanged(text: str) -> None:
    """Property: no text without data changes."""
    assert replace(text + "data:") == text + "data:"


def test_block_stream_never_shows_a_pictures_data() -> None:
    """No data is shown while it arrives in small pieces, nor in the finished block."""
    stream = BlockStream()
    text = f"Here:\n\n![image](data:image/png;base64,{DATA * 20})\n\nNice."
    page = ""
    for at in range(0, len(text), 7):
        step = stream.feed(text[at : at + 7])
        patch = step.patch(map(render_block, step.blocks))
        assert LETTERS[:8] not in patch.tail + patch.finished
        page += patch.finished
    assert page + "".join(map(render_block, stream.close())) == render(text)
    assert "<p>[Picture (PNG, 24 kB)]</p>" in render(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["!", "![", "![a](", "data:", ",", "data:image/png;base64,", "![a](data:,", "a" * 50, " "],
)
def test_replace_takes_linear_time(unit: str) -> None:
    """The worst known texts take no more than a few microseconds of CPU time per character."""
    source = "![a](data:image/png;base64,AAAA" + unit * (400_000 // len(unit))
    start = time.thread_time()
    replace(f"data:{source}")
    pieces = DataUrlFilter()
    for at in range(0, len(source), 10):
        pieces.feed(source[at : at + 10])
    assert time.thread_time() - start < 8


def test_continuation_of_an_answer_keeps_its_picture_for_the_user_alone() -> None:
    """The answer keeps its picture; the model gets, and the size counts, one word for it."""
    answer = f"Here: ![image]({URL})\n\nIt is"
    first = ChatRequest([Message("user", "Draw.")])
    request = continuation_request(first, answer)
    assert unfinished(request) == answer
    assert by_prefix(request).messages[-1].content == "Here: [picture]\n\nIt is"
    assert URL[:60] not in str(by_instruction(request).messages)
    assert request.size() == first.size() + len("Here: [picture]\n\nIt is")


def test_path_messages_have_a_word_for_each_picture_of_an_answer() -> None:
    """Data that the user has pasted is sent unchanged."""
    path = [
        PathMessage("user", "done", f"This: {URL}"),
        PathMessage("assistant", "done", f"![image]({URL})Nice"),
        PathMessage("user", "done", "b"),
    ]
    assert [(message.role, message.content) for message in path_messages(path)] == [
        ("user", f"This: {URL}"),
        ("assistant", "[picture]\nNice"),
        ("user", "b"),
    ]


def test_restored_text_has_the_pictures_whose_labels_it_kept() -> None:
    """An edit keeps each picture whose label it kept, in its place; others are not restored."""
    original = f"One ![a cat]({URL}) two ![a dog]({URL})\n\n![]({URL})"
    edited = replace(original).replace("One", "1").replace("a dog", "a wolf")
    text = restored(edited, original)
    assert text.startswith(f"1 ![a cat]({URL}) two [")
    assert text.endswith(f"a wolf]\n\n![]({URL})")
    assert restored("None left", original) == "None left"
