"""Thoughts and tool calls, told from the answer's text however a server cuts and numbers them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.errors import UpstreamError
from halt.events import Content, Delta, Reasoning, ToolCall, ToolCallDelta
from halt.gathering import Gathering
from halt.think_tags import ThinkSplitter
from halt.tool_calls import CALLS_MAX, CallAssembler

#: Text that is rich in tags and halves of tags.
TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", ">", "<", "\n", " ", "a", "é"])
).map("".join)


def split(pieces: list[str]) -> tuple[str, str]:
    """Thoughts and answer of a text that comes in pieces."""
    splitter, out = ThinkSplitter(), Gathering()
    for piece in pieces:
        splitter.feed(piece, out)
    splitter.end(out)
    events = out.part(ended=True).events
    return (
        "".join(each.text for each in events if isinstance(each, Reasoning)),
        "".join(each.content for each in events if isinstance(each, Content)),
    )


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({c for c in cuts if c < len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(text=TAGGED, cuts=st.lists(st.integers(0, 60)))
@example(text="<think>\n\nhm\n</think>\n\nHello", cuts=list(range(60)))
@example(text="<think>\n\n</think>\n\nHello", cuts=list(range(60)))
@example(text="  <think>a</think>b<think>c</think>", cuts=list(range(60)))
def test_no_cut_changes_what_is_thought_and_what_is_said(text: str, cuts: list[int]) -> None:
    """However a text comes, its thoughts and its answer are the same."""
    assert split(cut(text, cuts)) == split([text])


@given(text=TAGGED)
def test_no_text_is_lost(text: str) -> None:
    """Every character but those of the tags, and the white space about them, comes out."""
    thought, said = split([text])
    if not text.lstrip().startswith("<think>"):
        assert (thought, said) == ("", text)
        return
    inside, _, behind = text.lstrip().removeprefix("<think>").lstrip("\n").partition("</think>")
    assert (thought, said) == (inside, behind.lstrip("\n"))


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>hm</think>Hello", "hm", "Hello"),
        ("\n<think>\nhm\n</think>\n\nHello", "hm\n", "Hello"),
        ("<think></think>Hello", "", "Hello"),
        ("Hello <think>no</think>", "", "Hello <think>no</think>"),
        ("<think>never ended", "never ended", ""),
        ("<think>a</thi", "a</thi", ""),
        ("<thi", "", "<thi"),
        (" \n", "", " \n"),
        ("<thinking>a", "", "<thinking>a"),
    ],
)
def test_thoughts_are_told_apart(text: str, thought: str, said: str) -> None:
    """Tags count at the beginning only; a half of one is text."""
    assert split([text]) == (thought, said)


def assembled(fragments: list[tuple[int | None, str, str, str]]) -> list[Delta]:
    """What comes of fragments: index, ID, name, arguments."""
    assembler, out = CallAssembler(), Gathering()
    for fragment in fragments:
        assembler.fragment(*fragment, out)
    assembler.finish(out)
    return list(out.part(ended=True).events)


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["add", "sub", "look"]),
        st.dictionaries(st.text(max_size=3), st.integers()).map(str).map(lambda t: t.replace("'", '"')),
        st.lists(st.integers(1, 20), max_size=4),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@given(calls=CALLS, data=st.data())
def test_parallel_calls_come_whole_in_any_order_of_their_pieces(
    calls: list[tuple[str, str, list[int]]], data: st.DataObject
) -> None:
    """Pieces of several calls may be mixed: each call gets its own, in their order."""
    streams = []
    for index, (name, arguments, cuts) in enumerate(calls):
        pieces = cut(arguments, cuts)
        first: tuple[int | None, str, str, str] = (index, f"id{index}", name, "")
        streams.append([first, *((index, "", "", piece) for piece in pieces)])
    mixed = [stream.pop(0) for stream in streams]
    while left := [stream for stream in streams if stream]:
        mixed.append(data.draw(st.sampled_from(left)).pop(0))
    events = assembled(mixed)
    assert [each for each in events if isinstance(each, ToolCall)] == [
        ToolCall(f"id{index}", name, arguments) for index, (name, arguments, _) in enumerate(calls)
    ]
    for index, (_, arguments, _) in enumerate(calls):
        deltas = [e for e in events if isinstance(e, ToolCallDelta) and e.index == index]
        assert "".join(each.arguments for each in deltas) == arguments


@given(calls=CALLS, indexed=st.booleans())
def test_whole_calls_are_told_apart_without_a_number(
    calls: list[tuple[str, str, list[int]]], indexed: bool
) -> None:
    """Whole calls that all have index 0, or none, are as many calls as they are."""
    index = 0 if indexed else None
    fragments = [(index, f"id{n}", name, arguments) for n, (name, arguments, _) in enumerate(calls)]
    found = [each for each in assembled(fragments) if isinstance(each, ToolCall)]
    assert [(call.name, call.arguments) for call in found] == [call[:2] for call in calls]


def test_calls_without_an_id_are_given_one_each() -> None:
    """IDs are made where there are none, or where two calls share one; no two are the same."""
    events = assembled(
        [(0, "", "a", "{}"), (1, "", "b", "{}"), (2, "x", "c", ""), (3, "x", "d", "")]
    )
    ids = [each.id for each in events if isinstance(each, ToolCall)]
    again = [each.id for each in assembled([(0, "", "a", "{}")]) if isinstance(each, ToolCall)]
    assert len({*ids, *again}) == 5
    assert all(ids)


def test_a_name_that_comes_late_is_taken() -> None:
    """An ID first and the name with a later piece are one call."""
    events = assembled([(0, "x", "", ""), (0, "", "add", "{"), (0, "", "", "}")])
    assert events[-1] == ToolCall("x", "add", "{}")


def test_endlessly_many_calls_are_refused() -> None:
    """Memory for the calls of one answer is bounded."""
    with pytest.raises(UpstreamError) as caught:
        assembled([(n, f"id{n}", "add", "{}") for n in range(CALLS_MAX + 1)])
    assert caught.value.code == "upstream_invalid"
