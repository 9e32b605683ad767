"""Runs with tools: rounds, their order, their limits, and a Stop during them.

The first part uses a scripted upstream, where every phase is reached by an event; the second part a
real server and real sockets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from halt.config.settings import Config
from halt.core import generation, metrics, opening, steps
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    Event,
    Failed,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    is_terminal,
    text_of,
)
from halt.core.exact_usage import sum_usage
from halt.core.metrics import Meter
from halt.core.request import ChatRequest, Part, ToolSpec, ToolTurn
from halt.core.run import Run
from halt.core.tools import Toolbox, ToolRound
from halt.errors import UpstreamError
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, new_id
from tests.support.http_client import EventStream
from tests.support.races import together
from tests.support.run_harness import RunHarness, RunHost, error_code, failure_code, wait_ended
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, wait_until

REPEATS = 250
RACE_TIMEOUT = 60.0  # seconds that a race may take to end in different ways


class Gate:
    """Tools that a test blocks and unblocks."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)  # released once for each call that has begun
        self.open = threading.Event()
        self.started: list[str] = []
        self.stops: list[threading.Event] = []
        self.box = Toolbox([self.held, self.quick])

    def held(self, name: str, abandoned: threading.Event) -> str:
        """Blocks until the test opens the gate, even if its Event is set."""
        self.started.append(name)
        self.stops.append(abandoned)
        self.running.release()
        self.open.wait(WAIT_TIMEOUT)
        return f"held {name}"

    def quick(self, name: str = "") -> str:
        """Returns at once."""
        self.started.append(name)
        return f"quick {name}"

    def wait_running(self, count: int = 1) -> None:
        """Wait until `count` more calls are running."""
        for _ in range(count):
            assert self.running.acquire(timeout=WAIT_TIMEOUT), self.started


class ToolHarness(RunHarness):
    """A harness whose runs have tools."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.tools = self.gate.box

    def close(self) -> None:
        self.gate.open.set()
        super().close()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToolHarness]:
    monkeypatch.setattr(generation, "TICK", 0.05)
    monkeypatch.setattr(opening, "RETRY_BASE", 0.0)
    tool_harness = ToolHarness()
    yield tool_harness
    tool_harness.close()


def asks(*names: str, tool: str = "quick") -> Part:
    """The model's calls, complete, as they come with the end of its answer."""
    events = tuple(ToolCall(f"id-{n}", tool, json.dumps({"name": n})) for n in names)
    return Part(events, len(events))


def ask(reply: ScriptedReply, *names: str, tool: str = "quick", **usage: int) -> None:
    """End a reply with calls."""
    reply.feed(asks(*names, tool=tool))
    reply.end("tool_calls", usage or None)


def kinds(events: list[tuple[int, Event]]) -> list[str]:
    return [type(event).__name__ for _, event in events]


def sent_messages(request: ChatRequest, skip: int = 1) -> Any:
    """The messages of a request after the first `skip`, as they are sent."""
    return msgspec.to_builtins(request.messages)[skip:]


# --- a round --------------------------------------------------------------------------------------


def test_round_of_tools_is_one_log_and_a_second_request(harness: ToolHarness) -> None:
    """Text, call, result, text are one log; the second request has the model's text, call and
    result."""
    run, upstream = harness.started_run()
    reader = Reader(run)
    upstream.reply().feed("Let me see.")
    ask(upstream.reply(), "x")
    second = upstream.reply(1)
    second.feed("It is so.")
    second.end()
    events = reader.finish()
    assert kinds(events) == ["Content", "ToolCall", "ToolResult", "Content", "Done"]
    assert [seq for seq, _ in events] == [1, 2, 3, 4, 5]
    result = events[2][1]
    assert isinstance(result, ToolResult)
    assert (result.id, result.name, result.result, result.ok) == ("id-x", "quick", "quick x", True)
    assert run.answer() == (4, "Let me see.\n\nIt is so.")
    call = {"id": "id-x", "type": "function"}
    function = {"name": "quick", "arguments": '{"name": "x"}'}
    assert sent_messages(upstream.requests[1]) == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call | {"function": function}],
        },
        {"role": "tool", "content": "quick x", "tool_call_id": "id-x"},
    ]
    assert sent_messages(upstream.requests[0]) == []
    tool_names = [tool["function"]["name"] for tool in upstream.requests[1].tools or ()]
    assert tool_names == ["held", "quick"]
    assert upstream.reply().over.wait(WAIT_TIMEOUT)
    assert (upstream.reply().finished, upstream.reply().closed) == (1, 0)
    harness.wait_released(run)
    assert harness.ended == [run]


def test_relay_reads_every_rounds_text(harness: ToolHarness) -> None:
    """The relay reads each round's text; in between a thread waits for the tools."""
    run, reply, reader = harness.watched_run()
    upstream = harness.upstreams[0]
    ask(reply, "x", tool="held")
    harness.gate.wait_running()
    wait_until(lambda: run.log.waiting == 1)  # the reader waits at the log, as for heartbeats
    harness.gate.open.set()
    second = upstream.reply(1)
    second.feed("b")
    reader.wait_text("a\n\nb")
    second.end()
    reader.finish()
    assert set(reply.readers + second.readers) == {"halt-relay"}
    assert max(reply.most_reading, second.most_reading) == 1


