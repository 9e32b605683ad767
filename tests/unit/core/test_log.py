"""The contract of an event log, for each implementation of `EventLog` listed below."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from halt.core.events import (
    Cancelled,
    Content,
    Delta,
    Done,
    ErrorInfo,
    Event,
    Failed,
    Terminal,
    text_of,
)
from halt.core.log import EVENT_OVERHEAD, EventLog
from halt.core.metrics import Meter
from halt.errors import OffsetLost
from halt.store.replay import stored_log
from tests.support.races import together
from tests.support.waiting import WAIT_TIMEOUT

MakeLog = Callable[[int], EventLog]

#: Every implementation, made with the number of bytes that it may keep.
IMPLEMENTATIONS: dict[str, MakeLog] = {"memory": EventLog}

ROOMY = 1_000_000
REPEATS = 300
METRICS = Meter().snapshot()


@pytest.fixture(params=IMPLEMENTATIONS)
def make_log(request: pytest.FixtureRequest) -> MakeLog:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def log(make_log: MakeLog) -> EventLog:
    return make_log(ROOMY)


def make_done() -> Terminal:
    return Done("stop", METRICS)


def make_cancelled() -> Terminal:
    return Cancelled(METRICS)


def make_failed() -> Terminal:
    return Failed(ErrorInfo("stalled", "It stalled.", True), METRICS)


def joined_text(events: list[tuple[int, Event]]) -> str:
    return "".join(text_of(event) for _, event in events)


def start_waiter(log: EventLog) -> threading.Thread:
    """A thread that waits at the log for the next event. Returns when it waits."""
    thread = threading.Thread(target=log.wait, args=(log.last, WAIT_TIMEOUT))
    waiting_before = log.waiting
    thread.start()
    while log.waiting == waiting_before:
        assert thread.is_alive(), "wait returned without an event"
    return thread


def test_new_log_is_empty_and_open(log: EventLog) -> None:
    """A new log has no events, no end and no waiting thread."""
    assert (log.last, log.ended, log.waiting, log.size, log.read(0)) == (0, None, 0, 0, [])


def test_append_numbers_events_from_one_without_gaps(log: EventLog) -> None:
    """Events keep their order, and the terminal event has the number after the last text."""
    assert all(log.append(Content(text)) for text in "abc")
    assert log.end(make_done)
    assert log.read(0) == [
        (1, Content("a")),
        (2, Content("b")),
        (3, Content("c")),
        (4, log.ended),
    ]
    assert log.last == 4


def test_read_after_any_offset_gives_all_later_events(log: EventLog) -> None:
    """A read after N gives each event above N once."""
    for text in "abcdef":
        log.append(Content(text))
    all_events = log.read(0)
    for offset in range(log.last + 3):
        assert log.read(offset) == all_events[offset:]


@pytest.mark.parametrize("first", [make_done, make_cancelled, make_failed])
@pytest.mark.parametrize("second", [make_done, make_cancelled, make_failed])
def test_end_after_an_end_is_refused(
    log: EventLog, first: Callable[[], Terminal], second: Callable[[], Terminal]
) -> None:
    """The first end of a log is final; a later terminal event is refused and not even made."""
    assert log.end(first)
    winner = log.ended

    def fail_if_called() -> Terminal:
        pytest.fail(f"{second()} was made though the log had ended")

    assert not log.end(fail_if_called)
    assert log.ended is winner
    assert log.last == 1


def test_append_after_the_end_is_refused(log: EventLog) -> None:
    """Text after the terminal event is refused and gets no number."""
    log.append(Content("before"))
    log.end(make_cancelled)
    assert not log.append(Content("after"))
    assert (joined_text(log.read(0)), log.last) == ("before", 2)


def test_end_that_raises_leaves_the_log_open(log: EventLog) -> None:
    """If making the terminal event raises, the log is unchanged and can still be ended."""

    def raise_fault() -> Terminal:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log.end(raise_fault)
    assert log.ended is None
    assert log.append(Content("more"))
    assert log.end(make_done)


def test_read_leaves_the_log_unchanged(log: EventLog) -> None:
    """Many readers at different offsets get the same events under the same numbers."""
    for text in "abc":
        log.append(Content(text))
    assert [log.read(1) for _ in range(3)] == [[(2, Content("b")), (3, Content("c"))]] * 3
    assert log.last == 3


def test_read_below_the_kept_part_raises_offset_lost(make_log: MakeLog) -> None:
    """A reader below the kept part gets OffsetLost, one at its edge all kept events."""
    log = make_log(1_024)
    while not is_lost(log, 0):
        assert log.append(Content("x" * 100))
    edge = next(n for n in range(log.last) if not is_lost(log, n))
    kept_events = log.read(edge)
    assert [seq for seq, _ in kept_events] == list(range(edge + 1, log.last + 1))
    for offset in range(edge):
        assert is_lost(log, offset)
    log.end(make_done)
    assert log.read(edge)[-1] == (log.last, log.ended)


def is_lost(log: EventLog, offset: int) -> bool:
    try:
        log.read(offset)
    except OffsetLost:
        return True
    return False


@pytest.mark.parametrize("text", ["a", "x" * 300, "é" * 300, "中" * 300, "👋" * 300])
def test_log_memory_is_bounded_for_every_script(make_log: MakeLog, text: str) -> None:
    """However long the answer, the log keeps its limit in bytes, and always the newest event."""
    log, limit = make_log(10_000), 10_000
    for _ in range(500):
        log.append(Content(text))
        assert log.size <= limit
        assert log.size >= len(text.encode())
        assert joined_text(log.read(log.last - 1)) == text
    log.end(make_done)
    assert log.size <= limit + EVENT_OVERHEAD


def test_append_of_an_event_above_the_limit_keeps_it_alone(make_log: MakeLog) -> None:
    """A single event above the limit is still delivered."""
    log = make_log(1_024)
    log.append(Content("first"))
    log.append(Content("x" * 5_000))
    assert len(joined_text(log.read(1))) == 5_000
    assert is_lost(log, 0)


def test_wait_with_events_or_an_end_returns_at_once(log: EventLog) -> None:
    """A reader that is behind does not wait, nor does one at the end of an ended log."""
    log.append(Content("a"))
    log.wait(0, WAIT_TIMEOUT * 100)
    log.end(make_done)
    log.wait(1, WAIT_TIMEOUT * 100)
    log.wait(2, WAIT_TIMEOUT * 100)
    assert log.waiting == 0


def test_listener_is_called_after_each_event_without_a_lock(log: EventLog) -> None:
    """A listener is called for text and for the end; it can read and unsubscribe."""
    event_counts: list[int] = []

    def listener() -> None:
        event_counts.append(log.last)
        assert log.read(log.last - 1)
        if log.ended is not None:
            log.unsubscribe(listener)

    log.subscribe(listener)
    for text in "ab":
        log.append(Content(text))
    log.end(make_done)
    assert not log.append(Content("refused"))
    assert not log.end(make_done)
    assert event_counts == [1, 2, 3]


def test_listener_is_called_only_while_subscribed(log: EventLog) -> None:
    """Each listener is called while it is subscribed; unsubscribing twice is harmless."""
    calls: list[str] = []
    first, second = (lambda: calls.append("first")), (lambda: calls.append("second"))
    log.subscribe(first)
    log.append(Content("a"))
    log.subscribe(second)
    log.append(Content("b"))
    log.unsubscribe(first)
    log.unsubscribe(first)
    log.append(Content("c"))
    assert calls == ["first", "first", "second", "second"]


@pytest.mark.parametrize("cause", ["append", "end", "wake"])
def test_wait_is_woken_by_append_end_and_wake(log: EventLog, cause: str) -> None:
    """Text, the end and `wake` each wake every waiting thread long before its timeout."""
    waiters = [start_waiter(log) for _ in range(3)]
    assert log.waiting == 3
    {
        "append": lambda: log.append(Content("a")),
        "end": lambda: log.end(make_done),
        "wake": log.wake,
    }[cause]()
    for thread in waiters:
        thread.join(WAIT_TIMEOUT / 2)
        assert not thread.is_alive()
    assert log.waiting == 0


def test_wait_without_events_returns_after_its_timeout(log: EventLog) -> None:
    """Without an event a wait returns after its timeout, so that a reader can send a heartbeat."""
    log.wait(0, 0.01)
    assert (log.last, log.waiting) == (0, 0)


def ends(log: EventLog, make: Callable[[], Terminal]) -> tuple[bool, Terminal | None]:
    """Try to end the log: whether it was this end, and which end is seen."""
    return log.end(make), log.ended


def test_concurrent_ends_have_one_winner(make_log: MakeLog) -> None:
    """Property: of concurrent ends exactly one wins, and every thread sees that one."""
    makers = [make_done, make_cancelled, make_failed, make_cancelled]
    for _ in range(REPEATS):
        log = make_log(ROOMY)
        outcomes = together(*[partial(ends, log, maker) for maker in makers])
        assert sum(has_won for has_won, _ in outcomes) == 1
        assert len({id(terminal) for _, terminal in outcomes}) == 1
        assert log.read(0) == [(1, log.ended)]


def test_append_racing_the_end_is_before_it_or_refused(make_log: MakeLog) -> None:
    """Property: an accepted append stands before the end; a refused one is not in the log."""
    for _ in range(REPEATS):
        log = make_log(ROOMY)
        is_accepted, _, has_won = together(
            partial(log.append, Content("a")),
            partial(log.append, Content("b")),
            partial(log.end, make_done),
        )
        assert has_won
        text = joined_text(log.read(0))
        assert ("a" in text) is is_accepted
        assert log.read(0)[-1][1] is log.ended
        assert [seq for seq, _ in log.read(0)] == list(range(1, log.last + 1))


def test_readers_during_writing_all_get_the_same_text(make_log: MakeLog) -> None:
    """Property: readers that continue from their last number miss nothing."""
    log, texts = make_log(ROOMY), [f"{n} " for n in range(2_000)]

    def write() -> str:
        for text in texts:
            log.append(Content(text))
        log.end(make_done)
        return "".join(texts)

    def read_text() -> str:
        offset, out = 0, ""
        while log.ended is None or offset < log.last:
            log.wait(offset, WAIT_TIMEOUT)
            for seq, event in log.read(offset):
                assert seq == offset + 1
                offset, out = seq, out + text_of(event)
        return out

    assert len(set(together(write, read_text, read_text, read_text))) == 1


class ListModel(RuleBasedStateMachine):
    """After any sequence of operations the log agrees with a plain list that drops nothing."""

    make: MakeLog = staticmethod(IMPLEMENTATIONS["memory"])

    def __init__(self) -> None:
        super().__init__()
        self.log = self.make(2_000)
        self.model: list[Event] = []
        self.is_ended = False
        self.edge = 0  # the highest offset that the log has lost

    @rule(text=st.text(max_size=400))
    def append(self, text: str) -> None:
        assert self.log.append(Content(text)) is not self.is_ended
        if not self.is_ended:
            self.model.append(Content(text))

    @precondition(lambda self: len(self.model) > 5)
    @rule(make=st.sampled_from([make_done, make_cancelled, make_failed]))
    def end(self, make: Callable[[], Terminal]) -> None:
        event = make()
        assert self.log.end(lambda: event) is not self.is_ended
        if not self.is_ended:
            self.model.append(event)
            self.is_ended = True

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, len(self.model) + 2))
        if is_lost(self.log, offset):
            self.edge = max(self.edge, offset + 1)
            return
        assert offset >= self.edge, "dropped events came back"
        assert self.log.read(offset) == list(enumerate(self.model[offset:], offset + 1))

    @invariant()
    def agrees(self) -> None:
        assert self.log.last == len(self.model)
        assert (self.log.ended is not None) is self.is_ended
        assert self.log.size <= 2_000 + 4 * 400 + 2 * EVENT_OVERHEAD


TestSimpleModel = pytest.mark.filterwarnings("default")(ListModel.TestCase)
TestSimpleModel.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@given(texts=st.lists(st.text()), offset=st.integers(0, 60))
def test_read_in_two_parts_gives_the_whole_answer(texts: list[str], offset: int) -> None:
    """Property: the events before a lost connection and those after it make the answer."""
    for make in IMPLEMENTATIONS.values():
        log = make(10_000_000)
        for text in texts:
            log.append(Content(text))
        offset = min(offset, log.last)
        assert joined_text(log.read(0)[:offset]) + joined_text(log.read(offset)) == "".join(texts)


# --- a log that has ended -------------------------------------------------------------------------


def in_memory(events: list[Delta], end: Callable[[], Terminal]) -> EventLog:
    log = EventLog(ROOMY)
    for event in events:
        log.append(event)
    log.end(end)
    return log


def from_a_store(events: list[Delta], end: Callable[[], Terminal]) -> EventLog:
    return stored_log(in_memory(events, end).read(0))


@pytest.fixture(params=[in_memory, from_a_store])
def make_ended(request: pytest.FixtureRequest) -> Callable[..., EventLog]:
    new_log: Callable[..., EventLog] = request.param
    return new_log


@pytest.mark.parametrize("end", [make_done, make_cancelled, make_failed])
@pytest.mark.parametrize("text", ["", "a", "abcdef"])
def test_ended_log_replays_from_every_offset(
    make_ended: Callable[..., EventLog], text: str, end: Callable[[], Terminal]
) -> None:
    """A reader from any offset gets the same numbers and events, the terminal event last."""
    events = [Content(letter) for letter in text]
    log = make_ended(events, end)
    all_events = [*enumerate(events, 1), (len(text) + 1, end())]
    assert (log.first, log.last, log.ended) == (1, len(text) + 1, end())
    for offset in range(len(text) + 4):
        assert log.read(offset) == all_events[offset:]


def test_ended_log_refuses_events_and_waits_for_nothing(
    make_ended: Callable[..., EventLog],
) -> None:
    """Later events are refused, a second end is not made, and a wait returns at once."""
    log = make_ended([Content("a")], make_done)
    assert not log.append(Content("b"))
    assert not log.end(lambda: pytest.fail("it was made"))
    log.wait(log.last, WAIT_TIMEOUT * 100)
    log.subscribe(lambda: pytest.fail("it was called"))
    log.wake()
    assert (joined_text(log.read(0)), log.waiting) == ("a", 0)
    assert log.size >= EVENT_OVERHEAD


def test_stored_log_gap_before_the_end_is_skipped() -> None:
    """Readers may have seen events that a process that died had not saved; no number is used twice."""
    log = stored_log([(1, Content("a")), (2, Content("b")), (100_002, make_failed())])
    assert [number for number, _ in log.read(0)] == [1, 2, 100_002]
    for offset in (2, 3, 57, 100_001):
        assert log.read(offset) == [(100_002, make_failed())]
    assert (log.first, log.last) == (1, 100_002)


def test_stored_log_events_before_another_gap_are_refused() -> None:
    """Events before a gap in the middle are refused with OffsetLost, never skipped."""
    log = stored_log([(1, Content("a")), (3, Content("c")), (4, Content("d")), (5, make_done())])
    for offset in (0, 1):
        assert is_lost(log, offset)
    assert [number for number, _ in log.read(2)] == [3, 4, 5]


def test_stored_log_without_an_end_raises() -> None:
    """Only an ended log is read from a store."""
    with pytest.raises(ValueError, match="terminal"):
        stored_log([(1, Content("a"))])
