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

from halt.clock import now
from halt.config.settings import Config
from halt.core import deadlines, generation, intake, opening, steps
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
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunHarness]:
    monkeypatch.setattr(generation, "TICK", 0.05)
    made = RunHarness()
    yield made
    made.close()


# --- an answer ------------------------------------------------------------------------------------


def test_an_answer_from_beginning_to_end(stage: RunHarness) -> None:
    """Text comes to the viewer in order, then one terminal event with usage and figures."""
    run, reply = stage.running()
    reader = Reader(run)
    reply.feed("Hel", Part(), text_part("lo, world", 2))
    reply.end("length", {"completion_tokens": 7})
    events = reader.finish()
    assert [seq for seq, _ in events] == [1, 2, 3]
    assert reader.text == "Hello, world"
    done = events[-1][1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage) == ("length", {"completion_tokens": 7})
    assert (done.metrics.tokens, done.metrics.tokens_estimated) == (7, False)
    assert done.metrics.characters == len("Hello, world")
    assert done.metrics.ttft_ms is not None
    assert (run.state, run.model, run.answer()) == ("done", "scripted-1", (2, "Hello, world"))


@pytest.mark.parametrize("count", [2**63, 2**64, 2**70, -1, -(2**70)])
def test_a_count_that_counts_nothing_is_dropped(stage: RunHarness, count: int) -> None:
    """A server's usage holds no number that a reader, another worker or a column could not take."""
    run, reply = stage.running()
    reader = Reader(run)
    reply.feed("a")
    details = {"cached_tokens": count, "audio_tokens": 2}
    told = {"completion_tokens": count, "prompt_tokens": 3, "prompt_tokens_details": details}
    reply.end(usage=told)
    done = reader.finish()[-1][1]
    assert isinstance(done, Done)
    assert done.usage == {"prompt_tokens": 3, "prompt_tokens_details": {"audio_tokens": 2}}
    assert (done.metrics.tokens, done.metrics.tokens_estimated) == (1, True)
    assert msgspec.msgpack.encode(done)


def test_text_that_turns_out_to_be_a_thought_is_taken_back(stage: RunHarness) -> None:
    """Answer, folds and figures are as if it had come as one; who saw no end of it saw an answer."""
    run, reply = stage.running()
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
    assert [(fold.kind, fold.text) for fold in steps.steps_of(run)] == [("thought", "Okay, hello.")]
    ended = run.log.ended
    assert isinstance(ended, Done)
    assert ended.metrics.characters == run.characters == len("Hello")
    assert ended.metrics.reasoning_ms is not None
    run._seen_events = 2
    assert run.answer() == (2, "Okay, hello.")
    assert steps.steps_of(run) == ()


def test_tokens_are_estimated_where_nobody_counted(stage: RunHarness) -> None:
    """Without usage the pieces are counted, and the figures say that this is an estimate."""
    run, reply = stage.running()
    reply.feed("a", text_part("bc", 2))
    reply.end()
    wait_ended(run)
    assert run.log.ended is not None
    metrics = run.log.ended.metrics
    assert (metrics.tokens, metrics.tokens_estimated) == (3, True)


def test_an_answer_that_nobody_watches_is_finished_too(stage: RunHarness) -> None:
    """The relay reads to the end; the connection is made ready for the next run."""
    run, reply = stage.running()
    reply.feed("a", "b")
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (run.state, reply.finished, reply.closed) == ("done", 1, 0)
    assert Reader(run).finish()[-1][1] == run.log.ended


def test_a_run_ends_once_for_everyone(stage: RunHarness) -> None:
    """`on_end` and `on_settled` are each called exactly once, however the run is asked to end."""
    run, reply, reader = stage.watched()
    assert run.cancel("stop")
    assert not run.cancel("stop")
    assert not run.fail(UpstreamError("stalled"))
    reader.finish()
    assert reply.over.wait(WAIT_TIMEOUT)
    stage.wait_released(run)
    assert (stage.ended, stage.released) == ([run], [run])


# --- Stop in every phase --------------------------------------------------------------------------