def test_round_sends_its_extra_fields_back_with_the_results(harness: ToolHarness) -> None:
    """Each round's fields are in that round's message and calls; readers see the calls' unchanged."""
    run, upstream = harness.started_run()
    for number in range(2):
        reply = upstream.reply(number)
        reply.opaque = {"reasoning_content": f"hm {number}"}
        extra = {"extra_content": {"signature": number}}
        reply.feed(Part((ToolCall(f"id-{number}", "quick", '{"name":"x"}', extra=extra),), 1))
        reply.end("tool_calls")
    upstream.reply(2).feed("It is so.")
    upstream.reply(2).end()
    wait_ended(run)
    turns = [m for m in upstream.requests[2].messages if isinstance(m, ToolTurn)]
    assert [turn.opaque for turn in turns] == [{"reasoning_content": f"hm {n}"} for n in range(2)]
    extra_contents = [turn["tool_calls"][0]["extra_content"] for turn in turns]
    assert extra_contents == [{"signature": n} for n in range(2)]
    calls = [event for _, event in run.log.read(0) if isinstance(event, ToolCall)]
    assert [call.extra for call in calls] == [
        {"extra_content": signature} for signature in extra_contents
    ]


def test_results_are_sent_in_the_order_of_the_calls(harness: ToolHarness) -> None:
    """Readers see each result as it comes; the model gets them in the order of its calls."""
    run, upstream = harness.started_run()
    calls = (ToolCall("one", "held", '{"name":"1"}'), ToolCall("two", "quick", '{"name":"2"}'))
    upstream.reply().feed(Part(calls, 2))
    upstream.reply().end("tool_calls")
    wait_until(lambda: any(isinstance(e, ToolResult) for _, e in run.log.read(0)))
    harness.gate.open.set()
    upstream.reply(1).end()
    wait_ended(run)
    ids = [e.id for _, e in run.log.read(0) if isinstance(e, ToolResult)]
    assert ids == ["two", "one"]
    messages = sent_messages(upstream.requests[1])
    assert [m.get("tool_call_id") for m in messages] == [None, "one", "two"]
    assert "content" not in messages[0]


def test_calls_with_the_same_id_each_have_their_result(harness: ToolHarness) -> None:
    """A server that uses an ID twice gets both results, in order."""
    run, upstream = harness.started_run()
    calls = [ToolCall("same", "quick", f'{{"name":"{n}"}}') for n in (1, 2)]
    upstream.reply().feed(Part(tuple(calls)))
    upstream.reply().end("tool_calls")
    upstream.reply(1).end()
    wait_ended(run)
    assert [m["content"] for m in sent_messages(upstream.requests[1], 2)] == ["quick 1", "quick 2"]


def test_rounds_send_all_earlier_rounds_and_sum_the_usage(harness: ToolHarness) -> None:
    """Each request holds all earlier rounds; usage is summed; texts are separate paragraphs."""
    run, upstream = harness.started_run()
    for number in range(3):
        reply = upstream.reply(number)
        reply.feed(f"{number}")
        ask(reply, f"{number}", prompt_tokens=10 + number, completion_tokens=2)
    last_reply = upstream.reply(3)
    last_reply.feed("end")
    last_reply.end(usage={"prompt_tokens": 20, "completion_tokens": 5})
    wait_ended(run)
    assert run.answer()[1] == "0\n\n1\n\n2\n\nend"
    messages = sent_messages(upstream.requests[3])
    assert [m["role"] for m in messages] == ["assistant", "tool"] * 3
    assert [m["content"] for m in messages[::2]] == ["0", "1", "2"]
    terminal = run.log.ended
    assert isinstance(terminal, Done)
    assert terminal.usage == {"prompt_tokens": 53, "completion_tokens": 11}
    assert (terminal.metrics.tokens, terminal.metrics.tokens_estimated) == (11, False)


def test_usage_missing_in_one_round_gives_an_estimate(harness: ToolHarness) -> None:
    """If one round reports no usage, no sum is given, and the token count is an estimate."""
    run, upstream = harness.started_run()
    ask(upstream.reply(), "x", completion_tokens=7)
    upstream.reply(1).feed("a")
    upstream.reply(1).end()
    wait_ended(run)
    terminal = run.log.ended
    assert isinstance(terminal, Done)
    assert terminal.usage is None
    assert (terminal.metrics.tokens, terminal.metrics.tokens_estimated) == (2, True)


def test_summed_adds_nested_counts() -> None:
    """Nested numbers are added; words and missing values do no harm."""
    first = {"a": 1, "d": {"x": 1, "y": None}, "who": "m"}
    second = {"a": 2.5, "d": {"x": 3, "y": 4}, "who": "n", "more": 1}
    total = {"a": 3.5, "d": {"x": 4, "y": 4}, "who": "n", "more": 1}
    assert sum_usage(sum_usage({}, first), second) == total
    assert sum_usage(first, {"a": None}) == first


