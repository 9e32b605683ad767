"""Thoughts and tool calls, told from the answer's text however a server cuts and numbers them."""

from __future__ import annotations

import itertools
import json
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.core.events import Content, Delta, Reasoning, ReasoningEnd, ToolCall, ToolCallDelta
from halt.errors import UpstreamError
from halt.providers.part_builder import PartBuilder
from halt.providers.think_tags import ThinkSplitter
from halt.providers.tool_calls import CALLS_MAX, CallAssembler

#: Text that is rich in marks and halves of marks.
PARTS = (
    "<think> </think> <thi nk> </ > < a é ` . [THINK] [/THINK] [ <|channel|> analysis final "
    '<|message|> <|end|> <|start|> assistant <| |> <|return|> <|START_THINKING|> to=x "'
)
MARKED = st.lists(st.sampled_from([*PARTS.split(), "\n", " ", "```\n"])).map("".join)
MARKS = re.compile(
    r"<\|(?:start|channel)\|>[^\n]*?<\|message\|>"
    r"|</?think>|\[/?THINK\]|<\|[a-z_]+\|>|assistant|analysis|final|\s",
    re.IGNORECASE,
)


def events_of(pieces: list[str]) -> list[Delta]:
    """What comes of a text that comes in pieces."""
    splitter, out = ThinkSplitter(), PartBuilder()
    for piece in pieces:
        splitter.feed(piece, out)
    splitter.end(out)
    return list(out.build(ended=True).events)