def test_stop_before_anything_asks_nothing(stage: RunHarness) -> None:
    """A run that was stopped before its thread began sends no request."""
    run, upstream = stage.make()
    assert run.switch.press() == "stopped"
    stage.work(run)
    stage.wait_released(run)
    assert (run.state, upstream.requests) == ("cancelled", [])


def test_stop_while_it_connects(stage: RunHarness) -> None:
    """A server that is silent is left; the connection is seen closed."""
    run, upstream = stage.begin(ScriptedUpstream(silent=True))
    assert upstream.waiting.wait(WAIT_TIMEOUT)
    assert run.switch.press() == "stopped"
    assert run.connection.wait_closed(WAIT_TIMEOUT) == "closed"
    stage.wait_released(run)
    assert (run.state, run.log.last, len(upstream.requests)) == ("cancelled", 1, 1)


def test_stop_before_the_first_token(stage: RunHarness) -> None:
    """Between headers and first token: cancelled, without text."""
    run, reply = stage.running()
    reader = Reader(run)
    reply.wait_reads()
    assert run.switch.press() == "stopped"
    assert [type(event) for _, event in reader.finish()] == [Cancelled]
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (reply.closed, reply.finished) == (1, 0)


def test_stop_between_tokens(stage: RunHarness) -> None:
    """What had come stays, nothing is added, the viewer gets the end at once."""
    run, reply, reader = stage.watched()
    assert run.switch.press() == "stopped"
    events = reader.finish()
    assert events == [(1, Content("a")), (2, run.log.ended)]
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (run.state, run.answer(), reply.closed) == ("cancelled", (1, "a"), 1)