def test_calls_before_the_end_of_the_reply_wait_for_it(harness: ToolHarness) -> None:
    """Calls that come long before the last byte of the reply are run at its end."""
    run, upstream = harness.started_run()
    first = upstream.reply()
    first.finish_reason = "tool_calls"
    first.feed(asks("x"), "afterthought")
    wait_until(lambda: run.log.last == 2)
    assert harness.gate.started == []
    first.end("tool_calls", {"completion_tokens": 3})
    upstream.reply(1).end(usage={"completion_tokens": 1})
    wait_ended(run)
    assert harness.gate.started == ["x"]
    assert isinstance(run.log.ended, Done)
    assert run.log.ended.usage == {"completion_tokens": 4}


@pytest.mark.parametrize("reason", ["length", "content_filter", "insufficient_system_resource"])
def test_calls_of_a_cut_off_reply_are_not_run(harness: ToolHarness, reason: str) -> None:
    """Calls of a reply cut at the token limit, which may be incomplete, are not run."""
    run, upstream = harness.started_run()
    upstream.reply().feed(asks("x"))
    upstream.reply().end(reason)
    wait_ended(run)
    assert harness.gate.started == []
    assert isinstance(run.log.ended, Done)
    assert run.log.ended.finish_reason == reason


@pytest.mark.parametrize("reason", ["stop", "function_call", None])
def test_calls_are_run_with_any_good_finish_reason(
    harness: ToolHarness, reason: str | None
) -> None:
    """Calls are run with the finish reason "stop" or none too, as some servers send them."""
    run, upstream = harness.started_run()
    first = upstream.reply()
    first.finish_reason = reason
    first.feed(asks("x"), Part(ended=True))
    upstream.reply(1).end()
    wait_ended(run)
    assert harness.gate.started == ["x"]


def test_request_with_its_own_tools_is_not_offered_halts(harness: ToolHarness) -> None:
    """The client's tools alone are offered, and Halt does not run their calls."""
    upstream = ScriptedUpstream()
    request = ChatRequest(HI, tools=[ToolSpec.of_function("quick")])
    harness.upstreams.append(upstream)
    run = harness.start_run(harness.new_run_of(RunHost(harness, upstream, Config()), request))
    ask(upstream.reply(), "x")
    wait_ended(run)
    assert (run.state, harness.gate.started, len(upstream.requests)) == ("done", [], 1)
    assert upstream.requests[0] == request


def test_tool_choice_that_forces_a_call_holds_for_one_round(harness: ToolHarness) -> None:
    """`tool_choice: required` does not make the model call tools without end."""
    upstream = ScriptedUpstream()
    run, _ = harness.new_run(upstream)
    run.request = msgspec.structs.replace(run.request, tool_choice="required")
    harness.start_run(run)
    ask(upstream.reply(), "x")
    upstream.reply(1).end()
    wait_ended(run)
    assert [request.tool_choice for request in upstream.requests] == ["required", None]


def test_late_end_of_thought_covers_its_own_round(harness: ToolHarness) -> None:
    """A late end of a thought covers its own round's text alone, and no thought is sent as an
    answer.
    """
    run, upstream = harness.started_run()
    reader = Reader(run)
    for number, name in enumerate(("x", "y")):
        upstream.reply(number).feed("Hm.", Part((ReasoningEnd(),), 1), f"Look {name}.")
        ask(upstream.reply(number), name)
    second_reply = upstream.reply(2)
    second_reply.feed("Ah.", Part((ReasoningEnd(), Content("Yes.")), 1))
    second_reply.end()
    ends = [event.after for _, event in reader.finish() if isinstance(event, ReasoningEnd)]
    assert ends == [0, 5, 10]
    assert run.answer()[1] == "Look x.\n\nLook y.\n\nYes."
    contents = [
        m["content"] for m in sent_messages(upstream.requests[2]) if m["role"] == "assistant"
    ]
    assert contents == ["Look x.", "Look y."]
    assert [f.text.strip() for f in steps.steps_of(run) if f.kind == "thought"] == [
        "Hm.",
        "Hm.",
        "Ah.",
    ]


def test_answer_has_neither_reasoning_nor_calls(harness: ToolHarness) -> None:
    """Only the model's own text is the answer; a paragraph break comes only after text."""
    run, upstream = harness.started_run()
    first = upstream.reply()
    first.feed(Part((Reasoning("hm"), ToolCallDelta(0, "id-x", "quick", "{")), 2))
    ask(first, "x")
    upstream.reply(1).feed("Answer")
    upstream.reply(1).end()
    wait_ended(run)
    assert run.answer()[1] == "Answer"
    assert isinstance(run.log.ended, Done)
    assert run.log.ended.metrics.characters == len("Answer")


