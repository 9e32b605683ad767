"""One run: Stop in every phase, one end only, and a relay that reads while threads come and go.

The upstream is scripted, so that each phase is reached by an event and not by waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from halt.chat.figures import answer_figures
from halt.clock import now
from halt.config.settings import Config
from halt.core import deadlines, generation, intake, metrics, opening, relay, steps
from halt.core import run as run_module
from halt.core.events import Cancelled, Content, Done, Extra, Failed, ReasoningEnd, text_of
from halt.core.request import Part
from halt.core.run import Run
from halt.errors import CODES, OffsetLost, UpstreamError
from tests.support.races import together
from tests.support.run_harness import RunHarness, error_code, failure_code, wait_ended
from tests.support.scripted_upstream import Reader, ScriptedReply, ScriptedUpstream, text_part
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

REPEATS = 1_000


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunHarness]:
    monkeypatch.setattr(generation, "TICK", 0.05)
    run_harness = RunHarness()
    yield run_harness
    run_harness.close()


# --- an answer ------------------------------------------------------------------------------------


def test_run_gives_text_in_order_then_one_terminal_event(harness: RunHarness) -> None:
    """The viewer gets the text in order, then one terminal event with usage and figures."""
    run, reply = harness.opened_run()
    reader = Reader(run)
    reply.feed("Hel", Part(), text_part("lo, world", 2))
    reply.end("length", {"completion_tokens": 7})
    events = reader.finish()
    assert [seq for seq, _ in events] == [1, 2, 3]
    assert reader.text == "Hello, world"
    terminal = events[-1][1]
    assert isinstance(terminal, Done)
    assert (terminal.finish_reason, terminal.usage) == ("length", {"completion_tokens": 7})
    assert (terminal.metrics.tokens, terminal.metrics.tokens_estimated) == (7, False)
    assert terminal.metrics.characters == len("Hello, world")
    assert terminal.metrics.ttft_ms is not None
    assert (run.state, run.model, run.answer()) == ("done", "scripted-1", (2, "Hello, world"))


@pytest.mark.parametrize("count", [2**63, 2**64, 2**70, -1, -(2**70)])
def test_usage_count_out_of_range_is_dropped(harness: RunHarness, count: int) -> None:
    """A usage holds no number that a reader, another worker or a database column could not store."""
    run, reply = harness.opened_run()
    reader = Reader(run)
    reply.feed("a")
    details = {"cached_tokens": count, "audio_tokens": 2}
    usage = {"completion_tokens": count, "prompt_tokens": 3, "prompt_tokens_details": details}
    reply.end(usage=usage)
    terminal = reader.finish()[-1][1]
    assert isinstance(terminal, Done)
    assert terminal.usage == {"prompt_tokens": 3, "prompt_tokens_details": {"audio_tokens": 2}}
    assert (terminal.metrics.tokens, terminal.metrics.tokens_estimated) == (1, True)
    assert msgspec.msgpack.encode(terminal)


def test_text_declared_a_thought_is_removed_from_the_answer(harness: RunHarness) -> None:
    """Text that is later declared a thought leaves answer, steps and figures as if it had come as
    one.

    A reader that left before saw an answer.
    """
    run, reply = harness.opened_run()
    reply.feed("Okay, ", Part((Content("hello."), ReasoningEnd(), Content("He")), 2), "llo")
    reply.end()
    wait_ended(run)
    assert [type(event) for _, event in run.log.read(0)] == [
        Content,
        Content,
        ReasoningEnd,
        Content,
        Content,
        Done,
    ]
    assert run.answer() == (5, "Hello")
    assert (run.text(2), run.text(3), run.text(4)) == ("Okay, hello.", "", "He")
    assert [(step.kind, step.text) for step in steps.steps_of(run)] == [("thought", "Okay, hello.")]
    terminal = run.log.ended
    assert isinstance(terminal, Done)
    assert terminal.metrics.characters == run.characters == len("Hello")
    assert terminal.metrics.reasoning_ms is not None
    harness.clear()
    run, reply = harness.opened_run()
    reply.feed("Okay, ", Part((Content("hello."), ReasoningEnd(), Content("He")), 2), "llo")
    wait_until(lambda: run.log.last == 5)
    assert run.switch.press(2) == "stopped"
    assert run.answer() == (2, "Okay, hello.")
    assert steps.steps_of(run) == ()


def test_tokens_without_usage_are_estimated(harness: RunHarness) -> None:
    """Without usage the pieces are counted, and the figures are marked as an estimate."""
    run, reply = harness.opened_run()
    reply.feed("a", text_part("bc", 2))
    reply.end()
    wait_ended(run)
    assert run.log.ended is not None
    metrics = run.log.ended.metrics
    assert (metrics.tokens, metrics.tokens_estimated) == (3, True)


def test_run_without_a_viewer_is_read_to_its_end(harness: RunHarness) -> None:
    """The relay reads to the end, and the connection goes back to the pool."""
    run, reply = harness.opened_run()
    reply.feed("a", "b")
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (run.state, reply.finished, reply.closed) == ("done", 1, 0)
    assert Reader(run).finish()[-1][1] == run.log.ended


def test_run_ends_once_whatever_ends_it(harness: RunHarness) -> None:
    """`on_end` and `release_place` are each called once, however many ends are tried."""
    run, reply, reader = harness.watched_run()
    assert run.cancel("stop")
    assert not run.cancel("stop")
    assert not run.fail(UpstreamError("stalled"))
    reader.finish()
    assert reply.over.wait(WAIT_TIMEOUT)
    harness.wait_released(run)
    assert (harness.ended, harness.released) == ([run], [run])


# --- Stop in every phase --------------------------------------------------------------------------


def test_stop_before_the_thread_begins_sends_no_request(harness: RunHarness) -> None:
    """A run that is stopped before its thread began sends no request."""
    run, upstream = harness.new_run()
    assert run.switch.press() == "stopped"
    harness.work_in_this_thread(run)
    harness.wait_released(run)
    assert (run.state, upstream.requests) == ("cancelled", [])


def test_stop_while_the_server_is_silent_closes_the_connection(harness: RunHarness) -> None:
    """A Stop during the wait for the head closes the connection."""
    run, upstream = harness.started_run(ScriptedUpstream(silent=True))
    assert upstream.waiting.wait(WAIT_TIMEOUT)
    assert run.switch.press() == "stopped"
    assert run.connection.wait_closed(WAIT_TIMEOUT) == "closed"
    harness.wait_released(run)
    assert (run.state, run.log.last, len(upstream.requests)) == ("cancelled", 1, 1)


def test_stop_before_the_first_token_closes_the_upstream(harness: RunHarness) -> None:
    """A Stop between head and first token ends the run as cancelled, without text."""
    run, reply = harness.opened_run()
    reader = Reader(run)
    reply.wait_reads()
    assert run.switch.press() == "stopped"
    assert [type(event) for _, event in reader.finish()] == [Cancelled]
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (reply.closed, reply.finished) == (1, 0)


def test_stop_between_tokens_keeps_the_received_text(harness: RunHarness) -> None:
    """The received text stays, nothing is added, and the viewer gets the end at once."""
    run, reply, reader = harness.watched_run()
    assert run.switch.press() == "stopped"
    events = reader.finish()
    assert events == [(1, Content("a")), (2, run.log.ended)]
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (run.state, run.answer(), reply.closed) == ("cancelled", (1, "a"), 1)


def test_stop_before_a_retry_prevents_it(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Stop ends the pause before a retry, and the retry is not made."""
    monkeypatch.setattr(opening, "RETRY_BASE", 1_000.0)
    monkeypatch.setattr(opening, "RETRY_AFTER_MAX", 10_000.0)
    caplog.set_level("INFO", "halt.core.opening")
    run, upstream = harness.started_run(ScriptedUpstream(UpstreamError("upstream_refused")))
    wait_until(lambda: "trying again in" in caplog.text)
    assert run.switch.press() == "stopped"
    harness.wait_released(run)
    assert len(upstream.requests) == 1
    assert run.log.read(0) == [(1, run.log.ended)]


