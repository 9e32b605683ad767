"""Thoughts and tool calls as steps: what they hold, when they end, and how they are bounded."""

from __future__ import annotations

from halt.core.events import Content, Event, Extra, Reasoning, ToolCall, ToolCallDelta, ToolResult
from halt.core.steps import CUT, STEP_CHARS_MAX, STEPS_MAX, Step, StepPatch, StepStream


def fed(*events: Event) -> StepStream:
    """A stream of events that came a second apart, the first at 1."""
    stream = StepStream()
    for number, event in enumerate(events, 1):
        stream.feed(number, event, float(number))
    return stream


def shown(folds: tuple[Step, ...]) -> list[tuple[object, ...]]:
    return [(f.number, f.kind, f.state, f.name, f.text, f.result, f.ms) for f in folds]


def test_a_thought_takes_until_the_answer_begins() -> None:
    """Its pieces are one fold, and its time is that from its first piece to the answer's first."""
    stream = fed(Reasoning("so "), Reasoning("what"))
    assert shown(stream.steps()) == [(1, "thought", "running", "", "so what", "", None)]
    stream.feed(3, Content("Yes."), 4.5)
    assert shown(stream.steps()) == [(1, "thought", "done", "", "so what", "", 3500.0)]


def test_fields_of_the_server_end_no_thought() -> None:
    """A model may think on while its server tells its sources."""
    stream = fed(Reasoning("so "), Extra({"citations": []}), Reasoning("what"))
    assert [(f.state, f.text) for f in stream.steps()] == [("running", "so what")]


def test_an_answer_without_thoughts_or_tools_has_no_steps() -> None:
    """Plain text changes nothing."""
    stream = fed(Content("a"), Content("b"))
    assert stream.patch() == StepPatch()
    assert stream.end(9.0) == ()


def test_a_call_is_one_step_from_its_first_piece_to_its_result() -> None:
    """The arguments are not doubled by the whole call, and its time is the tool's own."""
    stream = fed(
        ToolCallDelta(0, "c", "add", ""),
        ToolCallDelta(0, "c", "add", '{"a":'),
        ToolCallDelta(0, "c", "add", "1}"),
        ToolCall("c", "add", '{"a":1}'),
        ToolResult("c", "add", "2", True, 12.5),
    )
    assert shown(stream.steps()) == [(1, "tool", "done", "add", '{"a":1}', "2", 12.5)]


def test_calls_of_one_round_do_not_mix_and_the_next_round_begins_anew() -> None:
    """Two at once, their results in the other order, then one with the same index and ID."""
    stream = fed(
        ToolCallDelta(0, "call_0", "a", "1"),
        ToolCallDelta(1, "call_1", "b", "2"),
        ToolCall("call_0", "a", "1"),
        ToolCall("call_1", "b", "2"),
        ToolResult("call_1", "b", "two", True, 1.0),
        ToolResult("call_0", "a", "no", False, 2.0),
        ToolCallDelta(0, "call_0", "a", "3"),
        ToolCall("call_0", "a", "3"),
    )
    assert shown(stream.steps()) == [
        (1, "tool", "failed", "a", "1", "no", 2.0),
        (2, "tool", "done", "b", "2", "two", 1.0),
        (7, "tool", "running", "a", "3", "", None),
    ]


def test_what_comes_without_its_beginning_is_shown_as_far_as_it_is_there() -> None:
    """A log that has let go of its first events: a result alone, a whole call alone."""
    stream = fed(ToolResult("x", "old", "done", True, 5.0), ToolCall("y", "new", "{}"))
    assert shown(stream.steps()) == [
        (1, "tool", "done", "old", "", "done", 5.0),
        (2, "tool", "running", "new", "{}", "", None),
    ]


def test_nothing_is_under_way_when_the_answer_has_ended() -> None:
    """A thought ends with it, a call that nobody ran was only asked for."""
    assert shown(fed(ToolCall("c", "add", "{}"), Reasoning("hm")).end(4.0)) == [
        (1, "tool", "called", "add", "{}", "", None),
        (2, "thought", "done", "", "hm", "", 2000.0),
    ]


def test_a_patch_tells_each_change_once() -> None:
    """What is new, what is added, what has changed; and nothing twice."""
    stream = fed(Reasoning("a"))
    first = stream.patch()
    assert shown(tuple(first.fresh)) == [(1, "thought", "running", "", "a", "", None)]
    assert (first.added, first.changed) == ([], [])
    stream.feed(2, Reasoning("b"), 2.0)
    stream.feed(3, Reasoning("c"), 3.0)
    assert stream.patch() == StepPatch(added=[(1, "bc")])
    stream.feed(4, Content("x"), 4.0)
    assert [f.ms for f in stream.patch().changed] == [3000.0]
    assert stream.patch() == StepPatch()


def test_folds_are_bounded_in_size_and_number() -> None:
    """Beyond the bound nothing is kept, and the last step says so once."""
    stream = fed(Reasoning("x" * STEP_CHARS_MAX), Reasoning("y"), Reasoning("z"))
    (step,) = stream.steps()
    assert step.text == "x" * STEP_CHARS_MAX + CUT
    many = StepStream()
    for n in range(1, 2 * STEPS_MAX, 2):
        many.feed(n, Reasoning("t"), 0.0)
        many.feed(n + 1, Content("c"), 0.0)
    many.feed(2 * STEPS_MAX, Reasoning("t"), 0.0)
    many.feed(2 * STEPS_MAX + 1, ToolCall("c", "a", "{}"), 0.0)
    many.feed(2 * STEPS_MAX + 2, ToolResult("c", "a", "{}", True, 1.0), 0.0)
    assert len(many.steps()) == STEPS_MAX