def test_meter_leaves_the_time_of_tools_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate and gaps leave the time of tools out."""
    time = [0.0]
    monkeypatch.setattr(metrics, "now", lambda: time[0])
    meter = Meter()
    for moment, tools in ((1.0, False), (2.0, True), (102.0, False), (103.0, False)):
        time[0] = moment
        meter.received(1, 1)
        if tools:
            meter.note_tool_activity()
    snapshot = meter.snapshot()
    assert (snapshot.streaming_ms, snapshot.duration_ms) == (2_000.0, 103_000.0)
    assert snapshot.tokens_per_second == 1.5
    assert snapshot.gap_p99_ms is not None
    assert snapshot.gap_p99_ms < 1_100


# --- Stop -----------------------------------------------------------------------------------------


def test_stop_while_tools_run_does_not_wait_for_them(harness: ToolHarness) -> None:
    """The end comes while the tools run; their Events are set, and no thread waits for them."""
    run, upstream = harness.started_run()
    reader = Reader(run)
    ask(upstream.reply(), "x", "y", tool="held")
    harness.gate.wait_running(2)
    assert run.switch.press() == "stopped"
    assert kinds(reader.finish()) == ["ToolCall", "ToolCall", "Cancelled"]
    harness.wait_released(run)
    assert not harness.gate.open.is_set()  # both tools are still running
    assert all(event.is_set() for event in harness.gate.stops)
    harness.gate.open.set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "halt-tool-held"])
    assert run.log.last == 3
    assert len(upstream.requests) == 1


def test_stop_while_tools_run_keeps_the_seen_text(harness: ToolHarness) -> None:
    """A Stop by a viewer keeps the answer up to the last event it saw."""
    run, reply, reader = harness.watched_run()
    ask(reply, "x", tool="held")
    harness.gate.wait_running()
    assert run.switch.press(1) == "stopped"
    assert kinds(reader.finish()) == ["Content", "ToolCall", "Cancelled"]
    harness.wait_released(run)
    assert run.answer() == (1, "a")


def test_stop_just_before_the_tools_begin_starts_none(harness: ToolHarness) -> None:
    """A Stop before the round exists to be aborted keeps every tool from starting."""

    class LateToolbox(Toolbox):
        def round(self, calls: list[ToolCall]) -> ToolRound:
            run.cancel("stop")
            return super().round(calls)

    harness.tools = LateToolbox([harness.gate.quick])
    run, upstream = harness.started_run()
    ask(upstream.reply(), "x")
    harness.wait_released(run)
    assert harness.gate.started == []
    assert kinds(run.log.read(0)) == ["ToolCall", "Cancelled"]


def test_stop_during_the_next_rounds_request_closes_its_connection(harness: ToolHarness) -> None:
    """A Stop while the server is silent between two rounds closes that connection."""
    run, upstream = harness.started_run()
    first = upstream.reply()
    upstream.silent = True
    ask(first, "x")
    assert upstream.waiting.wait(WAIT_TIMEOUT)
    assert run.switch.press() == "stopped"
    assert run.connection.wait_closed(WAIT_TIMEOUT) == "closed"
    harness.wait_released(run)
    assert kinds(run.log.read(0)) == ["ToolCall", "ToolResult", "Cancelled"]


def test_stop_before_a_later_rounds_first_token_keeps_earlier_text(harness: ToolHarness) -> None:
    """The second reply is closed unfinished; the first round's text is kept."""
    run, upstream = harness.started_run()
    upstream.reply().feed("a")
    ask(upstream.reply(), "x")
    second = upstream.reply(1)
    second.wait_reads()
    assert run.switch.press() == "stopped"
    assert second.over.wait(WAIT_TIMEOUT)
    assert (second.closed, run.answer()[1]) == (1, "a")


# --- faults and limits ----------------------------------------------------------------------------


def test_later_round_is_retried_before_its_first_token(harness: ToolHarness) -> None:
    """A refusal and a broken connection between rounds are retried; the tools do not run again."""
    failing_reply = ScriptedReply()
    failing_reply.feed(UpstreamError("upstream_dropped"))
    first = ScriptedReply()
    ask(first, "x")
    script = (first, UpstreamError("upstream_server_error"), failing_reply)
    run, upstream = harness.started_run(ScriptedUpstream(*script))
    last_reply = upstream.reply(2)
    last_reply.feed("a")
    last_reply.end()
    wait_ended(run)
    assert (run.state, harness.gate.started, failing_reply.closed) == ("done", ["x"], 1)
    assert [len(request.messages) for request in upstream.requests] == [1, 3, 3, 3]


def test_retries_are_counted_over_all_rounds(harness: ToolHarness) -> None:
    """HALT_RETRIES is counted over the run, not for each of its rounds."""
    fault = UpstreamError("upstream_server_error")
    first = ScriptedReply()
    ask(first, "x")
    run, upstream = harness.started_run(ScriptedUpstream(fault, first, fault, fault), retries=2)
    assert failure_code(run) == "upstream_server_error"
    assert len(upstream.requests) == 4