def test_stop_while_it_waits_to_try_again(
    stage: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time before a retry is interrupted too, and the retry is not made."""
    monkeypatch.setattr(opening, "RETRY_BASE", 1_000.0)
    monkeypatch.setattr(opening, "RETRY_AFTER_MAX", 10_000.0)
    run, upstream = stage.begin(ScriptedUpstream(UpstreamError("upstream_refused")))
    wait_until(lambda: run._opening.retries.attempts > 0)
    assert run.switch.press() == "stopped"
    stage.wait_released(run)
    assert len(upstream.requests) == 1
    assert run.log.read(0) == [(1, run.log.ended)]


def test_stop_after_the_end_finds_it_finished(stage: RunHarness) -> None:
    """A Stop that comes too late changes nothing and interrupts nobody."""
    run, reply = stage.running()
    reply.feed("a")
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert run.switch.press() == "finished"
    assert (run.state, run.connection.interrupted) == ("done", False)


@pytest.mark.parametrize(
    ("seen", "kept"),
    [(None, "abc"), (0, ""), (2, "ab"), (3, "abc"), (99, "abc"), (10**15 - 1, "abc")],
)
def test_what_was_seen_is_what_is_kept(stage: RunHarness, seen: int | None, kept: str) -> None:
    """The answer of a stopped run is cut to what the one who stopped it had been shown."""
    run, reply = stage.running()
    reply.feed("a", "b", "c")
    wait_until(lambda: run.log.last == 3)
    run.switch.press(seen)
    assert run.answer()[1] == kept
    assert run.log.last == 4
    assert run.seen_events is None or run.seen_events <= 3, (
        "a number that a client made up is saved"
    )


def test_what_was_seen_matters_only_to_the_stop_that_ended_it(stage: RunHarness) -> None:
    """A Stop that found the run finished cuts nothing off."""
    run, reply = stage.running()
    reply.feed("a", "b")
    reply.end()
    wait_ended(run)
    assert run.switch.press(1) == "finished"
    assert run.answer() == (2, "ab")


def test_a_run_without_grace_ends_as_its_last_viewer_leaves(stage: RunHarness) -> None:
    """A viewer that is still there keeps it, however often another one leaves."""
    run, reply = stage.running(orphan_grace=0.0)
    one, two = run.join(), run.join()
    run.leave(one)
    run.leave(one)
    run.watched_at -= 1e6
    stage.look(run)
    assert run.state == "running"
    run.leave(two)
    wait_ended(run)
    ended = run.log.ended
    assert isinstance(ended, Cancelled)
    assert ended.reason == "no_viewer"
    assert reply.over.wait(WAIT_TIMEOUT)


# --- races ----------------------------------------------------------------------------------------


def test_stop_against_the_natural_end(stage: RunHarness) -> None:
    """Law: exactly one terminal event, and log, state, Stop and `on_end` agree which it is."""
    outcomes = set()
    for _ in range(REPEATS):
        run, reply = stage.race("a")
        reply.end()
        _, stopped = together(partial(stage.work, run), partial(run.cancel, "stop"))
        stage.wait_released(run)
        events = run.log.read(0)
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
        assert [type(e) for _, e in events if not isinstance(e, Content)] == [type(run.log.ended)]
        assert run.state == ("cancelled" if stopped else "done")
        assert stage.ended == stage.released == [run]
        assert reply.finished + reply.closed <= 1
        # All of the answer may be there before the Stop comes to the connection: that one is kept.
        assert run.connection.wait_closed(0) == ("closed" if reply.closed else "none")
        assert run.answer()[1] == "".join(text_of(e) for _, e in events)
        outcomes.add(run.state)
    assert outcomes <= {"cancelled", "done"}


def test_stop_against_a_fault(stage: RunHarness) -> None:
    """Law: of Stop, limit and a broken upstream one is told; the others change nothing."""
    for _ in range(REPEATS // 4):
        run, _ = stage.race("a", UpstreamError("upstream_dropped"))
        _, stopped, limited = together(
            partial(stage.work, run),
            partial(run.cancel, "stop"),
            partial(run.fail, UpstreamError("stalled")),
        )
        stage.wait_released(run)
        ended = run.log.ended
        code = ended.error.code if isinstance(ended, Failed) else "stop"
        assert not (stopped and limited)
        assert code == ("stop" if stopped else "stalled" if limited else "upstream_dropped")
        assert stage.ended == stage.released == [run]


def test_a_viewer_that_is_faster_than_the_first_thread_keeps_nothing_from_opening(
    stage: RunHarness,
) -> None:
    """Law: a run is opened, whoever comes to it first."""
    for _ in range(REPEATS // 4):
        run, reply = stage.race("a")
        reply.end()
        viewer = run.join()

        def view(run: Run = run, viewer: Any = viewer) -> str:
            return "".join(text_of(e) for g in run.follow(0, viewer) for _, e in g)

        _, text = together(partial(stage.work, run), view)
        assert text == "a"
        assert reply.over.wait(WAIT_TIMEOUT)
        assert (run.state, reply.finished) == ("done", 1)


def test_viewers_against_stop(stage: RunHarness) -> None:
    """Law: every viewer of a stopped run gets the same events, up to the same terminal one."""
    for _ in range(REPEATS // 10):
        run, _ = stage.race(*"abcdefgh")

        def view(run: Run = run) -> str:
            viewer = run.join()
            shown = [each for group in run.follow(0, viewer) for each in group]
            run.leave(viewer)
            return str(shown)

        _, _, one, two = together(partial(stage.work, run), partial(run.cancel, "stop"), view, view)
        assert one == two == str(run.log.read(0))


# --- who reads ------------------------------------------------------------------------------------


def test_the_relay_alone_reads(stage: RunHarness) -> None:
    """From the head on no thread of a viewer's, nor of the run's own, waits for the model."""
    _, reply, reader = stage.watched()
    for text in "bcd":
        reply.feed(text)
    reader.wait_text("abcd")
    reply.end()
    reader.finish()
    assert reply.over.wait(WAIT_TIMEOUT)
    assert set(reply.readers) == {"halt-relay"}


def test_the_thread_that_opens_a_run_ends_when_it_is_open(stage: RunHarness) -> None:
    """A run that the relay reads has no thread."""
    _, reply = stage.running()
    reply.wait_reader("halt-relay")
    for thread in stage.threads:
        thread.end()
    reply.end()
    assert reply.over.wait(WAIT_TIMEOUT)


def test_a_run_goes_on_when_its_viewer_leaves(stage: RunHarness) -> None:
    """No thread needs to be started: the relay reads on."""
    run, reply, reader = stage.watched()
    reader.leave()
    reply.feed("b")
    reply.end()
    wait_ended(run)
    assert (run.state, run.answer()) == ("done", (2, "ab"))


def test_a_viewer_that_does_not_read_holds_nobody_up(stage: RunHarness) -> None:
    """A viewer stuck in a slow network is shown the rest when it comes for it."""
    run, reply, reader = stage.watched()
    stuck = run.join()
    shown = run.follow(0, stuck)
    assert next(shown) == [(1, Content("a"))]
    reply.feed("b")
    reader.wait_text("ab")
    reader.leave()
    reply.feed("c")
    reply.end()
    wait_ended(run)
    assert "".join(text_of(e) for group in shown for _, e in group) == "bc"
    run.leave(stuck)


def test_what_came_with_the_head_is_read_at_once(stage: RunHarness) -> None:
    """Text that waits in the reply when the relay takes it is not left for the next byte."""
    run, _ = stage.race("a", "b")
    reader = Reader(run)
    stage.set_off(run)
    reader.wait_text("ab")


def test_no_two_ever_read_at_once(stage: RunHarness) -> None:
    """Law: however many viewers come and go, one reads at a time and all are shown the same."""
    run, reply = stage.running()
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


def test_a_reader_goes_on_where_it_was(stage: RunHarness) -> None:
    """After a lost connection a viewer is shown what came since, nothing twice."""
    run, reply, reader = stage.watched()
    reader.leave()
    reply.feed("b", "c")
    reply.end()
    wait_ended(run)
    again = Reader(run, after=1)
    assert [seq for seq, _ in again.finish()] == [2, 3, 4]
    assert again.text == "bc"


def test_a_reader_behind_the_kept_part_is_told(stage: RunHarness) -> None:
    """When the log has let go of what a viewer would need, it gets OffsetLost, never a gap."""
    run, reply = stage.running(log_bytes=1_024)
    reply.feed(*["x" * 300] * 10)
    reply.end()
    wait_ended(run)
    with pytest.raises(OffsetLost):
        Reader(run).finish()
    assert run.answer()[1] == "x" * 3_000


def test_frames_are_gathered_where_the_viewer_wants_it(stage: RunHarness) -> None:
    """With an interval the first text comes at once, what follows together; the end is no wait."""
    run, reply = stage.running()
    shown = run.follow(0, viewer := run.join(), interval=1_000.0)
    reply.feed("a")
    first = next(group for group in shown if group)
    assert first == [(1, Content("a"))]
    rest = BackgroundCall(lambda: list(shown))
    reply.feed("b", "c")
    reply.end()
    rest.end()
    assert rest.result == [[(2, Content("b")), (3, Content("c")), (4, run.log.ended)]]
    run.leave(viewer)


def test_silence_is_told_to_whoever_has_heartbeats_to_send(stage: RunHarness) -> None:
    """A follower gets an empty group after each TICK of silence."""
    run, _, _ = stage.watched()
    shown = run.follow(1, viewer := run.join())
    assert [next(shown), next(shown)] == [[], []]
    run.cancel("stop")
    assert [e for group in shown for e in group] == [(2, run.log.ended)]
    run.leave(viewer)


# --- retries --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(opening, "RETRY_BASE", 0.0)


@pytest.mark.usefixtures("quick")
def test_a_run_that_could_not_be_opened_is_tried_again(stage: RunHarness) -> None:
    """Faults before the first token are retried, and the viewer never hears of them."""
    faults = [UpstreamError("upstream_refused"), UpstreamError("upstream_server_error")]
    run, upstream = stage.begin(ScriptedUpstream(*faults), retries=2)
    reply = upstream.reply()
    reader = Reader(run)
    reply.feed("a")
    reply.end()
    assert [type(event) for _, event in reader.finish()] == [Content, Done]
    assert len(upstream.requests) == 3


@pytest.mark.usefixtures("quick")
def test_a_reply_that_breaks_before_its_first_token_is_tried_again(stage: RunHarness) -> None:
    """The connection that broke is closed, and a new one answers."""
    first = ScriptedReply()
    first.feed(Part(), UpstreamError("upstream_dropped"))
    run, upstream = stage.begin(ScriptedUpstream(first))
    second = upstream.reply(1)
    second.feed("a")
    second.end()
    wait_ended(run)
    assert (run.state, first.closed, run.answer()) == ("done", 1, (1, "a"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_bounded(stage: RunHarness, retries: int) -> None:
    """After so many retries the last fault is told."""
    faults = [UpstreamError("upstream_server_error")] * 9
    run, upstream = stage.begin(ScriptedUpstream(*faults), retries=retries)
    assert failure_code(run) == "upstream_server_error"
    assert len(upstream.requests) == 1 + retries


@pytest.mark.usefixtures("quick")
def test_nothing_is_retried_after_the_first_token(stage: RunHarness) -> None:
    """What was shown stays, and the fault is told: no answer begins twice."""
    run, upstream = stage.begin()
    reply = upstream.reply()
    reply.feed("a", UpstreamError("upstream_dropped"))
    assert failure_code(run) == "upstream_dropped"
    assert reply.over.wait(WAIT_TIMEOUT)
    assert (len(upstream.requests), run.answer(), reply.closed) == (1, (1, "a"), 1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("code", sorted(code for code, (_, again) in CODES.items() if not again))
def test_what_will_fail_again_is_not_retried(stage: RunHarness, code: str) -> None:
    """A refusal that a retry would not change is told at once."""
    run, upstream = stage.begin(ScriptedUpstream(UpstreamError(code)))
    assert failure_code(run) == code
    assert len(upstream.requests) == 1


def test_the_server_says_when_to_come_back(
    stage: RunHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A short Retry-After is waited for."""
    caplog.set_level("INFO", "halt.core.opening")
    fault = UpstreamError("rate_limited", retry_after=4.0)
    run, upstream = stage.begin(ScriptedUpstream(fault))
    wait_until(lambda: "trying again in 4." in caplog.text)
    assert len(upstream.requests) == 1
    run.cancel("stop")


@pytest.mark.usefixtures("quick")
def test_a_short_retry_after_leads_to_an_answer(stage: RunHarness) -> None:
    """After the time that the server wanted, it is asked once more."""
    run, upstream = stage.begin(ScriptedUpstream(UpstreamError("rate_limited", retry_after=0.01)))
    reply = upstream.reply()
    reply.end()
    wait_ended(run)
    assert (run.state, len(upstream.requests)) == ("done", 2)


def test_those_who_were_told_the_same_wait_do_not_return_at_once(
    stage: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends everybody away for a while is not met by all of them together."""
    monkeypatch.setattr(opening, "RETRY_BASE", 1_000.0)
    run, upstream = stage.begin(ScriptedUpstream(UpstreamError("rate_limited", retry_after=0.0)))
    wait_until(lambda: run._opening.retries.attempts > 0)
    assert len(upstream.requests) == 1
    run.cancel("stop")


def test_a_long_retry_after_is_shown_instead(stage: RunHarness) -> None:
    """A server that wants us to come back in a minute is told to the user, with the time."""
    run, upstream = stage.begin(ScriptedUpstream(UpstreamError("rate_limited", retry_after=60.0)))
    assert failure_code(run) == "rate_limited"
    assert isinstance(run.log.ended, Failed)
    assert run.log.ended.error.retry_after == 60.0
    assert len(upstream.requests) == 1


# --- limits and faults ----------------------------------------------------------------------------


def test_the_limits_of_a_silent_run(stage: RunHarness) -> None:
    """Each limit is told by its own code, as soon as it is over and not before."""
    run, reply = stage.running(first_byte_timeout=100.0, gap_timeout=10.0, run_timeout=1_000.0)
    began = run.meter.started_at
    assert run._deadlines.exceeded(began + 99.0) is None
    assert error_code(run._deadlines.exceeded(run.meter.last_at + 101.0)) == "first_byte_timeout"
    reply.feed("a")
    wait_until(lambda: run.log.last == 1)
    last = run.meter.last_at
    assert run._deadlines.exceeded(last + 9.0) is None
    assert error_code(run._deadlines.exceeded(last + 11.0)) == "stalled"
    assert error_code(run._deadlines.exceeded(began + 1_001.0)) == "run_too_long"


@pytest.mark.parametrize("phase", ["opening", "reading", "answering"])
def test_a_limit_that_is_over_ends_the_run(stage: RunHarness, phase: str) -> None:
    """By the relay, in each phase, with a viewer or without; the connection is closed."""
    run, upstream = stage.begin(ScriptedUpstream(silent=phase == "opening"))
    if phase == "opening":
        assert upstream.waiting.wait(WAIT_TIMEOUT)
    else:
        upstream.reply().wait_reads()
    if phase == "answering":
        upstream.reply().feed("a")
        wait_until(lambda: run.log.last == 1)
    stage.look(run)
    assert run.state == "running"
    run.meter.last_at -= 2e9
    stage.look(run)
    assert failure_code(run) == ("stalled" if phase == "answering" else "first_byte_timeout")
    stage.wait_released(run)
    assert run.connection.wait_closed(0) == "closed"


@pytest.mark.parametrize("name", ["run_timeout", "first_byte_timeout"])
def test_a_limit_needs_nobody_to_look(stage: RunHarness, name: str) -> None:
    """It ends the run by itself, while a viewer waits for the first word."""
    run, _ = stage.running(**{name: 0.05})
    reader = Reader(run)
    assert failure_code(run) == {"run_timeout": "run_too_long"}.get(name, name)
    reader.finish()


def test_a_silence_of_a_model_that_had_begun_ends_by_itself(stage: RunHarness) -> None:
    """The limit behind a piece of text counts from there."""
    run, reply = stage.running(gap_timeout=0.05)
    reply.feed("a")
    assert failure_code(run) == "stalled"
    assert run.answer() == (1, "a")


def test_what_has_arrived_is_read_before_a_limit_is_looked_at(stage: RunHarness) -> None:
    """A stall of Halt, or of its machine, ends no run whose model was not silent."""
    run, reply, _ = stage.watched(gap_timeout=0.3)
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        assert go_on.wait(WAIT_TIMEOUT)

    stage.relay.post(stall)
    assert stalled.wait(WAIT_TIMEOUT)
    reply.feed("b")
    last = run.meter.last_at
    wait_until(lambda: now() > last + 0.5)
    go_on.set()
    wait_until(lambda: run.log.last >= 2)
    assert (run.state, run.answer()) == ("running", (2, "ab"))


def test_a_limit_names_its_setting(stage: RunHarness) -> None:
    """The sentence says how long it was waited, and what allows more."""
    run, reply = stage.running(first_byte_timeout=100.0, gap_timeout=10.0, run_timeout=1_000.0)

    def told(at: float) -> str:
        fault = run._deadlines.exceeded(at)
        assert fault is not None
        return fault.message

    assert "100 s: HALT_FIRST_BYTE_TIMEOUT sets this limit." in told(run.meter.last_at + 101.0)
    assert "1000 s: HALT_RUN_TIMEOUT sets this limit." in told(run.meter.started_at + 1_001.0)
    reply.feed("a")
    wait_until(lambda: run.log.last == 1)
    assert "10 s: HALT_GAP_TIMEOUT sets this limit." in told(run.meter.last_at + 11.0)


def test_a_sign_of_life_is_no_silence(stage: RunHarness) -> None:
    """A comment, or a chunk without text, shows that the server is there: it has time again."""
    run, reply = stage.running(first_byte_timeout=100.0, gap_timeout=10.0)
    before = run.meter.last_at
    reply.feed(Part())
    wait_until(lambda: run.meter.last_at > before)
    assert run._deadlines.exceeded(run.meter.last_at + 99.0) is None
    assert error_code(run._deadlines.exceeded(run.meter.last_at + 101.0)) == "first_byte_timeout"


def test_the_defaults_let_a_local_model_read_a_long_prompt() -> None:
    """Ten minutes before the first word, and pauses of minutes behind it."""
    assert Config().first_byte_timeout > 600
    assert Config().gap_timeout > 200
    assert Config().run_timeout > Config().first_byte_timeout


def test_a_run_that_nobody_watches_ends_after_its_grace(stage: RunHarness) -> None:
    """The grace counts from when the last viewer left; a watched run has all the time."""
    run, _, reader = stage.watched(orphan_grace=100.0)
    run.watched_at -= 1e6
    stage.look(run)
    assert run.state == "running"
    reader.leave()
    run.watched_at -= 99.0
    stage.look(run)
    assert run.state == "running"
    run.watched_at -= 2.0
    stage.look(run)
    assert isinstance(run.log.ended, Cancelled)
    assert run.log.ended.reason == "no_viewer"


def test_a_viewer_whose_client_has_gone_does_not_count(stage: RunHarness) -> None:
    """`gone` is set without a lock, by any thread; that of the viewer may leave much later."""
    run, _ = stage.running(orphan_grace=100.0)
    viewer = run.join()
    viewer.gone = True
    stage.look(run)
    assert run.state == "running"
    run.watched_at -= 101.0
    stage.look(run)
    assert isinstance(run.log.ended, Cancelled)


def test_the_first_viewer_has_time_to_come(stage: RunHarness) -> None:
    """Also with no grace at all a run is not ended before its first viewer could be there."""
    run, _ = stage.running(orphan_grace=0.0)
    run.watched_at -= deadlines.FIRST_VIEW - 5.0
    stage.look(run)
    assert run.state == "running"
    run.watched_at -= 6.0
    stage.look(run)
    assert isinstance(run.log.ended, Cancelled)


def test_an_answer_that_grows_too_long_is_ended(stage: RunHarness) -> None:
    """At the limit the run fails; what came is kept and shown, the upstream is left."""
    run, reply = stage.running(max_answer_chars=5)
    reader = Reader(run)
    reply.feed("abc", "de", "f", "g")
    reader.finish()
    assert failure_code(run) == "answer_too_long"
    assert reader.text == "abcdef"
    assert reply.over.wait(WAIT_TIMEOUT)
    assert reply.closed == 1


def test_pictures_beside_the_text_have_a_limit_of_their_own(
    stage: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture has millions of characters, and is no text that grows too long."""
    monkeypatch.setattr(intake, "BESIDE_MAX", 2500)
    run, reply = stage.running(max_answer_chars=5)
    reader = Reader(run)
    for _ in range(3):
        reply.feed(Part((Extra(delta={"images": ["x" * 1000]}),), 1))
    reader.finish()
    assert failure_code(run) == "answer_too_long"
    assert sum(isinstance(event, Extra) for _, event in reader.events) == 3


def test_what_nobody_foresaw_ends_the_run_and_is_logged(
    stage: RunHarness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own is `internal` for the user and a traceback for the operator."""

    def broken(*_: object) -> Part:
        raise ZeroDivisionError("sensitive detail")

    monkeypatch.setattr(ScriptedReply, "read", broken)
    run, _ = stage.running()
    assert failure_code(run) == "internal"
    stage.wait_released(run)
    assert "ZeroDivisionError" in caplog.text
    assert isinstance(run.log.ended, Failed)
    assert "sensitive" not in run.log.ended.error.message


def test_a_viewer_of_what_nobody_foresaw_is_told_the_end(
    stage: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our own in the middle of an answer is the terminal event of its viewers."""
    run, reply, reader = stage.watched()

    def broken(*_: object) -> Part:
        raise ZeroDivisionError

    monkeypatch.setattr(ScriptedReply, "read", broken)
    reply.feed("b")
    assert isinstance(reader.finish()[-1][1], Failed)
    assert failure_code(run) == "internal"


def test_a_repr_to_read_in_a_log(stage: RunHarness) -> None:
    """A run shows its ID, its state and its counts, and no text of the user's."""
    run, _ = stage.make()
    assert repr(run) == "<Run a-stream running events=0 viewers=0>"
    run.cancel("stop")
    run.discard()
    assert "cancelled" in repr(run)


def test_stop_of_many_at_once(stage: RunHarness) -> None:
    """Law: of several Stops at the same moment one stopped it, the others found it finished."""
    presses: list[Callable[[], str]]
    for _ in range(REPEATS // 10):
        run, _ = stage.make()
        presses = [run.switch.press] * 3
        assert sorted(together(*presses)) == ["finished", "finished", "stopped"]
        run.discard()
    assert not [t for t in threading.enumerate() if t.name.startswith("race-")]
