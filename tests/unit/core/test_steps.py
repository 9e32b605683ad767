"""Thoughts and tool calls as steps: their content, their end, and their bounds."""

from __future__ import annotations

from halt.core.events import Content, Event, Extra, Reasoning, ToolCall, ToolCallDelta, ToolResult
from halt.core.steps import CUT, STEP_CHARS_MAX, STEPS_MAX, Step, StepPatch, StepStream


def step_stream(*events: Event) -> StepStream:
    """A stream of events that arrived a second apart, the first at 1 s."""
    stream = StepStream()
    for number, event in enumerate(events, 1):
        stream.feed(number, event, float(number))
    return stream


def step_rows(steps: tuple[Step, ...]) -> list[tuple[object, ...]]:
    return [(s.number, s.kind, s.state, s.name, s.text, s.result, s.ms) for s in steps]


def test_thought_step_ends_at_the_answers_first_text() -> None:
    """The pieces of a thought are one step, timed from its first piece to the answer's
    first text.
    """
    stream = step_stream(Reasoning("so "), Reasoning("what"))
    assert step_rows(stream.steps()) == [(1, "thought", "running", "", "so what", "", None)]
    stream.feed(3, Content("Yes."), 4.5)
    assert step_rows(stream.steps()) == [(1, "thought", "done", "", "so what", "", 3500.0)]


def test_thought_step_goes_on_across_server_fields() -> None:
    """A thought goes on across fields that the server sends in between, such as sources."""
    stream = step_stream(Reasoning("so "), Extra({"citations": []}), Reasoning("what"))
    assert [(step.state, step.text) for step in stream.steps()] == [("running", "so what")]


def test_answer_without_thoughts_or_tools_has_no_steps() -> None:
    """Text alone makes no step and no patch."""
    stream = step_stream(Content("a"), Content("b"))
    assert stream.patch() == StepPatch()
    assert stream.end(9.0) == ()


def test_tool_call_is_one_step_from_first_piece_to_result() -> None:
    """The whole call does not repeat the arguments, and the time is the tool's own."""
    stream = step_stream(
        ToolCallDelta(0, "c", "add", ""),
        ToolCallDelta(0, "c", "add", '{"a":'),
        ToolCallDelta(0, "c", "add", "1}"),
        ToolCall("c", "add", '{"a":1}'),
        ToolResult("c", "add", "2", True, 12.5),
    )
    assert step_rows(stream.steps()) == [(1, "tool", "done", "add", '{"a":1}', "2", 12.5)]


def test_tool_calls_of_two_rounds_with_the_same_id_are_separate_steps() -> None:
    """Two parallel calls with results in the other order, then one with the same index and ID."""
    stream = step_stream(
        ToolCallDelta(0, "call_0", "a", "1"),
        ToolCallDelta(1, "call_1", "b", "2"),
        ToolCall("call_0", "a", "1"),
        ToolCall("call_1", "b", "2"),
        ToolResult("call_1", "b", "two", True, 1.0),
        ToolResult("call_0", "a", "no", False, 2.0),
        ToolCallDelta(0, "call_0", "a", "3"),
        ToolCall("call_0", "a", "3"),
    )
    assert step_rows(stream.steps()) == [
        (1, "tool", "failed", "a", "1", "no", 2.0),
        (2, "tool", "done", "b", "2", "two", 1.0),
        (7, "tool", "running", "a", "3", "", None),
    ]


def test_step_without_its_beginning_has_the_part_that_is_there() -> None:
    """A step whose first events the log has dropped has its result alone or its call alone."""
    stream = step_stream(ToolResult("x", "old", "done", True, 5.0), ToolCall("y", "new", "{}"))
    assert step_rows(stream.steps()) == [
        (1, "tool", "done", "old", "", "done", 5.0),
        (2, "tool", "running", "new", "{}", "", None),
    ]


def test_end_leaves_no_step_running() -> None:
    """At the end of an answer its thought ends, and a call without a result stays called."""
    assert step_rows(step_stream(ToolCall("c", "add", "{}"), Reasoning("hm")).end(4.0)) == [
        (1, "tool", "called", "add", "{}", "", None),
        (2, "thought", "done", "", "hm", "", 2000.0),
    ]


def test_patch_has_each_change_once() -> None:
    """New steps, added text and changed steps are in one patch each."""
    stream = step_stream(Reasoning("a"))
    first = stream.patch()
    assert step_rows(tuple(first.fresh)) == [(1, "thought", "running", "", "a", "", None)]
    assert (first.added, first.changed) == ([], [])
    stream.feed(2, Reasoning("b"), 2.0)
    stream.feed(3, Reasoning("c"), 3.0)
    assert stream.patch() == StepPatch(added=[(1, "bc")])
    stream.feed(4, Content("x"), 4.0)
    assert [step.ms for step in stream.patch().changed] == [3000.0]
    assert stream.patch() == StepPatch()


def test_steps_are_limited_in_size_and_number() -> None:
    """Steps beyond the limits of size and number are dropped, and the last one says so once."""
    stream = step_stream(Reasoning("x" * STEP_CHARS_MAX), Reasoning("y"), Reasoning("z"))
    (step,) = stream.steps()
    assert step.text == "x" * STEP_CHARS_MAX + CUT
    long_stream = StepStream()
    for n in range(1, 2 * STEPS_MAX, 2):
        long_stream.feed(n, Reasoning("t"), 0.0)
        long_stream.feed(n + 1, Content("c"), 0.0)
    long_stream.feed(2 * STEPS_MAX, Reasoning("t"), 0.0)
    long_stream.feed(2 * STEPS_MAX + 1, ToolCall("c", "a", "{}"), 0.0)
    long_stream.feed(2 * STEPS_MAX + 2, ToolResult("c", "a", "{}", True, 1.0), 0.0)
    assert len(long_stream.steps()) == STEPS_MAX