def split(pieces: list[str]) -> tuple[str, str]:
    """Thoughts and answer of a text that comes in pieces."""
    thought, said = "", ""
    for event in events_of(pieces):
        if isinstance(event, Reasoning):
            thought += event.text
        elif isinstance(event, Content):
            said += event.content
        elif isinstance(event, ReasoningEnd):
            thought, said = thought + said, ""
    return thought, said


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({c for c in cuts if c < len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(text=MARKED, cuts=st.lists(st.integers(0, 60)))
@example(text="<think>\n\nhm\n</think>\n\nHello", cuts=list(range(60)))
@example(text="<think>\n\n</think>\n\nHello", cuts=list(range(60)))
@example(text="  <think>a</think>b<think>c</think>", cuts=list(range(60)))
@example(text="a.</think>\n\n<think>b</think>c", cuts=list(range(60)))
def test_no_cut_changes_what_is_thought_and_what_is_said(text: str, cuts: list[int]) -> None:
    """However a text comes, its thoughts and its answer are the same."""
    assert split(cut(text, cuts)) == split([text])


@given(text=MARKED, cuts=st.lists(st.integers(0, 60)))
def test_no_text_is_lost(text: str, cuts: list[int]) -> None:
    """Every character but those of marks, and the white space about them, comes out, in order."""
    texts = [
        each.text if isinstance(each, Reasoning) else each.content
        for each in events_of(cut(text, cuts))
        if isinstance(each, Reasoning | Content)
    ]
    assert MARKS.sub("", "".join(texts)) == MARKS.sub("", text)


FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>hm</think>Hello", "hm", "Hello"),
        ("\n<think>\nhm\n</think>\n\nHello", "hm\n", "Hello"),
        ("<think></think>Hello", "", "Hello"),
        ("<think>never ended", "never ended", ""),
        ("<think>a</thi", "a</thi", ""),
        ("<THINK>hm</think>Hello", "hm", "Hello"),
        ("<thinking>hm</thinking>\n\nHello", "hm", "Hello"),
        ("<thought>hm</thought>Hello", "hm", "Hello"),
        ("<reasoning>hm</reasoning>Hello", "hm", "Hello"),
        ("<thought_process>hm</thought_process>Hello", "hm", "Hello"),
        ("<seed:think>hm</seed:think>Hello", "hm", "Hello"),
        ("<longcat_think>hm</longcat_think>Hello", "hm", "Hello"),
        ("◁think▷hm◁/think▷Hello", "hm", "Hello"),
        ("[THINK]hm[/THINK]Hello", "hm", "Hello"),
        ("<|begin_of_thought|>hm<|end_of_thought|>Hello", "hm", "Hello"),
        ("<|thinking_start|>hm<|thinking_end|>Hello", "hm", "Hello"),
        ("<\uff5cbegin\u2581of\u2581thinking\uff5c>hm<\uff5cend\u2581of\u2581thinking\uff5c>Hello", "hm", "Hello"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>", "hm", "Hi"),
        ("<|channel>thought\nhm\n<channel|>Hello", "hm\n", "Hello"),
        ("<think>a</think>\n<think>b</think>\n\nHello", "a\n\nb", "Hello"),
        ("<think>a</think>\n<answer>4</answer>", "a", "<answer>4</answer>"),
        ("<think>a</think>b\n<think>c</think>", "a", "b\n<think>c</think>"),
        # Harmony
        (f"<|channel|>analysis<|message|>hm<|end|>{FINAL}Hello<|return|>", "hm", "Hello"),
        (f"<|start|>assistant<|channel|>analysis<|message|>hm<|end|>\n{FINAL}Hi", "hm", "Hi"),
        (f"<|channel|>commentary<|message|>One.<|end|>{FINAL}Two.", "", "One.\n\nTwo."),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b", "a\n\nb", ""),
        ("<|channel|>commentary to=functions.x <|constrain|>json<|message|>{}<|call|>", "{}", ""),
        (f"We say hi.<|end|>{FINAL}Hi", "We say hi.", "Hi"),
        ("We say hi.<|channel|>final<|message|>Hi", "We say hi.", "Hi"),
        (f"<|channel|>analysis<|message|>hm<|end|>{FINAL}a <| b<|", "hm", "a <| b<|"),
        # the end of a thought alone
        ("Okay.</think>\n\nHello", "Okay.", "Hello"),
        ("Okay.</think>Hello", "Okay.", "Hello"),
        ("Okay.</think> Hello", "Okay.", " Hello"),
        ("Okay.\n</think>\n\nHello", "Okay.\n", "Hello"),
        ("Okay. </thinking>\nHello", "Okay. ", "Hello"),
        ("Okay.\n[/THINK]\n\nHello", "Okay.\n", "Hello"),
        ("Okay.◁/think▷Hello", "Okay.", "Hello"),
        ("Okay.<|end_of_thought|>Hello", "Okay.", "Hello"),
        ("Okay.\n<channel|>Hello", "Okay.\n", "Hello"),
        ("好的</think>\n\n你好", "好的", "你好"),
        ("好的。</think>你好", "好的。", "你好"),
        ("It is **x**</think>**Hello**", "It is **x**", "**Hello**"),
        ('I say "Hello"</think>\n\nHello', 'I say "Hello"', "Hello"),
        ("Okay.</think>", "Okay.", ""),
        ("Okay.</think>\n<think>More.</think>Hi", "Okay.More.", "Hi"),
        ("What does `<think>` mean?\n</think>\n\nA mark.", "What does `<think>` mean?\n", "A mark."),
        ("Okay.</think>Use\n</think>\nagain", "Okay.", "Use\n</think>\nagain"),
        ("</think>\n\nHello", "", "Hello"),
        ("\n\n</think>Hello", "", "Hello"),
    ],
)  # fmt: skip
def test_thoughts_are_told_apart(text: str, thought: str, said: str) -> None:
    """Each form of marks, whole and character by character."""
    assert split([text]) == (thought, said)
    assert split(list(text)) == (thought, said)


@pytest.mark.parametrize(
    "text",
    [
        "Hello <think>no</think>",
        "<thi",
        " \n",
        "The tag </think> closes the thought.",
        "</think> is the closing tag.",
        "Use `</think>` to close it.",
        "Look:\n```\nfoo\n</think>\n\nbar\n```\nEnd",
        "1. Look:\n    ```html\n    </think>\n    ```\n",
        "Look:\n\n    </think>\n",
        "It begins with <think> and ends with\n</think>\n\nand so on",
        '"</think>" ends it',
        "(</think>) ends it",
        "**</think>** ends it",
        "It is: </think>\n\nIt ends a thought",
        "The last tag is </think>\n\nIt ends a thought",
        "- </think>\n- x",
        "| </think> | ends it |",
        "In a sentence [THINK] is a mark, [/THINK] another",
        "`[THINK]` begins it",
        "[Thought] I wonder",
        "[thinking] She waits.",
        "It writes **</think>** at its end.",
        "模型以</think>结束思考。",
        "[1] First, [2] second",
        "[Note: x] y",
        "<html><body></body></html>",
        "<answer>4</answer>",
        "<?xml version='1'?><thoughts>a</thoughts>",
        "a < b, c[0], d <| e, f |> g",
        "analysis",
        "anal",
        "analysis of assistantfinal",
        "analysisResult = 1",
        "<|im_start|>x",
        "<|start|>\nfoo",
        " " * 1_001 + "<think>",
        "Harmony has <|channel|> and `<|end|><|start|>`.",
    ],
)
def test_text_that_speaks_of_marks_stays_as_it_is(text: str) -> None:
    """In code, in quotes, within a sentence; and brackets of any other use."""
    assert split([text]) == ("", text)
    assert split(list(text)) == ("", text)


def test_a_thought_beside_the_text_leaves_no_other_to_be_looked_for() -> None:
    """A server that tells thoughts apart may leave the last mark in the text, at its beginning."""
    for text, said in (("</think>\n\nHello", "Hello"), ("Look.</think>\nHello", None)):
        splitter, out = ThinkSplitter(), PartBuilder()
        splitter.note_reasoning(out)
        splitter.feed(text, out)
        splitter.end(out)
        assert list(out.build(ended=True).events) == [Content(text if said is None else said)]


def test_text_that_is_held_back_comes_before_a_call() -> None:
    """It cannot be a mark any more, or it is one."""
    for text, events in (("a <", [Content("a <")]), ("a</think>", [Content("a"), ReasoningEnd()])):
        splitter, out = ThinkSplitter(), PartBuilder()
        splitter.feed(text, out)
        splitter.note_tool_call(out)
        assert list(out.build(ended=False).events) == events


def test_what_was_told_apart_late_is_said_in_its_place() -> None:
    """The event stands between the thought, which went out as text, and the answer."""
    assert events_of(["Okay.</th", "ink>\n\nHello"]) == [
        Content("Okay."), ReasoningEnd(), Content("Hello"),
    ]  # fmt: skip


def assembled(fragments: list[tuple[int | None, str, str, str]]) -> list[Delta]:
    """What comes of fragments: index, ID, name, arguments."""
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
def test_calls_are_told_apart_whatever_the_server_s_habit(habit: str) -> None:
    """The whole calls are right, and so is what comes of their pieces one behind the other."""
    fragments, calls = HABITS[habit]
    events = assembled(fragments)
    assert [(e.name, e.arguments) for e in events if isinstance(e, ToolCall)] == calls
    pieces: dict[str, str] = {}
    for each in events:
        if isinstance(each, ToolCallDelta):
            pieces[each.id] = pieces.get(each.id, "") + each.arguments
    assert [text for text in pieces.values() if text] == [arguments for _, arguments in calls]


def test_fields_that_are_not_known_stay_with_their_call() -> None:
    """Each piece has its own, the whole call those of all its pieces."""
    assembler, out = CallAssembler(), PartBuilder()
    assembler.add_fragment(0, "a", "x", "", out, {"extra_content": {"google": {"sign": "s"}}})
    assembler.add_fragment(
        0, "", "", A, out, {"extra_content": {"google": {"part": 2}}, "more": None}
    )
    assembler.add_fragment(1, "b", "y", B, out)
    assembler.finish(out)
    events = out.build(ended=True).events
    extras = [each.extra for each in events if isinstance(each, ToolCallDelta | ToolCall)]
    whole = {"extra_content": {"google": {"sign": "s", "part": 2}}, "more": None}
    assert extras[0] == {"extra_content": {"google": {"sign": "s"}}}
    assert extras[2:] == [msgspec.UNSET, whole, msgspec.UNSET]


def test_endlessly_many_calls_are_refused() -> None:
    """Memory for the calls of one answer is bounded."""
    with pytest.raises(UpstreamError) as caught:
        assembled([(n, f"id{n}", "add", "{}") for n in range(CALLS_MAX + 1)])
    assert caught.value.code == "upstream_invalid"