def test_fault_after_a_later_rounds_first_token_is_not_retried(harness: ToolHarness) -> None:
    """The later round's text stays, and the run fails."""
    run, upstream = harness.started_run()
    ask(upstream.reply(), "x")
    upstream.reply(1).feed("a", UpstreamError("upstream_dropped"))
    assert failure_code(run) == "upstream_dropped"
    assert run.answer()[1] == "a"
    assert upstream.reply(1).over.wait(WAIT_TIMEOUT)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_rounds_beyond_tool_rounds_end_the_run(harness: ToolHarness, rounds: int) -> None:
    """The run fails as too_many_tool_rounds; calls beyond the limit do not run."""
    run, upstream = harness.started_run(tool_rounds=rounds)
    for number in range(rounds + 1):
        ask(upstream.reply(number), f"{number}")
    assert failure_code(run) == "too_many_tool_rounds"
    harness.wait_released(run)
    assert len(harness.gate.started) == rounds
    assert [(r.finished, r.closed) for r in upstream.opened] == [(1, 0)] * (rounds + 1)


def test_results_and_calls_count_toward_max_answer_chars(harness: ToolHarness) -> None:
    """Calls, reasoning and results take memory like text, and the same limit ends the run."""
    run, upstream = harness.started_run(max_answer_chars=20)
    ask(upstream.reply(), "x" * 30)
    assert failure_code(run) == "answer_too_long"
    harness.wait_released(run)
    run, upstream = harness.started_run(max_answer_chars=20)
    upstream.reply().feed(*[Part((ToolCallDelta(0, "c", "quick", "x" * 8),))] * 3)
    assert failure_code(run) == "answer_too_long"


def test_limits_of_silence_pause_while_tools_run(harness: ToolHarness) -> None:
    """The limits of silence pause while tools run and start anew; the run's total time goes on."""
    run, upstream = harness.started_run(
        first_byte_timeout=100.0, gap_timeout=10.0, run_timeout=1_000.0
    )
    upstream.reply().feed("a")
    ask(upstream.reply(), "x", tool="held")
    harness.gate.wait_running()
    start = run.meter.started_at
    assert run.deadlines.error_if_exceeded(start + 999.0) is None
    assert error_code(run.deadlines.error_if_exceeded(start + 1_001.0)) == "run_too_long"
    harness.gate.open.set()
    second = upstream.reply(1)
    second.wait_reads()
    assert run.deadlines.error_if_exceeded(run.meter.last_at + 99.0) is None
    assert (
        error_code(run.deadlines.error_if_exceeded(run.meter.last_at + 101.0))
        == "first_byte_timeout"
    )
    second.feed("b")
    wait_until(lambda: run.log.last == 4)
    assert error_code(run.deadlines.error_if_exceeded(run.meter.last_at + 11.0)) == "stalled"
    assert run.fail(UpstreamError("stalled"))


def test_limit_that_ends_the_run_sets_its_tools_events(harness: ToolHarness) -> None:
    """A run over its time ends at once, and its tools' Events are set."""
    run, upstream = harness.started_run()
    ask(upstream.reply(), "x", tool="held")
    harness.gate.wait_running()
    assert run.fail(UpstreamError("run_too_long"))
    harness.wait_released(run)
    assert harness.gate.stops[0].is_set()


def test_run_without_a_viewer_ends_after_its_grace_while_tools_run(harness: ToolHarness) -> None:
    """The grace of a run without viewers counts during tools too."""
    run, upstream = harness.started_run(orphan_grace=10_000.0)
    ask(upstream.reply(), "x", tool="held")
    harness.gate.wait_running()
    run.watched_at -= 9_900.0
    harness.check_limits(run)
    assert run.state == "running"
    run.watched_at -= 101.0
    harness.check_limits(run)
    assert isinstance(run.log.ended, Cancelled)
    harness.wait_released(run)
    assert harness.gate.stops[0].is_set()


