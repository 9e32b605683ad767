"""The relay: one thread and one selector for all sockets between models and readers.

Threads begin and end a generation; between the two this thread reads the model's socket, appends to
the log and writes to the readers' sockets:

    other threads                      post    the relay thread                  for
    ---------------------------------  ----->  --------------------------------  -----------------
    Run.work: upstream is open         reply   READ   the model's socket         Run -> log
    Run._end: Stop, limit, fault       ended   close  the model's socket         Run
    a view has sent a response's head  reader  WRITE  the reader's socket        web.sink
    a socket's thread has a frame      frame   WRITE  the WebSocket              web.websocket
    a view follows the log by itself   client  peek   has its client left?       Departure, below
                                               timers: limits, heartbeats, drains, slow readers

    what the relay hands back          later   keeper: ends, a thread for tools or another try
                                       put     painter: blocks of a page
                                       wake    threads that wait at a log or for their reader's end

It waits for its selector and for nothing else: no name is looked up in it, no connection is made,
no file, database or callback is touched, and no log line is written. Sockets in its selector are
its own: other threads may shut one down, never close it. Nothing else in the core reads, writes or
polls a stream's socket once the model's head has come.

Other threads reach it by `post`. Work that was posted comes before sockets, and again after each
socket, so a Stop waits for one read at most. Sockets come before timers: after a stall, what has
arrived is read before a limit of silence is looked at.

Threads: `post` may be called by any, in a destructor and in a signal handler too, since it takes no
lock. Everything else is the relay thread's own.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

from halt.clock import now

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
STALL_MAX = 10.0  # seconds of one turn after which the process is given up
PIPELINED_LOOK = 1.0  # seconds between two looks at a client that has sent something behind
FIGURES_SECONDS = 60.0  # for which the longest turn and the lag are remembered, twice that at most

Work = Callable[[], None]
Method = TypeVar("Method", bound=Callable[..., None])


def contained(method: Method) -> Method:
    """Have a fault in a method end its object's part alone, and not the relay.

    The object's `broken` gets the exception; it must not raise.
    """

    @wraps(method)
    def call(self: Any, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as exc:  # noqa: BLE001 - logged by `broken`
            self.broken(exc)

    return call  # type: ignore[return-value]  # the same parameters


class Timer:
    """Work that is due at a time. Cancelled by setting `work` to None."""

    __slots__ = ("work",)

    def __init__(self, work: Work) -> None:
        self.work: Work | None = work

    def cancel(self) -> None:
        self.work = None


class Peak:
    """The greatest value of the last FIGURES_SECONDS, or of twice that."""

    def __init__(self) -> None:
        self.most = 0.0  # since this period began
        self.until = 0.0  # when it ends
        self._before = 0.0  # the greatest of the period before

    def note(self, value: float, at: float) -> None:
        """Count a value; without effect where it is below `most` and not after `until`."""
        if at > self.until:
            recent = at < self.until + FIGURES_SECONDS
            self._before, self.most = (self.most if recent else 0.0), 0.0
            self.until = at + FIGURES_SECONDS
        self.most = max(self.most, value)

    def value(self) -> float:
        """The greatest value."""
        self.note(0.0, now())
        return max(self._before, self.most)


class Relay:
    """See the module."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is called in the relay thread when the loop itself has failed."""
        self._on_fault = on_fault
        self.longest_turn, self.lag = Peak(), Peak()
        self.turn_began: float | None = None  # None while the selector is waited for
        self._turn_ended = 0.0
        self._posts: deque[Work] = deque()
        self._is_woken = False
        self._woken_at = 0.0
        #: Called by the thread when it ends, to wake the threads that wait for it.
        self.at_end: set[Work] = set()
        self._again: list[Work] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._selector: selectors.BaseSelector
        self._wake_receiver: socket.socket
        self._wake_sender: socket.socket | None = None  # there while the thread is
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._closing = False
        self._is_over = False  # the thread has ended
        _relays.add(self)

    def start(self) -> None:
        """Start the thread, once. Raises RuntimeError where the system has none."""
        if self._thread is not None:
            return
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, READ, self._on_wake)
        thread = threading.Thread(target=self._run, name="halt-relay", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._close_sockets()
            raise
        self._thread = thread

    def _close_sockets(self) -> None:
        sender, self._wake_sender = self._wake_sender, None
        if sender is not None:
            sender.close()
            self._wake_receiver.close()
            self._selector.close()

    @property
    def is_running(self) -> bool:
        return self._ident != 0 or (self._thread is not None and self._thread.is_alive())

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the relay."""
        return threading.get_ident() == self._ident

    def post(self, work: Work) -> None:
        """Have `work` called by the relay thread, soon and in the order of the posts."""
        self._posts.append(work)
        # A thread that finds the flag set has appended before the relay clears it, so the relay
        # finds its work.
        sender = self._wake_sender
        if not self._is_woken and sender is not None and threading.get_ident() != self._ident:
            self._is_woken = True
            self._woken_at = now()
            with contextlib.suppress(OSError):
                sender.send(b"!")
        if self._is_over:
            self._take_rest()

    def close(self, timeout: float) -> None:
        """End the thread when it has done what was posted; wait so many seconds for it."""

        def leave() -> None:
            self._closing = True

        self.post(leave)
        if self._thread is None:
            self._closing = True
        elif not self.is_current:
            self._thread.join(timeout)

    def forget(self) -> None:
        """After a fork, in the child: the thread and what it did are the parent's."""
        self._close_sockets()  # the parent's own stay as they are
        self._posts.clear()
        self._timers.clear()
        self._again.clear()
        self.at_end.clear()
        self._is_woken = False
        self._thread, self._ident = None, 0
        self.turn_began = None

    def figures(self) -> dict[str, float]:
        """How well it keeps up, in milliseconds: the greatest values of a minute or two."""
        longest, lag = self.longest_turn.value(), self.lag.value()
        return {"longest_turn_ms": round(longest * 1000, 2), "lag_ms": round(lag * 1000, 2)}

    # --- for the relay thread ---------------------------------------------------------------------

    def watch(self, sock: Any, events: int, work: Callable[[int], None]) -> None:
        """Call `work` with what `sock` is ready for, as long as it is."""
        self._selector.register(sock, events, work)

    def change(self, sock: Any, events: int, work: Callable[[int], None]) -> None:
        """Watch for something else."""
        self._selector.modify(sock, events, work)

    def unwatch(self, sock: Any) -> None:
        """Watch it no more; to be called before it is closed. Harmless where it is not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def again(self, work: Work) -> None:
        """Call `work` in the next turn, which comes at once and after all sockets had theirs."""
        self._again.append(work)

    def at(self, time: float, work: Work) -> Timer:
        """Call `work` when this time has come."""
        timer = Timer(work)
        heapq.heappush(self._timers, (time, next(self._numbers), timer))
        return timer

    # --- the loop ---------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._closing:
                self._turn()
            for work in list(self.at_end):
                work()
        except BaseException as exc:  # noqa: BLE001 - reported by `on_fault`
            self._on_fault(exc)
        finally:
            self._ident = 0
            # Work that comes from now on is done by its own thread: it closes what it was about,
            # and no thread waits for a relay that is gone.
            self._is_over = True
            self._close_sockets()
            self._take_rest()

    def _turn(self) -> None:
        ready = self._selector.select(self._patience())
        began = self.turn_began = now()
        if self._posts:
            self._take_posts()
        again, self._again = self._again, []
        for key, events in ready:
            key.data(events)
            if self._posts:
                self._take_posts()
        for work in again:
            work()
            if self._posts:
                self._take_posts()
        self._fire(began)
        if self._posts:
            self._take_posts()
        self.turn_began = None
        ended = self._turn_ended = now()
        if ended - began > self.longest_turn.most or ended > self.longest_turn.until:
            self.longest_turn.note(ended - began, ended)

    def _patience(self) -> float | None:
        """Seconds that the selector may wait."""
        if self._posts or self._again:
            return 0.0
        while self._timers and self._timers[0][2].work is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._turn_ended) if self._timers else None

    def _take_posts(self) -> None:
        """Do what is posted now; what is posted meanwhile comes next time."""
        for _ in range(len(self._posts)):
            self._posts.popleft()()

    def _take_rest(self) -> None:
        """Do all that is posted, behind the relay's end and by any thread."""
        with contextlib.suppress(IndexError):
            while True:
                self._posts.popleft()()

    def _on_wake(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(64)
        at = now()
        self.lag.note(at - self._woken_at, at)
        self._is_woken = False  # before the posts are taken, which follows

    def _fire(self, at: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= at:
            timer = heapq.heappop(timers)[2]
            work, timer.work = timer.work, None
            if work is not None:
                work()


class Departure:
    """Calls `gone` when a client has left, for a reader whose thread waits at the log.

    The relay watches a duplicate of the descriptor, which it alone closes: the server may close its
    own at any time.
    """

    def __init__(self, relay: Relay, client: socket.socket, gone: Callable[[], None]) -> None:
        self._relay = relay
        self._gone = gone
        self._sock: socket.socket | None = socket.socket(fileno=os.dup(client.fileno()))
        relay.post(self._begin)

    def cancel(self) -> None:
        """Watch no more."""
        self._relay.post(self._end)

    @contained
    def _begin(self) -> None:
        if self._sock is not None:
            self._relay.watch(self._sock, READ, self._look)

    def broken(self, exc: Exception) -> None:
        """This client is watched no more; a write will find that it has left."""

    @contained
    def _end(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._relay.unwatch(sock)
            sock.close()

    @contained
    def _look(self, _: int = READ) -> None:
        if self._sock is None:
            return
        left = has_left(self._sock)
        if left:
            self._end()
            self._gone()
        elif left is None:  # it has sent something behind its request
            self._relay.unwatch(self._sock)
            self._relay.at(now() + PIPELINED_LOOK, self._begin)


def has_left(client: socket.socket) -> bool | None:
    """Whether the peer has closed its end; None: no, but bytes wait to be read."""
    try:
        if client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return True if _is_half_closed(client) else None
    except (BlockingIOError, InterruptedError):
        return False
    except (OSError, ValueError):
        pass
    return True


def _is_half_closed(client: socket.socket) -> bool:
    """The same behind bytes that wait, where the system has POLLRDHUP."""
    mask = getattr(select, "POLLRDHUP", 0)
    if not mask:
        return False
    poller = select.poll()
    poller.register(client, mask)
    return bool(poller.poll(0))


_relays: WeakSet[Relay] = WeakSet()


def _after_fork() -> None:
    for relay in list(_relays):
        relay.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