def test_stop_after_the_end_is_answered_finished(harness: RunHarness) -> None:
    """A Stop after the end changes nothing and interrupts no connection."""
    run, reply = harness.opened_run()
    reply.feed("a")
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert run.switch.press() == "finished"
    assert (run.state, run.connection.interrupted) == ("done", False)


@pytest.mark.parametrize(
    ("seen", "kept_text"),
    [(None, "abc"), (0, ""), (2, "ab"), (3, "abc"), (99, "abc"), (10**15 - 1, "abc")],
)
def test_stop_cuts_the_answer_to_the_seen_events(
    harness: RunHarness, seen: int | None, kept_text: str
) -> None:
    """The answer of a stopped run ends with the last event that the stopping viewer saw."""
    run, reply = harness.opened_run()
    reply.feed("a", "b", "c")
    wait_until(lambda: run.log.last == 3)
    run.switch.press(seen)
    assert run.answer()[1] == kept_text
    assert run.log.last == 4
    assert run.seen_events is None or run.seen_events <= 3, (
        "a number that a client made up is saved"
    )


def test_stop_of_a_finished_run_cuts_nothing(harness: RunHarness) -> None:
    """Only the Stop that ended the run cuts its answer."""
    run, reply = harness.opened_run()
    reply.feed("a", "b")
    reply.end()
    wait_ended(run)
    assert run.switch.press(1) == "finished"
    assert run.answer() == (2, "ab")


