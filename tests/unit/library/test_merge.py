"""Several generations as one stream: order of arrival, Stops of one and of all, one end of each."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halt
from halt import GenerationError, Halt, Merged
from halt.clock import now
from halt.core.events import Cancelled, Content, Done, Event, Failed, is_terminal, text_of
from halt.core.generation import Generation, Viewer
from halt.core.log import EventLog
from halt.core.stream_key import StreamKey
from halt.errors import AtCapacity, RequestError
from halt.library import feed as module
from halt.library.feed import BUFFERED_MAX, Feed, Followers
from halt.testing.fake_openai import FakeOpenAI
from tests.support import library_halt
from tests.support.library_halt import halt_threads, scripted_halt, service_of, wait_no_threads
from tests.support.races import interrupt_in, together
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

LETTERS = "abcdefghij"


@pytest.fixture
def program(fake: FakeOpenAI) -> Iterator[Halt]:
    """A Halt as in a program; afterwards none of its threads is running."""
    with Halt(config=library_halt.fake_config(fake)) as halt:
        yield halt
    wait_no_threads()


def merge_into(feed: Feed, program: Halt, members: Mapping[str, halt.Generation]) -> Merged:
    """A merge of a program's generations through this feed."""
    for label, member in members.items():
        member.feed(feed, label)
    return Merged(service_of(program), feed, members)


class StepwiseGeneration(Generation):
    """A generation whose followers get this many events, one at a time, and no terminal one."""

    def __init__(self, count: int) -> None:
        super().__init__(StreamKey("", "stepwise"), EventLog(10**9), started_at=now())
        self._count = count

    def follow(
        self, last_seen: int, viewer: Viewer, interval: float = 0.0
    ) -> Iterator[list[tuple[int, Event]]]:
        return ([(number + 1, Content(str(number)))] for number in range(self._count))


class StepwiseFollowers(Followers):
    """Followers that need no service and keep their threads."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def start(
        self, run: Generation, body: Callable[[Viewer], None], *, daemon: bool = True
    ) -> None:
        self.threads.append(threading.Thread(target=body, args=(run.join(),), daemon=daemon))
        self.threads[-1].start()

    def register(self, feed: Feed) -> None:
        pass


class Consumer:
    """A consumer in its own thread, and the events that it has received, in order."""

    def __init__(self, merged: Merged) -> None:
        self.events: list[tuple[str, Event]] = []
        self._thread = BackgroundCall(lambda: self.events.extend(merged))

    def finish(self) -> list[tuple[str, Event]]:
        """Wait for its end."""
        fault = self._thread.end()
        if fault is not None:
            raise fault
        return self.events


def texts(events: list[tuple[str, Event]]) -> dict[str, str]:
    """The text of each label. Asserts that each has one terminal event, as its last."""
    out: dict[str, str] = {}
    ended_labels: set[str] = set()
    for label, event in events:
        assert label not in ended_labels, f"{label} goes on behind its end"
        out[label] = out.get(label, "") + text_of(event)
        if is_terminal(event):
            ended_labels.add(label)
    assert ended_labels == out.keys()
    return out


def terminal_types(events: list[tuple[str, Event]]) -> dict[str, type[Event]]:
    """The kind of each label's terminal event."""
    return {label: type(event) for label, event in events if is_terminal(event)}


def test_merge_yields_each_labels_text_and_one_end(program: Halt) -> None:
    """Each label's text is complete and in order, with one end."""
    merged = program.merge({letter: f"{letter} says this" for letter in LETTERS})
    events = list(merged)
    assert texts(events) == {letter: f"{letter} says this" for letter in LETTERS}
    assert set(terminal_types(events).values()) == {Done}
    assert merged.labels == tuple(LETTERS)
    assert merged["c"].result().text == "c says this"
    assert list(merged) == []


def test_merge_yields_events_in_order_of_arrival() -> None:
    """Events come in the order of their arrival: no label waits for another."""
    upstream = ScriptedUpstream()
    order = [0, 2, 2, 1, 0, 1, 2, 0, 0, 1]
    with scripted_halt(upstream) as program:
        members = []
        for number in range(3):
            members.append(program.generate("x", id=f"stream-000{number}"))
            upstream.reply(number)
        merged = program.merge(members)
        for position, number in enumerate(order):
            upstream.reply(number).feed(f"{position} ")
            label, event = next(merged)
            assert (label, event) == (f"stream-000{number}", Content(f"{position} "))
        for number in (1, 0, 2):
            upstream.reply(number).end()
            label, event = next(merged)
            assert label == f"stream-000{number}"
            assert isinstance(event, Done)
        assert next(merged, None) is None
    upstream.dispose()
    wait_no_threads()