def test_tools_without_a_thread_end_the_run(
    harness: ToolHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose tools get no thread fails and gives its place back."""
    run, reply, reader = harness.watched_run()

    def refuse_thread(run: Run, _: Callable[[], None]) -> bool:
        run.fail(UpstreamError("internal", "no thread"))
        return False

    monkeypatch.setattr(harness, "spawn", refuse_thread)
    ask(reply, "x")
    assert isinstance(reader.finish()[-1][1], Failed)
    assert failure_code(run) == "internal"
    harness.wait_released(run)
    assert harness.gate.started == []


@pytest.mark.parametrize("code", ["bad_request", "model_not_found", "upstream_server_error"])
def test_refusal_of_tools_names_the_setting(harness: ToolHarness, code: str) -> None:
    """The error of a server that refuses tools names HALT_TOOLS and quotes the server."""
    run, upstream = harness.started_run(
        ScriptedUpstream(UpstreamError(code, "m does not support tools"))
    )
    assert failure_code(run) == "tools_refused"
    assert isinstance(run.log.ended, Failed)
    assert "HALT_TOOLS" in run.log.ended.error.message
    assert "It said: m does not support tools" in run.log.ended.error.message
    assert len(upstream.requests) == 1


def test_refusal_of_something_else_keeps_its_code(harness: ToolHarness) -> None:
    """A bad request that does not mention tools stays bad_request."""
    run, _ = harness.started_run(
        ScriptedUpstream(UpstreamError("bad_request", "no such temperature"))
    )
    assert failure_code(run) == "bad_request"


# --- races ----------------------------------------------------------------------------------------


def race_script() -> tuple[Part, ScriptedReply]:
    """Calls for the first reply of a race, and the whole second one."""
    second = ScriptedReply()
    second.feed("b", "c")
    second.end(usage={"completion_tokens": 1})
    return asks("1", "2"), second


def start_race(harness: ToolHarness) -> tuple[Run, list[ScriptedReply]]:
    """A run whose two rounds are there already, and its two replies."""
    calls, second = race_script()
    run, first = harness.run_with_parts("a", calls, later_replies=(second,))
    first.end("tool_calls", {"completion_tokens": 1})
    return run, [first, second]


def assert_one_end(harness: ToolHarness, run: Run, replies: list[ScriptedReply]) -> None:
    """Assert what holds after every race."""
    harness.wait_released(run)
    assert harness.ended == [run]
    events = [event for _, event in run.log.read(0)]
    assert [event for event in events if is_terminal(event)] == [events[-1]]
    assert run.answer()[1] == "".join(map(text_of, events))
    calls = [e.id for e in events if isinstance(e, ToolCall)]
    results = [e.id for e in events if isinstance(e, ToolResult)]
    assert set(results) <= set(calls)
    assert len(set(results)) == len(results)
    for reply in replies:
        assert reply.most_reading <= 1
        assert reply.finished + reply.closed == bool(reply.reads) or not reply.reads
    if run.state == "done":
        assert run.answer()[1] == "a\n\nbc"
        assert len(results) == 2
        assert isinstance(events[-1], Done)
        assert events[-1].usage == {"completion_tokens": 2}
        assert [reply.finished for reply in replies] == [1, 1]


def test_stop_racing_rounds_of_tools_gives_one_end(harness: ToolHarness) -> None:
    """Property: wherever a Stop meets a run with tools, it has one end, and each reply one close."""
    outcomes = set[int]()
    start = time.monotonic()
    # A loaded machine may run one thread to its end first in all REPEATS runs: then it goes on.
    for number in itertools.count():
        if number >= REPEATS and (len(outcomes) > 2 or time.monotonic() - start > RACE_TIMEOUT):
            break
        run, replies = start_race(harness)
        position = number % 9

        def stop(run: Run = run, position: int = position) -> bool:
            while run.log.last < position and run.log.ended is None:
                pass  # a wait at the log would return too late
            return run.cancel("stop")

        _, is_stopped = together(partial(harness.work_in_this_thread, run), stop)
        assert_one_end(harness, run, replies)
        assert (run.state == "cancelled") == is_stopped
        outcomes.add(len(run.log.read(0)))
    assert len(outcomes) > 2, "the race was always at the same place"


def test_viewers_racing_rounds_of_tools_get_the_same_events(harness: ToolHarness) -> None:
    """Property: a round is run once, and all viewers get the same events."""
    for _ in range(REPEATS):
        run, replies = start_race(harness)

        def read_text(run: Run = run) -> str:
            viewer = run.join()
            events = [event for group in run.follow(0, viewer) for event in group]
            run.leave(viewer)
            return str(events)

        _, first_text, second_text, third_text = together(
            partial(harness.work_in_this_thread, run), read_text, read_text, read_text
        )
        assert_one_end(harness, run, replies)
        assert first_text == second_text == third_text == str(run.log.read(0))
        assert run.state == "done"
        assert sorted(harness.gate.started[-2:]) == ["1", "2"]
    assert len(harness.gate.started) == 2 * REPEATS


def test_viewers_and_an_end_racing_a_rounds_end_agree(harness: ToolHarness) -> None:
    """Property: the same where the relay reads as the calls come, with a Stop or a limit in
    between.
    """
    for number in range(REPEATS):
        harness.clear()
        first, second = ScriptedReply(), race_script()[1]
        run, _ = harness.started_run(ScriptedUpstream(first, second))
        first.feed("a")
        wait_until(lambda: run.log.last == 1)
        viewers = [run.join(), run.join()]

        def calls(first: ScriptedReply = first) -> str:
            with contextlib.suppress(OSError):  # it was stopped and closed before
                first.feed(asks("1", "2"))
                first.end("tool_calls", {"completion_tokens": 1})
            return ""

        def read_text(viewer: Any, run: Run = run) -> str:
            events = [event for group in run.follow(0, viewer) for event in group]
            run.leave(viewer)
            return str(events)

        def stop(number: int = number, run: Run = run) -> str:
            after = 1 + number % 6
            while run.log.last < after and run.log.ended is None:
                pass  # a wait at the log would return too late
            is_ended = run.cancel("stop") if number % 2 else run.fail(UpstreamError("stalled"))
            return str(is_ended)

        racing_calls: list[Callable[[], str]] = [
            calls,
            partial(read_text, viewers[0]),
            partial(read_text, viewers[1]),
        ]
        if number % 3:
            racing_calls.append(stop)
        _, first_text, second_text, *_ = together(*racing_calls)
        assert first_text == second_text == str(run.log.read(0))
        assert_one_end(harness, run, [first, second])


def test_viewer_leaving_as_a_round_ends_does_not_stop_the_run(harness: ToolHarness) -> None:
    """Property: a run is finished, whichever viewer leaves."""
    for _ in range(REPEATS):
        run, replies = start_race(harness)
        viewer = run.join()

        def read_text(run: Run = run, viewer: Any = viewer) -> None:
            for _ in run.follow(0, viewer):
                pass

        together(partial(harness.work_in_this_thread, run), read_text, partial(run.leave, viewer))
        assert_one_end(harness, run, replies)
        assert run.state == "done"


# --- end to end -----------------------------------------------------------------------------------


class ToolServer(HaltServer):
    """Halt as a developer starts it with their own tools."""

    command = ("-m", "gunicorn", "tests.support.tool_app:app")


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(unknown_model="echo") as server:
        yield server


@pytest.fixture(scope="module")
def server(upstream: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with the tools that ship and with those of `tests.support.tool_app`, three rounds at
    most.
    """
    settings = {
        "OPENAI_BASE_URL": upstream.base_url,
        "OPENAI_API_KEY": "fake",
        "HALT_TOOLS": "calculator,current_time",
        "HALT_TOOL_ROUNDS": "3",
    }
    tool_server = ToolServer(settings)
    yield tool_server
    tool_server.close()


def events_of(stream: EventStream, kind: str) -> list[dict[str, Any]]:
    """The events of one type among those that were read."""
    events = [message.json for message in stream.seen if message.data != "[DONE]"]
    return [event for event in events if event["type"] == kind]


def until_event(stream: EventStream, kind: str) -> dict[str, Any]:
    """Read on until an event of this type has come."""
    while not events_of(stream, kind):
        assert stream.next() is not None, stream.seen
    return events_of(stream, kind)[-1]


def requests_of(upstream: FakeOpenAI, prompt: str) -> list[dict[str, Any]]:
    """The bodies of all requests whose conversation begins with `prompt`."""
    bodies = [record.body for record in upstream.requests if record.method == "POST"]
    return [body for body in bodies if body["messages"][0].get("content") == prompt]


def test_server_streams_call_result_and_answer_as_one(
    server: HaltServer, upstream: FakeOpenAI
) -> None:
    """Arguments in pieces, the call, the result and the answer that uses it are one stream."""
    prompt = new_id()
    model = 'tool_call?name=calculator&args={"expression":"6*7"}&say=One moment.'
    stream = server.client().chat(model, prompt).to_end()
    assert stream.text == "One moment.\n\nThe tools said: 42"
    assert "".join(e["arguments"] for e in events_of(stream, "tool_call_delta")) == (
        '{"expression":"6*7"}'
    )
    (call,) = events_of(stream, "tool_call")
    (result,) = events_of(stream, "tool_result")
    assert call["arguments"] == '{"expression":"6*7"}'
    assert (result["id"], result["result"], result["ok"]) == (call["id"], "42", True)
    first, second = requests_of(upstream, prompt)
    tool_names = {tool["function"]["name"] for tool in first["tools"]}
    assert tool_names == {"calculator", "current_time", "obedient", "stubborn", "slow"}
    function = {"name": "calculator", "arguments": '{"expression":"6*7"}'}
    assert second["messages"][1:] == [
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [{"id": call["id"], "type": "function", "function": function}],
        },
        {"role": "tool", "content": "42", "tool_call_id": call["id"]},
    ]
    assert second["tools"] == first["tools"]