def test_run_without_grace_ends_when_its_last_viewer_leaves(harness: RunHarness) -> None:
    """Another viewer keeps the run, even if one leaves twice."""
    run, reply = harness.opened_run(orphan_grace=0.0)
    first, second = run.join(), run.join()
    run.leave(first)
    run.leave(first)
    run.watched_at -= 1e6
    harness.check_limits(run)
    assert run.state == "running"
    run.leave(second)
    wait_ended(run)
    terminal = run.log.ended
    assert isinstance(terminal, Cancelled)
    assert terminal.reason == "no_viewer"
    assert reply.over.wait(WAIT_TIMEOUT)


# --- races ----------------------------------------------------------------------------------------


def test_stop_racing_the_natural_end_gives_one_terminal_event(harness: RunHarness) -> None:
    """Property: exactly one terminal event, on which log, state, Stop and `on_end` agree."""
    outcomes = set()
    for _ in range(REPEATS):
        run, reply = harness.run_with_parts("a")
        reply.end()
        _, is_stopped = together(
            partial(harness.work_in_this_thread, run), partial(run.cancel, "stop")
        )
        harness.wait_released(run)
        events = run.log.read(0)
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
        assert [type(e) for _, e in events if not isinstance(e, Content)] == [type(run.log.ended)]
        assert run.state == ("cancelled" if is_stopped else "done")
        assert harness.ended == harness.released == [run]
        assert reply.finished + reply.closed <= 1
        # The whole answer may have arrived before the Stop: then the connection is kept.
        assert run.connection.wait_closed(0) == ("closed" if reply.closed else "none")
        assert run.answer()[1] == "".join(text_of(e) for _, e in events)
        outcomes.add(run.state)
    assert outcomes <= {"cancelled", "done"}