def test_failure_of_one_label_leaves_the_others_running(program: Halt) -> None:
    """A failure is its label's terminal event; the other labels reach their own ends."""
    requests = {"good": "count?n=5", "bad": "drop?n=2", "none": "401"}
    members = [program.generate("x", model=m, id=f"label-{n}") for n, m in requests.items()]
    events = list(program.merge(members))
    assert texts(events) == {"label-good": "0 1 2 3 4 ", "label-bad": "0 1 ", "label-none": ""}
    assert terminal_types(events) == {"label-good": Done, "label-bad": Failed, "label-none": Failed}
    with pytest.raises(GenerationError):
        program.get("label-bad").result()


def test_stop_of_one_label_leaves_the_others_running(program: Halt, fake: FakeOpenAI) -> None:
    """A Stop of one label cancels it at once; the other labels reach their own ends."""
    silent_generation = program.generate("x", model="silent_headers")
    merged = program.merge({"a": silent_generation, "b": "hello", "c": "there"})
    consumer = Consumer(merged)
    wait_until(lambda: len(consumer.events) == 4)
    assert merged["a"].stop().upstream == "closed"
    events = consumer.finish()
    assert terminal_types(events) == {"a": Cancelled, "b": Done, "c": Done}
    assert events[-1][0] == "a"


def test_merged_stop_ends_every_label(program: Halt, fake: FakeOpenAI) -> None:
    """One Stop ends every label in its phase and closes each connection."""
    models = ["silent_headers", "silent_first_token", "stall?n=3", "silent_headers"]
    members = {f"{n}": program.generate("x", model=model) for n, model in enumerate(models)}
    merged = program.merge(members)
    consumer = Consumer(merged)
    fake.wait_request(3)
    wait_until(lambda: "".join(text_of(event) for _, event in consumer.events) == "0 1 2 ")
    receipts = merged.stop()
    assert {(r.status, r.upstream) for r in receipts.values()} == {("stopped", "closed")}
    assert list(receipts) == ["0", "1", "2", "3"]
    events = consumer.finish()
    assert texts(events) == {"0": "", "1": "", "2": "0 1 2 ", "3": ""}
    assert set(terminal_types(events).values()) == {Cancelled}
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