def test_server_joins_alternating_pieces_of_parallel_calls(
    server: HaltServer, upstream: FakeOpenAI
) -> None:
    """Calls whose pieces alternate are each joined, and answered in order."""
    prompt = new_id()
    stream = server.client().chat("parallel_calls?n=4", prompt).to_end()
    assert stream.text == "The tools said: 10 | 20 | 30 | 40"
    messages = requests_of(upstream, prompt)[1]["messages"]
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert [message["tool_call_id"] for message in messages[2:]] == ids
    assert len(set(ids)) == 4


def test_server_answer_of_three_rounds_has_the_summed_usage(
    server: HaltServer, upstream: FakeOpenAI
) -> None:
    """The answer has the texts of all rounds, and the usage is their sum."""
    prompt = new_id()
    stream = server.client().chat("tool_rounds?n=3", prompt).to_end()
    assert stream.text == ("Round 1.\n\nRound 2.\n\nRound 3.\n\nThe tools said: 1 | 2 | 3")
    records = [
        record for record in upstream.requests if record.body in requests_of(upstream, prompt)
    ]
    tokens_sent = sum(record.tokens_sent for record in records)
    assert stream.terminal["usage"]["completion_tokens"] == tokens_sent
    assert stream.terminal["metrics"]["tokens"] == tokens_sent
    assert stream.terminal["finish_reason"] == "stop"


