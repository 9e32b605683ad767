"""CallAssembler: whole tool calls from fragments, in any cut and with any numbering."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.core.events import Delta, ToolCall, ToolCallDelta
from halt.errors import UpstreamError
from halt.providers.part_builder import PartBuilder
from halt.providers.tool_calls import CALLS_MAX, CallAssembler


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({c for c in cuts if c < len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def assembled(fragments: list[tuple[int | None, str, str, str]]) -> list[Delta]:
    """The events that the assembler makes of fragments (index, ID, name, arguments)."""
    assembler, out = CallAssembler(), PartBuilder()
    for fragment in fragments:
        assembler.add_fragment(*fragment, out)
    assembler.finish(out)
    return list(out.build(ended=True).events)


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["add", "sub", "look"]),
        st.dictionaries(st.text(max_size=3), st.integers()).map(json.dumps),
        st.lists(st.integers(1, 20), max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@given(calls=CALLS, data=st.data())
def test_parallel_calls_are_whole_in_any_order_of_their_pieces(
    calls: list[tuple[str, str, list[int]]], data: st.DataObject
) -> None:
    """Pieces of several calls may be mixed: each call gets its own, in their order."""
    streams = []
    for index, (name, arguments, cuts) in enumerate(calls):
        pieces = cut(arguments, cuts)
        first: tuple[int | None, str, str, str] = (index, f"id{index}", name, "")
        streams.append([first, *((index, "", "", piece) for piece in pieces)])
    mixed = [stream.pop(0) for stream in streams]
    while open_streams := [stream for stream in streams if stream]:
        mixed.append(data.draw(st.sampled_from(open_streams)).pop(0))
    events = assembled(mixed)
    assert [event for event in events if isinstance(event, ToolCall)] == [
        ToolCall(f"id{index}", name, arguments) for index, (name, arguments, _) in enumerate(calls)
    ]
    for index, (_, arguments, _) in enumerate(calls):
        deltas = [e for e in events if isinstance(e, ToolCallDelta) and e.index == index]
        assert "".join(delta.arguments for delta in deltas) == arguments


@given(calls=CALLS, indexed=st.booleans())
def test_whole_calls_need_no_index(calls: list[tuple[str, str, list[int]]], indexed: bool) -> None:
    """Whole calls that all have index 0, or none, are separate calls."""
    index = 0 if indexed else None
    fragments = [(index, f"id{n}", name, arguments) for n, (name, arguments, _) in enumerate(calls)]
    assembled_calls = [call for call in assembled(fragments) if isinstance(call, ToolCall)]
    assert [(call.name, call.arguments) for call in assembled_calls] == [call[:2] for call in calls]


def test_calls_without_a_unique_id_get_one() -> None:
    """A call without an ID, or with that of another call, gets a new one."""
    events = assembled(
        [(0, "", "a", "{}"), (1, "", "b", "{}"), (2, "x", "c", ""), (3, "x", "d", "")]
    )
    ids = [event.id for event in events if isinstance(event, ToolCall)]
    later_ids = [call.id for call in assembled([(0, "", "a", "{}")]) if isinstance(call, ToolCall)]
    assert len({*ids, *later_ids}) == 5
    assert all(ids)


def test_name_after_the_id_belongs_to_the_same_call() -> None:
    """An ID first and the name with a later piece are one call."""
    events = assembled([(0, "x", "", ""), (0, "", "add", "{"), (0, "", "", "}")])
    assert events[-1] == ToolCall("x", "add", "{}")


A, B = '{"q":1}', '{"r":2}'
BOTH = [("x", A), ("y", B)]

#: Fragments as index, ID, name and arguments, and the calls that they are.
HABITS: dict[str, tuple[list[tuple[int | None, str, str, str]], list[tuple[str, str]]]] = {
    "a tail under a new index": ([(0, "a", "x", A), (0, "b", "y", ""), (1, "", "", B)], BOTH),
    "each piece under a new index": (
        [(0, "a", "x", ""), (1, "", "", '{"q"'), (2, "", "", ":1}")],
        [("x", A)],
    ),
    "pieces under the index of another call": (
        [(0, "a", "x", ""), (0, "", "", A), (1, "b", "y", ""), (0, "", "", B)],
        BOTH,
    ),
    "no index": (
        [(None, "a", "x", ""), (None, "", "", '{"q":'), (None, "", "", "1}"), (None, "b", "y", B)],
        BOTH,
    ),
    "no index, mixed": (
        [(None, "a", "x", ""), (None, "b", "y", ""), (None, "a", "", A), (None, "b", "", B)],
        BOTH,
    ),
    "always index 0, mixed": (
        [(0, "a", "x", ""), (0, "b", "y", ""), (0, "a", "", A), (0, "b", "", B)],
        BOTH,
    ),
    "always index 0": ([(0, "a", "x", A), (0, "b", "x", B)], [("x", A), ("x", B)]),
    "neither index nor ID": ([(None, "", "x", A), (None, "", "x", B)], [("x", A), ("x", B)]),
    "the same without arguments": (
        [(0, "", "x", "{}"), (0, "", "x", "{}")],
        [("x", "{}"), ("x", "{}")],
    ),
    "another ID with each piece": (
        [(0, "a", "x", ""), (0, "b", "", '{"q":'), (0, "c", "", "1}")],
        [("x", A)],
    ),
    "another ID, and the name, with each piece": (
        [(0, "a", "x", '{"q'), (0, "b", "x", '":'), (0, "c", "x", "1}")],
        [("x", A)],
    ),
    "the name with each piece": (
        [(0, "a", "x", ""), (0, "a", "x", '{"q":'), (0, "", "x", "1}")],
        [("x", A)],
    ),
    "the name in pieces": (
        [(0, "a", "get_", ""), (0, "", "sum", ""), (0, "", "", A)],
        [("get_sum", A)],
    ),
    "the name so far": (
        [(0, "a", "get_", ""), (0, "a", "get_sum", ""), (0, "", "", A)],
        [("get_sum", A)],
    ),
    "all so far with each piece": (
        [(0, "a", "x", '{"q'), (0, "a", "x", '{"q":'), (0, "a", "x", A)],
        [("x", A)],
    ),
    "the whole at the end": ([(0, "a", "x", A[:4]), (0, "", "", A[4:]), (0, "a", "x", A)], [("x", A)]),
    "the whole in another hand": (
        [(0, "a", "x", A[:4]), (0, "", "", A[4:]), (0, "a", "x", '{"q": 1}')],
        [("x", A)],
    ),
    "the arguments at the end": ([(0, "a", "x", A), (0, "", "", A)], [("x", A)]),
    "PHP's empty array": ([(0, "a", "x", "[]")], [("x", "{}")]),
    "null": ([(0, "a", "x", "null")], [("x", "{}")]),
    "no arguments": ([(0, "a", "x", "")], [("x", "{}")]),
    "empty arguments that others follow": (
        [(0, "a", "x", "{}"), (0, "", "", '{"q":'), (0, "", "", "1}")],
        [("x", A)],
    ),
    "nothing at the end": ([(0, "a", "x", A), (0, "", "", ""), (1, "", "", " ")], [("x", A)]),
    "an ID alone at the end": ([(0, "a", "x", A), (1, "b", "", "")], [("x", A)]),
    "one ID for two calls": ([(0, "a", "x", A), (1, "a", "x", B)], [("x", A), ("x", B)]),
    "an object in itself": (
        [(0, "a", "x", '{"a":'), (0, "", "", '{"a":1}'), (0, "", "", "}")],
        [("x", '{"a":{"a":1}}')],
    ),
    "braces in strings": (
        [(0, "a", "x", '{"c":"}'), (0, "", "", '"}'), (1, "b", "y", '{"c":"{'), (1, "", "", '"}')],
        [("x", '{"c":"}"}'), ("y", '{"c":"{"}')],
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", HABITS)
def test_calls_are_assembled_for_every_server_format(habit: str) -> None:
    """The whole calls are right, and so are their joined pieces."""
    fragments, calls = HABITS[habit]
    events = assembled(fragments)
    assert [(e.name, e.arguments) for e in events if isinstance(e, ToolCall)] == calls
    pieces: dict[str, str] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            pieces[event.id] = pieces.get(event.id, "") + event.arguments
    assert [text for text in pieces.values() if text] == [arguments for _, arguments in calls]


def test_unknown_fields_stay_with_their_call() -> None:
    """Unknown fields stay with their call: each piece has its own, the whole call those of all its
    pieces.
    """
    assembler, out = CallAssembler(), PartBuilder()
    assembler.add_fragment(0, "a", "x", "", out, {"extra_content": {"google": {"sign": "s"}}})
    assembler.add_fragment(
        0, "", "", A, out, {"extra_content": {"google": {"part": 2}}, "more": None}
    )
    assembler.add_fragment(1, "b", "y", B, out)
    assembler.finish(out)
    events = out.build(ended=True).events
    extras = [event.extra for event in events if isinstance(event, ToolCallDelta | ToolCall)]
    whole = {"extra_content": {"google": {"sign": "s", "part": 2}}, "more": None}
    assert extras[0] == {"extra_content": {"google": {"sign": "s"}}}
    assert extras[2:] == [msgspec.UNSET, whole, msgspec.UNSET]


def test_calls_beyond_calls_max_are_refused() -> None:
    """More than CALLS_MAX calls are refused as an invalid stream, so that memory is bounded."""
    with pytest.raises(UpstreamError) as caught:
        assembled([(n, f"id{n}", "add", "{}") for n in range(CALLS_MAX + 1)])
    assert caught.value.code == "upstream_invalid"