def test_leaving_with_stops_every_label(program: Halt, fake: FakeOpenAI) -> None:
    """Leaving `with` stops every generation of a merge."""
    with program.merge({"a": "x", "b": "y"}, model="silent_headers") as merged:
        fake.wait_request(1)
    assert {merged[label].state for label in merged.labels} == {"cancelled"}


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_right_before_the_wait_raises_at_once(program: Halt) -> None:
    """A signal right before the wait for a silent model raises KeyboardInterrupt all the same."""
    has_raised, outcomes = threading.Event(), []
    with program.merge({"a": "x"}, model="silent_headers") as merged:

        def press_ctrl_c() -> None:
            interrupt_in(Feed.take.__code__)
            outcomes.append(has_raised.wait(WAIT_TIMEOUT))
            merged.stop()

        press_call = BackgroundCall(press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            next(iter(merged))
        has_raised.set()
        press_call.end()
    assert outcomes == [True]


def test_dropped_merge_ends_its_threads_and_no_generation() -> None:
    """The threads of a dropped merge end; its generations go on."""
    upstream = ScriptedUpstream()
    with scripted_halt(upstream) as program:
        gen = program.generate("x")
        feed = Feed()
        merged = merge_into(feed, program, {"a": gen})
        upstream.reply().feed(*["word "] * (BUFFERED_MAX * 4))
        wait_until(lambda: len(feed) >= BUFFERED_MAX)
        del merged
        gc.collect()
        wait_until(lambda: not [name for name in halt_threads() if name.startswith("halt-follow")])
        upstream.reply().end()
        assert gen.result().text == "word " * (BUFFERED_MAX * 4)
    upstream.dispose()
    wait_no_threads()


def test_slow_consumer_gets_all_events_through_a_bounded_feed() -> None:
    """A feed holds 2 * BUFFERED_MAX events at most; generations end while none is taken."""
    upstream = ScriptedUpstream()
    with scripted_halt(upstream) as program:
        members = {}
        for number, letter in enumerate("abc"):
            members[letter] = program.generate("x")
            upstream.reply(number).feed(*[letter] * BUFFERED_MAX * 4)
            upstream.reply(number).end()
        feed = Feed()
        merged = merge_into(feed, program, members)
        results = {letter: member.result(WAIT_TIMEOUT).text for letter, member in members.items()}
        wait_until(lambda: len(feed) >= BUFFERED_MAX)
        assert len(feed) <= 2 * BUFFERED_MAX
        assert (
            texts(list(merged))
            == results
            == {letter: letter * BUFFERED_MAX * 4 for letter in "abc"}
        )
    upstream.dispose()
    wait_no_threads()


def test_consumer_slower_than_the_log_gets_offset_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A label whose events the log has lost ends with offset_lost; other labels are complete."""
    monkeypatch.setattr(module, "BUFFERED_MAX", 0)
    feed = Feed()  # no event can be put into it
    monkeypatch.setattr(module, "BUFFERED_MAX", 1)
    upstream = ScriptedUpstream()
    with scripted_halt(upstream, log_bytes=2048) as program:
        slow_generation = program.generate("x")
        upstream.reply(0).feed("first")
        working_generation = program.generate("x")
        upstream.reply(1).feed("good")
        upstream.reply(1).end()
        working_generation.result()
        merged = merge_into(feed, program, {"slow": slow_generation})
        wait_until(lambda: slow_generation.text == "first")
        upstream.reply(0).feed(*["x" * 300] * 20)
        upstream.reply(0).end()
        assert len(slow_generation.result().text) == 6005
        feed.lift_limit()
        events = list(merged)
        assert texts(events)["slow"].startswith("first")
        terminal = events[-1][1]
        assert isinstance(terminal, Failed)
        assert terminal.error.code == "offset_lost"
        assert texts(list(program.merge({"good": working_generation}))) == {"good": "good"}
    upstream.dispose()
    wait_no_threads()


def test_merge_of_an_ended_generation_yields_all_events(program: Halt) -> None:
    """A generation that has ended is merged from its first event."""
    ended_generation = program.generate("this is over")
    ended_generation.result()
    assert texts(list(program.merge([ended_generation]))) == {ended_generation.id: "this is over"}


def test_merge_with_a_wrong_request_leaves_nothing_running(program: Halt, fake: FakeOpenAI) -> None:
    """When one request of a merge is refused, the generations already started are stopped."""
    with pytest.raises(RequestError):
        program.merge({"a": "fine", "b": []}, model="silent_headers")
    wait_until(lambda: service_of(program).open_streams == 0)
    wait_until(lambda: not [name for name in halt_threads() if name.startswith("halt-follow")])


def test_merge_over_the_reader_limit_is_refused(fake: FakeOpenAI) -> None:
    """A merge with more readers than places is refused and stops no generation."""
    with Halt(config=library_halt.fake_config(fake, max_streams=2)) as program:
        gen = program.generate("x", model="silent_headers")
        first = program.merge({"a": gen, "b": gen})
        with pytest.raises(AtCapacity):
            program.merge({"c": gen})
        assert gen.state == "running"
        gen.stop()
        assert terminal_types(list(first)) == {"a": Cancelled, "b": Cancelled}
    wait_no_threads()


def test_merge_after_close_yields_every_labels_end(fake: FakeOpenAI) -> None:
    """After `close` the events that had arrived can be read, with the end of each label."""
    program = Halt(config=library_halt.fake_config(fake))
    members = {
        "full": program.generate("x", model="count?n=1000"),
        "silent": program.generate("x", model="silent_headers"),
    }
    merged = program.merge(members)
    text = members["full"].result().text
    program.close()
    wait_no_threads()
    events = list(merged)
    assert texts(events) == {"full": text, "silent": ""}
    assert terminal_types(events) == {"full": Done, "silent": Failed}


# --- races and properties -------------------------------------------------------------------------


def test_concurrent_stops_and_ends_leave_one_end_for_each_label() -> None:
    """Property: with Stops, ends and a consumer at once each label has one end and its text."""
    for _ in range(40):
        upstream = ScriptedUpstream()
        with scripted_halt(upstream) as program:
            members = {letter: program.generate("x") for letter in "abcd"}
            for number in range(4):
                upstream.reply(number).feed("x", "y")
                upstream.reply(number).end()
            merged = program.merge(members)
            events, *_ = together(
                lambda: list(merged), merged.stop, merged["b"].stop, merged["c"].cancel
            )
            assert isinstance(events, list)
            assert texts(events).keys() == set("abcd")
            assert {label: merged[label].text for label in "abcd"} == texts(events)
        upstream.dispose()
        wait_no_threads()


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 3 * BUFFERED_MAX), min_size=1, max_size=4))
def test_feed_delivers_each_event_once_in_order_within_its_bound(counts: list[int]) -> None:
    """Property: events of several threads arrive once, in each thread's order, within the bound."""
    feed, followers = Feed(), StepwiseFollowers()
    for index, count in enumerate(counts):
        feed.add(followers, str(index), StepwiseGeneration(count))
    event_counts: Counter[str] = Counter()
    largest = 0
    while items := feed.take():
        largest = max(largest, len(items))
        for label, event in items:
            assert event == Content(str(event_counts[label]))
            event_counts[label] += 1
    for thread in followers.threads:
        thread.join(WAIT_TIMEOUT)
    assert event_counts == Counter({str(n): count for n, count in enumerate(counts) if count})
    assert largest <= 2 * BUFFERED_MAX