def test_server_ends_endless_rounds_with_an_error(server: HaltServer) -> None:
    """After the last allowed round the answer ends with an error that says why."""
    stream = server.client().chat("tool_rounds").to_end()
    assert stream.terminal["error"]["code"] == "too_many_tool_rounds"
    assert stream.text == "Round 1.\n\nRound 2.\n\nRound 3.\n\nRound 4."
    assert len(events_of(stream, "tool_result")) == 3


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("function_call", "The tools said: 42"),
        ("calls_unnumbered", "The tools said: 10 | 20 | 30"),
        ("calls_unnumbered?ids=0", "The tools said: 10"),
    ],
)
def test_server_runs_calls_in_other_servers_forms(
    server: HaltServer, model: str, text: str
) -> None:
    """Calls in other servers' forms are run: the older form, without index, without ID."""
    stream = server.client().chat(model).to_end()
    assert stream.text == text
    ids = [event["id"] for event in events_of(stream, "tool_call")]
    assert all(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ('tool_call?name=calculator&args={"expr', "The arguments do not fit"),
        ('tool_call?name=calculator&args={"expression":"1/0"}', "Division by zero."),
        ('tool_call?name=current_time&args={"time_zone":"Berlin"}', "Did you mean Europe/Berlin?"),
        ("tool_call?name=telephone", "There is no tool named 'telephone'."),
        ("tool_call?name=slow", "Timed out after 0.05 s."),
    ],
)
def test_server_sends_a_tools_failure_to_the_model(
    server: HaltServer, model: str, text: str
) -> None:
    """A tool's failure (bad arguments, unknown, raising, hanging) is sent to the model, and the
    answer goes on.
    """
    stream = server.client().chat(model).to_end()
    (result,) = events_of(stream, "tool_result")
    assert not result["ok"]
    assert text in result["result"]
    assert stream.text.startswith("The tools said: ")
    assert text in stream.text
    assert stream.terminal["type"] == "done"


@pytest.mark.parametrize("tool", ["obedient", "stubborn"])
def test_stop_of_a_running_tool_frees_the_place(server: HaltServer, tool: str) -> None:
    """The terminal event comes while the tool blocks, and the run's place is free again."""
    client = server.client()
    stream = client.chat(f"tool_call?name={tool}&say=Wait.")
    until_event(stream, "tool_call")
    server.wait_printed(f"{tool}: at work")
    receipt = client.stop(stream.id)
    assert receipt.json["status"] == "stopped"
    stream.to_end()
    assert stream.terminal["type"] == "cancelled"
    assert stream.text == "Wait."
    assert events_of(stream, "tool_result") == []
    if tool == "obedient":
        server.wait_printed("obedient: told to stop")
    wait_until(lambda: client.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)


def test_server_leaves_calls_of_a_clients_tools_to_the_client(
    server: HaltServer, upstream: FakeOpenAI
) -> None:
    """The client gets its calls as events; Halt's own tools are not offered."""
    prompt = new_id()
    client_tools = [{"type": "function", "function": {"name": "calculator", "parameters": {}}}]
    model = 'tool_call?name=calculator&args={"expression":"6*7"}'
    stream = server.client().chat(model, prompt, tools=client_tools).to_end()
    assert stream.terminal["finish_reason"] == "tool_calls"
    assert len(events_of(stream, "tool_call")) == 1
    assert events_of(stream, "tool_result") == []
    (request,) = requests_of(upstream, prompt)
    assert request["tools"] == client_tools


def test_server_names_the_setting_when_a_model_refuses_tools(server: HaltServer) -> None:
    """If a model refuses tools, the error says so, quotes the server and names the setting to
    change.
    """
    error = server.client().chat("no_tools").to_end().terminal["error"]
    assert error["code"] == "tools_refused"
    assert "does not support tools" in error["message"]
    assert "HALT_TOOLS" in error["message"]


def test_server_replay_has_the_rounds(server: HaltServer) -> None:
    """A later reader gets calls and results of all rounds in their places."""
    client = server.client()
    first = client.chat("parallel_calls?n=2").to_end()
    replay = client.follow(first.id, 0).to_end()
    assert [message.data for message in replay.seen] == [message.data for message in first.seen]


def test_page_answer_is_the_text_of_all_rounds(server: HaltServer, upstream: FakeOpenAI) -> None:
    """The page's conversation offers the tools; the next prompt is sent with the answer's text
    alone."""
    client = server.client()
    client.get("/")
    path, prompts = f"/c/{new_id()}/messages", []
    for prompt in ('/fake tool_call?name=calculator&args={"expression":"6*7"}', "And now?"):
        prompts.append(prompt)
        body = f"prompt={prompt.replace('&', '%26').replace('+', '%2B')}&id={new_id()}".encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
        assert client.request("POST", path, body, kind).status == 200
        page = path.removesuffix("/messages")
        expected = "The tools said: 42" if len(prompts) == 1 else "And now?"
        wait_until(
            lambda: client.get(page).body.decode().count(expected) >= len(prompts), SERVER_TIMEOUT
        )
        wait_until(lambda: client.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)
    messages = requests_of(upstream, prompts[0])[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "The tools said: 42"


def test_server_offers_no_tools_by_default(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """Without HALT_TOOLS a request has no tools, and Halt does not run a call."""
    prompt = new_id()
    stream = halt.client().chat("tool_call", prompt).to_end()
    assert stream.terminal["finish_reason"] == "tool_calls"
    (request,) = requests_of(shared_fake, prompt)
    assert not {"tools", "tool_choice"} & request.keys()
