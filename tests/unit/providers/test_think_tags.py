"""Reasoning and tool calls separated from the answer's text, in any cut and any form of marks."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halt.core.events import Content, Delta, Reasoning, ReasoningEnd
from halt.providers.part_builder import PartBuilder
from halt.providers.think_tags import ThinkSplitter

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
    """The events of a text that arrives in pieces."""
    splitter, out = ThinkSplitter(), PartBuilder()
    for piece in pieces:
        splitter.feed(piece, out)
    splitter.end(out)
    return list(out.build(ended=True).events)


def split(pieces: list[str]) -> tuple[str, str]:
    """Reasoning and answer of a text that arrives in pieces."""
    thought, answer = "", ""
    for event in events_of(pieces):
        if isinstance(event, Reasoning):
            thought += event.text
        elif isinstance(event, Content):
            answer += event.content
        elif isinstance(event, ReasoningEnd):
            thought, answer = thought + answer, ""
    return thought, answer


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({c for c in cuts if c < len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(text=MARKED, cuts=st.lists(st.integers(0, 60)))
@example(text="<think>\n\nhm\n</think>\n\nHello", cuts=list(range(60)))
@example(text="<think>\n\n</think>\n\nHello", cuts=list(range(60)))
@example(text="  <think>a</think>b<think>c</think>", cuts=list(range(60)))
@example(text="a.</think>\n\n<think>b</think>c", cuts=list(range(60)))
@example(text="<|end|><|start|>\n<|return|>", cuts=[17])
@example(text=f"<|end|><|start|>{'a' * 186}<|message|>b", cuts=[212])
def test_reasoning_and_answer_are_the_same_in_any_cut(text: str, cuts: list[int]) -> None:
    """Any cut of a text gives the same reasoning and answer."""
    assert split(cut(text, cuts)) == split([text])


@given(text=MARKED, cuts=st.lists(st.integers(0, 60)))
def test_splitter_loses_nothing_but_marks(text: str, cuts: list[int]) -> None:
    """All characters but marks and the white space around them come out, in order."""
    texts = [
        event.text if isinstance(event, Reasoning) else event.content
        for event in events_of(cut(text, cuts))
        if isinstance(event, Reasoning | Content)
    ]
    assert MARKS.sub("", "".join(texts)) == MARKS.sub("", text)


FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
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
def test_reasoning_is_split_off_in_every_form_of_marks(
    text: str, thought: str, answer: str
) -> None:
    """Each form of marks is recognised, whole and character by character."""
    assert split([text]) == (thought, answer)
    assert split(list(text)) == (thought, answer)


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
def test_text_that_mentions_marks_is_unchanged(text: str) -> None:
    """Marks in code, in quotes or within a sentence, and other brackets, are text."""
    assert split([text]) == ("", text)
    assert split(list(text)) == ("", text)


def test_end_mark_is_removed_after_separate_reasoning() -> None:
    """After separate reasoning an end mark is removed at the beginning of the text alone."""
    for text, answer in (("</think>\n\nHello", "Hello"), ("Look.</think>\nHello", None)):
        splitter, out = ThinkSplitter(), PartBuilder()
        splitter.note_reasoning(out)
        splitter.feed(text, out)
        splitter.end(out)
        assert list(out.build(ended=True).events) == [Content(text if answer is None else answer)]


def test_held_back_text_comes_before_a_tool_call() -> None:
    """Text that is held back is emitted before a tool call, as text or as a mark."""
    for text, events in (("a <", [Content("a <")]), ("a</think>", [Content("a"), ReasoningEnd()])):
        splitter, out = ThinkSplitter(), PartBuilder()
        splitter.feed(text, out)
        splitter.note_tool_call(out)
        assert list(out.build(ended=False).events) == events


def test_late_reasoning_end_stands_between_reasoning_and_answer() -> None:
    """The event stands between reasoning that was sent as text, and the answer."""
    assert events_of(["Okay.</th", "ink>\n\nHello"]) == [
        Content("Okay."), ReasoningEnd(), Content("Hello"),
    ]  # fmt: skip