def test_stop_racing_a_fault_and_a_limit_gives_one_end(harness: RunHarness) -> None:
    """Property: of Stop, limit and a broken upstream one ends the run; the others change nothing."""
    for _ in range(REPEATS // 4):
        run, _ = harness.run_with_parts("a", UpstreamError("upstream_dropped"))
        _, is_stopped, is_limited = together(
            partial(harness.work_in_this_thread, run),
            partial(run.cancel, "stop"),
            partial(run.fail, UpstreamError("stalled")),
        )
        harness.wait_released(run)
        terminal = run.log.ended
        code = terminal.error.code if isinstance(terminal, Failed) else "stop"
        assert not (is_stopped and is_limited)
        assert code == ("stop" if is_stopped else "stalled" if is_limited else "upstream_dropped")
        assert harness.ended == harness.released == [run]


def test_viewer_before_the_first_thread_does_not_prevent_the_opening(
    harness: RunHarness,
) -> None:
    """Property: a run is opened, whether its viewer or its thread comes first."""
    for _ in range(REPEATS // 4):
        run, reply = harness.run_with_parts("a")
        reply.end()
        viewer = run.join()

        def read_text(run: Run = run, viewer: Any = viewer) -> str:
            return "".join(text_of(e) for g in run.follow(0, viewer) for _, e in g)

        _, text = together(partial(harness.work_in_this_thread, run), read_text)
        assert text == "a"
        assert reply.over.wait(WAIT_TIMEOUT)
        assert (run.state, reply.finished) == ("done", 1)


def test_viewers_racing_a_stop_get_the_same_events(harness: RunHarness) -> None:
    """Property: all viewers of a stopped run get the same events up to the same terminal one."""
    for _ in range(REPEATS // 10):
        run, _ = harness.run_with_parts(*"abcdefgh")

        def read_text(run: Run = run) -> str:
            viewer = run.join()
            events = [event for group in run.follow(0, viewer) for event in group]
            run.leave(viewer)
            return str(events)

        _, _, first_text, second_text = together(
            partial(harness.work_in_this_thread, run),
            partial(run.cancel, "stop"),
            read_text,
            read_text,
        )
        assert first_text == second_text == str(run.log.read(0))


# --- readers --------------------------------------------------------------------------------------


def test_relay_thread_reads_alone_after_the_head(harness: RunHarness) -> None:
    """After the head neither a viewer's thread nor the run's own waits for the model."""
    _, reply, reader = harness.watched_run()
    for text in "bcd":
        reply.feed(text)
    reader.wait_text("abcd")
    reply.end()
    reader.finish()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert set(reply.readers) == {"halt-relay"}


def test_opening_thread_ends_when_the_run_is_open(harness: RunHarness) -> None:
    """A run that the relay reads has no thread."""
    _, reply = harness.opened_run()
    reply.wait_reader("halt-relay")
    for thread in harness.threads:
        thread.end()
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)


def test_run_goes_on_when_its_viewer_leaves(harness: RunHarness) -> None:
    """A run whose viewer leaves is read on by the relay, and no thread is started."""
    run, reply, reader = harness.watched_run()
    reader.leave()
    reply.feed("b")
    reply.end()
    wait_ended(run)
    assert (run.state, run.answer()) == ("done", (2, "ab"))


def test_viewer_that_does_not_read_delays_no_other(harness: RunHarness) -> None:
    """A viewer on a slow network delays no other, and gets the rest when it reads again."""
    run, reply, reader = harness.watched_run()
    idle_viewer = run.join()
    groups = run.follow(0, idle_viewer)
    assert next(groups) == [(1, Content("a"))]
    reply.feed("b")
    reader.wait_text("ab")
    reader.leave()
    reply.feed("c")
    reply.end()
    wait_ended(run)
    assert "".join(text_of(e) for group in groups for _, e in group) == "bc"
    run.leave(idle_viewer)


def test_text_that_came_with_the_head_is_read_at_once(harness: RunHarness) -> None:
    """Text that came with the head is read at once, without waiting for the next byte."""
    run, _ = harness.run_with_parts("a", "b")
    reader = Reader(run)
    harness.start_run(run)
    reader.wait_text("ab")


def test_reply_is_read_by_one_thread_at_a_time(harness: RunHarness) -> None:
    """Property: however many viewers come and go, one thread reads and all viewers get the same."""
    run, reply = harness.opened_run()
    readers = [Reader(run, name=f"reader-{n}") for n in range(5)]
    texts = [f"{n} " for n in range(200)]
    for number, text in enumerate(texts):
        reply.feed(text)
        if number % 50 == 10:
            readers.pop(0).leave()
            readers.append(Reader(run, name=f"reader-{number}"))
    reply.end()
    for reader in readers:
        reader.finish()
        assert reader.text == "".join(texts)
    assert reply.most_reading == 1


def test_reader_after_a_lost_connection_continues_without_gaps(harness: RunHarness) -> None:
    """A viewer that comes back gets what came since, nothing twice."""
    run, reply, reader = harness.watched_run()
    reader.leave()
    reply.feed("b", "c")
    reply.end()
    wait_ended(run)
    second_reader = Reader(run, after=1)
    assert [seq for seq, _ in second_reader.finish()] == [2, 3, 4]
    assert second_reader.text == "bc"


def test_reader_below_the_kept_part_gets_offset_lost(harness: RunHarness) -> None:
    """A viewer whose next events the log has dropped gets OffsetLost, never a gap."""
    run, reply = harness.opened_run(log_bytes=1_024)
    reply.feed(*["x" * 300] * 10)
    reply.end()
    wait_ended(run)
    with pytest.raises(OffsetLost):
        Reader(run).finish()
    assert run.answer()[1] == "x" * 3_000


def test_follow_with_an_interval_groups_the_events(harness: RunHarness) -> None:
    """The first text comes at once, later text in one group; the end waits for no interval."""
    run, reply = harness.opened_run()
    groups = run.follow(0, viewer := run.join(), interval=1_000.0)
    reply.feed("a")
    first = next(group for group in groups if group)
    assert first == [(1, Content("a"))]
    remaining_groups = BackgroundCall(lambda: [group for group in groups if group])
    reply.feed("b", "c")
    reply.end()
    remaining_groups.end()
    assert remaining_groups.result == [[(2, Content("b")), (3, Content("c")), (4, run.log.ended)]]
    run.leave(viewer)


def test_follow_in_silence_yields_empty_groups(harness: RunHarness) -> None:
    """A viewer gets an empty group after each TICK of silence, as the time for a heartbeat."""
    run, _, _ = harness.watched_run()
    groups = run.follow(1, viewer := run.join())
    assert [next(groups), next(groups)] == [[], []]
    run.cancel("stop")
    assert [e for group in groups for e in group] == [(2, run.log.ended)]
    run.leave(viewer)


# --- retries --------------------------------------------------------------------------------------


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(opening, "RETRY_BASE", 0.0)


@pytest.mark.usefixtures("short_waits")
def test_fault_before_the_head_is_retried(harness: RunHarness) -> None:
    """Faults before the first token are retried, and the viewer gets no event of them."""
    faults = [UpstreamError("upstream_refused"), UpstreamError("upstream_server_error")]
    run, upstream = harness.started_run(ScriptedUpstream(*faults), retries=2)
    reply = upstream.reply()
    reader = Reader(run)
    reply.feed("a")
    reply.end()
    assert [type(event) for _, event in reader.finish()] == [Content, Done]
    assert len(upstream.requests) == 3


@pytest.mark.usefixtures("short_waits")
def test_fault_before_the_first_token_is_retried_on_a_new_connection(harness: RunHarness) -> None:
    """The broken connection is closed, and the answer comes from a new one."""
    first = ScriptedReply()
    first.feed(Part(), UpstreamError("upstream_dropped"))
    run, upstream = harness.started_run(ScriptedUpstream(first))
    second = upstream.reply(1)
    second.feed("a")
    second.end()
    wait_ended(run)
    assert (run.state, first.closed, run.answer()) == ("done", 1, (1, "a"))


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_end_with_the_last_fault(harness: RunHarness, retries: int) -> None:
    """After HALT_RETRIES retries the run fails with the last fault."""
    faults = [UpstreamError("upstream_server_error")] * 9
    run, upstream = harness.started_run(ScriptedUpstream(*faults), retries=retries)
    assert failure_code(run) == "upstream_server_error"
    assert len(upstream.requests) == 1 + retries


@pytest.mark.usefixtures("short_waits")
def test_fault_after_the_first_token_is_not_retried(harness: RunHarness) -> None:
    """The shown text stays, and the run fails: no answer begins twice."""
    run, upstream = harness.started_run()
    reply = upstream.reply()
    reply.feed("a", UpstreamError("upstream_dropped"))
    assert failure_code(run) == "upstream_dropped"
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (len(upstream.requests), run.answer(), reply.closed) == (1, (1, "a"), 1)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    "code", sorted(code for code, (_, is_retryable) in CODES.items() if not is_retryable)
)
def test_fault_that_is_not_retryable_is_not_retried(harness: RunHarness, code: str) -> None:
    """A refusal that a retry would not change fails the run at once."""
    run, upstream = harness.started_run(ScriptedUpstream(UpstreamError(code)))
    assert failure_code(run) == code
    assert len(upstream.requests) == 1


def test_retry_after_within_the_limit_is_waited_for(
    harness: RunHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """The next request waits for a short Retry-After."""
    caplog.set_level("INFO", "halt.core.opening")
    fault = UpstreamError("rate_limited", retry_after=4.0)
    run, upstream = harness.started_run(ScriptedUpstream(fault))
    wait_until(lambda: "trying again in 4." in caplog.text)
    assert len(upstream.requests) == 1
    run.cancel("stop")


@pytest.mark.usefixtures("short_waits")
def test_retry_after_is_followed_by_one_more_request(harness: RunHarness) -> None:
    """After the server's Retry-After the run is requested once more, and answered."""
    run, upstream = harness.started_run(
        ScriptedUpstream(UpstreamError("rate_limited", retry_after=0.01))
    )
    reply = upstream.reply()
    reply.end()
    wait_ended(run)
    assert (run.state, len(upstream.requests)) == ("done", 2)


def test_retry_after_gets_a_random_part(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait of a Retry-After has a random part, so that clients do not all return at the same
    time.
    """
    monkeypatch.setattr(opening, "RETRY_BASE", 1_000.0)
    caplog.set_level("INFO", "halt.core.opening")
    run, upstream = harness.started_run(
        ScriptedUpstream(UpstreamError("rate_limited", retry_after=0.0))
    )
    wait_until(lambda: "trying again in" in caplog.text)
    assert len(upstream.requests) == 1
    run.cancel("stop")


def test_retry_after_beyond_the_limit_ends_the_run(harness: RunHarness) -> None:
    """A Retry-After of a minute fails the run, and the error holds the seconds."""
    run, upstream = harness.started_run(
        ScriptedUpstream(UpstreamError("rate_limited", retry_after=60.0))
    )
    assert failure_code(run) == "rate_limited"
    assert isinstance(run.log.ended, Failed)
    assert run.log.ended.error.retry_after == 60.0
    assert len(upstream.requests) == 1


# --- limits and faults ----------------------------------------------------------------------------


def test_unknown_finish_reason_is_in_the_event_and_the_figures(harness: RunHarness) -> None:
    """A server's own reason for breaking off is in the Done event and among the answer's figures."""
    run, reply = harness.opened_run()
    reply.feed("Half an")
    reply.end("insufficient_system_resource")
    wait_ended(run)
    terminal = run.log.ended
    assert isinstance(terminal, Done)
    assert terminal.finish_reason == "insufficient_system_resource"
    assert "finish reason: insufficient_system_resource" in answer_figures(terminal, "")
    assert run.state == "done"


def test_cancelled_for_no_viewer_has_its_grace_in_seconds(harness: RunHarness) -> None:
    """The event of a run cancelled without viewers has its grace in seconds, and so stays right if
    the setting changes.
    """
    run, reply = harness.opened_run(orphan_grace=0.25)
    Reader(run).leave()
    run.cancel("no_viewer")
    assert run.log.ended == Cancelled(run.log.ended.metrics, "no_viewer", unwatched=0.25)  # type: ignore[union-attr]
    assert reply.over.wait(WAIT_TIMEOUT)


def test_deadlines_exceeded_names_each_passed_limit(harness: RunHarness) -> None:
    """Each limit has its own code, and is exceeded after its time and not before."""
    run, reply = harness.opened_run(first_byte_timeout=100.0, gap_timeout=10.0, run_timeout=1_000.0)
    start = run.meter.started_at
    assert run.deadlines.error_if_exceeded(start + 99.0) is None
    assert (
        error_code(run.deadlines.error_if_exceeded(run.meter.last_at + 101.0))
        == "first_byte_timeout"
    )
    reply.feed("a")
    wait_until(lambda: run.log.last == 1)
    last_at = run.meter.last_at
    assert run.deadlines.error_if_exceeded(last_at + 9.0) is None
    assert error_code(run.deadlines.error_if_exceeded(last_at + 11.0)) == "stalled"
    assert error_code(run.deadlines.error_if_exceeded(start + 1_001.0)) == "run_too_long"


@pytest.mark.parametrize("phase", ["opening", "reading", "answering"])
def test_limit_ends_the_run_in_each_phase(harness: RunHarness, phase: str) -> None:
    """The relay ends the run in each phase, and the connection is closed."""
    run, upstream = harness.started_run(ScriptedUpstream(silent=phase == "opening"))
    if phase == "opening":
        assert upstream.waiting.wait(WAIT_TIMEOUT)
    else:
        upstream.reply().wait_reads()
    if phase == "answering":
        upstream.reply().feed("a")
        wait_until(lambda: run.log.last == 1)
    harness.check_limits(run)
    assert run.state == "running"
    run.meter.last_at -= 2e9
    harness.check_limits(run)
    assert failure_code(run) == ("stalled" if phase == "answering" else "first_byte_timeout")
    harness.wait_released(run)
    assert run.connection.wait_closed(0) == "closed"


@pytest.mark.parametrize("name", ["run_timeout", "first_byte_timeout"])
def test_limit_before_the_first_text_ends_the_run_by_itself(harness: RunHarness, name: str) -> None:
    """The limit ends the run while a viewer waits for the first text."""
    run, _ = harness.started_run(None, **{name: 0.05})
    reader = Reader(run)
    assert failure_code(run) == {"run_timeout": "run_too_long"}.get(name, name)
    reader.finish()


def test_gap_limit_ends_the_run_by_itself(harness: RunHarness) -> None:
    """The limit for silence counts from the last text."""
    run, reply = harness.opened_run(gap_timeout=0.05)
    reply.feed("a")
    assert failure_code(run) == "stalled"
    assert run.answer() == (1, "a")


def test_limit_is_checked_after_arrived_text_is_read(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit is checked after arrived text is read: a stall of Halt ends no run whose model was
    not silent.
    """
    skipped_seconds = [0.0]
    for module in (metrics, relay, run_module):
        monkeypatch.setattr(module, "now", lambda: now() + skipped_seconds[0])
    run, reply, _ = harness.watched_run(gap_timeout=100.0)
    is_stalled, may_continue = threading.Event(), threading.Event()

    def stall() -> None:
        is_stalled.set()
        assert may_continue.wait(WAIT_TIMEOUT)

    harness.relay.post(stall)
    assert is_stalled.wait(WAIT_TIMEOUT)
    reply.feed("b")
    skipped_seconds[0] = 200.0  # the stall took longer than the limit
    may_continue.set()
    wait_until(lambda: run.log.last >= 2)
    assert (run.state, run.answer()) == ("running", (2, "ab"))


def test_limit_message_names_its_setting(harness: RunHarness) -> None:
    """The message of a limit has the seconds that were waited and the setting that allows more."""
    run, reply = harness.opened_run(first_byte_timeout=100.0, gap_timeout=10.0, run_timeout=1_000.0)

    def message_at(time: float) -> str:
        fault = run.deadlines.error_if_exceeded(time)
        assert fault is not None
        return fault.message

    assert "100 s: HALT_FIRST_BYTE_TIMEOUT sets this limit." in message_at(
        run.meter.last_at + 101.0
    )
    assert "1000 s: HALT_RUN_TIMEOUT sets this limit." in message_at(run.meter.started_at + 1_001.0)
    reply.feed("a")
    wait_until(lambda: run.log.last == 1)
    assert "10 s: HALT_GAP_TIMEOUT sets this limit." in message_at(run.meter.last_at + 11.0)


def test_part_without_text_renews_the_limit_of_silence(harness: RunHarness) -> None:
    """A comment, or a chunk without text, starts the time for silence again."""
    run, reply = harness.opened_run(first_byte_timeout=100.0, gap_timeout=10.0)
    last_at = run.meter.last_at
    reply.feed(Part())
    wait_until(lambda: run.meter.last_at > last_at)
    assert run.deadlines.error_if_exceeded(run.meter.last_at + 99.0) is None
    assert (
        error_code(run.deadlines.error_if_exceeded(run.meter.last_at + 101.0))
        == "first_byte_timeout"
    )


def test_default_limits_allow_a_long_prompt_on_a_local_model() -> None:
    """By default a model may take over ten minutes to its first token and pause for minutes after
    it.
    """
    assert Config().first_byte_timeout > 600
    assert Config().gap_timeout > 200
    assert Config().run_timeout > Config().first_byte_timeout


def test_run_without_a_viewer_ends_after_its_grace(harness: RunHarness) -> None:
    """The grace counts from the last viewer's leave; a watched run has no such limit."""
    run, _, reader = harness.watched_run(orphan_grace=10_000.0)
    run.watched_at -= 1e6
    harness.check_limits(run)
    assert run.state == "running"
    reader.leave()
    run.watched_at -= 9_900.0
    harness.check_limits(run)
    assert run.state == "running"
    run.watched_at -= 101.0
    harness.check_limits(run)
    assert isinstance(run.log.ended, Cancelled)
    assert run.log.ended.reason == "no_viewer"


def test_viewer_marked_gone_is_not_counted(harness: RunHarness) -> None:
    """A viewer that another thread has marked as gone is not counted, even if its own thread leaves
    much later.
    """
    run, _ = harness.opened_run(orphan_grace=100.0)
    viewer = run.join()
    viewer.gone = True
    harness.check_limits(run)
    assert run.state == "running"
    run.watched_at -= 101.0
    harness.check_limits(run)
    assert isinstance(run.log.ended, Cancelled)


def test_run_without_grace_waits_for_its_first_viewer(harness: RunHarness) -> None:
    """Even without grace a run waits FIRST_VIEW seconds for its first viewer."""
    run, _ = harness.opened_run(orphan_grace=0.0)
    run.watched_at -= deadlines.FIRST_VIEW - 5.0
    harness.check_limits(run)
    assert run.state == "running"
    run.watched_at -= 6.0
    harness.check_limits(run)
    assert isinstance(run.log.ended, Cancelled)


def test_answer_over_max_answer_chars_ends_the_run(harness: RunHarness) -> None:
    """At the limit the run fails; the received text stays, and the upstream is closed."""
    run, reply = harness.opened_run(max_answer_chars=5)
    reader = Reader(run)
    reply.feed("abc", "de", "f", "g")
    reader.finish()
    assert failure_code(run) == "answer_too_long"
    assert reader.text == "abcdef"
    assert reply.over.wait(WAIT_TIMEOUT)
    assert reply.closed == 1


def test_fields_beside_the_text_have_their_own_limit(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The megabytes of a picture do not count as text, and have a limit as well."""
    monkeypatch.setattr(intake, "EXTRA_MAX", 2500)
    run, reply = harness.opened_run(max_answer_chars=5)
    reader = Reader(run)
    for _ in range(3):
        reply.feed(Part((Extra(delta={"images": ["x" * 1000]}),), 1))
    reader.finish()
    assert failure_code(run) == "answer_too_long"
    assert sum(isinstance(event, Extra) for _, event in reader.events) == 3


def test_internal_exception_ends_the_run_and_is_logged(
    harness: RunHarness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in Halt is `internal` for the user, and a traceback in the log."""

    def raise_fault(*_: object) -> Part:
        raise ZeroDivisionError("sensitive detail")

    monkeypatch.setattr(ScriptedReply, "read", raise_fault)
    run, _ = harness.opened_run()
    assert failure_code(run) == "internal"
    harness.wait_released(run)
    assert "ZeroDivisionError" in caplog.text
    assert isinstance(run.log.ended, Failed)
    assert "sensitive" not in run.log.ended.error.message


def test_internal_exception_in_an_answer_is_its_terminal_event(
    harness: RunHarness,
) -> None:
    """Viewers in the middle of an answer get the failure as its end."""
    run, reply, reader = harness.watched_run()
    reply.feed(ZeroDivisionError())
    assert isinstance(reader.finish()[-1][1], Failed)
    assert failure_code(run) == "internal"


def test_run_repr_has_id_state_and_counts(harness: RunHarness) -> None:
    """The repr has no text of the user's."""
    run, _ = harness.new_run()
    assert repr(run) == "<Run a-stream running events=0 viewers=0>"
    run.cancel("stop")
    run.discard()
    assert "cancelled" in repr(run)


def test_concurrent_stops_stop_the_run_once(harness: RunHarness) -> None:
    """Property: one of several concurrent Stops gets stopped, the others finished."""
    calls: list[Callable[[], str]]
    for _ in range(REPEATS // 10):
        run, _ = harness.new_run()
        calls = [run.switch.press] * 3
        assert sorted(together(*calls)) == ["finished", "finished", "stopped"]
        run.discard()
    assert not [t for t in threading.enumerate() if t.name.startswith("race-")]
